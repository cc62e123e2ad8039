//! Finding a device's provider, and keeping it for as long as anybody has the device.

use std::cell::OnceCell;
use std::ffi::CString;
use std::fmt;
use std::sync::Arc;

use super::{
    Allocation, Match, MatchedBy, Provider, ProviderInfo, ProviderState, builtin, data_of, glob,
};
use crate::attr;
use crate::device::Record;
use crate::driver::DriverId;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Instance;
use crate::kernel::rdma::Bad;
use crate::name::{DeviceNumber, Name};
use crate::open::Pin;

/// The providers that a program registered, in that order.
#[derive(Default)]
pub(crate) struct Providers(Vec<Arc<dyn Provider>>);

impl Providers {
    pub(crate) fn new(providers: impl IntoIterator<Item = Arc<dyn Provider>>) -> Self {
        Self(providers.into_iter().collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The provider of a device: by driver id, else by name, else by modalias.
    fn find(&self, view: &PinnedView<'_>) -> Result<Option<(Found, MatchedBy)>> {
        for by in [MatchedBy::Driver, MatchedBy::Name, MatchedBy::Modalias] {
            for provider in &self.0 {
                for wanted in provider.matches() {
                    if view.is_recognised(wanted, by)? {
                        return Ok(Some((Found::Registered(provider.clone()), by)));
                    }
                }
            }
            for provider in &builtin::ALL {
                for wanted in provider.matches() {
                    if view.is_recognised(&wanted, by)? {
                        return Ok(Some((Found::BuiltIn(provider), by)));
                    }
                }
            }
        }
        Ok(None)
    }
}

enum Found {
    BuiltIn(&'static builtin::BuiltIn),
    Registered(Arc<dyn Provider>),
}

impl Found {
    fn name(&self) -> &str {
        match self {
            Self::BuiltIn(provider) => provider.name,
            Self::Registered(provider) => provider.name(),
        }
    }
}

/// A device's provider, and what that keeps for it. It is let go of with the device's record.
pub(crate) struct Provided {
    found: Option<Found>,
    info: ProviderInfo,
    /// Of a registered provider whose `init` was called.
    state: Option<Result<ProviderState>>,
}

impl Provided {
    /// Looks for it, and has it set up.
    pub(crate) fn find(record: &Record, pin: &Pin, driver: Option<DriverId>) -> Result<Self> {
        let view = PinnedView::new(record, pin, driver)?;
        let found = record.providers.find(&view)?;
        // Alive after all was read: it was this device's.
        pin.read_device_number()?;
        let abi_versions = match &found {
            None => 0..=u32::MAX,
            Some((Found::BuiltIn(provider), _)) => provider.abi_versions.clone(),
            Some((Found::Registered(provider), _)) => provider.abi_versions(),
        };
        let info = ProviderInfo {
            provider: found.as_ref().map(|(found, by)| (found.name().to_owned(), *by)),
            abi_version: view.abi_version,
            abi_versions,
        };
        let found = found.map(|(found, _)| found);
        let state = match &found {
            Some(Found::Registered(provider)) if info.is_abi_known() => Some(provider.init(&view)),
            _ => None,
        };
        if let Some(Err(error)) = &state {
            tracing::warn!(device = record.label(), %error, "its provider cannot be set up");
        }
        Ok(Self { found, info, state })
    }

    pub(crate) fn info(&self) -> &ProviderInfo {
        &self.info
    }

    /// The driver that a device is of whose driver id the kernel does not tell.
    pub(crate) fn driver(&self) -> Option<DriverId> {
        match &self.found {
            Some(Found::BuiltIn(provider)) => Some(provider.driver),
            _ => None,
        }
    }

    /// Whether the device can be opened.
    ///
    /// # Errors
    /// AbiMismatch; what `init` said.
    pub(crate) fn require_usable(&self) -> Result<()> {
        let ProviderInfo { provider, abi_version, abi_versions } = &self.info;
        let Some((name, _)) = provider else { return Ok(()) };
        if !self.info.is_abi_known() {
            let (from, to) = (abi_versions.start(), abi_versions.end());
            let text =
                format!("the driver's is {abi_version}, the provider {name} has {from} to {to}");
            return Err(Error::new(ErrorKind::AbiMismatch, text));
        }
        match &self.state {
            Some(Err(error)) => Err(Error::new(
                error.kind(),
                format!("its provider {name} was not set up: {error}"),
            )),
            _ => Ok(()),
        }
    }

    /// What GET_CONTEXT is given.
    pub(crate) fn prepare(
        &self,
        record: &Record,
        pin: &Pin,
        driver: DriverId,
    ) -> Result<Allocation> {
        if let (Some(Found::Registered(provider)), Some(Ok(state))) = (&self.found, &self.state) {
            let view = PinnedView::new(record, pin, Some(driver))?;
            return provider.prepare(&view, state);
        }
        let data = data_of(driver);
        Ok(Allocation::new(data.input, data.output_len))
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        if let (Some(Found::Registered(provider)), Some(Ok(state))) =
            (&self.found, self.state.take())
        {
            provider.teardown(state);
        }
    }
}

impl fmt::Debug for Provided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

/// A device that is held in place while its provider looks at it.
pub struct PinnedView<'a> {
    record: &'a Record,
    pin: &'a Pin,
    driver: Option<DriverId>,
    abi_version: u32,
    modalias: OnceCell<Option<Vec<u8>>>,
}

impl<'a> PinnedView<'a> {
    fn new(record: &'a Record, pin: &'a Pin, driver: Option<DriverId>) -> Result<Self> {
        let directory = pin.directory();
        let abi_version =
            attr::read_once(record.host.kernel(), directory, c"abi_version", |text| {
                attr::parse_decimal(text).ok_or(Bad("not a version"))
            })?;
        Ok(Self { record, pin, driver, abi_version, modalias: OnceCell::new() })
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

    /// What tells it from every other device.
    pub fn instance(&self) -> Instance {
        self.record.instance()
    }

    /// The driver; none where the kernel does not tell.
    pub fn driver_id(&self) -> Option<DriverId> {
        self.driver
    }

    /// Version of the driver's ABI.
    pub fn abi_version(&self) -> u32 {
        self.abi_version
    }

    /// The modalias of the device that it is part of, a PCI function for instance; none where that has none.
    ///
    /// # Errors
    /// `Os`, `Malformed`; `Removed` when the device is gone.
    pub fn modalias(&self) -> Result<Option<&[u8]>> {
        if let Some(modalias) = self.modalias.get() {
            return Ok(modalias.as_deref());
        }
        let modalias = match self.parent_attribute("modalias") {
            Ok(modalias) => Some(modalias),
            Err(error) if attr::is_absent(&error) => {
                self.pin.read_device_number()?;
                None
            }
            Err(error) => return Err(error),
        };
        Ok(self.modalias.get_or_init(|| modalias).as_deref())
    }

    /// Reads an attribute beneath the uverbs directory, such as `abi_version`: at most 4,095 bytes, without
    /// the line feed at the end. No link is followed.
    ///
    /// # Errors
    /// `Os` (ENOENT: there is none; ENODEV: the device is gone), `Malformed`.
    pub fn attribute(&self, path: &str) -> Result<Vec<u8>> {
        attr::read_bytes(self.record.host.kernel(), self.pin.directory(), &c_path(path)?)
    }

    /// The same beneath the directory of the device that it is part of.
    ///
    /// # Errors
    /// The same.
    pub fn parent_attribute(&self, path: &str) -> Result<Vec<u8>> {
        let (kernel, sys) = (self.record.host.kernel(), self.record.host.sys());
        let parent = attr::open(kernel, sys, &self.record.parent_path()?, attr::DIRECTORY)?;
        let value = attr::read_bytes(kernel, &parent, &c_path(path)?)?;
        // The parent's place may be another's once the device is gone.
        self.pin.read_device_number()?;
        Ok(value)
    }

    fn is_recognised(&self, wanted: &Match, by: MatchedBy) -> Result<bool> {
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

fn c_path(path: &str) -> Result<CString> {
    CString::new(path).map_err(|_| Error::new(ErrorKind::Malformed, "a path with a NUL in it"))
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
