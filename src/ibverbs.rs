//! Device handles of libibverbs: which device a handle stands for.
//!
//! libibverbs identifies a device by its netlink index, and keeps its handles from list to list. It compares a
//! handle's node and index with those of the devices that it finds, but not the name and the GUID, and it keeps a
//! handle across a reload of ib_core, where indices start again. So a handle may join what belonged to several
//! devices. Programs choose a handle by its name, GUID or node. It is good only if all of them are those of one
//! device, now.
//!
//! An index is not used again until ib_core is reloaded. The inode number of `/sys/class/infiniband` changes with
//! each reload, and with nothing else: it is the *epoch* of indices. While a cmd fd is open, ib_core cannot be
//! unloaded, so an epoch that is read with the cmd fd open holds until it is closed.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{CheckId, Evidence, Step, Value};
use crate::host::Host;
use crate::ids::{Guid, Name};
use crate::netlink::Socket;
use crate::open::Pinned;
use crate::registry::Registry;
use crate::sysfs;

/// How many times a list is attempted while the host changes.
const ATTEMPTS: usize = 3;

/// What a device handle of libibverbs (`struct ibv_device`) contains.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IbvHandle {
    /// Its netlink index (`ibv_get_device_index(3)`), or `None` where libibverbs found the device without netlink.
    pub index: Option<u32>,
    /// The N in its node's name, uverbsN (`dev_name`).
    pub uverbs_number: u32,
    /// Its name (`ibv_get_device_name(3)`).
    pub name: Name,
    /// Its node GUID (`ibv_get_device_guid(3)`, in host order).
    pub node_guid: Guid,
}

impl IbvHandle {
    /// A handle of the fields as libibverbs has them. A negative index stands for `None`.
    ///
    /// # Errors
    /// `Malformed` if `dev_name` is not `uverbsN`.
    pub fn new(index: i32, dev_name: &[u8], name: &[u8], node_guid: Guid) -> Result<Self> {
        let uverbs_number = sysfs::parse_uverbs(dev_name).ok_or_else(|| {
            let text = format!("the node of the handle is named \"{}\"", dev_name.escape_ascii());
            Error::new(ErrorKind::Malformed, text)
        })?;
        let index = u32::try_from(index).ok();
        Ok(Self { index, uverbs_number, name: Name::new(name), node_guid })
    }

    fn label(&self) -> String {
        format!("{} (uverbs{})", self.name, self.uverbs_number)
    }
}

/// Whether a device may be opened by a handle that has an older name of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums)] // there is no third answer
pub enum OldNames {
    /// Only if this process has listed devices through [`IbvHandles::list`] in this epoch, so that the handle had
    /// the right name then.
    #[default]
    AfterList,
    /// Always. A program that chooses devices by name may then get another one.
    Allow,
}

/// The state of one process's handles: the epochs of the first and of the last list.
///
/// It is for code that stands between a program and libibverbs. [`list`](Self::list) belongs around
/// `ibv_get_device_list(3)`, [`find`](Self::find) after the node was opened, and [`FoundDevice::verify`] after its
/// context was allocated. It holds no descriptor and no lock, and a forked child may go on with its copy.
#[derive(Debug)]
pub struct IbvHandles {
    /// When the process started, or, if ib_core was not loaded then, at the first open.
    first: AtomicU64,
    /// At the newest list. 0 means none.
    last: AtomicU64,
}

impl Default for IbvHandles {
    fn default() -> Self {
        Self::new()
    }
}

impl IbvHandles {
    /// The state of a process that has listed nothing yet.
    pub const fn new() -> Self {
        Self { first: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    /// Notes the epoch at the start of the process. Handles of lists that [`list`](Self::list) did not see are
    /// taken to be of this epoch. Only the first call counts.
    ///
    /// # Errors
    /// `Unsupported` if `/sys` is not sysfs; `Os`, `PermissionDenied`.
    pub fn begin(&self, host: &Host) -> Result<()> {
        let epoch = epoch(host)?;
        let _ = self.first.compare_exchange(0, epoch, SeqCst, SeqCst);
        Ok(())
    }

    /// Makes a list, as `ibv_get_device_list(3)` does, and mends it: each handle gets the name that its device has
    /// now. libibverbs keeps a handle, with its first name, for as long as the device is there. Both are done again
    /// if ib_core was reloaded meanwhile, or a name could not be read. A list that is not returned is dropped.
    ///
    /// # Errors
    /// `Unstable` if ib_core was reloaded during each of three attempts; the error of `mend`; as
    /// [`begin`](Self::begin). The program must not get a list then: its names might be those of other devices.
    pub fn list<L>(
        &self,
        host: &Host,
        mut make: impl FnMut() -> L,
        mut mend: impl FnMut(&mut L, &mut IbvNames<'_>) -> Result<()>,
    ) -> Result<L> {
        let mut names = IbvNames { host, socket: None };
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let before = epoch(host)?;
            let mut list = make();
            if let Err(error) = mend(&mut list, &mut names) {
                last = Some(error);
                continue;
            }
            if epoch(host)? == before {
                // Epochs only grow. A thread that was slow must not store an older one.
                self.last.fetch_max(before, SeqCst);
                return Ok(list);
            }
        }
        Err(last.unwrap_or_else(|| {
            let text = format!("ib_core was reloaded during each of {ATTEMPTS} lists");
            Error::new(ErrorKind::Unstable, text)
        }))
    }

    /// Finds the device that a handle stands for, and holds it in place until the result is dropped. Call it with the
    /// handle's node open, so that ib_core stays loaded.
    ///
    /// # Errors
    /// `Replaced` if a check shows that the handle is older than its device, or joins several devices; `Removed` if
    /// no device has its index any more; `Unproven` if it has no index; `Unstable` if devices came and went during
    /// each of three attempts; otherwise as [`Registry::by_index`].
    pub fn find(
        &self,
        registry: &Registry,
        handle: &IbvHandle,
        old_names: OldNames,
    ) -> Result<FoundDevice> {
        let mut evidence = Evidence::default();
        match self.look(registry, handle, old_names, &mut evidence) {
            Ok(pinned) => Ok(FoundDevice { pinned, evidence }),
            Err(error) => {
                Err(error.at(Step::Handle).of(|| handle.label()).with_evidence(&evidence))
            }
        }
    }

    fn look(
        &self,
        registry: &Registry,
        handle: &IbvHandle,
        old_names: OldNames,
        evidence: &mut Evidence,
    ) -> Result<Pinned> {
        const STEP: Step = Step::Handle;
        let host = registry.host();
        let Some(index) = handle.index else {
            let text = "libibverbs found this device without netlink, so the handle has no index";
            return Err(Error::new(ErrorKind::Unproven, text));
        };
        let present = epoch(host)?;
        let (listed, is_listed) = match self.last.load(SeqCst) {
            0 => {
                let first = self.first.compare_exchange(0, present, SeqCst, SeqCst);
                (first.err().unwrap_or(present), false)
            }
            last => (last, true),
        };
        let (expected, found) = (Value::Number(listed), Value::Number(present));
        evidence
            .require(STEP, CheckId::Epoch, ErrorKind::Replaced, expected, || Ok(found))
            .map_err(|error| error.with_hint(RELOADED))?;
        let socket = host.netlink()?;
        let info = socket.device(index)?.ok_or_else(|| {
            let text = format!("RDMA netlink has no device of index {index}");
            Error::new(ErrorKind::Removed, text)
        })?;
        // A list that was not seen may be older than the epoch that it is taken to be of.
        let node_guid = Guid(info.node_guid);
        let (expected, found) = (Value::Guid(handle.node_guid), Value::Guid(node_guid));
        evidence.require(STEP, CheckId::HandleGuid, ErrorKind::Replaced, expected, || Ok(found))?;
        if !is_listed && old_names == OldNames::AfterList {
            let expected = Value::Name(handle.name.clone());
            let found = Value::Name(Name::new(&info.name));
            evidence
                .require(STEP, CheckId::HandleName, ErrorKind::Replaced, expected, || Ok(found))
                .map_err(|error| error.with_hint(RENAMED))?;
        }
        let guess = Some(handle.uverbs_number);
        let (device, pin) =
            registry.find_index(&socket, index, guess).map_err(|error| match error.kind() {
                ErrorKind::NotFound => error.into_kind(ErrorKind::Removed),
                _ => error,
            })?;
        // A list may join the messages of two devices, and a device may have moved to another network namespace.
        let expected = Value::Number(u64::from(handle.uverbs_number));
        let found = Value::Number(u64::from(device.uverbs_number()));
        evidence.require(STEP, CheckId::HandleNode, ErrorKind::Replaced, expected, || Ok(found))?;
        Ok(Pinned { device, pin, socket, index, node_guid })
    }
}

/// The device that a handle stands for, held in place: a few descriptors are open until this is dropped.
#[derive(Debug)]
pub struct FoundDevice {
    pinned: Pinned,
    evidence: Evidence,
}

impl FoundDevice {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.pinned.device
    }

    /// Proves that a cmd fd is bound to the device, as [`Device::verify`] does. The evidence begins with the checks of
    /// the handle.
    ///
    /// # Errors
    /// As [`Device::verify`].
    pub fn verify(&self, fd: impl AsFd) -> Result<Evidence> {
        let mut evidence = self.evidence.clone();
        match self.pinned.verify(fd.as_fd(), &mut evidence) {
            Ok(()) => Ok(evidence),
            // Another attempt, with all that it takes.
            Err(error) if error.kind() == ErrorKind::Unstable => self.device().verify(fd),
            Err(error) => Err(error.with_evidence(&evidence)),
        }
    }
}

const RELOADED: &str = "ib_core was reloaded since the devices were listed: list them again";
const RENAMED: &str =
    "the device was renamed since it was listed, or libibverbs kept the name of another one";

/// The present names of devices, by their netlink index.
#[derive(Debug)]
pub struct IbvNames<'a> {
    host: &'a Host,
    /// Opened with the first name: where libibverbs cannot use netlink, no handle has an index.
    socket: Option<Arc<Socket>>,
}

impl IbvNames<'_> {
    /// The name of the device of an index; `None` if there is none.
    ///
    /// # Errors
    /// `NetlinkUnavailable`, `Malformed`, `Os`, `PermissionDenied`.
    pub fn get(&mut self, index: u32) -> Result<Option<Name>> {
        let socket = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(self.host.netlink()?),
        };
        Ok(socket.device(index)?.map(|info| Name::new(&info.name)))
    }
}

/// The inode number of `/sys/class/infiniband`, or 0 if ib_core is not loaded.
fn epoch(host: &Host) -> Result<u64> {
    if !host.is_sysfs() {
        let text = "/sys is not sysfs, so nothing in it shows when ib_core was loaded";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    match sysfs::open(host.kernel(), host.sys(), c"class/infiniband", sysfs::DIRECTORY) {
        Ok(directory) => Ok(sysfs::stat(host.kernel(), &directory)?.ino),
        Err(error) if sysfs::is_absent(&error) => Ok(0),
        Err(error) => Err(error),
    }
}
