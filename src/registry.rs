//! The registry: the cached list of devices, its rescans, and what they find changed.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::attr;
use crate::device::{Device, Gone, Record, Sighting};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::ids::Name;
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
    /// The entries are those of the devices that the sweeps show: none went while it was looked at, and
    /// none is there that was not shown.
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
    /// Its record. Where it cannot be read for a while it keeps that, and is not listed.
    seen: Option<Seen>,
    /// Why it is not listed.
    fault: Option<Arc<Error>>,
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
    /// handles report that from then on.
    ///
    /// The list holds every device that was there from the beginning of the call to its end. Both class
    /// directories are swept, and entries that have not changed are not looked at again. A sweep of the
    /// kernel may lack a device that is there, so `class/infiniband_verbs` is swept until two sweeps in a row
    /// agree, and a known device that neither shows is looked up before it is marked. If the directory
    /// changes under each of eight sweeps, the last pair counts: a device that is new may be missing from
    /// the list then, a known one never is.
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
            && !host.heeds_timestamps()
            && self.sweeps.has_names()
            && self.entries.iter().all(|entry| {
                let seen = entry.listed();
                seen.is_some_and(|seen| seen.name_link.is_some() && seen.device.0.is_settled())
            })
    }

    fn rescan(&mut self, registry: &Inner, sweeps: &Sweeps) {
        let found = sweeps.uverbs();
        let swept = found.len();
        let mut entries = Vec::with_capacity(swept);
        let mut not_shown = Vec::new();
        let mut old = std::mem::take(&mut self.entries).into_iter().peekable();
        for (number, link) in found {
            while let Some(known) = old.next_if(|entry| entry.number < number) {
                not_shown.push(known);
            }
            let mut known = old.next_if(|entry| entry.number == number);
            if known.as_mut().is_some_and(|known| known.is_as_it_was(registry, link, sweeps)) {
                entries.extend(known);
            } else {
                entries.extend(look(registry, number, link, known));
            }
        }
        not_shown.extend(old);
        let shown = entries.len();
        // A sweep may have stepped over a device that is there, so each is looked up before it is marked.
        entries.extend(
            not_shown
                .into_iter()
                .filter_map(|known| look(registry, known.number, known.link, Some(known))),
        );
        self.is_whole = shown == swept && entries.len() == shown;
        entries.sort_unstable_by_key(|entry| entry.number);
        link_names(&mut entries, sweeps);
        self.entries = entries;
        self.devices = Devices::of(&self.entries);
        self.changes += 1;
        registry.indices.set_listed(&self.devices.devices);
    }
}

/// Gives those that were looked at the links of their names. One pass over the names for all of them.
fn link_names(entries: &mut [Entry], sweeps: &Sweeps) {
    let seen = entries.iter_mut().filter_map(|entry| entry.seen.as_mut());
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
/// it is gone.
fn look(registry: &Inner, number: u32, link: u64, known: Option<Entry>) -> Option<Entry> {
    let host = &registry.host;
    let known = known.and_then(|known| known.seen);
    let entry = |device| {
        let seen = Some(Seen { device, name_link: None });
        Some(Entry { number, link, seen, fault: None })
    };
    let sighting = match Sighting::take(host, number) {
        Ok(sighting) => sighting,
        Err(error) if attr::is_absent(&error) => {
            if let Some(known) = known {
                known.device.0.mark(Gone::Removed);
            }
            return None;
        }
        Err(error) => {
            let error = error.of(|| format!("uverbs{number}"));
            let seen = known.filter(|known| known.device.0.fate().is_none());
            return Some(Entry { number, link, seen, fault: Some(Arc::new(error)) });
        }
    };
    if let Some(Seen { device, .. }) = known {
        if device.0.is_seen_in(&sighting) && !device.is_known_gone() {
            device.0.refresh(&sighting);
            return entry(device);
        }
        device.0.mark(Gone::Replaced);
    }
    let (indices, providers) = (registry.indices.clone(), registry.providers.clone());
    let record = Record::new(host.clone(), indices, providers, sighting);
    entry(Device(Arc::new(record)))
}

impl Entry {
    /// What is listed of it.
    fn listed(&self) -> Option<&Seen> {
        self.seen.as_ref().filter(|_| self.fault.is_none())
    }

    /// It is the same instance under the same name, as far as its links tell.
    fn is_as_it_was(&mut self, registry: &Inner, link: u64, sweeps: &Sweeps) -> bool {
        let Self { link: known_link, seen: Some(seen), fault: None, .. } = self else {
            return false;
        };
        if *known_link == link
            && !registry.host.heeds_timestamps()
            && seen.device.0.is_settled()
            && let Some((name, name_link)) = seen.name_link.and_then(|link| sweeps.name_of(link))
        {
            seen.name_link = Some(name_link);
            return name == seen.device.0.state().name.as_bytes();
        }
        false
    }
}

/// The devices that one look found, by uverbs number, and the names they had then. The list does not
/// change, and the devices outlive it.
///
/// A [`Device`] is a handle on what is there now: its [`name`](Device::name) follows a rename that a later list
/// or an open has found. [`by_name`](Self::by_name) does not: it finds a device by the name that it had in
/// this list.
#[derive(Clone, Default)]
pub struct Devices {
    devices: Arc<[Device]>,
    /// Their names in this list, in the same order.
    names: Arc<[Name]>,
    faults: Arc<[Arc<Error>]>,
}

impl Devices {
    fn of(entries: &[Entry]) -> Self {
        let devices: Arc<[_]> =
            entries.iter().filter_map(Entry::listed).map(|seen| seen.device.clone()).collect();
        let faults = entries.iter().filter_map(|entry| entry.fault.as_ref());
        Self {
            names: devices.iter().map(Device::name).collect(),
            faults: faults.cloned().collect(),
            devices,
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

    /// The device that had that name in this list. The bytes are compared, so an escaped name is not
    /// understood here.
    ///
    /// # Errors
    /// `NotFound`; `Ambiguous` when two have it (Linux 7.3 keeps names unique per namespace only).
    pub fn by_name(&self, name: impl AsRef<[u8]>) -> Result<Device> {
        let name = name.as_ref();
        let named = self.iter().zip(&*self.names).filter(|(_, known)| known.as_bytes() == name);
        let asked = format_args!("\"{}\"", name.escape_ascii());
        only_one(named.map(|(device, _)| device), &asked)
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
        only_one(self.iter().filter(is_it), &asked)
    }
}

fn only_one<'a>(
    mut matches: impl Iterator<Item = &'a Device>,
    asked: &dyn fmt::Display,
) -> Result<Device> {
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
