//! Contexts.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
use std::ptr;
use std::sync::Arc;

use uverbs::{Context, DriverId, OpenOptions, Opened, UnprovenContext};

use crate::device::uverbs_device;
use crate::entry::run;
use crate::error::uverbs_error;
use crate::evidence::uverbs_evidence;
use crate::fault::{Fault, require};
use crate::handle;

/// An open device: its cmd fd, and what was checked on the way. Reference-counted: the descriptor is closed when the
/// last reference is dropped. While it is open it keeps some drivers' devices from being removed (those that do not
/// disassociate). Threads may share it.
pub struct uverbs_context {
    pub(crate) opened: Either,
    device: Arc<uverbs_device>,
    evidence: Arc<uverbs_evidence>,
    reason: Option<uverbs_error>,
}

/// A context of either kind.
pub(crate) enum Either {
    Proven(Context),
    Unproven(UnprovenContext),
}

/// Calls a method that contexts of both kinds have.
macro_rules! either {
    ($opened:expr, $context:ident => $call:expr) => {
        match $opened {
            $crate::context::Either::Proven($context) => $call,
            $crate::context::Either::Unproven($context) => $call,
        }
    };
}
pub(crate) use either;

impl uverbs_context {
    pub(crate) fn new(opened: Opened) -> Self {
        let (opened, reason) = match opened {
            Opened::Proven(context) => (Either::Proven(context), None),
            Opened::Unproven(context) => {
                let reason = uverbs_error::of(context.reason());
                (Either::Unproven(context), Some(reason))
            }
        };
        let device = either!(&opened, context => context.device().clone());
        let evidence = either!(&opened, context => context.evidence().clone());
        Self {
            opened,
            device: Arc::new(uverbs_device { device }),
            evidence: uverbs_evidence::shared(evidence),
            reason,
        }
    }
}

/// Opens the device (ibv_open_device). Returns 0 and a context that is proved to be on exactly this instance, or an
/// error: UVERBS_ERROR_REMOVED and UVERBS_ERROR_REPLACED if the device is gone, UVERBS_ERROR_NODE_MISMATCH if the node
/// in /dev leads elsewhere, UVERBS_ERROR_UNPROVEN, UVERBS_ERROR_OTHER_NAMESPACE or UVERBS_ERROR_NETLINK_UNAVAILABLE if
/// the kernel cannot show which device it is.
///
/// The driver may wait for its device's firmware, without limit. The proof starts a thread and waits for it to exit;
/// the calling thread has all signals blocked meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_open(
    device: Option<&uverbs_device>,
    context: Option<&mut MaybeUninit<*mut uverbs_context>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    open(device, 0, context, error)
}

/// Open the device also where it cannot be proved to be the right one.
pub const UVERBS_OPEN_ALLOW_UNPROVEN: u32 = 1;
/// Refuse a device whose timestamp has moved since the last list.
pub const UVERBS_OPEN_STRICT_TIMESTAMPS: u32 = 2;

/// As uverbs_open, with UVERBS_OPEN_ALLOW_UNPROVEN and the like in `flags`. Returns 0 if the context is proved. With
/// UVERBS_OPEN_ALLOW_UNPROVEN it may return 1: the context could not be proved, and no check contradicted it. See
/// uverbs_context_unproven_reason.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_open_with(
    device: Option<&uverbs_device>,
    flags: u32,
    context: Option<&mut MaybeUninit<*mut uverbs_context>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    open(device, flags, context, error)
}

fn open(
    device: Option<&uverbs_device>,
    flags: u32,
    context: Option<&mut MaybeUninit<*mut uverbs_context>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    const KNOWN: u32 = UVERBS_OPEN_ALLOW_UNPROVEN | UVERBS_OPEN_STRICT_TIMESTAMPS;
    let context = handle::clear(context);
    run(error, || {
        let device = require(device, "device")?;
        let context = require(context, "context")?;
        if flags & !KNOWN != 0 {
            return Err(Fault::Argument("a flag that this version of the library does not have"));
        }
        let options = OpenOptions::new()
            .allow_unproven(flags & UVERBS_OPEN_ALLOW_UNPROVEN != 0)
            .strict_timestamps(flags & UVERBS_OPEN_STRICT_TIMESTAMPS != 0);
        let opened = device.device.open_with(&options)?;
        let number = c_int::from(matches!(opened, Opened::Unproven(_)));
        handle::give(context, uverbs_context::new(opened));
        Ok(number)
    })
}

/// Adds a reference. Returns the context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_context_ref(context: *const uverbs_context) -> *mut uverbs_context {
    // SAFETY: as the caller promises.
    unsafe { handle::add(context) }
}

/// Drops a reference, and closes the device with the last one. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_context_unref(context: *mut uverbs_context) -> *mut uverbs_context {
    // SAFETY: as the caller promises.
    unsafe { handle::release(context) }
}

/// The cmd fd, or -EINVAL. Borrowed from the context: do not close it.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_fd(context: Option<&uverbs_context>) -> c_int {
    let fd = |context: &uverbs_context| either!(&context.opened, it => it.as_fd().as_raw_fd());
    context.map_or(-libc::EINVAL, fd)
}

/// Takes the cmd fd out of the context, and frees the context. The descriptor then belongs to the caller, who closes
/// it. Fails with -EBUSY, and changes nothing, if there are other references to the context. Evidence and device stay
/// valid where the caller has a reference to them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_context_take_fd(
    context: *mut uverbs_context,
    fd: Option<&mut MaybeUninit<c_int>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let fd = require(fd, "fd")?;
        if context.is_null() {
            return Err(Fault::Null("context"));
        }
        // SAFETY: the pointer is from `Arc::into_raw`, and the reference is the caller's.
        let context = unsafe { Arc::from_raw(context.cast_const()) };
        match Arc::try_unwrap(context) {
            Ok(context) => {
                let (cmd, ..) = either!(context.opened, it => it.into_parts());
                fd.write(cmd.into_raw_fd());
                Ok(0)
            }
            Err(context) => {
                // The caller still has its reference.
                let _ = Arc::into_raw(context);
                Err(Fault::Busy("there are other references to the context"))
            }
        }
    })
}

/// The device that it was opened for. Borrowed from the context.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_device(context: Option<&uverbs_context>) -> *const uverbs_device {
    context.map_or(ptr::null(), |context| Arc::as_ptr(&context.device))
}

/// Every check of the open. Borrowed from the context.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_evidence(
    context: Option<&uverbs_context>,
) -> *const uverbs_evidence {
    context.map_or(ptr::null(), |context| Arc::as_ptr(&context.evidence))
}

/// Whether it is proved to be on the device.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_is_proven(context: Option<&uverbs_context>) -> bool {
    context.is_some_and(|context| matches!(context.opened, Either::Proven(_)))
}

/// Why it could not be proved; null if it is proved. Borrowed from the context.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_unproven_reason(
    context: Option<&uverbs_context>,
) -> *const uverbs_error {
    context.and_then(|context| context.reason.as_ref()).map_or(ptr::null(), ptr::from_ref)
}

/// The driver (enum rdma_driver_id), as the descriptor reports it; 0 for a null pointer.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_driver_id(context: Option<&uverbs_context>) -> u32 {
    context.map_or(0, |context| either!(&context.opened, it => DriverId::to_raw(it.driver_id())))
}

/// Number of completion vectors (num_comp_vectors of struct ibv_context).
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_completion_vectors(context: Option<&uverbs_context>) -> u32 {
    context.map_or(0, |context| either!(&context.opened, it => it.completion_vectors()))
}

/// Whether the device is still there, according to sysfs: 1, 0, or an error. With a driver that does not disassociate,
/// the removal of the device waits until the context is closed, and the context reports nothing meanwhile. A program
/// that holds a context on such a device for long calls this now and then.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_context_is_device_present(
    context: Option<&uverbs_context>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let context = require(context, "context")?;
        Ok(c_int::from(either!(&context.opened, it => it.is_device_present())?))
    })
}
