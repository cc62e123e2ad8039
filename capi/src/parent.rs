//! The parents of devices.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;

use uverbs::{Bus, FunctionKind, Parent, PciAddress, PciFunction};

use crate::device::uverbs_device;
use crate::entry::run;
use crate::error::uverbs_error;
use crate::fault::require;
use crate::sized::{self, Plain};
use crate::text::{UVERBS_NAME_SIZE, cut};

/// The kernel names no bus.
pub const UVERBS_BUS_UNKNOWN: u32 = 0;
/// PCI.
pub const UVERBS_BUS_PCI: u32 = 1;
/// The auxiliary bus, for parts of a function, such as sub-functions of mlx5.
pub const UVERBS_BUS_AUXILIARY: u32 = 2;
/// Devices of the platform, such as those of a system on a chip.
pub const UVERBS_BUS_PLATFORM: u32 = 3;
/// Hyper-V's bus.
pub const UVERBS_BUS_VMBUS: u32 = 4;
/// No bus: a software device, beneath /sys/devices/virtual.
pub const UVERBS_BUS_VIRTUAL: u32 = 5;
/// Another bus or class. `bus_name` has its name.
pub const UVERBS_BUS_OTHER: u32 = 6;

/// There is no PCI function.
pub const UVERBS_FUNCTION_NONE: u32 = 0;
/// It is neither visibly physical nor visibly virtual. A virtual function that was passed through to a virtual machine
/// looks like this there, and so does a function without SR-IOV.
pub const UVERBS_FUNCTION_UNKNOWN: u32 = 1;
/// A physical function (PF), which can have virtual ones.
pub const UVERBS_FUNCTION_PHYSICAL: u32 = 2;
/// A virtual function (VF).
pub const UVERBS_FUNCTION_VIRTUAL: u32 = 3;

/// Room for a PCI address as text, with its NUL.
pub const UVERBS_PCI_ADDRESS_SIZE: usize = 24;
/// Room for the name of a directory in sysfs: 255 bytes and a NUL.
pub const UVERBS_SYSFS_NAME_SIZE: usize = 256;

/// The address of a PCI function. All of it is zero where there is none.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_pci_address {
    /// The domain, also called segment. It may need more than 16 bits.
    pub domain: u32,
    /// The bus.
    pub bus: u8,
    /// The device on the bus, 0 to 31.
    pub device: u8,
    /// The function of the device, 0 to 7.
    pub function: u8,
    /// Zero.
    pub reserved: u8,
    /// The address as the kernel prints it, such as 0000:3b:00.2; empty where there is none.
    pub text: [c_char; UVERBS_PCI_ADDRESS_SIZE],
}

impl uverbs_pci_address {
    fn new(address: Option<PciAddress>) -> Self {
        let text = address.map(|address| address.to_string()).unwrap_or_default();
        Self {
            domain: address.map_or(0, PciAddress::domain),
            bus: address.map_or(0, PciAddress::bus),
            device: address.map_or(0, PciAddress::device),
            function: address.map_or(0, PciAddress::function),
            reserved: 0,
            text: cut(text.as_bytes()),
        }
    }
}

/// The parent of a verbs device: the device that its driver drives, such as a PCI function. The names may have any
/// bytes but NUL (uverbs_escape).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_parent {
    /// The number of the sub-function, as whoever created it chose it (attribute sfnum); -1 if it is no sub-function.
    pub subfunction: i64,
    /// The number of the virtual function among those of its physical one, counted from 0, as in `ip link set DEV vf
    /// N`; -1 if it is no virtual function, or the number is not known.
    pub vf_number: i64,
    /// The NUMA node; -1 if there is none.
    pub numa_node: i64,
    /// UVERBS_BUS_PCI and so on.
    pub bus: u32,
    /// UVERBS_FUNCTION_PHYSICAL and so on, of `pci`.
    pub function_kind: u32,
    /// The parent where it is a PCI function; the nearest PCI function above it where it is on the auxiliary bus.
    pub pci: uverbs_pci_address,
    /// The physical function of `pci` where that is a virtual one.
    pub physical: uverbs_pci_address,
    /// The number of the vendor of `pci`, 0x15b3 for Mellanox.
    pub vendor_id: u16,
    /// The vendor's number of the kind of device.
    pub device_id: u16,
    /// Zero.
    pub reserved: u32,
    /// The name of the bus, such as pci, as the kernel has it, cut to 63 bytes; "virtual" for a software device; empty
    /// if the kernel names none.
    pub bus_name: [c_char; UVERBS_NAME_SIZE],
    /// The name on the bus, such as 0000:3b:00.2, mlx5_core.sf.4, or a GUID on vmbus, cut to 255 bytes; empty for a
    /// software device. The number in the name of an auxiliary device is not that of the sub-function.
    pub name: [c_char; UVERBS_SYSFS_NAME_SIZE],
}

// SAFETY: numbers, in the order of their size, and texts, 424 bytes.
unsafe impl Plain for uverbs_parent {}

impl uverbs_parent {
    fn new(parent: &Parent) -> Self {
        let function = parent.function.as_ref();
        let (function_kind, physical, vf_number) = match function.map(|function| function.kind) {
            None => (UVERBS_FUNCTION_NONE, None, None),
            Some(FunctionKind::Physical) => (UVERBS_FUNCTION_PHYSICAL, None, None),
            Some(FunctionKind::Virtual { physical, number, .. }) => {
                (UVERBS_FUNCTION_VIRTUAL, Some(physical), number)
            }
            Some(_) => (UVERBS_FUNCTION_UNKNOWN, None, None),
        };
        let id = |id: fn(&PciFunction) -> u16| function.map_or(0, id);
        let number = |number: Option<u32>| number.map_or(-1, i64::from);
        Self {
            subfunction: number(parent.subfunction),
            vf_number: number(vf_number),
            numa_node: number(parent.numa_node),
            bus: bus_of(&parent.bus),
            function_kind,
            pci: uverbs_pci_address::new(parent.pci_address()),
            physical: uverbs_pci_address::new(physical),
            vendor_id: id(|function| function.vendor_id),
            device_id: id(|function| function.device_id),
            reserved: 0,
            bus_name: cut(parent.bus.name().as_ref().map_or(&[], |name| name.as_bytes())),
            name: cut(parent.name.as_ref().map_or(&[], |name| name.as_bytes())),
        }
    }
}

fn bus_of(bus: &Bus) -> u32 {
    match bus {
        Bus::Pci => UVERBS_BUS_PCI,
        Bus::Auxiliary => UVERBS_BUS_AUXILIARY,
        Bus::Platform => UVERBS_BUS_PLATFORM,
        Bus::Vmbus => UVERBS_BUS_VMBUS,
        Bus::Virtual => UVERBS_BUS_VIRTUAL,
        Bus::Unknown => UVERBS_BUS_UNKNOWN,
        // A bus that this interface has no number for.
        _ => UVERBS_BUS_OTHER,
    }
}

/// Reads which device it belongs to: bus, name, PCI function, SR-IOV and NUMA node. They are read in sysfs each time.
/// One PCI function may have several verbs devices, so an address is no identity. `size` is sizeof(struct
/// uverbs_parent).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_device_parent(
    device: Option<&uverbs_device>,
    parent: *mut uverbs_parent,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let found = uverbs_parent::new(&require(device, "device")?.device.parent()?);
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, parent, size) }?;
        Ok(0)
    })
}
