//! When the descriptor is readable.

use super::*;
use crate::host::Host;
use crate::sim::{CallKind, DeviceSpec, Machine, Verdict};

fn machine() -> (Machine, Registry) {
    let machine = Machine::new();
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    (machine, registry)
}

fn is_readable(watch: &Watch) -> bool {
    watch.follower.kernel().poll(&watch.epoll, Some(Duration::ZERO)).expect("polled")
}

#[test]
fn what_is_queued_from_the_start_makes_it_readable() {
    let (machine, registry) = machine();
    let id = machine.add(DeviceSpec::new("a")).expect("added");
    let before = registry.devices().expect("a list");
    machine.remove(id);
    let mut watch = registry.watch_since(&before).expect("a watch");
    assert!(is_readable(&watch));
    while watch.try_next().expect("no error").is_some() {}
    assert!(!is_readable(&watch));
    assert!(!is_readable(&registry.watch().expect("a watch")));
}

/// A timer that has gone off stays readable until it is set again.
#[test]
fn it_is_not_readable_for_a_time_that_is_over() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    // Later than the timer, as on a real clock.
    machine.advance(Duration::from_secs(3));
    assert!(is_readable(&watch));
    assert!(watch.try_next().expect("no error").is_none());
    assert!(!is_readable(&watch));
    // A timer that goes off early enough is not set again for each event.
    machine.record_calls(true);
    for _ in 0..5 {
        machine.foreign_uevent(b"add@/d/fuse\0ACTION=add\0SUBSYSTEM=bdi\0");
        machine.advance(Duration::from_millis(10));
        assert!(watch.try_next().expect("no error").is_none());
    }
    let log = machine.call_log();
    assert!(!log.iter().any(|call| call.starts_with("timerfd_settime")), "{log:?}");
}

/// An edge-triggered wait, such as tokio's, sees no edge for messages that are left in the socket.
#[test]
fn messages_that_are_left_cause_an_edge() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    for _ in 0..3000 {
        machine.foreign_uevent(b"add@/d/fuse\0ACTION=add\0SUBSYSTEM=bdi\0");
    }
    assert!(watch.try_next().expect("no error").is_none());
    let goes_off = watch.follower.alarm.at.expect("set");
    assert!(goes_off <= machine.clock(), "{goes_off:?}");
    while is_readable(&watch) {
        assert!(watch.try_next().expect("no error").is_none());
    }
    assert!(watch.follower.alarm.at.expect("set") > machine.clock());
}

/// A socket that was passed in stays open when the watch drops it.
#[test]
fn a_socket_that_fails_is_not_waited_for() {
    let (machine, registry) = machine();
    let mut watch = registry.watch().expect("a watch");
    let _passed_in = watch.follower.uevents.clone();
    machine.on_call(|_, call| match call.kind() {
        CallKind::RecvUevent => Verdict::Fail(1),
        _ => Verdict::Continue,
    });
    machine.foreign_uevent(b"add@/d/fuse\0ACTION=add\0SUBSYSTEM=bdi\0");
    assert!(is_readable(&watch));
    watch.try_next().expect_err("no socket");
    while watch.try_next().expect("no error").is_some() {}
    assert!(!is_readable(&watch));
}
