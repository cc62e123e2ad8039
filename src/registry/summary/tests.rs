use std::collections::BTreeSet;

use super::*;
use crate::device::Device;
use crate::error::ErrorKind;
use crate::host::Host;
use crate::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict, World};

mod costs;

const FUNCTIONS: [&str; 2] = ["pci0000:3a/0000:3b:00.1", "pci0000:3a/0000:3b:00.2"];

/// What a summary must say, if it says anything: address, NUMA node, and state and network device of both ports.
type Told = (Option<String>, Option<u32>, Vec<(u32, Option<String>)>);

fn told(summary: &Summary) -> Told {
    let place = summary.place.as_ref().expect("a place");
    let ports = summary.ports.as_ref().expect("ports");
    let port = |port: &PortFacts| {
        (port.state.to_raw().into(), port.netdev.as_ref().map(|netdev| netdev.name.to_string()))
    };
    let pci = place.pci.map(|address| address.to_string());
    (pci, place.numa_node, ports.iter().map(port).collect())
}

fn all(registry: &Registry) -> Vec<Summary> {
    let found = registry.summaries(1).expect("a list").into_iter();
    found.map(|summary| summary.expect("read")).collect()
}

/// Reads each listed device by itself.
fn one_by_one(registry: &Registry) -> Vec<(Result<Place>, Result<Vec<PortFacts>>)> {
    let devices = registry.devices().expect("a list");
    let _kept = registry.host().keep_netlink();
    devices.iter().map(|device| (device.place(), device.ports())).collect()
}

/// How many system calls it takes.
fn calls(machine: &Machine, run: impl FnOnce()) -> u64 {
    let before = machine.calls();
    run();
    machine.calls() - before
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

/// Each event before each call. Returns which wrong summaries there were: such that no device has. `are_there` stands for
/// the sweep at the end.
fn explore(
    are_there: impl Fn(&Registry, &[Swept]) -> Vec<bool>,
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
            let (machine, [a, b, _]) = machine();
            let registry = Registry::new(Host::simulated(&machine).expect("a host"));
            if is_known {
                let devices = registry.devices().expect("a list");
                devices.iter().for_each(|device| drop(device.query()));
            }
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
            let swept = Sweeps::twice(registry.host()).expect("swept");
            let found = registry.summaries_of(&swept, &swept, |swept| are_there(&registry, swept));
            machine.clear_hook();
            if machine.calls() < first {
                assert!(at > 50, "{at}");
                break;
            }
            let [of_a_function, of_listed, of_software] = truth();
            let truth: [(&[Told], &[&str]); 3] = [
                (&[of_a_function], &["a", "b"]),
                (&[of_listed, of_replacement()], &["a", "b", "z"]),
                (&[of_software], &["c"]),
            ];
            let mut shown = [false; 3];
            for (number, summary) in found {
                let summary = summary.expect("read");
                let (truth, names) = truth[number as usize];
                let name = summary.name.to_string();
                if !truth.contains(&told(&summary)) || !names.contains(&name.as_str()) {
                    wrong.insert((happens, at));
                }
                shown[number as usize] = true;
            }
            // What stays where it is is always shown.
            let is_a_there = happens != Happens::SteppedOver;
            let is_b_there = !matches!(happens, Happens::Removed | Happens::Replaced);
            for (was_shown, is_there) in shown.into_iter().zip([is_a_there, is_b_there, true]) {
                assert!(was_shown || !is_there, "{happens:?} {at}: {shown:?}");
            }
        }
    }
    wrong
}

#[test]
fn what_is_read_is_of_one_device() {
    for is_known in [false, true] {
        assert_eq!(explore(Registry::are_there, is_known), BTreeSet::new());
    }
}

#[test]
fn without_the_sweep_it_may_be_of_two() {
    for is_known in [false, true] {
        let wrong = explore(|_, swept| vec![true; swept.len()], is_known);
        assert!(wrong.iter().any(|(happens, _)| *happens == Happens::Replaced), "{wrong:?}");
    }
}

#[test]
fn many_devices_read_the_same_as_one_by_one() {
    let (machine, [_, _, c]) = machine();
    let sf = "pci0000:3a/0000:3b:00.1/mlx5_core.sf.4";
    machine.add_auxiliary(sf, Some(88));
    machine.add(DeviceSpec::new("sf").beneath(sf)).expect("added");
    machine.set_port_attribute(c, 1, "rate", None).expect("a port");
    let registry = || Registry::new(Host::simulated(&machine).expect("a host"));
    let (mut found, mut alone) = (Vec::new(), Vec::new());
    let at_once = calls(&machine, || found = all(&registry()));
    let by_itself = calls(&machine, || alone = one_by_one(&registry()));
    assert_eq!(found.len(), 4);
    for (found, (place, ports)) in found.iter().zip(&alone) {
        assert_eq!(found.place.as_ref().ok(), place.as_ref().ok(), "{found:?}");
        assert_eq!(found.ports.as_ref().ok(), ports.as_ref().ok(), "{found:?}");
    }
    let names = found.iter().map(|summary| (summary.uverbs_number, summary.name.to_string()));
    let expected = ["a", "b", "c", "sf"].map(str::to_owned);
    assert_eq!(names.collect::<Vec<_>>(), (0..).zip(expected).collect::<Vec<_>>());
    assert_eq!(found[3].place.as_ref().expect("read").subfunction, Some(88));
    assert!(at_once < by_itself * 2 / 3, "{at_once} calls, and {by_itself}");
    assert!(
        Registry::new(Host::simulated(&Machine::new()).expect("a host"))
            .summaries(1)
            .expect("none")
            .is_empty()
    );
}

/// The indices need not follow the numbers.
#[test]
fn each_device_is_read_by_its_own_index() {
    for (step, recreated) in [(1, 0), (1, 7), (3, 0), (1000, 3), (0, 0)] {
        let machine = Machine::new();
        let mut ids = Vec::new();
        for number in 0..40 {
            match step {
                // Downwards, as after all indices had been used once.
                0 => machine.set_next_index(5000 - 100 * number),
                step => machine.set_next_index(step * number),
            }
            let id = machine.add(DeviceSpec::new(format!("a{number}"))).expect("added");
            machine.set_netdev(id, 1, Some((number + 1, "eth"))).expect("a port");
            ids.push(id);
        }
        if recreated > 0 {
            ids.iter()
                .step_by(recreated)
                .for_each(|id| machine.recreate_uverbs(*id).expect("made again"));
        }
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        for summary in all(&registry) {
            let netdev = summary.ports.expect("read").remove(0).netdev.expect("a netdev");
            assert_eq!(format!("a{}", netdev.index - 1), summary.name.to_string());
        }
    }
}

/// What keeps a device from being read without being held does not keep it from being read.
#[test]
fn devices_that_cannot_be_confirmed_are_read_one_by_one() {
    let is_true = |registry: &Registry| {
        let found = all(registry);
        assert!(
            found.len() == 3
                && found.iter().zip(truth()).all(|(found, truth)| told(found) == truth)
        );
    };
    let (machine, [_, b, _]) = machine();
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    is_true(&registry);
    // Where inode numbers may repeat.
    machine.set_sys_type(0x0102_1994);
    let foreign = Host::builder().allow_foreign_sys(true).simulated(&machine).build();
    let foreign = foreign.expect("a host");
    assert!(!foreign.has_unique_inodes());
    is_true(&Registry::new(foreign));
    // Without netlink the places are known.
    machine.deny_netlink(Some(1));
    for summary in all(&registry) {
        summary.place.expect("read in sysfs");
        let error = summary.ports.expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::NetlinkUnavailable);
    }
    machine.deny_netlink(None);
    // In another network namespace.
    machine.set_netns_visible(b, false);
    let found = all(&registry);
    let error = found[1].ports.as_ref().expect_err("not listed");
    assert_eq!((error.kind(), error.device()), (ErrorKind::OtherNamespace, Some("b (uverbs1)")));
    assert_eq!([told(&found[0]), told(&found[2])], [0, 2].map(|at| truth()[at].clone()));
}

/// A call that fails once fails the list or costs nothing. The calls of one device that fail are its error.
#[test]
fn a_call_that_fails_is_made_again() {
    for at in 1.. {
        let (machine, _) = machine();
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let first = machine.calls() + at;
        machine.on_call(move |_, call| match call.ordinal() == first {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        });
        let found = registry.summaries(1);
        machine.clear_hook();
        match found {
            Ok(found) => {
                let found: Vec<_> =
                    found.iter().map(|found| told(found.as_ref().expect("read"))).collect();
                assert_eq!(found, truth(), "{at}");
            }
            Err(error) => assert!(at < 10 && error.raw_os_error() == Some(12), "{at}: {error}"),
        }
        if machine.calls() < first {
            assert!(at > 50, "{at}");
            break;
        }
    }
    // Its path, and how many devices and parts of devices need it.
    for (path, devices, parts) in [("uverbs1", 1, 0), ("numa_node", 0, 2), ("rate", 0, 3)] {
        let (machine, _) = machine();
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        machine.on_call(move |world, call| {
            let is_it = call.kind() == CallKind::Openat2 && call.detail(world).contains(path);
            if is_it { Verdict::Fail(12) } else { Verdict::Continue }
        });
        let found = registry.summaries(1).expect("a list");
        machine.clear_hook();
        assert_eq!(found.len(), 3);
        let is_it = |error: &Error| error.raw_os_error() == Some(12);
        let failed = found.iter().filter(|found| has_error(found, is_it)).count();
        let missing = found.iter().filter(|found| found.is_err()).count();
        assert_eq!((missing, failed), (devices, devices + parts), "{path}");
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
                true => all(&registry).into_iter().map(|summary| summary.ports).collect(),
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
        let swept = Sweeps::twice(registry.host()).expect("swept");
        for is_there in [false, true] {
            let found = registry.summaries_of(&swept, &swept, |swept| vec![is_there; swept.len()]);
            let found = found.into_iter().map(|(_, found)| told(&found.expect("read")));
            assert_eq!(found.collect::<Vec<_>>(), truth());
        }
    }
}

/// Where inode numbers may repeat, a moved timestamp counts as another device.
#[test]
fn a_device_that_is_taken_for_another_one_is_read_again() {
    for is_evicted in [true, false] {
        for at in 1.. {
            let (machine, _) = machine();
            machine.set_sys_type(0x0102_1994);
            let host = Host::builder().allow_foreign_sys(true).simulated(&machine).build();
            let registry = Registry::new(host.expect("a host"));
            let first = machine.calls() + at;
            machine.on_call(move |world, call| {
                match call.ordinal() == first {
                    true if is_evicted => world.evict(),
                    true => world.listxattr(1),
                    false => {}
                }
                Verdict::Continue
            });
            let found: Vec<_> = all(&registry).iter().map(told).collect();
            machine.clear_hook();
            assert_eq!(found, truth(), "{is_evicted} {at}");
            if machine.calls() < first {
                assert!(at > 50, "{at}");
                break;
            }
        }
    }
}

/// A device that could not be opened is not shown as if it could.
#[test]
fn a_directory_that_cannot_be_opened_is_a_fault() {
    for errno in [5, 13, 18] {
        let (machine, _) = machine();
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        machine.on_call(move |world, call| {
            let is_it = call.kind() == CallKind::Openat2
                && call.detail(world).contains("devices/")
                && call.detail(world).contains("/uverbs1");
            if is_it { Verdict::Fail(errno) } else { Verdict::Continue }
        });
        let faults: Vec<_> =
            registry.devices().expect("a list").faults().map(ToString::to_string).collect();
        let found = registry.summaries(1).expect("a list");
        machine.clear_hook();
        let errors: Vec<_> =
            found.into_iter().filter_map(|found| Some(found.err()?.to_string())).collect();
        assert!(errors.len() == 1 && errors == faults, "{errors:?} {faults:?}");
    }
}
