//! Providers: the data that each driver gets when a context is allocated, and the versions of its ABI that are known.
//!
//! A device's provider is found by driver id first, then by name, then by modalias. In each of these the
//! registered providers come before the built-in ones. Built-in providers need nothing when a device is
//! listed. So where no others are registered, a device's provider is looked up on first use, and a list sends
//! nothing to RDMA netlink.

mod attached;
mod builtin;
mod glob;
mod matching;
mod pci;
mod view;

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use crate::error::Result;
use crate::ids::DriverId;

pub(crate) use attached::{Provided, Slot, is_inside};
pub(crate) use builtin::data_of;
pub(crate) use matching::Providers;
pub use view::PinnedView;

/// A property by which a provider recognises a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Match {
    /// The driver, as the kernel reports it.
    Driver(DriverId),
    /// The device's name when it is matched; `*` in it matches any number of bytes, including zero.
    Name(Cow<'static, str>),
    /// The modalias of the device's parent; `*` in it matches any number of bytes, including zero.
    Modalias(Cow<'static, str>),
    /// A PCI function: vendor and device number, as in the modalias.
    Pci(u16, u16),
}

/// The kind of [`Match`] by which a provider was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum MatchedBy {
    /// The driver id.
    Driver,
    /// The name.
    Name,
    /// The modalias.
    Modalias,
}

impl fmt::Display for MatchedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Driver => "driver id",
            Self::Name => "name",
            Self::Modalias => "modalias",
        })
    }
}

/// The driver's part of GET_CONTEXT: its input, and the length of its output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocation {
    /// The driver's input, `UVERBS_ATTR_UHW_IN`. If it is empty, the attribute is left out.
    pub input: Vec<u8>,
    /// The length of the driver's output in bytes, `UVERBS_ATTR_UHW_OUT`. If it is 0, the attribute is left out. At
    /// least 256 bytes are behind the output whatever the length, because drivers up to Linux 7.0 write their
    /// whole answer.
    pub output_len: u16,
}

impl Allocation {
    /// Creates an allocation from an input and a length of output.
    pub fn new(input: impl Into<Vec<u8>>, output_len: u16) -> Self {
        Self { input: input.into(), output_len }
    }
}

/// Supplies the data for the devices of a driver that this crate does not know, or that a program knows better.
///
/// A program registers it with [`Registry::with_providers`](crate::Registry::with_providers), which reads its name,
/// its matches and its ABI versions once.
///
/// ```no_run
/// use std::ops::RangeInclusive;
/// use std::sync::Arc;
///
/// use uverbs::{Allocation, DeviceProvider, Host, Match, PinnedView, Provider, Registry};
///
/// struct Acme;
///
/// impl Provider for Acme {
///     fn name(&self) -> &str {
///         "acme"
///     }
///
///     fn matches(&self) -> &[Match] {
///         const { &[Match::Pci(0x1234, 0x5678)] }
///     }
///
///     fn abi_versions(&self) -> RangeInclusive<u32> {
///         1..=2
///     }
///
///     fn attach(&self, _: &PinnedView<'_>) -> uverbs::Result<Box<dyn DeviceProvider>> {
///         // This driver reads eight bytes, and writes sixteen.
///         Ok(Box::new(Allocation::new([0; 8], 16)))
///     }
/// }
///
/// # fn main() -> uverbs::Result<()> {
/// let registry = Registry::with_providers(Host::open()?, [Arc::new(Acme) as Arc<dyn Provider>]);
/// # Ok(())
/// # }
/// ```
///
/// # What its code may do
/// No lock is held while [`attach`](Self::attach), [`DeviceProvider::allocation`] or the `Drop` of a
/// [`DeviceProvider`] runs, and no thread waits for them. They may list devices, query them and open them, through
/// the same registry or another one, with these exceptions:
/// - While `attach` runs for a device, that device has no provider yet. Opening it, and
///   [`Device::provider`](crate::Device::provider), return [`Busy`](crate::ErrorKind::Busy) at once, on every
///   thread. So if two threads each attach a device and open the other's inside, both get an error, and neither
///   waits.
/// - Opening a device from inside its own `allocation`, on the same thread, returns `Busy`, too.
/// - A list that is made from inside any of the three attaches no device. New devices are attached when they are
///   next listed, or opened.
///
/// A panic in them propagates to the caller and leaves nothing behind. After a panic in `attach`, the device is
/// attached again when it is next listed or opened.
pub trait Provider: Send + Sync + 'static {
    /// The provider's name, for `uverbs show` and errors.
    fn name(&self) -> &str;

    /// The properties by which its devices are recognised, in any order. One is enough.
    fn matches(&self) -> &[Match];

    /// The versions of the driver's ABI (`uverbsN/abi_version` in sysfs) that it can handle. A device of another
    /// version is listed, but opening it returns [`AbiMismatch`](crate::ErrorKind::AbiMismatch).
    fn abi_versions(&self) -> RangeInclusive<u32>;

    /// Makes the object that represents the device from now on. It is called once per instance: when a list first
    /// shows the device, or when the device is first opened or [`Device::provider`](crate::Device::provider) is first
    /// called, whichever is first. A list on another thread may show the device before this returns.
    ///
    /// The library keeps an error: the device cannot be opened, and every open returns the error as
    /// [`Provider`](crate::ErrorKind::Provider). The exception is `Busy`, from another device that this opens. It is
    /// returned as `Busy` and not kept, and the device is attached again when it is next listed or opened.
    ///
    /// Where netlink does not report the driver ([`Device::open_allow_unproven`](crate::Device::open_allow_unproven)),
    /// only the descriptor does, and that may be another device's. Such an open attaches for itself alone, and the
    /// context keeps the object.
    ///
    /// # Errors
    /// Any reason why the device cannot be handled; [`Error::provider`](crate::Error::provider) makes one.
    fn attach(&self, device: &PinnedView<'_>) -> Result<Box<dyn DeviceProvider>>;
}

/// A [`Provider`] attached to one device.
///
/// It is dropped once, after the list, all handles and all contexts have dropped the device, on the thread that drops
/// the last of them.
pub trait DeviceProvider: Send + Sync {
    /// Returns the driver's part of GET_CONTEXT. It is called once for each attempt to open the device, before the
    /// context is allocated. No program code runs between its return and the end of the open.
    ///
    /// # Errors
    /// Any reason why the device cannot be opened. No context is allocated then, and the open returns an error of the
    /// kind [`Provider`](crate::ErrorKind::Provider), or `Busy` if this one is `Busy`.
    fn allocation(&self, device: &PinnedView<'_>) -> Result<Allocation>;
}

/// For drivers that always take the same data.
impl DeviceProvider for Allocation {
    fn allocation(&self, _: &PinnedView<'_>) -> Result<Allocation> {
        Ok(self.clone())
    }
}

/// The provider of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProviderInfo {
    /// The provider's name, and how it was found. `None` if no provider is known. Such a device is opened without
    /// data for its driver.
    pub provider: Option<(String, MatchedBy)>,
    /// Version of the driver's ABI.
    pub abi_version: u32,
    /// The versions that the provider can handle, or all if there is no provider.
    pub abi_versions: RangeInclusive<u32>,
}

impl ProviderInfo {
    /// Whether the provider can handle the ABI of the driver. If not, opening the device returns
    /// [`AbiMismatch`](crate::ErrorKind::AbiMismatch).
    pub fn is_abi_known(&self) -> bool {
        self.abi_versions.contains(&self.abi_version)
    }
}
