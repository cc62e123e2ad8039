//! A lock that a forked child does not inherit as taken.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

/// The id of the process that holds the lock, or 0.
static HOLDER: AtomicU32 = AtomicU32::new(0);

/// Holds the lock until it is dropped.
pub(crate) struct Locked(u32);

/// One list at a time: a name that was read over netlink must not be written after another thread's list has written a
/// newer one.
pub(crate) fn lock() -> Locked {
    let own = std::process::id();
    loop {
        let holder = HOLDER.load(SeqCst);
        // A parent's thread may have held it at the fork. The child does not have that thread.
        if holder != own && HOLDER.compare_exchange(holder, own, SeqCst, SeqCst).is_ok() {
            return Locked(own);
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // A child of vfork(2), which shares this memory, may have taken it over.
        let _ = HOLDER.compare_exchange(self.0, 0, SeqCst, SeqCst);
    }
}
