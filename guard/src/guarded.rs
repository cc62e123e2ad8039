//! Running Rust code inside a function that C calls.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`. If it panics, returns `otherwise`. `errno` stays as it was, and the thread is not cancelled
/// meanwhile.
pub(crate) fn run<T>(otherwise: T, body: impl FnOnce() -> T) -> T {
    let _quiet = Quiet::begin();
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(otherwise)
}

/// Keeps `errno` and the cancellation state of this thread until it is dropped.
struct Quiet {
    errno: libc::c_int,
    cancelled: libc::c_int,
}

unsafe extern "C" {
    // pthread.h; libc does not declare it for this platform.
    fn pthread_setcancelstate(state: libc::c_int, old: *mut libc::c_int) -> libc::c_int;
}

/// `PTHREAD_CANCEL_DISABLE`
const DISABLE: libc::c_int = 1;

impl Quiet {
    fn begin() -> Self {
        let mut cancelled = 0;
        // SAFETY: the old state is written to a live integer.
        unsafe { pthread_setcancelstate(DISABLE, &raw mut cancelled) };
        Self { errno: errno(), cancelled }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: it is the state that the call above returned; a null pointer is allowed for the old one.
        unsafe { pthread_setcancelstate(self.cancelled, std::ptr::null_mut()) };
        set_errno(self.errno);
    }
}

/// This thread's `errno`.
pub(crate) fn errno() -> libc::c_int {
    // SAFETY: the address is good for this thread's life.
    unsafe { *location() }
}

/// Sets this thread's `errno`.
pub(crate) fn set_errno(errno: libc::c_int) {
    // SAFETY: as above.
    unsafe { *location() = errno };
}

fn location() -> *mut libc::c_int {
    // SAFETY: it takes nothing and returns an address.
    unsafe { libc::__errno_location() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errno_stays() {
        set_errno(libc::EXDEV);
        let found = run(0, || {
            set_errno(libc::EPERM);
            errno()
        });
        assert_eq!((found, errno()), (libc::EPERM, libc::EXDEV));
    }

    #[test]
    fn a_panic_does_not_leave() {
        let found = run(7, || -> i32 { std::panic::resume_unwind(Box::new("a panic")) });
        assert_eq!(found, 7);
    }

    #[test]
    fn the_thread_is_not_cancelled_meanwhile() {
        const ENABLE: libc::c_int = 0;
        let exchange = |state| {
            let mut old = -1;
            // SAFETY: the old state is written to a live integer.
            unsafe { pthread_setcancelstate(state, &raw mut old) };
            old
        };
        for before in [ENABLE, DISABLE] {
            exchange(before);
            let inside = run(-1, || exchange(DISABLE));
            assert_eq!((inside, exchange(ENABLE)), (DISABLE, before));
        }
    }
}
