//! Errors, with what a user needs to act on them.

use std::{fmt, io};

use crate::errno::Described;
use crate::evidence::{Check, Evidence, Step, Value};
use crate::kernel::Bad;
use crate::kernel::Errno;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of error it is: for programs to decide by. Each has a stable [`code`](Self::code).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No device of that name is listed.
    NotFound,
    /// More than one device matches: of one name (Linux 7.3 keeps names unique per namespace only), or of one GUID.
    Ambiguous,
    /// The device that was listed is gone.
    Removed,
    /// The device that was listed is gone, and another one stands in its place.
    Replaced,
    /// The device or the directory tree would not stay still long enough to be checked. Trying
    /// again later may help.
    Unstable,
    /// The node in /dev leads to another device than the requested one.
    NodeMismatch,
    /// It is another device than an [`Expectation`](crate::Expectation) has, or it is in another place.
    NotExpected,
    /// Nothing contradicts that it is the right device, but it could not be proved.
    Unproven,
    /// The device is in /sys and alive, and RDMA netlink does not list it. It may belong to another network namespace
    /// (`rdma system set netns exclusive`), and cannot be proved here.
    OtherNamespace,
    /// RDMA netlink is not available: its socket was refused, or was not passed in. Nothing can be proved
    /// without it.
    NetlinkUnavailable,
    /// The kernel forbids it to this user.
    PermissionDenied,
    /// The kernel, or a sandbox around this process, cannot do what is needed.
    Unsupported,
    /// The driver's ABI is of a version that the device's provider cannot handle.
    AbiMismatch,
    /// The device's provider, one that the program registered, cannot handle it.
    Provider,
    /// The device's provider, one that the program registered, is being attached at this moment: on another
    /// thread, which is over soon, or further up on this one, where to try again is of no use.
    Busy,
    /// Something has contents that the kernel would not write.
    Malformed,
    /// Any other error of the operating system; see [`Error::raw_os_error`].
    Os,
}

/// An error: which device, what happened, and what was called or compared.
///
/// It prints as the device, what happened, the [`cause`](Self::cause) in parentheses, the step of the open protocol in
/// brackets, and the [`hint`](Self::hint):
///
/// ```text
/// rxe0 (uverbs0): replaced by another device (uverbs directory inode 17578, now 17640) [pin]
/// ```
///
/// Names are escaped. Printing opens no file. `source()` is the `std::io::Error` of the system call that failed,
/// where one did. Printing that one is up to the standard library, which may open locale files once the program has
/// called `setlocale(3)`.
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    device: Option<String>,
    step: Option<Step>,
    cause: Cause,
    hint: Option<&'static str>,
    evidence: Option<Evidence>,
}

enum Cause {
    /// A system call, as strace prints it.
    Call {
        call: String,
        errno: Errno,
        source: io::Error,
    },
    /// A check that did not hold.
    Check(Check),
    Message(String),
}

impl Error {
    fn with_cause(kind: ErrorKind, cause: Cause) -> Self {
        Self(Box::new(Repr { kind, device: None, step: None, cause, hint: None, evidence: None }))
    }

    /// An error with a text.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::with_cause(kind, Cause::Message(message.into()))
    }

    /// An error of a [`Provider`](crate::Provider), with its reason.
    pub fn provider(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Provider, message)
    }

    /// A system call that failed; `call` as strace would print it.
    pub(crate) fn call(call: impl Into<String>, errno: Errno) -> Self {
        let kind = match errno {
            Errno::ACCESS | Errno::PERM => ErrorKind::PermissionDenied,
            Errno::NOSYS => ErrorKind::Unsupported,
            _ => ErrorKind::Os,
        };
        Self::with_cause(kind, Cause::Call { call: call.into(), errno, source: errno.into() })
    }

    /// A check that found something else than it expected.
    pub(crate) fn check_failed(kind: ErrorKind, check: Check) -> Self {
        let step = check.step;
        Self::with_cause(kind, Cause::Check(check)).at(step)
    }

    /// The same of something that belongs to no step.
    pub(crate) fn differs(kind: ErrorKind, what: &str, expected: Value, found: Value) -> Self {
        Self::new(kind, difference(kind, what, &expected, &found))
    }

    /// An answer of the kernel that cannot be understood.
    pub(crate) fn malformed(what: impl fmt::Display, Bad(reason): Bad) -> Self {
        Self::new(ErrorKind::Malformed, format!("{what}: {reason}"))
    }

    /// Adds the device, unless it is already there.
    pub(crate) fn of(mut self, device: impl FnOnce() -> String) -> Self {
        self.0.device.get_or_insert_with(device);
        self
    }

    /// Adds the step, unless it is already there.
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.0.step.get_or_insert(step);
        self
    }

    /// The same error as another kind, once more is known than where it came up. The hint was for the first kind.
    pub(crate) fn into_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self.0.hint = None;
        self
    }

    /// Adds what the user may do.
    pub(crate) fn with_hint(mut self, hint: &'static str) -> Self {
        self.0.hint = Some(hint);
        self
    }

    /// Adds the checks that were made before it came up, unless there are some already.
    pub(crate) fn with_evidence(mut self, evidence: &Evidence) -> Self {
        self.0.evidence.get_or_insert_with(|| evidence.clone());
        self
    }

    /// The checks that were made before it came up, of an error of an open or of
    /// [`Device::verify`](crate::Device::verify). The last one did not hold where it is the cause.
    pub fn evidence(&self) -> Option<&Evidence> {
        self.0.evidence.as_ref()
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The device it is about, as name and uverbs name, escaped.
    pub fn device(&self) -> Option<&str> {
        self.0.device.as_deref()
    }

    /// The step of the open protocol in which it came up.
    pub fn step(&self) -> Option<Step> {
        self.0.step
    }

    /// What was called or compared, and the result: a system call as strace prints it, with the name and meaning of its
    /// errno; the values of a check; or a text. Names are escaped.
    pub fn cause(&self) -> String {
        match &self.0.cause {
            Cause::Call { call, errno, .. } => format!("{call}: {}", Described(*errno)),
            Cause::Check(check) => {
                difference(self.0.kind, check.what(), &check.expected, &check.found)
            }
            Cause::Message(text) => text.clone(),
        }
    }

    /// What it may come from, or what to do about it, where more than the cause is known. The text is for people and
    /// may change in any version.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint
    }

    /// The check that did not hold, where that is the cause.
    pub fn check(&self) -> Option<&Check> {
        match &self.0.cause {
            Cause::Check(check) => Some(check),
            _ => None,
        }
    }

    /// The errno of the system call that failed first, where one did (`errno(3)`).
    pub fn raw_os_error(&self) -> Option<i32> {
        self.errno().map(Errno::raw_os_error)
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        match self.0.cause {
            Cause::Call { errno, .. } => Some(errno),
            _ => None,
        }
    }
}

/// How a check's values read: of a device that changed, what it was and is.
fn difference(kind: ErrorKind, what: &str, expected: &Value, found: &Value) -> String {
    match kind {
        ErrorKind::Removed | ErrorKind::Replaced | ErrorKind::Unstable => {
            format!("{what} {expected}, now {found}")
        }
        _ => format!("{what}: expected {expected}, found {found}"),
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repr { kind, device, step, hint, .. } = &*self.0;
        if let Some(device) = device {
            write!(f, "{device}: ")?;
        }
        write!(f, "{kind} ({})", self.cause())?;
        if let Some(step) = step {
            write!(f, " [{}]", step.name())?;
        }
        match hint {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("device", &self.0.device)
            .field("step", &self.0.step)
            .field("cause", &self.cause())
            .finish_non_exhaustive()
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.0.cause {
            Cause::Call { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl ErrorKind {
    /// Its code, such as `node_mismatch`. Codes are stable: a kind keeps its code in every version. `serde` and the
    /// command's JSON use them.
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Ambiguous => "ambiguous",
            Self::Removed => "removed",
            Self::Replaced => "replaced",
            Self::Unstable => "unstable",
            Self::NodeMismatch => "node_mismatch",
            Self::NotExpected => "not_expected",
            Self::Unproven => "unproven",
            Self::OtherNamespace => "other_namespace",
            Self::NetlinkUnavailable => "netlink_unavailable",
            Self::PermissionDenied => "permission_denied",
            Self::Unsupported => "unsupported",
            Self::AbiMismatch => "abi_mismatch",
            Self::Provider => "provider",
            Self::Busy => "busy",
            Self::Malformed => "malformed",
            Self::Os => "os",
        }
    }

    /// Nothing contradicts that it is the right device.
    pub(crate) fn is_unproven(self) -> bool {
        matches!(self, Self::Unproven | Self::OtherNamespace | Self::NetlinkUnavailable)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::NotFound => "no such device",
            Self::Ambiguous => "more than one device matches",
            Self::Removed => "removed",
            Self::Replaced => "replaced by another device",
            Self::Unstable => "changing too fast to be checked",
            Self::NodeMismatch => "its node leads to another device",
            Self::NotExpected => "not the expected device",
            Self::Unproven => "not proved to be the right device",
            Self::OtherNamespace => "may belong to another network namespace",
            Self::NetlinkUnavailable => "RDMA netlink cannot be used",
            Self::PermissionDenied => "permission denied",
            Self::Unsupported => "not supported here",
            Self::AbiMismatch => "its driver's ABI is not known",
            Self::Provider => "refused by its provider",
            Self::Busy => "its provider is busy",
            Self::Malformed => "malformed",
            Self::Os => "a system call failed",
        })
    }
}

impl From<Error> for io::Error {
    /// Keeps the whole error as the source. [`io::Error::kind`] is `NotFound` for [`ErrorKind::NotFound`] alone. For
    /// `Removed` and `Replaced` it is `StaleNetworkFileHandle`, as for `ESTALE`: the handle is of something that is
    /// gone. Otherwise it is the nearest one, or that of the errno.
    fn from(error: Error) -> Self {
        let kind = match (error.kind(), error.errno()) {
            (ErrorKind::NotFound, _) => io::ErrorKind::NotFound,
            (ErrorKind::Removed | ErrorKind::Replaced, _) => io::ErrorKind::StaleNetworkFileHandle,
            (ErrorKind::PermissionDenied, _) => io::ErrorKind::PermissionDenied,
            (ErrorKind::Unsupported | ErrorKind::AbiMismatch, _) => io::ErrorKind::Unsupported,
            (ErrorKind::Busy, _) => io::ErrorKind::ResourceBusy,
            (ErrorKind::Malformed | ErrorKind::NodeMismatch, _) => io::ErrorKind::InvalidData,
            (_, Some(errno)) if errno != Errno::NOENT => errno.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
