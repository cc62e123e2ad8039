//! A list of devices, and lookups in it.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Range;
use std::sync::Arc;

use super::{Entry, is_gone};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{Guid, Name, PciAddress};

/// How many devices an error message names.
const NAMED: usize = 5;

/// The devices that one look at the host found, ordered by uverbs number, with the names that they had then. The
/// list does not change, and the devices outlive it.
///
/// A [`Device`] is a handle on the current device: its [`name`](Device::name) follows a rename that a later list or
/// an open has found. [`by_name`](Self::by_name) does not follow it: it finds a device by the name that it had in
/// this list.
///
/// ```no_run
/// use uverbs::{Guid, Host, Registry};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let devices = Registry::new(Host::open()?).devices()?;
/// let by_name = devices.by_name("mlx5_0")?;
/// let by_guid = devices.by_guid("0002:c903:0005:1234".parse()?)?;
/// let first = devices.get(0);
/// for device in devices {
///     println!("{device}");
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors of the lookups
/// `NotFound` names up to five devices of the list, `Ambiguous` up to five of the matches.
#[derive(Clone, Default)]
pub struct Devices {
    pub(super) devices: Arc<[Device]>,
    /// Their names in this list, in the same order.
    names: Arc<[Name]>,
    faults: Arc<[Arc<Error>]>,
    /// Devices that are known to be there and could not be read, which therefore are not listed, with their last
    /// names. Ordered by number.
    pub(super) unlisted: Arc<[(Device, Name)]>,
}

impl Devices {
    pub(super) fn of(entries: &[Entry]) -> Self {
        let listed = || entries.iter().filter_map(Entry::listed);
        let devices: Arc<[_]> = listed().map(|seen| seen.device.clone()).collect();
        let faults = entries.iter().filter_map(|entry| entry.fault.as_ref());
        let unlisted =
            entries.iter().filter_map(|entry| entry.fault.as_ref().and(entry.seen.as_ref()));
        Self {
            unlisted: unlisted.map(|seen| (seen.device.clone(), seen.name.clone())).collect(),
            names: listed().map(|seen| seen.name.clone()).collect(),
            faults: faults.cloned().collect(),
            devices,
        }
    }

    /// Every device that is there, also those that are not listed, with its name in this list. Ordered by number.
    pub(super) fn present(&self) -> impl Iterator<Item = (&Device, &Name)> {
        let mut unlisted = self.unlisted.iter().map(|(device, name)| (device, name)).peekable();
        let mut listed = self.devices.iter().zip(&*self.names).peekable();
        std::iter::from_fn(move || match (listed.peek(), unlisted.peek()) {
            (Some((a, _)), Some((b, _))) if b.uverbs_number() < a.uverbs_number() => {
                unlisted.next()
            }
            (Some(_), _) => listed.next(),
            (None, _) => unlisted.next(),
        })
    }

    /// The devices.
    pub fn iter(&self) -> std::slice::Iter<'_, Device> {
        self.devices.iter()
    }

    /// The devices as a slice, ordered by uverbs number.
    pub fn as_slice(&self) -> &[Device] {
        &self.devices
    }

    /// The device at that position in the list, counted from 0. The position is neither its uverbs number nor its
    /// index in netlink.
    pub fn get(&self, place: usize) -> Option<&Device> {
        self.devices.get(place)
    }

    /// The number of devices.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The error of each device that could not be read and is missing from the list.
    pub fn faults(&self) -> impl Iterator<Item = &Error> {
        self.faults.iter().map(|error| &**error)
    }

    /// The device that had that name in this list. The name may be a `&str`, a [`Name`], or any bytes. It is
    /// compared byte by byte, so an escaped name matches nothing.
    ///
    /// # Errors
    /// `NotFound`; `Ambiguous` if two devices have it (Linux 7.3 keeps names unique only within a namespace).
    #[doc(alias = "ibv_get_device_name")]
    pub fn by_name(&self, name: impl AsRef<[u8]>) -> Result<Device> {
        let name = name.as_ref();
        let wanted = format_args!("\"{}\"", name.escape_ascii());
        self.only_one(&wanted, |_, known| known.as_bytes() == name)
    }

    /// The device `uverbsN`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn by_uverbs_number(&self, number: u32) -> Result<Device> {
        self.by(format_args!("uverbs{number}"), |device| device.uverbs_number() == number)
    }

    /// The device that has this index in RDMA netlink. Takes two requests to netlink, or none if the device's index
    /// is known already. [`Registry::by_index`](crate::Registry::by_index) finds it without a list.
    ///
    /// # Errors
    /// `NotFound`, also if the index belongs to a device that was added after this list. `NetlinkUnavailable`,
    /// `Os`, `PermissionDenied`, `Malformed`.
    #[doc(alias = "ibv_get_device_index")]
    pub fn by_index(&self, index: u32) -> Result<Device> {
        let known =
            |device: &&Device| device.0.joined.get().is_some_and(|joined| joined.index == index);
        if let Some(device) = self.iter().find(known) {
            return Ok(device.clone());
        }
        let wanted = format_args!("index {index}");
        let Some(host) = self.get(0).map(|device| &device.0.host) else {
            return Err(self.not_found(&wanted));
        };
        let socket = host.netlink()?;
        if let Some(chardev) = socket.chardev(index)? {
            let number = chardev.dev.into();
            for device in self.iter().filter(|device| device.device_number() == number) {
                match device.pin().and_then(|pin| device.has_index(&pin, &socket, index)) {
                    Ok(true) => return Ok(device.clone()),
                    Err(error) if !is_gone(&error) => return Err(error),
                    Ok(false) | Err(_) => {}
                }
            }
        }
        Err(self.not_found(&wanted))
    }

    /// The device with that node GUID. The kernel has no lookup by GUID, so this queries each device of the list
    /// over RDMA netlink ([`Device::query`]). With many devices that takes milliseconds: keep the device instead of
    /// looking it up again. Devices that are gone are skipped.
    ///
    /// A GUID is not an identity: several devices may have the same one, or 0.
    ///
    /// # Errors
    /// `NotFound`; `Ambiguous` if several devices have it; `NetlinkUnavailable`. If no device has it and the query
    /// of one failed, the error of that query.
    #[doc(alias = "ibv_get_device_guid")]
    pub fn by_guid(&self, guid: Guid) -> Result<Device> {
        let wanted = format_args!("GUID {guid}");
        let Some(host) = self.get(0).map(|device| &device.0.host) else {
            return Err(self.not_found(&wanted));
        };
        let socket = host.netlink()?;
        let mut silent = None;
        let found = self.by(wanted, |device| match device.query_through(|| Ok(socket.clone())) {
            Ok(facts) => facts.node_guid == guid,
            Err(error) => {
                if !is_gone(&error) {
                    silent.get_or_insert(error);
                }
                false
            }
        });
        match (found, silent) {
            (Err(error), Some(silent)) if error.kind() == ErrorKind::NotFound => Err(silent),
            (found, _) => found,
        }
    }

    /// The device of the PCI function at that address: the one whose parent is the function, or is a sub-function or
    /// another part of it on the auxiliary bus ([`Parent::pci_address`](crate::Parent::pci_address)). Reads the parents
    /// of the devices whose directory is beneath that of the function, and no others.
    ///
    /// An address is not an identity: a function may have several devices, and after a hot plug it may be another
    /// function's. Devices that are gone are skipped.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let devices = uverbs::Registry::new(uverbs::Host::open()?).devices()?;
    /// let context = devices.by_pci("0000:3b:00.2".parse()?)?.open()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `NotFound`; `Ambiguous` if the function has several devices. If the parent of a device beneath the function
    /// cannot be read, the error of [`Device::parent`], because that device may be another match.
    pub fn by_pci(&self, address: PciAddress) -> Result<Device> {
        let found = self.all_by_pci(address)?;
        self.by(format_args!("PCI address {address}"), |device| found.contains(device))
    }

    /// All devices of the PCI function at that address, in the order of the list; otherwise as
    /// [`by_pci`](Self::by_pci). [`Parent::subfunction`](crate::Parent::subfunction) distinguishes sub-functions.
    ///
    /// # Errors
    /// If the parent of a device beneath the function cannot be read, the error of [`Device::parent`].
    pub fn all_by_pci(&self, address: PciAddress) -> Result<Vec<Device>> {
        let mut found = Vec::new();
        for device in self.iter().filter(|device| device.is_beneath(address)) {
            match device.parent() {
                Ok(parent) if parent.pci_address() == Some(address) => found.push(device.clone()),
                Err(error) if !is_gone(&error) => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(found)
    }

    /// The only device that satisfies a condition. Errors show `wanted` as the condition's text.
    ///
    /// # Errors
    /// `NotFound`, `Ambiguous`.
    pub fn by(
        &self,
        wanted: impl fmt::Display,
        mut matches: impl FnMut(&&Device) -> bool,
    ) -> Result<Device> {
        self.only_one(&wanted, |device, _| matches(&device))
    }

    fn only_one(
        &self,
        wanted: &dyn fmt::Display,
        mut matches: impl FnMut(&Device, &Name) -> bool,
    ) -> Result<Device> {
        let listed = self.iter().zip(&*self.names);
        let found: Vec<_> = listed.filter(|(device, name)| matches(device, name)).collect();
        match found[..] {
            [] => Err(self.not_found(wanted)),
            [(device, _)] => Ok(device.clone()),
            _ => {
                let text = format!("{wanted}: {}", names(found.iter().copied()));
                Err(Error::new(ErrorKind::Ambiguous, text))
            }
        }
    }

    fn not_found(&self, wanted: &dyn fmt::Display) -> Error {
        let text = match self.len() {
            0 => format!("{wanted} is not listed; the list is empty"),
            _ => {
                format!("{wanted} is not listed; listed: {}", names(self.iter().zip(&*self.names)))
            }
        };
        Error::new(ErrorKind::NotFound, text)
    }
}

/// The names of up to five of these, and the number of the others.
fn names<'a>(of: impl ExactSizeIterator<Item = (&'a Device, &'a Name)>) -> String {
    let more = of.len().saturating_sub(NAMED);
    let of =
        of.take(NAMED).map(|(device, name)| format!("{name} (uverbs{})", device.uverbs_number()));
    let mut text = of.collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

impl<'a> IntoIterator for &'a Devices {
    type Item = &'a Device;
    type IntoIter = std::slice::Iter<'a, Device>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Devices {
    type Item = Device;
    type IntoIter = DevicesIntoIter;

    fn into_iter(self) -> DevicesIntoIter {
        DevicesIntoIter { left: 0..self.len(), devices: self.devices }
    }
}

/// Iterator over the devices of a list ([`Devices::into_iter`]).
#[derive(Clone)]
pub struct DevicesIntoIter {
    devices: Arc<[Device]>,
    left: Range<usize>,
}

impl Iterator for DevicesIntoIter {
    type Item = Device;

    fn next(&mut self) -> Option<Device> {
        self.left.next().map(|at| self.devices[at].clone())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.left.size_hint()
    }
}

impl DoubleEndedIterator for DevicesIntoIter {
    fn next_back(&mut self) -> Option<Device> {
        self.left.next_back().map(|at| self.devices[at].clone())
    }
}

impl ExactSizeIterator for DevicesIntoIter {}
impl FusedIterator for DevicesIntoIter {}

impl fmt::Debug for DevicesIntoIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.devices[self.left.clone()]).finish()
    }
}

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
