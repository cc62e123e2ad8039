//! List RDMA verbs devices on Linux, and open exactly the one that was listed.
//!
//! A verbs device's name, node, device number and often its GUID are free for the next device as soon as
//! it is unplugged. This crate identifies an instance by what the kernel never uses twice, and proves
//! through the opened descriptor that it is on the instance that was listed.
//!
//! ```no_run
//! use uverbs::{Host, Registry};
//!
//! # fn main() -> uverbs::Result<()> {
//! let registry = Registry::new(Host::open()?);
//! for device in &registry.devices()? {
//!     println!("{device}: {}", device.device_number());
//! }
//! let context = registry.devices()?.by_name("mlx5_0")?.open()?;
//! println!("{}", context.query_device()?.node_guid);
//! # Ok(())
//! # }
//! ```
//!
//! # The tour
//! - [`Host`]: `/sys`, `/dev`, RDMA netlink and uevents, taken once; [`Host::builder`] takes them from the caller,
//!   who may then sandbox the process.
//! - [`Registry`]: looks at the host and keeps one record an instance. [`Registry::devices`] returns
//!   [`Devices`], a list that does not change. It finds a device by name, GUID, netlink index, uverbs number or PCI
//!   address.
//! - [`Registry::watch`]: a [`Watch`] follows hot plug and reports each [`Change`]. [`Devices::changes_since`] is the
//!   difference of two lists.
//! - [`Device`]: a counted handle on one instance. It holds no descriptor and outlives the hardware.
//! - [`Device::parent`] reads the [`Parent`] that it belongs to, and [`Device::ports`] its ports, without opening it.
//!   [`Registry::summaries`] reads both of all devices, for display.
//! - [`Device::open`] returns a [`Context`], or an [`Error`] that names the device, the step and the cause.
//!   [`OpenOptions`] demand more of an open, or less. [`Device::verify`] proves the same of a descriptor that another
//!   library opened.
//! - [`Context`] queries the device, its ports and GIDs, and has its [`AsyncEvents`].
//! - [`ContextClaim`] and [`Context::from_fd`]: a context passed on to another process.
//! - [`Provider`] and [`DeviceProvider`]: what a driver is given when a context is allocated; the known ones
//!   are built in.
//! - [`Expectation`]: which device a container was given, checked where it starts and where its program opens it.
//! - [`Evidence`]: what was checked on the way, and what each check found.
//! - The [`manual`]: why an open can be believed.
//!
//! # It does not
//! - fall back to anything weaker: where `openat2(2)` is missing or blocked, or netlink cannot prove, it fails
//!   with the reason; [`Device::open_allow_unproven`] is the explicit exception, and returns another type;
//! - sleep: a system call may wait in the kernel, and the thread that a proof starts is joined ([`Host`] documents
//!   blocking and forks, [`Device::open`] the thread);
//! - read the environment, print, or keep a descriptor for a device;
//! - move data: queue pairs and memory are left to other libraries, over the cmd fd.
//!
//! # Needs
//! Linux 5.6 to run and 5.10 to prove. On 32-bit kernels, where inode numbers may repeat, a moved timestamp
//! counts as another device.
//!
//! # Features
//! None is on by default.
//! - `tokio`: async events, and the changes of a watch, as a `Stream`.
//! - `ibverbs`: [`IbvHandles`], for code that stands between a program and libibverbs.
//! - `serde`: `Serialize` for plain data, in the forms below.
//! - `sim`: a simulated kernel, for tests and demonstrations ([`Host::open`] never uses it).
//!
//! Versions follow Semantic Versioning. Outside of that are the module `sim`, `Host::simulated`,
//! `HostBuilder::simulated`, and what is hidden from this documentation, such as the module `fuzzing`: they serve this
//! project's own tests and may change in any version.
//!
//! # Serde
//! - The kernel's numbers ([`DriverId`], [`PortState`], ...) are numbers. Their names are display text.
//! - [`Guid`], [`Gid`] and [`PciAddress`] are strings, as they print: `"0002:c903:0005:1234"`. A [`Bus`] is its name.
//! - [`Name`] is a string: the name where it is UTF-8, else the name as it prints, escaped. Two names may have the
//!   same string, so there is no `Deserialize`.
//! - [`ErrorKind`] is its [`code`](ErrorKind::code), [`Step`] its [`name`](Step::name), [`CheckId`] its
//!   [`name`](CheckId::name), [`ResyncReason`] its [`name`](ResyncReason::name), [`Value`] a map of one key:
//!   `{"number": 3}`, `{"guid": "..."}`, `{"device_number": {"major": 231, "minor": 192}}`, `{"time": [seconds,
//!   nanoseconds]}`, `{"name": "..."}`, `{"word": "..."}`. A [`Check`] has `held` and `what` besides its fields.
//! - Everything else is a map of its fields. Inode numbers take up to 64 bits, more than a number in JavaScript holds.
//!
//! `Deserialize` is there for the kernel's numbers, [`Guid`], [`PciAddress`], [`DeviceNumber`] and [`ContextClaim`],
//! where every value is sound. What the library has checked or read, such as [`Evidence`], is not made of text.
#![deny(unsafe_code)]
// A type that may get a field or a variant later is non-exhaustive. The others state their reason.
#![warn(clippy::exhaustive_enums, clippy::exhaustive_structs, missing_debug_implementations)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod check;
mod context;
mod device;
mod errno;
mod error;
mod evidence;
mod expectation;
#[cfg(any(fuzzing, feature = "sim"))]
#[doc(hidden)]
pub mod fuzzing;
mod host;
#[cfg(feature = "ibverbs")]
mod ibverbs;
mod identity;
mod ids;
mod index;
mod kernel;
mod listing;
pub mod manual;
mod netlink;
mod open;
mod parent;
mod pin;
mod ports;
#[cfg(feature = "sim")]
mod probe;
mod provider;
mod record;
mod registry;
#[cfg(feature = "serde")]
mod serialized;
mod sysfs;
mod uevents;
mod verbs;
mod watch;

#[cfg(uverbs_leave_out)]
pub use check::leave_out;
#[cfg(feature = "tokio")]
pub use context::AsyncEventStream;
pub use context::{
    AsyncEvent, AsyncEventKind, AsyncEvents, Context, ContextClaim, DeviceAttributes,
    ExtendedAttributes, Gid, GidEntry, GidType, LinkLayer, LinkSpeed, LinkWidth, Mtu, Opened,
    PhysicalState, PortAttributes, PortRate, PortState, Unproven, UnprovenContext,
};
pub use device::{Device, DeviceFacts};
pub use error::{Error, ErrorKind, Result};
pub use evidence::{Check, CheckId, Evidence, Step, Value};
pub use expectation::{BootId, Expectation, ParseBootIdError, ParseExpectationError};
pub use host::{ForkSafety, Host, HostBuilder, KeptNetlink, memlock_limit};
#[cfg(feature = "ibverbs")]
pub use ibverbs::{FoundDevice, IbvHandle, IbvHandles, IbvNames, OldNames};
pub use identity::{Instance, Timestamp};
pub use ids::{
    DeviceNumber, DriverId, Guid, Name, NodeType, ParseGuidError, ParsePciAddressError, PciAddress,
};
/// A simulated kernel, for tests, demonstrations and proofs. Outside of Semantic Versioning.
#[cfg(feature = "sim")]
pub mod sim {
    pub use crate::kernel::sim::*;
    pub use crate::probe::{As, Facts, Probe, Probed, Root, Wire};
}
pub use open::{OpenOptions, Proven};
pub use parent::{Bus, FunctionKind, Parent, PciFunction, Place};
pub use ports::{Netdev, PortFacts};
pub use provider::{
    Allocation, DeviceProvider, Match, MatchedBy, PinnedView, Provider, ProviderInfo,
};
pub use registry::{Change, Devices, DevicesIntoIter, Registry, ResyncReason, Summary};
pub use watch::Watch;
#[cfg(feature = "tokio")]
pub use watch::WatchStream;
