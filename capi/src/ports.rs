//! The ports of devices, without a context.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

use uverbs::{Netdev, PortFacts};

use crate::device::uverbs_device;
use crate::entry::run;
use crate::error::uverbs_error;
use crate::fault::require;
use crate::sized::{self, Plain};
use crate::text::cut;

/// Room for the name of a network device: IFNAMSIZ.
pub const UVERBS_NETDEV_NAME_SIZE: usize = 16;

/// The network device of a port.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_netdev {
    /// The port, counted from 1.
    pub port: u32,
    /// Its index (if_nametoindex(3)), in the network namespace of this process.
    pub index: u32,
    /// Its name at that moment, which may have any bytes but NUL (uverbs_escape). Names change and are reused, so it is
    /// for display.
    pub name: [c_char; UVERBS_NETDEV_NAME_SIZE],
}

// SAFETY: numbers and a text, 24 bytes.
unsafe impl Plain for uverbs_netdev {}

impl uverbs_netdev {
    fn new(found: &Netdev) -> Self {
        Self { port: found.port, index: found.index, name: cut(found.name.as_bytes()) }
    }
}

/// A port as it is seen without a context.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_port_facts {
    /// Its number, counted from 1.
    pub port: u32,
    /// The rate of the link in Mb/s; 0 if the driver does not report it.
    pub rate: u32,
    /// Index of its network device; 0 if it has none.
    pub netdev_index: u32,
    /// Logical state (enum ib_port_state): 4 is active.
    pub state: u8,
    /// Physical state (enum ib_port_phys_state): 5 is up.
    pub physical_state: u8,
    /// Zero.
    pub reserved: u16,
    /// Name of its network device, as in struct uverbs_netdev; empty if it has none.
    pub netdev_name: [c_char; UVERBS_NETDEV_NAME_SIZE],
}

// SAFETY: numbers, in the order of their size, and a text, 32 bytes.
unsafe impl Plain for uverbs_port_facts {}

impl uverbs_port_facts {
    fn new(found: &PortFacts) -> Self {
        let netdev = found.netdev.as_ref();
        Self {
            port: found.port,
            rate: found.rate.map_or(0, |rate| rate.megabits_per_second()),
            netdev_index: netdev.map_or(0, |netdev| netdev.index),
            state: found.state.to_raw(),
            physical_state: found.physical_state.to_raw(),
            reserved: 0,
            netdev_name: cut(netdev.map_or(&[], |netdev| netdev.name.as_bytes())),
        }
    }
}

/// Reads the network devices of the ports, over RDMA netlink, and fills up to `room` entries of an array. The kernel
/// reports those in the network namespace of this process alone, and none for IPoIB. At most 256 ports are read. `size`
/// is sizeof(struct uverbs_netdev). Returns the number of network devices that there are, which may be more than
/// `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_netdevs(
    device: Option<&uverbs_device>,
    netdevs: *mut uverbs_netdev,
    size: usize,
    room: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let found = require(device, "device")?.device.netdevs()?;
        // SAFETY: the caller's array has `room` structs of that size.
        unsafe { sized::put_each(found.iter().map(uverbs_netdev::new), netdevs, size, room) }
    })
}

/// Reads state, rate and network device of the ports, without a context, and fills up to `room` entries of an array.
/// At most 256 ports are read; `port_count` of struct uverbs_device_facts has their number. The kernel queries each
/// port, which may wait for the device's firmware. `size` is sizeof(struct uverbs_port_facts). Returns the number of
/// ports that were read, which may be more than `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_ports(
    device: Option<&uverbs_device>,
    ports: *mut uverbs_port_facts,
    size: usize,
    room: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let found = require(device, "device")?.device.ports()?;
        // SAFETY: the caller's array has `room` structs of that size.
        unsafe { sized::put_each(found.iter().map(uverbs_port_facts::new), ports, size, room) }
    })
}
