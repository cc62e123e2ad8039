//! The devices that a check saw, for its metrics.

use uverbs::{Device, DeviceFacts};

use super::ports::Port;

/// The devices that were seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How many are listed, whether or not they were to be checked.
    pub(super) listed: usize,
    /// How many cannot be listed.
    pub(super) faults: usize,
    /// The checked ones.
    pub(super) devices: Vec<SeenDevice>,
}

/// A device, as far as it is known.
#[derive(Debug)]
pub(super) struct SeenDevice {
    /// The name, escaped.
    pub(super) name: String,
    /// The N of uverbsN.
    pub(super) number: u32,
    /// The inode number of its uverbs directory.
    pub(super) inode: u64,
    /// What netlink reports.
    pub(super) facts: Option<DeviceFacts>,
    /// Whether it was opened and proved; `None` where it was not opened, or that is not known.
    pub(super) proven: Option<bool>,
    pub(super) ports: Vec<Port>,
}

impl SeenDevice {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            name: device.name().to_string(),
            number: device.uverbs_number(),
            inode: device.instance().ino,
            facts: device.query().ok(),
            proven: None,
            ports: Vec::new(),
        }
    }
}
