//! The parents of verbs devices: each bus, SR-IOV, hostile attributes, and devices that go meanwhile.

use uverbs::sim::{DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{Bus, Device, Error, ErrorKind, FunctionKind, Host, Parent, PciAddress, Registry};

const PF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
const VF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.2";
const SF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0/mlx5_core.sf.4";
const IDS: (u16, u16) = (0x15b3, 0x1017);

fn at(text: &str) -> PciAddress {
    text.parse().expect(text)
}

fn registry(machine: &Machine) -> Registry {
    Registry::new(Host::simulated(machine).expect("a host"))
}

fn add(machine: &Machine, name: &str, parent: &str) -> DeviceId {
    machine.add(DeviceSpec::new(name).beneath(parent)).expect("added")
}

fn listed(machine: &Machine, name: &str) -> Device {
    registry(machine).devices().expect("a list").by_name(name).expect("listed")
}

/// A physical function with a virtual one, number 1, each with a device.
fn sriov() -> Machine {
    let machine = Machine::new();
    machine.add_pci_function(PF, IDS, 1);
    machine.make_physical(PF, 8, 1, 1);
    machine.add_pci_function(VF, (0x15b3, 0x1018), 1);
    machine.make_virtual(VF, PF, 1);
    add(&machine, "pf", PF);
    add(&machine, "vf", VF);
    machine
}

fn kind(machine: &Machine, name: &str) -> FunctionKind {
    listed(machine, name).parent().expect("a parent").function.expect("a function").kind
}

fn vf_number(machine: &Machine) -> Option<u32> {
    let FunctionKind::Virtual { physical, number, .. } = kind(machine, "vf") else {
        panic!("{:?}", kind(machine, "vf"));
    };
    assert_eq!(physical, at("0000:3b:00.0"));
    number
}

#[test]
fn functions_are_distinguished() {
    let machine = sriov();
    let parent = listed(&machine, "pf").parent().expect("a parent");
    let function = parent.function.expect("a function");
    assert_eq!(
        (parent.bus.clone(), parent.pci_address(), parent.numa_node, parent.subfunction),
        (Bus::Pci, Some(at("0000:3b:00.0")), Some(1), None)
    );
    assert_eq!(parent.name.expect("a name"), "0000:3b:00.0");
    assert_eq!((function.vendor_id, function.device_id), IDS);
    assert_eq!(function.kind, FunctionKind::Physical);

    let function = listed(&machine, "vf").parent().expect("a parent").function.expect("a function");
    assert_eq!(function.address, at("0000:3b:00.2"));
    assert_eq!((function.vendor_id, function.device_id), (0x15b3, 0x1018));
    assert_eq!(vf_number(&machine), Some(1));
}

/// Without `physfn` it may be a virtual function that was passed through.
#[test]
fn no_physfn_does_not_mean_physical() {
    let machine = sriov();
    machine.set_parent_link(VF, "physfn", None);
    assert_eq!(kind(&machine, "vf"), FunctionKind::Unknown);
    machine.set_parent_attribute(PF, "sriov_totalvfs", None);
    assert_eq!(kind(&machine, "pf"), FunctionKind::Unknown);
}

#[test]
fn the_number_is_checked_against_the_link_back() {
    let machine = sriov();
    // Another function, none at all, and one that is number 1 of nobody.
    machine.set_parent_link(PF, "virtfn1", Some(b"../0000:3b:00.3"));
    assert_eq!(vf_number(&machine), None);
    machine.set_parent_link(PF, "virtfn1", None);
    assert_eq!(vf_number(&machine), None);
    machine.set_parent_link(PF, "virtfn1", Some(b"../../elsewhere/0000:3b:00.2"));
    assert_eq!(vf_number(&machine), None);
    machine.set_parent_link(PF, "virtfn1", Some(b"../0000:3b:00.2"));
    assert_eq!(vf_number(&machine), Some(1));
    for (name, value) in [
        ("sriov_offset", "3"),
        ("sriov_offset", "65535"),
        ("sriov_stride", "2"),
        ("sriov_stride", "0"),
    ] {
        let machine = sriov();
        machine.set_parent_attribute(PF, name, Some(format!("{value}\n").as_bytes()));
        assert_eq!(vf_number(&machine), None, "{name} {value}");
        machine.set_parent_attribute(PF, name, None);
        assert_eq!(vf_number(&machine), None, "{name}");
    }
    // As in a container that does not see the physical function.
    machine.set_parent_link(VF, "physfn", Some(b"../../0000:ff:00.0"));
    let FunctionKind::Virtual { physical, number, .. } = kind(&machine, "vf") else { panic!() };
    assert_eq!((physical, number), (at("0000:ff:00.0"), None));
}

#[test]
fn domains_may_have_more_than_four_digits() {
    for (path, address) in [
        ("pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:01.0/10000:e1:00.0", "10000:e1:00.0"),
        ("LNXSYSTM:00/VMBUS:00/47505500-0001/pcib4a8:00/b4a8:00:02.0", "b4a8:00:02.0"),
    ] {
        let machine = Machine::new();
        machine.add_pci_function(path, IDS, -1);
        add(&machine, "a", path);
        let parent = listed(&machine, "a").parent().expect("a parent");
        assert_eq!((parent.pci_address(), parent.numa_node), (Some(at(address)), None));
        let devices = registry(&machine).devices().expect("a list");
        assert_eq!(devices.by_pci(at(address)).expect("found").name(), "a");
    }
}

#[test]
fn a_subfunction_has_its_function_and_node_from_above() {
    let machine = sriov();
    machine.add_auxiliary(SF, Some(88));
    add(&machine, "sf", SF);
    let parent = listed(&machine, "sf").parent().expect("a parent");
    assert_eq!(parent.bus, Bus::Auxiliary);
    assert_eq!(parent.name.clone().expect("a name"), "mlx5_core.sf.4");
    // Not the 4 of its name.
    assert_eq!((parent.subfunction, parent.numa_node), (Some(88), Some(1)));
    let function = parent.function.expect("a function");
    assert_eq!((function.address, function.kind), (at("0000:3b:00.0"), FunctionKind::Physical));

    // Other auxiliary devices have no such number, and may be beneath each other or beneath no function.
    machine.add_auxiliary(&format!("{SF}/mlx5_core.rdma.9"), None);
    machine.add_auxiliary("soc/x.rdma.0", None);
    add(&machine, "deep", &format!("{SF}/mlx5_core.rdma.9"));
    add(&machine, "alone", "soc/x.rdma.0");
    let deep = listed(&machine, "deep").parent().expect("a parent");
    assert_eq!((deep.subfunction, deep.pci_address()), (None, Some(at("0000:3b:00.0"))));
    let alone = listed(&machine, "alone").parent().expect("a parent");
    assert_eq!((alone.bus, alone.function, alone.numa_node), (Bus::Auxiliary, None, None));
}

#[test]
fn each_bus_has_its_name() {
    let machine = Machine::new();
    machine.add_device_of_bus("platform/HISI00D1:00", "platform");
    machine.set_parent_attribute("platform/HISI00D1:00", "numa_node", Some(b"0\n"));
    machine.add_device_of_bus("LNXSYSTM:00/VMBUS:00/f8b3781a-1e82", "vmbus");
    machine.add_device_of_bus("pci0000:00/x", "usb");
    for (name, path) in [
        ("platform", "platform/HISI00D1:00"),
        ("vmbus", "LNXSYSTM:00/VMBUS:00/f8b3781a-1e82"),
        ("usb", "pci0000:00/x"),
        ("none", "pci0000:00/y"),
    ] {
        add(&machine, name, path);
    }
    machine.add(DeviceSpec::new("rxe0")).expect("added");
    let parent = |name: &str| listed(&machine, name).parent().expect("a parent");
    let [platform, vmbus, usb, none, rxe] =
        ["platform", "vmbus", "usb", "none", "rxe0"].map(parent);
    assert_eq!((platform.bus, platform.numa_node), (Bus::Platform, Some(0)));
    assert_eq!(platform.name.expect("a name"), "HISI00D1:00");
    assert_eq!((vmbus.bus, vmbus.function), (Bus::Vmbus, None));
    assert!(matches!(&usb.bus, Bus::Other(name) if *name == "usb"), "{:?}", usb.bus);
    assert_eq!((none.bus.name(), none.bus), (None, Bus::Unknown));
    assert_eq!((rxe.bus, rxe.name, rxe.function, rxe.numa_node), (Bus::Virtual, None, None, None));
}

#[test]
fn the_node_is_that_of_the_first_device_that_has_one() {
    let machine = sriov();
    let node = || listed(&machine, "vf").parent().expect("a parent").numa_node;
    machine.set_parent_attribute("pci0000:3a/0000:3a:00.0", "numa_node", Some(b"3\n"));
    assert_eq!(node(), Some(1));
    machine.set_parent_attribute(VF, "numa_node", Some(b"-1\n"));
    assert_eq!(node(), None, "an answer, and no reason to look further up");
    machine.set_parent_attribute(VF, "numa_node", None);
    assert_eq!(node(), Some(3));
    machine.set_parent_attribute("pci0000:3a/0000:3a:00.0", "numa_node", None);
    machine.set_parent_attribute("pci0000:3a", "numa_node", Some(b"2147483647\n"));
    assert_eq!(node(), Some(i32::MAX as u32));
    machine.set_parent_attribute("pci0000:3a", "numa_node", None);
    machine.set_parent_attribute("", "numa_node", Some(b"0\n"));
    assert_eq!(node(), None, "/sys/devices is no device");
}

/// Hostile contents are an error of that device alone, which names what it is about.
#[test]
fn hostile_attributes_are_named() {
    type Set = fn(&Machine, &str, &[u8]);
    let attribute: Set = |machine, name, value| {
        machine.set_parent_attribute(VF, name, Some(value));
    };
    let of_pf: Set = |machine, name, value| machine.set_parent_attribute(PF, name, Some(value));
    let link: Set = |machine, name, value| machine.set_parent_link(VF, name, Some(value));
    let link_of_pf: Set = |machine, name, value| machine.set_parent_link(PF, name, Some(value));
    for (set, name, value) in [
        (attribute, "vendor", &b"0x15b3"[..]),
        (attribute, "vendor", b"15b3\n"),
        (attribute, "vendor", b"\xff\x1b[31m\n"),
        (attribute, "device", b""),
        (attribute, "device", &[b'0'; 5000]),
        (attribute, "numa_node", b"-2\n"),
        (attribute, "numa_node", b"99999999999\n"),
        (attribute, "subsystem", b"pci\n"),
        (attribute, "physfn", b"../0000:3b:00.0"),
        (of_pf, "sriov_offset", b"-1\n"),
        (of_pf, "sriov_offset", b"65536\n"),
        (of_pf, "sriov_stride", b"0x1\n"),
        (of_pf, "virtfn1", b"x\n"),
        (link, "vendor", b"device"),
        (link, "subsystem", b"../../../../bus/"),
        (link, "subsystem", b"/sys/bus/pci"),
        (link, "subsystem", b"../../../../bus/pci/../x"),
        (link, "physfn", b"../0000:3b:00.2"),
        (link, "physfn", b"../0000:3b:00.2/"),
        (link, "physfn", b"../pf"),
        (link, "physfn", b"../0000:3B:00.0"),
        (link, "physfn", b"../../../../../../etc/0000:3b:00.0"),
        (link, "physfn", b"/0000:3b:00.0"),
        (link, "physfn", b""),
        (link, "physfn", &[b'a'; 1100]),
        (link_of_pf, "virtfn1", b"virtfn1/../virtfn1"),
    ] {
        let machine = sriov();
        set(&machine, name, value);
        let what = format!("{name} {}", value.escape_ascii());
        let error = listed(&machine, "vf").parent().expect_err(&what);
        let text = error.to_string();
        assert!(text.contains(name), "{what}: {text}");
        assert!(text.starts_with("vf (uverbs1): "), "{what}: {text}");
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{what}: {text:?}");
        assert!(matches!(error.kind(), ErrorKind::Malformed | ErrorKind::Os), "{what}: {text}");
        let pf = listed(&machine, "pf").parent().expect("the other one");
        assert_eq!(pf.pci_address(), Some(at("0000:3b:00.0")));
    }
    // A name on the bus that is no address, and attributes that every function has.
    let machine = Machine::new();
    machine.add_pci_function("pci0000:3a/0000:3b:00.8", IDS, 0);
    add(&machine, "a", "pci0000:3a/0000:3b:00.8");
    let error = listed(&machine, "a").parent().expect_err("no address");
    assert!(error.to_string().contains("\"0000:3b:00.8\" is not a PCI address"), "{error}");
    for name in ["vendor", "device"] {
        let machine = sriov();
        machine.set_parent_attribute(VF, name, None);
        let error = listed(&machine, "vf").parent().expect_err("none there");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Os, Some(2)));
        assert!(error.to_string().contains(&format!("\"{name}\"")), "{error}");
    }
    // Links that lead to each other end there.
    let machine = sriov();
    machine.set_parent_link(PF, "physfn", Some(b"../0000:3b:00.2"));
    let FunctionKind::Virtual { physical, number, .. } = kind(&machine, "pf") else { panic!() };
    assert_eq!((physical, number), (at("0000:3b:00.2"), None));
    machine.set_parent_link("pci0000:3a/0000:3a:00.0", "0000:3b:00.0", Some(b"0000:3b:00.0"));
    let error = listed(&machine, "vf").parent().expect_err("a loop");
    assert_eq!(error.raw_os_error(), Some(40), "{error}");
}

/// Every call of the library may fail, or find that the device was replaced.
fn at_every_call(mut run: impl FnMut(Machine, u64) -> bool) -> u64 {
    for at in 1.. {
        if run(sriov(), at) {
            return at;
        }
    }
    unreachable!()
}

#[test]
fn a_call_that_fails_is_the_error() {
    let calls = at_every_call(|machine, at| {
        let device = listed(&machine, "vf");
        let first = machine.calls() + at;
        machine.on_call(move |_, call| match call.ordinal() == first {
            true => Verdict::Fail(12),
            false => Verdict::Continue,
        });
        let found = device.parent();
        machine.clear_hook();
        if machine.calls() < first {
            found.expect("nothing failed");
            return true;
        }
        let error = found.expect_err("a call failed");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Os, Some(12)), "{error}");
        false
    });
    assert!(calls > 20, "{calls}");
}

/// The function goes with its device, and another one of that address comes: what is returned is of the listed one.
#[test]
fn what_is_read_is_of_the_listed_device() {
    for happens in ["remove", "replace", "rename"] {
        at_every_call(|machine, at| {
            let device = listed(&machine, "vf");
            let id = machine.with(|world| world.instance_of(1)).expect("there");
            let first = machine.calls() + at;
            machine.on_call(move |world, call| {
                if call.ordinal() == first {
                    if happens == "rename" {
                        world.rename(id, b"z").expect("renamed");
                        return Verdict::Continue;
                    }
                    world.remove(id);
                    world.remove_parent(VF).expect("nothing beneath");
                    if happens == "replace" {
                        // Of another vendor, number and node.
                        world.add_pci_function(VF, (0x8086, 0x1592), 7);
                        world.make_virtual(VF, PF, 5);
                        world.add(DeviceSpec::new("vf").beneath(VF)).expect("added");
                    }
                }
                Verdict::Continue
            });
            let found = device.parent();
            let is_over = machine.calls() < first;
            machine.clear_hook();
            match found {
                Ok(Parent { function: Some(function), numa_node, .. }) => {
                    assert_eq!((function.vendor_id, numa_node), (0x15b3, Some(1)), "{at}");
                    let FunctionKind::Virtual { number, .. } = function.kind else { panic!() };
                    assert_eq!(number, Some(1), "{at}");
                }
                Ok(parent) => panic!("{parent:?}"),
                Err(error) => {
                    let gone = matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced);
                    assert!(gone && happens != "rename", "{happens} {at}: {error}");
                }
            }
            is_over
        });
    }
}

#[test]
fn a_list_reads_no_parent() {
    let machine = sriov();
    let registry = registry(&machine);
    machine.record_calls(true);
    registry.devices().expect("a list");
    let log = machine.call_log();
    let of_parents = ["numa_node", "subsystem", "vendor", "physfn", "sriov"];
    assert!(!log.iter().any(|call| of_parents.iter().any(|name| call.contains(name))), "{log:?}");
}

#[test]
fn a_device_is_found_by_its_address() {
    let machine = sriov();
    let devices = || registry(&machine).devices().expect("a list");
    let find = |address: &str| devices().by_pci(at(address));
    assert_eq!(find("0000:3b:00.2").expect("found").name(), "vf");
    assert_eq!(find("0000:3b:00.0").expect("found").name(), "pf");
    // The bridge is above both and the parent of neither; of the other, nothing is known.
    for address in ["0000:3a:00.0", "0001:3b:00.0", "0000:3b:00.7"] {
        let error = find(address).expect_err(address);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let text = format!(
            "no such device (PCI address {address} is not listed; listed: pf (uverbs0), vf (uverbs1))"
        );
        assert_eq!(error.to_string(), text);
    }
    machine.add_auxiliary(SF, Some(88));
    add(&machine, "sf", SF);
    add(&machine, "smi1", VF);
    for (address, names) in [
        ("0000:3b:00.0", "pf (uverbs0), sf (uverbs2)"),
        ("0000:3b:00.2", "vf (uverbs1), smi1 (uverbs3)"),
    ] {
        let error = find(address).expect_err("two");
        assert_eq!(error.kind(), ErrorKind::Ambiguous);
        let text = format!("more than one device matches (PCI address {address}: {names})");
        assert_eq!(error.to_string(), text);
    }
    let all = devices().all_by_pci(at("0000:3b:00.2")).expect("two");
    let names: Vec<_> = all.iter().map(|device| device.name().to_string()).collect();
    assert_eq!(names, ["vf", "smi1"]);
    assert!(devices().all_by_pci(at("0000:3a:00.0")).expect("none").is_empty());
}

#[test]
fn a_device_that_may_be_another_match_is_an_error() {
    let machine = sriov();
    machine.add_auxiliary(SF, Some(88));
    let sf = add(&machine, "sf", SF);
    machine.set_parent_attribute(SF, "sfnum", Some(b"x\n"));
    let devices = registry(&machine).devices().expect("a list");
    let error: Error = devices.by_pci(at("0000:3b:00.0")).expect_err("not known");
    assert_eq!((error.kind(), error.device()), (ErrorKind::Malformed, Some("sf (uverbs2)")));
    assert_eq!(devices.by_pci(at("0000:3b:00.2")).expect("not beneath it").name(), "vf");
    // One that is gone is no match.
    machine.remove(sf);
    assert_eq!(devices.by_pci(at("0000:3b:00.0")).expect("found").name(), "pf");
}
