//! What both interfaces have.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use uverbs::sim::Machine;

/// An error, as both interfaces describe it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: String,
    pub(crate) step: Option<(u8, String)>,
    pub(crate) device: Option<String>,
    pub(crate) errno: Option<i32>,
    pub(crate) cause: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) evidence: Option<Evidence>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) checks: Vec<Check>,
    pub(crate) index: Option<u32>,
    pub(crate) context_number: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) id: String,
    pub(crate) what: String,
    pub(crate) step: (u8, String),
    pub(crate) expected: String,
    pub(crate) found: String,
    pub(crate) held: bool,
}

/// A change. Devices are represented by their inode numbers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) kind: &'static str,
    pub(crate) device: Option<u64>,
    pub(crate) old: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) old_name: Option<Vec<u8>>,
    pub(crate) reason: Option<String>,
    pub(crate) text: String,
}

/// A handle of libibverbs.
pub(crate) struct Handle<'a> {
    pub(crate) index: i32,
    pub(crate) dev_name: &'a str,
    pub(crate) name: &'a str,
    pub(crate) guid: u64,
}

/// Answers of a context.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    pub(crate) device: Vec<(&'static str, u64)>,
    pub(crate) extended: Vec<(&'static str, u64)>,
    pub(crate) port_state: u8,
    pub(crate) active_mtu: u8,
    pub(crate) rate: Option<u32>,
    pub(crate) gids: Vec<([u8; 16], u32, u32, u32)>,
    pub(crate) pkeys: Vec<u16>,
    pub(crate) driver_id: u32,
    pub(crate) completion_vectors: u32,
    pub(crate) is_present: bool,
}

/// What `Device::query` returns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) node_guid: u64,
    pub(crate) sys_image_guid: u64,
    pub(crate) index: u32,
    pub(crate) driver_id: u32,
    pub(crate) node_type: u32,
    pub(crate) port_count: u32,
    pub(crate) firmware_version: Vec<u8>,
}

/// A PCI address, as text and as its numbers.
pub(crate) type Address = (String, (u32, u8, u8, u8));

/// What `Device::parent` returns.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Parent {
    pub(crate) bus: &'static str,
    pub(crate) bus_name: Option<Vec<u8>>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) subfunction: Option<u32>,
    pub(crate) function: Option<Function>,
    pub(crate) numa_node: Option<u32>,
}

/// A PCI function. The physical one and the number are those of a virtual one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function {
    pub(crate) address: Address,
    pub(crate) ids: (u16, u16),
    pub(crate) kind: &'static str,
    pub(crate) physical: Option<Address>,
    pub(crate) number: Option<u32>,
}

/// Port, index and name of a network device.
pub(crate) type Netdev = (u32, u32, Vec<u8>);

/// What `Device::ports` returns of a port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) port: u32,
    pub(crate) state: u8,
    pub(crate) physical_state: u8,
    pub(crate) rate: Option<u32>,
    pub(crate) netdev: Option<(u32, Vec<u8>)>,
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Kind, object and port of an async event.
pub(crate) type Event = (u32, u64, Option<u8>);

/// An interface.
pub(crate) trait Api {
    type Registry;
    type List;
    type Device;
    type Context;
    type Watch;
    type Events;

    fn registry(machine: &Machine) -> Self::Registry;
    fn list(registry: &Self::Registry) -> Result<Self::List>;
    fn devices(list: &Self::List) -> Vec<Self::Device>;
    fn faults(list: &Self::List) -> Vec<String>;
    fn by_name(list: &Self::List, name: &[u8]) -> Result<Self::Device>;
    fn by_guid(list: &Self::List, guid: u64) -> Result<Self::Device>;
    fn by_index(list: &Self::List, index: u32) -> Result<Self::Device>;
    fn by_number(list: &Self::List, number: u32) -> Result<Self::Device>;
    fn by_pci(list: &Self::List, address: &str) -> Result<Self::Device>;
    /// The inode numbers of the devices.
    fn all_by_pci(list: &Self::List, address: &str) -> Result<Vec<u64>>;
    fn by_index_at_once(registry: &Self::Registry, index: u32) -> Result<Self::Device>;

    fn name(device: &Self::Device) -> Vec<u8>;
    fn label(device: &Self::Device) -> String;
    fn number(device: &Self::Device) -> u32;
    fn device_number(device: &Self::Device) -> (u32, u32);
    fn ino(device: &Self::Device) -> u64;
    fn same(one: &Self::Device, other: &Self::Device) -> bool;
    fn is_known_gone(device: &Self::Device) -> bool;
    fn index(device: &Self::Device) -> Result<u32>;
    fn driver_id(device: &Self::Device) -> Result<u32>;
    fn facts(device: &Self::Device) -> Result<Facts>;
    fn parent(device: &Self::Device) -> Result<Parent>;
    fn netdevs(device: &Self::Device) -> Result<Vec<Netdev>>;
    fn ports(device: &Self::Device) -> Result<Vec<Port>>;
    fn check_ready(device: &Self::Device) -> Result<()>;

    fn open(device: &Self::Device) -> Result<Self::Context>;
    /// Allows an unproven context. Returns the reason with it.
    fn open_unproven(device: &Self::Device) -> Result<(Self::Context, Option<String>)>;
    fn evidence(context: &Self::Context) -> Evidence;
    fn device_of(context: &Self::Context) -> u64;
    fn fd(context: &Self::Context) -> BorrowedFd<'_>;
    fn take_fd(context: Self::Context) -> OwnedFd;
    fn answers(context: &Self::Context) -> Result<Answers>;
    fn verify(device: &Self::Device, fd: BorrowedFd<'_>) -> Result<Evidence>;
    fn verify_ibv(
        registry: &Self::Registry,
        handle: &Handle<'_>,
        fd: BorrowedFd<'_>,
    ) -> Result<Evidence>;

    fn changes(list: &Self::List, older: Option<&Self::List>) -> Vec<Change>;
    fn watch(registry: &Self::Registry) -> Result<Self::Watch>;
    /// All devices if there is no list.
    fn watch_since(registry: &Self::Registry, older: Option<&Self::List>) -> Result<Self::Watch>;
    fn next(watch: &mut Self::Watch) -> Result<Option<Change>>;
    fn wait(watch: &mut Self::Watch, timeout: Duration) -> Result<Option<Change>>;
    fn list_of(watch: &Self::Watch) -> Self::List;

    fn events(context: &Self::Context) -> Result<Self::Events>;
    fn next_event(events: &mut Self::Events) -> Result<Option<Event>>;
    fn wait_for_event(events: &mut Self::Events, timeout: Duration) -> Result<Option<Event>>;
    fn have_ended(events: &Self::Events) -> bool;
}
