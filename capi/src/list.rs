//! Lists of devices.

use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use uverbs::{Device, Devices, Guid, PciAddress};

use crate::changes::uverbs_changes;
use crate::device::uverbs_device;
use crate::entry::run;
use crate::error::uverbs_error;
use crate::fault::{Fault, require};
use crate::handle;

/// The devices that one look at the host found, ordered by uverbs number. It does not change, and its devices outlive
/// it if they are referenced. Reference-counted.
pub struct uverbs_list {
    pub(crate) devices: Devices,
    handles: Vec<Arc<uverbs_device>>,
    faults: Vec<uverbs_error>,
}

impl uverbs_list {
    pub(crate) fn new(devices: Devices) -> Self {
        let handle = |device: &Device| Arc::new(uverbs_device { device: device.clone() });
        Self {
            handles: devices.iter().map(handle).collect(),
            faults: devices.faults().map(uverbs_error::of).collect(),
            devices,
        }
    }
}

/// Adds a reference. Returns the list.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_list_ref(list: *const uverbs_list) -> *mut uverbs_list {
    // SAFETY: as the caller promises.
    unsafe { handle::add(list) }
}

/// Drops a reference. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_list_unref(list: *mut uverbs_list) -> *mut uverbs_list {
    // SAFETY: as the caller promises.
    unsafe { handle::release(list) }
}

/// The number of devices.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_count(list: Option<&uverbs_list>) -> usize {
    list.map_or(0, |list| list.handles.len())
}

/// The device at that place in the list, counted from 0; null if there is none. Borrowed from the list. The place is
/// neither its uverbs number nor its netlink index.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_get(
    list: Option<&uverbs_list>,
    place: usize,
) -> *const uverbs_device {
    list.and_then(|list| list.handles.get(place)).map_or(ptr::null(), Arc::as_ptr)
}

/// The number of devices that could not be read and are missing from the list.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_fault_count(list: Option<&uverbs_list>) -> usize {
    list.map_or(0, |list| list.faults.len())
}

/// The error of such a device, counted from 0; null if there is none. Borrowed from the list.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_fault(
    list: Option<&uverbs_list>,
    place: usize,
) -> *const uverbs_error {
    list.and_then(|list| list.faults.get(place)).map_or(ptr::null(), ptr::from_ref)
}

fn find(
    list: Option<&uverbs_list>,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
    look: impl FnOnce(&Devices) -> Result<Device, Fault>,
) -> c_int {
    let device = handle::clear(device);
    run(error, || {
        let list = require(list, "list")?;
        let to = require(device, "device")?;
        let device = look(&list.devices)?;
        match list.handles.iter().find(|handle| handle.device == device) {
            Some(handle) => handle::give_arc(to, Arc::clone(handle)),
            None => handle::give(to, uverbs_device { device }),
        }
        Ok(0)
    })
}

/// The device that had that name in this list. The name is compared byte by byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_list_by_name(
    list: Option<&uverbs_list>,
    name: *const c_char,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    find(list, device, error, |devices| {
        if name.is_null() {
            return Err(Fault::Null("name"));
        }
        // SAFETY: the caller passes a C string.
        let name = unsafe { CStr::from_ptr(name) };
        Ok(devices.by_name(name.to_bytes())?)
    })
}

/// The device with that node GUID, in host byte order. Each device of the list is queried. A GUID is not an identity:
/// several devices may have the same one.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_by_guid(
    list: Option<&uverbs_list>,
    guid: u64,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    find(list, device, error, |devices| Ok(devices.by_guid(Guid(guid))?))
}

/// The device that has this index in RDMA netlink.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_by_index(
    list: Option<&uverbs_list>,
    index: u32,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    find(list, device, error, |devices| Ok(devices.by_index(index)?))
}

/// The device uverbsN.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_by_uverbs_number(
    list: Option<&uverbs_list>,
    number: u32,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    find(list, device, error, |devices| Ok(devices.by_uverbs_number(number)?))
}

/// The device of the PCI function at that address, such as 0000:3b:00.2, with its domain: the one whose parent is the
/// function, or is a sub-function or another part of it. The parents of the devices beneath the function are read, and
/// no others. An address is not an identity: a function may have several devices (uverbs_list_all_by_pci), and after a
/// hot plug it may be another function's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_list_by_pci(
    list: Option<&uverbs_list>,
    address: *const c_char,
    device: Option<&mut MaybeUninit<*mut uverbs_device>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    find(list, device, error, |devices| {
        // SAFETY: the caller passes a C string.
        let address = unsafe { pci_address(address) }?;
        Ok(devices.by_pci(address)?)
    })
}

/// All devices of the PCI function at that address, in the order of the list, otherwise as uverbs_list_by_pci. Fills up
/// to `room` entries of an array with devices that are borrowed from the list. Returns the number of devices that there
/// are, which may be 0, and more than `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_list_all_by_pci(
    list: Option<&uverbs_list>,
    address: *const c_char,
    devices: *mut *const uverbs_device,
    room: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let list = require(list, "list")?;
        if room > 0 && devices.is_null() {
            return Err(Fault::Null("devices"));
        }
        // SAFETY: the caller passes a C string.
        let address = unsafe { pci_address(address) }?;
        let found = list.devices.all_by_pci(address)?;
        let handles = list.handles.iter().filter(|handle| found.contains(&handle.device));
        for (place, handle) in handles.take(room).enumerate() {
            // SAFETY: the caller's array has `room` entries.
            unsafe { devices.wrapping_add(place).write(Arc::as_ptr(handle)) };
        }
        Ok(c_int::try_from(found.len()).unwrap_or(c_int::MAX))
    })
}

/// # Safety
/// The text is null or a C string.
unsafe fn pci_address(text: *const c_char) -> Result<PciAddress, Fault> {
    if text.is_null() {
        return Err(Fault::Null("address"));
    }
    // SAFETY: as the caller promises.
    let text = unsafe { CStr::from_ptr(text) }.to_str().unwrap_or_default();
    let form = "a PCI address has a domain, a bus, a device and a function: 0000:3b:00.2";
    text.parse().map_err(|_| Fault::Argument(form))
}

/// The changes that lead from an older list to this one: removals first, then replacements, renames and additions. If
/// `older` is null, every device of this list was added. Both lists have to be of one registry. Makes no system call.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_list_changes_since(
    list: Option<&uverbs_list>,
    older: Option<&uverbs_list>,
    changes: Option<&mut MaybeUninit<*mut uverbs_changes>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    let changes = handle::clear(changes);
    run(error, || {
        let list = require(list, "list")?;
        let changes = require(changes, "changes")?;
        let found = match older {
            Some(older) => list.devices.changes_since(&older.devices),
            None => list.devices.changes_since(&Devices::default()),
        };
        handle::give(changes, uverbs_changes::new(found));
        Ok(0)
    })
}
