//! Errors.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

use uverbs::{Error, ErrorKind};

use crate::evidence::uverbs_evidence;
use crate::fault::{Fault, c_text};
use crate::guarded::run_or;

/// There is no error: the kind of a null pointer.
pub const UVERBS_ERROR_NONE: u32 = 0;
/// No such device is listed. The function returns -ENOENT.
pub const UVERBS_ERROR_NOT_FOUND: u32 = 1;
/// More than one device matches. -ENOTUNIQ.
pub const UVERBS_ERROR_AMBIGUOUS: u32 = 2;
/// The device that was listed is gone. -ENODEV.
pub const UVERBS_ERROR_REMOVED: u32 = 3;
/// The device that was listed is gone, and another one stands in its place. -ESTALE.
pub const UVERBS_ERROR_REPLACED: u32 = 4;
/// The device would not stay still long enough to be checked. Trying again later may help. -EAGAIN.
pub const UVERBS_ERROR_UNSTABLE: u32 = 5;
/// The node or the descriptor leads to another device than the requested one. -ENXIO.
pub const UVERBS_ERROR_NODE_MISMATCH: u32 = 6;
/// Nothing contradicts that it is the right device, but it could not be proved. -ENODATA.
pub const UVERBS_ERROR_UNPROVEN: u32 = 7;
/// The device is alive, and RDMA netlink does not list it: it may belong to another network namespace. -EXDEV.
pub const UVERBS_ERROR_OTHER_NAMESPACE: u32 = 8;
/// RDMA netlink is not available, and nothing can be proved without it. -EPROTONOSUPPORT.
pub const UVERBS_ERROR_NETLINK_UNAVAILABLE: u32 = 9;
/// The kernel forbids it to this user. -EACCES or -EPERM.
pub const UVERBS_ERROR_PERMISSION_DENIED: u32 = 10;
/// The kernel, or a sandbox around this process, cannot do what is needed. -EOPNOTSUPP.
pub const UVERBS_ERROR_UNSUPPORTED: u32 = 11;
/// The driver's ABI is of a version that the library cannot handle. -ENOTSUP.
pub const UVERBS_ERROR_ABI_MISMATCH: u32 = 12;
/// The device's provider cannot handle it. -ENOTSUP.
pub const UVERBS_ERROR_PROVIDER: u32 = 13;
/// It is in use: by another thread, by another reference, or by another watch. -EBUSY.
pub const UVERBS_ERROR_BUSY: u32 = 14;
/// Something has contents that the kernel would not write. -EBADMSG.
pub const UVERBS_ERROR_MALFORMED: u32 = 15;
/// Any other error of the operating system. Its errno, negated.
pub const UVERBS_ERROR_OS: u32 = 16;
/// An argument is wrong: a null pointer, an unknown flag, a size. -EINVAL, or -E2BIG for a struct of a later version
/// that uses a field that this version does not have.
pub const UVERBS_ERROR_ARGUMENT: u32 = 17;
/// The library has a bug, and stopped in the middle of the call. -ENOTRECOVERABLE.
pub const UVERBS_ERROR_INTERNAL: u32 = 18;
/// A kind that this interface has no number for. -EIO.
pub const UVERBS_ERROR_OTHER: u32 = 19;

fn kind_of(error: &Error) -> u32 {
    match error.kind() {
        ErrorKind::NotFound => UVERBS_ERROR_NOT_FOUND,
        ErrorKind::Ambiguous => UVERBS_ERROR_AMBIGUOUS,
        ErrorKind::Removed => UVERBS_ERROR_REMOVED,
        ErrorKind::Replaced => UVERBS_ERROR_REPLACED,
        ErrorKind::Unstable => UVERBS_ERROR_UNSTABLE,
        ErrorKind::NodeMismatch => UVERBS_ERROR_NODE_MISMATCH,
        ErrorKind::Unproven => UVERBS_ERROR_UNPROVEN,
        ErrorKind::OtherNamespace => UVERBS_ERROR_OTHER_NAMESPACE,
        ErrorKind::NetlinkUnavailable => UVERBS_ERROR_NETLINK_UNAVAILABLE,
        ErrorKind::PermissionDenied => UVERBS_ERROR_PERMISSION_DENIED,
        ErrorKind::Unsupported => UVERBS_ERROR_UNSUPPORTED,
        ErrorKind::AbiMismatch => UVERBS_ERROR_ABI_MISMATCH,
        ErrorKind::Provider => UVERBS_ERROR_PROVIDER,
        ErrorKind::Busy => UVERBS_ERROR_BUSY,
        ErrorKind::Malformed => UVERBS_ERROR_MALFORMED,
        ErrorKind::Os => UVERBS_ERROR_OS,
        _ => UVERBS_ERROR_OTHER,
    }
}

/// An error: which device, what happened, what was called or compared. It is set by the function that failed, and
/// belongs to the caller (uverbs_error_free). All its texts are escaped, and live as long as the error.
///
/// The accessors accept a null pointer, which stands for "no error".
pub struct uverbs_error {
    kind: u32,
    errno: c_int,
    step: Option<(u8, CString)>,
    code: CString,
    device: Option<CString>,
    cause: CString,
    message: CString,
    hint: Option<CString>,
    evidence: Option<std::sync::Arc<uverbs_evidence>>,
}

impl uverbs_error {
    pub(crate) fn new(fault: Fault) -> Self {
        let number = fault.number();
        let (kind, code, cause) = match fault {
            Fault::Library(error) => return Self::of(&error),
            Fault::Null(what) => {
                (UVERBS_ERROR_ARGUMENT, "argument", format!("{what} must not be null"))
            }
            Fault::Argument(text) => (UVERBS_ERROR_ARGUMENT, "argument", text.to_owned()),
            Fault::TooNew => {
                let text = "the struct sets a field that this version of the library does not have";
                (UVERBS_ERROR_ARGUMENT, "argument", text.to_owned())
            }
            Fault::Busy(text) => (UVERBS_ERROR_BUSY, "busy", text.to_owned()),
            Fault::Call(call, errno) => {
                let reason = std::io::Error::from_raw_os_error(errno);
                (UVERBS_ERROR_OS, "os", format!("{call}: {reason}"))
            }
            Fault::Panic(text) => (UVERBS_ERROR_INTERNAL, "internal", text),
        };
        let message = match kind {
            UVERBS_ERROR_ARGUMENT => format!("wrong argument ({cause})"),
            UVERBS_ERROR_BUSY => format!("in use ({cause})"),
            UVERBS_ERROR_INTERNAL => format!("internal error ({cause})"),
            _ => format!("a system call failed ({cause})"),
        };
        Self {
            kind,
            errno: if kind == UVERBS_ERROR_OS { number } else { 0 },
            step: None,
            code: c_text(code),
            device: None,
            cause: c_text(cause),
            message: c_text(message),
            hint: None,
            evidence: None,
        }
    }

    pub(crate) fn of(error: &Error) -> Self {
        let evidence = error.evidence().map(|evidence| uverbs_evidence::shared(evidence.clone()));
        Self {
            kind: kind_of(error),
            errno: error.raw_os_error().unwrap_or(0),
            step: error.step().map(|step| (step.number(), c_text(step.name()))),
            code: c_text(error.kind().code()),
            device: error.device().map(c_text),
            cause: c_text(error.cause()),
            message: c_text(error.to_string()),
            hint: error.hint().map(c_text),
            evidence,
        }
    }
}

fn pointer(text: Option<&CString>) -> *const c_char {
    text.map_or(ptr::null(), |text| text.as_ptr())
}

fn or_empty(error: Option<&uverbs_error>, text: fn(&uverbs_error) -> &CString) -> *const c_char {
    const NONE: &CStr = c"no error";
    error.map_or(NONE.as_ptr(), |error| text(error).as_ptr())
}

/// What kind of error it is: UVERBS_ERROR_NOT_FOUND and so on.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_kind(error: Option<&uverbs_error>) -> u32 {
    error.map_or(UVERBS_ERROR_NONE, |error| error.kind)
}

/// The kind in a word, such as "node_mismatch". Codes are stable: a kind has the same one in every version.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_code(error: Option<&uverbs_error>) -> *const c_char {
    or_empty(error, |error| &error.code)
}

/// The step of the open protocol in which it came up, 0 to 7; -1 if it came up in none.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_step(error: Option<&uverbs_error>) -> c_int {
    error.and_then(|error| error.step.as_ref()).map_or(-1, |(number, _)| c_int::from(*number))
}

/// The name of that step, such as "prove"; null if there is none.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_step_name(error: Option<&uverbs_error>) -> *const c_char {
    pointer(error.and_then(|error| error.step.as_ref()).map(|(_, name)| name))
}

/// The device that it is about, such as "mlx5_0 (uverbs0)"; null if it is about none.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_device(error: Option<&uverbs_error>) -> *const c_char {
    pointer(error.and_then(|error| error.device.as_ref()))
}

/// The errno of the system call that failed first; 0 if none failed.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_errno(error: Option<&uverbs_error>) -> c_int {
    error.map_or(0, |error| error.errno)
}

/// What was called or compared, and the result: a system call as strace prints it, the values of a check, or a text.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_cause(error: Option<&uverbs_error>) -> *const c_char {
    or_empty(error, |error| &error.cause)
}

/// Everything in one line: the device, what happened, the cause, the step and the hint.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_message(error: Option<&uverbs_error>) -> *const c_char {
    or_empty(error, |error| &error.message)
}

/// What it may come from, or what to do about it; null if no more than the cause is known.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_hint(error: Option<&uverbs_error>) -> *const c_char {
    pointer(error.and_then(|error| error.hint.as_ref()))
}

/// The checks that were made before it came up, of an error of an open or of a verification; null if there are none.
/// The last one did not hold where it is the cause. Borrowed from the error.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_error_evidence(error: Option<&uverbs_error>) -> *const uverbs_evidence {
    let evidence = error.and_then(|error| error.evidence.as_ref());
    evidence.map_or(ptr::null(), std::sync::Arc::as_ptr)
}

/// Frees an error. Does nothing if it is null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_error_free(error: *mut uverbs_error) {
    if error.is_null() {
        return;
    }
    // SAFETY: the error is from `Box::into_raw`, and the caller gives it up.
    let error = unsafe { Box::from_raw(error) };
    run_or((), || drop(error));
}
