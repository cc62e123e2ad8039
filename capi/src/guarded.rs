//! What surrounds every function that C calls: no panic leaves it, and the thread is not cancelled in it.

use std::any::Any;
use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::fault::Fault;

/// Runs `body`. A panic is a fault.
pub(crate) fn run(body: impl FnOnce() -> Result<c_int, Fault>) -> Result<c_int, Fault> {
    let _uncancelled = Uncancelled::begin();
    catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|payload| Err(Fault::Panic(message_of(payload))))
}

/// Runs `body`, and returns its number, or the negative errno of its fault.
pub(crate) fn run_plain(body: impl FnOnce() -> Result<c_int, Fault>) -> c_int {
    run(body).unwrap_or_else(|fault| -fault.number())
}

/// Runs `body`, and returns `otherwise` if it panics.
pub(crate) fn run_or<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    let _uncancelled = Uncancelled::begin();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|payload| {
        message_of(payload);
        otherwise
    })
}

fn message_of(payload: Box<dyn Any + Send>) -> String {
    let payload = match payload.downcast::<&str>() {
        Ok(text) => return (*text).to_owned(),
        Err(payload) => payload,
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => {
            // Dropping a value of another type could panic again.
            std::mem::forget(payload);
            "a panic without a message".to_owned()
        }
    }
}

/// Keeps this thread from being cancelled until it is dropped: a cancellation would unwind through Rust code, which
/// aborts the process.
struct Uncancelled(c_int);

unsafe extern "C" {
    // pthread.h; libc does not declare it for this platform.
    fn pthread_setcancelstate(state: c_int, old: *mut c_int) -> c_int;
}

/// `PTHREAD_CANCEL_DISABLE`
const DISABLE: c_int = 1;

impl Uncancelled {
    fn begin() -> Self {
        let mut old = 0;
        // SAFETY: the old state is written to a live integer.
        unsafe { pthread_setcancelstate(DISABLE, &raw mut old) };
        Self(old)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        // SAFETY: it is the state that the call above returned; a null pointer is allowed for the old one.
        unsafe { pthread_setcancelstate(self.0, ptr::null_mut()) };
    }
}
