//! A context: the cmd fd of a device that was opened, and the queries through it.

mod claim;
mod device;
mod events;
#[cfg(test)]
mod layouts;
mod pkeys;
mod port;
mod rate;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::ids::DriverId;
use crate::kernel::retry;
use crate::kernel::{Attr, AttrData, Errno, Handle, Kernel, Sys, VerbsCall};
use crate::open::{self, Proven};
use crate::provider::{Allocation, Provided};

pub use claim::ContextClaim;
pub(crate) use device::QUERY_DEVICE_LEN;
pub use device::{DeviceAttributes, ExtendedAttributes};
#[cfg(feature = "tokio")]
pub use events::AsyncEventStream;
pub use events::{AsyncEvent, AsyncEventKind, AsyncEvents};
pub use port::{Gid, GidEntry, GidType, LinkLayer, Mtu, PhysicalState, PortAttributes, PortState};
pub use rate::{LinkSpeed, LinkWidth, PortRate};

/// `UVERBS_OBJECT_DEVICE` and its methods and attributes (`rdma/ib_user_ioctl_cmds.h`).
pub(crate) mod device_object {
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

/// The hint of an EIO while the device is there.
pub(crate) const DRIVER_FAILS: &str =
    "the device is still there, so this is its driver or firmware: see the kernel log";

/// Length of the memory that always follows the output of GET_CONTEXT, in bytes: drivers up to 7.0 write their whole
/// answer whatever length they are given.
pub(crate) const OUTPUT_ROOM: usize = 256;

/// A cmd fd that may be bound to any device.
#[derive(Debug)]
pub(crate) struct CmdFd {
    fd: Handle,
    driver: DriverId,
    device: Device,
    /// As GET_CONTEXT returned it.
    completion_vectors: OnceLock<u32>,
    /// A provider that was found for this descriptor alone.
    _provided: Option<Arc<Provided>>,
}

impl CmdFd {
    pub(crate) fn new(fd: Handle, driver: DriverId, device: Device) -> Self {
        Self { fd, driver, device, completion_vectors: OnceLock::new(), _provided: None }
    }

    /// Keeps a provider for as long as the descriptor.
    pub(crate) fn with_provider(self, provided: Option<Arc<Provided>>) -> Self {
        Self { _provided: provided, ..self }
    }

    pub(crate) fn as_ref(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn driver(&self) -> DriverId {
        self.driver
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        self.device.0.host.kernel()
    }

    /// Memory for the output of GET_CONTEXT.
    pub(crate) fn room(data: &Allocation) -> Vec<u8> {
        vec![0; OUTPUT_ROOM.max(data.output_len.into())]
    }

    /// GET_CONTEXT with the input that the driver needs. By ioctl: the write ABI refuses a descriptor that was
    /// passed on or whose process forked. `room` is the [room](Self::room) for the driver's output. Does not
    /// allocate memory.
    pub(crate) fn allocate(&self, data: &Allocation, room: &mut [u8]) -> Sys<()> {
        let output = Attr {
            id: device_object::UHW_OUT,
            data: AttrData::Out { buffer: room, len: data.output_len },
        };
        let input = Attr { id: device_object::UHW_IN, data: AttrData::In(&data.input) };
        let mut vectors = [0; 4];
        let number = Attr {
            id: device_object::NUM_COMP_VECTORS,
            data: AttrData::Out { buffer: &mut vectors, len: 4 },
        };
        let mut attrs = [output, number, input];
        // No attribute at all where there is nothing to pass: some drivers refuse an empty one.
        let from = usize::from(data.output_len == 0);
        let to = attrs.len() - usize::from(data.input.is_empty());
        let (kernel, fd, attrs) = (self.kernel(), self.as_ref(), &mut attrs[from..to]);
        invoke(
            kernel,
            fd,
            self.driver,
            (device_object::OBJECT, device_object::GET_CONTEXT),
            attrs,
        )?;
        let _ = self.completion_vectors.set(u32::from_ne_bytes(vectors));
        Ok(())
    }

    /// Whether the device behind the descriptor has been removed. No driver takes part in the answer: a port that
    /// no device has is EINVAL, with a context and without one, and EIO after the removal (`ib_uverbs_get_ucontext`,
    /// `drivers/infiniband/core/uverbs_ioctl.c`).
    pub(crate) fn is_cut_off(&self) -> bool {
        const NO_PORT: u64 = 0;
        let mut response = [0; port::QUERY_PORT_LEN];
        let len = port::QUERY_PORT_LEN as u16;
        let attrs = &mut [
            Attr { id: device_object::PORT_NUM, data: AttrData::Const(NO_PORT) },
            Attr {
                id: device_object::PORT_RESP,
                data: AttrData::Out { buffer: &mut response, len },
            },
        ];
        let method = (device_object::OBJECT, device_object::QUERY_PORT);
        invoke(self.kernel(), self.as_ref(), self.driver, method, attrs) == Err(Errno::IO)
    }

    fn query_device(&self) -> Result<DeviceAttributes> {
        query_device(self.kernel(), self.as_ref(), self.driver).map_err(|error| self.explain(error))
    }

    /// A command on the device.
    fn ask<'a>(&self, method: u16, name: &str, attrs: &'a mut [Attr<'a>]) -> Result<()> {
        let object = device_object::OBJECT;
        command(self.kernel(), self.as_ref(), self.driver, (object, method), name, attrs)
            .map_err(|error| self.explain(error))
    }

    /// Adds the meaning of a command's error, and the device.
    fn explain(&self, error: Error) -> Error {
        let error = match error.errno() {
            Some(Errno::IO) if self.is_cut_off() => error.into_kind(ErrorKind::Removed),
            Some(Errno::IO) => error.hint(DRIVER_FAILS),
            Some(Errno::PROTONOSUPPORT) => error.into_kind(ErrorKind::Unsupported),
            _ => error,
        };
        error.of(|| self.device.to_string())
    }
}

/// One command of the ioctl ABI.
pub(crate) fn command<'a>(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    driver: DriverId,
    method: (u16, u16),
    name: &str,
    attrs: &'a mut [Attr<'a>],
) -> Result<()> {
    invoke(kernel, fd, driver, method, attrs).map_err(|errno| command_error(name, errno))
}

/// The error of a command of that name.
pub(crate) fn command_error(name: &str, errno: Errno) -> Error {
    Error::call(format!("ioctl(RDMA_VERBS_IOCTL, {name})"), errno)
}

/// The same with the bare errno, for where no memory may be allocated.
pub(crate) fn invoke<'a>(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    driver: DriverId,
    (object, method): (u16, u16),
    attrs: &'a mut [Attr<'a>],
) -> Sys<()> {
    let mut call = VerbsCall { object, method, driver_id: driver.to_raw(), attrs };
    retry(|| kernel.verbs_ioctl(fd, &mut call))
}

/// QUERY_DEVICE through a cmd fd.
pub(crate) fn query_device(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    driver: DriverId,
) -> Result<DeviceAttributes> {
    let mut response = [0; QUERY_DEVICE_LEN];
    let len = QUERY_DEVICE_LEN as u16;
    let attrs = &mut [
        // The word `response` of the write ABI, which the kernel ignores here.
        Attr { id: device_object::CORE_IN, data: AttrData::In(&[0; 8]) },
        Attr { id: device_object::CORE_OUT, data: AttrData::Out { buffer: &mut response, len } },
        Attr { id: device_object::WRITE_CMD, data: AttrData::Const(device_object::QUERY_DEVICE) },
    ];
    let method = (device_object::OBJECT, device_object::INVOKE_WRITE);
    command(kernel, fd, driver, method, "QUERY_DEVICE", attrs)?;
    Ok(DeviceAttributes::parse(&response))
}

/// A context on exactly the device that was requested: proved, with the evidence.
///
/// Dropping it closes the descriptor. While it is open it keeps some drivers' devices from being
/// removed (those without `disassociate_ucontext`: efa, siw, rxe up to 7.2, and others).
///
/// ```no_run
/// # fn main() -> uverbs::Result<()> {
/// # let device: uverbs::Device = unimplemented!();
/// let context = device.open()?;
/// let attributes = context.query_device()?;
/// for port in 1..=attributes.phys_port_count {
///     println!("port {port}: {}", context.query_port(port)?.state);
/// }
/// # Ok(())
/// # }
/// ```
#[doc(alias = "ibv_context")]
#[doc(alias = "ibv_close_device")]
pub struct Context {
    cmd: CmdFd,
    evidence: Evidence,
}

impl Context {
    /// The witness shows that the proof was made. There is no other way to make a `Context`.
    pub(crate) fn new(cmd: CmdFd, evidence: Evidence, _witness: Proven) -> Self {
        Self { cmd, evidence }
    }
}

/// A context that could not be proved to be on the requested device. No check contradicted it.
pub struct UnprovenContext {
    cmd: CmdFd,
    evidence: Evidence,
    reason: Error,
}

impl UnprovenContext {
    pub(crate) fn new(cmd: CmdFd, evidence: Evidence, reason: Error) -> Self {
        Self { cmd, evidence, reason }
    }

    /// The reason why it could not be proved.
    pub fn reason(&self) -> &Error {
        &self.reason
    }

    /// Closes the context and returns the reason.
    pub fn into_error(self) -> Error {
        self.reason
    }
}

/// The result of an open that allows unproven contexts.
///
/// ```no_run
/// use uverbs::Opened;
///
/// # fn main() -> uverbs::Result<()> {
/// # let device: uverbs::Device = unimplemented!();
/// match device.open_allow_unproven()? {
///     Opened::Proven(context) => println!("index {:?}", context.evidence().index()),
///     Opened::Unproven(context) => println!("perhaps another device: {}", context.reason()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[allow(clippy::exhaustive_enums)] // a caller has to handle both, and there is no third
pub enum Opened {
    /// The context is proved to be on the requested device.
    Proven(Context),
    /// The context could not be proved. No check contradicted it.
    Unproven(UnprovenContext),
}

/// The methods and traits of both kinds of context.
macro_rules! context {
    ($type:ident) => {
        impl $type {
            /// The device that the context was opened for.
            pub fn device(&self) -> &Device {
                &self.cmd.device
            }

            /// The driver.
            pub fn driver_id(&self) -> DriverId {
                self.cmd.driver
            }

            /// Every check of the open.
            pub fn evidence(&self) -> &Evidence {
                &self.evidence
            }

            /// Queries the device's attributes (`ibv_query_device(3)`).
            ///
            /// # Errors
            /// `Removed` if the device is gone.
            #[doc(alias = "ibv_query_device")]
            pub fn query_device(&self) -> Result<DeviceAttributes> {
                self.cmd.query_device()
            }

            /// Queries more of the device's attributes (`ibv_query_device_ex(3)`).
            ///
            /// # Errors
            /// `Removed` if the device is gone; `Os` if the driver refuses.
            #[doc(alias = "ibv_query_device_ex")]
            pub fn query_device_extended(&self) -> Result<ExtendedAttributes> {
                self.cmd.query_device_extended()
            }

            /// Queries a port's attributes (`ibv_query_port(3)`). Ports count from 1.
            ///
            /// # Errors
            /// `Removed` if the device is gone; `Os` (EINVAL) if it has no such port.
            #[doc(alias = "ibv_query_port")]
            pub fn query_port(&self, port: u8) -> Result<PortAttributes> {
                self.cmd.query_port(port)
            }

            /// Queries the GIDs in use, of all ports (`ibv_query_gid_table(3)`).
            ///
            /// # Errors
            /// `Removed` if the device is gone; `Unsupported` before Linux 5.10.
            #[doc(alias = "ibv_query_gid")]
            #[doc(alias = "ibv_query_gid_ex")]
            #[doc(alias = "ibv_query_gid_table")]
            pub fn gids(&self) -> Result<Vec<GidEntry>> {
                self.cmd.query_gids()
            }

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
                self.cmd.query_pkeys(port)
            }

            /// Opens the async events of this context, from now on (`ibv_get_async_event(3)`). Each call opens a
            /// descriptor of its own, and each descriptor gets every event of the device and of its ports. Keep
            /// one and [wait](AsyncEvents::wait) on it: events that happen while no descriptor is open are lost.
            ///
            /// # Errors
            /// `Removed` if the device is gone; `Unsupported` before Linux 5.6.
            #[doc(alias = "ibv_get_async_event")]
            pub fn async_events(&self) -> Result<AsyncEvents<'_>> {
                self.cmd.async_events()
            }

            /// Whether the device is still there, according to sysfs. No descriptor is kept for this. With a
            /// driver that does not disassociate, the removal of the device waits until this context is dropped.
            /// The context reports nothing meanwhile, and every command keeps working. A program that holds a
            /// context on such a device for long has to call this now and then.
            ///
            /// # Errors
            /// `Os`, `PermissionDenied` if sysfs cannot be read.
            pub fn is_device_present(&self) -> Result<bool> {
                open::is_present(&self.cmd.device)
            }

            /// Number of completion vectors (`num_comp_vectors` of libibverbs' `struct ibv_context`). A completion
            /// queue uses one of them; they are numbered from 0.
            #[doc(alias = "num_comp_vectors")]
            pub fn completion_vectors(&self) -> u32 {
                self.cmd.completion_vectors.get().copied().unwrap_or(0)
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
