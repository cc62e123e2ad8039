//! The protocol on the simulated kernel: what must be refused, what must not, and every single
//! mutation at every single kernel call.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, NodeKind, NodeOpened, Verdict, World};
use uverbs::{Device, ErrorKind, Host, Opened, Policy, Registry};

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
fn without_netlink_nothing_is_proved() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let asked = listed(&machine, "rxe0");
    machine.deny_netlink(Some(1));
    assert_eq!(kind(asked.open()), ErrorKind::Unproven);
    assert_eq!(machine.node_opens(), []);
    let Ok(Opened::Unproven(context)) = asked.open_allow_unproven(&Policy::new()) else {
        panic!("it is the right one, but that cannot be proved");
    };
    assert_eq!(context.query_device().expect("asked").node_guid.0, 0xa0);
    machine.deny_netlink(None);
    machine.set_no_res_ctx(true);
    assert_eq!(kind(asked.open()), ErrorKind::Unproven);
    machine.set_no_res_ctx(false);
    asked.open().expect("proved");
}

#[test]
fn a_long_list_of_contexts_is_proved_on_a_thread_of_its_own() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0)).expect("added");
    machine.set_contexts_a_page(4);
    for _ in 0..10 {
        machine.foreign_context(id).expect("a context");
    }
    let asked = listed(&machine, "rxe0");
    let (first, second) = (asked.open().expect("opened"), asked.open().expect("opened"));
    assert_ne!(machine.ctxn_of(first.as_fd()), machine.ctxn_of(second.as_fd()));
    assert_eq!(first.evidence().context_number(), machine.ctxn_of(first.as_fd()));
}

#[test]
fn a_pinned_device_verifies_what_others_open() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    machine.add(device("rxe1", 0xa0)).expect("added");
    let (asked, other) = (listed(&machine, "rxe0"), listed(&machine, "rxe1"));
    let before: OwnedFd = asked.open().expect("opened").into();
    let pinned = asked.pin().expect("pinned");
    assert_eq!(kind(pinned.verify(before.as_fd())), ErrorKind::Unproven);
    let foreign: OwnedFd = other.open().expect("opened").into();
    assert_eq!(kind(pinned.verify(foreign.as_fd())), ErrorKind::NodeMismatch);
    let fd: OwnedFd = asked.open().expect("opened").into();
    let evidence = pinned.verify(fd.as_fd()).expect("verified");
    assert_eq!(evidence.context_number(), machine.ctxn_of(fd.as_fd()));
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

/// Something that may happen between two kernel calls.
type Mutation = (&'static str, fn(&mut World, DeviceId));

/// What the world does to a device `id` that is being listed and opened.
const MUTATIONS: &[Mutation] = &[
    ("remove", |world, id| world.remove(id)),
    ("replace, same GUID", |world, id| replace(world, id, 0xa0, "rxe0")),
    ("replace, other GUID", |world, id| replace(world, id, 0xb0, "rxe0")),
    ("replace, other name", |world, id| replace(world, id, 0xb0, "other")),
    ("remove one stage", |world, id| {
        let _ = world.remove_step(id);
    }),
    ("rename", |world, id| {
        let _ = world.rename(id, b"renamed");
    }),
    ("evict", |world, _| world.evict()),
    ("listxattr", |world, _| world.listxattr(0)),
    ("symlink", |world, _| world.set_node(0, NodeKind::Symlink("uverbs1".into()))),
    ("fifo", |world, _| world.set_node(0, NodeKind::Fifo)),
    ("other device", |world, _| world.set_node(0, NodeKind::Device(1, 3))),
    ("missing node", |world, _| world.set_node(0, NodeKind::Missing)),
    ("static node", |world, _| world.set_node(0, NodeKind::Static)),
    ("recreate uverbs", |world, id| {
        let _ = world.recreate_uverbs(id);
    }),
    ("reload ib_uverbs", |world, _| {
        let _ = world.reload_ib_uverbs();
    }),
    ("reload ib_core", |world, _| {
        world.force_reload_ib_core();
        let _ = world.add(device("rxe0", 0xa0));
    }),
    ("foreign context", |world, id| {
        let _ = world.foreign_context(id);
    }),
    ("netns", |world, id| world.set_netns_visible(id, false)),
];

fn replace(world: &mut World, id: DeviceId, guid: u64, name: &str) {
    world.remove(id);
    // A removal that is blocked keeps the name: the replacement takes another.
    if world.add(device(name, guid).disassociates(false)).is_err() {
        let _ = world.add(device("second", guid).disassociates(false));
    }
}

/// Lists and opens on a machine with two devices, with one thing happening before one call. Gives the
/// outcome and how many calls it took.
fn explore(mutation: &Mutation, at: Option<u64>, setup: &Setup) -> (String, u64) {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0).disassociates(setup.disassociates)).expect("added");
    machine.add(device("rxe1", 0xa0)).expect("added");
    if setup.static_node {
        machine.set_node(0, NodeKind::Static);
    }
    let held = setup.held.then(|| listed(&machine, "rxe0").open().expect("opened"));
    let host = Host::simulated(&machine, Policy::new()).expect("a host");
    let start = machine.calls();
    let act = mutation.1;
    if let Some(at) = at {
        machine.on_call(move |world, call| {
            if call.ordinal() == start + at {
                act(world, id);
            }
            Verdict::Continue
        });
    }
    let (outcome, asked) = list_and_open(&machine, host);
    let calls = machine.calls() - start;
    drop(held);
    if let (Ok(fd), Some(ino)) = (&outcome, asked) {
        assert_eq!(
            machine.directory_of(fd.as_fd()),
            Some(ino),
            "WRONG DEVICE: {} before call {at:?}, {setup:?}",
            mutation.0
        );
    }
    let text = match &outcome {
        Ok(_) => "Opened".to_owned(),
        Err(kind) => format!("{kind:?}"),
    };
    drop(outcome);
    assert_eq!(machine.open_handles(), 0, "leaked: {} before call {at:?}", mutation.0);
    (text, calls)
}

fn list_and_open(
    machine: &Machine,
    host: Host,
) -> (Result<uverbs::Context, ErrorKind>, Option<u64>) {
    let registry = Registry::new(host);
    let outcome = registry.devices().and_then(|list| list.by_name("rxe0"));
    match outcome {
        Err(error) => (Err(error.kind()), None),
        Ok(device) => {
            let result = device.open();
            machine.clear_hook();
            (result.map_err(|error| error.kind()), Some(device.instance().ino))
        }
    }
}

#[derive(Debug)]
struct Setup {
    disassociates: bool,
    static_node: bool,
    held: bool,
}

#[test]
fn one_mutation_at_every_call() {
    const ALLOWED: &[&str] = &[
        "Opened",
        "NotFound",
        "Removed",
        "Replaced",
        "Unstable",
        "NodeMismatch",
        "Unproven",
        "PermissionDenied",
        "Os",
        "Malformed",
    ];
    let mut outcomes: BTreeMap<(&str, String), u64> = BTreeMap::new();
    let mut executions = 0;
    for bits in 0..8 {
        let setup =
            Setup { disassociates: bits & 1 != 0, static_node: bits & 2 != 0, held: bits & 4 != 0 };
        for mutation in MUTATIONS {
            let (undisturbed, calls) = explore(mutation, None, &setup);
            assert_eq!(undisturbed, "Opened");
            for at in 0..calls {
                let (outcome, _) = explore(mutation, Some(at), &setup);
                assert!(ALLOWED.contains(&outcome.as_str()), "{outcome}");
                *outcomes.entry((mutation.0, outcome)).or_default() += 1;
                executions += 1;
            }
        }
    }
    for ((mutation, outcome), count) in &outcomes {
        println!("{mutation:22} {outcome:16} {count}");
    }
    println!("{executions} executions, no wrong device, no handle left");
    // What does no harm is no error, but that a renamed device is not found by its old name.
    for (harmless, allowed) in
        [("evict", "Opened"), ("rename", "NotFound"), ("listxattr", "Opened")]
    {
        for (_, outcome) in outcomes.keys().filter(|(name, _)| *name == harmless) {
            assert!(outcome == "Opened" || outcome == allowed, "{harmless}: {outcome}");
        }
    }
}

#[test]
fn one_fault_at_every_call() {
    // EINTR, EAGAIN, EMFILE, ENOMEM, EIO, EPERM, ENOBUFS
    for errno in [4, 11, 24, 12, 5, 1, 105] {
        for verdict in [Verdict::Fail(errno), Verdict::Lose, Verdict::Truncate(20)] {
            let mut at = 0;
            loop {
                let machine = Machine::new();
                let id = machine.add(device("rxe0", 0xa0)).expect("added");
                let host = Host::simulated(&machine, Policy::new()).expect("a host");
                let start = machine.calls();
                let passing = matches!(verdict, Verdict::Fail(4 | 11));
                let verdict = verdict.clone();
                machine.on_call(move |_, call| {
                    if call.ordinal() == start + at { verdict.clone() } else { Verdict::Continue }
                });
                let (outcome, _) = list_and_open(&machine, host);
                if let Ok(context) = &outcome {
                    assert_eq!(machine.device_of(context.as_fd()), Some(id));
                }
                if passing {
                    assert!(outcome.is_ok(), "a passing fault stays: {outcome:?} at call {at}");
                }
                let calls = machine.calls() - start;
                drop(outcome);
                assert_eq!(machine.open_handles(), 0);
                assert!(calls < 20_000, "it does not end");
                at += 1;
                if at > calls {
                    break;
                }
            }
        }
    }
}

#[test]
fn the_node_is_looked_at_before_it_is_opened() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let asked = listed(&machine, "rxe0");
    // Swapped between the look and the open: opened once, refused, closed.
    machine.on_call(|world, call| {
        let opens = call.kind() == CallKind::Openat2 && call.detail().ends_with("/uverbs0");
        if opens && call.detail().contains("/dev") {
            world.set_node(0, NodeKind::Device(1, 3));
        }
        Verdict::Continue
    });
    assert_eq!(kind(asked.open()), ErrorKind::NodeMismatch);
    assert_eq!(machine.node_opens(), [NodeOpened::Device(1, 3)]);
    drop(asked);
    assert_eq!(machine.open_handles(), 0);
}
