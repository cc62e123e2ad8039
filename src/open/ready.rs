//! Whether a device can be opened, found out without opening it.

use super::{LOOK, open_dev};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Errno, FileType, retry};
use crate::sysfs;

impl Device {
    /// Whether this process can open the device, as far as that shows without opening it. (An open descriptor delays
    /// the removal of a device whose driver does not disassociate.) The node must be there with the device's number,
    /// this process must have access to it (`faccessat2(2)`, from Linux 5.8 on: mode, device cgroup, security modules),
    /// and RDMA netlink must report the device's [index](Self::index), without which nothing is proved.
    ///
    /// `Ok` is no promise: [`open`](Self::open) checks everything again. A `/dev` that is mounted `nodev`, for example,
    /// shows only there.
    ///
    /// The kernel reports the index only when the registration is complete, which is some milliseconds after
    /// the device appears in a list. A query before that makes it try to load a module. To learn when a new device is
    /// ready, use a [`Watch`](crate::Watch).
    ///
    /// # Errors
    /// What is missing: `Os` with `ENOENT` without a node, `PermissionDenied`, `NodeMismatch`, and the errors of
    /// [`index`](Self::index).
    pub fn check_ready(&self) -> Result<()> {
        let record = self.record();
        self.check_node().map_err(|error| record.explain(error))?;
        self.index().map(drop)
    }

    fn check_node(&self) -> Result<()> {
        let record = self.record();
        let kernel = record.host.kernel();
        let node = open_dev(record, LOOK)?;
        let stat = sysfs::stat(kernel, &node)?;
        let is_there = stat.kind == FileType::CharacterDevice;
        if !is_there || record.device_number != stat.rdev.into() {
            let text = format!("the node uverbs{} is another file", record.number);
            return Err(Error::new(ErrorKind::NodeMismatch, text));
        }
        match retry(|| kernel.check_access(&node)) {
            // Linux before 5.8 cannot check it here. The open does.
            Ok(()) | Err(Errno::NOSYS) => Ok(()),
            Err(errno) => Err(Error::call("faccessat2(node, R_OK | W_OK)", errno)),
        }
    }
}
