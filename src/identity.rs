//! The identity of a device: whether two sightings are of the same instance.

use std::hash::{Hash, Hasher};

use crate::ids::DeviceNumber;
use crate::kernel::Stat;

/// A timestamp of an inode: seconds and nanoseconds of the real-time clock.
pub type Timestamp = (i64, u32);

/// The identity of one device instance among all others of this boot.
///
/// The inode number of the uverbs directory is the identity: since 5.6, sysfs on 64-bit kernels never uses an inode
/// number twice (`kernfs_id_ino`, `include/linux/kernfs.h`). The kernel reuses the name, the uverbs number, the
/// device number and the GUID at once. The timestamp is only evidence: it belongs to a cached inode, which the
/// kernel may drop and create again.
///
/// Where inode numbers may repeat (on a 32-bit kernel, or in a `/sys` that is not sysfs) the timestamp is part of
/// the identity. Two instances are equal only if their timestamps are equal, so an evicted inode counts as another
/// instance there.
///
/// ```no_run
/// # fn main() -> uverbs::Result<()> {
/// # let registry: uverbs::Registry = unimplemented!();
/// let before = registry.devices()?.by_name("mlx5_0")?.instance();
/// // Unplugged and plugged in again, it has the same name and often the same number.
/// let after = registry.devices()?.by_name("mlx5_0")?.instance();
/// println!("{}", if before == after { "the same device" } else { "another device" });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    /// Whether no other instance ever has that inode number.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) has_unique_inode: bool,
}

impl Instance {
    pub(crate) fn new(
        directory: &Stat,
        device_number: DeviceNumber,
        timestamp: Timestamp,
        has_unique_inode: bool,
    ) -> Self {
        let (sys_dev, ino) = (directory.dev, directory.ino);
        Self { sys_dev, ino, device_number, timestamp, has_unique_inode }
    }

    /// The fields that decide equality.
    fn key(&self) -> (u64, u64, DeviceNumber, Option<Timestamp>) {
        let timestamp = (!self.has_unique_inode).then_some(self.timestamp);
        (self.sys_dev, self.ino, self.device_number, timestamp)
    }
}

impl PartialEq for Instance {
    /// Equal if mount, inode and device number are equal, and, where inode numbers may repeat, the timestamp.
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

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash, Hasher};

    use proptest::prelude::*;

    use super::Instance;

    fn hash(instance: Instance) -> u64 {
        let mut state = DefaultHasher::new();
        instance.hash(&mut state);
        state.finish()
    }

    /// Drawn from few values, so that many instances are equal.
    fn instance() -> impl Strategy<Value = Instance> {
        (0u64..2, 0u64..2, 0u32..2, 0u32..2, any::<bool>()).prop_map(
            |(sys_dev, ino, minor, nanoseconds, has_unique_inode)| Instance {
                sys_dev,
                ino,
                device_number: (231, minor).into(),
                timestamp: (0, nanoseconds),
                has_unique_inode,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn equality_is_an_equivalence_relation(a in instance(), b in instance(), c in instance()) {
            let same = (a.sys_dev, a.ino, a.device_number, a.has_unique_inode)
                == (b.sys_dev, b.ino, b.device_number, b.has_unique_inode);
            let timed = a.has_unique_inode || a.timestamp == b.timestamp;
            prop_assert_eq!(a == b, same && timed);
            prop_assert_eq!(b == a, a == b);
            prop_assert_eq!(hash(a) == hash(b), a == b);
            prop_assert!(a == a && (a != b || b != c || a == c));
        }
    }
}
