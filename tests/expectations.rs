//! Expectations on a simulated kernel: which device a container was given, and what has become of it.

use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{BootId, Device, Devices, ErrorKind, Expectation, Host, Registry};

const PF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
const VF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.2";
const OTHER: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.3";

fn boot() -> BootId {
    "6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3c".parse().expect("a boot id")
}

/// A machine with three functions, without a device.
fn machine() -> Machine {
    let machine = Machine::new();
    for path in [PF, VF, OTHER] {
        machine.add_pci_function(path, (0x15b3, 0x1018), 0);
    }
    machine
}

fn add(machine: &Machine, name: &str, parent: &str) -> uverbs::sim::DeviceId {
    machine.add(DeviceSpec::new(name).guid(0xa0).beneath(parent)).expect("added")
}

fn devices(machine: &Machine) -> Devices {
    Registry::new(Host::simulated(machine).expect("a host")).devices().expect("a list")
}

fn named(devices: &Devices, name: &str) -> Device {
    devices.by_name(name).expect("listed")
}

#[test]
fn a_device_meets_its_own_expectation() {
    let machine = machine();
    add(&machine, "vf", VF);
    machine.add_auxiliary(&format!("{PF}/mlx5_core.sf.4"), Some(88));
    machine.add_auxiliary(&format!("{PF}/bnxt_en.rdma.0"), None);
    machine.add_device_of_bus("platform/HISI00D1:00", "platform");
    add(&machine, "sf", &format!("{PF}/mlx5_core.sf.4"));
    add(&machine, "aux", &format!("{PF}/bnxt_en.rdma.0"));
    add(&machine, "soc", "platform/HISI00D1:00");
    machine.add(DeviceSpec::new("rxe0")).expect("added");
    let devices = devices(&machine);
    for (name, text) in [
        ("vf", "v1,pci=0000:3b:00.2,uverbs=0,dev_t=231:192"),
        ("sf", "v1,pci=0000:3b:00.0,sf=88,uverbs=1,dev_t=231:193"),
        ("aux", "v1,bus=auxiliary,name=bnxt_en.rdma.0,uverbs=2,dev_t=231:194"),
        ("soc", "v1,bus=platform,name=HISI00D1:00,uverbs=3,dev_t=231:195"),
        ("rxe0", "v1,bus=virtual,uverbs=4,dev_t=231:196"),
    ] {
        let device = named(&devices, name);
        let expectation = Expectation::of(&device).expect(name);
        assert_eq!(expectation.to_string(), text);
        let whole = expectation.clone().with_guid_of(&device).expect("a GUID");
        let whole = whole.with_instance(device.instance(), boot());
        let mut expectations = vec![whole];
        // A software device is checked by its instance alone.
        expectations.extend((name != "rxe0").then_some(expectation));
        for expectation in expectations {
            expectation.check(&device, Some(boot())).expect(name);
            assert_eq!(expectation.find(&devices, Some(boot())).expect(name), device);
            for other in &devices {
                assert_eq!(expectation.check(other, Some(boot())).is_ok(), *other == device);
            }
        }
    }
}

#[test]
fn another_function_under_the_number_is_refused_and_both_are_named() {
    let machine = machine();
    let first = add(&machine, "a", VF);
    let given = Expectation::of(&named(&devices(&machine), "a")).expect("an expectation");
    machine.remove(first);
    add(&machine, "a", OTHER);
    let error = given.find(&devices(&machine), None).expect_err("another");
    assert_eq!(error.kind(), ErrorKind::NotExpected);
    assert_eq!(
        error.to_string(),
        "a (uverbs0): not the expected device (expected pci 0000:3b:00.2; found pci 0000:3b:00.3)"
    );
    // It is there again, under another number.
    add(&machine, "b", VF);
    let listed = devices(&machine);
    let error = given.find(&listed, None).expect_err("another").to_string();
    assert!(error.contains("; 0000:3b:00.2 now has uverbs1 (231:193))"), "{error}");
    for name in ["a", "b"] {
        let given = std::slice::from_ref(&given);
        let error = Expectation::check_among(given, &named(&listed, name), None);
        let error = error.expect_err(name).to_string();
        assert!(error.contains("expected ") && !error.contains("was given"), "{error}");
    }
    let error = given.check(&named(&listed, "b"), None).expect_err("its number differs");
    assert!(
        error
            .to_string()
            .contains("expected uverbs 0, dev_t 231:192; found uverbs 1, dev_t 231:193"),
        "{error}"
    );
}

#[test]
fn a_device_that_is_not_there_is_refused() {
    let machine = machine();
    let first = add(&machine, "a", VF);
    add(&machine, "b", OTHER);
    let given = Expectation::of(&named(&devices(&machine), "a")).expect("an expectation");
    machine.remove(first);
    let listed = devices(&machine);
    let error = given.find(&listed, None).expect_err("none");
    assert_eq!(error.kind(), ErrorKind::NotExpected);
    assert!(error.to_string().contains("found no uverbs0"), "{error}");
    let error = Expectation::check_among(&[given], &named(&listed, "b"), None);
    let error = error.expect_err("not given");
    assert_eq!(error.kind(), ErrorKind::NotExpected);
    assert!(error.to_string().contains("was given v1,pci=0000:3b:00.2"), "{error}");
    assert!(Expectation::check_among(&[], &named(&listed, "b"), None).is_err());
}

/// Both are at one address. Each is right, whichever of the two a program opens.
#[test]
fn two_devices_of_one_parent_are_both_accepted() {
    let machine = machine();
    let first = add(&machine, "mlx5_0", PF);
    add(&machine, "smi1", PF);
    let both = |listed: &Devices| -> Vec<_> {
        listed.iter().map(|device| Expectation::of(device).expect("read")).collect()
    };
    let given = both(&devices(&machine));
    for device in &devices(&machine) {
        Expectation::check_among(&given, device, None).expect("it was given");
    }
    // One of them has another number now, and another function has its own.
    machine.remove(first);
    add(&machine, "other", OTHER);
    add(&machine, "mlx5_0", PF);
    let listed = devices(&machine);
    Expectation::check_among(&given, &named(&listed, "smi1"), None).expect("it was given");
    for name in ["other", "mlx5_0"] {
        let error = Expectation::check_among(&given, &named(&listed, name), None);
        assert_eq!(error.expect_err(name).kind(), ErrorKind::NotExpected, "{name}");
    }
}

/// It has no parent: another software device would have the same expectation.
#[test]
fn a_software_device_is_not_checked_without_its_instance() {
    let machine = machine();
    let first = machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
    let device = named(&devices(&machine), "rxe0");
    let plain = Expectation::of(&device).expect("an expectation");
    let whole = plain.clone().with_instance(device.instance(), boot());
    whole.check(&device, Some(boot())).expect("the instance");
    machine.remove(first);
    machine.add(DeviceSpec::new("other").guid(0xa0)).expect("added");
    let listed = devices(&machine);
    let other = named(&listed, "other");
    assert_eq!(Expectation::of(&other).expect("an expectation"), plain);
    let error = whole.check(&other, Some(boot())).expect_err("another");
    assert_eq!(error.kind(), ErrorKind::NotExpected);
    let with_guid = plain.clone().with_guid_of(&other).expect("a GUID");
    for given in [plain, with_guid] {
        assert_eq!(given.check(&other, None).expect_err("unknown").kind(), ErrorKind::Unsupported);
        assert_eq!(given.find(&listed, None).expect_err("unknown").kind(), ErrorKind::Unsupported);
    }
}

/// A function that is bound again has its number again, and is the one that was given, unless the instance matters.
#[test]
fn a_device_that_is_bound_again_is_the_same_unless_the_instance_matters() {
    let machine = machine();
    let first = add(&machine, "a", VF);
    let device = named(&devices(&machine), "a");
    let given = Expectation::of(&device).expect("an expectation");
    let with_instance = given.clone().with_instance(device.instance(), boot());
    assert!(with_instance.needs_boot_id() && !given.needs_boot_id());
    machine.remove(first);
    add(&machine, "a", VF);
    let listed = devices(&machine);
    given.find(&listed, None).expect("the same function");
    let error = with_instance.find(&listed, Some(boot())).expect_err("another instance");
    assert_eq!(error.kind(), ErrorKind::NotExpected);
    assert!(error.to_string().contains("expected inode "), "{error}");
}

/// Inode numbers repeat over boots.
#[test]
fn an_instance_is_of_one_boot() {
    let machine = machine();
    add(&machine, "a", VF);
    let listed = devices(&machine);
    let device = named(&listed, "a");
    let given = Expectation::of(&device).expect("an expectation");
    let given = given.with_instance(device.instance(), boot());
    given.find(&listed, Some(boot())).expect("this boot");
    let next = "6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3d".parse().expect("a boot id");
    let error = given.find(&listed, Some(next)).expect_err("another boot");
    assert_eq!(error.kind(), ErrorKind::NotExpected);
    assert!(error.to_string().contains(&format!("expected boot {}; found boot {next}", boot())));
    assert_eq!(given.find(&listed, None).expect_err("unknown").kind(), ErrorKind::Unsupported);
}

#[test]
fn the_guid_is_compared_also_without_netlink() {
    let machine = machine();
    let id = add(&machine, "a", VF);
    let device = named(&devices(&machine), "a");
    let given = Expectation::of(&device).expect("an expectation");
    let given = given.with_guid_of(&device).expect("a GUID");
    given.find(&devices(&machine), None).expect("its GUID");
    machine.deny_netlink(Some(93));
    given.find(&devices(&machine), None).expect("its GUID in sysfs");
    machine.deny_netlink(None);
    machine.set_guid(id, 0xb0);
    let error = given.find(&devices(&machine), None).expect_err("another GUID").to_string();
    assert!(
        error.contains("expected guid 0000:0000:0000:00a0; found guid 0000:0000:0000:00b0"),
        "{error}"
    );
}

/// Neither netlink nor sysfs has the GUID of a device of another network namespace. It is refused, not passed.
#[test]
fn without_a_guid_to_compare_it_is_refused() {
    let machine = machine();
    let id = add(&machine, "a", VF);
    let device = named(&devices(&machine), "a");
    let plain = Expectation::of(&device).expect("an expectation");
    let given = plain.clone().with_guid_of(&device).expect("a GUID");
    machine.set_netns_visible(id, false);
    let error = given.find(&devices(&machine), None).expect_err("no GUID");
    assert_eq!(error.kind(), ErrorKind::OtherNamespace);
    plain.find(&devices(&machine), None).expect("numbers are visible everywhere");
}
