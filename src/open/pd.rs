//! A protection domain that lives for a moment. It can be allocated through any descriptor that has a context, and
//! the kernel lists it with the thread that allocated it.

use crate::kernel::{Attr, AttrData, Sys};
use crate::verbs::{self, CmdFd, object};

/// Marks that the kernel has not written a handle yet. Handles count from 0 (`rdma_alloc_begin_uobject`,
/// `drivers/infiniband/core/rdma_core.c`).
const NO_HANDLE: u32 = u32::MAX;

/// A protection domain in a descriptor's context. Dropping it frees the domain. Nothing here allocates memory.
pub(super) struct Pd<'a> {
    cmd: &'a CmdFd,
    handle: u32,
    is_live: bool,
}

impl<'a> Pd<'a> {
    /// Allocates a domain (`ib_uverbs_alloc_pd`, `drivers/infiniband/core/uverbs_cmd.c`). The errno of a failure
    /// proves nothing: drivers report their limits by EINVAL, EOVERFLOW and others.
    pub(super) fn allocate(cmd: &'a CmdFd) -> Sys<Self> {
        let mut response = NO_HANDLE.to_ne_bytes();
        let mut room = [0; verbs::OUTPUT_ROOM];
        let len = room.len() as u16;
        let attrs = &mut [
            // The word `response` of the write ABI. The kernel ignores it here.
            Attr { id: object::CORE_IN, data: AttrData::In(&[0; 8]) },
            Attr { id: object::CORE_OUT, data: AttrData::Out { buffer: &mut response, len: 4 } },
            Attr { id: object::WRITE_CMD, data: AttrData::Const(object::ALLOC_PD) },
            // Some drivers write their response whatever length the caller allows.
            Attr { id: object::UHW_OUT, data: AttrData::Out { buffer: &mut room, len } },
        ];
        let allocated = invoke_write(cmd, attrs);
        let handle = u32::from_ne_bytes(response);
        // Where copying the response failed half-way, the domain may exist nevertheless.
        let pd = Self { cmd, handle, is_live: allocated.is_ok() || handle != NO_HANDLE };
        allocated.map(|()| pd)
    }

    /// Frees the domain. If that fails, it is tried once more; after that the domain lives as long as the context.
    pub(super) fn free(mut self) -> Sys<()> {
        let freed = self.deallocate().or_else(|_| self.deallocate());
        self.is_live = false;
        freed
    }

    fn deallocate(&self) -> Sys<()> {
        let handle = self.handle.to_ne_bytes();
        let attrs = &mut [
            Attr { id: object::CORE_IN, data: AttrData::In(&handle) },
            Attr { id: object::WRITE_CMD, data: AttrData::Const(object::DEALLOC_PD) },
        ];
        invoke_write(self.cmd, attrs)
    }
}

impl Drop for Pd<'_> {
    fn drop(&mut self) {
        if self.is_live && self.deallocate().is_err() {
            let _ = self.deallocate();
        }
    }
}

fn invoke_write<'a>(cmd: &CmdFd, attrs: &'a mut [Attr<'a>]) -> Sys<()> {
    cmd.invoke((object::OBJECT, object::INVOKE_WRITE), attrs)
}
