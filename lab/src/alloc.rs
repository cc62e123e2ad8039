//! A counting allocator, to test the limits on memory per device and on allocations per call.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static CALLS: AtomicUsize = AtomicUsize::new(0);
static WATCHED: AtomicBool = AtomicBool::new(false);
static BORROWED: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The id of the thread that this storage belongs to; 0 before its first allocation.
    static OWNER: Cell<i32> = const { Cell::new(0) };
}

/// Counts how many times memory was allocated or freed during `run` by threads that use another thread's
/// thread-local storage.
pub(crate) fn with_borrowed_storage<T>(run: impl FnOnce() -> T) -> (T, usize) {
    BORROWED.store(0, Relaxed);
    WATCHED.store(true, Relaxed);
    look();
    let result = run();
    WATCHED.store(false, Relaxed);
    (result, BORROWED.load(Relaxed))
}

/// Makes allocations of this thread count as borrowed.
pub(crate) fn disown_storage() {
    OWNER.set(-1);
}

fn look() {
    if WATCHED.load(Relaxed) {
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        match OWNER.replace(thread) {
            0 => {}
            owner => {
                BORROWED.fetch_add(usize::from(owner != thread), Relaxed);
                OWNER.set(owner);
            }
        }
    }
}

/// The system's allocator. It counts the allocations and the bytes in use.
pub(crate) struct Counting;

/// The number of bytes of heap in use.
pub(crate) fn live_bytes() -> usize {
    LIVE.load(Relaxed)
}

/// The number of allocations, including reallocations.
pub(crate) fn calls() -> usize {
    CALLS.load(Relaxed)
}

// SAFETY: every call goes to the system's allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        CALLS.fetch_add(1, Relaxed);
        look();
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        CALLS.fetch_add(1, Relaxed);
        look();
        // SAFETY: the caller keeps `alloc_zeroed`'s contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        look();
        // SAFETY: `pointer` came from `alloc` above with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}
