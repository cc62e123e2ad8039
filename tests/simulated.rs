//! The protocol on the simulated kernel: what must be refused, and what must not. (`explore/` tries
//! everything at every call.)

use std::os::fd::AsFd as _;

use uverbs::sim::{CallKind, DeviceSpec, Machine, NodeKind, NodeOpened, Verdict};
use uverbs::{Device, ErrorKind, Host, Policy, Registry};

fn device(name: &str, guid: u64) -> DeviceSpec {
    DeviceSpec::new(name).guid(guid)
}

fn registry(machine: &Machine) -> Registry {
    Registry::new(Host::simulated(machine, Policy::new()).expect("a host"))
}

fn listed(machine: &Machine, name: &str) -> Device {
    registry(machine).devices().expect("a list").by_name(name).expect("listed")
}

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("it has to be refused").kind()
}

#[test]
fn a_device_is_opened_and_proved() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0)).expect("added");
    let context = listed(&machine, "rxe0").open().expect("opened");
    assert_eq!(machine.device_of(context.as_fd()), Some(id));
    assert_eq!(context.query_device().expect("asked").node_guid.0, 0xa0);
    assert_eq!(context.evidence().context_number(), machine.ctxn_of(context.as_fd()));
    assert!(context.evidence().checks().iter().all(uverbs::Check::held));
    drop(context);
    assert_eq!(machine.open_handles(), 0, "everything was let go");
}

#[test]
fn a_replacement_is_refused_and_not_touched() {
    for guid in [0xa0, 0xb0] {
        let machine = Machine::new();
        let old = machine.add(device("rxe0", 0xa0)).expect("added");
        let asked = listed(&machine, "rxe0");
        machine.remove(old);
        machine.add(device("rxe0", guid)).expect("added");
        assert_eq!(kind(asked.open()), ErrorKind::Replaced);
        assert_eq!(machine.node_opens(), []);
    }
}

#[test]
fn a_removed_device_is_not_looked_for_again() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0)).expect("added");
    let asked = listed(&machine, "rxe0");
    machine.remove(id);
    assert_eq!(kind(asked.open()), ErrorKind::Removed);
    let calls = machine.calls();
    assert_eq!(kind(asked.open()), ErrorKind::Removed);
    assert_eq!(machine.calls(), calls);
}

#[test]
fn a_static_node_bound_to_the_old_device_is_refused() {
    for guid in [0xa0, 0xb0] {
        let machine = Machine::new();
        let old = machine.add(device("old", 0xa0).disassociates(false)).expect("added");
        machine.set_node(0, NodeKind::Static);
        let context = listed(&machine, "old").open().expect("as good as any node");
        machine.remove(old);
        let new = machine.add(device("new", guid).disassociates(false)).expect("added");
        let asked = listed(&machine, "new");
        assert_eq!(kind(asked.open()), ErrorKind::NodeMismatch);
        drop(context);
        let context = asked.open().expect("the node leads to the new one now");
        assert_eq!(machine.device_of(context.as_fd()), Some(new));
    }
}

#[test]
fn a_wrong_node_is_not_opened() {
    for (node, expected) in [
        (NodeKind::Symlink("uverbs1".into()), ErrorKind::NodeMismatch),
        (NodeKind::Fifo, ErrorKind::NodeMismatch),
        (NodeKind::Regular, ErrorKind::NodeMismatch),
        (NodeKind::Directory, ErrorKind::NodeMismatch),
        (NodeKind::Device(1, 3), ErrorKind::NodeMismatch),
        (NodeKind::Missing, ErrorKind::Os),
    ] {
        let machine = Machine::new();
        machine.add(device("rxe0", 0xa0)).expect("added");
        machine.add(device("rxe1", 0xb0)).expect("added");
        let asked = listed(&machine, "rxe0");
        machine.set_node(0, node.clone());
        assert_eq!(kind(asked.open()), expected, "{node:?}");
        assert_eq!(machine.node_opens(), [], "{node:?}");
    }
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    machine.set_node(0, NodeKind::Forbidden);
    assert_eq!(kind(listed(&machine, "rxe0").open()), ErrorKind::PermissionDenied);
}

#[test]
fn a_policy_holds_for_lists_and_opens_alike() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let policy = Policy::new().strict_timestamps(true);
    let strict = Registry::new(Host::simulated(&machine, policy).expect("a host"));
    let asked = strict.devices().expect("a list").by_name("rxe0").expect("listed");
    let lax = listed(&machine, "rxe0");
    machine.evict();
    assert_eq!(kind(asked.open()), ErrorKind::Replaced);
    assert_eq!(kind(asked.open_allow_unproven()), ErrorKind::Replaced);
    lax.open().expect("opened");
    // Whoever lists anew has the timestamp of now, as another device.
    let anew = strict.devices().expect("a list").by_name("rxe0").expect("listed");
    anew.open().expect("opened");
    assert_ne!(anew.instance().timestamp, asked.instance().timestamp);
}

#[test]
fn records_stay_with_their_instance() {
    let machine = Machine::new();
    let a = machine.add(device("a", 1)).expect("added");
    let b = machine.add(device("b", 2)).expect("added");
    let registry = registry(&machine);
    let list = || registry.devices().expect("a list");
    let (first, second) = (list().by_name("a").expect("a"), list().by_name("b").expect("b"));
    machine.evict();
    machine.swap_names(a, b).expect("swapped");
    assert_eq!(list().by_name("b").expect("listed"), first);
    assert_eq!(second.name(), "a");
    machine.rename(a, b"x/y").expect("renamed");
    assert_eq!(list().by_name("x/y").expect("listed"), first);
    machine.remove(b);
    assert_eq!(list().len(), 1);
    assert!(second.is_known_gone() && !first.is_known_gone());
    machine.reload_ib_uverbs().expect("reloaded");
    assert_eq!(list().len(), 1);
    assert!(first.is_known_gone());
}

#[test]
fn the_node_is_looked_at_before_it_is_opened() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let asked = listed(&machine, "rxe0");
    // Swapped between the look and the open: opened once, refused, closed.
    machine.on_call(|world, call| {
        let opens = call.kind() == CallKind::Openat2 && call.detail(world).ends_with("/uverbs0");
        if opens && call.detail(world).contains("/dev") {
            world.set_node(0, NodeKind::Device(1, 3));
        }
        Verdict::Continue
    });
    assert_eq!(kind(asked.open()), ErrorKind::NodeMismatch);
    assert_eq!(machine.node_opens(), [NodeOpened::Device(1, 3)]);
    drop(asked);
    assert_eq!(machine.open_handles(), 0);
}
