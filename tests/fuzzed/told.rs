//! What the library may say, whatever it was told.

use std::fmt::Debug;

use uverbs::{Error, ErrorKind};

/// More kernel calls than one request needs on a host of a few devices, with all its repetitions.
pub(crate) const TOO_MANY: u64 = 20_000;

/// Nothing in a text can move a cursor or begin a line.
pub(crate) fn require_printable(text: &str) {
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "not escaped: {text:?}");
}

/// An error is of a kind that belongs to the operations on devices, and prints safely.
pub(crate) fn require_sane(error: &Error) {
    use ErrorKind::*;
    let kind = error.kind();
    let known = matches!(
        kind,
        NotFound
            | Ambiguous
            | Removed
            | Replaced
            | Unstable
            | NodeMismatch
            | Unproven
            | OtherNamespace
            | NetlinkUnavailable
            | PermissionDenied
            | Unsupported
            | AbiMismatch
            | Provider
            | Busy
            | Malformed
            | Os
    );
    assert!(known, "{kind:?}: {error}");
    require_printable(&error.to_string());
    require_printable(&format!("{error:?}"));
}

/// The same for a result; the value is handed on.
pub(crate) fn sane<T: Debug>(result: uverbs::Result<T>) -> Option<T> {
    match result {
        Ok(value) => {
            require_printable(&format!("{value:?}"));
            Some(value)
        }
        Err(error) => {
            require_sane(&error);
            None
        }
    }
}
