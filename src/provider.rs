//! Providers: for each driver what a context has to be told, and which of its ABI versions are known.
//!
//! A device's provider is looked for by driver id first, then by name, then by modalias; in each of these
//! the providers that the program registered come before the built-in ones. Built-in providers want nothing
//! when a device is listed, so where no others are registered a device's is looked for when somebody
//! needs it: listing asks RDMA netlink for nothing.

mod builtin;
mod glob;
mod matching;
mod pci;

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use crate::driver::DriverId;
use crate::error::Result;

pub(crate) use builtin::data_of;
pub use matching::PinnedView;
pub(crate) use matching::{Provided, Providers};

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

/// What a provider keeps for a device from [`Provider::init`] to [`Provider::teardown`].
pub type ProviderState = Box<dyn Any + Send + Sync>;

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

/// What a driver's devices need; for drivers that this crate does not know, or that a program knows better.
///
/// Its functions are called without any lock but the one of the device they are about: they may use other
/// devices, and must not open or ask that one. A device is pinned while they look at it: what they read
/// through the [view](PinnedView) is of that instance, and if it goes meanwhile the call that caused
/// this says so.
pub trait Provider: Send + Sync + 'static {
    /// What it is called, in `uverbs show` and in errors.
    fn name(&self) -> &str;

    /// What its devices are recognised by, in any order.
    fn matches(&self) -> &[Match];

    /// Versions of the driver's ABI (`uverbsN/abi_version` in sysfs) that it can handle. A device of another
    /// version is listed and does not open.
    fn abi_versions(&self) -> RangeInclusive<u32>;

    /// A device of this provider was listed for the first time: called once an instance, before
    /// [`Registry::devices`](crate::Registry::devices) returns it. An error keeps the device from being
    /// opened, and is what every open says; this is not called again.
    ///
    /// # Errors
    /// Whatever is in the way; [`Error::provider`](crate::Error::provider) makes one.
    fn init(&self, device: &PinnedView<'_>) -> Result<ProviderState> {
        let _ = device;
        Ok(Box::new(()))
    }

    /// What GET_CONTEXT is given, asked before each allocation.
    ///
    /// # Errors
    /// Whatever is in the way; nothing is opened then.
    fn prepare(&self, device: &PinnedView<'_>, state: &ProviderState) -> Result<Allocation> {
        let _ = (device, state);
        Ok(Allocation::default())
    }

    /// The list, all handles and all contexts have let go of the device: once for each `init` that
    /// succeeded, on the thread that let go last.
    fn teardown(&self, state: ProviderState) {
        drop(state);
    }
}

/// Which provider a device has.
#[derive(Clone, Debug, PartialEq, Eq)]
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
