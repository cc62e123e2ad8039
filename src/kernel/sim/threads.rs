//! The identity of the calling thread: one of this process, or one that exists only on simulated machines.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::super::linux::gettid;

thread_local! {
    /// The thread that the calling thread stands for; 0 if it stands for itself.
    static STANDS_FOR: Cell<u32> = const { Cell::new(0) };
}

/// Ids of real threads are below 2 to the power of 22 (`PID_MAX_LIMIT`).
static NEXT: AtomicU32 = AtomicU32::new(1 << 31);

/// The id of the calling thread.
pub(super) fn current() -> u32 {
    match STANDS_FOR.get() {
        0 => gettid(),
        id => id,
    }
}

/// While this exists, the calling thread stands for a new one.
pub(super) struct Started(u32);

impl Started {
    pub(super) fn begin() -> Self {
        Self(STANDS_FOR.replace(NEXT.fetch_add(1, Relaxed)))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        STANDS_FOR.set(self.0);
    }
}
