//! The Rust interface.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use uverbs::sim::Machine;
use uverbs::{
    AsyncEvents, Bus, Context, Device, Devices, DriverId, Error, FunctionKind, Guid, Host,
    IbvHandle, IbvHandles, Name, OldNames, Opened, PciAddress, PciFunction, Registry, Watch,
};

use crate::api::{
    Address, Answers, Api, Change, Check, Event, Evidence, Facts, Failure, Function, Handle,
    Netdev, Parent, Port, Result,
};

pub(crate) struct Rust;

/// A context whose proof does not matter.
pub(crate) enum Either {
    Proven(Context),
    Unproven(uverbs::UnprovenContext),
}

macro_rules! either {
    ($context:expr, $it:ident => $call:expr) => {
        match $context {
            Either::Proven($it) => $call,
            Either::Unproven($it) => $call,
        }
    };
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            code: error.kind().code().to_owned(),
            step: error.step().map(|step| (step.number(), step.name().to_owned())),
            device: error.device().map(str::to_owned),
            errno: error.raw_os_error(),
            cause: error.cause(),
            message: error.to_string(),
            hint: error.hint().map(str::to_owned),
            evidence: error.evidence().map(Evidence::from),
        }
    }
}

impl From<&uverbs::Evidence> for Evidence {
    fn from(evidence: &uverbs::Evidence) -> Self {
        let check = |check: &uverbs::Check| Check {
            id: check.id.name().to_owned(),
            what: check.what().to_owned(),
            step: (check.step.number(), check.step.name().to_owned()),
            expected: check.expected.to_string(),
            found: check.found.to_string(),
            held: check.held(),
        };
        Self {
            checks: evidence.checks().iter().map(check).collect(),
            index: evidence.index(),
            context_number: evidence.context_number(),
        }
    }
}

fn change(change: &uverbs::Change) -> Change {
    let ino = |device: &Device| Some(device.instance().ino);
    let bytes = |name: &Name| Some(name.as_bytes().to_owned());
    let text = change.to_string();
    let mut made = Change { text, ..Change::default() };
    match change {
        uverbs::Change::Added { device, name, .. } => {
            (made.kind, made.device, made.name) = ("added", ino(device), bytes(name));
        }
        uverbs::Change::Ready { device, .. } => (made.kind, made.device) = ("ready", ino(device)),
        uverbs::Change::Removed { device, .. } => {
            (made.kind, made.device) = ("removed", ino(device));
        }
        uverbs::Change::Replaced { old, new, name, .. } => {
            (made.kind, made.device, made.old) = ("replaced", ino(new), ino(old));
            made.name = bytes(name);
        }
        uverbs::Change::Renamed { device, from, to, .. } => {
            (made.kind, made.device) = ("renamed", ino(device));
            (made.name, made.old_name) = (bytes(to), bytes(from));
        }
        uverbs::Change::Resynchronised { reason, .. } => {
            (made.kind, made.reason) = ("resynchronised", Some(reason.name().to_owned()));
        }
        other => panic!("{other:?}"),
    }
    made
}

fn address(address: PciAddress) -> Address {
    let numbers = (address.domain(), address.bus(), address.device(), address.function());
    (address.to_string(), numbers)
}

fn parsed(text: &str) -> PciAddress {
    text.parse().expect("an address")
}

fn function(found: PciFunction) -> Function {
    let (kind, physical, number) = match found.kind {
        FunctionKind::Physical => ("physical", None, None),
        FunctionKind::Virtual { physical, number, .. } => ("virtual", Some(physical), number),
        FunctionKind::Unknown => ("unknown", None, None),
        other => panic!("{other:?}"),
    };
    Function {
        address: address(found.address),
        ids: (found.vendor_id, found.device_id),
        kind,
        physical: physical.map(address),
        number,
    }
}

fn event(event: Option<uverbs::AsyncEvent>) -> Option<Event> {
    event.map(|event| (event.kind.to_raw(), event.element, event.port()))
}

impl Api for Rust {
    type Registry = (Registry, IbvHandles);
    type List = Devices;
    type Device = Device;
    type Context = Either;
    type Watch = Watch;
    type Events = AsyncEvents;

    fn registry(machine: &Machine) -> Self::Registry {
        let host = Host::simulated(machine).expect("a host");
        let handles = IbvHandles::new();
        handles.begin(&host).expect("an epoch");
        (Registry::new(host), handles)
    }

    fn list((registry, _): &Self::Registry) -> Result<Devices> {
        Ok(registry.devices()?)
    }

    fn devices(list: &Devices) -> Vec<Device> {
        list.iter().cloned().collect()
    }

    fn faults(list: &Devices) -> Vec<String> {
        list.faults().map(Error::to_string).collect()
    }

    fn by_name(list: &Devices, name: &[u8]) -> Result<Device> {
        Ok(list.by_name(name)?)
    }

    fn by_guid(list: &Devices, guid: u64) -> Result<Device> {
        Ok(list.by_guid(Guid(guid))?)
    }

    fn by_index(list: &Devices, index: u32) -> Result<Device> {
        Ok(list.by_index(index)?)
    }

    fn by_number(list: &Devices, number: u32) -> Result<Device> {
        Ok(list.by_uverbs_number(number)?)
    }

    fn by_pci(list: &Devices, address: &str) -> Result<Device> {
        Ok(list.by_pci(parsed(address))?)
    }

    fn all_by_pci(list: &Devices, address: &str) -> Result<Vec<u64>> {
        Ok(list.all_by_pci(parsed(address))?.iter().map(Self::ino).collect())
    }

    fn by_index_at_once((registry, _): &Self::Registry, index: u32) -> Result<Device> {
        Ok(registry.by_index(index)?)
    }

    fn name(device: &Device) -> Vec<u8> {
        device.name().as_bytes().to_owned()
    }

    fn label(device: &Device) -> String {
        device.to_string()
    }

    fn number(device: &Device) -> u32 {
        device.uverbs_number()
    }

    fn device_number(device: &Device) -> (u32, u32) {
        (device.device_number().major, device.device_number().minor)
    }

    fn ino(device: &Device) -> u64 {
        device.instance().ino
    }

    fn same(one: &Device, other: &Device) -> bool {
        one == other
    }

    fn is_known_gone(device: &Device) -> bool {
        device.is_known_gone()
    }

    fn index(device: &Device) -> Result<u32> {
        Ok(device.index()?)
    }

    fn driver_id(device: &Device) -> Result<u32> {
        Ok(device.driver_id()?.map_or(0, DriverId::to_raw))
    }

    fn facts(device: &Device) -> Result<Facts> {
        let facts = device.query()?;
        Ok(Facts {
            node_guid: facts.node_guid.0,
            sys_image_guid: facts.sys_image_guid.0,
            index: facts.index,
            driver_id: facts.driver_id.map_or(0, DriverId::to_raw),
            node_type: facts.node_type.to_raw().into(),
            port_count: facts.port_count,
            firmware_version: facts.firmware_version.as_bytes().to_owned(),
        })
    }

    fn parent(device: &Device) -> Result<Parent> {
        let parent = device.parent()?;
        let bytes = |name: Name| name.as_bytes().to_owned();
        let bus = match parent.bus {
            Bus::Pci => "pci",
            Bus::Auxiliary => "auxiliary",
            Bus::Platform => "platform",
            Bus::Vmbus => "vmbus",
            Bus::Virtual => "virtual",
            Bus::Other(_) => "other",
            Bus::Unknown => "unknown",
            ref other => panic!("{other:?}"),
        };
        Ok(Parent {
            bus,
            bus_name: parent.bus.name().map(bytes),
            name: parent.name.map(bytes),
            subfunction: parent.subfunction,
            function: parent.function.map(function),
            numa_node: parent.numa_node,
        })
    }

    fn netdevs(device: &Device) -> Result<Vec<Netdev>> {
        let found = device.netdevs()?;
        Ok(found
            .iter()
            .map(|netdev| (netdev.port, netdev.index, netdev.name.as_bytes().to_owned()))
            .collect())
    }

    fn ports(device: &Device) -> Result<Vec<Port>> {
        let port = |port: uverbs::PortFacts| Port {
            port: port.port,
            state: port.state.to_raw(),
            physical_state: port.physical_state.to_raw(),
            rate: port.rate.map(|rate| rate.megabits_per_second()),
            netdev: port.netdev.map(|netdev| (netdev.index, netdev.name.as_bytes().to_owned())),
        };
        Ok(device.ports()?.into_iter().map(port).collect())
    }

    fn check_ready(device: &Device) -> Result<()> {
        Ok(device.check_ready()?)
    }

    fn open(device: &Device) -> Result<Either> {
        Ok(Either::Proven(device.open()?))
    }

    fn open_unproven(device: &Device) -> Result<(Either, Option<String>)> {
        Ok(match device.open_allow_unproven()? {
            Opened::Proven(context) => (Either::Proven(context), None),
            Opened::Unproven(context) => {
                let reason = context.reason().to_string();
                (Either::Unproven(context), Some(reason))
            }
        })
    }

    fn evidence(context: &Either) -> Evidence {
        either!(context, it => it.evidence()).into()
    }

    fn device_of(context: &Either) -> u64 {
        either!(context, it => it.device()).instance().ino
    }

    fn fd(context: &Either) -> BorrowedFd<'_> {
        either!(context, it => it.as_fd())
    }

    fn take_fd(context: Either) -> OwnedFd {
        either!(context, it => it.into_parts().0)
    }

    fn answers(context: &Either) -> Result<Answers> {
        let port = either!(context, it => it.query_port(1))?;
        let gids = either!(context, it => it.gids())?;
        Ok(Answers {
            device: either!(context, it => it.query_device())?.entries().collect(),
            extended: either!(context, it => it.query_device_extended())?.entries().collect(),
            port_state: port.state.to_raw(),
            active_mtu: port.active_mtu.to_raw(),
            rate: port.rate().map(|rate| rate.megabits_per_second()),
            gids: gids
                .iter()
                .map(|entry| (entry.gid.0, entry.index, entry.port, entry.kind.to_raw()))
                .collect(),
            pkeys: either!(context, it => it.pkeys(1))?,
            driver_id: either!(context, it => it.driver_id()).to_raw(),
            completion_vectors: either!(context, it => it.completion_vectors()),
            is_present: either!(context, it => it.is_device_present())?,
        })
    }

    fn verify(device: &Device, fd: BorrowedFd<'_>) -> Result<Evidence> {
        Ok((&device.verify(fd)?).into())
    }

    fn verify_ibv(
        (registry, handles): &Self::Registry,
        handle: &Handle<'_>,
        fd: BorrowedFd<'_>,
    ) -> Result<Evidence> {
        let (node, name) = (handle.dev_name.as_bytes(), handle.name.as_bytes());
        let handle = IbvHandle::new(handle.index, node, name, Guid(handle.guid))?;
        let found = handles.find(registry, &handle, OldNames::AfterList)?;
        Ok((&found.verify(fd)?).into())
    }

    fn changes(list: &Devices, older: Option<&Devices>) -> Vec<Change> {
        let empty = Devices::default();
        list.changes_since(older.unwrap_or(&empty)).iter().map(change).collect()
    }

    fn watch((registry, _): &Self::Registry) -> Result<Watch> {
        Ok(registry.watch()?)
    }

    fn watch_since((registry, _): &Self::Registry, older: Option<&Devices>) -> Result<Watch> {
        let empty = Devices::default();
        Ok(registry.watch_since(older.unwrap_or(&empty))?)
    }

    fn next(watch: &mut Watch) -> Result<Option<Change>> {
        Ok(watch.try_next()?.as_ref().map(change))
    }

    fn wait(watch: &mut Watch, timeout: Duration) -> Result<Option<Change>> {
        Ok(watch.wait(Some(timeout))?.as_ref().map(change))
    }

    fn list_of(watch: &Watch) -> Devices {
        watch.devices().clone()
    }

    fn events(context: &Either) -> Result<AsyncEvents> {
        Ok(either!(context, it => it.async_events())?)
    }

    fn next_event(events: &mut AsyncEvents) -> Result<Option<Event>> {
        Ok(event(events.try_next()?))
    }

    fn wait_for_event(events: &mut AsyncEvents, timeout: Duration) -> Result<Option<Event>> {
        Ok(event(events.wait(Some(timeout))?))
    }

    fn have_ended(events: &AsyncEvents) -> bool {
        events.has_ended()
    }
}
