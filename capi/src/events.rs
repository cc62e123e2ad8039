//! Async events.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use uverbs::{AsyncEvent, AsyncEvents};

use crate::context::{either, uverbs_context};
use crate::entry::{enter, limit, run};
use crate::error::uverbs_error;
use crate::fault::{Fault, require};
use crate::guarded::run_or;
use crate::handle;
use crate::sized::{self, Plain};

/// The device failed, or is gone. It is the last event.
pub const UVERBS_EVENT_DEVICE_FATAL: u32 = 8;

/// An async event (ibv_get_async_event). There is nothing to acknowledge.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_async_event {
    /// The object of the event: a port's number; the user handle with which a completion queue, queue pair, work queue
    /// or shared receive queue was created; 0 for the device.
    pub element: u64,
    /// The kind of event (enum ibv_event_type).
    pub kind: u32,
    /// The port of the event, counted from 1; 0 if it is not about a port.
    pub port: u32,
}

// SAFETY: numbers, in the order of their size, 16 bytes.
unsafe impl Plain for uverbs_async_event {}

/// The async events of a context's device and of its ports, from when this was made. It has a descriptor of its own.
/// Reference-counted; one thread at a time uses it. It stays valid after the context is closed, but then gets
/// no more events.
pub struct uverbs_events {
    events: Mutex<AsyncEvents>,
    fd: c_int,
}

/// Opens the async events of a context, from now on. Keep one and wait on it: events that happen while none is open
/// are lost.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_events_open(
    context: Option<&uverbs_context>,
    events: Option<&mut MaybeUninit<*mut uverbs_events>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let events = handle::clear(events);
    run(error, || {
        let context = require(context, "context")?;
        let to = require(events, "events")?;
        let events = either!(&context.opened, it => it.async_events())?;
        let fd = events.as_raw_fd();
        handle::give(to, uverbs_events { events: Mutex::new(events), fd });
        Ok(0)
    })
}

/// Adds a reference. Returns the events.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_events_ref(events: *const uverbs_events) -> *mut uverbs_events {
    // SAFETY: as the caller promises.
    unsafe { handle::add(events) }
}

/// Drops a reference, and closes the descriptor with the last one. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_events_unref(events: *mut uverbs_events) -> *mut uverbs_events {
    // SAFETY: as the caller promises.
    unsafe { handle::release(events) }
}

/// The descriptor, or -EINVAL. It is non-blocking, and readable for poll(2) and the like when there may be an event.
/// Borrowed: do not close or read it.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_events_fd(events: Option<&uverbs_events>) -> c_int {
    events.map_or(-libc::EINVAL, |events| events.fd)
}

/// Returns 1 and the next event, or 0 if there is none yet or if the events have ended. Does not wait. `size` is
/// sizeof(struct uverbs_async_event).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_events_next(
    events: Option<&uverbs_events>,
    event: *mut uverbs_async_event,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    // SAFETY: as the caller promises.
    run(error, || unsafe { take(events, event, size, AsyncEvents::try_next) })
}

/// As uverbs_events_next, but waits for an event for at most that many milliseconds, or without a limit if
/// `timeout_ms` is negative. Returns 0 if the time is over or if the events have ended. Signals do not end the wait.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_events_wait(
    events: Option<&uverbs_events>,
    timeout_ms: c_int,
    event: *mut uverbs_async_event,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    // SAFETY: as the caller promises.
    run(error, || unsafe { take(events, event, size, |events| events.wait(limit(timeout_ms))) })
}

/// # Safety
/// `event` is null, or `size` bytes can be written there.
unsafe fn take(
    events: Option<&uverbs_events>,
    event: *mut uverbs_async_event,
    size: usize,
    next: impl FnOnce(&mut AsyncEvents) -> uverbs::Result<Option<AsyncEvent>>,
) -> Result<c_int, Fault> {
    let events = require(events, "events")?;
    // Before an event is taken, so that none is lost for a wrong argument.
    let none = uverbs_async_event { element: 0, kind: 0, port: 0 };
    // SAFETY: the caller has that much room.
    unsafe { sized::put(&none, event, size) }?;
    let Some(found) = next(&mut *enter(&events.events)?)? else { return Ok(0) };
    let found = uverbs_async_event {
        element: found.element,
        kind: found.kind.to_raw(),
        port: found.port().map_or(0, u32::from),
    };
    // SAFETY: the caller has that much room.
    unsafe { sized::put(&found, event, size) }?;
    Ok(1)
}

/// Whether the events have ended: the device failed or is gone, and no more events come. False while another thread
/// waits for an event.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_events_has_ended(events: Option<&uverbs_events>) -> bool {
    events.is_some_and(|events| {
        run_or(false, || enter(&events.events).is_ok_and(|events| events.has_ended()))
    })
}
