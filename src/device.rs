//! A device: the counted record of one instance, and its transient directory descriptor.

use std::ffi::{CStr, CString};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use crate::context::{Context, Opened};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::host::Host;
use crate::identity::{Instance, Timestamp};
use crate::ids::{DeviceNumber, DriverId, Guid, Name, NodeType};
use crate::index::Indices;
use crate::kernel::{Handle, Stat};
use crate::netlink::NextNumber;
use crate::open;
use crate::provider::{Provided, ProviderInfo, Providers, Slot};
use crate::sysfs::{self, Attribute};

/// A device that was listed: a handle on one instance, which stays what it is when the device is
/// gone. A clone is the same device.
///
/// It holds no descriptor. Two are equal when they are the same [`Instance`], whatever their names.
///
/// ```no_run
/// use uverbs::{ErrorKind, Host, Registry};
///
/// # fn main() -> uverbs::Result<()> {
/// let device = Registry::new(Host::open()?).devices()?.by_name("mlx5_0")?;
/// println!("{device}: index {}, node GUID {}", device.index()?, device.query()?.node_guid);
/// match device.open() {
///     Ok(context) => println!("{} completion vectors", context.completion_vectors()),
///     Err(error) if error.kind() == ErrorKind::Replaced => println!("unplugged since: {error}"),
///     Err(error) => return Err(error),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "ibv_device")]
pub struct Device(pub(crate) Arc<Record>);

pub(crate) struct Record {
    pub(crate) host: Host,
    pub(crate) indices: Arc<Indices>,
    pub(crate) providers: Arc<Providers>,
    /// The N of uverbsN.
    pub(crate) number: u32,
    /// Where its directory is, from /sys.
    pub(crate) path: Box<CStr>,
    pub(crate) sys_dev: u64,
    pub(crate) ino: u64,
    pub(crate) device_number: DeviceNumber,
    /// Joined once, it holds for the life of the inode.
    pub(crate) joined: OnceLock<Joined>,
    /// Netlink's, since the first proof.
    pub(crate) node_guid: OnceLock<Guid>,
    pub(crate) next_pd: NextNumber,
    /// What became of the device. It does not come back.
    gone: OnceLock<Gone>,
    /// It was found under another name between two lists. It may have got its old one back: the next
    /// list has to look, though it may find the class directories as they were.
    renamed: AtomicBool,
    state: Mutex<State>,
    pub(crate) provided: Slot,
}

/// What changes of a record.
pub(crate) struct State {
    pub(crate) name: Name,
    pub(crate) timestamp: Timestamp,
    /// Its directory, while somebody uses it.
    directory: Weak<Handle>,
}

/// What netlink knows of the instance for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) index: u32,
    pub(crate) driver_id: Option<u32>,
}

/// Why a device is no longer there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gone {
    Removed,
    Replaced,
}

impl Gone {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Removed => ErrorKind::Removed,
            Self::Replaced => ErrorKind::Replaced,
        }
    }
}

/// What is seen of a device at one moment, before there is a record of it.
pub(crate) struct Sighting {
    pub(crate) number: u32,
    pub(crate) path: Box<CStr>,
    pub(crate) instance: Instance,
    pub(crate) name: Name,
}

impl Sighting {
    /// Looks at uverbsN. The parts belong together: all are read through one descriptor.
    pub(crate) fn take(host: &Host, number: u32) -> Result<Self> {
        let (kernel, sys) = (host.kernel(), host.sys());
        let path = sysfs::read_class_link(kernel, sys, number)?;
        let directory = sysfs::open(kernel, sys, &path, sysfs::DIRECTORY)?;
        let stat = sysfs::stat(kernel, &directory)?;
        let dev = Attribute::open(kernel, &directory, c"dev")?;
        let device_number = dev.read(kernel, sysfs::parse_device_number)?;
        let ibdev = Attribute::open(kernel, &directory, c"ibdev")?;
        let timestamp = ibdev.stat(kernel)?.ctime;
        let name = ibdev.read(kernel, sysfs::parse_name)?;
        let unique = host.has_unique_inodes();
        let instance = Instance::new(&stat, device_number, timestamp, unique);
        Ok(Self { number, path: path.into(), instance, name })
    }
}

impl Record {
    pub(crate) fn new(
        host: Host,
        indices: Arc<Indices>,
        providers: Arc<Providers>,
        sighting: Sighting,
    ) -> Self {
        let Sighting { number, path, instance, name } = sighting;
        Self {
            host,
            indices,
            providers,
            number,
            path,
            sys_dev: instance.sys_dev,
            ino: instance.ino,
            device_number: instance.device_number,
            joined: OnceLock::new(),
            node_guid: OnceLock::new(),
            next_pd: NextNumber::default(),
            gone: OnceLock::new(),
            renamed: AtomicBool::new(false),
            state: Mutex::new(State {
                name,
                timestamp: instance.timestamp,
                directory: Weak::new(),
            }),
            provided: Slot::default(),
        }
    }

    /// The directory of the device that it is part of, from /sys.
    pub(crate) fn parent_path(&self) -> Result<CString> {
        let uverbs = self.path.to_bytes();
        let class = uverbs.rsplitn(3, |byte| *byte == b'/').nth(2).unwrap_or_default();
        CString::new(class).map_err(|_| Error::new(ErrorKind::Malformed, "a path with a NUL in it"))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(crate) fn instance(&self) -> Instance {
        Instance {
            sys_dev: self.sys_dev,
            ino: self.ino,
            device_number: self.device_number,
            timestamp: self.state().timestamp,
            has_unique_inode: self.host.has_unique_inodes(),
        }
    }

    /// Whether a sighting is of this very instance.
    pub(crate) fn is_seen_in(&self, sighting: &Sighting) -> bool {
        let (seen, known) = (&sighting.instance, self.instance());
        let strict = self.host.policy().strict_timestamps;
        *seen == known && (!strict || seen.timestamp == known.timestamp)
    }

    /// Takes over what a list has found changed of the instance.
    pub(crate) fn refresh(&self, sighting: &Sighting) {
        self.renamed.store(false, Relaxed);
        self.note(sighting.instance.timestamp, &sighting.name);
    }

    /// Takes over what an open has found changed of the instance.
    pub(crate) fn refresh_pinned(&self, timestamp: Timestamp, name: &Name) {
        if self.note(timestamp, name) {
            self.renamed.store(true, Relaxed);
        }
    }

    /// Whether the name is another one.
    fn note(&self, timestamp: Timestamp, name: &Name) -> bool {
        let mut state = self.state();
        state.timestamp = timestamp;
        let renamed = state.name != *name;
        if renamed {
            state.name = name.clone();
        }
        renamed
    }

    /// Nothing was found of it since the last list that the next one has to look into.
    pub(crate) fn is_settled(&self) -> bool {
        self.gone.get().is_none() && !self.renamed.load(Relaxed)
    }

    /// Name and uverbs name, for messages.
    pub(crate) fn label(&self) -> String {
        format!("{} (uverbs{})", self.state().name, self.number)
    }

    /// Its directory in /sys, shared by all who use the record at this moment, and what `fstat` says
    /// of it. It may be the directory of another instance by now, or of a dead one: the caller
    /// compares and reads.
    pub(crate) fn directory(&self) -> Result<(Arc<Handle>, Stat)> {
        let kernel = self.host.kernel();
        let shared = self.state().directory.upgrade();
        if let Some(directory) = shared {
            let stat = sysfs::stat(kernel, &directory)?;
            return Ok((directory, stat));
        }
        let opened = Arc::new(sysfs::open(kernel, self.host.sys(), &self.path, sysfs::DIRECTORY)?);
        let stat = sysfs::stat(kernel, &opened)?;
        // Only the directory of this very instance is shared.
        if (stat.dev, stat.ino) == (self.sys_dev, self.ino) {
            self.state().directory = Arc::downgrade(&opened);
        }
        Ok((opened, stat))
    }

    /// Whether it is already known that the device is gone.
    pub(crate) fn known_gone(&self) -> Option<Gone> {
        self.gone.get().copied()
    }

    /// Notes for good that the device is gone; what was noted first stands.
    pub(crate) fn mark(&self, gone: Gone) {
        let _ = self.gone.set(gone);
    }

    /// Whether the device is gone, as the class link says now; notes it. Errors that leave it open
    /// count as "not known to be gone".
    pub(crate) fn fate(&self) -> Option<Gone> {
        if let Some(gone) = self.known_gone() {
            return Some(gone);
        }
        let (kernel, sys) = (self.host.kernel(), self.host.sys());
        let found = sysfs::read_class_link(kernel, sys, self.number)
            .and_then(|path| sysfs::open(kernel, sys, &path, sysfs::DIRECTORY))
            .and_then(|directory| sysfs::stat(kernel, &directory));
        let gone = match found {
            Ok(stat) if (stat.dev, stat.ino) == (self.sys_dev, self.ino) => None,
            Ok(_) => Some(Gone::Replaced),
            Err(error) if sysfs::is_absent(&error) => Some(Gone::Removed),
            Err(_) => None,
        };
        if let Some(gone) = gone {
            self.mark(gone);
        }
        gone
    }

    /// Says of an error which device it was, and, where the device turns out to be gone, that.
    pub(crate) fn explain(&self, error: Error) -> Error {
        // These are what they are whether the device is there or not.
        let telling = !matches!(
            error.kind(),
            ErrorKind::Unsupported | ErrorKind::Malformed | ErrorKind::PermissionDenied
        );
        let error = match telling.then(|| self.fate()).flatten() {
            Some(gone) => error.into_kind(gone.kind()),
            None => error,
        };
        error.of(|| self.label())
    }
}

impl Device {
    /// The name at the last listing or open, such as `mlx5_0`. Names change and are reused; they are
    /// for display. It may be another one than in the list that the handle is from:
    /// [`Devices::by_name`](crate::Devices::by_name) goes by the names of its list.
    #[doc(alias = "ibv_get_device_name")]
    pub fn name(&self) -> Name {
        self.0.state().name.clone()
    }

    /// The N of `uverbsN`. Reused at once when the device is gone.
    pub fn uverbs_number(&self) -> u32 {
        self.0.number
    }

    /// The device number of its node.
    pub fn device_number(&self) -> DeviceNumber {
        self.0.device_number
    }

    /// What tells this device from every other one.
    pub fn instance(&self) -> Instance {
        self.0.instance()
    }

    /// Whether it is already known that the device is gone. Asks nobody.
    pub fn is_known_gone(&self) -> bool {
        self.0.known_gone().is_some()
    }

    /// The device's index in RDMA netlink. It is learnt when it is first asked for and holds as long
    /// as the device lives.
    ///
    /// To learn it takes one or a few requests for the device numbers of single indices. A request is slow
    /// (54 ms on an emulated machine, where others take 61 us) if it meets a device whose removal waits until
    /// another process closes it: the kernel then tries to load a module. Such an index is asked for last once
    /// it is known.
    ///
    /// # Errors
    /// `Removed` or `Replaced` when the device is gone; `Unproven` when netlink is denied or does not
    /// know the device.
    #[doc(alias = "ibv_get_device_index")]
    pub fn index(&self) -> Result<u32> {
        self.joined().map(|joined| joined.index)
    }

    /// The driver (`enum rdma_driver_id`, `rdma/ib_user_ioctl_verbs.h`); none for those that the
    /// kernel does not tell (mthca, hns).
    ///
    /// # Errors
    /// As [`index`](Self::index).
    pub fn driver_id(&self) -> Result<Option<DriverId>> {
        self.joined().map(|joined| joined.driver_id.map(DriverId::from_raw))
    }

    /// What the kernel says of the device over netlink.
    ///
    /// # Errors
    /// As [`index`](Self::index).
    #[doc(alias = "ibv_get_device_guid")]
    pub fn query(&self) -> Result<DeviceFacts> {
        let joined = self.joined()?;
        let facts = || {
            let pinned = open::pin_for_reading(&self.0)?;
            let info = self.0.host.netlink()?.device(joined.index)?;
            // The index is this device's for as long as the directory lives: still alive after
            // the answer, it was this device's answer.
            pinned.read_device_number()?;
            info.ok_or_else(|| Error::new(ErrorKind::Unproven, "netlink does not know the index"))
        };
        let info = facts().map_err(|error| self.0.explain(error))?;
        Ok(DeviceFacts {
            index: joined.index,
            driver_id: joined.driver_id.map(DriverId::from_raw),
            node_guid: Guid(info.node_guid),
            sys_image_guid: Guid(info.sys_image_guid),
            node_type: NodeType::from_raw(info.node_type),
            firmware_version: Name::new(&info.fw_version),
        })
    }

    /// The device's provider, and the version of its driver's ABI. One that the program registered is attached
    /// by this, unless it is already.
    ///
    /// # Errors
    /// As [`index`](Self::index), and `Busy` while the provider is being attached.
    pub fn provider(&self) -> Result<ProviderInfo> {
        self.set_up().map(|provided| provided.info().clone())
    }

    /// The device's provider, found and attached when it is needed first.
    pub(crate) fn set_up(&self) -> Result<Arc<Provided>> {
        if let Some(provided) = self.0.provided.known() {
            return Ok(provided);
        }
        let driver = self.driver_id()?;
        open::pin_for_reading(&self.0)
            .and_then(|pinned| self.0.provided.find(&self.0, &pinned, driver))
            .map_err(|error| self.0.explain(error))
    }

    fn joined(&self) -> Result<Joined> {
        if let Some(joined) = self.0.joined.get() {
            return Ok(*joined);
        }
        open::pin_for_reading(&self.0)
            .and_then(|pinned| {
                let socket = self.0.host.netlink()?;
                self.0.indices.join(&self.0, &pinned, &socket)
            })
            .map_err(|error| self.0.explain(error))
    }

    /// Opens the device: a context on exactly this instance, or an error that says what happened.
    ///
    /// A thread is started for the proof and waited for; the calling thread runs no signal handlers meanwhile, and
    /// is not cancelled (`pthread_cancel(3)`) until this returns.
    ///
    /// # Errors
    /// `Removed`, `Replaced`: the device is gone. `NodeMismatch`: the node in /dev leads elsewhere.
    /// `Unproven`: the kernel cannot show which device it is (Linux before 5.10, among others).
    /// `NetlinkUnavailable`: netlink is denied. `Unstable`: it would not stay still. `AbiMismatch`,
    /// `Provider`: its provider cannot handle it, or is being attached (`Busy`). `PermissionDenied`, `Os`:
    /// the first system call that failed.
    #[doc(alias = "ibv_open_device")]
    pub fn open(&self) -> Result<Context> {
        match open::open(self, false)? {
            Opened::Proven(context) => Ok(context),
            Opened::Unproven(context) => Err(context.into_error()),
        }
    }

    /// Opens the device also where it cannot be proved to be the right one. Everything that can be
    /// checked is checked, and what contradicts is refused; the result says which of the two it is.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for `Unproven` and `NetlinkUnavailable`.
    pub fn open_allow_unproven(&self) -> Result<Opened> {
        open::open(self, true)
    }

    /// Proves that a cmd fd is bound to this device: one that another library opened, or another process, whenever
    /// that was. It has to have a context. Nothing has to be done before the open, and the thread that opened it
    /// does not matter.
    ///
    /// A protection domain is allocated through the descriptor, looked for under this device's netlink index, and
    /// freed. Some drivers send their device a command for that; on bnxt_re it takes a doorbell page of the
    /// context, and must not happen while the descriptor's owner may be allocating its first domain. The handle
    /// of the domain may be one that the descriptor's owner has freed: an owner that goes on using it hits this
    /// one for that moment, and an owner that frees it again may lose a domain that it has just allocated.
    /// `verify` works on a duplicate, so that closing or reusing the descriptor's number meanwhile leads nowhere
    /// else.
    ///
    /// A thread is started for the proof and waited for; the calling thread runs no signal handlers meanwhile, and
    /// is not cancelled (`pthread_cancel(3)`) until this returns.
    ///
    /// # Errors
    /// `NodeMismatch` when the descriptor is on another device; `Removed`, `Replaced` when this one is gone;
    /// `Unproven` when the kernel cannot show it: the descriptor has no context, the driver gives no protection
    /// domain (ocrdma never), Linux is older than 5.10; `NetlinkUnavailable`.
    pub fn verify(&self, fd: impl AsFd) -> Result<Evidence> {
        open::verify(self, fd.as_fd())
    }
}

/// What the kernel says of a device over RDMA netlink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct DeviceFacts {
    /// Index of the device in netlink, never reused until ib_core is loaded anew.
    pub index: u32,
    /// The driver; none for those that the kernel does not tell.
    pub driver_id: Option<DriverId>,
    /// GUID of the node.
    #[doc(alias = "ibv_get_device_guid")]
    pub node_guid: Guid,
    /// GUID of the system the node is part of.
    pub sys_image_guid: Guid,
    /// Kind of node.
    pub node_type: NodeType,
    /// Version of the firmware, as the driver writes it; empty where it has none.
    pub firmware_version: Name,
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        self.instance() == other.instance()
    }
}

impl Eq for Device {}

impl Hash for Device {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.instance().hash(state);
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.label())
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        f.debug_struct("Device")
            .field("name", &state.name)
            .field("uverbs", &self.0.number)
            .field("device_number", &self.0.device_number)
            .field("ino", &self.0.ino)
            .field("joined", &self.0.joined.get())
            .field("gone", &self.0.known_gone())
            .finish()
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::sim::{DeviceSpec, Machine, Verdict};

    struct Bench {
        machine: Machine,
        id: crate::sim::DeviceId,
        device: Device,
    }

    fn listed() -> Bench {
        let machine = Machine::new();
        let id = machine.add(DeviceSpec::new("a")).expect("added");
        let host = Host::simulated(&machine, crate::host::Policy::new()).expect("a host");
        let device = Registry::new(host).devices().expect("a list").by_name("a").expect("listed");
        Bench { machine, id, device }
    }

    #[test]
    fn the_fate_of_a_device_that_is_there_is_open() {
        let Bench { machine, device, .. } = listed();
        assert_eq!(device.0.fate(), None);
        // An error that does not say that it is absent leaves it open, whichever call it is of.
        for errno in [1, 5, 13, 40] {
            for at in 0..4 {
                let first = machine.calls() + 1;
                machine.on_call(move |_, call| match call.ordinal() == first + at {
                    true => Verdict::Fail(errno),
                    false => Verdict::Continue,
                });
                assert_eq!(device.0.fate(), None, "errno {errno} of call {at}");
            }
        }
        assert!(!device.is_known_gone());
    }

    #[test]
    fn the_fate_of_a_device_that_went_is_noted_for_good() {
        for is_replaced in [false, true] {
            let Bench { machine, id, device } = listed();
            machine.remove(id);
            if is_replaced {
                machine.add(DeviceSpec::new("a")).expect("added");
            }
            let gone = if is_replaced { Gone::Replaced } else { Gone::Removed };
            assert!(!device.is_known_gone());
            assert_eq!(device.0.fate(), Some(gone));
            assert_eq!(device.0.known_gone(), Some(gone));
            machine.add(DeviceSpec::new("b")).expect("added");
            assert_eq!(device.0.fate(), Some(gone));
        }
    }
}
