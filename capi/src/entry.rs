//! Functions with an error argument.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::error::uverbs_error;
use crate::fault::Fault;
use crate::guarded;

/// Runs `body`, and returns its number, or the negative errno of its fault. Sets `error` to the fault, or to null.
pub(crate) fn run(
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
    body: impl FnOnce() -> Result<c_int, Fault>,
) -> c_int {
    let (number, fault) = match guarded::run(body) {
        Ok(number) => (number, None),
        Err(fault) => (-fault.number(), Some(fault)),
    };
    if let Some(error) = error {
        let make = |fault| Box::into_raw(Box::new(uverbs_error::new(fault)));
        error.write(guarded::run_or(ptr::null_mut(), || fault.map_or(ptr::null_mut(), make)));
    }
    number
}

/// What one thread at a time uses.
pub(crate) fn enter<T>(of: &Mutex<T>) -> Result<MutexGuard<'_, T>, Fault> {
    match of.try_lock() {
        Ok(guard) => Ok(guard),
        Err(TryLockError::Poisoned(poison)) => Ok(poison.into_inner()),
        Err(TryLockError::WouldBlock) => Err(Fault::Busy("another thread is using it")),
    }
}

/// A timeout in milliseconds, where a negative one is none.
pub(crate) fn limit(timeout_ms: c_int) -> Option<Duration> {
    u64::try_from(timeout_ms).ok().map(Duration::from_millis)
}
