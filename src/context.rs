//! A context: the cmd fd of a device that was opened, and what can be asked through it.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::attr::retry;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::kernel::{Attr, AttrData, Errno, Handle, Kernel, VerbsCall};
use crate::name::Guid;
use crate::open::Proven;
use crate::provider::{DriverId, OUTPUT_ROOM, context_data};

/// `UVERBS_OBJECT_DEVICE` and its methods and attributes (`rdma/ib_user_ioctl_cmds.h`).
mod device_object {
    pub(super) const OBJECT: u16 = 0;
    pub(super) const INVOKE_WRITE: u16 = 0;
    pub(super) const GET_CONTEXT: u16 = 3;
    pub(super) const CORE_IN: u16 = 0;
    pub(super) const CORE_OUT: u16 = 1;
    pub(super) const WRITE_CMD: u16 = 2;
    pub(super) const UHW_IN: u16 = 0x1000;
    pub(super) const UHW_OUT: u16 = 0x1001;
    /// `IB_USER_VERBS_CMD_QUERY_DEVICE` (`rdma/ib_user_verbs.h`).
    pub(super) const QUERY_DEVICE: u64 = 1;
}

/// A cmd fd, of which it is not said yet what it is bound to.
pub(crate) struct CmdFd {
    fd: Handle,
    driver: DriverId,
    device: Device,
}

impl CmdFd {
    pub(crate) fn new(fd: Handle, driver: DriverId, device: Device) -> Self {
        Self { fd, driver, device }
    }

    pub(crate) fn as_ref(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn driver(&self) -> DriverId {
        self.driver
    }

    fn kernel(&self) -> &Kernel {
        self.device.0.host.kernel()
    }

    /// GET_CONTEXT, with what the driver wants to be told. By ioctl: the write ABI refuses a
    /// descriptor that was passed on or whose process forked.
    pub(crate) fn allocate(&self) -> Result<()> {
        let data = context_data(self.driver);
        let mut room = [0; OUTPUT_ROOM];
        let output = Attr {
            id: device_object::UHW_OUT,
            data: AttrData::Out { buffer: &mut room, len: data.output_len },
        };
        let input = Attr { id: device_object::UHW_IN, data: AttrData::In(data.input) };
        let mut attrs = [output, input];
        // No attribute at all where there is nothing to say: some drivers refuse an empty one.
        let attrs = match (data.output_len, data.input.len()) {
            (0, 0) => &mut attrs[..0],
            (0, _) => &mut attrs[1..],
            (_, 0) => &mut attrs[..1],
            _ => &mut attrs[..],
        };
        let mut call = VerbsCall {
            object: device_object::OBJECT,
            method: device_object::GET_CONTEXT,
            driver_id: self.driver.to_raw(),
            attrs,
        };
        retry(|| self.kernel().verbs_ioctl(self.as_ref(), &mut call))
            .map_err(|errno| Error::call("ioctl(RDMA_VERBS_IOCTL, GET_CONTEXT)", errno))
    }

    fn query_device(&self) -> Result<DeviceAttributes> {
        query_device(self.kernel(), self.as_ref(), self.driver)
            .map_err(|error| match error.errno() {
                Some(Errno::IO) => error.into_kind(ErrorKind::Removed),
                _ => error,
            })
            .map_err(|error| error.of(|| self.device.to_string()))
    }
}

/// What QUERY_DEVICE says (`ibv_query_device(3)`, `struct ib_uverbs_query_device_resp`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceAttributes {
    /// Version of the firmware, as the driver encodes it.
    pub firmware_version: u64,
    /// GUID of the node.
    pub node_guid: Guid,
    /// GUID of the system the node is part of.
    pub sys_image_guid: Guid,
    /// Largest memory region, in bytes.
    pub max_mr_size: u64,
    /// Vendor, as an IEEE OUI or a PCI id.
    pub vendor_id: u32,
    /// The vendor's number for this kind of device.
    pub vendor_part_id: u32,
    /// Version of the hardware.
    pub hardware_version: u32,
    /// Most queue pairs.
    pub max_qp: u32,
    /// Most completion queues.
    pub max_cq: u32,
    /// Most memory regions.
    pub max_mr: u32,
    /// Most protection domains.
    pub max_pd: u32,
    /// Number of ports.
    pub phys_port_count: u8,
}

/// Length of `struct ib_uverbs_query_device_resp`.
pub(crate) const QUERY_DEVICE_LEN: usize = 176;

impl DeviceAttributes {
    fn parse(bytes: &[u8; QUERY_DEVICE_LEN]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            word
        };
        let int = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Self {
            firmware_version: u64::from_ne_bytes(word(0)),
            node_guid: Guid(u64::from_be_bytes(word(8))),
            sys_image_guid: Guid(u64::from_be_bytes(word(16))),
            max_mr_size: u64::from_ne_bytes(word(24)),
            vendor_id: int(40),
            vendor_part_id: int(44),
            hardware_version: int(48),
            max_qp: int(52),
            max_cq: int(72),
            max_mr: int(80),
            max_pd: int(84),
            phys_port_count: bytes[171],
        }
    }
}

/// QUERY_DEVICE through a cmd fd.
pub(crate) fn query_device(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    driver: DriverId,
) -> Result<DeviceAttributes> {
    let mut response = [0; QUERY_DEVICE_LEN];
    let len = QUERY_DEVICE_LEN as u16;
    let mut call = VerbsCall {
        object: device_object::OBJECT,
        method: device_object::INVOKE_WRITE,
        driver_id: driver.to_raw(),
        attrs: &mut [
            // The word `response` of the write ABI, which the kernel passes over here.
            Attr { id: device_object::CORE_IN, data: AttrData::In(&[0; 8]) },
            Attr {
                id: device_object::CORE_OUT,
                data: AttrData::Out { buffer: &mut response, len },
            },
            Attr {
                id: device_object::WRITE_CMD,
                data: AttrData::Const(device_object::QUERY_DEVICE),
            },
        ],
    };
    retry(|| kernel.verbs_ioctl(fd, &mut call))
        .map_err(|errno| Error::call("ioctl(RDMA_VERBS_IOCTL, QUERY_DEVICE)", errno))?;
    Ok(DeviceAttributes::parse(&response))
}

/// A context on exactly the device that was asked for: proved, with the evidence.
///
/// Dropping it closes the descriptor. While it is open it keeps some drivers' devices from being
/// removed (those without `disassociate_ucontext`: efa, siw, rxe up to 7.2, and others).
pub struct Context {
    cmd: CmdFd,
    evidence: Evidence,
}

impl Context {
    /// The witness says that the proof was made; there is no other way to a `Context`.
    pub(crate) fn new(cmd: CmdFd, evidence: Evidence, _witness: Proven) -> Self {
        Self { cmd, evidence }
    }
}

/// A context on a device that nothing contradicts, and that could not be proved.
pub struct UnprovenContext {
    cmd: CmdFd,
    evidence: Evidence,
    reason: Error,
}

impl UnprovenContext {
    pub(crate) fn new(cmd: CmdFd, evidence: Evidence, reason: Error) -> Self {
        Self { cmd, evidence, reason }
    }

    /// Why it could not be proved.
    pub fn reason(&self) -> &Error {
        &self.reason
    }

    /// Closes it; what is left is the reason.
    pub fn into_error(self) -> Error {
        self.reason
    }
}

/// What an open came to where unproven ones are allowed.
#[derive(Debug)]
pub enum Opened {
    /// It is the device that was asked for.
    Proven(Context),
    /// Nothing contradicts that it is.
    Unproven(UnprovenContext),
}

/// What both kinds of context offer.
macro_rules! context {
    ($type:ident) => {
        impl $type {
            /// The device it was opened for.
            pub fn device(&self) -> &Device {
                &self.cmd.device
            }

            /// The driver.
            pub fn driver_id(&self) -> DriverId {
                self.cmd.driver
            }

            /// Every check on the way here.
            pub fn evidence(&self) -> &Evidence {
                &self.evidence
            }

            /// Asks the device for its attributes (`ibv_query_device(3)`).
            ///
            /// # Errors
            /// `Removed` when the device is gone.
            pub fn query_device(&self) -> Result<DeviceAttributes> {
                self.cmd.query_device()
            }
        }

        impl AsFd for $type {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.cmd.as_ref()
            }
        }

        impl From<$type> for OwnedFd {
            fn from(context: $type) -> Self {
                context.cmd.fd.into()
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($type))
                    .field("device", &self.cmd.device)
                    .field("fd", &self.cmd.fd)
                    .field("driver", &self.cmd.driver)
                    .finish_non_exhaustive()
            }
        }
    };
}

context!(Context);
context!(UnprovenContext);
