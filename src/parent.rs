//! The parent of a verbs device: the device that its driver drives, such as a PCI function.
//!
//! The parent's directory is part of the path of the uverbs directory. It can neither go nor be moved as long as the
//! uverbs directory lives beneath it, so what is read there between two signs of life is of this device's parent.

use std::ffi::{CStr, CString};
use std::fmt;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::ids::{Name, PciAddress};
use crate::kernel::{Bad, Handle, Kernel};
use crate::pin;
use crate::sysfs;

/// The parent of a verbs device in sysfs: the device that its driver drives ([`Device::parent`]).
///
/// With the feature `serde`, a [`Bus`] is its name, and [`FunctionKind`] is `"physical"`, `{"virtual": {"physical":
/// "0000:3b:00.0", "number": 0}}` or `"unknown"`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Parent {
    /// Its bus: the target of the link `subsystem`.
    pub bus: Bus,
    /// Its name on the bus, such as `0000:3b:00.2`, `mlx5_core.sf.4`, or a GUID on vmbus. `None` for virtual devices,
    /// which have no parent. The number in an auxiliary device's name is a counter of the kernel's, and not the number
    /// of the sub-function.
    pub name: Option<Name>,
    /// The number of the sub-function, as whoever created it chose it (attribute `sfnum`). `None` for devices other
    /// than auxiliary ones of mlx5.
    pub subfunction: Option<u32>,
    /// The parent where it is a PCI function; the nearest PCI function above it where it is on the auxiliary bus.
    pub function: Option<PciFunction>,
    /// The NUMA node, of the nearest device from the parent upwards that has the attribute `numa_node`. `None` if that
    /// one has no node (-1), or there is no such device.
    pub numa_node: Option<u32>,
}

/// The bus of a device. It prints as the kernel names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bus {
    /// PCI.
    Pci,
    /// The auxiliary bus, for parts of a function, such as sub-functions of mlx5.
    Auxiliary,
    /// Devices of the platform, such as those of a system on a chip.
    Platform,
    /// Hyper-V's bus.
    Vmbus,
    /// None: a software device, beneath `/sys/devices/virtual`.
    Virtual,
    /// Another bus or class.
    Other(Name),
    /// The kernel names none.
    Unknown,
}

/// A PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PciFunction {
    /// Its address.
    pub address: PciAddress,
    /// The vendor's number (attribute `vendor`), 0x15b3 for Mellanox.
    pub vendor_id: u16,
    /// The vendor's number of the kind of device (attribute `device`).
    pub device_id: u16,
    /// Whether it is virtual.
    pub kind: FunctionKind,
}

/// What a PCI function is to SR-IOV.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum FunctionKind {
    /// A physical function (PF), which can have virtual ones: it has the attribute `sriov_totalvfs`.
    Physical,
    /// A virtual function (VF): it has the link `physfn`.
    #[non_exhaustive]
    Virtual {
        /// The address of its physical function.
        physical: PciAddress,
        /// Its number among those of the physical function, counted from 0, as in `ip link set DEV vf N`. It is
        /// computed from the two addresses and the attributes `sriov_offset` and `sriov_stride` of the physical
        /// function. `None` if the link `virtfnN` of the physical function does not lead back here, or the
        /// physical function cannot be seen.
        number: Option<u32>,
    },
    /// Neither is visible. A virtual function that was passed through to a virtual machine looks like this there, and
    /// so does a function without SR-IOV.
    Unknown,
}

/// Where a device is: the part of its [`Parent`] that a list shows ([`Summary`](crate::Summary)).
///
/// A parent with a name such as `0000:3b:00.2` is taken for a PCI function, as no other bus has such names. Of it the NUMA
/// node alone is read, so an attribute that [`Device::parent`] refuses may go unnoticed here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Place {
    /// The address of the PCI function, as [`Parent::function`] has it.
    pub pci: Option<PciAddress>,
    /// The number of the sub-function, as [`Parent::subfunction`].
    pub subfunction: Option<u32>,
    /// The NUMA node, as [`Parent::numa_node`].
    pub numa_node: Option<u32>,
}

impl Place {
    /// Reads the place of the uverbs device with that path. It counts if the device turns out to have been alive from
    /// before until after.
    pub(crate) fn read(host: &Host, uverbs: &CStr) -> Result<Self> {
        let path = sysfs::parent_path(uverbs)?;
        if *path == *VIRTUAL {
            return Ok(Self::of(&Parent::of_virtual()));
        }
        let (kernel, sys) = (host.kernel(), host.sys());
        match address(last(&path)) {
            Some(address) => {
                let numa_node = numa_node(kernel, sys, &path)?;
                Ok(Self { pci: Some(address), subfunction: None, numa_node })
            }
            None => Ok(Self::of(&Directory::open(kernel, sys, path)?.read()?)),
        }
    }

    fn of(parent: &Parent) -> Self {
        let Parent { subfunction, numa_node, .. } = *parent;
        Self { pci: parent.pci_address(), subfunction, numa_node }
    }
}

impl Parent {
    /// The address of [`function`](Self::function).
    pub fn pci_address(&self) -> Option<PciAddress> {
        self.function.map(|function| function.address)
    }
}

impl Bus {
    /// Its name, as the kernel has it. That of a virtual device is `virtual`, and an unknown one has none.
    pub fn name(&self) -> Option<Name> {
        Some(match self {
            Self::Other(name) => name.clone(),
            Self::Unknown => return None,
            known => Name::new(known.to_string().as_bytes()),
        })
    }

    /// The target of a link `subsystem`: `../../../bus/pci`, or `…/class/NAME` of a device of a class.
    fn parse(link: &[u8]) -> std::result::Result<Self, Bad> {
        let mut path = link;
        while let Some(rest) = path.strip_prefix(b"../") {
            path = rest;
        }
        let (is_bus, name) = match (path.strip_prefix(b"bus/"), path.strip_prefix(b"class/")) {
            (Some(name), _) => (true, name),
            (_, Some(name)) => (false, name),
            _ => return Err(Bad("a link that leads neither to a bus nor to a class")),
        };
        Ok(match name {
            b"pci" if is_bus => Self::Pci,
            b"auxiliary" if is_bus => Self::Auxiliary,
            b"platform" if is_bus => Self::Platform,
            b"vmbus" if is_bus => Self::Vmbus,
            b"" | b"." | b".." => return Err(Bad("a link without a name")),
            name if name.contains(&b'/') => return Err(Bad("a link with a path in it")),
            name => Self::Other(Name::new(name)),
        })
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pci => f.pad("pci"),
            Self::Auxiliary => f.pad("auxiliary"),
            Self::Platform => f.pad("platform"),
            Self::Vmbus => f.pad("vmbus"),
            Self::Virtual => f.pad("virtual"),
            Self::Other(name) => name.fmt(f),
            Self::Unknown => f.pad("unknown"),
        }
    }
}

impl Device {
    /// Reads which device it belongs to: bus, name, PCI function, SR-IOV and NUMA node.
    ///
    /// The attributes are read in sysfs each time, beneath the parent's directory, while the verbs device is pinned. A
    /// list reads none of them. One PCI function may have several verbs devices, such as sub-functions, so an address
    /// is no identity. For a software device there is nothing to read, and no system call is made.
    ///
    /// Sources: `Documentation/ABI/testing/sysfs-bus-pci` and `Documentation/ABI/testing/sysfs-devices` in the kernel,
    /// `drivers/pci/iov.c`.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// for device in &registry.devices()? {
    ///     let parent = device.parent()?;
    ///     match parent.pci_address() {
    ///         Some(address) => println!("{device}: {address} on node {:?}", parent.numa_node),
    ///         None => println!("{device}: {}", parent.bus),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `Removed` or `Replaced` when the device is gone. `Malformed` if an attribute is not what the kernel writes, and
    /// `Os` or `PermissionDenied` if one cannot be read; the error names it.
    pub fn parent(&self) -> Result<Parent> {
        let record = self.record();
        let read = || {
            let path = sysfs::parent_path(&record.path)?;
            if *path == *VIRTUAL {
                // There is nothing to read.
                return pin::known(record).map(|()| Parent::of_virtual());
            }
            let pinned = pin::hold(record)?;
            let found = Directory::open(record.host.kernel(), record.host.sys(), path)?.read()?;
            // Once the device is gone, another one may be in the parent's place.
            pinned.read_device_number()?;
            Ok(found)
        };
        read().map_err(|error: Error| record.explain(error))
    }

    /// Reads where it is while it is held.
    pub(crate) fn place(&self) -> Result<Place> {
        let record = self.record();
        let read = || {
            if *sysfs::parent_path(&record.path)? == *VIRTUAL {
                pin::known(record)?;
                return Place::read(&record.host, &record.path);
            }
            let held = pin::hold(record)?;
            let place = Place::read(&record.host, &record.path)?;
            held.read_device_number()?;
            Ok(place)
        };
        read().map_err(|error: Error| record.explain(error))
    }

    /// Whether its directory is beneath that of this PCI function. Makes no system call.
    pub(crate) fn is_beneath(&self, address: PciAddress) -> bool {
        let name = address.to_string();
        self.record()
            .path
            .to_bytes()
            .split(|byte| *byte == b'/')
            .any(|part| part == name.as_bytes())
    }
}

impl Parent {
    fn of_virtual() -> Self {
        let (bus, name, subfunction, function, numa_node) = (Bus::Virtual, None, None, None, None);
        Self { bus, name, subfunction, function, numa_node }
    }
}

/// The directory of a device beneath `devices`.
struct Directory<'a> {
    kernel: &'a Kernel,
    sys: &'a Handle,
    /// Relative to /sys, without an empty, `.` or `..` component.
    path: CString,
    handle: Handle,
}

/// The path of software devices, relative to /sys.
const VIRTUAL: &CStr = c"devices/virtual";

impl<'a> Directory<'a> {
    fn open(kernel: &'a Kernel, sys: &'a Handle, path: CString) -> Result<Self> {
        let handle = sysfs::open(kernel, sys, &path, sysfs::DIRECTORY)?;
        Ok(Self { kernel, sys, path, handle })
    }

    /// The directory above; `None` at `devices`.
    fn open_above(&self) -> Result<Option<Self>> {
        above(self.path.to_bytes())
            .map(|path| Self::open(self.kernel, self.sys, c_path(path)?))
            .transpose()
    }

    fn name(&self) -> &[u8] {
        last(&self.path)
    }

    /// The number in an attribute; `None` if there is no such attribute.
    fn number<T>(
        &self,
        name: &CStr,
        parse: impl FnOnce(&[u8]) -> std::result::Result<T, Bad>,
    ) -> Result<Option<T>> {
        sysfs::read_optional(self.kernel, &self.handle, name, parse)
    }

    fn link(&self, name: &CStr) -> Result<Option<Vec<u8>>> {
        sysfs::read_link(self.kernel, &self.handle, name)
    }

    /// The path that a link of the directory leads to, relative to /sys.
    fn target(&self, name: &CStr) -> Result<Option<CString>> {
        let target = |text: Vec<u8>| {
            resolve(self.path.to_bytes(), &text).map_err(|bad| sysfs::malformed_link(name, bad))
        };
        self.link(name)?.map(target).transpose()
    }

    fn bus(&self) -> Result<Bus> {
        const SUBSYSTEM: &CStr = c"subsystem";
        match self.link(SUBSYSTEM)? {
            Some(text) => Bus::parse(&text).map_err(|bad| sysfs::malformed_link(SUBSYSTEM, bad)),
            None => Ok(Bus::Unknown),
        }
    }

    fn read(self) -> Result<Parent> {
        let bus = self.bus()?;
        let function = match bus {
            Bus::Pci => Some(self.function()?),
            Bus::Auxiliary => self.function_above()?,
            _ => None,
        };
        let subfunction = match bus {
            Bus::Auxiliary => self.number(c"sfnum", unsigned)?,
            _ => None,
        };
        let name = Some(Name::new(self.name()));
        let numa_node = numa_node(self.kernel, self.sys, &self.path)?;
        Ok(Parent { bus, name, subfunction, function, numa_node })
    }

    /// The nearest PCI function above.
    fn function_above(&self) -> Result<Option<PciFunction>> {
        let mut next = self.open_above()?;
        while let Some(directory) = next {
            if directory.bus()? == Bus::Pci {
                return directory.function().map(Some);
            }
            next = directory.open_above()?;
        }
        Ok(None)
    }

    fn function(&self) -> Result<PciFunction> {
        let address = address(self.name()).ok_or_else(|| {
            let name = self.name().escape_ascii();
            Error::new(ErrorKind::Malformed, format!("\"{name}\" is not a PCI address"))
        })?;
        let [vendor_id, device_id] = [c"vendor", c"device"]
            .map(|name| sysfs::read_once(self.kernel, &self.handle, name, sysfs::parse_pci_id));
        let kind = self.kind(address)?;
        Ok(PciFunction { address, vendor_id: vendor_id?, device_id: device_id?, kind })
    }

    fn kind(&self, own: PciAddress) -> Result<FunctionKind> {
        const PHYSFN: &CStr = c"physfn";
        let Some(path) = self.target(PHYSFN)? else {
            return Ok(match self.number(c"sriov_totalvfs", unsigned)? {
                Some(_) => FunctionKind::Physical,
                None => FunctionKind::Unknown,
            });
        };
        let physical =
            address(last(&path)).filter(|physical| *physical != own).ok_or_else(|| {
                sysfs::malformed_link(PHYSFN, Bad("a link that leads to no other PCI function"))
            })?;
        let number = match Self::open(self.kernel, self.sys, path) {
            Ok(directory) => directory.number_of(physical, own, &self.path)?,
            Err(error) if sysfs::is_absent(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(FunctionKind::Virtual { physical, number })
    }

    /// The number of a virtual function of this physical one.
    fn number_of(&self, own: PciAddress, of: PciAddress, path: &CStr) -> Result<Option<u32>> {
        let offset = self.number(c"sriov_offset", routing_part)?;
        let stride = self.number(c"sriov_stride", routing_part)?;
        let (Some(offset), Some(stride)) = (offset, stride) else { return Ok(None) };
        let Some(number) = vf_number(own, of, offset, stride) else { return Ok(None) };
        let link = c_path(format!("virtfn{number}").as_bytes())?;
        Ok(self.target(&link)?.filter(|target| **target == *path).map(|_| number))
    }
}

/// The node of the nearest device with one, from that of the path upwards.
fn numa_node(kernel: &Kernel, sys: &Handle, path: &CStr) -> Result<Option<u32>> {
    let mut next = Some(path.to_bytes());
    while let Some(path) = next {
        let attribute = c_path(&[path, b"/", NUMA_NODE.to_bytes()].concat())?;
        if let Some(node) = sysfs::read_optional(kernel, sys, &attribute, parse_numa_node)? {
            return Ok(node);
        }
        next = above(path);
    }
    Ok(None)
}

/// The last component of a path.
fn last(path: &CStr) -> &[u8] {
    path.to_bytes().rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

const NUMA_NODE: &CStr = c"numa_node";

/// The path of the directory above, beneath `devices`.
fn above(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().rposition(|byte| *byte == b'/')?;
    Some(&path[..end]).filter(|above| above.contains(&b'/'))
}

fn c_path(path: &[u8]) -> Result<CString> {
    CString::new(path).map_err(|_| Error::new(ErrorKind::Malformed, "a path with a NUL in it"))
}

/// The address that is the name of a directory, if the kernel writes it so.
fn address(name: &[u8]) -> Option<PciAddress> {
    let text = str::from_utf8(name).ok()?;
    text.parse().ok().filter(|address: &PciAddress| address.to_string() == text)
}

/// Where the text of a link in `directory` leads, without following anything. It has to stay beneath `devices`.
fn resolve(directory: &[u8], text: &[u8]) -> std::result::Result<CString, Bad> {
    let mut path: Vec<&[u8]> = directory.split(|byte| *byte == b'/').collect();
    let mut is_above = true;
    for part in text.split(|byte| *byte == b'/') {
        match part {
            b".." if is_above && path.len() > 1 => drop(path.pop()),
            b"" | b"." | b".." => return Err(Bad("a link that does not lead to devices/")),
            name => {
                is_above = false;
                path.push(name);
            }
        }
    }
    if is_above {
        return Err(Bad("a link that leads to no device"));
    }
    CString::new(path.join(&b'/')).map_err(|_| Bad("a link with a NUL in it"))
}

fn unsigned(text: &[u8]) -> std::result::Result<u32, Bad> {
    sysfs::parse_decimal(text).ok_or(Bad("not a number"))
}

/// `sriov_offset` and `sriov_stride`: 16 bits of the capability.
fn routing_part(text: &[u8]) -> std::result::Result<u16, Bad> {
    let number = sysfs::parse_decimal(text).and_then(|number| u16::try_from(number).ok());
    number.ok_or(Bad("not a number of 16 bits"))
}

/// `numa_node`: a node, or -1 for none.
fn parse_numa_node(text: &[u8]) -> std::result::Result<Option<u32>, Bad> {
    if text == b"-1" {
        return Ok(None);
    }
    // The kernel's nodes are an int.
    let node = sysfs::parse_decimal(text).filter(|node| i32::try_from(*node).is_ok());
    node.map(Some).ok_or(Bad("not a NUMA node"))
}

/// The number of a virtual function: its routing ID is that of the physical function, plus the offset, plus so many
/// strides (`pci_iov_virtfn_bus`, `drivers/pci/iov.c`). With one virtual function the stride may be 0.
fn vf_number(pf: PciAddress, vf: PciAddress, offset: u16, stride: u16) -> Option<u32> {
    if pf.domain() != vf.domain() {
        return None;
    }
    let first = u32::from(pf.routing_id()) + u32::from(offset);
    let far = u32::from(vf.routing_id()).checked_sub(first)?;
    match (far, u32::from(stride)) {
        (0, _) => Some(0),
        (_, 0) => None,
        (far, stride) => (far % stride == 0).then_some(far / stride),
    }
}

#[cfg(test)]
mod tests;
