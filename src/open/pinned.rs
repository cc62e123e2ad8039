//! The proof for a device that is pinned already, before somebody else allocates the context.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::proof::Target;
use super::{duplicate, verify_pinned};
use crate::device::Device;
use crate::error::Result;
use crate::evidence::Evidence;
use crate::ids::Guid;
use crate::kernel::Uncancelled;
use crate::netlink::Socket;
use crate::pin::{Pin, known};

/// A device that is pinned, and whose index and node GUID are known.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) device: Device,
    pub(crate) pin: Pin,
    pub(crate) socket: Arc<Socket>,
    pub(crate) index: u32,
    pub(crate) node_guid: Guid,
}

impl Pinned {
    /// As [`verify`], without looking the device up again. Adds to the evidence.
    pub(crate) fn verify(&self, fd: BorrowedFd<'_>, evidence: &mut Evidence) -> Result<()> {
        let _uncancelled = Uncancelled::begin();
        let record = self.device.record();
        let target = || Ok(Target::of(self.socket.clone(), self.index, self.node_guid));
        known(record)
            .and_then(|()| duplicate(record, fd))
            .and_then(|fd| verify_pinned(record, &self.pin, fd, target, evidence))
            .map(drop)
            .map_err(|error| record.explain(error))
    }
}
