//! What goes wrong in a function, before it becomes an error of C.

use std::ffi::{CString, c_int};

use uverbs::{Error, ErrorKind};

/// What went wrong in an entry.
pub(crate) enum Fault {
    Library(Error),
    /// An argument is null that must not be.
    Null(&'static str),
    Argument(&'static str),
    /// A struct of a later version sets what this version does not know.
    TooNew,
    Busy(&'static str),
    /// A call outside of the library.
    Call(String, c_int),
    Panic(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl Fault {
    /// The errno that the function returns, negated.
    pub(crate) fn number(&self) -> c_int {
        match self {
            Self::Library(error) => number_of(error),
            Self::Null(_) | Self::Argument(_) => libc::EINVAL,
            Self::TooNew => libc::E2BIG,
            Self::Busy(_) => libc::EBUSY,
            // 0 would read as success.
            Self::Call(_, errno) if *errno <= 0 => libc::EIO,
            Self::Call(_, errno) => *errno,
            Self::Panic(_) => libc::ENOTRECOVERABLE,
        }
    }
}

fn number_of(error: &Error) -> c_int {
    // A system call that failed has an errno from 1 on. Anything else would read as success.
    let errno = error.raw_os_error().filter(|errno| *errno > 0);
    match error.kind() {
        ErrorKind::NotFound => libc::ENOENT,
        ErrorKind::Ambiguous => libc::ENOTUNIQ,
        ErrorKind::Removed => libc::ENODEV,
        ErrorKind::Replaced => libc::ESTALE,
        ErrorKind::Unstable => libc::EAGAIN,
        ErrorKind::NodeMismatch => libc::ENXIO,
        ErrorKind::Unproven => libc::ENODATA,
        ErrorKind::OtherNamespace => libc::EXDEV,
        ErrorKind::NetlinkUnavailable => libc::EPROTONOSUPPORT,
        ErrorKind::PermissionDenied => errno.unwrap_or(libc::EACCES),
        ErrorKind::Unsupported => libc::EOPNOTSUPP,
        ErrorKind::AbiMismatch | ErrorKind::Provider => libc::ENOTSUP,
        ErrorKind::Busy => libc::EBUSY,
        ErrorKind::Malformed => libc::EBADMSG,
        ErrorKind::Os => errno.unwrap_or(libc::EIO),
        _ => libc::EIO,
    }
}

/// The library's texts are escaped, so none has a NUL in it.
pub(crate) fn c_text(text: impl Into<String>) -> CString {
    CString::new(text.into().replace('\0', "\\x00")).unwrap_or_default()
}

/// An argument that must not be null.
pub(crate) fn require<T>(argument: Option<T>, name: &'static str) -> Result<T, Fault> {
    argument.ok_or(Fault::Null(name))
}
