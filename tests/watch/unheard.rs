//! Events that are lost, forged, repeated, cut or of no interest.

use std::time::Duration;

use uverbs::sim::{CallKind, Machine, Verdict};
use uverbs::{Change, Host, Registry, ResyncReason, Watch};

use super::{at_once, changes, device, machine};

/// How many sweeps it makes while `act` runs.
fn sweeps(machine: &Machine, act: impl FnOnce()) -> usize {
    machine.record_calls(true);
    act();
    let log = machine.call_log();
    machine.record_calls(false);
    let is_sweep =
        |call: &&String| call.starts_with("openat2") && call.ends_with("class/infiniband)");
    log.iter().filter(is_sweep).count()
}

#[test]
fn a_lost_event_costs_a_safety_interval() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.lose_uevents(2);
    machine.add(device("rxe0")).expect("added");
    assert_eq!(at_once(&mut watch), [""; 0]);
    let change = watch.wait(Some(Duration::from_secs(2))).expect("no error").expect("a change");
    assert_eq!(change.to_string(), "rxe0 (uverbs0): added");
    let change = watch.wait(Some(Duration::from_secs(1))).expect("no error").expect("a change");
    assert_eq!(change.to_string(), "rxe0 (uverbs0): ready");
}

#[test]
fn events_that_never_come_are_reported_once() {
    let (machine, registry) = machine();
    machine.set_in_user_namespace(true);
    let mut watch = registry.watch().expect("a watch");
    let missing = ResyncReason::EventsMissing;
    let mut reported = 0;
    for round in 0..10 {
        machine.lose_uevents(u32::MAX);
        let id = machine.add(device("rxe0")).expect("added");
        let mut found = Vec::new();
        while let Some(change) = watch.wait(Some(Duration::from_secs(3))).expect("no error") {
            match change {
                Change::Resynchronised { reason, .. } => {
                    assert_eq!(reason, missing);
                    reported += 1;
                }
                change => found.push(change.to_string()),
            }
        }
        assert_eq!(found, ["rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"], "round {round}");
        machine.remove(id);
        let gone = watch.wait(Some(Duration::from_secs(2))).expect("no error");
        assert!(matches!(gone, Some(Change::Removed { .. })), "{gone:?}");
    }
    assert_eq!(reported, 1);

    // Once it knows, it is faster.
    machine.add(device("rxe0")).expect("added");
    let added = watch.wait(Some(Duration::from_millis(500))).expect("no error");
    assert!(matches!(added, Some(Change::Added { .. })), "{added:?}");

    // An event that arrives ends that.
    machine.lose_uevents(0);
    machine.set_in_user_namespace(false);
    let id = machine.add(device("rxe1")).expect("added");
    assert_eq!(changes(&mut watch).len(), 3, "both ready, one added");
    machine.lose_uevents(u32::MAX);
    machine.remove(id);
    let mut found = Vec::new();
    for _ in 0..6 {
        found.extend(changes(&mut watch));
    }
    assert_eq!(found, ["rxe1 (uverbs1): removed", "resynchronised: uevents do not arrive"]);
}

/// Where only the events of RDMA devices arrive, they do not end that.
#[test]
fn events_of_uverbs_devices_alone_may_be_missing() {
    let (machine, registry) = machine();
    machine.set_in_user_namespace(true);
    let id = machine.add(device("rxe0")).expect("added");
    let mut watch = registry.watch().expect("a watch");
    let mut reported = 0;
    for round in 0..5 {
        machine.recreate_uverbs(id).expect("another instance");
        let mut found = Vec::new();
        for _ in 0..3 {
            found.extend(changes(&mut watch));
        }
        let missing = found.iter().filter(|line| line.ends_with("do not arrive")).count();
        assert_eq!(found.len() - missing, 2, "replaced and ready: {found:?}");
        reported += missing;
        machine.rename(id, format!("n{round}").as_bytes()).expect("renamed");
        let renamed = changes(&mut watch);
        reported += renamed.iter().filter(|line| line.ends_with("do not arrive")).count();
        assert!(renamed.iter().any(|line| line.contains("renamed")), "{renamed:?}");
    }
    assert_eq!(reported, 1);
    // Lists are swept there, too.
    machine.recreate_uverbs(id).expect("another instance");
    let listed = registry.devices().expect("a list");
    assert_eq!(listed.as_slice()[0].instance().ino, machine.listed()[0].1);
}

#[test]
fn a_sweep_ahead_of_its_event_is_no_missing_event() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    for _ in 0..5 {
        machine.hold_uevents();
        let id = machine.add(device("rxe0")).expect("added");
        for what in ["added", "ready"] {
            let change = watch.wait(Some(Duration::from_secs(2))).expect("no error");
            assert!(change.expect("a change").to_string().ends_with(what));
        }
        machine.release_uevents(true);
        assert_eq!(changes(&mut watch), [""; 0]);
        machine.remove(id);
        assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): removed"]);
    }
}

#[test]
fn without_a_socket_it_sweeps() {
    let machine = Machine::new();
    let hosts = [
        Host::builder().simulated(&machine).without_uevents().build().expect("a host"),
        Host::simulated(&machine).expect("a host"),
    ];
    for host in hosts {
        machine.deny_uevents(Some(1));
        let registry = Registry::new(host);
        let mut watch = registry.watch().expect("a watch");
        let missing = "resynchronised: there is no uevent socket";
        assert_eq!(changes(&mut watch), [missing]);
        let id = machine.add(device("rxe0")).expect("added");
        let added = watch.wait(Some(Duration::from_millis(500))).expect("no error");
        assert!(matches!(added, Some(Change::Added { .. })), "{added:?}");
        machine.remove(id);
        assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): removed"]);
    }
}

#[test]
fn forged_and_foreign_messages_cause_no_sweep() {
    let (machine, registry) = machine();
    let id = machine.add(device("rxe0")).expect("added");
    let mut watch = registry.watch().expect("a watch");
    machine.synthetic_uevent(id);
    at_once(&mut watch);
    let genuine = b"remove@/d/uverbs0\0ACTION=remove\0SUBSYSTEM=infiniband_verbs\0";
    let count = sweeps(&machine, || {
        for (port, groups) in [(0, 1), (77, 1), (0, 2), (0, 0)] {
            machine.forge_uevent(genuine, port, groups);
            assert_eq!(at_once(&mut watch), [""; 0]);
        }
        for _ in 0..100 {
            machine.foreign_uevent(b"add@/d/fuse\0ACTION=add\0SUBSYSTEM=bdi\0");
        }
        assert_eq!(at_once(&mut watch), [""; 0]);
    });
    assert_eq!(count, 0);
    // What only the kernel can send is a hint. Nothing in it is used.
    machine.advance(Duration::from_secs(1));
    let count = sweeps(&machine, || {
        machine.foreign_uevent(genuine);
        assert_eq!(at_once(&mut watch), [""; 0]);
    });
    assert_eq!(count, 1);
    machine.advance(Duration::from_secs(1));
    machine.foreign_uevent(b"garbage");
    assert_eq!(at_once(&mut watch), [""; 0]);
}

/// How many sweeps a second of genuine events causes, one each millisecond.
fn sweeps_a_second(machine: &Machine, watch: &mut Watch, mut event: impl FnMut()) -> usize {
    machine.advance(Duration::from_secs(5));
    at_once(watch);
    sweeps(machine, || {
        for _ in 0..1000 {
            event();
            at_once(watch);
            machine.advance(Duration::from_millis(1));
        }
    })
}

#[test]
fn the_rate_of_sweeps_is_limited() {
    let (machine, registry) = machine();
    let id = machine.add(device("rxe0")).expect("added");
    let mut watch = registry.watch().expect("a watch");
    let count = sweeps_a_second(&machine, &mut watch, || machine.synthetic_uevent(id));
    assert!((90..=101).contains(&count), "{count}");

    machine.set_uevent_room(0);
    let count = sweeps_a_second(&machine, &mut watch, || machine.synthetic_uevent(id));
    assert!((9..=11).contains(&count), "{count} after overflows");
}

#[test]
fn an_overflow_is_reported_and_harmless() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.set_uevent_room(3);
    for at in 0..500 {
        machine.add(device(&format!("rxe{at}"))).expect("added");
    }
    let found = changes(&mut watch);
    assert_eq!(found[0], "resynchronised: uevents were lost: the socket's buffer was full");
    let count = |what: &str| found.iter().filter(|line| line.ends_with(what)).count();
    assert_eq!((count("added"), count("ready"), found.len()), (500, 500, 1001));
}

/// Until the queue has been read to its end, the kernel drops what comes and does not report it again.
#[test]
fn what_is_dropped_while_an_overflow_is_read_is_found() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.set_uevent_room(1500);
    for _ in 0..1501 {
        machine.foreign_uevent(b"add@/d/fuse\0ACTION=add\0SUBSYSTEM=bdi\0");
    }
    let overflow = "resynchronised: uevents were lost: the socket's buffer was full";
    assert_eq!(watch.try_next().expect("no error").expect("a change").to_string(), overflow);
    machine.add(device("rxe0")).expect("added");
    let mut found = Vec::new();
    let end = machine.clock() + Duration::from_millis(110);
    while let Some(change) = watch.wait(Some(end - machine.clock())).expect("no error") {
        found.push(change.to_string());
    }
    assert!(found.contains(&"rxe0 (uverbs0): added".into()), "{found:?}");
}

#[test]
fn a_later_overflow_is_reported_again() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.set_uevent_room(0);
    let brief = |watch: &mut Watch| {
        let id = machine.add(device("brief")).expect("added");
        machine.remove(id);
        changes(watch)
    };
    let overflow = "resynchronised: uevents were lost: the socket's buffer was full";
    for _ in 0..4 {
        assert_eq!(brief(&mut watch), [overflow]);
    }
}

#[test]
fn a_sweep_that_failed_leaves_its_event_heard() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.add(device("rxe0")).expect("added");
    machine.on_call(|_, call| match call.kind() {
        CallKind::Openat2 => Verdict::Fail(24),
        _ => Verdict::Continue,
    });
    watch.try_next().expect_err("no descriptors");
    machine.clear_hook();
    let mut found = Vec::new();
    for _ in 0..6 {
        found.extend(changes(&mut watch));
    }
    assert_eq!(found, ["rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"]);
}

#[test]
fn a_device_that_could_not_be_read_is_looked_at_again_soon() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.add(device("rxe0")).expect("added");
    machine.on_call(|_, call| match call.kind() {
        CallKind::Pread => Verdict::Fail(12),
        _ => Verdict::Continue,
    });
    assert_eq!(at_once(&mut watch), [""; 0]);
    machine.clear_hook();
    let added = watch.wait(Some(Duration::from_millis(200))).expect("no error");
    assert_eq!(added.expect("a change").to_string(), "rxe0 (uverbs0): added");
    let mut found = Vec::new();
    for _ in 0..6 {
        found.extend(changes(&mut watch));
    }
    assert_eq!(found, ["rxe0 (uverbs0): ready"]);
}

/// In a user namespace to which root is not mapped, the kernel's messages come from the overflow user.
#[test]
fn events_arrive_where_root_is_not_mapped() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.set_root_uid(65_534);
    machine.add(device("rxe0")).expect("added");
    assert_eq!(at_once(&mut watch), ["rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"]);
}

#[test]
fn a_cut_event_is_reported_and_harmless() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.cut_uevents(1);
    machine.repeat_uevents(3);
    machine.add(device("rxe0")).expect("added");
    assert_eq!(
        changes(&mut watch),
        ["resynchronised: a uevent was cut", "rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"]
    );
}

#[test]
fn a_socket_that_fails_is_closed() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    machine.on_call(|_, call| match call.kind() {
        CallKind::RecvUevent => Verdict::Fail(107),
        _ => Verdict::Continue,
    });
    assert_eq!(watch.try_next().expect_err("no socket").raw_os_error(), Some(107));
    machine.clear_hook();
    assert_eq!(changes(&mut watch), ["resynchronised: there is no uevent socket"]);
    let id = machine.add(device("rxe0")).expect("added");
    assert_eq!(changes(&mut watch), ["rxe0 (uverbs0): added", "rxe0 (uverbs0): ready"]);
    machine.remove(id);
    let removed = watch.wait(Some(Duration::from_millis(500))).expect("no error");
    assert!(matches!(removed, Some(Change::Removed { .. })), "{removed:?}");
}
