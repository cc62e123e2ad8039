//! Partition keys and the board's id. The kernel has no command for them, so they are read in sysfs.

use std::ffi::CString;

use super::{Body, Context};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Value;
use crate::ids::Name;
use crate::kernel::{Errno, Handle, Kernel};
use crate::pin;
use crate::record::Record;
use crate::sysfs;

impl<P> Context<P> {
    /// Reads the partition keys of a port, in the order of its table (`ibv_query_pkey(3)`). The top bit
    /// marks a full member. The kernel has no command for them, so they are read in sysfs, beside the
    /// pinned directory of this device. They are returned only if the device was there, under one name
    /// and with one GUID, before and after. (Two devices with one parent and equal GUIDs cannot be
    /// distinguished if their names are swapped and swapped back meanwhile.)
    ///
    /// # Errors
    /// `Removed` or `Replaced` if the device is gone. `Unstable` if it was renamed meanwhile.
    /// `Unsupported` if its name is `.` or `..`, or has a `/` in it: such a name is no directory in
    /// sysfs.
    #[doc(alias = "ibv_query_pkey")]
    pub fn pkeys(&self, port: u8) -> Result<Vec<u16>> {
        let count = self.body.query_port(port)?.pkey_table_len;
        self.body.read_in_sysfs(|kernel, directory| {
            let key = |index| {
                let path = path(format!("ports/{port}/pkeys/{index}").into_bytes())?;
                sysfs::read_once(kernel, directory, &path, sysfs::parse_pkey)
            };
            (0..count).map(key).collect()
        })
    }

    /// Reads the board's id as the driver writes it, such as `MT_0000000010`, the parameter set id of a Mellanox card.
    /// `None` if the driver has none. It is read in sysfs, with the precautions of [`pkeys`](Self::pkeys).
    ///
    /// # Errors
    /// As [`pkeys`](Self::pkeys).
    pub fn board_id(&self) -> Result<Option<Name>> {
        self.body.read_in_sysfs(|kernel, directory| {
            match sysfs::read_bytes(kernel, directory, c"board_id") {
                Ok(id) => Ok(Some(Name::new(&id))),
                Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }
}

impl Body {
    /// Reads beneath the directory of the RDMA device, while the device is there under one name.
    fn read_in_sysfs<T>(&self, read: impl FnOnce(&Kernel, &Handle) -> Result<T>) -> Result<T> {
        let record = self.device.record();
        let look = || {
            let pin = pin::pin_for_reading(record)?;
            let name = pin.read_name()?;
            let directory = self.open_directory(record, &name)?;
            let found = read(self.kernel(), &directory)?;
            pin.require_name(&name)?;
            Ok(found)
        };
        look().map_err(|error: Error| record.explain(error))
    }

    /// Opens the directory of the RDMA device, next to that of its uverbs device, under its current name. Fails
    /// unless its GUID is the one that the descriptor reports.
    fn open_directory(&self, record: &Record, name: &Name) -> Result<Handle> {
        let (kernel, sys) = (self.kernel(), record.host.sys());
        let directory =
            sysfs::open(kernel, sys, &sysfs::rdma_path(&record.path, name)?, sysfs::DIRECTORY)?;
        let expected = self.query_device()?.node_guid;
        let found = sysfs::read_once(kernel, &directory, c"node_guid", sysfs::parse_guid)?;
        if expected == found {
            return Ok(directory);
        }
        let (expected, found) = (Value::Guid(expected), Value::Guid(found));
        Err(Error::differs(ErrorKind::Unstable, "node GUID, in sysfs", expected, found))
    }
}

fn path(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::new(ErrorKind::Malformed, "a name with a NUL in it"))
}
