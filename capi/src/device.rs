//! Devices.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

use uverbs::{Device, DriverId};

use crate::entry::run;
use crate::error::uverbs_error;
use crate::fault::require;
use crate::guarded::{run_or, run_plain};
use crate::handle;
use crate::sized::{self, Plain};
use crate::text::{Buffer, UVERBS_NAME_SIZE, cut};

/// A listed device: a handle on one instance, from when a device is added until it is removed. It stays valid after
/// the device is gone, and holds no descriptor. Reference-counted.
pub struct uverbs_device {
    pub(crate) device: Device,
}

/// The identity of a device, which no other device shares. It is the inode number: the kernel reuses the name, the
/// uverbs number, the device number and the GUID at once.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_instance {
    /// st_dev of the sysfs mount through which it was seen.
    pub sys_dev: u64,
    /// Inode number of the uverbs directory.
    pub ino: u64,
    /// st_ctime of the attribute ibdev, in seconds. Evidence only: the kernel may change it.
    pub ctime_seconds: i64,
    /// The nanoseconds of that.
    pub ctime_nanoseconds: u32,
    /// Device number of its node: the major number.
    pub major: u32,
    /// And the minor number.
    pub minor: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: numbers, in the order of their size, 40 bytes.
unsafe impl Plain for uverbs_instance {}

/// What the kernel reports about a device over RDMA netlink.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_device_facts {
    /// GUID of the node, in host byte order.
    pub node_guid: u64,
    /// GUID of the system that the node is part of, in host byte order.
    pub sys_image_guid: u64,
    /// Index in netlink. The kernel does not reuse it until ib_core is reloaded.
    pub index: u32,
    /// The driver (enum rdma_driver_id); 0 for the drivers that the kernel does not report.
    pub driver_id: u32,
    /// Kind of node (enum rdma_node_type).
    pub node_type: u32,
    /// The number of ports, which are counted from 1.
    pub port_count: u32,
    /// Version of the firmware, in the driver's format, ended by a NUL, cut to 63 bytes.
    pub firmware_version: [c_char; UVERBS_NAME_SIZE],
}

// SAFETY: numbers, in the order of their size, 96 bytes.
unsafe impl Plain for uverbs_device_facts {}

/// Adds a reference. Returns the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_ref(device: *const uverbs_device) -> *mut uverbs_device {
    // SAFETY: as the caller promises.
    unsafe { handle::add(device) }
}

/// Drops a reference. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_unref(device: *mut uverbs_device) -> *mut uverbs_device {
    // SAFETY: as the caller promises.
    unsafe { handle::release(device) }
}

/// Whether both are handles on the same instance, whatever their names.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_equal(
    one: Option<&uverbs_device>,
    other: Option<&uverbs_device>,
) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => run_or(false, || one.device == other.device),
        (one, other) => one.is_none() && other.is_none(),
    }
}

/// Copies the name at the last listing or open, such as mlx5_0, to `buffer` by the rule of texts. A name may have any
/// bytes but NUL: uverbs_escape makes it fit for a terminal. Names change and are reused, so they are for display.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_name(
    device: Option<&uverbs_device>,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    run_plain(|| {
        let name = require(device, "device")?.device.name();
        // SAFETY: the caller has that much room.
        unsafe { Buffer::new(buffer, size) }.put(name.as_bytes())
    })
}

/// Copies the name and the name of the node, such as "mlx5_0 (uverbs0)", escaped, to `buffer` by the rule of texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_label(
    device: Option<&uverbs_device>,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    run_plain(|| {
        let device = require(device, "device")?;
        // SAFETY: the caller has that much room.
        unsafe { Buffer::new(buffer, size) }.print(&device.device)
    })
}

/// Copies the name of its node in /dev/infiniband, such as uverbs0, to `buffer` by the rule of texts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_node_name(
    device: Option<&uverbs_device>,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    run_plain(|| {
        let number = require(device, "device")?.device.uverbs_number();
        // SAFETY: the caller has that much room.
        unsafe { Buffer::new(buffer, size) }.print(format_args!("uverbs{number}"))
    })
}

/// Sets `number` to the N of uverbsN. The kernel reuses it as soon as the device is gone.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_uverbs_number(
    device: Option<&uverbs_device>,
    number: Option<&mut MaybeUninit<u32>>,
) -> c_int {
    run_plain(|| {
        let found = require(device, "device")?.device.uverbs_number();
        require(number, "number")?.write(found);
        Ok(0)
    })
}

/// Sets `major` and `minor` to the device number of its node. Either may be null.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_number(
    device: Option<&uverbs_device>,
    major: Option<&mut MaybeUninit<u32>>,
    minor: Option<&mut MaybeUninit<u32>>,
) -> c_int {
    run_plain(|| {
        let number = require(device, "device")?.device.device_number();
        if let Some(major) = major {
            major.write(number.major);
        }
        if let Some(minor) = minor {
            minor.write(number.minor);
        }
        Ok(0)
    })
}

/// Fills `instance` with the device's identity. `size` is sizeof(struct uverbs_instance).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_instance(
    device: Option<&uverbs_device>,
    instance: *mut uverbs_instance,
    size: usize,
) -> c_int {
    run_plain(|| {
        let found = require(device, "device")?.device.instance();
        let found = uverbs_instance {
            sys_dev: found.sys_dev,
            ino: found.ino,
            ctime_seconds: found.timestamp.0,
            ctime_nanoseconds: found.timestamp.1,
            major: found.device_number.major,
            minor: found.device_number.minor,
            reserved: 0,
        };
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, instance, size) }?;
        Ok(0)
    })
}

/// Whether the device is already known to be gone. Makes no system call.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_is_known_gone(device: Option<&uverbs_device>) -> bool {
    device.is_some_and(|device| run_or(false, || device.device.is_known_gone()))
}

/// Sets `index` to the device's index in RDMA netlink (ibv_get_device_index). It is looked up on the first use.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_index(
    device: Option<&uverbs_device>,
    index: Option<&mut MaybeUninit<u32>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let device = require(device, "device")?;
        let index = require(index, "index")?;
        index.write(device.device.index()?);
        Ok(0)
    })
}

/// Sets `driver_id` to the driver (enum rdma_driver_id, rdma/ib_user_ioctl_verbs.h); to 0 for the drivers that the
/// kernel does not report (mthca, hns).
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_driver_id(
    device: Option<&uverbs_device>,
    driver_id: Option<&mut MaybeUninit<u32>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let device = require(device, "device")?;
        let driver_id = require(driver_id, "driver_id")?;
        driver_id.write(device.device.driver_id()?.map_or(0, DriverId::to_raw));
        Ok(0)
    })
}

/// Sets `guid` to the GUID of the node, in host byte order. (ibv_get_device_guid returns it in network byte order.)
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_node_guid(
    device: Option<&uverbs_device>,
    guid: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let device = require(device, "device")?;
        let guid = require(guid, "guid")?;
        guid.write(device.device.query()?.node_guid.0);
        Ok(0)
    })
}

/// Queries what the kernel reports about the device over RDMA netlink. `size` is sizeof(struct uverbs_device_facts).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_query(
    device: Option<&uverbs_device>,
    facts: *mut uverbs_device_facts,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let found = require(device, "device")?.device.query()?;
        let found = uverbs_device_facts {
            node_guid: found.node_guid.0,
            sys_image_guid: found.sys_image_guid.0,
            index: found.index,
            driver_id: found.driver_id.map_or(0, DriverId::to_raw),
            node_type: u32::from(found.node_type.to_raw()),
            port_count: found.port_count,
            firmware_version: cut(found.firmware_version.as_bytes()),
        };
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, facts, size) }?;
        Ok(0)
    })
}

/// Whether this process could open the device now: 0, or an error with the reason. It opens nothing.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_device_check_ready(
    device: Option<&uverbs_device>,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        require(device, "device")?.device.check_ready()?;
        Ok(0)
    })
}
