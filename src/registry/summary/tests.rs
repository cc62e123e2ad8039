use std::collections::BTreeSet;

use super::*;
use crate::error::ErrorKind;
use crate::host::Host;
use crate::record::Gone;
use crate::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict, World};

const FUNCTIONS: [&str; 2] = ["pci0000:3a/0000:3b:00.1", "pci0000:3a/0000:3b:00.2"];

/// What a summary must say, if it says anything: address, NUMA node, and state and network device of both ports.
type Told = (Option<String>, Option<u32>, Vec<(u32, Option<String>)>);

fn told(summary: &Summary) -> Option<Told> {
    let (place, ports) = (summary.place.as_ref().ok()?, summary.ports.as_ref().ok()?);
    let port = |port: &PortFacts| {
        (port.state.to_raw().into(), port.netdev.as_ref().map(|netdev| netdev.name.to_string()))
    };
    let pci = place.pci.map(|address| address.to_string());
    Some((pci, place.numa_node, ports.iter().map(port).collect()))
}

fn dress(world: &mut World, id: DeviceId, state: u8, netdev: &str) {
    for port in 1..=2 {
        world.set_port_state(id, port, state, 5).expect("a port");
        world.set_netdev(id, port, Some((7, netdev))).expect("a port");
    }
}

/// Two PCI functions and a software device, each with two ports.
fn machine() -> (Machine, [DeviceId; 3]) {
    let machine = Machine::new();
    let specs = [
        DeviceSpec::new("a").beneath(FUNCTIONS[0]),
        DeviceSpec::new("b").beneath(FUNCTIONS[1]),
        DeviceSpec::new("c"),
    ];
    machine.add_pci_function(FUNCTIONS[0], (0x15b3, 0x101e), 0);
    machine.add_pci_function(FUNCTIONS[1], (0x15b3, 0x101e), 1);
    let ids = specs.map(|spec| machine.add(spec.ports(2)).expect("added"));
    machine.with(|world| {
        for (id, netdev) in ids.into_iter().zip(["eth0", "eth1", "eth2"]) {
            dress(world, id, 4, netdev);
        }
    });
    (machine, ids)
}

fn truth() -> [Told; 3] {
    let told = |pci: Option<&str>, node, netdev: &str| {
        (pci.map(str::to_owned), node, vec![(4, Some(netdev.to_owned())); 2])
    };
    [
        told(Some("0000:3b:00.1"), Some(0), "eth0"),
        told(Some("0000:3b:00.2"), Some(1), "eth1"),
        told(None, None, "eth2"),
    ]
}

fn of_replacement() -> Told {
    (Some("0000:3b:00.2".to_owned()), Some(3), vec![(1, Some("eth9".to_owned())); 2])
}

/// Replaces `b` by a device with its name, number and, as if all indices had been used once, its index. Its function is
/// on another node, and its ports are down.
fn replace(world: &mut World, b: DeviceId) {
    let index = world.index_of(b);
    world.remove(b);
    world.remove_parent(FUNCTIONS[1]).expect("nothing beneath");
    world.add_pci_function(FUNCTIONS[1], (0x15b3, 0x101e), 3);
    world.set_next_index(index);
    let new = world.add(DeviceSpec::new("b").beneath(FUNCTIONS[1]).ports(2)).expect("added");
    dress(world, new, 1, "eth9");
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happens {
    Replaced,
    Removed,
    Renamed,
    /// Its names change places with those of `a`.
    Swapped,
    /// It is not shown by the sweep, as if a neighbour went at that moment.
    SteppedOver,
}

/// Each event before each call of a list and of what is read after it. Returns which wrong summaries there were.
/// `were_there` stands for the sweep at the end.
fn explore(
    were_there: impl Fn(&Registry, &[Device]) -> Vec<bool>,
    is_known: bool,
) -> BTreeSet<(Happens, u64)> {
    let mut wrong = BTreeSet::new();
    for happens in [
        Happens::Replaced,
        Happens::Removed,
        Happens::Renamed,
        Happens::Swapped,
        Happens::SteppedOver,
    ] {
        for at in 1.. {
            let (machine, [a, b, c]) = machine();
            let [of_b, of_c] = [b, c].map(|id| machine.directory(id).expect("there"));
            let registry = Registry::new(Host::simulated(&machine).expect("a host"));
            let first = machine.calls() + at;
            machine.on_call(move |world, call| {
                if call.ordinal() == first {
                    match happens {
                        Happens::Replaced => replace(world, b),
                        Happens::Removed => world.remove(b),
                        Happens::Renamed => world.rename(b, b"z").expect("renamed"),
                        Happens::Swapped => world.swap_names(a, b).expect("swapped"),
                        Happens::SteppedOver => world.remove_while_listed(a),
                    }
                }
                Verdict::Continue
            });
            let devices = registry.devices().expect("a list");
            if is_known {
                devices.iter().for_each(|device| drop(device.query()));
            }
            let found =
                registry.summaries_if(devices.as_slice(), |devices| were_there(&registry, devices));
            machine.clear_hook();
            if machine.calls() < first {
                assert!(at > 70, "{at}");
                break;
            }
            let [of_a_function, of_listed, of_software] = truth();
            for (device, summary) in devices.iter().zip(&found) {
                let ino = device.instance().ino;
                let truth = match device.uverbs_number() {
                    0 => &of_a_function,
                    1 if ino == of_b => &of_listed,
                    1 => &of_replacement(),
                    _ => &of_software,
                };
                let errors = [summary.place.as_ref().err(), summary.ports.as_ref().err()];
                match told(summary) {
                    Some(told) if told != *truth => drop(wrong.insert((happens, at))),
                    Some(_) => {}
                    // What stays where it is is always read.
                    None => assert!(ino != of_c && happens < Happens::Renamed, "{happens:?} {at}"),
                }
                for error in errors.into_iter().flatten() {
                    let is_gone = matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced);
                    assert!(is_gone, "{happens:?} {at}: {error}");
                }
            }
        }
    }
    wrong
}

#[test]
fn what_is_read_is_of_the_listed_devices() {
    for is_known in [false, true] {
        assert_eq!(explore(Registry::were_there, is_known), BTreeSet::new());
    }
}

#[test]
fn without_the_sweep_it_may_be_of_another() {
    for is_known in [false, true] {
        let wrong = explore(|_, devices| vec![true; devices.len()], is_known);
        assert!(wrong.iter().any(|(happens, _)| *happens == Happens::Replaced), "{wrong:?}");
    }
}

#[test]
fn many_devices_are_read_as_each_of_them() {
    let (machine, [_, _, c]) = machine();
    let sf = "pci0000:3a/0000:3b:00.1/mlx5_core.sf.4";
    machine.add_auxiliary(sf, Some(88));
    machine.add(DeviceSpec::new("sf").beneath(sf)).expect("added");
    machine.set_port_attribute(c, 1, "rate", None).expect("a port");
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let devices = registry.devices().expect("a list");
    let calls = |read: &mut dyn FnMut()| {
        let before = machine.calls();
        read();
        machine.calls() - before
    };
    let mut all = Vec::new();
    let at_once = calls(&mut || all = registry.summaries(devices.as_slice(), 1));
    let fresh = Registry::new(Host::simulated(&machine).expect("a host"));
    let each = fresh.devices().expect("a list");
    let mut one_by_one = Vec::new();
    let alone = calls(&mut || one_by_one = each.iter().map(Summary::read).collect());
    for (device, (all, alone)) in devices.iter().zip(all.iter().zip(&one_by_one)) {
        let (place, ports) = (all.place.as_ref().expect("read"), all.ports.as_ref().expect("read"));
        assert_eq!(Some(place), alone.place.as_ref().ok(), "{device}");
        assert_eq!(Some(ports), alone.ports.as_ref().ok(), "{device}");
    }
    assert_eq!(all[3].place.as_ref().expect("read").subfunction, Some(88));
    assert!(at_once < alone * 3 / 4, "{at_once} calls, and {alone}");
    // Both noted the index.
    let known = calls(&mut || drop(registry.summaries(devices.as_slice(), 1)));
    assert!(known < at_once, "{known} calls");
    assert!(registry.summaries(&[], 1).is_empty());
}

/// What keeps a device from being read without being held does not keep it from being read.
#[test]
fn devices_that_cannot_be_confirmed_are_read_one_by_one() {
    let (machine, [_, b, _]) = machine();
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let index = machine.index_of(b);
    // Looked up, and never listed.
    let device = registry.by_index(index).expect("found");
    let found = registry.summaries(std::slice::from_ref(&device), 1);
    assert_eq!(told(&found[0]), Some(truth()[1].clone()));
    // Of another registry.
    let other = Registry::new(Host::simulated(&machine).expect("a host"));
    let devices = other.devices().expect("a list");
    let found = registry.summaries(devices.as_slice(), 1);
    assert!(found.iter().zip(truth()).all(|(found, truth)| told(found) == Some(truth)));
    // Of another registry, and replaced since by one that this registry has listed.
    let (replaced, [_, b, _]) = self::machine();
    let list = || {
        let registry = Registry::new(Host::simulated(&replaced).expect("a host"));
        let devices = registry.devices().expect("a list");
        (registry, devices)
    };
    let (_, before) = list();
    replaced.with(|world| replace(world, b));
    let (registry_since, since) = list();
    let found = registry_since.summaries(before.as_slice(), 1);
    assert_eq!(found[1].ports.as_ref().expect_err("replaced").kind(), ErrorKind::Replaced);
    let found = registry_since.summaries(since.as_slice(), 1);
    assert_eq!(told(&found[1]), Some(of_replacement()));
    // Where inode numbers may repeat.
    let foreign = self::machine().0;
    foreign.set_sys_type(0x0102_1994);
    let foreign = Host::builder().allow_foreign_sys(true).simulated(&foreign).build();
    let foreign = Registry::new(foreign.expect("a host"));
    let listed = foreign.devices().expect("a list");
    assert!(!foreign.host().has_unique_inodes());
    let found = foreign.summaries(listed.as_slice(), 1);
    assert!(found.iter().zip(truth()).all(|(found, truth)| told(found) == Some(truth)));
    // Without netlink the places are known.
    machine.deny_netlink(Some(1));
    for summary in registry.summaries(devices.as_slice(), 1) {
        summary.place.expect("read in sysfs");
        let error = summary.ports.expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::NetlinkUnavailable);
    }
    machine.deny_netlink(None);
    machine.remove(b);
    other.devices().expect("a list");
    let found = other.summaries(devices.as_slice(), 1);
    assert_eq!(found[1].ports.as_ref().expect_err("gone").kind(), ErrorKind::Removed);
}

/// If a call fails, one device has that error, and the others are read.
#[test]
fn a_call_that_fails_is_the_error_of_one_device() {
    for at in 1.. {
        let (machine, _) = machine();
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let devices = registry.devices().expect("a list");
        let first = machine.calls() + at;
        machine.on_call(move |_, call| match call.ordinal() == first {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        });
        let found = registry.summaries(devices.as_slice(), 1);
        machine.clear_hook();
        let mut failed = 0;
        for (device, (summary, truth)) in devices.iter().zip(found.iter().zip(truth())) {
            match told(summary) {
                Some(told) => assert_eq!(told, truth, "{at}"),
                None => failed += 1,
            }
            let errors = [summary.place.as_ref().err(), summary.ports.as_ref().err()];
            for error in errors.into_iter().flatten() {
                assert_eq!(error.raw_os_error(), Some(12), "{at}: {error}");
                assert!(error.to_string().starts_with(&device.to_string()), "{at}: {error}");
            }
        }
        assert!(failed <= 1, "{at}: {found:?}");
        if machine.calls() < first {
            assert!(at > 30, "{at}");
            return;
        }
    }
}

/// The name of the list may be another device's since. Rates are read under the name that netlink reports.
#[test]
fn rates_are_not_those_of_the_device_that_had_the_name() {
    for at_once in [false, true] {
        for at in 1.. {
            let machine = Machine::new();
            let [a, b] = ["a", "b"].map(|name| machine.add(DeviceSpec::new(name)).expect("added"));
            let rate = Some(&b"100 Gb/sec (4X EDR)\n"[..]);
            machine.set_port_attribute(a, 1, "rate", rate).expect("a port");
            let registry = Registry::new(Host::simulated(&machine).expect("a host"));
            let devices = registry.devices().expect("a list");
            machine.swap_names(a, b).expect("swapped");
            let first = machine.calls() + at;
            machine.on_call(move |world, call| {
                if call.ordinal() == first {
                    world.swap_names(a, b).expect("swapped");
                }
                Verdict::Continue
            });
            let ports: Vec<_> = match at_once {
                true => {
                    let summaries = registry.summaries(devices.as_slice(), 1).into_iter();
                    summaries.map(|summary| summary.ports).collect()
                }
                false => devices.iter().map(Device::ports).collect(),
            };
            machine.clear_hook();
            let rates = ports.iter().map(|ports| {
                ports.as_ref().expect("read")[0].rate.expect("known").megabits_per_second()
            });
            assert_eq!(rates.collect::<Vec<_>>(), [100_000, 10_000], "{at}");
            if machine.calls() < first {
                assert!(at > 20, "{at}");
                break;
            }
        }
    }
}

/// What is not looked at makes no difference, whether the device is held or not.
#[test]
fn a_place_is_the_same_held_or_not() {
    for refused in ["vendor", "physfn", "subsystem"] {
        let (machine, _) = machine();
        match refused {
            "vendor" => machine.set_parent_attribute(FUNCTIONS[1], refused, Some(b"nonsense\n")),
            link => machine.set_parent_link(FUNCTIONS[1], link, Some(b"nowhere")),
        }
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let devices = registry.devices().expect("a list");
        devices.as_slice()[1].parent().expect_err("refused");
        let not_held = registry.summaries(devices.as_slice(), 1);
        let held = registry.summaries_if(devices.as_slice(), |devices| vec![false; devices.len()]);
        for found in [not_held, held] {
            assert!(found.iter().zip(truth()).all(|(found, truth)| told(found) == Some(truth)));
        }
    }
}

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
        let calls = |read: &dyn Fn(&Registry, &[Device])| {
            let host = Host::builder().allow_foreign_sys(true).simulated(&machine).build();
            let registry = Registry::new(host.expect("a host"));
            let devices = registry.devices().expect("a list");
            let _kept = registry.host().keep_netlink();
            let before = machine.calls();
            read(&registry, devices.as_slice());
            machine.calls() - before
        };
        let at_once = calls(&|registry, devices| drop(registry.summaries(devices, 1)));
        let alone = calls(&|_, devices| devices.iter().map(Summary::read).for_each(drop));
        assert!(at_once < alone * 6 / 5, "{world}: {at_once} calls, and {alone}");
    }
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
            assert!(same.is_none_or(|listed| listed.is_same_record(&device)), "{threads} {at}");
            if machine.calls() < first {
                assert!(at > 30, "{at}");
                break;
            }
        }
    }
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
            CallKind::Openat2 if world.open_handles() >= 6 => Verdict::Fail(24),
            _ => Verdict::Continue,
        }
    });
    for threads in [1, 2, 4] {
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let devices = registry.devices_by(threads).expect("a list");
        assert_eq!((devices.len(), devices.faults().count()), (200, 0), "{threads} threads");
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
        let netdevs = registry.summaries(devices.as_slice(), threads).into_iter().map(|summary| {
            let ports = summary.ports.expect("read");
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
