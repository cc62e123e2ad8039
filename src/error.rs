//! What can go wrong, said so that a user can act on it.

use std::{fmt, io};

use crate::errno::Described;
use crate::evidence::{Evidence, Step, Value};
use crate::kernel::Bad;
use crate::kernel::Errno;

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of error it is: for programs to decide by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No device of that name is listed.
    NotFound,
    /// More than one device has that name (Linux 7.3 keeps names unique per namespace only).
    Ambiguous,
    /// The device that was listed is gone.
    Removed,
    /// The device that was listed is gone, and another one stands in its place.
    Replaced,
    /// The device or the directory tree would not stay still long enough to be checked. Trying
    /// again later may help.
    Unstable,
    /// The node in /dev leads somewhere else than to the device that was asked for.
    NodeMismatch,
    /// Nothing contradicts that it is the right device, but it could not be proved.
    Unproven,
    /// RDMA netlink cannot be had: its socket was refused, or was not handed in. Nothing can be proved
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

/// An error: which device, which step, and what was expected and found there.
pub struct Error(Box<Repr>);

struct Repr {
    kind: ErrorKind,
    device: Option<String>,
    step: Option<Step>,
    cause: Cause,
    hint: Option<&'static str>,
    evidence: Option<Evidence>,
}

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error("{call}: {errno}")]
    Call { call: String, errno: Described },
    #[error("{what}: expected {expected}, found {found}")]
    Differs { what: &'static str, expected: Value, found: Value },
    #[error("{0}")]
    Message(String),
}

impl Error {
    fn with_cause(kind: ErrorKind, cause: Cause) -> Self {
        Self(Box::new(Repr { kind, device: None, step: None, cause, hint: None, evidence: None }))
    }

    /// An error told in words.
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::with_cause(kind, Cause::Message(message.into()))
    }

    /// An error of a [`Provider`](crate::Provider), for it to say what is in its way.
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
        Self::with_cause(kind, Cause::Call { call: call.into(), errno: Described(errno) })
    }

    /// A check that found something else than it expected.
    pub(crate) fn differs(
        kind: ErrorKind,
        what: &'static str,
        expected: Value,
        found: Value,
    ) -> Self {
        Self::with_cause(kind, Cause::Differs { what, expected, found })
    }

    /// An answer of the kernel that is none.
    pub(crate) fn malformed(what: impl fmt::Display, Bad(reason): Bad) -> Self {
        Self::new(ErrorKind::Malformed, format!("{what}: {reason}"))
    }

    /// Says which device it was, unless that is already said.
    pub(crate) fn of(mut self, device: impl FnOnce() -> String) -> Self {
        self.0.device.get_or_insert_with(device);
        self
    }

    /// Says in which step it was, unless that is already said.
    pub(crate) fn at(mut self, step: Step) -> Self {
        self.0.step.get_or_insert(step);
        self
    }

    /// The same error as another kind, once more is known than where it came up.
    pub(crate) fn into_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }

    /// Adds what the user may do.
    pub(crate) fn hint(mut self, hint: &'static str) -> Self {
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

    /// The errno of the system call that failed first, where one did (`errno(3)`).
    pub fn raw_os_error(&self) -> Option<i32> {
        self.errno().map(Errno::raw_os_error)
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        match self.0.cause {
            Cause::Call { errno: Described(errno), .. } => Some(errno),
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Repr { kind, device, step, cause, hint, evidence: _ } = &*self.0;
        if let Some(device) = device {
            write!(f, "{device}: ")?;
        }
        if *kind != ErrorKind::Os {
            write!(f, "{kind}: ")?;
        }
        if let Some(step) = step {
            write!(f, "{step}: ")?;
        }
        write!(f, "{cause}")?;
        match hint {
            Some(hint) => write!(f, " ({hint})"),
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
            .field("cause", &self.0.cause)
            .finish()
    }
}

impl std::error::Error for Error {}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such device",
            Self::Ambiguous => "more than one device of that name",
            Self::Removed => "the device was removed",
            Self::Replaced => "the device was replaced by another one",
            Self::Unstable => "the device does not stay still",
            Self::NodeMismatch => "the node leads to another device",
            Self::Unproven => "not proved to be the right device",
            Self::NetlinkUnavailable => "RDMA netlink cannot be used",
            Self::PermissionDenied => "permission denied",
            Self::Unsupported => "not supported here",
            Self::AbiMismatch => "the ABI of its driver is not known",
            Self::Provider => "its provider refuses",
            Self::Busy => "its provider is busy",
            Self::Malformed => "malformed",
            Self::Os => "system call failed",
        })
    }
}

impl From<Error> for io::Error {
    /// Keeps the whole error as the source; [`io::Error::kind`] is that of the errno, or the
    /// nearest one.
    fn from(error: Error) -> Self {
        let kind = match (error.kind(), error.errno()) {
            (ErrorKind::NotFound | ErrorKind::Removed | ErrorKind::Replaced, _) => {
                io::ErrorKind::NotFound
            }
            (ErrorKind::PermissionDenied, _) => io::ErrorKind::PermissionDenied,
            (ErrorKind::Unsupported | ErrorKind::AbiMismatch, _) => io::ErrorKind::Unsupported,
            (ErrorKind::Busy, _) => io::ErrorKind::ResourceBusy,
            (ErrorKind::Malformed | ErrorKind::NodeMismatch, _) => io::ErrorKind::InvalidData,
            (_, Some(errno)) => errno.kind(),
            (_, None) => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}
