//! List RDMA verbs devices on Linux, and open exactly the one that was listed.
#![deny(unsafe_code)]

mod attr;
mod context;
mod device;
mod error;
mod evidence;
#[cfg(fuzzing)]
pub mod fuzzing;
mod host;
mod identity;
mod indices;
mod kernel;
mod name;
mod netlink;
mod open;
mod provider;
mod registry;

pub use cap_std::fs::Dir;
pub use context::{Context, DeviceAttributes, Opened, UnprovenContext};
pub use device::{Device, DeviceFacts};
pub use error::{Error, ErrorKind, Result};
pub use evidence::{Check, Evidence, Step, Value};
pub use host::{Host, Policy};
pub use identity::{Instance, Timestamp};
#[cfg(feature = "sim")]
pub use kernel::sim;
pub use name::{DeviceNumber, Guid, Name};
pub use open::PinnedDevice;
pub use provider::DriverId;
pub use registry::{Devices, Registry};
