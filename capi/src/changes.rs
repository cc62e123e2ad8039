//! Changes of the devices.

use std::ffi::{CString, c_char};
use std::ptr;
use std::sync::Arc;

use uverbs::{Change, Device, Name};

use crate::device::uverbs_device;
use crate::fault::c_text;
use crate::handle;

/// A kind of change that this interface has no number for.
pub const UVERBS_CHANGE_OTHER: u32 = 0;
/// A device was added. It may not be usable yet.
pub const UVERBS_CHANGE_ADDED: u32 = 1;
/// A device that was added can be opened by this process now. Only a watch reports this, once for each device.
pub const UVERBS_CHANGE_READY: u32 = 2;
/// A device was removed.
pub const UVERBS_CHANGE_REMOVED: u32 = 3;
/// A device was removed, and another one has its number.
pub const UVERBS_CHANGE_REPLACED: u32 = 4;
/// A device has another name.
pub const UVERBS_CHANGE_RENAMED: u32 = 5;
/// Changes may be missing from those that were reported before this. The state is right. Only a watch reports this.
pub const UVERBS_CHANGE_RESYNCHRONISED: u32 = 6;

/// What happened to a device. Reference-counted.
pub struct uverbs_change {
    kind: u32,
    device: Option<Arc<uverbs_device>>,
    old: Option<Arc<uverbs_device>>,
    name: Option<CString>,
    old_name: Option<CString>,
    reason: Option<CString>,
    text: CString,
}

/// A name without the NUL that none has in the kernel.
fn c_name(name: &Name) -> CString {
    let bytes = name.as_bytes().iter().copied().take_while(|&byte| byte != 0);
    CString::new(bytes.collect::<Vec<u8>>()).unwrap_or_default()
}

impl uverbs_change {
    pub(crate) fn new(change: &Change) -> Self {
        let handle = |device: &Device| Some(Arc::new(uverbs_device { device: device.clone() }));
        let mut made = Self {
            kind: UVERBS_CHANGE_OTHER,
            device: None,
            old: None,
            name: None,
            old_name: None,
            reason: None,
            text: c_text(change.to_string()),
        };
        match change {
            Change::Added { device, name, .. } => {
                made.kind = UVERBS_CHANGE_ADDED;
                made.device = handle(device);
                made.name = Some(c_name(name));
            }
            Change::Ready { device, .. } => {
                made.kind = UVERBS_CHANGE_READY;
                made.device = handle(device);
            }
            Change::Removed { device, .. } => {
                made.kind = UVERBS_CHANGE_REMOVED;
                made.device = handle(device);
            }
            Change::Replaced { old, new, name, .. } => {
                made.kind = UVERBS_CHANGE_REPLACED;
                made.device = handle(new);
                made.old = handle(old);
                made.name = Some(c_name(name));
            }
            Change::Renamed { device, from, to, .. } => {
                made.kind = UVERBS_CHANGE_RENAMED;
                made.device = handle(device);
                made.name = Some(c_name(to));
                made.old_name = Some(c_name(from));
            }
            Change::Resynchronised { reason, .. } => {
                made.kind = UVERBS_CHANGE_RESYNCHRONISED;
                made.reason = Some(c_text(reason.name()));
            }
            _ => {}
        }
        made
    }
}

/// Adds a reference. Returns the change.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_change_ref(change: *const uverbs_change) -> *mut uverbs_change {
    // SAFETY: as the caller promises.
    unsafe { handle::add(change) }
}

/// Drops a reference. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_change_unref(change: *mut uverbs_change) -> *mut uverbs_change {
    // SAFETY: as the caller promises.
    unsafe { handle::release(change) }
}

/// What happened: UVERBS_CHANGE_ADDED and so on.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_kind(change: Option<&uverbs_change>) -> u32 {
    change.map_or(UVERBS_CHANGE_OTHER, |change| change.kind)
}

/// The device, of a replacement the new one; null if there is none. Borrowed from the change.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_device(change: Option<&uverbs_change>) -> *const uverbs_device {
    change.and_then(|change| change.device.as_ref()).map_or(ptr::null(), Arc::as_ptr)
}

/// The device that was replaced; null if the change is no replacement. Borrowed from the change.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_old_device(change: Option<&uverbs_change>) -> *const uverbs_device {
    change.and_then(|change| change.old.as_ref()).map_or(ptr::null(), Arc::as_ptr)
}

/// The name of a device that was added, of a replacement, or of a renamed device, as its bytes are; null if the change
/// has none. It lives as long as the change.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_name(change: Option<&uverbs_change>) -> *const c_char {
    change.and_then(|change| change.name.as_ref()).map_or(ptr::null(), |name| name.as_ptr())
}

/// The name that a renamed device had before, as its bytes are; null if the change has none. It lives as long as the
/// change.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_old_name(change: Option<&uverbs_change>) -> *const c_char {
    change.and_then(|change| change.old_name.as_ref()).map_or(ptr::null(), |name| name.as_ptr())
}

/// Why changes may be missing: "overflow", "cut", "events_missing" or "no_events"; null if the change is of another
/// kind. It lives as long as the change.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_reason(change: Option<&uverbs_change>) -> *const c_char {
    change.and_then(|change| change.reason.as_ref()).map_or(ptr::null(), |text| text.as_ptr())
}

/// The change in one line, escaped, such as "mlx5_0 (uverbs0): added"; null for a null pointer. It lives as long as
/// the change.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_change_text(change: Option<&uverbs_change>) -> *const c_char {
    change.map_or(ptr::null(), |change| change.text.as_ptr())
}

/// The difference of two lists. Reference-counted.
pub struct uverbs_changes(Vec<Arc<uverbs_change>>);

impl uverbs_changes {
    pub(crate) fn new(changes: Vec<Change>) -> Self {
        Self(changes.iter().map(|change| Arc::new(uverbs_change::new(change))).collect())
    }
}

/// Adds a reference. Returns the changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_changes_ref(changes: *const uverbs_changes) -> *mut uverbs_changes {
    // SAFETY: as the caller promises.
    unsafe { handle::add(changes) }
}

/// Drops a reference. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_changes_unref(changes: *mut uverbs_changes) -> *mut uverbs_changes {
    // SAFETY: as the caller promises.
    unsafe { handle::release(changes) }
}

/// The number of changes.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_changes_count(changes: Option<&uverbs_changes>) -> usize {
    changes.map_or(0, |changes| changes.0.len())
}

/// The change at that place, counted from 0; null if there is none. Borrowed from the changes.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_changes_get(
    changes: Option<&uverbs_changes>,
    place: usize,
) -> *const uverbs_change {
    changes.and_then(|changes| changes.0.get(place)).map_or(ptr::null(), Arc::as_ptr)
}
