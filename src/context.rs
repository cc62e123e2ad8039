//! A context: the cmd fd of a device that was opened, and what can be asked through it.

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

use crate::attr::retry;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::ids::DriverId;
use crate::kernel::{Attr, AttrData, Errno, Handle, Kernel, VerbsCall};
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

/// The memory that always lies behind the output of GET_CONTEXT: drivers up to 7.0 write their whole
/// answer whatever length they are given.
pub(crate) const OUTPUT_ROOM: usize = 256;

/// A cmd fd, of which it is not said yet what it is bound to.
#[derive(Debug)]
pub(crate) struct CmdFd {
    fd: Handle,
    driver: DriverId,
    device: Device,
    /// What GET_CONTEXT has told.
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

    /// GET_CONTEXT, with what the driver wants to be told. By ioctl: the write ABI refuses a
    /// descriptor that was passed on or whose process forked.
    pub(crate) fn allocate(&self, data: &Allocation) -> Result<()> {
        let mut room = [0; OUTPUT_ROOM];
        let is_long = usize::from(data.output_len) > OUTPUT_ROOM;
        let mut more = if is_long { vec![0; data.output_len.into()] } else { Vec::new() };
        let buffer = if is_long { &mut more[..] } else { &mut room[..] };
        let output = Attr {
            id: device_object::UHW_OUT,
            data: AttrData::Out { buffer, len: data.output_len },
        };
        let input = Attr { id: device_object::UHW_IN, data: AttrData::In(&data.input) };
        let mut vectors = [0; 4];
        let number = Attr {
            id: device_object::NUM_COMP_VECTORS,
            data: AttrData::Out { buffer: &mut vectors, len: 4 },
        };
        let mut attrs = [output, number, input];
        // No attribute at all where there is nothing to say: some drivers refuse an empty one.
        let from = usize::from(data.output_len == 0);
        let to = attrs.len() - usize::from(data.input.is_empty());
        let (kernel, fd, attrs) = (self.kernel(), self.as_ref(), &mut attrs[from..to]);
        let method = (device_object::OBJECT, device_object::GET_CONTEXT);
        command(kernel, fd, self.driver, method, "GET_CONTEXT", attrs)?;
        let _ = self.completion_vectors.set(u32::from_ne_bytes(vectors));
        Ok(())
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

    /// Says of an error of a command what it means, and which device it was.
    fn explain(&self, error: Error) -> Error {
        let error = match error.errno() {
            Some(Errno::IO) => error.into_kind(ErrorKind::Removed),
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
    (object, method): (u16, u16),
    name: &str,
    attrs: &'a mut [Attr<'a>],
) -> Result<()> {
    let mut call = VerbsCall { object, method, driver_id: driver.to_raw(), attrs };
    retry(|| kernel.verbs_ioctl(fd, &mut call))
        .map_err(|errno| Error::call(format!("ioctl(RDMA_VERBS_IOCTL, {name})"), errno))
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
        // The word `response` of the write ABI, which the kernel passes over here.
        Attr { id: device_object::CORE_IN, data: AttrData::In(&[0; 8]) },
        Attr { id: device_object::CORE_OUT, data: AttrData::Out { buffer: &mut response, len } },
        Attr { id: device_object::WRITE_CMD, data: AttrData::Const(device_object::QUERY_DEVICE) },
    ];
    let method = (device_object::OBJECT, device_object::INVOKE_WRITE);
    command(kernel, fd, driver, method, "QUERY_DEVICE", attrs)?;
    Ok(DeviceAttributes::parse(&response))
}

/// A context on exactly the device that was asked for: proved, with the evidence.
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
            #[doc(alias = "ibv_query_device")]
            pub fn query_device(&self) -> Result<DeviceAttributes> {
                self.cmd.query_device()
            }

            /// Asks the device for more of its attributes (`ibv_query_device_ex(3)`).
            ///
            /// # Errors
            /// `Removed` when the device is gone; `Os` when the driver refuses.
            #[doc(alias = "ibv_query_device_ex")]
            pub fn query_device_extended(&self) -> Result<ExtendedAttributes> {
                self.cmd.query_device_extended()
            }

            /// Asks for a port's attributes (`ibv_query_port(3)`); ports count from 1.
            ///
            /// # Errors
            /// `Removed` when the device is gone; `Os` (EINVAL) when it has no such port.
            #[doc(alias = "ibv_query_port")]
            pub fn query_port(&self, port: u8) -> Result<PortAttributes> {
                self.cmd.query_port(port)
            }

            /// The GIDs in use, of all ports (`ibv_query_gid_table(3)`).
            ///
            /// # Errors
            /// `Removed` when the device is gone; `Unsupported` before Linux 5.10.
            #[doc(alias = "ibv_query_gid")]
            #[doc(alias = "ibv_query_gid_ex")]
            #[doc(alias = "ibv_query_gid_table")]
            pub fn gids(&self) -> Result<Vec<GidEntry>> {
                self.cmd.query_gids()
            }

            /// The partition keys of a port, in the order of its table (`ibv_query_pkey(3)`); the top bit says
            /// full member. The kernel has no command for them: they are read in sysfs, beside the pinned
            /// directory of this device, and nothing is returned unless the device was there, under one
            /// name and with one GUID, before and after. (Two devices of one parent and of equal GUIDs whose
            /// names are swapped there and back meanwhile cannot be told apart.)
            ///
            /// # Errors
            /// `Removed`, `Replaced` when the device is gone; `Unstable` when it was renamed meanwhile;
            /// `Unsupported` when its name is `.` or `..`, or has a `/` in it: such a name is no directory in
            /// sysfs.
            #[doc(alias = "ibv_query_pkey")]
            pub fn pkeys(&self, port: u8) -> Result<Vec<u16>> {
                self.cmd.query_pkeys(port)
            }

            /// The async events of this context from now on (`ibv_get_async_event(3)`). Each call opens a
            /// descriptor of its own, and each gets every event of the device and of its ports. Keep one and
            /// [wait](AsyncEvents::wait) on it: what happens while none is open is in none.
            ///
            /// # Errors
            /// `Removed` when the device is gone; `Unsupported` before Linux 5.6.
            #[doc(alias = "ibv_get_async_event")]
            pub fn async_events(&self) -> Result<AsyncEvents<'_>> {
                self.cmd.async_events()
            }

            /// Whether the device is still there, asked of sysfs; no descriptor is kept for it. With a
            /// driver that does not disassociate, the removal of the device waits until this context is
            /// dropped, nothing tells of it here, and every command goes on working: whoever holds a
            /// context on such a device for long has to ask now and then.
            ///
            /// # Errors
            /// `Os`, `PermissionDenied`, when sysfs cannot be asked.
            pub fn is_device_present(&self) -> Result<bool> {
                open::is_present(&self.cmd.device)
            }

            /// Number of completion vectors, from 0 of which completion queues choose
            /// (`num_comp_vectors` of `ibv_get_device_list(3)`'s context).
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
