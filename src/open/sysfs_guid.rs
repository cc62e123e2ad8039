//! The node GUID in sysfs, where RDMA netlink does not report the device.

use std::ffi::CString;

use super::on_dead_device;

use crate::device::Device;
use crate::error::{ErrorKind, Result};
use crate::evidence::{CheckId, Evidence, Step, Value};
use crate::ids::Guid;
use crate::pin::{self, Pin};
use crate::record::Record;
use crate::sysfs;
use crate::verbs::CmdFd;

/// Compares the GUID that the descriptor reports with the one in sysfs, if sysfs has it. It is found by the
/// device's name, so it is weaker evidence than netlink's GUID, but it exposes most wrong devices.
pub(super) fn compare(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    evidence: &mut Evidence,
) -> Result<()> {
    let Some(expected) = read(record, pin)? else { return Ok(()) };
    let id = CheckId::SysfsNodeGuid;
    evidence.require(Step::Prove, id, ErrorKind::NodeMismatch, Value::Guid(expected), || {
        cmd.node_guid().map(Value::Guid).map_err(|error| on_dead_device(error, cmd))
    })
}

/// The node GUID of a device in sysfs. `None` if there is none under its name, or the device is in another namespace.
pub(crate) fn read_sysfs_guid(device: &Device) -> Result<Option<Guid>> {
    let record = device.record();
    let found = pin::pin_for_reading(record).and_then(|pin| {
        let guid = read(record, &pin)?;
        // Once the device is gone, another one may have its name.
        pin.read_device_number()?;
        Ok(guid)
    });
    found.map_err(|error| record.explain(error))
}

/// Returns `None` if there is no GUID to compare with: the name cannot be part of a path, the device is in another
/// namespace, or it was renamed meanwhile.
fn read(record: &Record, pin: &Pin) -> Result<Option<Guid>> {
    let name = pin.read_name()?;
    if matches!(name.as_bytes(), b"." | b"..") || name.as_bytes().contains(&b'/') {
        return Ok(None);
    }
    let parent = sysfs::parent_path(&record.path)?;
    let path = [parent.to_bytes(), b"/infiniband/", name.as_bytes()].concat();
    let Ok(path) = CString::new(path) else { return Ok(None) };
    let (kernel, sys) = (record.host.kernel(), record.host.sys());
    let guid = sysfs::open(kernel, sys, &path, sysfs::DIRECTORY).and_then(|directory| {
        sysfs::read_once(kernel, &directory, c"node_guid", sysfs::parse_guid)
    });
    let is_same = pin.read_name()? == name;
    Ok(guid.ok().filter(|_| is_same))
}
