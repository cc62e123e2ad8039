//! The watch.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use uverbs::{Change, Devices, Watch};

use crate::changes::uverbs_change;
use crate::entry::{enter, limit, run};
use crate::error::uverbs_error;
use crate::fault::{Fault, require};
use crate::handle;
use crate::list::uverbs_list;
use crate::registry::uverbs_registry;

/// Follows the devices of a registry, and reports each change. It has no thread: everything happens in the calls. A
/// forked child must not use it. Reference-counted; one thread at a time uses it.
pub struct uverbs_watch {
    watch: Mutex<Watch>,
    fd: c_int,
}

fn make(
    registry: Option<&uverbs_registry>,
    watch: Option<&mut MaybeUninit<*mut uverbs_watch>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
    open: impl FnOnce(&uverbs::Registry) -> uverbs::Result<Watch>,
) -> c_int {
    let watch = handle::clear(watch);
    run(error, || {
        let registry = require(registry, "registry")?;
        let to = require(watch, "watch")?;
        let watch = open(&registry.registry)?;
        let fd = watch.as_raw_fd();
        handle::give(to, uverbs_watch { watch: Mutex::new(watch), fd });
        Ok(0)
    })
}

/// Follows the devices from now on.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_watch_open(
    registry: Option<&uverbs_registry>,
    watch: Option<&mut MaybeUninit<*mut uverbs_watch>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    make(registry, watch, error, |registry| registry.watch())
}

/// As uverbs_watch_open, and reports first what has changed since that list, which has to be of this registry. If
/// `older` is null, it reports every device as added.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_watch_open_since(
    registry: Option<&uverbs_registry>,
    older: Option<&uverbs_list>,
    watch: Option<&mut MaybeUninit<*mut uverbs_watch>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    make(registry, watch, error, |registry| match older {
        Some(older) => registry.watch_since(&older.devices),
        None => registry.watch_since(&Devices::default()),
    })
}

/// Adds a reference. Returns the watch.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_watch_ref(watch: *const uverbs_watch) -> *mut uverbs_watch {
    // SAFETY: as the caller promises.
    unsafe { handle::add(watch) }
}

/// Drops a reference, and ends the watch with the last one. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_watch_unref(watch: *mut uverbs_watch) -> *mut uverbs_watch {
    // SAFETY: as the caller promises.
    unsafe { handle::release(watch) }
}

/// The descriptor, or -EINVAL. It becomes readable for poll(2) and the like when uverbs_watch_next may return
/// something: call that until it returns 0 then. It needs no timer of the caller's. Borrowed: do not close or read it.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_watch_fd(watch: Option<&uverbs_watch>) -> c_int {
    watch.map_or(-libc::EINVAL, |watch| watch.fd)
}

fn take(
    watch: Option<&uverbs_watch>,
    change: Option<&mut MaybeUninit<*mut uverbs_change>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
    next: impl FnOnce(&mut Watch) -> uverbs::Result<Option<Change>>,
) -> c_int {
    let change = handle::clear(change);
    run(error, || {
        let watch = require(watch, "watch")?;
        let to = require(change, "change")?;
        let Some(found) = next(&mut *enter(&watch.watch)?)? else { return Ok(0) };
        handle::give(to, uverbs_change::new(&found));
        Ok(1)
    })
}

/// Returns 1 and the next change, or 0 if there is none yet. Does not wait for one. After an error the watch can still
/// be used.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_watch_next(
    watch: Option<&uverbs_watch>,
    change: Option<&mut MaybeUninit<*mut uverbs_change>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    take(watch, change, error, Watch::try_next)
}

/// As uverbs_watch_next, but waits for a change for at most that many milliseconds, or without a limit if `timeout_ms`
/// is negative. Returns 0 if the time is over. Signals do not end the wait.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_watch_wait(
    watch: Option<&uverbs_watch>,
    timeout_ms: c_int,
    change: Option<&mut MaybeUninit<*mut uverbs_change>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    take(watch, change, error, |watch| watch.wait(limit(timeout_ms)))
}

/// The list that the changes returned so far, and those queued, lead to. Makes no system call.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_watch_list(
    watch: Option<&uverbs_watch>,
    list: Option<&mut MaybeUninit<*mut uverbs_list>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let list = handle::clear(list);
    run(error, || {
        let watch = require(watch, "watch")?;
        let to = require(list, "list")?;
        let devices = enter(&watch.watch)?.devices().clone();
        handle::give(to, uverbs_list::new(devices));
        Ok::<_, Fault>(0)
    })
}
