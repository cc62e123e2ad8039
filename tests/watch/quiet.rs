//! What lists cost while a watch is attached.

use std::time::Duration;

use super::{device, machine};

#[test]
fn a_list_takes_one_call_while_nothing_happens() {
    let (machine, registry) = machine();
    machine.add(device("rxe0")).expect("added");
    let cost = || {
        let before = machine.calls();
        let devices = registry.devices().expect("a list");
        (machine.calls() - before, devices.len())
    };
    // The second list confirms the names.
    cost();
    cost();
    let (sweep, _) = cost();
    assert!(sweep > 5);
    let mut watch = registry.watch().expect("a watch");
    assert_eq!(cost(), (1, 1));
    // The event of another subsystem takes a call, and no sweep.
    machine.foreign_uevent(b"add@/d/fuse\0ACTION=add\0SUBSYSTEM=bdi\0");
    assert_eq!(cost(), (2, 1));
    machine.add(device("rxe1")).expect("added");
    let (calls, len) = cost();
    assert!(calls > sweep && len == 2, "{calls}");
    cost();
    assert_eq!(cost(), (1, 2));
    // A name that an open has found is not forgotten.
    let handle = registry.devices().expect("a list").by_name("rxe0").expect("it");
    machine.lose_uevents(u32::MAX);
    machine.rename(machine.instance_of(0).expect("it"), b"other").expect("renamed");
    assert_eq!(cost(), (1, 2));
    handle.open().expect("a context");
    assert_eq!(registry.devices().expect("a list").by_name("other").expect("it"), handle);
    cost();

    // For a second at most.
    machine.add(device("rxe2")).expect("added");
    assert_eq!(cost(), (1, 2), "the event was lost");
    machine.advance(Duration::from_secs(1));
    assert!(cost() > (1, 2));
    assert_eq!(registry.devices().expect("a list").len(), 3);

    // Where events are missing, each list sweeps.
    while watch.try_next().expect("no error").is_some() {}
    machine.rename(machine.instance_of(0).expect("it"), b"another").expect("renamed");
    for _ in 0..4 {
        let _ = watch.wait(Some(Duration::from_secs(2))).expect("no error");
    }
    assert!(cost().0 > 5);
    machine.lose_uevents(0);
    machine.synthetic_uevent(machine.instance_of(0).expect("it"));
    while watch.try_next().expect("no error").is_some() {}
    registry.devices().expect("a list");
    assert_eq!(cost(), (1, 3));
    drop(watch);
    assert!(cost().0 > 5);
}

#[test]
fn two_watches_share_it() {
    let (machine, registry) = machine();
    let a = registry.watch().expect("a watch");
    let b = registry.watch().expect("a watch");
    let cost = || {
        let before = machine.calls();
        registry.devices().expect("a list");
        machine.calls() - before
    };
    assert_eq!(cost(), 1);
    drop(a);
    assert_eq!(cost(), 1);
    drop(b);
    assert!(cost() > 1);
}
