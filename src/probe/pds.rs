//! Protection domains of a descriptor, on a simulated or a real kernel.

use std::os::fd::AsFd as _;

use super::{DRIVER, Probed};
use crate::kernel::{Attr, AttrData, Errno, VerbsCall};

/// `IB_USER_VERBS_CMD_*`.
const ALLOC_PD: u64 = 3;
const DEALLOC_PD: u64 = 4;

impl Probed {
    /// ALLOC_PD. Returns the handle.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn alloc_pd(&self) -> Result<u32, i32> {
        let (mut handle, mut driver) = ([0xff; 4], [0; 256]);
        self.invoke(&mut [
            Attr { id: 0, data: AttrData::In(&[0; 8]) },
            Attr { id: 1, data: AttrData::Out { buffer: &mut handle, len: 4 } },
            Attr { id: 2, data: AttrData::Const(ALLOC_PD) },
            Attr { id: 0x1001, data: AttrData::Out { buffer: &mut driver, len: 256 } },
        ])?;
        Ok(u32::from_ne_bytes(handle))
    }

    /// DEALLOC_PD.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn free_pd(&self, handle: u32) -> Result<(), i32> {
        self.invoke(&mut [
            Attr { id: 0, data: AttrData::In(&handle.to_ne_bytes()) },
            Attr { id: 2, data: AttrData::Const(DEALLOC_PD) },
        ])
    }

    fn invoke<'a>(&self, attrs: &'a mut [Attr<'a>]) -> Result<(), i32> {
        let mut call = VerbsCall { object: 0, method: 0, driver_id: DRIVER.to_raw(), attrs };
        self.kernel.verbs_ioctl(self.as_fd(), &mut call).map_err(Errno::raw_os_error)
    }
}
