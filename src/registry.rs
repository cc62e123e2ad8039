//! The registry: the cached list of devices, its rescans, and the changes that they find.

mod changes;
mod devices;
mod quiet;
mod summary;
mod threads;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::device::{Device, Services};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::ids::Name;
use crate::kernel::Errno;
use crate::listing::{NameLink, Sweeps};
use crate::netlink::Socket;
use crate::pin::Pin;
use crate::provider::{self, Provider, Providers};
use crate::record::{Gone, Record, Sighting};
use crate::sysfs;

pub use changes::{Change, ResyncReason};
pub use devices::{Devices, DevicesIntoIter};
pub(crate) use quiet::Attached;
use quiet::Quiet;
pub use summary::Summary;
use threads::by_parts;

/// The devices of a host. A clone shares its records. Threads may share a registry; a forked child makes one of its own
/// ([`Host`], "Fork").
///
/// ```no_run
/// use uverbs::{Host, Registry};
///
/// # fn main() -> uverbs::Result<()> {
/// let registry = Registry::new(Host::open()?);
/// for device in registry.devices()? {
///     println!("{device}, index {}", device.index()?);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Inner>);

struct Inner {
    host: Host,
    services: Arc<Services>,
    state: Mutex<State>,
}

/// How many times a lookup by index is attempted while devices come and go.
const LOOKS: usize = 3;
/// Stands for the inode number of a class link that was not looked at. No inode has this number.
const NO_LINK: u64 = 0;

/// If more threads than this list at once, the others allocate their buffers each time.
const SPARE: usize = 8;

#[derive(Default)]
struct State {
    /// The devices at the last sweep that found a change, ordered by number.
    entries: Vec<Entry>,
    devices: Devices,
    /// What that sweep saw in the class directories.
    sweeps: Sweeps,
    /// The entries match the sweeps: no device went while it was looked at, and none is there that the sweeps did
    /// not show.
    is_whole: bool,
    /// How many times something had changed.
    changes: u64,
    /// Buffers for the next sweeps, as many as threads have listed at once.
    spare: Vec<Sweeps>,
    /// While the registry is watched.
    quiet: Option<Quiet>,
}

/// A uverbs device that was found.
struct Entry {
    number: u32,
    /// Inode number of its class link, which the kernel makes and removes with the device.
    link: u64,
    /// Its record. A device that cannot be read for a while keeps its record, but is not listed.
    seen: Option<Seen>,
    /// Why the device is not listed.
    fault: Option<Arc<Error>>,
}

struct Seen {
    device: Device,
    /// Its name when a list last looked at it. An open that began before may set an older one in the record.
    name: Name,
    /// The link of its name in `class/infiniband`. The link survives a rename, so another name of that link means
    /// that the device was renamed.
    ///
    /// It is known only if the device had that name before and after a sweep that shows the link under it. The name
    /// may have changed hands between a sweep and one look, and back since, and no later sweep would show that.
    name_link: Option<NameLink>,
    /// Whether it had this name already when it was last looked at.
    has_kept_name: bool,
}

impl Registry {
    /// Creates a registry of the host's devices. This does not look at the host yet.
    pub fn new(host: Host) -> Self {
        Self::with_providers(host, [])
    }

    /// As [`new`](Self::new), with the program's own [providers](Provider), which take precedence over the built-in
    /// ones. With them, [`devices`](Self::devices) determines the provider of each new device through RDMA netlink
    /// and sysfs, and attaches it.
    pub fn with_providers(
        host: Host,
        providers: impl IntoIterator<Item = Arc<dyn Provider>>,
    ) -> Self {
        let services = Arc::new(Services::new(Providers::new(providers)));
        let state = Mutex::new(State::default());
        Self(Arc::new(Inner { host, services, state }))
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.0.host
    }

    /// Looks at the host and lists its devices, as `ibv_get_device_list(3)` does each time. A device that is still
    /// the same instance keeps its record. A device that is gone is marked, and its handles report that from then
    /// on.
    ///
    /// The list has every device that was there from the beginning of the call to its end. Both class directories
    /// are swept, and entries that have not changed are not looked at again, except that the next list confirms each
    /// new name. A sweep may lack a device that is
    /// there, so `class/infiniband_verbs` is swept until two sweeps in a row agree, and a known device that neither
    /// shows is looked up before it is marked. If the directory changes during each of eight sweeps, the last pair
    /// counts. Then the list may lack a new device, but never a known one.
    ///
    /// While the registry is [watched](Self::watch), the call takes one system call if no uevent has come since the
    /// last sweep, which was less than a second ago. The list is then that of the last sweep. So where
    /// a uevent was lost, it may be up to a second old. Where the watch has found that uevents do not arrive, each call
    /// sweeps.
    ///
    /// The system calls may wait in the kernel for devices that are being added or removed. No lock is held during the
    /// sweeps; one is while changed entries are looked at, for which other threads that list then wait. With
    /// [providers](Self::with_providers) of the program's own, their code runs on this thread, without a lock.
    ///
    /// # Errors
    /// `Unstable` if the uverbs module is being loaded or unloaded; `Os`, `PermissionDenied`. A problem of one
    /// device does not stop the listing: see [`Devices::faults`].
    #[doc(alias = "ibv_get_device_list")]
    pub fn devices(&self) -> Result<Devices> {
        self.devices_by(1)
    }

    /// As [`devices`](Self::devices), with up to `threads` threads, including the calling one. Each looks at 32 new devices or
    /// more, and has up to three descriptors open meanwhile. They end within the call. If one cannot be started, the
    /// calling thread does its work.
    ///
    /// # Errors
    /// As [`devices`](Self::devices).
    pub fn devices_by(&self, threads: usize) -> Result<Devices> {
        let devices = match self.current() {
            Some(devices) => devices,
            None => self.list(threads)?,
        };
        if !self.0.services.providers.is_empty() && !provider::is_inside() {
            devices.iter().for_each(set_up);
        }
        Ok(devices)
    }

    /// Finds the device that has this index in RDMA netlink, without looking at the other devices
    /// (`RDMA_NLDEV_ATTR_DEV_INDEX`).
    ///
    /// The kernel reports the uverbs device of the index (`RDMA_NLDEV_CMD_GET_CHARDEV`). Its directory in sysfs is
    /// pinned, and the kernel has to report the same device number again while the directory is alive. Then the
    /// index and the directory belong together. A device that was listed before keeps its record. The next list has
    /// the device, too, if it is still there.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// let context = registry.by_index(3)?.open()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NotFound` if no device has the index, or its device has no uverbs node, or is not in this `/sys`.
    /// `Unstable` if devices came and went during each of three attempts. `NetlinkUnavailable`, `Os`,
    /// `PermissionDenied`, `Malformed`.
    #[doc(alias = "ibv_get_device_index")]
    pub fn by_index(&self, index: u32) -> Result<Device> {
        let socket = self.0.host.netlink()?;
        self.find_index(&socket, index, None).map(|(device, _)| device)
    }

    /// As [`by_index`](Self::by_index), through a socket that is open already. The device is returned with a pin.
    /// With `guess`, uverbsN is looked at first: if it has the index, one request is saved.
    pub(crate) fn find_index(
        &self,
        socket: &Socket,
        index: u32,
        guess: Option<u32>,
    ) -> Result<(Device, Pin)> {
        if let Some(Ok(Some((device, pin)))) = guess.map(|number| self.look_at(number))
            && let Ok(true) = device.has_index(&pin, socket, index)
        {
            return Ok(self.found(device, pin));
        }
        let mut last = None;
        for _ in 0..LOOKS {
            let Some(chardev) = socket.chardev(index)? else {
                let text = format!("RDMA netlink has no uverbs device of index {index}");
                return Err(Error::new(ErrorKind::NotFound, text));
            };
            let name = chardev.name.escape_ascii();
            let number = sysfs::parse_uverbs(&chardev.name).ok_or_else(|| {
                let text = format!("the node of index {index} is named \"{name}\", not uverbsN");
                Error::new(ErrorKind::Malformed, text)
            })?;
            let Some((device, pin)) = self.look_at(number)? else {
                let text = format!("index {index} is that of {name}, which is not in /sys");
                last = Some(Error::new(ErrorKind::NotFound, text));
                continue;
            };
            match device.has_index(&pin, socket, index) {
                Ok(true) => return Ok(self.found(device, pin)),
                Ok(false) => {
                    let text = format!("index {index} and {name} do not stay together");
                    last = Some(Error::new(ErrorKind::Unstable, text));
                }
                Err(error) if is_gone(&error) => last = Some(error.into_kind(ErrorKind::Unstable)),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::new(ErrorKind::Unstable, format!("index {index}"))))
    }

    fn found(&self, device: Device, pin: Pin) -> (Device, Pin) {
        if !self.0.services.providers.is_empty() && !provider::is_inside() {
            set_up(&device);
        }
        (device, pin)
    }

    /// Looks at uverbsN and pins it. Returns the device with its existing record, if it has one; `None` if there is
    /// no such device.
    fn look_at(&self, number: u32) -> Result<Option<(Device, Pin)>> {
        let mut guard = self.lock();
        // Under the lock, so that no list runs in between.
        let (sighting, through) = match Sighting::take_through(&self.0.host, number) {
            Ok(seen) => seen,
            Err(error) if sysfs::is_absent(&error) => return Ok(None),
            Err(error) => return Err(error.of(|| format!("uverbs{number}"))),
        };
        let state = &mut *guard;
        let place = state.entries.binary_search_by_key(&number, |entry| entry.number);
        let known = place.ok().and_then(|at| state.entries[at].seen.take());
        // Dropped outside the lock, because that may tear down its provider.
        let before = known.as_ref().map(|seen| seen.device.clone());
        let name = sighting.name.clone();
        let pin = Pin::of(self.0.host.kernel(), &sighting, through);
        let device = recognise(&self.0, sighting, known);
        // Without the link of its name, so that the next list looks again.
        let has_kept_name = false;
        let seen = Some(Seen { device: device.clone(), name, name_link: None, has_kept_name });
        match place {
            Ok(at) => {
                let entry = &mut state.entries[at];
                (entry.seen, entry.fault) = (seen, None);
            }
            Err(at) => {
                state.entries.insert(at, Entry { number, link: NO_LINK, seen, fault: None });
            }
        }
        state.changes += 1;
        drop(guard);
        drop(before);
        Ok(Some((device, pin)))
    }

    fn list(&self, threads: usize) -> Result<Devices> {
        let host = &self.0.host;
        let (mut sweeps, changes, begin) = {
            let mut state = self.lock();
            let begin = state.quiet.as_ref().map(|quiet| quiet.begin(host.kernel()));
            (state.spare.pop().unwrap_or_default(), state.changes, begin)
        };
        // Outside the lock: threads that list at once do not wait for each other.
        sweeps.take(host)?;
        let mut guard = self.lock();
        let state = &mut *guard;
        // What is no longer kept is dropped outside the lock, because that may tear down its provider.
        let before = (state.devices.clone(), state.unlisted());
        if sweeps != state.sweeps || !state.is_settled(host) {
            // If another thread has found a change meanwhile, its sweep may be the newer one. Ours might then mark
            // a device as gone that has just been added.
            if state.changes != changes {
                sweeps.take(host)?;
            }
            state.rescan(&self.0, &sweeps, threads);
            std::mem::swap(&mut state.sweeps, &mut sweeps);
        }
        if state.spare.len() < SPARE {
            state.spare.push(sweeps);
        }
        if let (Some(quiet), Some(begin)) = (&mut state.quiet, &begin) {
            quiet.end(begin);
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

/// Finds a device's provider and attaches it, unless that is done already. An error is ignored here: an open
/// returns it.
fn set_up(device: &Device) {
    if let Err(error) = device.set_up() {
        tracing::debug!(%error, "no provider is attached");
    }
}

impl State {
    /// The devices that are kept and may not be listed: those that could not be read, and those that were looked up by
    /// their index, which have no link of their name yet.
    fn unlisted(&self) -> Vec<Device> {
        let unlisted = self.entries.iter().filter_map(|entry| {
            let seen = entry.seen.as_ref()?;
            (entry.fault.is_some() || seen.name_link.is_none()).then(|| seen.device.clone())
        });
        unlisted.collect()
    }

    /// Whether nothing has to be looked at again as long as the sweeps stay the same.
    fn is_settled(&self, host: &Host) -> bool {
        self.is_whole
            && host.has_unique_inodes()
            && self.entries.iter().all(|entry| {
                let seen = entry.listed();
                seen.is_some_and(|seen| seen.name_link.is_some() && seen.device.0.is_settled())
            })
    }

    fn rescan(&mut self, registry: &Inner, sweeps: &Sweeps, threads: usize) {
        let found = sweeps.uverbs();
        let swept = found.len();
        let mut entries = Vec::with_capacity(swept);
        let (mut changed, mut not_shown) = (Vec::new(), Vec::new());
        let mut old = std::mem::take(&mut self.entries).into_iter().peekable();
        for (number, link) in found {
            while let Some(known) = old.next_if(|entry| entry.number < number) {
                not_shown.push(known);
            }
            let mut known = old.next_if(|entry| entry.number == number);
            if known.as_mut().is_some_and(|known| known.is_as_it_was(registry, link, sweeps)) {
                entries.extend(known);
            } else {
                changed.push((number, link, known));
            }
        }
        not_shown.extend(old);
        entries.extend(look_at_all(registry, changed, threads));
        let shown = entries.len();
        // A sweep may have skipped a device that is there, so each device is looked up before it is marked.
        let not_shown = not_shown.into_iter().map(|known| (known.number, known.link, Some(known)));
        entries.extend(look_at_all(registry, not_shown.collect(), threads));
        self.is_whole = shown == swept && entries.len() == shown;
        entries.sort_unstable_by_key(|entry| entry.number);
        link_names(&mut entries, sweeps);
        self.entries = entries;
        self.devices = Devices::of(&self.entries);
        self.changes += 1;
        registry.services.set_listed(&self.devices.devices);
    }
}

/// Sets the name links of the entries that were looked at again and have kept their names, in one pass over the names.
/// The others are looked at again by the next list.
fn link_names(entries: &mut [Entry], sweeps: &Sweeps) {
    let seen = entries.iter_mut().filter_map(|entry| entry.seen.as_mut());
    let looked_at = seen.filter(|seen| seen.name_link.is_none() && seen.has_kept_name);
    let mut looked_at: Vec<_> = looked_at.map(|seen| (seen.name.clone(), seen)).collect();
    looked_at.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    for (name, link) in sweeps.names() {
        // If two devices were read under one name while it changed hands, at least one of them is looked at again.
        if let Ok(at) = looked_at.binary_search_by(|(known, _)| known.as_bytes().cmp(name)) {
            looked_at[at].1.name_link = Some(link);
        }
    }
}

/// A device to look at: its number, its class link, and what is known of it.
type ToLook = (u32, u64, Option<Entry>);

/// Looks at each uverbs device. Returns those that are there.
fn look_at_all(registry: &Inner, devices: Vec<ToLook>, threads: usize) -> Vec<Entry> {
    let look = |(number, link, known)| look(registry, number, link, known);
    if threads <= 1 {
        return devices.into_iter().filter_map(look).collect();
    }
    // A part that no thread takes must not be lost.
    let devices: Vec<_> = devices.into_iter().map(|device| Mutex::new(Some(device))).collect();
    let take = |device: &Mutex<Option<ToLook>>| {
        device.lock().unwrap_or_else(|poison| poison.into_inner()).take()
    };
    let found =
        by_parts(&devices, threads, |part| part.iter().filter_map(take).filter_map(look).collect());
    // Each thread has three descriptors at a time, so where few are left, one of them may have had none.
    let again = |entry: Entry| match &entry.fault {
        Some(fault) if is_short_of_descriptors(fault) => {
            look((entry.number, entry.link, Some(entry)))
        }
        _ => Some(entry),
    };
    found.into_iter().filter_map(again).collect()
}

/// Looks at one uverbs device. Returns the known record if it is the same instance, otherwise a new one, or `None`
/// if the device is gone.
fn look(registry: &Inner, number: u32, link: u64, known: Option<Entry>) -> Option<Entry> {
    let host = &registry.host;
    let known = known.and_then(|known| known.seen);
    let sighting = match Sighting::take(host, number) {
        Ok(sighting) => sighting,
        Err(error) if sysfs::is_absent(&error) => {
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
    let name = sighting.name.clone();
    let before = known.as_ref().map(|known| (known.device.clone(), known.name.clone()));
    let device = recognise(registry, sighting, known);
    let has_kept_name = before.is_some_and(|before| before == (device.clone(), name.clone()));
    let seen = Some(Seen { device, name, name_link: None, has_kept_name });
    Some(Entry { number, link, seen, fault: None })
}

/// Returns the known record if the sighting is of the same instance, otherwise a new one.
fn recognise(registry: &Inner, sighting: Sighting, known: Option<Seen>) -> Device {
    if let Some(Seen { device, .. }) = known {
        if device.0.is_seen_in(&sighting) && !device.is_known_gone() {
            device.0.refresh(&sighting);
            return device;
        }
        device.0.mark(Gone::Replaced);
    }
    Device::new(Record::new(registry.host.clone(), sighting), registry.services.clone())
}

/// Whether there was no descriptor left.
fn is_short_of_descriptors(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::MFILE | Errno::NFILE))
}

/// Whether the error means that the device is no longer there.
fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced)
}

impl Entry {
    /// The part that is listed, if the device is listed.
    fn listed(&self) -> Option<&Seen> {
        self.seen.as_ref().filter(|_| self.fault.is_none())
    }

    /// Whether it is the same instance under the same name, as far as its links show.
    fn is_as_it_was(&mut self, registry: &Inner, link: u64, sweeps: &Sweeps) -> bool {
        let Self { link: known_link, seen: Some(seen), fault: None, .. } = self else {
            return false;
        };
        if *known_link == link
            && registry.host.has_unique_inodes()
            && seen.device.0.is_settled()
            && let Some((name, name_link)) = seen.name_link.and_then(|link| sweeps.name_of(link))
        {
            seen.name_link = Some(name_link);
            return name == seen.name.as_bytes();
        }
        false
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("host", &self.0.host).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
