//! What makes two sightings the same device.

use std::hash::{Hash, Hasher};

use crate::kernel::Stat;
use crate::name::DeviceNumber;

/// A timestamp of an inode: seconds and nanoseconds of the real-time clock.
pub type Timestamp = (i64, u32);

/// One device instance, told from every other one of this boot.
///
/// The inode number of the uverbs directory is the identity: on 64-bit kernels since 5.6 sysfs never
/// uses one twice (`kernfs_id_ino`, `include/linux/kernfs.h`). Name, uverbs number, device
/// number and GUID are all reused at once. The timestamp is evidence only: it is that of a cached
/// inode, which the kernel may drop and make anew.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Instance {
    /// `st_dev` of the sysfs mount through which it was seen.
    pub sys_dev: u64,
    /// Inode number of the uverbs directory.
    pub ino: u64,
    /// The device number of its node.
    pub device_number: DeviceNumber,
    /// `st_ctime` of the attribute `ibdev` when it was last pinned.
    pub timestamp: Timestamp,
}

impl Instance {
    pub(crate) fn new(directory: &Stat, device_number: DeviceNumber, timestamp: Timestamp) -> Self {
        Self { sys_dev: directory.dev, ino: directory.ino, device_number, timestamp }
    }

    fn key(&self) -> (u64, u64, DeviceNumber) {
        (self.sys_dev, self.ino, self.device_number)
    }
}

impl PartialEq for Instance {
    /// Equal when mount, inode and device number are: not the timestamp.
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Instance {}

impl Hash for Instance {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}
