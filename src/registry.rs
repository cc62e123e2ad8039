//! The registry: the cached list of devices, its rescans, and what they find changed.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use crate::attr;
use crate::device::{Device, Gone, Record, Sighting};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::indices::Indices;
use crate::kernel::DirEntry;
use crate::provider::{Provider, Providers};

/// The devices of a host. A clone shares its records.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    host: Host,
    indices: Arc<Indices>,
    providers: Arc<Providers>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the last sweep of `class/infiniband_verbs` found, by number.
    entries: Vec<Entry>,
    /// What the last sweep of `class/infiniband` found.
    names: HashMap<Box<[u8]>, u64>,
    devices: Devices,
}

/// One uverbs device that the last sweep found.
struct Entry {
    number: u32,
    /// Inode number of its class link, which is made and removed with the device.
    link: u64,
    seen: std::result::Result<Seen, Arc<Error>>,
}

struct Seen {
    device: Device,
    /// Inode number of the link of its name in `class/infiniband`; it stays when the device is
    /// renamed, so another one under the known name means a rename.
    name_link: Option<u64>,
}

impl Registry {
    /// A registry of the host's devices. It looks for none before it is asked.
    pub fn new(host: Host) -> Self {
        Self::with_providers(host, [])
    }

    /// The same with [providers](Provider) of the program's own, which come before the built-in ones. With
    /// these, [`devices`](Self::devices) asks RDMA netlink and sysfs which provider each new device has.
    pub fn with_providers(
        host: Host,
        providers: impl IntoIterator<Item = Arc<dyn Provider>>,
    ) -> Self {
        let providers = Arc::new(Providers::new(providers));
        let state = Mutex::new(State::default());
        Self(Arc::new(Inner { host, indices: Arc::default(), providers, state }))
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// Looks at the host and lists its devices, as `ibv_get_device_list(3)` does each time. A device
    /// that is still the same instance keeps its record; one that is gone is marked, and its
    /// handles say so.
    ///
    /// # Errors
    /// `Unstable` when the uverbs module is being loaded or unloaded; `Os`, `PermissionDenied`. What is
    /// wrong with one device does not stop the listing: see [`Devices::faults`].
    pub fn devices(&self) -> Result<Devices> {
        let mut state = self.0.state.lock().unwrap_or_else(|poison| poison.into_inner());
        let found = self.sweep_uverbs()?;
        let names = self.sweep_names();
        state.rescan(&self.0, found, names)?;
        let devices = state.devices.clone();
        drop(state);
        if !self.0.providers.is_empty() {
            devices.iter().for_each(set_up);
        }
        Ok(devices)
    }

    /// Number and class link of every uverbs device, by number.
    fn sweep_uverbs(&self) -> Result<Vec<(u32, u64)>> {
        const CLASS: &std::ffi::CStr = c"class/infiniband_verbs";
        let (kernel, sys) = (self.0.host.kernel(), self.0.host.sys());
        // Twice: a directory that was opened just before ib_uverbs went is dead and shows nothing.
        for _ in 0..2 {
            // Opened for each sweep: one that is held dies with the module, and its offset is shared.
            let directory = match attr::open(kernel, sys, CLASS, attr::SWEEP) {
                Err(error) if attr::is_absent(&error) => return Ok(Vec::new()),
                directory => directory?,
            };
            let (mut found, mut is_class) = (Vec::new(), false);
            let mut each = |entry: DirEntry<'_>| match attr::parse_uverbs(entry.name) {
                Some(number) => found.push((number, entry.ino)),
                None => is_class |= entry.name == b"abi_version",
            };
            attr::sweep(kernel, &directory, "class/infiniband_verbs", &mut each)?;
            if is_class {
                found.sort_unstable();
                found.dedup_by_key(|(number, _)| *number);
                return Ok(found);
            }
        }
        Err(Error::new(
            ErrorKind::Unstable,
            "class/infiniband_verbs has no abi_version: ib_uverbs is being loaded or unloaded",
        ))
    }

    /// Name and link of every device in `class/infiniband`; none where that cannot be swept, such as
    /// under a name with a slash in it.
    fn sweep_names(&self) -> Option<HashMap<Box<[u8]>, u64>> {
        let (kernel, sys) = (self.0.host.kernel(), self.0.host.sys());
        let directory = attr::open(kernel, sys, c"class/infiniband", attr::SWEEP).ok()?;
        let mut names = HashMap::new();
        let mut each = |entry: DirEntry<'_>| {
            if !matches!(entry.name, b"." | b"..") {
                names.insert(entry.name.into(), entry.ino);
            }
        };
        attr::sweep(kernel, &directory, "class/infiniband", &mut each).ok()?;
        Some(names)
    }
}

/// Finds a device's provider, if it has none yet. What is in the way is so again when it is opened.
fn set_up(device: &Device) {
    if let Err(error) = device.set_up() {
        tracing::debug!(%error, "no provider is found");
    }
}

impl State {
    fn rescan(
        &mut self,
        registry: &Inner,
        found: Vec<(u32, u64)>,
        names: Option<HashMap<Box<[u8]>, u64>>,
    ) -> Result<()> {
        let names_known = names.is_some();
        let names = names.unwrap_or_default();
        let mut old = std::mem::take(&mut self.entries).into_iter().peekable();
        let mut entries = Vec::with_capacity(found.len());
        for (number, link) in found {
            // What the last sweep had before this number is no longer there.
            while let Some(gone) = old.next_if(|entry| entry.number < number) {
                gone.mark(Gone::Removed);
            }
            let known = old.next_if(|entry| entry.number == number);
            entries.extend(look(registry, number, link, known, &names, names_known));
        }
        for gone in old {
            gone.mark(Gone::Removed);
        }
        self.entries = entries;
        self.names = names;
        self.devices = Devices::of(&self.entries);
        Ok(())
    }
}

/// Looks at one uverbs device: the known record where it is the same instance, or a new one. None when
/// it went meanwhile.
fn look(
    registry: &Inner,
    number: u32,
    link: u64,
    known: Option<Entry>,
    names: &HashMap<Box<[u8]>, u64>,
    names_known: bool,
) -> Option<Entry> {
    let host = &registry.host;
    if let Some(Entry { link: known_link, seen: Ok(seen), .. }) = &known
        && *known_link == link
        && host.has_unique_inodes()
        && !seen.device.is_known_gone()
    {
        let name = seen.device.name();
        let name_link = names.get(name.as_bytes()).copied();
        if names_known && name_link.is_some() && name_link == seen.name_link {
            return known;
        }
    }
    let sighting = match Sighting::take(host, number) {
        Ok(sighting) => sighting,
        Err(error) if attr::is_absent(&error) => {
            if let Some(known) = known {
                known.mark(Gone::Removed);
            }
            return None;
        }
        Err(error) => {
            let error = error.of(|| format!("uverbs{number}"));
            tracing::warn!(%error, "device cannot be listed");
            let seen = Err(Arc::new(error));
            return Some(Entry { number, link, seen });
        }
    };
    let name_link = names.get(sighting.name.as_bytes()).copied();
    if let Some(Entry { seen: Ok(seen), .. }) = known {
        let record = &seen.device.0;
        if record.is_seen_in(&sighting) && !seen.device.is_known_gone() {
            record.refresh(&sighting);
            return Some(Entry { number, link, seen: Ok(Seen { device: seen.device, name_link }) });
        }
        record.mark(Gone::Replaced);
    }
    let (indices, providers) = (registry.indices.clone(), registry.providers.clone());
    let record = Record::new(host.clone(), indices, providers, sighting);
    let device = Device(Arc::new(record));
    Some(Entry { number, link, seen: Ok(Seen { device, name_link }) })
}

impl Entry {
    fn mark(&self, gone: Gone) {
        if let Ok(seen) = &self.seen {
            seen.device.0.mark(gone);
        }
    }
}

/// The devices that one look found, by uverbs number. It stays as it is; the devices outlive it.
#[derive(Clone, Default)]
pub struct Devices {
    devices: Arc<[Device]>,
    faults: Arc<[Arc<Error>]>,
}

impl Devices {
    fn of(entries: &[Entry]) -> Self {
        let devices = entries.iter().filter_map(|entry| entry.seen.as_ref().ok());
        let faults = entries.iter().filter_map(|entry| entry.seen.as_ref().err());
        Self {
            devices: devices.map(|seen| seen.device.clone()).collect(),
            faults: faults.cloned().collect(),
        }
    }

    /// The devices.
    pub fn iter(&self) -> std::slice::Iter<'_, Device> {
        self.devices.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// What was wrong with devices that are therefore not listed.
    pub fn faults(&self) -> impl Iterator<Item = &Error> {
        self.faults.iter().map(|error| &**error)
    }

    /// The device of that name. Escaped names are not understood here: it is bytes that are compared.
    ///
    /// # Errors
    /// `NotFound`; `Ambiguous` when two have it (Linux 7.3 keeps names unique per namespace only).
    pub fn by_name(&self, name: impl AsRef<[u8]>) -> Result<Device> {
        let name = name.as_ref();
        let asked = format_args!("\"{}\"", name.escape_ascii());
        self.by(asked, |device| device.name().as_bytes() == name)
    }

    /// The one device of which something is true; `asked` says what, in errors.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    pub fn by(
        &self,
        asked: impl fmt::Display,
        is_it: impl FnMut(&&Device) -> bool,
    ) -> Result<Device> {
        let mut matches = self.iter().filter(is_it);
        match (matches.next(), matches.next()) {
            (Some(device), None) => Ok(device.clone()),
            (None, _) => Err(Error::new(ErrorKind::NotFound, format!("{asked} is not listed"))),
            (Some(one), Some(other)) => {
                let (one, other) = (one.uverbs_number(), other.uverbs_number());
                let both = format!("{asked} is both uverbs{one} and uverbs{other}");
                Err(Error::new(ErrorKind::Ambiguous, both))
            }
        }
    }
}

impl<'a> IntoIterator for &'a Devices {
    type Item = &'a Device;
    type IntoIter = std::slice::Iter<'a, Device>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("host", &self.0.host).finish_non_exhaustive()
    }
}
