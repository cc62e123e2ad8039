//! A lock that a forked child does not inherit as taken.

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

pub(crate) struct Lock {
    /// The id of the process that holds the lock, or 0.
    holder: AtomicU32,
}

/// Holds the lock until it is dropped.
pub(crate) struct Locked<'a>(&'a Lock, u32);

/// One list at a time: a name that was read over netlink must not be written after another thread's list has written a
/// newer one.
static LISTS: Lock = Lock::new();

/// How long to wait between two attempts.
const PAUSE: Duration = Duration::from_micros(200);

/// Waits until no other list is being made.
pub(crate) fn lock() -> Locked<'static> {
    LISTS.lock()
}

impl Lock {
    const fn new() -> Self {
        Self { holder: AtomicU32::new(0) }
    }

    fn lock(&self) -> Locked<'_> {
        loop {
            if let Some(locked) = self.attempt() {
                return locked;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn attempt(&self) -> Option<Locked<'_>> {
        let own = std::process::id();
        let holder = self.holder.load(SeqCst);
        // A parent's thread may have held it at the fork. The child does not have that thread.
        let is_taken =
            holder == own || self.holder.compare_exchange(holder, own, SeqCst, SeqCst).is_err();
        // Not `then_some`: to drop one releases the lock.
        (!is_taken).then(|| Locked(self, own))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // A child of vfork(2), which shares this memory, may have taken it over.
        let _ = self.0.holder.compare_exchange(self.1, 0, SeqCst, SeqCst);
    }
}

/// How often a fork attempts to take the lock: for a second. Its own thread may be making the list.
const ATTEMPTS: u32 = 5000;

/// The thread that has taken the lock for a fork, or 0.
static FORKING: AtomicI32 = AtomicI32::new(0);

/// Makes each fork wait until no list is being made. libibverbs has a lock of its own during a list, and
/// `ibv_get_device_guid`, which the guard calls when a device is opened, takes it, too. In a child without the thread
/// that has it, an open would never end.
pub(crate) fn wait_before_forks() {
    // SAFETY: a preloaded library is not unloaded, so the functions stay.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
}

extern "C" fn before_fork() {
    for _ in 0..ATTEMPTS {
        if let Some(locked) = LISTS.attempt() {
            std::mem::forget(locked);
            FORKING.store(thread(), SeqCst);
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// In the parent, and in the child, where the lock is the parent's and can be taken anyway.
extern "C" fn after_fork() {
    if FORKING.compare_exchange(thread(), 0, SeqCst, SeqCst).is_ok() {
        drop(Locked(&LISTS, std::process::id()));
    }
}

fn thread() -> i32 {
    // SAFETY: it takes nothing and returns a number.
    unsafe { libc::gettid() }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;

    /// Runs `body` in a child, and requires that it returns `true` in time.
    fn require_in_child(body: impl FnOnce() -> bool) {
        // SAFETY: the child calls nothing that takes a lock of another thread.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: it takes a number. It ends a child that waits.
            unsafe { libc::alarm(20) };
            let is_right = body();
            // SAFETY: it ends the process.
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!((waited, status), (pid, 0));
    }

    #[test]
    fn one_thread_at_a_time_has_it() {
        const ROUNDS: usize = 50;
        static LOCK: Lock = Lock::new();
        static INSIDE: AtomicUsize = AtomicUsize::new(0);
        let work = || {
            for _ in 0..ROUNDS {
                let _locked = LOCK.lock();
                assert_eq!(INSIDE.fetch_add(1, SeqCst), 0, "two threads have the lock");
                std::thread::yield_now();
                INSIDE.fetch_sub(1, SeqCst);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(work);
            }
        });
        assert_eq!(LOCK.holder.load(SeqCst), 0, "nobody has it");
    }

    #[test]
    fn a_forked_child_takes_over_its_parents() {
        static LOCK: Lock = Lock::new();
        let mut held = Some(LOCK.lock());
        assert!(LOCK.attempt().is_none(), "it is taken");
        require_in_child(|| {
            drop(LOCK.lock());
            // The parent's copy, which the child has too, frees nothing that the child holds.
            let own = LOCK.lock();
            drop(held.take());
            LOCK.holder.load(SeqCst) == own.1
        });
        assert_eq!(LOCK.holder.load(SeqCst), std::process::id(), "the parent's own is untouched");
        drop(held);
        assert_eq!(LOCK.holder.load(SeqCst), 0);
    }

    #[test]
    fn a_fork_waits_until_no_list_is_made() {
        static IS_FREE: AtomicBool = AtomicBool::new(false);
        wait_before_forks();
        let held = lock();
        let lister = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            IS_FREE.store(true, SeqCst);
            drop(held);
        });
        require_in_child(|| {
            drop(lock());
            IS_FREE.load(SeqCst)
        });
        lister.join().expect("no panic");
        // And it is free again in the parent.
        drop(lock());
        // A thread that makes a list may fork.
        let held = lock();
        require_in_child(|| true);
        assert_eq!(LISTS.holder.load(SeqCst), held.1, "the fork did not take it");
    }
}
