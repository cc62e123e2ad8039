//! Providers: what each driver is given when a context is allocated, and which of its ABI versions are known.
//!
//! A device's provider is looked for by driver id first, then by name, then by modalias; in each of these
//! the providers that the program registered come before the built-in ones. Built-in providers need nothing
//! when a device is listed, so where no others are registered a device's is looked for when somebody
//! needs it: a list sends nothing to RDMA netlink.

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

/// What a device is recognised by.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Match {
    /// The driver, as the kernel tells it.
    Driver(DriverId),
    /// The device's name at that moment; `*` in it stands for any bytes, also none.
    Name(Cow<'static, str>),
    /// The modalias of the device's parent; `*` in it stands for any bytes, also none.
    Modalias(Cow<'static, str>),
    /// A PCI function: vendor and device number of the modalias.
    Pci(u16, u16),
}

/// By which kind of [`Match`] a provider was found.
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

/// What GET_CONTEXT is given for a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Allocation {
    /// The driver's input, `UVERBS_ATTR_UHW_IN`; no attribute at all where it is empty.
    pub input: Vec<u8>,
    /// The length that the kernel is told of the driver's output, `UVERBS_ATTR_UHW_OUT`; no attribute at all
    /// where it is 0. At least 256 bytes lie behind it, whatever it says, because drivers up to Linux 7.0
    /// write their whole answer.
    pub output_len: u16,
}

impl Allocation {
    /// Of that input and that length of output.
    pub fn new(input: impl Into<Vec<u8>>, output_len: u16) -> Self {
        Self { input: input.into(), output_len }
    }
}

/// What the devices of a driver need, for drivers that this crate does not know, or that a program knows better.
///
/// It is registered with [`Registry::with_providers`](crate::Registry::with_providers), which asks for its name, its
/// matches and its ABI versions, once.
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
/// - While `attach` runs for a device, that device has no provider yet. To open it, or to call
///   [`Device::provider`](crate::Device::provider), is [`Busy`](crate::ErrorKind::Busy) at once, on this thread
///   and on every other one. So two threads that each attach a device and open the other's inside both get an
///   error, and neither waits.
/// - To open a device from inside its own `allocation`, on the same thread, is `Busy`, too.
/// - A list that is made from inside any of the three attaches no device. Those that are new are attached when they
///   are listed next, or opened.
///
/// A panic in them goes on to the caller. It leaves nothing behind: after one in `attach`, the device is attached
/// anew when it is listed or opened next.
pub trait Provider: Send + Sync + 'static {
    /// What it is called, in `uverbs show` and in errors.
    fn name(&self) -> &str;

    /// What its devices are recognised by, in any order.
    fn matches(&self) -> &[Match];

    /// Versions of the driver's ABI (`uverbsN/abi_version` in sysfs) that it can handle. A device of another
    /// version is listed and does not open.
    fn abi_versions(&self) -> RangeInclusive<u32>;

    /// Makes what stands for the device from now on. It is called once an instance, when a list first shows the
    /// device, or else when it is first opened or asked for its provider. A list on another thread may show the
    /// device before this has returned.
    ///
    /// An error is kept: it keeps the device from being opened, and every open returns it, as
    /// [`Provider`](crate::ErrorKind::Provider). Only `Busy`, of another device that this opens, is returned as that
    /// and not kept; the device is attached anew when it is listed or opened next.
    ///
    /// Where netlink does not report the driver ([`Device::open_allow_unproven`](crate::Device::open_allow_unproven)),
    /// only the descriptor does, and that may be another device's. Such an open attaches for itself alone, and the
    /// context keeps what is made.
    ///
    /// # Errors
    /// Whatever is in the way; [`Error::provider`](crate::Error::provider) makes one.
    fn attach(&self, device: &PinnedView<'_>) -> Result<Box<dyn DeviceProvider>>;
}

/// A [`Provider`] attached to one device.
///
/// It is dropped once, when the list, all handles and all contexts have let the device go, on the thread that
/// did so last.
pub trait DeviceProvider: Send + Sync {
    /// What GET_CONTEXT is given. It is called once for each attempt to open the device, before the context is
    /// allocated; none of the program's code runs between its return and the end of the open.
    ///
    /// # Errors
    /// Whatever is in the way; no context is allocated then, and the error of the open is of the kind
    /// [`Provider`](crate::ErrorKind::Provider), or `Busy` where this one is.
    fn allocation(&self, device: &PinnedView<'_>) -> Result<Allocation>;
}

/// For drivers that always want the same.
impl DeviceProvider for Allocation {
    fn allocation(&self, _: &PinnedView<'_>) -> Result<Allocation> {
        Ok(self.clone())
    }
}

/// Which provider a device has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ProviderInfo {
    /// What it is called, and by what it was found; none where none is known: such a device is opened
    /// without anything for its driver.
    pub provider: Option<(String, MatchedBy)>,
    /// Version of the driver's ABI.
    pub abi_version: u32,
    /// The versions that the provider can handle; all, where there is none.
    pub abi_versions: RangeInclusive<u32>,
}

impl ProviderInfo {
    /// Whether the provider can handle the ABI of the driver: if not, the device does not open.
    pub fn is_abi_known(&self) -> bool {
        self.abi_versions.contains(&self.abi_version)
    }
}
