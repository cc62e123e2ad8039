use super::*;
use crate::ids::Name;
use crate::sim::{DeviceSpec, Machine, Verdict};

fn is_same_record(one: &Device, other: &Device) -> bool {
    Arc::ptr_eq(&one.0, &other.0)
}

#[test]
fn a_lookup_by_index_and_a_list_share_the_record() {
    let machine = Machine::new();
    let ids = ["a", "b", "c"].map(|name| machine.add(DeviceSpec::new(name)).expect("added"));
    let host = Host::simulated(&machine).expect("a host");
    let registry = Registry::new(host);
    let found = registry.by_index(machine.index_of(ids[1])).expect("found");
    assert_eq!((found.name(), found.uverbs_number()), (Name::new(b"b"), 1));
    for _ in 0..2 {
        let devices = registry.devices().expect("a list");
        assert_eq!(devices.len(), 3);
        assert!(is_same_record(&found, &devices.by_name("b").expect("listed")));
    }
    for id in ids {
        let found = registry.by_index(machine.index_of(id)).expect("found");
        let listed = registry.devices().expect("a list");
        assert!(is_same_record(&found, &listed.as_slice()[found.uverbs_number() as usize]));
    }
}

#[test]
fn a_lookup_by_index_marks_replaced_devices_and_follows_renames() {
    let machine = Machine::new();
    let old = machine.add(DeviceSpec::new("a")).expect("added");
    let host = Host::simulated(&machine).expect("a host");
    let registry = Registry::new(host);
    let listed = registry.devices().expect("a list").by_name("a").expect("listed");
    machine.remove(old);
    let new = machine.add(DeviceSpec::new("a")).expect("added");
    let found = registry.by_index(machine.index_of(new)).expect("found");
    assert!(listed.is_known_gone() && !found.is_known_gone() && found != listed);
    machine.rename(new, b"z").expect("renamed");
    assert_eq!(registry.by_index(machine.index_of(new)).expect("found").name(), Name::new(b"z"));
    let devices = registry.devices().expect("a list");
    assert!(is_same_record(&found, &devices.by_name("z").expect("listed")));
    assert_eq!(
        registry.by_index(machine.index_of(old)).expect_err("gone").kind(),
        ErrorKind::NotFound
    );
}

struct Bench {
    machine: Machine,
    id: crate::sim::DeviceId,
    device: Device,
}

fn listed() -> Bench {
    let machine = Machine::new();
    let id = machine.add(DeviceSpec::new("a")).expect("added");
    let host = Host::simulated(&machine).expect("a host");
    let device = Registry::new(host).devices().expect("a list").by_name("a").expect("listed");
    Bench { machine, id, device }
}

#[test]
fn a_device_that_is_there_is_not_marked_as_gone() {
    let Bench { machine, device, .. } = listed();
    assert_eq!(device.0.fate(), None);
    // An error other than "absent" leaves it open, whichever call fails.
    for errno in [1, 5, 13, 40] {
        for at in 0..4 {
            let first = machine.calls() + 1;
            machine.on_call(move |_, call| match call.ordinal() == first + at {
                true => Verdict::Fail(errno),
                false => Verdict::Continue,
            });
            assert_eq!(device.0.fate(), None, "errno {errno} of call {at}");
        }
    }
    assert!(!device.is_known_gone());
}

#[test]
fn a_device_that_is_gone_stays_marked() {
    for is_replaced in [false, true] {
        let Bench { machine, id, device } = listed();
        machine.remove(id);
        if is_replaced {
            machine.add(DeviceSpec::new("a")).expect("added");
        }
        let gone = if is_replaced { Gone::Replaced } else { Gone::Removed };
        assert!(!device.is_known_gone());
        assert_eq!(device.0.fate(), Some(gone));
        assert_eq!(device.0.known_gone(), Some(gone));
        machine.add(DeviceSpec::new("b")).expect("added");
        assert_eq!(device.0.fate(), Some(gone));
    }
}

/// A list that began under one watch and ends under the next one.
#[test]
fn a_sweep_from_before_a_watch_makes_no_list_current() {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("a")).expect("added");
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let first = registry.watch().expect("a watch");
    machine.synthetic_uevent(machine.instance_of(0).expect("it"));
    registry.devices().expect("a list");
    let begin = registry.lock().quiet.as_ref().expect("attached").begin(registry.host().kernel());
    drop(first);
    let _second = registry.watch().expect("a watch");
    registry.lock().quiet.as_mut().expect("attached").end(&begin);
    machine.add(DeviceSpec::new("b")).expect("added");
    assert_eq!(registry.devices().expect("a list").len(), 2);
}

/// Another thread finds a device removed while a list looks at others.
#[test]
fn a_device_that_is_marked_during_a_list_is_not_listed_anew() {
    for threads in [1, 2] {
        for at in 1.. {
            let machine = Machine::new();
            let ids: Vec<_> = (0..70)
                .map(|number| machine.add(DeviceSpec::new(format!("a{number}"))).expect("added"))
                .collect();
            let registry = Registry::new(Host::simulated(&machine).expect("a host"));
            let device = registry.devices().expect("a list").by_name("a9").expect("listed");
            // The list looks at some devices before it, and at some after it.
            for number in (5..15).chain(60..70) {
                machine.rename(ids[number], format!("b{number}").as_bytes()).expect("renamed");
            }
            let (first, id, other) = (machine.calls() + 3 * at, ids[9], device.clone());
            machine.on_call(move |world, call| {
                if call.ordinal() == first {
                    world.remove(id);
                    other.record().mark(Gone::Removed);
                }
                Verdict::Continue
            });
            let after = registry.devices_by(threads).expect("a list");
            machine.clear_hook();
            let same = after.iter().find(|listed| **listed == device);
            let is_same_record = |listed: &Device| std::ptr::eq(listed.record(), device.record());
            assert!(same.is_none_or(is_same_record), "{threads} {at}");
            if machine.calls() < first {
                assert!(at > 30, "{at}");
                break;
            }
        }
    }
}
