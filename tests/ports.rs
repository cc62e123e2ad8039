//! The ports of devices as they are seen without a context.

use uverbs::sim::{DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{
    Device, ErrorKind, Host, LinkSpeed, LinkWidth, PhysicalState, PortRate, PortState, Registry,
};

fn machine(ports: u32) -> (Machine, DeviceId) {
    let machine = Machine::new();
    let id = machine.add(DeviceSpec::new("a").ports(ports)).expect("added");
    (machine, id)
}

fn listed(machine: &Machine) -> Device {
    let registry = Registry::new(Host::simulated(machine).expect("a host"));
    registry.devices().expect("a list").get(0).expect("listed").clone()
}

#[test]
fn each_port_has_its_facts() {
    let (machine, id) = machine(3);
    machine.set_netdev(id, 1, Some((7, "eth0"))).expect("a port");
    machine.set_netdev(id, 3, Some((9, "a\x1b"))).expect("a port");
    machine.set_port_state(id, 2, 1, 3).expect("a port");
    let device = listed(&machine);
    assert_eq!(device.query().expect("facts").port_count, 3);
    let ports = device.ports().expect("ports");
    let states: Vec<_> =
        ports.iter().map(|port| (port.port, port.state, port.physical_state)).collect();
    let up = (PortState::ACTIVE, PhysicalState::LINK_UP);
    let down = (PortState::DOWN, PhysicalState::DISABLED);
    assert_eq!(states, [(1, up.0, up.1), (2, down.0, down.1), (3, up.0, up.1)]);
    let rate = PortRate::new(LinkWidth::X1, LinkSpeed::QDR);
    assert!(ports.iter().all(|port| port.rate == rate && rate.is_some()));
    let netdevs = device.netdevs().expect("network devices");
    let words: Vec<_> =
        netdevs.iter().map(|netdev| (netdev.port, netdev.index, netdev.name.to_string())).collect();
    assert_eq!(words, [(1, 7, "eth0".to_owned()), (3, 9, r"a\x1b".to_owned())]);
    let of_ports: Vec<_> = ports.into_iter().filter_map(|port| port.netdev).collect();
    assert_eq!(of_ports, netdevs);
    // What a context reports is the same.
    let port = device.open().expect("opened").query_port(2).expect("a port");
    assert_eq!((port.state, port.physical_state), down);
}

#[test]
fn the_number_of_ports_that_are_read_is_bounded() {
    let (machine, id) = machine(300);
    machine.set_netdev(id, 256, Some((7, "last"))).expect("a port");
    machine.set_netdev(id, 257, Some((8, "beyond"))).expect("a port");
    let device = listed(&machine);
    let ports = device.ports().expect("ports");
    assert_eq!((ports.len(), device.query().expect("facts").port_count), (256, 300));
    assert_eq!(device.netdevs().expect("network devices").len(), 1);
    let (machine, _) = self::machine(0);
    assert!(listed(&machine).ports().expect("none").is_empty());
}

#[test]
fn a_rate_that_is_not_reported_is_not_known() {
    let (machine, id) = machine(1);
    let rate = |value: Option<&[u8]>| {
        machine.set_port_attribute(id, 1, "rate", value).expect("a port");
        listed(&machine).ports().map(|ports| ports[0].rate)
    };
    assert_eq!(rate(None).expect("ports"), None);
    let known = rate(Some(b"2.5 Gb/sec (1X SDR)\n")).expect("ports").expect("a rate");
    assert_eq!(known.megabits_per_second(), 2_500);
    for bad in [&b"fast\n"[..], b"", b"100 Gb/sec (4X EDR)"] {
        let error = rate(Some(bad)).expect_err("not a rate");
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains("/ports/1/rate"), "{error}");
    }
    // As the kernel answers for a width that it does not know (`rate_show`).
    machine.set_port_attribute(id, 1, "rate", Some(b"10 Gb/sec (1X QDR)\n")).expect("a port");
    machine.on_call(|world, call| match call.detail(world).ends_with("/rate") {
        true if call.kind() == uverbs::sim::CallKind::Pread => Verdict::Fail(22),
        _ => Verdict::Continue,
    });
    assert_eq!(listed(&machine).ports().expect("ports")[0].rate, None);
    machine.clear_hook();
    // A name that is no directory.
    machine.rename(id, b"../x").expect("renamed");
    let ports = listed(&machine).ports().expect("ports");
    assert_eq!((ports[0].rate, ports[0].state), (None, PortState::ACTIVE));
}

#[test]
fn answers_that_are_hostile_or_missing_are_errors() {
    let (machine, id) = machine(1);
    let device = listed(&machine);
    machine.set_netdev(id, 1, Some((0, "eth0"))).expect("a port");
    assert_eq!(device.netdevs().expect_err("no index").kind(), ErrorKind::Malformed);
    machine.set_netdev(id, 1, Some((7, "a name that is too long"))).expect("a port");
    let error = device.netdevs().expect_err("no name");
    assert!(error.to_string().starts_with("a (uverbs0): malformed (RDMA_NLDEV_CMD_PORT_GET: "));
    machine.set_netdev(id, 1, None).expect("a port");
    machine.set_netns_visible(id, false);
    assert_eq!(device.netdevs().expect_err("elsewhere").kind(), ErrorKind::OtherNamespace);
    machine.set_netns_visible(id, true);
    machine.deny_netlink(Some(1));
    assert_eq!(device.ports().expect_err("denied").kind(), ErrorKind::NetlinkUnavailable);
}

#[test]
fn a_call_that_fails_is_the_error() {
    for at in 1.. {
        let (machine, _) = machine(2);
        let device = listed(&machine);
        let first = machine.calls() + at;
        machine.on_call(move |_, call| match call.ordinal() == first {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        });
        let found = device.ports();
        machine.clear_hook();
        if machine.calls() < first {
            found.expect("nothing failed");
            assert!(at > 20, "{at}");
            return;
        }
        let error = found.expect_err("a call failed");
        assert_eq!(error.raw_os_error(), Some(12), "{at}: {error}");
    }
}

/// Another device takes name, number and node, and has another network device: what is returned is of the listed one.
#[test]
fn what_is_read_is_of_the_listed_device() {
    for happens in ["remove", "replace", "rename", "swap"] {
        for at in 1.. {
            let (machine, id) = machine(1);
            machine.set_netdev(id, 1, Some((7, "eth7"))).expect("a port");
            let device = listed(&machine);
            let other = machine.add(DeviceSpec::new("z")).expect("added");
            machine.set_port_attribute(other, 1, "rate", None).expect("a port");
            let first = machine.calls() + at;
            machine.on_call(move |world, call| {
                if call.ordinal() == first {
                    match happens {
                        "rename" => world.rename(id, b"b").expect("renamed"),
                        "swap" => world.swap_names(id, other).expect("swapped"),
                        _ => world.remove(id),
                    }
                    if happens == "replace" {
                        let new = world.add(DeviceSpec::new("a")).expect("added");
                        world.set_netdev(new, 1, Some((9, "eth9"))).expect("a port");
                    }
                }
                Verdict::Continue
            });
            let found = device.ports();
            let is_over = machine.calls() < first;
            machine.clear_hook();
            match (found, happens) {
                (Ok(ports), _) => {
                    assert_eq!(ports[0].netdev.as_ref().expect("one").index, 7, "{happens} {at}");
                    assert!(ports[0].rate.is_some(), "{happens} {at}");
                }
                (Err(error), "remove" | "replace") => {
                    let gone = matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced);
                    assert!(gone, "{happens} {at}: {error}");
                }
                (Err(error), _) => {
                    assert_eq!(error.kind(), ErrorKind::Unstable, "{happens} {at}: {error}");
                }
            }
            if is_over {
                break;
            }
        }
    }
}
