//! How many calls summaries take, and with how many threads and descriptors.

use super::*;

/// Nothing is read twice where a sweep can confirm nothing, or where netlink has no answer.
#[test]
fn what_cannot_be_confirmed_costs_little_more() {
    const DEVICES: usize = 100;
    for world in ["hidden", "gaps", "inodes repeat", "ports do not answer"] {
        let machine = Machine::new();
        let ids: Vec<_> = (0..DEVICES)
            .map(|number| machine.add(DeviceSpec::new(format!("a{number}"))).expect("added"))
            .collect();
        match world {
            "hidden" => machine.with(|world| {
                ids[20..].iter().for_each(|id| world.move_netns(*id, false).expect("moved"));
            }),
            "gaps" => ids.iter().step_by(2).for_each(|id| machine.remove(*id)),
            "inodes repeat" => machine.set_sys_type(0x0102_1994),
            _ => machine.on_call(|world, call| {
                let is_port =
                    call.kind() == CallKind::Send && call.detail(world).contains("PORT_GET");
                if is_port { Verdict::Fail(5) } else { Verdict::Continue }
            }),
        }
        let registry = || {
            let host = Host::builder().allow_foreign_sys(true).simulated(&machine).build();
            Registry::new(host.expect("a host"))
        };
        let at_once = calls(&machine, || drop(registry().summaries(1).expect("a list")));
        let alone = calls(&machine, || drop(one_by_one(&registry())));
        // What cannot be read without being held is read once more.
        let most = if world == "ports do not answer" { alone * 3 / 2 } else { alone * 21 / 20 };
        assert!(at_once < most, "{world}: {at_once} calls, and {alone}");
    }
}

/// Wherever the indices are, each device takes about as many calls.
#[test]
fn no_index_is_far() {
    for (count, first, gap, dumps) in [
        (2, 0, 1, 0),
        (2, 1000, 1, 1),
        (16, 40, 1, 1),
        (32, 100_000, 1, 1),
        (200, 0, 1, 0),
        (200, 1 << 30, 1, 1),
        (200, 0, 2, 1),
        (200, 0, 100, 1),
        (256, 7, 17, 1),
        (257, 0, 1, 0),
        (300, 500, 1, 0),
        (300, 500, 2, 0),
        // The steps of the search are longer than all indices together.
        (300, 100_000, 1, 1),
    ] {
        let machine = Machine::new();
        for number in 0..count {
            machine.set_next_index(first + gap * number);
            machine.add(DeviceSpec::new(format!("a{number}"))).expect("added");
        }
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let (sent, counted) = std::sync::mpsc::channel();
        machine.on_call(move |world, call| {
            if call.kind() == CallKind::Send && call.detail(world).contains("dump") {
                let _ = sent.send(());
            }
            Verdict::Continue
        });
        let found = calls(&machine, || assert_eq!(all(&registry).len(), count as usize));
        machine.clear_hook();
        assert_eq!(counted.try_iter().count(), dumps, "{count} from {first} by {gap}");
        // Sweeps, a dump, and those of each device. Across gaps, where nothing is dumped, some more.
        let each = if count > 256 && gap > 1 { 18 } else { 12 };
        let most = 320 + each * u64::from(count);
        assert!(found <= most, "{count} from {first} by {gap}: {found} calls, not {most}");
    }
}

/// Devices of another namespace are held, and no others.
#[test]
fn devices_of_another_namespace_are_held() {
    for count in [100, 300] {
        let machine = Machine::new();
        let add = |number| machine.add(DeviceSpec::new(format!("a{number}"))).expect("added");
        let ids: Vec<_> = (0..count).map(add).collect();
        let hidden: Vec<_> = ids.iter().step_by(20).collect();
        hidden.iter().for_each(|id| machine.set_netns_visible(**id, false));
        let (looks, counted) = std::sync::mpsc::channel();
        machine.on_call(move |world, call| {
            // Only a device that is held is looked at so.
            if call.kind() == CallKind::Openat2 && call.detail(world).contains("ibdev") {
                let _ = looks.send(());
            }
            Verdict::Continue
        });
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let found = registry.summaries(1).expect("a list");
        machine.clear_hook();
        let is_elsewhere = |error: &Error| error.kind() == ErrorKind::OtherNamespace;
        let elsewhere = found.iter().filter(|found| has_error(found, is_elsewhere));
        assert_eq!((found.len(), elsewhere.count()), (count, hidden.len()));
        assert_eq!(counted.try_iter().count(), hidden.len());
    }
}

/// A device whose removal waits has an index and no node. The kernel takes long for a request for it.
#[test]
fn an_index_without_a_node_is_requested_once() {
    for count in [4, 300] {
        let machine = Machine::new();
        let spec = |number| DeviceSpec::new(format!("a{number}")).disassociates(false);
        let add = |number| machine.add(spec(number)).expect("added");
        let ids: Vec<_> = (0..count).map(add).collect();
        machine.foreign_context(ids[1]).expect("held");
        machine.remove(ids[1]);
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let (requests, counted) = std::sync::mpsc::channel();
        machine.on_call(move |world, call| {
            if call.kind() == CallKind::Send && call.detail(world) == "GET_CHARDEV 1" {
                let _ = requests.send(());
            }
            Verdict::Continue
        });
        for _ in 0..3 {
            assert_eq!(all(&registry).len(), count - 1);
        }
        machine.clear_hook();
        assert_eq!(counted.try_iter().count(), 1, "of {count} devices");
    }
}

/// The next list of a registry that is watched takes one call, as before.
#[test]
fn summaries_leave_the_registry_as_it_is() {
    let machine = Machine::new();
    let add = |number| machine.add(DeviceSpec::new(format!("a{number}"))).expect("added");
    let ids: Vec<_> = (0..3).map(add).collect();
    // Read while it is held.
    machine.set_port_attribute(ids[1], 1, "rate", Some(b"nonsense\n")).expect("a port");
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let watch = registry.watch().expect("a watch");
    (0..3).for_each(|_| drop(registry.devices().expect("a list")));
    assert_eq!(calls(&machine, || drop(registry.devices().expect("a list"))), 1);
    assert_eq!(all(&registry).len(), 3);
    assert_eq!(calls(&machine, || drop(registry.devices().expect("a list"))), 1);
    drop(watch);
}

/// A thread that has no room for its descriptors leaves no device out.
#[test]
fn threads_with_few_descriptors_list_every_device() {
    let machine = Machine::new();
    for number in 0..200 {
        machine.add(DeviceSpec::new(format!("a{number}"))).expect("added");
    }
    // Room for those of one thread, beside /sys and /dev.
    machine.on_call(|world, call| {
        std::thread::yield_now();
        match call.kind() {
            CallKind::Openat2 | CallKind::RdmaSocket if world.open_handles() >= 5 => {
                Verdict::Fail(24)
            }
            _ => Verdict::Continue,
        }
    });
    for threads in [1, 2, 4] {
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let devices = registry.devices_by(threads).expect("a list");
        assert_eq!((devices.len(), devices.faults().count()), (200, 0), "{threads} threads");
        let found = registry.summaries(threads).expect("a list");
        let read = found.iter().filter(|found| !has_error(found, |_| true));
        assert_eq!((found.len(), read.count()), (200, 200), "{threads} threads");
    }
    machine.clear_hook();
}

#[test]
fn threads_share_the_work_and_keep_the_order() {
    const DEVICES: u32 = 200;
    let machine = Machine::new();
    for number in 0..DEVICES {
        let id = machine.add(DeviceSpec::new(format!("a{number}"))).expect("added");
        machine.set_netdev(id, 1, Some((number + 1, "eth"))).expect("a port");
    }
    let by = |threads| {
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let devices = registry.devices_by(threads).expect("a list");
        let netdevs = registry.summaries(threads).expect("a list").into_iter().map(|summary| {
            let ports = summary.expect("read").ports.expect("read");
            ports[0].netdev.as_ref().map(|netdev| netdev.index)
        });
        let netdevs: Vec<_> = netdevs.collect();
        (devices.iter().map(Device::instance).collect::<Vec<_>>(), netdevs)
    };
    let (devices, netdevs) = by(1);
    assert_eq!(netdevs, (1..=DEVICES).map(Some).collect::<Vec<_>>());
    for threads in [0, 2, 3, 7, usize::MAX] {
        assert_eq!(by(threads), (devices.clone(), netdevs.clone()), "{threads} threads");
    }
    // Each has a socket of its own.
    let (sockets, counted) = std::sync::mpsc::channel();
    machine.on_call(move |_, call| {
        if call.kind() == CallKind::RdmaSocket {
            let _ = sockets.send(());
        }
        Verdict::Continue
    });
    for (threads, expected) in [(3, 3), (usize::MAX, 6)] {
        by(threads);
        assert_eq!(counted.try_iter().count(), expected, "at least 32 devices a thread");
    }
    machine.clear_hook();
}
