//! What was checked while a device was opened, and what each check found.

use std::fmt;

use crate::ids::{DeviceNumber, Guid, Name};

/// A step of the open protocol (see the crate's `open` module for what each does).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Step {
    /// 0: which device does a handle of libibverbs stand for?
    Handle,
    /// 1: is the record already known to be gone?
    Known,
    /// 2: pin the instance in /sys.
    Pin,
    /// 3: look at the node in /dev without opening it.
    Node,
    /// 4: open the node.
    Open,
    /// 5: look at the instance again, now that the node is open.
    Revalidate,
    /// 6: allocate the kernel context.
    Allocate,
    /// 7: prove through the descriptor what it is bound to.
    Prove,
}

impl Step {
    /// Its number, as the documentation counts them.
    pub fn number(self) -> u8 {
        self as u8
    }

    /// Its name, in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handle => "handle",
            Self::Known => "known",
            Self::Pin => "pin",
            Self::Node => "node",
            Self::Open => "open",
            Self::Revalidate => "revalidate",
            Self::Allocate => "allocate",
            Self::Prove => "prove",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} ({})", self.number(), self.name())
    }
}

/// A value that a check compared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Value {
    /// A word: what kind of thing, or that something is so.
    Word(&'static str),
    /// A number: an inode, an index, a count.
    Number(u64),
    /// A device number.
    #[cfg_attr(feature = "serde", serde(rename = "device_number"))]
    Device(DeviceNumber),
    /// A GUID.
    Guid(Guid),
    /// A timestamp: seconds and nanoseconds.
    Time(i64, u32),
    /// A name.
    Name(Name),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.pad(word),
            Self::Number(number) => number.fmt(f),
            Self::Device(device) => device.fmt(f),
            Self::Guid(guid) => guid.fmt(f),
            Self::Time(seconds, nanoseconds) => f.pad(&format!("{seconds}.{nanoseconds:09}")),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What a check looks at. One may belong to more than one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CheckId {
    /// The epoch of netlink indices: the inode number of `/sys/class/infiniband`.
    Epoch,
    /// The node GUID of a handle of libibverbs, compared with the one of its netlink index.
    HandleGuid,
    /// The name of such a handle, likewise.
    HandleName,
    /// The uverbs number of such a handle, likewise.
    HandleNode,
    /// The mount of sysfs (`st_dev` of the uverbs directory).
    SysfsMount,
    /// The inode number of the uverbs directory, which identifies the instance.
    UverbsInode,
    /// The device number that the attribute `dev` has. It cannot be read once the device is removed.
    DeviceNumber,
    /// The timestamp (`st_ctime`) of the attribute `ibdev`.
    Timestamp,
    /// The device's name, in the attribute `ibdev`.
    Name,
    /// Whether the node is a character device.
    NodeKind,
    /// The node's device number (`st_rdev`).
    NodeDeviceNumber,
    /// The node's inode number, before and after it was opened.
    NodeInode,
    /// The node GUID that the descriptor reports, compared with RDMA netlink's.
    NodeGuid,
    /// The same, compared with the one in sysfs, where nothing can be proved.
    SysfsNodeGuid,
    /// Whether RDMA netlink lists, under the device's index, a protection domain that a new thread allocated through
    /// the descriptor. This proves it.
    ProtectionDomain,
    /// Whether it lists the context that a new thread allocated. This proves it where there is no protection domain.
    Context,
    /// How many contexts of the thread were new, by the rule that was broken.
    #[cfg(uverbs_leave_out)]
    NewContexts,
}

impl CheckId {
    /// Its name, such as `uverbs_inode`. Names are stable: a check keeps its name in every version.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::HandleGuid => "handle_guid",
            Self::HandleName => "handle_name",
            Self::HandleNode => "handle_node",
            Self::SysfsMount => "sysfs_mount",
            Self::UverbsInode => "uverbs_inode",
            Self::DeviceNumber => "device_number",
            Self::Timestamp => "timestamp",
            Self::Name => "name",
            Self::NodeKind => "node_kind",
            Self::NodeDeviceNumber => "node_device_number",
            Self::NodeInode => "node_inode",
            Self::NodeGuid => "node_guid",
            Self::SysfsNodeGuid => "sysfs_node_guid",
            Self::ProtectionDomain => "protection_domain",
            Self::Context => "context",
            #[cfg(uverbs_leave_out)]
            Self::NewContexts => "new_contexts",
        }
    }

    /// What is looked at, for people.
    const fn what(self) -> &'static str {
        match self {
            Self::Epoch => "epoch of ib_core (class/infiniband inode)",
            Self::HandleGuid => "node GUID of the handle",
            Self::HandleName => "name of the handle",
            Self::HandleNode => "uverbs number of the handle",
            Self::SysfsMount => "sysfs mount (st_dev)",
            Self::UverbsInode => "uverbs directory inode",
            Self::DeviceNumber => "device number (dev)",
            Self::Timestamp => "timestamp (ibdev)",
            Self::Name => "name (ibdev)",
            Self::NodeKind => "kind of node",
            Self::NodeDeviceNumber => "device number of the node",
            Self::NodeInode => "inode of the node",
            Self::NodeGuid => "node GUID, through the descriptor",
            Self::SysfsNodeGuid => "node GUID, through the descriptor (sysfs)",
            Self::ProtectionDomain => "PD of a new thread, under the index",
            Self::Context => "context of a new thread, under the index",
            #[cfg(uverbs_leave_out)]
            Self::NewContexts => "new contexts of this thread (old rule)",
        }
    }
}

/// One check: what was compared and whether it held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// What was looked at, for programs.
    pub id: CheckId,
    /// The step it belongs to.
    pub step: Step,
    /// What it had to be.
    pub expected: Value,
    /// What it was.
    pub found: Value,
}

impl Check {
    /// What was looked at, for people. The text may change in any version.
    pub fn what(&self) -> &'static str {
        self.id.what()
    }

    /// Whether it was as expected.
    pub fn held(&self) -> bool {
        self.expected == self.found
    }
}

/// Everything that was checked on the way to a context, in order.
///
/// Of a [`Context`](crate::Context) and of an [`UnprovenContext`](crate::UnprovenContext) every check held.
/// Of an error ([`Error::evidence`](crate::Error::evidence)) the last one may be the one that did not.
///
/// ```no_run
/// # fn main() -> uverbs::Result<()> {
/// # let device: uverbs::Device = unimplemented!();
/// let context = device.open()?;
/// for check in context.evidence().checks() {
///     println!("{}: {} is {}", check.step, check.what(), check.found);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Evidence {
    checks: Vec<Check>,
    pub(crate) index: Option<u32>,
    pub(crate) context_number: Option<u32>,
    pub(crate) leaked_pd: bool,
}

impl Evidence {
    /// The checks, in the order in which they were made.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The netlink index under which the kernel lists the context.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    /// The number (`RDMA_NLDEV_ATTR_RES_CTXN`) under which the kernel lists the context.
    pub fn context_number(&self) -> Option<u32> {
        self.context_number
    }

    /// Whether a protection domain that the proof allocated could not be freed. It lives until the context
    /// is closed.
    pub fn leaked_pd(&self) -> bool {
        self.leaked_pd
    }

    /// Notes a check.
    pub(crate) fn note(&mut self, check: Check) {
        self.checks.push(check);
    }
}
