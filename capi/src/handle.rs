//! Reference-counted handles.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use crate::guarded::run_or;

/// Gives a new handle to C.
pub(crate) fn give<T>(to: &mut MaybeUninit<*mut T>, handle: T) {
    give_arc(to, Arc::new(handle));
}

/// Gives a reference to C.
pub(crate) fn give_arc<T>(to: &mut MaybeUninit<*mut T>, handle: Arc<T>) {
    to.write(Arc::into_raw(handle).cast_mut());
}

/// Sets a result to null, so that a caller that ignores an error has no stray pointer.
pub(crate) fn clear<T>(
    mut to: Option<&mut MaybeUninit<*mut T>>,
) -> Option<&mut MaybeUninit<*mut T>> {
    if let Some(to) = &mut to {
        to.write(ptr::null_mut());
    }
    to
}

/// Adds a reference. Null stays null.
///
/// # Safety
/// The handle is null, or one that this library has given to C and that is still alive.
pub(crate) unsafe fn add<T>(handle: *const T) -> *mut T {
    if !handle.is_null() {
        // SAFETY: the pointer is from `Arc::into_raw` or `Arc::as_ptr`, and the object is alive.
        unsafe { Arc::increment_strong_count(handle) };
    }
    handle.cast_mut()
}

/// Drops a reference, and returns null. Does nothing if the handle is null.
///
/// # Safety
/// The handle is null, or one that this library has given to C, and the caller owns a reference to it.
pub(crate) unsafe fn release<T>(handle: *mut T) -> *mut T {
    if !handle.is_null() {
        // SAFETY: the pointer is from `Arc::into_raw`, and the reference is the caller's.
        let handle = unsafe { Arc::from_raw(handle.cast_const()) };
        run_or((), || drop(handle));
    }
    ptr::null_mut()
}
