//! The record of one instance: its identity, what is known about it, and whether it is gone.

use std::ffi::CStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::identity::{Instance, Timestamp};
use crate::ids::{DeviceNumber, Guid, Name};
use crate::kernel::{Handle, Stat};
use crate::sysfs::{self, Attribute};

/// One device instance. It holds a descriptor only while it is in use.
pub(crate) struct Record {
    pub(crate) host: Host,
    /// The N of `uverbsN`.
    pub(crate) number: u32,
    /// The path of its directory, relative to /sys.
    pub(crate) path: Box<CStr>,
    pub(crate) sys_dev: u64,
    pub(crate) ino: u64,
    pub(crate) device_number: DeviceNumber,
    /// Found once; valid for the life of the inode.
    pub(crate) joined: OnceLock<Joined>,
    /// Netlink's node GUID, set by the first proof.
    pub(crate) node_guid: OnceLock<Guid>,
    pub(crate) next_pd: NextNumber,
    /// Why the device is gone. It does not come back.
    gone: OnceLock<Gone>,
    /// Its name or its timestamp was found changed between two lists: the next list has to look, though it may
    /// find the class directories as they were.
    changed: AtomicBool,
    state: Mutex<State>,
}

/// The part of a record that changes.
pub(crate) struct State {
    pub(crate) name: Name,
    pub(crate) timestamp: Timestamp,
    /// The timestamp at the last list that looked at it.
    pub(crate) listed_timestamp: Timestamp,
    /// Its directory, while somebody uses it.
    directory: Weak<Handle>,
}

/// What netlink reports for the instance as long as it lives.
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

/// What was seen of a device at one moment, before there is a record of it.
pub(crate) struct Sighting {
    pub(crate) number: u32,
    pub(crate) path: Box<CStr>,
    pub(crate) instance: Instance,
    pub(crate) name: Name,
}

/// The descriptors through which a device was seen. While they exist, its inode numbers are not reused.
pub(crate) struct SeenThrough {
    pub(crate) directory: Handle,
    pub(crate) dev: Attribute,
    pub(crate) ibdev: Attribute,
}

impl Sighting {
    /// Looks at uverbsN. The parts belong together: all are read through one descriptor.
    pub(crate) fn take(host: &Host, number: u32) -> Result<Self> {
        Self::take_through(host, number).map(|(sighting, _)| sighting)
    }

    /// The same, and what it was read through.
    pub(crate) fn take_through(host: &Host, number: u32) -> Result<(Self, SeenThrough)> {
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
        let sighting = Self { number, path: path.into(), instance, name };
        Ok((sighting, SeenThrough { directory, dev, ibdev }))
    }
}

impl Record {
    pub(crate) fn new(host: Host, sighting: Sighting) -> Self {
        let Sighting { number, path, instance, name } = sighting;
        Self {
            host,
            number,
            path,
            sys_dev: instance.sys_dev,
            ino: instance.ino,
            device_number: instance.device_number,
            joined: OnceLock::new(),
            node_guid: OnceLock::new(),
            next_pd: NextNumber::default(),
            gone: OnceLock::new(),
            changed: AtomicBool::new(false),
            state: Mutex::new(State {
                name,
                timestamp: instance.timestamp,
                listed_timestamp: instance.timestamp,
                directory: Weak::new(),
            }),
        }
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

    /// Whether a sighting is of this instance.
    pub(crate) fn is_seen_in(&self, sighting: &Sighting) -> bool {
        sighting.instance == self.instance()
    }

    /// Takes over what a list found changed.
    pub(crate) fn refresh(&self, sighting: &Sighting) {
        self.changed.store(false, Relaxed);
        let timestamp = sighting.instance.timestamp;
        self.note(timestamp, &sighting.name);
        self.state().listed_timestamp = timestamp;
    }

    /// Takes over what an open found changed.
    pub(crate) fn refresh_pinned(&self, timestamp: Timestamp, name: &Name) {
        if self.note(timestamp, name) {
            self.changed.store(true, Relaxed);
        }
    }

    /// Whether it is not as a list has seen it.
    fn note(&self, timestamp: Timestamp, name: &Name) -> bool {
        let mut state = self.state();
        state.timestamp = timestamp;
        let renamed = state.name != *name;
        if renamed {
            state.name = name.clone();
        }
        renamed || timestamp != state.listed_timestamp
    }

    /// Whether the next list does not have to look at this device again.
    pub(crate) fn is_settled(&self) -> bool {
        self.gone.get().is_none() && !self.changed.load(Relaxed)
    }

    /// Name and uverbs name, for messages.
    pub(crate) fn label(&self) -> String {
        format!("{} (uverbs{})", self.state().name, self.number)
    }

    /// Its directory in /sys, shared by all users of the record at this moment, and its `fstat`. It may by now be
    /// the directory of another instance, or of a dead one: the caller compares and reads.
    pub(crate) fn directory(&self) -> Result<(Arc<Handle>, Stat)> {
        let kernel = self.host.kernel();
        let shared = self.state().directory.upgrade();
        if let Some(directory) = shared {
            let stat = sysfs::stat(kernel, &directory)?;
            return Ok((directory, stat));
        }
        let opened = Arc::new(sysfs::open(kernel, self.host.sys(), &self.path, sysfs::DIRECTORY)?);
        let stat = sysfs::stat(kernel, &opened)?;
        // Only the directory of this instance is shared.
        if (stat.dev, stat.ino) == (self.sys_dev, self.ino) {
            self.state().directory = Arc::downgrade(&opened);
        }
        Ok((opened, stat))
    }

    /// Whether the device is already known to be gone.
    pub(crate) fn known_gone(&self) -> Option<Gone> {
        self.gone.get().copied()
    }

    /// Marks the device as gone, permanently. The first mark stands.
    pub(crate) fn mark(&self, gone: Gone) {
        let _ = self.gone.set(gone);
    }

    /// Whether the device is gone, according to the class link at this moment. Marks the record if so. After an
    /// error that leaves it open, the device counts as not known to be gone.
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

    /// Adds to an error which device it concerns. If the device turns out to be gone, the error becomes that.
    pub(crate) fn explain(&self, error: Error) -> Error {
        // These mean the same whether the device is there or not.
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

/// The number that the next protection domain of a device gets if nobody else allocates one before: the kernel
/// counts on from the last one (`xa_alloc_cyclic`). It is only a guess, which saves a list.
#[derive(Debug)]
pub(crate) struct NextNumber(AtomicU64);

/// A number that the kernel never assigns.
const UNKNOWN: u64 = u64::MAX;

impl Default for NextNumber {
    fn default() -> Self {
        Self(AtomicU64::new(UNKNOWN))
    }
}

impl NextNumber {
    pub(crate) fn get(&self) -> Option<u32> {
        u32::try_from(self.0.load(Relaxed)).ok()
    }

    /// Notes that the kernel has assigned `last`.
    pub(crate) fn set_after(&self, last: u32) {
        self.0.store(last.wrapping_add(1).into(), Relaxed);
    }
}
