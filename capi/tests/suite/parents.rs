//! The cases of parents, of ports, and of lookups by PCI address.

use uverbs::sim::{DeviceId, DeviceSpec, Machine};

use crate::api::{Address, Api, Function, Parent, Port};
use crate::cases::{add, ino, listed, refused};

const PF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
const VF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.2";
const SF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/mlx5_core.sf.4";
/// Of a domain with more than four digits.
const FAR: &str = "pci0000:00/0000:00:0e.0/pci10000:e0/10000:e1:1f.7";

fn beneath(machine: &Machine, name: &str, parent: &str) -> DeviceId {
    machine.add(DeviceSpec::new(name).beneath(parent)).expect("added")
}

/// A physical function with a virtual one, number 1, and a sub-function, number 88, each with a device.
fn sriov() -> (Machine, [DeviceId; 3]) {
    let machine = Machine::new();
    machine.add_pci_function(PF, (0x15b3, 0x1017), 1);
    machine.make_physical(PF, 8, 1, 1);
    machine.add_pci_function(VF, (0x15b3, 0x1018), -1);
    machine.make_virtual(VF, PF, 1);
    machine.add_auxiliary(SF, Some(88));
    let ids = [("pf", PF), ("vf", VF), ("sf", SF)].map(|(name, at)| beneath(&machine, name, at));
    (machine, ids)
}

fn address(text: &str, numbers: (u32, u8, u8, u8)) -> Address {
    (text.to_owned(), numbers)
}

fn parent<A: Api>(machine: &Machine, name: &str) -> Parent {
    A::parent(&listed::<A>(machine, name)).expect("a parent")
}

pub(crate) fn each_parent_is_reported<A: Api>() {
    let (machine, _) = sriov();
    let name = |name: &str| Some(name.as_bytes().to_owned());
    let physical = || Function {
        address: address("0000:3b:00.0", (0, 0x3b, 0, 0)),
        ids: (0x15b3, 0x1017),
        kind: "physical",
        physical: None,
        number: None,
    };
    let of_pf = Parent {
        bus: "pci",
        bus_name: name("pci"),
        name: name("0000:3b:00.0"),
        subfunction: None,
        function: Some(physical()),
        numa_node: Some(1),
    };
    assert_eq!(parent::<A>(&machine, "pf"), of_pf);
    let of_vf = || Parent {
        name: name("0000:3b:00.2"),
        bus_name: name("pci"),
        function: Some(Function {
            address: address("0000:3b:00.2", (0, 0x3b, 0, 2)),
            ids: (0x15b3, 0x1018),
            kind: "virtual",
            physical: Some(physical().address),
            number: Some(1),
        }),
        numa_node: None,
        ..of_pf
    };
    assert_eq!(parent::<A>(&machine, "vf"), of_vf());
    let of_sf = Parent {
        bus: "auxiliary",
        bus_name: name("auxiliary"),
        name: name("mlx5_core.sf.4"),
        subfunction: Some(88),
        function: Some(physical()),
        numa_node: Some(1),
    };
    assert_eq!(parent::<A>(&machine, "sf"), of_sf);

    // The number is not known, and then not even that it is virtual.
    machine.set_parent_link(PF, "virtfn1", None);
    let function = parent::<A>(&machine, "vf").function.expect("a function");
    assert_eq!((function.kind, function.number), ("virtual", None));
    assert_eq!(function.physical, Some(physical().address));
    machine.set_parent_link(VF, "physfn", None);
    let function = parent::<A>(&machine, "vf").function.expect("a function");
    assert_eq!((function.kind, function.number, function.physical), ("unknown", None, None));

    machine.add_pci_function(FAR, (0x8086, 0x1592), 0);
    beneath(&machine, "far", FAR);
    let far = parent::<A>(&machine, "far");
    let at = address("10000:e1:1f.7", (0x1_0000, 0xe1, 0x1f, 7));
    assert_eq!(far.function.expect("a function").address, at);
    assert_eq!(far.numa_node, Some(0));

    for (bus, path) in [
        ("platform", "platform/HISI00D1:00"),
        ("vmbus", "LNXSYSTM:00/VMBUS:00/f8b3781a-1e82"),
        ("usb", "pci0000:00/usb1"),
    ] {
        machine.add_device_of_bus(path, bus);
        beneath(&machine, bus, path);
        let found = parent::<A>(&machine, bus);
        assert_eq!(found.bus, if bus == "usb" { "other" } else { bus });
        assert_eq!((found.bus_name, found.function), (name(bus), None));
        assert_eq!(found.name, name(path.rsplit('/').next().expect("a name")));
    }
    beneath(&machine, "none", "pci0000:00/y");
    let found = parent::<A>(&machine, "none");
    assert_eq!((found.bus, found.bus_name, found.name), ("unknown", None, name("y")));
    add(&machine, "rxe0", 0xa0);
    let found = parent::<A>(&machine, "rxe0");
    assert_eq!((found.bus, found.bus_name, found.name), ("virtual", name("virtual"), None));
    assert_eq!((found.subfunction, found.function, found.numa_node), (None, None, None));
}

pub(crate) fn hostile_names_of_parents_stay_as_they_are<A: Api>() {
    let machine = Machine::new();
    let long = "a\n\x1b[31m".repeat(40)[..255].to_owned();
    for (name, own) in [("a", "\x1b]0;x\x07\n"), ("b", long.as_str())] {
        let path = format!("platform/{own}");
        machine.set_parent_link(&path, "subsystem", Some(b"../../../bus/x\n\xff"));
        beneath(&machine, name, &path);
        let found = parent::<A>(&machine, name);
        assert_eq!(found.bus, "other");
        assert_eq!(found.bus_name.as_deref(), Some(&b"x\n\xff"[..]));
        assert_eq!(found.name.as_deref(), Some(own.as_bytes()));
        assert_eq!(found.function, None);
    }
}

pub(crate) fn a_parent_that_cannot_be_read_is_an_error<A: Api>() {
    let (machine, [_, vf, _]) = sriov();
    let device = listed::<A>(&machine, "vf");
    machine.set_parent_attribute(VF, "vendor", Some(b"\x1b[31m\n"));
    let failure = refused(A::parent(&device));
    assert_eq!(failure.code, "malformed", "{failure:?}");
    assert_eq!(failure.device.as_deref(), Some("vf (uverbs1)"));
    assert!(failure.cause.contains("attribute vendor"), "{failure:?}");
    assert!(failure.message.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{failure:?}");
    // A device that may be another match is no "not found".
    let list = A::list(&A::registry(&machine)).expect("a list");
    assert_eq!(refused(A::by_pci(&list, "0000:3b:00.2")).code, "malformed");
    assert_eq!(refused(A::all_by_pci(&list, "0000:3b:00.2")).code, "malformed");
    machine.remove(vf);
    assert_eq!(refused(A::parent(&device)).code, "removed");
    assert_eq!(refused(A::netdevs(&device)).code, "removed");
    assert_eq!(refused(A::ports(&device)).code, "removed");
    let new = beneath(&machine, "vf", VF);
    assert_eq!(machine.index_of(new), 3);
    assert!(A::is_known_gone(&device));
    assert_eq!(A::all_by_pci(&list, "0000:3b:00.2"), Ok(vec![]));
}

pub(crate) fn devices_are_found_by_pci_address<A: Api>() {
    let (machine, [pf, vf, sf]) = sriov();
    add(&machine, "rxe0", 0xa0);
    let list = A::list(&A::registry(&machine)).expect("a list");
    // Upper case and leading zeros of the domain make no difference.
    for text in ["0000:3b:00.2", "0000:3B:00.2", "00000000:3b:00.2"] {
        assert_eq!(A::ino(&A::by_pci(&list, text).expect("found")), ino(&machine, vf));
        assert_eq!(A::all_by_pci(&list, text), Ok(vec![ino(&machine, vf)]));
    }
    let failure = refused(A::by_pci(&list, "0000:3b:00.0"));
    assert_eq!(failure.code, "ambiguous");
    assert_eq!(failure.cause, "PCI address 0000:3b:00.0: pf (uverbs0), sf (uverbs2)");
    let both = [pf, sf].map(|id| ino(&machine, id)).to_vec();
    assert_eq!(A::all_by_pci(&list, "0000:3b:00.0"), Ok(both));
    // The bridge, another domain, and a function that is not there.
    for text in ["0000:3a:00.0", "10000:3b:00.2", "0000:3b:00.7"] {
        let failure = refused(A::by_pci(&list, text));
        assert_eq!(failure.code, "not_found");
        assert!(failure.cause.contains(&format!("PCI address {text} is not listed")));
        assert_eq!(A::all_by_pci(&list, text), Ok(vec![]));
    }
}

pub(crate) fn ports_and_their_network_devices_are_reported<A: Api>() {
    let machine = Machine::new();
    let id = machine.add(DeviceSpec::new("a").ports(300)).expect("added");
    machine.set_netdev(id, 1, Some((7, "eth0"))).expect("a port");
    machine.set_netdev(id, 3, Some((9, "a\x1b[31m\n23456789"))).expect("a port");
    machine.set_netdev(id, 257, Some((8, "beyond"))).expect("a port");
    machine.set_port_state(id, 2, 1, 3).expect("a port");
    machine.set_port_attribute(id, 2, "rate", None).expect("a port");
    let device = listed::<A>(&machine, "a");
    assert_eq!(A::facts(&device).expect("facts").port_count, 300);
    // A name of a network device has up to 15 bytes.
    let (first, third) = (b"eth0".to_vec(), b"a\x1b[31m\n23456789".to_vec());
    assert_eq!(third.len(), 15);
    let netdevs = vec![(1, 7, first.clone()), (3, 9, third.clone())];
    assert_eq!(A::netdevs(&device), Ok(netdevs));
    let ports = A::ports(&device).expect("ports");
    assert_eq!(ports.len(), 256);
    let port =
        |port, netdev| Port { port, state: 4, physical_state: 5, rate: Some(10_000), netdev };
    let down = Port { port: 2, state: 1, physical_state: 3, rate: None, netdev: None };
    let expected = [port(1, Some((7, first))), down, port(3, Some((9, third))), port(4, None)];
    assert_eq!(ports[..4], expected);
    machine.set_netdev(id, 1, Some((7, "a name that is too long"))).expect("a port");
    let failure = refused(A::netdevs(&device));
    assert_eq!(
        (failure.code.as_str(), failure.device.as_deref()),
        ("malformed", Some("a (uverbs0)"))
    );
    machine.deny_netlink(Some(1));
    assert_eq!(refused(A::netdevs(&device)).code, "netlink_unavailable");
    assert_eq!(refused(A::ports(&device)).code, "netlink_unavailable");
}
