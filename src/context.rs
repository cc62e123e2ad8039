//! A context: the cmd fd of a device that was opened, and the queries through it.

mod claim;
mod device;
mod events;
mod in_sysfs;
#[cfg(test)]
mod layouts;

mod port;
mod rate;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Evidence;
use crate::ids::DriverId;
use crate::kernel::{Attr, Errno, Kernel};
use crate::open::{self, OpenOptions, Outcome, Proven};
use crate::pin;
use crate::provider::Provided;
use crate::verbs::{CmdFd, DRIVER_FAILS, object};

pub use claim::ContextClaim;
pub use device::{DeviceAttributes, ExtendedAttributes};
#[cfg(feature = "tokio")]
pub use events::AsyncEventStream;
pub use events::{AsyncEvent, AsyncEventKind, AsyncEvents};
pub use port::{Gid, GidEntry, GidType, LinkLayer, Mtu, PhysicalState, PortAttributes, PortState};
pub use rate::{LinkSpeed, LinkWidth, PortRate};

/// A context on exactly the device that was requested: proved, with the evidence.
///
/// Dropping it closes the descriptor. While it is open it keeps some drivers' devices from being
/// removed (those without `disassociate_ucontext`: efa, siw, rxe up to 7.2, and others).
///
/// # Blocking and threads
/// Each query is a command to the driver, which may wait for its device's firmware, without limit. So may the
/// close. Threads may share a context; the library holds no lock during a command.
///
/// # Fork
/// A forked child has the descriptor, and with it the same kernel context. The queries work there, as they use the
/// ioctl ABI. Commands by `write(2)`, as other libraries issue them, fail there with `EACCES`: the kernel accepts them
/// only with the credentials of the opener (`ib_safe_file_access`, `rdma/ib.h`). The context lives until both processes
/// have closed it. [`Host::fork_safety`](crate::Host::fork_safety) reports what a fork does to registered memory.
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
pub struct Context<P = Proven> {
    body: Body,
    proof: P,
}

/// A context that could not be proved to be on the requested device. No check contradicted it.
pub type UnprovenContext = Context<Unproven>;

/// An [`UnprovenContext`] has this in place of a proof: the reason why it could not be proved.
#[derive(Debug)]
pub struct Unproven(Error);

impl Context<Unproven> {
    /// The reason why it could not be proved.
    pub fn reason(&self) -> &Error {
        &self.proof.0
    }

    /// Closes the context and returns the reason.
    pub fn into_error(self) -> Error {
        self.proof.0
    }
}

/// A context of either kind.
struct Body {
    cmd: CmdFd,
    device: Device,
    /// A provider that was found for this descriptor alone.
    _provided: Option<Arc<Provided>>,
    evidence: Evidence,
}

impl Body {
    fn kernel(&self) -> &Kernel {
        self.cmd.kernel()
    }

    fn query_device(&self) -> Result<DeviceAttributes> {
        let answer = self.cmd.query_device().map_err(|error| self.explain(error))?;
        Ok(DeviceAttributes::parse(&answer))
    }

    /// A command on the device.
    fn command<'a>(&self, method: u16, name: &str, attrs: &'a mut [Attr<'a>]) -> Result<()> {
        let done = self.cmd.command((object::OBJECT, method), name, attrs);
        done.map_err(|error| self.explain(error))
    }

    /// Adds the meaning of a command's error, and the device.
    fn explain(&self, error: Error) -> Error {
        let error = match error.errno() {
            Some(Errno::IO) if self.cmd.is_cut_off() => error.into_kind(ErrorKind::Removed),
            Some(Errno::IO) => error.with_hint(DRIVER_FAILS),
            Some(Errno::PROTONOSUPPORT) => error.into_kind(ErrorKind::Unsupported),
            _ => error,
        };
        error.of(|| self.device.to_string())
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

/// Opening gives contexts.
impl Device {
    /// Opens the device. Returns a context on exactly this instance, or an error that describes what happened.
    ///
    /// # Blocking
    /// The driver may wait for its device's firmware while the context is allocated and while a protection domain is
    /// allocated and freed for the proof. Opening the node waits for a device that is being added or removed. Nothing
    /// limits these waits.
    ///
    /// # Threads
    /// The proof starts a thread, by `clone(2)` alone on x86-64 and AArch64, and waits for it to exit. That thread has
    /// the caller's thread-local storage, and runs nothing but system calls of the library. The calling thread has all
    /// signals blocked meanwhile, so its handlers run afterwards. It is not cancelled (`pthread_cancel(3)`) until this
    /// returns.
    ///
    /// # Errors
    /// `Removed`, `Replaced`: the device is gone. `NodeMismatch`: the node in /dev leads elsewhere. `Unproven`: the
    /// kernel cannot show which device it is (Linux before 5.10, among others). `OtherNamespace`: netlink does not list
    /// it. `NetlinkUnavailable`: netlink is denied. `Unstable`: it would not stay still. `AbiMismatch`, `Provider`: its
    /// provider cannot handle it, or is being attached (`Busy`). `PermissionDenied`, `Os`: the first system call that
    /// failed.
    #[doc(alias = "ibv_open_device")]
    pub fn open(&self) -> Result<Context> {
        let Outcome { cmd, provided, evidence, proof } = open::open(self, &OpenOptions::new())?;
        Ok(Context::new((cmd, provided, evidence), self, proof?))
    }

    /// Opens the device also where it cannot be proved to be the right one. Everything that can be
    /// checked is checked, and a contradiction is refused. The type of the result shows which of the two it is.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for `Unproven`, `OtherNamespace` and `NetlinkUnavailable`.
    pub fn open_allow_unproven(&self) -> Result<Opened> {
        self.open_with(&OpenOptions::new().allow_unproven(true))
    }

    /// Opens the device as the options demand.
    ///
    /// # Errors
    /// As [`open`](Self::open), or with [`allow_unproven`](OpenOptions::allow_unproven) as
    /// [`open_allow_unproven`](Self::open_allow_unproven). With [`strict_timestamps`](OpenOptions::strict_timestamps)
    /// also `Replaced` where the timestamp has moved.
    pub fn open_with(&self, options: &OpenOptions) -> Result<Opened> {
        let Outcome { cmd, provided, evidence, proof } = open::open(self, options)?;
        let outcome = (cmd, provided, evidence);
        Ok(match proof {
            Ok(proof) => Opened::Proven(Context::new(outcome, self, proof)),
            Err(reason) if options.is_unproven_allowed() => {
                Opened::Unproven(Context::new(outcome, self, Unproven(reason)))
            }
            Err(reason) => return Err(reason),
        })
    }
}

impl OpenOptions {
    /// Opens a device with these options ([`Device::open_with`]).
    ///
    /// # Errors
    /// As [`Device::open_with`].
    pub fn open(&self, device: &Device) -> Result<Opened> {
        device.open_with(self)
    }
}

impl<P> Context<P> {
    fn new(outcome: (CmdFd, Option<Arc<Provided>>, Evidence), device: &Device, proof: P) -> Self {
        let (cmd, provided, evidence) = outcome;
        let body = Body { cmd, device: device.clone(), _provided: provided, evidence };
        Self { body, proof }
    }

    /// The descriptor, the device and the evidence. The descriptor stays open.
    pub fn into_parts(self) -> (OwnedFd, Device, Evidence) {
        let Body { cmd, device, evidence, .. } = self.body;
        (cmd.into_handle().into(), device, evidence)
    }

    /// The device that the context was opened for.
    pub fn device(&self) -> &Device {
        &self.body.device
    }

    /// The driver.
    pub fn driver_id(&self) -> DriverId {
        self.body.cmd.driver()
    }

    /// Every check of the open.
    pub fn evidence(&self) -> &Evidence {
        &self.body.evidence
    }

    /// Queries the device's attributes (`ibv_query_device(3)`).
    ///
    /// # Errors
    /// `Removed` if the device is gone.
    #[doc(alias = "ibv_query_device")]
    pub fn query_device(&self) -> Result<DeviceAttributes> {
        self.body.query_device()
    }

    /// Queries more of the device's attributes (`ibv_query_device_ex(3)`).
    ///
    /// # Errors
    /// `Removed` if the device is gone; `Os` if the driver refuses.
    #[doc(alias = "ibv_query_device_ex")]
    pub fn query_device_extended(&self) -> Result<ExtendedAttributes> {
        self.body.query_device_extended()
    }

    /// Queries a port's attributes (`ibv_query_port(3)`). Ports count from 1.
    ///
    /// # Errors
    /// `Removed` if the device is gone; `Os` (EINVAL) if it has no such port.
    #[doc(alias = "ibv_query_port")]
    pub fn query_port(&self, port: u8) -> Result<PortAttributes> {
        self.body.query_port(port)
    }

    /// Queries the GIDs in use, of all ports (`ibv_query_gid_table(3)`).
    ///
    /// # Errors
    /// `Removed` if the device is gone; `Unsupported` before Linux 5.10.
    #[doc(alias = "ibv_query_gid")]
    #[doc(alias = "ibv_query_gid_ex")]
    #[doc(alias = "ibv_query_gid_table")]
    pub fn gids(&self) -> Result<Vec<GidEntry>> {
        self.body.query_gids()
    }

    /// Opens the async events of this context, from now on (`ibv_get_async_event(3)`). Each call opens a
    /// descriptor of its own, and each descriptor gets every event of the device and of its ports. Keep
    /// one and [wait](AsyncEvents::wait) on it: events that happen while no descriptor is open are lost.
    ///
    /// # Errors
    /// `Removed` if the device is gone; `Unsupported` before Linux 5.6.
    #[doc(alias = "ibv_get_async_event")]
    pub fn async_events(&self) -> Result<AsyncEvents> {
        self.body.async_events()
    }

    /// Whether the device is still there, according to sysfs. No descriptor is kept for this. With a
    /// driver that does not disassociate, the removal of the device waits until this context is dropped.
    /// The context reports nothing meanwhile, and every command keeps working. A program that holds a
    /// context on such a device for long has to call this now and then.
    ///
    /// # Errors
    /// `Os`, `PermissionDenied` if sysfs cannot be read.
    pub fn is_device_present(&self) -> Result<bool> {
        pin::is_present(self.body.device.record())
    }

    /// Number of completion vectors (`num_comp_vectors` of libibverbs' `struct ibv_context`). A completion
    /// queue uses one of them; they are numbered from 0.
    #[doc(alias = "num_comp_vectors")]
    pub fn completion_vectors(&self) -> u32 {
        self.body.cmd.completion_vectors()
    }
}

impl<P> AsFd for Context<P> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.body.cmd.as_fd()
    }
}

impl<P> From<Context<P>> for OwnedFd {
    fn from(context: Context<P>) -> Self {
        context.into_parts().0
    }
}

impl<P: fmt::Debug> fmt::Debug for Context<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("device", &self.body.device)
            .field("cmd", &self.body.cmd)
            .field("proof", &self.proof)
            .finish_non_exhaustive()
    }
}
