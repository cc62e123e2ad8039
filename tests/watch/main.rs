//! The watch on the simulated kernel: what it reports, when it lists, and what it costs.

mod differences;
mod quiet;
#[cfg(feature = "tokio")]
mod stream;
mod unheard;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use uverbs::sim::{CallKind, DeviceSpec, Machine, Verdict};
use uverbs::{Change, Devices, Host, Registry, ResyncReason, Watch};

fn machine() -> (Machine, Registry) {
    let machine = Machine::new();
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    (machine, registry)
}

fn device(name: &str) -> DeviceSpec {
    DeviceSpec::new(name)
}

/// Everything that comes until nothing comes for a second, as text.
fn changes(watch: &mut Watch) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(change) = watch.wait(Some(Duration::from_secs(1))).expect("no error") {
        found.push(change.to_string());
    }
    found
}

/// Everything that can be had without waiting, as text.
fn at_once(watch: &mut Watch) -> Vec<String> {
    let mut found = Vec::new();
    while let Some(change) = watch.try_next().expect("no error") {
        found.push(change.to_string());
    }
    found
}

#[test]
fn each_change_is_reported_once() {
    let (machine, registry) = machine();
    let old = machine.add(device("old")).expect("added");
    let mut watch = registry.watch().expect("a watch");
    assert_eq!(at_once(&mut watch), [""; 0]);

    let new = machine.add(device("new")).expect("added");
    assert_eq!(at_once(&mut watch), ["new (uverbs1): added", "new (uverbs1): ready"]);
    machine.advance(Duration::from_secs(1));
    machine.rename(new, b"newer").expect("renamed");
    assert_eq!(at_once(&mut watch), ["uverbs1: renamed from new to newer"]);
    machine.advance(Duration::from_secs(1));
    machine.remove(old);
    assert_eq!(at_once(&mut watch), ["old (uverbs0): removed"]);
    machine.advance(Duration::from_secs(1));
    machine.remove(new);
    machine.add(device("newest")).expect("added");
    machine.add(device("last")).expect("added");
    assert_eq!(
        at_once(&mut watch),
        [
            "newer (uverbs1): replaced by last (uverbs1)",
            "newest (uverbs0): added",
            "last (uverbs1): ready",
            "newest (uverbs0): ready"
        ]
    );
    assert_eq!(changes(&mut watch), [""; 0]);
}

#[test]
fn an_addition_is_not_made_to_wait_for_the_check() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.add(device("new")).expect("added");
    let queries = Arc::new(AtomicUsize::new(0));
    machine.on_call({
        let queries = queries.clone();
        move |_, call| {
            queries.fetch_add(usize::from(call.kind() == CallKind::Recv), Relaxed);
            Verdict::Continue
        }
    });
    let first = watch.try_next().expect("no error").expect("a change");
    assert_eq!((first.to_string(), queries.load(Relaxed)), ("new (uverbs0): added".into(), 0));
    assert_eq!(at_once(&mut watch), ["new (uverbs0): ready"]);
    assert_ne!(queries.load(Relaxed), 0);
}

#[test]
fn a_move_of_namespace_is_another_instance() {
    let (machine, registry) = machine();
    let id = machine.add(device("rxe0")).expect("added");
    let mut watch = registry.watch().expect("a watch");
    machine.move_netns(id, false).expect("moved");
    assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): replaced by rxe0 (uverbs0)"]);
    machine.move_netns(id, true).expect("moved");
    assert_eq!(
        changes(&mut watch),
        ["rxe0 (uverbs0): replaced by rxe0 (uverbs0)", "rxe0 (uverbs0): ready"]
    );
}

#[test]
fn it_may_begin_with_what_is_there() {
    let (machine, registry) = machine();
    machine.add(device("rxe0")).expect("added");
    let mut watch = registry.watch_since(&Devices::default()).expect("a watch");
    assert_eq!(watch.devices().len(), 1);
    assert_eq!(at_once(&mut watch), ["rxe0 (uverbs0): added"]);
    assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): ready"]);
    let before = registry.devices().expect("a list");
    machine.add(device("rxe1")).expect("added");
    let mut watch = registry.watch_since(&before).expect("a watch");
    assert_eq!(at_once(&mut watch), ["rxe1 (uverbs1): added"]);
}

#[test]
fn ready_waits_for_the_registration_and_the_node() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    let id = machine.begin_add(device("rxe0")).expect("added");
    assert_eq!(at_once(&mut watch), [""; 0]);
    machine.add_step(id);
    machine.record_calls(true);
    assert_eq!(at_once(&mut watch), ["rxe0 (uverbs0): added"]);
    let log = machine.call_log();
    assert!(!log.iter().any(|call| call.starts_with("sendto")), "netlink was queried: {log:?}");
    machine.add_step(id);
    // Between the two, netlink reports it, and nothing has been heard.
    assert_eq!(at_once(&mut watch), [""; 0]);
    machine.add_step(id);
    machine.advance(Duration::from_millis(10));
    assert_eq!(at_once(&mut watch), ["rxe0 (uverbs0): ready"]);

    // A container without the node, which is made later.
    machine.set_devtmpfs(false);
    machine.add(device("rxe1")).expect("added");
    assert_eq!(changes(&mut watch), ["rxe1 (uverbs1): added"]);
    machine.set_node(1, uverbs::sim::NodeKind::Static);
    machine.set_node(1, uverbs::sim::NodeKind::Forbidden);
    assert_eq!(changes(&mut watch), [""; 0]);
    machine.set_node(1, uverbs::sim::NodeKind::Static);
    let mut found = Vec::new();
    for _ in 0..8 {
        found.extend(changes(&mut watch));
    }
    assert_eq!(found, ["rxe1 (uverbs1): ready"]);
}

#[test]
fn a_blocked_removal_is_reported_at_once() {
    let (machine, registry) = machine();
    let id = machine.add(device("rxe0").disassociates(false)).expect("added");
    let mut watch = registry.watch().expect("a watch");
    let open = registry.devices().expect("a list").by_name("rxe0").expect("it").open();
    let open = open.expect("a context");
    machine.remove(id);
    assert!(!machine.is_gone(id));
    assert_eq!(at_once(&mut watch), ["rxe0 (uverbs0): removed"]);
    drop(open);
    assert!(machine.open_handles() > 0 && machine.is_gone(id));
    machine.advance(Duration::from_secs(1));
    assert_eq!(changes(&mut watch), [""; 0]);
}

#[test]
fn an_error_is_returned_once_and_the_watch_goes_on() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.on_call(|_, call| match call.kind() {
        uverbs::sim::CallKind::Openat2 => uverbs::sim::Verdict::Fail(23),
        _ => uverbs::sim::Verdict::Continue,
    });
    machine.add(device("rxe0")).expect("added");
    let error = watch.try_next().expect_err("no list");
    assert_eq!(error.raw_os_error(), Some(23));
    let before = machine.calls();
    for _ in 0..10 {
        assert!(watch.wait(Some(Duration::from_millis(100))).expect("no error again").is_none());
    }
    assert!(machine.calls() - before < 100, "it spins");
    machine.clear_hook();
    assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"]);
}

#[test]
fn watches_and_lists_agree() {
    let (machine, registry) = machine();
    let (mut a, mut b) = (registry.watch().expect("a"), registry.watch().expect("b"));
    machine.add(device("rxe0")).expect("added");
    let listed = registry.devices().expect("a list");
    let added = |watch: &mut Watch| match watch.try_next().expect("no error") {
        Some(Change::Added { device, .. }) => device,
        other => panic!("{other:?}"),
    };
    let (from_a, from_b) = (added(&mut a), added(&mut b));
    assert_eq!((&from_a, &from_b), (&listed.as_slice()[0], &listed.as_slice()[0]));
    drop(a);
    machine.rename(machine.instance_of(0).expect("it"), b"other").expect("renamed");
    assert_eq!(registry.devices().expect("a list").by_name("other").expect("it"), from_b);
}

#[test]
fn nothing_is_left_open() {
    let (machine, registry) = machine();
    let before = machine.open_handles();
    for at in 0..40 {
        // Whatever call fails, the watch is there or everything is closed.
        machine.on_call({
            let first = machine.calls();
            move |_, call| match call.ordinal() == first + at + 1 {
                true => uverbs::sim::Verdict::Fail(24),
                false => uverbs::sim::Verdict::Continue,
            }
        });
        let watch = registry.watch();
        machine.clear_hook();
        drop(watch);
        assert_eq!(machine.open_handles(), before, "call {at}");
    }
}

#[test]
fn the_reasons_have_names() {
    let reasons = [
        ResyncReason::Overflow,
        ResyncReason::Cut,
        ResyncReason::EventsMissing,
        ResyncReason::NoEvents,
    ];
    let names = reasons.map(ResyncReason::name);
    assert_eq!(names, ["overflow", "cut", "events_missing", "no_events"]);
    assert!(reasons.iter().all(|reason| !reason.to_string().is_empty()));
}

#[test]
fn a_device_that_is_gone_is_not_checked() {
    let (machine, registry) = machine();
    machine.set_devtmpfs(false);
    let ids = ["a", "b"].map(|name| machine.add(device(name)).expect("added"));
    let mut watch = registry.watch_since(&Devices::default()).expect("a watch");
    assert_eq!(changes(&mut watch), ["a (uverbs0): added", "b (uverbs1): added"]);
    let checks = |watch: &mut Watch| {
        machine.record_calls(true);
        for _ in 0..20 {
            changes(watch);
        }
        let log = machine.call_log();
        log.iter().filter(|call| call.starts_with("openat2(/dev")).count()
    };
    // Every eight seconds at last.
    assert!((2..=14).contains(&checks(&mut watch)));
    machine.remove(ids[0]);
    machine.remove(ids[1]);
    machine.add(device("c")).expect("added");
    machine.set_node(0, uverbs::sim::NodeKind::Static);
    let found = changes(&mut watch);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(checks(&mut watch), 0);
}

/// A node that leads elsewhere is not ready, whatever it leads to.
#[test]
fn a_wrong_node_is_not_ready() {
    use uverbs::sim::NodeKind;
    let (machine, registry) = machine();
    machine.add(device("a")).expect("added");
    let listed = registry.devices().expect("a list").by_name("a").expect("listed");
    listed.check_ready().expect("ready");
    for (kind, expected) in [
        (NodeKind::Device(1, 3), uverbs::ErrorKind::NodeMismatch),
        (NodeKind::Fifo, uverbs::ErrorKind::NodeMismatch),
        (NodeKind::Regular, uverbs::ErrorKind::NodeMismatch),
        (NodeKind::Missing, uverbs::ErrorKind::Os),
        (NodeKind::Static, uverbs::ErrorKind::Busy),
        (NodeKind::Forbidden, uverbs::ErrorKind::PermissionDenied),
    ] {
        machine.set_node(0, kind.clone());
        match (listed.check_ready(), &kind) {
            (Ok(()), NodeKind::Static) => {}
            (found, _) => assert_eq!(found.expect_err("not ready").kind(), expected, "{kind:?}"),
        }
    }
    assert!(machine.node_opens().is_empty(), "it was opened");
    machine.set_node(0, NodeKind::Missing);
    machine.remove(machine.instance_of(0).expect("it"));
    assert_eq!(listed.check_ready().expect_err("gone").kind(), uverbs::ErrorKind::Removed);
}

#[test]
fn it_is_an_iterator() {
    let (machine, registry) = machine();
    machine.add(device("a")).expect("added");
    let watch = registry.watch_since(&Devices::default()).expect("a watch");
    let lines = watch.take(2).map(|change| change.expect("no error").to_string());
    assert_eq!(lines.collect::<Vec<_>>(), ["a (uverbs0): added", "a (uverbs0): ready"]);
}

#[test]
fn few_unready_devices_are_checked_at_once() {
    let (machine, registry) = machine();
    machine.set_devtmpfs(false);
    let mut watch = registry.watch().expect("a watch");
    let ids: Vec<_> =
        (0..40).map(|at| machine.add(device(&format!("m{at}"))).expect("added")).collect();
    assert_eq!(at_once(&mut watch).len(), 40);
    machine.advance(Duration::from_millis(60));
    machine.record_calls(true);
    assert!(watch.try_next().expect("no error").is_none());
    let log = machine.call_log();
    let checks = log.iter().filter(|call| call.starts_with("openat2(/dev")).count();
    assert!((1..=16).contains(&checks), "{checks}");
    // One that goes takes no other with it.
    machine.remove(ids[3]);
    assert_eq!(changes(&mut watch), ["m3 (uverbs3): removed"]);
    machine.set_node(5, uverbs::sim::NodeKind::Static);
    let mut found = Vec::new();
    for _ in 0..10 {
        found.extend(changes(&mut watch));
    }
    assert_eq!(found, ["m5 (uverbs5): ready"]);
}

/// A device that could not be read is looked at again, less and less often.
#[test]
fn an_unreadable_device_is_retried_at_growing_intervals() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.on_call(|world, call| match call.detail(world).ends_with("uverbs0: ibdev") {
        true => uverbs::sim::Verdict::Fail(12),
        false => uverbs::sim::Verdict::Continue,
    });
    machine.add(device("rxe0")).expect("added");
    machine.record_calls(true);
    for _ in 0..150 {
        assert!(watch.try_next().expect("a fault is no error").is_none());
        machine.advance(Duration::from_millis(10));
    }
    let log = machine.call_log();
    let looks = log.iter().filter(|call| call.ends_with("uverbs0: ibdev)")).count();
    // At once, and after 100, 300, 700 and 1500 ms.
    assert!((4..=5).contains(&looks), "{looks}");
    machine.clear_hook();
    assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"]);
}
