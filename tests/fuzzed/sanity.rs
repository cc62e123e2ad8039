//! Properties of everything that the library reports, whatever input it was given.

use std::fmt::Debug;

use uverbs::{Error, ErrorKind};

/// More kernel calls than one request needs on a host of a few devices, including all retries.
pub(crate) const TOO_MANY: u64 = 20_000;

/// Requires that nothing in a text can move a cursor or begin a line.
pub(crate) fn require_printable(text: &str) {
    assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "not escaped: {text:?}");
}

/// Requires an error to be of a kind that belongs to operations on devices, and to print safely.
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

/// The same for a result. Returns the value.
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
