//! The plain values that everything else builds on: names, GUIDs, device numbers and the kernel's numbers. This is
//! the lowest layer. It imports nothing from the crate.

mod driver;
mod guid;
mod name;
mod node_type;
mod number;
mod numbered;
mod pci;

pub use driver::DriverId;
pub use guid::{Guid, ParseGuidError};
pub use name::Name;
pub use node_type::NodeType;
pub use number::DeviceNumber;
pub(crate) use numbered::numbered;
pub use pci::{ParsePciAddressError, PciAddress};
