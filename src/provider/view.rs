//! The part of a device that a provider can see.

use std::ffi::CString;
use std::fmt;
use std::sync::OnceLock;

use super::{Match, MatchedBy, glob};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Instance;
use crate::ids::{DeviceNumber, DriverId, Name};
use crate::kernel::Bad;
use crate::pin::Pin;
use crate::record::Record;
use crate::sysfs;

/// A device that is pinned while its provider examines it. Reads through it are of that instance, even if another
/// device has its name and its number by then.
pub struct PinnedView<'a> {
    record: &'a Record,
    pin: &'a Pin,
    driver: Option<DriverId>,
    abi_version: u32,
    modalias: OnceLock<Option<Vec<u8>>>,
}

impl<'a> PinnedView<'a> {
    pub(super) fn new(record: &'a Record, pin: &'a Pin, driver: Option<DriverId>) -> Result<Self> {
        let directory = pin.directory();
        let abi_version =
            sysfs::read_once(record.host.kernel(), directory, c"abi_version", |text| {
                sysfs::parse_decimal(text).ok_or(Bad("not a version"))
            })?;
        Ok(Self { record, pin, driver, abi_version, modalias: OnceLock::new() })
    }

    /// The device's name.
    pub fn name(&self) -> &Name {
        self.pin.name()
    }

    /// The N of its `uverbsN`.
    pub fn uverbs_number(&self) -> u32 {
        self.record.number
    }

    /// The device number of its node.
    pub fn device_number(&self) -> DeviceNumber {
        self.record.device_number
    }

    /// The device's identity among all instances.
    pub fn instance(&self) -> Instance {
        self.record.instance()
    }

    /// The driver; `None` if the kernel does not report it.
    pub fn driver_id(&self) -> Option<DriverId> {
        self.driver
    }

    /// Version of the driver's ABI.
    pub fn abi_version(&self) -> u32 {
        self.abi_version
    }

    /// The modalias of its parent device, such as a PCI function; `None` if the parent has none.
    ///
    /// # Errors
    /// `Os`, `Malformed`; `Removed` if the device is gone.
    pub fn modalias(&self) -> Result<Option<&[u8]>> {
        if let Some(modalias) = self.modalias.get() {
            return Ok(modalias.as_deref());
        }
        let modalias = match self.parent_attribute("modalias") {
            Ok(modalias) => Some(modalias),
            Err(error) if sysfs::is_absent(&error) => {
                self.pin.read_device_number()?;
                None
            }
            Err(error) => return Err(error),
        };
        Ok(self.modalias.get_or_init(|| modalias).as_deref())
    }

    /// Reads an attribute beneath the uverbs directory, such as `abi_version`. Returns at most 4,095 bytes, without
    /// the line feed at the end. `path` must be relative, without an empty, `.` or `..` component. No link is
    /// followed.
    ///
    /// # Errors
    /// `Os` (ENOENT if there is no such attribute, ENODEV if the device is gone). `Malformed` if the value is too
    /// long, or if `path` is not of that form; nothing is opened then.
    pub fn attribute(&self, path: &str) -> Result<Vec<u8>> {
        sysfs::read_bytes(self.record.host.kernel(), self.pin.directory(), &relative(path)?)
    }

    /// Reads an attribute beneath the directory of its parent device, such as `modalias`. Otherwise as
    /// [`attribute`](Self::attribute).
    ///
    /// # Errors
    /// As [`attribute`](Self::attribute).
    pub fn parent_attribute(&self, path: &str) -> Result<Vec<u8>> {
        let path = relative(path)?;
        let (kernel, sys) = (self.record.host.kernel(), self.record.host.sys());
        let parent =
            sysfs::open(kernel, sys, &sysfs::parent_path(&self.record.path)?, sysfs::DIRECTORY)?;
        let value = sysfs::read_bytes(kernel, &parent, &path)?;
        // Once the device is gone, another device may be in the parent's place.
        self.pin.read_device_number()?;
        Ok(value)
    }

    pub(super) fn is_recognised(&self, wanted: &Match, by: MatchedBy) -> Result<bool> {
        Ok(match (wanted, by) {
            (Match::Driver(driver), MatchedBy::Driver) => self.driver == Some(*driver),
            (Match::Name(pattern), MatchedBy::Name) => {
                glob::is_match(pattern.as_bytes(), self.name().as_bytes())
            }
            (Match::Modalias(pattern), MatchedBy::Modalias) => self
                .modalias()?
                .is_some_and(|modalias| glob::is_match(pattern.as_bytes(), modalias)),
            (Match::Pci(vendor, device), MatchedBy::Modalias) => {
                self.modalias()?.and_then(pci_function) == Some((*vendor, *device))
            }
            _ => false,
        })
    }
}

impl fmt::Debug for PinnedView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedView").field("device", &self.record.label()).finish_non_exhaustive()
    }
}

/// Vendor and device number of `pci:v000015B3d00001011sv…` (`drivers/pci/pci-sysfs.c`, `modalias_show`).
fn pci_function(modalias: &[u8]) -> Option<(u16, u16)> {
    let rest = modalias.strip_prefix(b"pci:v0000")?;
    let (vendor, rest) = rest.split_at_checked(4)?;
    let rest = rest.strip_prefix(b"d0000")?;
    let (device, rest) = rest.split_at_checked(4)?;
    rest.starts_with(b"sv").then_some((upper_hex(vendor)?, upper_hex(device)?))
}

fn upper_hex(digits: &[u8]) -> Option<u16> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'F');
    let text = str::from_utf8(digits).ok().filter(|_| digits.iter().all(is_digit))?;
    u16::from_str_radix(text, 16).ok()
}

/// A path that stays beneath the directory it is opened from.
fn relative(path: &str) -> Result<CString> {
    let is_relative = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    CString::new(path).ok().filter(|_| is_relative).ok_or_else(|| {
        let text = format!("\"{}\" does not lead to an attribute", path.escape_default());
        Error::new(ErrorKind::Malformed, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_functions_of_the_kernel() {
        let alias = b"pci:v000015B3d00001017sv000015B3sd00000007bc02sc00i00";
        assert_eq!(pci_function(alias), Some((0x15b3, 0x1017)));
        for other in [
            &b"pci:v000015b3d00001017sv000015B3sd00000007bc02sc00i00"[..],
            b"pci:v000115B3d00001017sv000015B3sd00000007bc02sc00i00",
            b"pci:v000015B3d00001017",
            b"pci:v000015B3d+0001017sv",
            b"pci:v0000",
            b"vmbus:3daf2e8ca732094bab99bd1f1c86b501",
            b"",
        ] {
            assert_eq!(pci_function(other), None, "{}", other.escape_ascii());
        }
    }
}
