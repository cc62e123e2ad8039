//! Finding a device in a list, and by its index alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{Device, ErrorKind, Guid, Host, Name, Registry};

fn registry(machine: &Machine) -> Registry {
    Registry::new(Host::simulated(machine).expect("a host"))
}

fn add(machine: &Machine, name: &str, guid: u64) -> DeviceId {
    machine.add(DeviceSpec::new(name).guid(guid)).expect("added")
}

#[test]
fn each_lookup_finds_its_device() {
    let machine = Machine::new();
    let ids: Vec<_> =
        (0..40).map(|number| add(&machine, &format!("m{number}"), 0xa0 + number)).collect();
    let devices = registry(&machine).devices().expect("a list");
    for (place, id) in ids.iter().enumerate() {
        let device = devices.get(place).expect("there");
        assert_eq!(devices.as_slice()[place], *device);
        assert_eq!(devices.by_uverbs_number(place as u32).expect("by number"), *device);
        assert_eq!(devices.by_name(device.name()).expect("by name"), *device);
        let guid = Guid(0xa0 + place as u64);
        assert_eq!(devices.by_guid(guid).expect("by GUID"), *device);
        assert_eq!(devices.by_index(machine.index_of(*id)).expect("by index"), *device);
    }
    assert!(devices.get(40).is_none());
}

#[test]
fn a_name_may_be_given_in_each_form() {
    let machine = Machine::new();
    add(&machine, "a", 1);
    let devices = registry(&machine).devices().expect("a list");
    let name: Name = devices.get(0).expect("listed").name();
    let found = [
        devices.by_name("a"),
        devices.by_name(String::from("a")),
        devices.by_name(&name),
        devices.by_name(name),
        devices.by_name(b"a"),
        devices.by_name(&b"a"[..]),
    ];
    assert!(found.iter().all(Result::is_ok));
}

#[test]
fn an_index_is_found_with_few_requests_and_no_sweep() {
    let machine = Machine::new();
    let ids: Vec<_> = (0..100).map(|number| add(&machine, &format!("m{number}"), 1)).collect();
    let registry = registry(&machine);
    let devices = registry.devices().expect("a list");
    let calls = |kind, act: &dyn Fn()| {
        let count = Arc::new(AtomicUsize::new(0));
        let shared = count.clone();
        machine.on_call(move |_, call| {
            shared.fetch_add(usize::from(call.kind() == kind), Relaxed);
            Verdict::Continue
        });
        act();
        machine.clear_hook();
        count.load(Relaxed)
    };
    let index = machine.index_of(ids[70]);
    let in_list = || assert_eq!(devices.by_index(index).expect("found").uverbs_number(), 70);
    // One for the device number, and one for the proof that it is this device's.
    assert_eq!(calls(CallKind::Send, &in_list), 2);
    assert_eq!(calls(CallKind::Send, &in_list), 0);
    let index = machine.index_of(ids[71]);
    let alone = || assert_eq!(registry.by_index(index).expect("found").uverbs_number(), 71);
    assert_eq!(calls(CallKind::Getdents, &alone), 0);
    // By now the record knows its index.
    assert_eq!(calls(CallKind::Send, &alone), 1);
}

#[test]
fn a_list_is_iterated_by_value() {
    let machine = Machine::new();
    for name in ["a", "b", "c"] {
        add(&machine, name, 1);
    }
    let devices = registry(&machine).devices().expect("a list");
    let numbers = |devices: &mut dyn Iterator<Item = Device>| -> Vec<u32> {
        devices.map(|device| device.uverbs_number()).collect()
    };
    assert_eq!(numbers(&mut devices.clone().into_iter()), [0, 1, 2]);
    assert_eq!(numbers(&mut devices.clone().into_iter().rev()), [2, 1, 0]);
    assert_eq!((&devices).into_iter().count(), 3);
    let mut left = devices.into_iter();
    assert_eq!(left.nth(1).map(|device| device.uverbs_number()), Some(1));
    assert_eq!((left.len(), left.next_back().map(|device| device.uverbs_number())), (1, Some(2)));
    assert!(left.next().is_none() && left.next_back().is_none());
}

#[test]
fn errors_name_the_candidates() {
    let machine = Machine::new();
    let registry = registry(&machine);
    let error = registry.devices().expect("a list").by_name("x").expect_err("empty");
    assert_eq!(error.to_string(), r#"no such device ("x" is not listed; the list is empty)"#);
    for number in 0..7 {
        add(&machine, &format!("m{number}"), if number < 5 { 0xa0 } else { 0xb0 });
    }
    let devices = registry.devices().expect("a list");
    let found = devices.by_name("x\n").expect_err("none");
    assert_eq!(found.kind(), ErrorKind::NotFound);
    assert_eq!(
        found.to_string(),
        "no such device (\"x\\n\" is not listed; listed: m0 (uverbs0), m1 (uverbs1), m2 (uverbs2), \
         m3 (uverbs3), m4 (uverbs4) and 2 more)"
    );
    for (error, kind) in [
        (devices.by_uverbs_number(7), ErrorKind::NotFound),
        (devices.by_index(700), ErrorKind::NotFound),
        (devices.by_guid(Guid(0xc0)), ErrorKind::NotFound),
        (devices.by_guid(Guid(0xa0)), ErrorKind::Ambiguous),
        (devices.by_guid(Guid(0xb0)), ErrorKind::Ambiguous),
    ] {
        assert_eq!(error.expect_err("refused").kind(), kind);
    }
    let two = devices.by_guid(Guid(0xb0)).expect_err("two").to_string();
    assert_eq!(
        two,
        "more than one device matches (GUID 0000:0000:0000:00b0: m5 (uverbs5), m6 (uverbs6))"
    );
    let five = devices.by_guid(Guid(0xa0)).expect_err("five").to_string();
    assert!(five.ends_with("m4 (uverbs4))"), "{five}");
    let all = devices.by("anything", |_| true).expect_err("seven").to_string();
    assert!(all.ends_with("m4 (uverbs4) and 2 more)"), "{all}");
}

#[test]
fn a_device_that_is_gone_or_new_is_not_found() {
    let machine = Machine::new();
    let gone = add(&machine, "gone", 0xa0);
    add(&machine, "there", 0xb0);
    let registry = registry(&machine);
    let devices = registry.devices().expect("a list");
    machine.remove(gone);
    // It gets the uverbs number and the device number of the other device.
    let new = add(&machine, "new", 0xc0);
    for found in [
        devices.by_index(machine.index_of(gone)),
        devices.by_index(machine.index_of(new)),
        devices.by_guid(Guid(0xa0)),
        devices.by_guid(Guid(0xc0)),
        registry.by_index(machine.index_of(gone)),
    ] {
        assert_eq!(found.expect_err("not listed").kind(), ErrorKind::NotFound);
    }
    assert_eq!(devices.by_guid(Guid(0xb0)).expect("listed").name(), "there");
    let found = registry.by_index(machine.index_of(new)).expect("found");
    assert_eq!((found.name().to_string(), found.uverbs_number()), ("new".to_owned(), 0));
}

#[test]
fn without_netlink_the_error_reports_it() {
    let machine = Machine::new();
    let id = add(&machine, "a", 0xa0);
    let registry = registry(&machine);
    let devices = registry.devices().expect("a list");
    machine.deny_netlink(Some(1));
    let index = machine.index_of(id);
    for found in [devices.by_index(index), devices.by_guid(Guid(0xa0)), registry.by_index(index)] {
        assert_eq!(found.expect_err("denied").kind(), ErrorKind::NetlinkUnavailable);
    }
    assert!(devices.by_uverbs_number(0).is_ok());
}

#[test]
fn a_failed_query_is_the_error() {
    let machine = Machine::new();
    let hidden = add(&machine, "hidden", 0xa0);
    add(&machine, "there", 0xb0);
    let devices = registry(&machine).devices().expect("a list");
    machine.set_netns_visible(hidden, false);
    assert_eq!(devices.by_guid(Guid(0xa0)).expect_err("hidden").kind(), ErrorKind::OtherNamespace);
    assert_eq!(devices.by_guid(Guid(0xb0)).expect("found").name(), "there");
}

/// An error that does not mean that the device is gone is returned as it is.
#[test]
fn a_failed_lookup_by_index_is_the_error() {
    let machine = Machine::new();
    let index = machine.index_of(add(&machine, "a", 0xa0));
    let (mut calls, mut errors) = (0, 0);
    for at in 1.. {
        let registry = registry(&machine);
        let first = machine.calls() + at;
        machine.on_call(move |_, call| match call.ordinal() == first {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        });
        let found = registry.by_index(index);
        machine.clear_hook();
        if machine.calls() < first {
            break;
        }
        calls += 1;
        let Err(error) = found else { continue };
        errors += 1;
        assert_eq!(error.raw_os_error(), Some(12), "call {at}: {error}");
        assert!(matches!(error.kind(), ErrorKind::Os | ErrorKind::NetlinkUnavailable), "{error}");
    }
    assert!(calls > 10);
    assert_eq!(errors, 15, "an error means that the device is gone");

    // One that stays is not taken for an absent device.
    machine.on_call(|world, call| {
        match call.detail(world).contains("class/infiniband_verbs/uverbs0") {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        }
    });
    let error = registry(&machine).by_index(index).expect_err("unreadable");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Os, Some(12)));
    // Nor is a request that fails, after the first one, for a device that came and went.
    let mut requests = 0;
    machine.on_call(move |_, call| {
        requests += u32::from(call.kind() == CallKind::Send);
        match call.kind() == CallKind::Send && requests > 1 {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        }
    });
    let error = registry(&machine).by_index(index).expect_err("no answer");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Os, Some(12)));
}

/// Before every kernel call of a lookup by index, the device is replaced, removed or renamed. The returned device
/// has that index.
#[test]
fn a_lookup_by_index_finds_that_device_whatever_happens() {
    for happens in ["replace", "remove", "rename"] {
        for at in 1.. {
            let machine = Machine::new();
            let id = add(&machine, "a", 0xa0);
            let registry = registry(&machine);
            let index = machine.index_of(id);
            let (first, last) = (machine.calls() + at, machine.calls() + 100);
            machine.on_call(move |world, call| {
                assert!(call.ordinal() < last, "it does not end");
                if call.ordinal() == first {
                    match happens {
                        "rename" => world.rename(id, b"z").expect("renamed"),
                        _ => world.remove(id),
                    }
                    if happens == "replace" {
                        world.add(DeviceSpec::new("a").guid(0xb0)).expect("added");
                    }
                }
                Verdict::Continue
            });
            let found = registry.by_index(index);
            let is_over = machine.calls() < first;
            machine.clear_hook();
            match found {
                Ok(device) => assert_eq!(device.index().ok(), Some(index)),
                Err(error) => {
                    assert_ne!(happens, "rename", "{error}");
                    assert!(
                        matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unstable),
                        "{error}"
                    );
                }
            }
            if is_over {
                assert!(at > 5, "it made calls");
                break;
            }
        }
    }
}
