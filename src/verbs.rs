//! Commands of the verbs ioctl ABI (`rdma/ib_user_ioctl_cmds.h`, `rdma/ib_user_verbs.h`) through a cmd fd.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use crate::error::{Error, Result};
use crate::ids::{DriverId, Guid};
use crate::kernel::{Attr, AttrData, Errno, Handle, Kernel, Sys, VerbsCall, retry};

/// `UVERBS_OBJECT_DEVICE` and its methods and attributes (`rdma/ib_user_ioctl_cmds.h`).
pub(crate) mod object {
    pub(crate) const OBJECT: u16 = 0;
    pub(crate) const INVOKE_WRITE: u16 = 0;
    pub(crate) const QUERY_PORT: u16 = 2;
    pub(crate) const GET_CONTEXT: u16 = 3;
    pub(crate) const QUERY_GID_TABLE: u16 = 5;
    pub(crate) const CORE_IN: u16 = 0;
    pub(crate) const CORE_OUT: u16 = 1;
    pub(crate) const WRITE_CMD: u16 = 2;
    pub(crate) const NUM_COMP_VECTORS: u16 = 0;
    pub(crate) const PORT_NUM: u16 = 0;
    pub(crate) const PORT_RESP: u16 = 1;
    pub(crate) const GID_ENTRY_SIZE: u16 = 0;
    pub(crate) const GID_FLAGS: u16 = 1;
    pub(crate) const GID_ENTRIES: u16 = 2;
    pub(crate) const GID_COUNT: u16 = 3;
    pub(crate) const UHW_IN: u16 = 0x1000;
    pub(crate) const UHW_OUT: u16 = 0x1001;
    /// `IB_USER_VERBS_CMD_QUERY_DEVICE` (`rdma/ib_user_verbs.h`).
    pub(crate) const QUERY_DEVICE: u64 = 1;
    /// `IB_USER_VERBS_CMD_ALLOC_PD` and `IB_USER_VERBS_CMD_DEALLOC_PD`.
    pub(crate) const ALLOC_PD: u64 = 3;
    pub(crate) const DEALLOC_PD: u64 = 4;
    /// `IB_USER_VERBS_EX_CMD_QUERY_DEVICE`, with the flag of extended commands.
    pub(crate) const EX_QUERY_DEVICE: u64 = 0x8000_0001;
}

/// The hint for an EIO while the device is there.
pub(crate) const DRIVER_FAILS: &str =
    "the device is still there, so this is its driver or firmware: see the kernel log";

/// Length of the memory that always follows the output of GET_CONTEXT, in bytes: drivers up to 7.0 write their
/// whole response, whatever length the caller allows.
pub(crate) const OUTPUT_ROOM: usize = 256;

/// Length of `struct ib_uverbs_query_device_resp`.
pub(crate) const QUERY_DEVICE_LEN: usize = 176;
/// Length of `struct ib_uverbs_query_port_resp_ex`.
pub(crate) const QUERY_PORT_LEN: usize = 48;

/// A cmd fd that may be bound to any device.
#[derive(Debug)]
pub(crate) struct CmdFd {
    fd: Handle,
    driver: DriverId,
    kernel: Kernel,
    /// As GET_CONTEXT returned it.
    completion_vectors: OnceLock<u32>,
}

impl CmdFd {
    pub(crate) fn new(fd: Handle, driver: DriverId, kernel: Kernel) -> Self {
        Self { fd, driver, kernel, completion_vectors: OnceLock::new() }
    }

    pub(crate) fn driver(&self) -> DriverId {
        self.driver
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub(crate) fn into_handle(self) -> Handle {
        self.fd
    }

    /// Number of completion vectors; 0 if it is not known.
    pub(crate) fn completion_vectors(&self) -> u32 {
        self.completion_vectors.get().copied().unwrap_or(0)
    }

    /// For a descriptor whose context somebody else allocated.
    pub(crate) fn set_completion_vectors(&self, number: u32) {
        let _ = self.completion_vectors.set(number);
    }

    /// GET_CONTEXT with the input that the driver needs. By ioctl: the write ABI refuses a descriptor that was
    /// passed on or whose process forked. `room` is the [room](output_room) for the driver's output. Does not
    /// allocate memory.
    pub(crate) fn get_context(&self, input: &[u8], output_len: u16, room: &mut [u8]) -> Sys<()> {
        let output =
            Attr { id: object::UHW_OUT, data: AttrData::Out { buffer: room, len: output_len } };
        let number_of_input = usize::from(!input.is_empty());
        let input = Attr { id: object::UHW_IN, data: AttrData::In(input) };
        let mut vectors = [0; 4];
        let number = Attr {
            id: object::NUM_COMP_VECTORS,
            data: AttrData::Out { buffer: &mut vectors, len: 4 },
        };
        let mut attrs = [output, number, input];
        // No attribute at all if there is nothing to pass: some drivers refuse an empty one.
        let from = usize::from(output_len == 0);
        self.invoke((object::OBJECT, object::GET_CONTEXT), &mut attrs[from..2 + number_of_input])?;
        self.set_completion_vectors(u32::from_ne_bytes(vectors));
        Ok(())
    }

    /// Whether the device behind the descriptor has been removed. The command does not reach the driver: for a port
    /// that no device has, the kernel returns EINVAL, with or without a context, and EIO after the removal
    /// (`ib_uverbs_get_ucontext`, `drivers/infiniband/core/uverbs_ioctl.c`).
    pub(crate) fn is_cut_off(&self) -> bool {
        const NO_PORT: u64 = 0;
        let mut response = [0; QUERY_PORT_LEN];
        let len = QUERY_PORT_LEN as u16;
        let attrs = &mut [
            Attr { id: object::PORT_NUM, data: AttrData::Const(NO_PORT) },
            Attr { id: object::PORT_RESP, data: AttrData::Out { buffer: &mut response, len } },
        ];
        self.invoke((object::OBJECT, object::QUERY_PORT), attrs) == Err(Errno::IO)
    }

    /// QUERY_DEVICE: the kernel's answer.
    pub(crate) fn query_device(&self) -> Result<[u8; QUERY_DEVICE_LEN]> {
        let answer = query_device(&self.kernel, self.as_fd(), self.driver);
        answer.map_err(|errno| error_of("QUERY_DEVICE", errno))
    }

    /// The node GUID that QUERY_DEVICE returns.
    pub(crate) fn node_guid(&self) -> Result<Guid> {
        self.query_device().map(|answer| node_guid(&answer))
    }

    /// Sends one command.
    pub(crate) fn command<'a>(
        &self,
        method: (u16, u16),
        name: &str,
        attrs: &'a mut [Attr<'a>],
    ) -> Result<()> {
        self.invoke(method, attrs).map_err(|errno| error_of(name, errno))
    }

    /// As [`command`](Self::command), with a plain errno, for callers that may not allocate memory.
    pub(crate) fn invoke<'a>(&self, method: (u16, u16), attrs: &'a mut [Attr<'a>]) -> Sys<()> {
        invoke(&self.kernel, self.as_fd(), self.driver, method, attrs)
    }
}

impl AsFd for CmdFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Memory for the output of GET_CONTEXT.
pub(crate) fn output_room(output_len: u16) -> Vec<u8> {
    vec![0; OUTPUT_ROOM.max(output_len.into())]
}

/// The error of a command of that name.
pub(crate) fn error_of(name: &str, errno: Errno) -> Error {
    Error::call(format!("ioctl(RDMA_VERBS_IOCTL, {name})"), errno)
}

fn invoke<'a>(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    driver: DriverId,
    (object, method): (u16, u16),
    attrs: &'a mut [Attr<'a>],
) -> Sys<()> {
    let mut call = VerbsCall { object, method, driver_id: driver.to_raw(), attrs };
    retry(|| kernel.verbs_ioctl(fd, &mut call))
}

/// QUERY_DEVICE through a descriptor.
pub(crate) fn query_device(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    driver: DriverId,
) -> Sys<[u8; QUERY_DEVICE_LEN]> {
    let mut response = [0; QUERY_DEVICE_LEN];
    let len = QUERY_DEVICE_LEN as u16;
    let attrs = &mut [
        // The word `response` of the write ABI. The kernel ignores it here.
        Attr { id: object::CORE_IN, data: AttrData::In(&[0; 8]) },
        Attr { id: object::CORE_OUT, data: AttrData::Out { buffer: &mut response, len } },
        Attr { id: object::WRITE_CMD, data: AttrData::Const(object::QUERY_DEVICE) },
    ];
    invoke(kernel, fd, driver, (object::OBJECT, object::INVOKE_WRITE), attrs)?;
    Ok(response)
}

/// `node_guid` of `struct ib_uverbs_query_device_resp`, in network byte order.
pub(crate) fn node_guid(answer: &[u8; QUERY_DEVICE_LEN]) -> Guid {
    let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h, ..] = *answer;
    Guid(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}
