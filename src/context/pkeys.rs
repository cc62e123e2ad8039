//! Partition keys. The kernel has no command for them, so they are read in sysfs.

use std::ffi::CString;

use super::Body;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Value;
use crate::ids::Name;
use crate::kernel::Handle;
use crate::pin::{self, Pin};
use crate::record::Record;
use crate::sysfs;

impl Body {
    pub(super) fn query_pkeys(&self, port: u8) -> Result<Vec<u16>> {
        let count = self.query_port(port)?.pkey_table_len;
        let record = self.device.record();
        let read = || {
            let pin = pin::pin_for_reading(record)?;
            let name = pin.read_name()?;
            require_component(&name)?;
            let directory = self.open_directory(record, &name)?;
            let key = |index| {
                let path = path(format!("ports/{port}/pkeys/{index}").into_bytes())?;
                sysfs::read_once(self.kernel(), &directory, &path, sysfs::parse_pkey)
            };
            let keys = (0..count).map(key).collect::<Result<_>>()?;
            self.require_same(&pin, &name)?;
            Ok(keys)
        };
        read().map_err(|error: Error| record.explain(error))
    }

    /// Opens the directory of the RDMA device, beside that of its uverbs device, under its current name. Fails unless
    /// its GUID is the one that the descriptor reports.
    fn open_directory(&self, record: &Record, name: &Name) -> Result<Handle> {
        const CLASS: &str = "infiniband_verbs/uverbs";
        let (kernel, sys) = (self.kernel(), record.host.sys());
        let uverbs = record.path.to_bytes();
        let parent = uverbs.len() - CLASS.len() - record.number.to_string().len();
        let path = path([&uverbs[..parent], b"infiniband/", name.as_bytes()].concat())?;
        let directory = sysfs::open(kernel, sys, &path, sysfs::DIRECTORY)?;
        let expected = self.query_device()?.node_guid;
        let found = sysfs::read_once(kernel, &directory, c"node_guid", sysfs::parse_guid)?;
        if expected == found {
            return Ok(directory);
        }
        let (expected, found) = (Value::Guid(expected), Value::Guid(found));
        Err(Error::differs(ErrorKind::Unstable, "node GUID, in sysfs", expected, found))
    }

    /// Checks, after reading, that the pinned device is alive and still has that name.
    fn require_same(&self, pin: &Pin, name: &Name) -> Result<()> {
        pin.read_device_number()?;
        let found = pin.read_name()?;
        if found == *name {
            return Ok(());
        }
        let (expected, found) = (Value::Name(name.clone()), Value::Name(found));
        Err(Error::differs(ErrorKind::Unstable, "name (ibdev)", expected, found))
    }
}

/// A name has to be one component of the path. Other names lead to another device's directory.
fn require_component(name: &Name) -> Result<()> {
    if !matches!(name.as_bytes(), b"." | b"..") && !name.as_bytes().contains(&b'/') {
        return Ok(());
    }
    let text = format!("the partition keys of a device named \"{name}\" cannot be read in sysfs");
    Err(Error::new(ErrorKind::Unsupported, text).with_hint("rename the device"))
}

fn path(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::new(ErrorKind::Malformed, "a name with a NUL in it"))
}
