//! The registry: the cached list of devices, its rescans, and what they find changed.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::attr;
use crate::device::{Device, Gone, Record, Sighting};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::indices::Indices;
use crate::provider::{self, Provider, Providers};
use crate::sweep::{NameLink, Sweeps};

/// The devices of a host. A clone shares its records.
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    host: Host,
    indices: Arc<Indices>,
    providers: Arc<Providers>,
    state: Mutex<State>,
}

/// Where more threads than these list at once, the others make room each time.
const SPARE: usize = 8;

#[derive(Default)]
struct State {
    /// What was found at the last look that found something changed, by number.
    entries: Vec<Entry>,
    devices: Devices,
    /// What that look saw in the class directories.
    sweeps: Sweeps,
    /// Every device that the sweeps show has its entry: none went while it was looked at.
    is_whole: bool,
    /// How often something had changed.
    changes: u64,
    /// Room for the next sweeps, of as many threads as have listed at once.
    spare: Vec<Sweeps>,
}

/// One uverbs device that was found.
struct Entry {
    number: u32,
    /// Inode number of its class link, which is made and removed with the device.
    link: u64,
    seen: std::result::Result<Seen, Arc<Error>>,
}

struct Seen {
    device: Device,
    /// The link of its name in `class/infiniband`. It stays when the device is renamed, so another name
    /// of that link means a rename.
    name_link: Option<NameLink>,
}

impl Registry {
    /// A registry of the host's devices. It looks for none before it is asked.
    pub fn new(host: Host) -> Self {
        Self::with_providers(host, [])
    }

    /// The same with [providers](Provider) of the program's own, which come before the built-in ones. With
    /// these, [`devices`](Self::devices) finds out through RDMA netlink and sysfs which provider each new device
    /// has, and attaches it.
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
    /// Both class directories are swept; what is in them as it was is not looked at again.
    ///
    /// # Errors
    /// `Unstable` when the uverbs module is being loaded or unloaded; `Os`, `PermissionDenied`. What is
    /// wrong with one device does not stop the listing: see [`Devices::faults`].
    pub fn devices(&self) -> Result<Devices> {
        let devices = self.list()?;
        if !self.0.providers.is_empty() && !provider::is_inside() {
            devices.iter().for_each(set_up);
        }
        Ok(devices)
    }

    fn list(&self) -> Result<Devices> {
        let host = &self.0.host;
        let (mut sweeps, changes) = {
            let mut state = self.lock();
            (state.spare.pop().unwrap_or_default(), state.changes)
        };
        // Without the lock: threads that list at once do not wait for one another.
        sweeps.take(host)?;
        let mut guard = self.lock();
        let state = &mut *guard;
        // What is no longer listed is let go of without the lock: its provider may be torn down by that.
        let before = state.devices.clone();
        if sweeps != state.sweeps || !state.is_settled(host) {
            // Where another thread has found a change meanwhile, its sweep may be the newer one: to take
            // ours after it might mark a device as gone that has just come.
            if state.changes != changes {
                sweeps.take(host)?;
            }
            state.rescan(&self.0, &sweeps);
            std::mem::swap(&mut state.sweeps, &mut sweeps);
        }
        if state.spare.len() < SPARE {
            state.spare.push(sweeps);
        }
        let devices = state.devices.clone();
        drop(guard);
        drop(before);
        Ok(devices)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Finds a device's provider and attaches it, if that is not done yet. An open returns what is in the way.
fn set_up(device: &Device) {
    if let Err(error) = device.set_up() {
        tracing::debug!(%error, "no provider is attached");
    }
}

impl State {
    /// Nothing has to be looked at again while the sweeps stay as they are.
    fn is_settled(&self, host: &Host) -> bool {
        self.is_whole
            && host.has_unique_inodes()
            && self.sweeps.has_names()
            && self.entries.iter().all(|entry| {
                let seen = entry.seen.as_ref();
                seen.is_ok_and(|seen| seen.name_link.is_some() && seen.device.0.is_settled())
            })
    }

    fn rescan(&mut self, registry: &Inner, sweeps: &Sweeps) {
        let found = sweeps.uverbs();
        let swept = found.len();
        let mut entries = Vec::with_capacity(swept);
        let mut old = std::mem::take(&mut self.entries).into_iter().peekable();
        for (number, link) in found {
            // What the last sweep had before this number is no longer there.
            while let Some(gone) = old.next_if(|entry| entry.number < number) {
                gone.mark(Gone::Removed);
            }
            let known = old.next_if(|entry| entry.number == number);
            entries.extend(look(registry, number, link, known, sweeps));
        }
        for gone in old {
            gone.mark(Gone::Removed);
        }
        link_names(&mut entries, sweeps);
        self.is_whole = entries.len() == swept;
        self.entries = entries;
        self.devices = Devices::of(&self.entries);
        self.changes += 1;
        registry.indices.set_listed(&self.devices.devices);
    }
}

/// Gives those that were looked at the links of their names. One pass over the names for all of them.
fn link_names(entries: &mut [Entry], sweeps: &Sweeps) {
    let seen = entries.iter_mut().filter_map(|entry| entry.seen.as_mut().ok());
    let looked_at = seen.filter(|seen| seen.name_link.is_none());
    let mut looked_at: Vec<_> = looked_at.map(|seen| (seen.device.name(), seen)).collect();
    looked_at.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (name, link) in sweeps.names() {
        // Of two that were read under one name, while it changed hands, one is looked at again.
        if let Ok(at) = looked_at.binary_search_by(|(known, _)| known.as_bytes().cmp(name)) {
            looked_at[at].1.name_link = Some(link);
        }
    }
}

/// Looks at one uverbs device: the known record where it is the same instance, or a new one. None when
/// it went meanwhile.
fn look(
    registry: &Inner,
    number: u32,
    link: u64,
    mut known: Option<Entry>,
    sweeps: &Sweeps,
) -> Option<Entry> {
    let host = &registry.host;
    if let Some(Entry { link: known_link, seen: Ok(seen), .. }) = &mut known
        && *known_link == link
        && host.has_unique_inodes()
        && seen.device.0.is_settled()
        && let Some((name, name_link)) = seen.name_link.and_then(|link| sweeps.name_of(link))
    {
        seen.name_link = Some(name_link);
        if name == seen.device.0.state().name.as_bytes() {
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
    if let Some(Entry { seen: Ok(seen), .. }) = known {
        let record = &seen.device.0;
        if record.is_seen_in(&sighting) && !seen.device.is_known_gone() {
            record.refresh(&sighting);
            return Some(Entry {
                number,
                link,
                seen: Ok(Seen { device: seen.device, name_link: None }),
            });
        }
        record.mark(Gone::Replaced);
    }
    let (indices, providers) = (registry.indices.clone(), registry.providers.clone());
    let record = Record::new(host.clone(), indices, providers, sighting);
    let device = Device(Arc::new(record));
    Some(Entry { number, link, seen: Ok(Seen { device, name_link: None }) })
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
