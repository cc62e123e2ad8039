use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;

use serde_json::{Value, json};
use uverbs::sim::{DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{DeviceNumber, Host, Registry};

use super::*;
use crate::cdi::spec::kind;

const PF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.0";
const VF: &str = "pci0000:3a/0000:3a:00.0/0000:3b:00.2";

/// The nodes that a test chooses. Those of verbs devices are right unless it chooses another number.
#[derive(Default)]
pub(in crate::cdi) struct FakeNodes {
    pub(in crate::cdi) numbers: RefCell<HashMap<String, Option<DeviceNumber>>>,
    pub(in crate::cdi) mads: Vec<Mad>,
    /// The names of the parents of devices that cannot be read.
    parents: HashMap<String, &'static str>,
}

impl Nodes for FakeNodes {
    fn number(&self, name: &str) -> Option<DeviceNumber> {
        if let Some(number) = self.numbers.borrow().get(name) {
            return *number;
        }
        match name.strip_prefix("uverbs").and_then(|number| number.parse::<u32>().ok()) {
            Some(number @ 0..32) => Some((231, 192 + number).into()),
            Some(number) => Some((510, number - 32).into()),
            None => match self.mads.iter().find(|mad| mad.name == name) {
                Some(mad) => Some(mad.number),
                None => Some((10, 60).into()),
            },
        }
    }

    fn rdma_cm(&self) -> io::Result<Option<DeviceNumber>> {
        let is_loaded = self.numbers.borrow().get(RDMA_CM) != Some(&None);
        Ok(is_loaded.then_some((10, 60).into()))
    }

    fn parent_of(&self, uverbs: &str) -> Option<Vec<u8>> {
        self.parents.get(uverbs).map(|parent| parent.as_bytes().to_vec())
    }

    fn mads(&self) -> io::Result<Vec<Mad>> {
        Ok(self.mads.clone())
    }
}

pub(in crate::cdi) fn wanted() -> Wanted {
    let kind = kind("uverbs/device").expect("a kind");
    Wanted {
        version: Version::lowest(&kind),
        kind,
        devices: None,
        umad: false,
        issm: false,
        rdma_cm: true,
        hook: Some("/usr/bin/uverbs".to_owned()),
        with_guid: false,
        with_instance: false,
        boot: "6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3c".parse().expect("a boot id"),
    }
}

/// A function with two devices, its sub-function, a virtual function, another bus, and a software device.
fn machine() -> Machine {
    let machine = Machine::new();
    machine.add_pci_function(PF, (0x15b3, 0x1017), 1);
    machine.make_physical(PF, 8, 1, 1);
    machine.add_pci_function(VF, (0x15b3, 0x1018), 1);
    machine.make_virtual(VF, PF, 1);
    machine.add_auxiliary(&format!("{PF}/mlx5_core.sf.4"), Some(88));
    machine.add_device_of_bus("platform/HISI00D1:00", "platform");
    add(&machine, "mlx5_0", Some(PF));
    add(&machine, "smi1", Some(PF));
    add(&machine, "mlx5_1", Some(&format!("{PF}/mlx5_core.sf.4")));
    add(&machine, "mlx5_2", Some(VF));
    add(&machine, "hns_0", Some("platform/HISI00D1:00"));
    add(&machine, "rxe0", None);
    machine
}

fn add(machine: &Machine, name: &str, parent: Option<&str>) -> DeviceId {
    let spec = DeviceSpec::new(name).guid(0xa0);
    machine.add(parent.into_iter().fold(spec, DeviceSpec::beneath)).expect("added")
}

fn listed(machine: &Machine) -> Devices {
    Registry::new(Host::simulated(machine).expect("a host")).devices().expect("a list")
}

fn build(machine: &Machine, wanted: Wanted, nodes: FakeNodes) -> Built {
    Builder::new(wanted, nodes).build(&listed(machine)).expect("built")
}

fn names(built: &Built) -> Vec<&str> {
    let devices = built.spec.iter().flat_map(|spec| &spec.devices);
    devices.map(|device| &*device.name).collect()
}

fn only(text: &str) -> Wanted {
    Wanted { devices: Some(vec![which(OsStr::new(text)).expect("a device")]), ..wanted() }
}

/// The paths of the nodes of a device of the file.
fn nodes<'a>(built: &'a Built, name: &str) -> Vec<&'a str> {
    let devices = built.spec.iter().flat_map(|spec| &spec.devices);
    let device = devices.clone().find(|device| device.name == name).expect(name);
    let nodes = &device.container_edits.device_nodes;
    nodes.iter().map(|node| node.path.strip_prefix("/dev/infiniband/").expect("a node")).collect()
}

#[test]
fn the_golden_file() {
    let machine = Machine::new();
    machine.add_pci_function(VF, (0x15b3, 0x1018), 1);
    add(&machine, "mlx5_2", Some(VF));
    let built = build(&machine, wanted(), FakeNodes::default());
    assert_eq!((built.notes.len(), built.missing.len()), (0, 0));
    let text = crate::cdi::text(&built.spec.expect("a file")).expect("JSON");
    assert_eq!(String::from_utf8(text).expect("text"), include_str!("golden.json"));
}

/// The rules of the specification and of its loaders, for everything that can be in a file.
#[test]
fn a_file_is_what_loaders_accept() {
    let machine = machine();
    let all = Wanted { with_guid: true, with_instance: true, umad: true, issm: true, ..wanted() };
    let spec = build(&machine, all, mads()).spec.expect("a file");
    let json: Value = serde_json::to_value(&spec).expect("JSON");
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(keys(&json), ["cdiVersion", "containerEdits", "devices", "kind"]);
    assert_eq!((&json["cdiVersion"], &json["kind"]), (&json!("0.5.0"), &json!("uverbs/device")));
    let devices = json["devices"].as_array().expect("devices");
    let mut names = Vec::new();
    for device in devices {
        assert_eq!(keys(device), ["containerEdits", "name"]);
        let name = device["name"].as_str().expect("a name");
        assert!(is_device_name(name) && !names.contains(&name), "{name}");
        names.push(name);
    }
    for edits in
        devices.iter().map(|device| &device["containerEdits"]).chain([&json["containerEdits"]])
    {
        for node in edits["deviceNodes"].as_array().expect("nodes") {
            // No type and no number: they would be made even without the device.
            assert_eq!(keys(node), ["fileMode", "path", "permissions"]);
            assert_eq!(node["permissions"], "rw");
            let is_mad = node["path"]
                .as_str()
                .is_some_and(|path| path.contains("mad") || path.contains("issm"));
            assert_eq!(node["fileMode"], if is_mad { 0o600 } else { 0o666 });
        }
        for hook in edits["hooks"].as_array().into_iter().flatten() {
            assert_eq!(keys(hook), ["args", "hookName", "path", "timeout"]);
            assert_eq!(
                (&hook["hookName"], &hook["timeout"]),
                (&json!("createRuntime"), &json!(10))
            );
        }
        for variable in edits["env"].as_array().into_iter().flatten() {
            let (name, text) =
                variable.as_str().and_then(|text| text.split_once('=')).expect("a variable");
            let expectation: Expectation = text.parse().expect("an expectation");
            assert_eq!(expectation.variable(), name);
            assert!(expectation.needs_boot_id() && expectation.guid().is_some());
        }
    }
}

#[test]
fn places_are_named_and_have_all_their_devices() {
    let built = build(&machine(), wanted(), FakeNodes::default());
    assert_eq!(
        names(&built),
        [
            "0000:3b:00.0",
            "0000:3b:00.0-dev-mlx5_0",
            "0000:3b:00.0-dev-smi1",
            "0000:3b:00.0-sf88",
            "0000:3b:00.2",
            "platform-HISI00D1:00",
        ]
    );
    // The function is not given with its sub-functions.
    assert_eq!(nodes(&built, "0000:3b:00.0"), ["uverbs0", "uverbs1"]);
    assert_eq!(nodes(&built, "0000:3b:00.0-dev-smi1"), ["uverbs1"]);
    assert_eq!(nodes(&built, "0000:3b:00.0-sf88"), ["uverbs2"]);
    assert_eq!(built.notes, ["rxe0 (uverbs5): left out, because it has no address: name it"]);
    let spec = built.spec.expect("a file");
    let edits = &spec.devices[0].container_edits;
    assert_eq!(
        edits.env,
        [
            "UVERBS_EXPECT_0=v1,pci=0000:3b:00.0,uverbs=0,dev_t=231:192",
            "UVERBS_EXPECT_1=v1,pci=0000:3b:00.0,uverbs=1,dev_t=231:193",
        ]
    );
    assert_eq!(
        edits.hooks[0].args[2..],
        [
            "--node",
            "rdma_cm=10:60",
            "v1,pci=0000:3b:00.0,uverbs=0,dev_t=231:192",
            "v1,pci=0000:3b:00.0,uverbs=1,dev_t=231:193"
        ]
    );
}

#[test]
fn devices_are_selected_by_place_or_as_elsewhere() {
    let machine = machine();
    for (text, expected) in [
        ("0000:3b:00.2", &["0000:3b:00.2"][..]),
        ("pci=0000:3b:00.2", &["0000:3b:00.2"]),
        ("00000000:3B:00.2", &["0000:3b:00.2"]),
        ("mlx5_2", &["0000:3b:00.2"]),
        ("uverbs=3", &["0000:3b:00.2"]),
        ("0000:3b:00.0-sf88", &["0000:3b:00.0-sf88"]),
        ("0000:3b:00.0", &["0000:3b:00.0", "0000:3b:00.0-dev-mlx5_0", "0000:3b:00.0-dev-smi1"]),
        // A part of what is there is not under the name of the whole.
        ("smi1", &["0000:3b:00.0-dev-smi1"]),
        ("platform-HISI00D1:00", &["platform-HISI00D1:00"]),
        ("rxe0", &["virtual-rxe0"]),
        ("virtual-rxe0", &["virtual-rxe0"]),
    ] {
        let built = build(&machine, only(text), FakeNodes::default());
        assert_eq!(names(&built), expected, "{text}");
        assert!(built.missing.is_empty() && built.notes.is_empty(), "{text}: {:?}", built.notes);
    }
    for text in ["0000:3b:00.7", "0000:3b:00.0-sf8", "mlx5_9", "virtual-mlx5_0"] {
        let built = build(&machine, only(text), FakeNodes::default());
        assert!(built.spec.is_none() && built.missing.len() == 1, "{text}");
    }
}

/// It has no address, so that another one under its number would be the same without the instance.
#[test]
fn a_software_device_is_identified_by_its_instance() {
    let built = build(&machine(), only("rxe0"), FakeNodes::default());
    let spec = built.spec.expect("a file");
    let [variable] = &spec.devices[0].container_edits.env[..] else { panic!("{spec:?}") };
    let (name, text) = variable.split_once('=').expect("a variable");
    let expectation: Expectation = text.parse().expect("an expectation");
    assert_eq!(name, "UVERBS_EXPECT_5");
    assert!(expectation.needs_boot_id(), "{expectation}");
}

#[test]
fn what_a_container_would_not_get_is_left_out() {
    let nodes = FakeNodes::default();
    nodes.numbers.borrow_mut().extend([
        ("uverbs3".to_owned(), None),
        ("uverbs4".to_owned(), Some((231, 300).into())),
        ("rdma_cm".to_owned(), None),
    ]);
    let built = build(&machine(), wanted(), nodes);
    assert!(
        !names(&built).contains(&"0000:3b:00.2")
            && !names(&built).contains(&"platform-HISI00D1:00")
    );
    assert_eq!(built.notes.len(), 4, "{:?}", built.notes);
    for words in [
        "/dev/infiniband/uverbs3 is missing",
        "uverbs4 is a node of 231:300",
        "load the module rdma_ucm",
    ] {
        assert!(built.notes.iter().any(|note| note.contains(words)), "{words}: {:?}", built.notes);
    }
    assert_eq!(built.spec.expect("a file").container_edits, Edits::default());
    let none = build(&Machine::new(), wanted(), FakeNodes::default());
    assert!(none.spec.is_none());
}

fn mads() -> FakeNodes {
    let mad = |name: &str, kind, parent: &str, device: &str| Mad {
        name: name.to_owned(),
        kind,
        number: (231, u32::from(name.as_bytes()[4]) + if kind == MadKind::Umad { 0 } else { 64 })
            .into(),
        parent: parent.into(),
        device: device.into(),
    };
    let mads = vec![
        mad("umad0", MadKind::Umad, "0000:3b:00.2", "mlx5_2"),
        mad("issm0", MadKind::Issm, "0000:3b:00.2", "mlx5_2"),
        mad("umad1", MadKind::Umad, "0000:3b:00.0", "mlx5_0"),
        mad("umad2", MadKind::Umad, "0000:3b:00.0", "smi1"),
        mad("umad3", MadKind::Umad, "mlx5_core.sf.4", "mlx5_1"),
        mad("umad4", MadKind::Umad, "virtual", "rxe0"),
        mad("umad5", MadKind::Umad, "virtual", "rxe1"),
        mad("umad6", MadKind::Umad, "0000:3b:00.3", "mlx5_2"),
    ];
    FakeNodes { mads, ..FakeNodes::default() }
}

#[test]
fn nodes_for_datagrams_are_those_of_the_same_parent() {
    let machine = machine();
    let umad = || Wanted { umad: true, ..wanted() };
    let built = build(&machine, umad(), mads());
    assert_eq!(nodes(&built, "0000:3b:00.2"), ["uverbs3", "umad0"]);
    assert_eq!(nodes(&built, "0000:3b:00.0"), ["uverbs0", "uverbs1", "umad1", "umad2"]);
    assert_eq!(nodes(&built, "0000:3b:00.0-dev-smi1"), ["uverbs1", "umad2"]);
    assert_eq!(nodes(&built, "0000:3b:00.0-sf88"), ["uverbs2", "umad3"]);
    let built = build(&machine, Wanted { umad: true, ..only("rxe0") }, mads());
    assert_eq!(nodes(&built, "virtual-rxe0"), ["uverbs5", "umad4"]);
    let built = build(&machine, Wanted { issm: true, ..wanted() }, mads());
    assert_eq!(nodes(&built, "0000:3b:00.2"), ["uverbs3", "issm0"]);
    let built = build(&machine, wanted(), mads());
    assert_eq!(nodes(&built, "0000:3b:00.2"), ["uverbs3"]);
}

/// The engine fixes their numbers in the container's configuration, so that the hook has to compare them.
#[test]
fn the_hook_gets_every_node_that_a_container_gets() {
    let all = Wanted { umad: true, issm: true, ..wanted() };
    let spec = build(&machine(), all, mads()).spec.expect("a file");
    for device in &spec.devices {
        let edits = &device.container_edits;
        let args = &edits.hooks[0].args;
        let nodes = edits.device_nodes.iter().chain(&spec.container_edits.device_nodes);
        for node in nodes {
            let name = node.path.strip_prefix("/dev/infiniband/").expect("a node");
            let number = name.strip_prefix("uverbs");
            let is_there = |arg: &String| match number {
                Some(number) => arg.contains(&format!(",uverbs={number},")),
                None => arg.starts_with(&format!("{name}=")),
            };
            assert!(args.iter().any(is_there), "{name}: {args:?}");
        }
    }
    let function = spec.devices.iter().find(|device| device.name == "0000:3b:00.2").expect("one");
    assert_eq!(
        function.container_edits.hooks[0].args[2..],
        [
            "--node",
            "rdma_cm=10:60",
            "--node",
            "umad0=231:48",
            "--node",
            "issm0=231:112",
            "v1,pci=0000:3b:00.2,uverbs=3,dev_t=231:195"
        ]
    );
    let none = build(&machine(), Wanted { rdma_cm: false, ..wanted() }, mads());
    let spec = none.spec.expect("a file");
    assert!(spec.devices.iter().all(|device| device.container_edits.hooks[0].args.len() < 5));
}

#[test]
fn a_node_of_another_number_is_left_out() {
    for (name, why) in [
        ("umad0", "/dev/infiniband/umad0 is a node of 231:999 and not of 231:48"),
        ("rdma_cm", "/dev/infiniband/rdma_cm is a node of 231:999 and not of 10:60"),
    ] {
        let nodes = mads();
        nodes.numbers.borrow_mut().insert(name.to_owned(), Some((231, 999).into()));
        let built = build(&machine(), Wanted { umad: true, ..only("mlx5_2") }, nodes);
        assert!(built.notes.iter().any(|note| note.contains(why)), "{:?}", built.notes);
        let spec = built.spec.expect("a file");
        let text = serde_json::to_string(&spec).expect("JSON");
        assert!(!text.contains(name), "{text}");
    }
}

/// The name of a place means all that is there. A device that cannot be read may be a part of it.
#[test]
fn a_place_with_a_device_that_cannot_be_read_is_left_out() {
    let names_of = |machine: &Machine, wanted, nodes| {
        let built = build(machine, wanted, nodes);
        let names: Vec<_> = names(&built).into_iter().map(str::to_owned).collect();
        (names, built.notes)
    };
    // The place is known, and the GUID is another network namespace's.
    let machine = machine();
    // A software device, too, which is a part of nothing.
    for number in [1, 5] {
        machine.set_netns_visible(machine.instance_of(number).expect("there"), false);
    }
    let with_guid = Wanted { with_guid: true, ..wanted() };
    let (names, notes) = names_of(&machine, with_guid, FakeNodes::default());
    assert_eq!(
        names,
        ["0000:3b:00.0-dev-mlx5_0", "0000:3b:00.0-sf88", "0000:3b:00.2", "platform-HISI00D1:00"]
    );
    let why = "0000:3b:00.0: left out, because smi1 (uverbs1) may be a part of it";
    assert!(notes.iter().any(|note| note.starts_with(why)), "{notes:?}");

    // It is not listed, because it cannot be read. Its link may show where it is.
    let machine = self::machine();
    let fails = |part: &'static str| {
        machine.on_call(move |world, call| match call.detail(world).contains(part) {
            true => Verdict::Fail(5),
            false => Verdict::Continue,
        });
    };
    fails("uverbs1");
    let known = || FakeNodes {
        parents: HashMap::from([
            ("uverbs1".to_owned(), "0000:3b:00.0"),
            ("uverbs3".to_owned(), "0000:3b:00.2"),
        ]),
        ..FakeNodes::default()
    };
    let (names, _) = names_of(&machine, wanted(), known());
    assert_eq!(
        names,
        ["0000:3b:00.0-dev-mlx5_0", "0000:3b:00.0-sf88", "0000:3b:00.2", "platform-HISI00D1:00"]
    );
    let (names, notes) = names_of(&machine, wanted(), FakeNodes::default());
    assert_eq!(
        names,
        [
            "0000:3b:00.0-dev-mlx5_0",
            "0000:3b:00.0-sf88-dev-mlx5_1",
            "0000:3b:00.2-dev-mlx5_2",
            "platform-HISI00D1:00-dev-hns_0"
        ]
    );
    assert!(notes.iter().any(|note| note.contains("because uverbs1 may be a part")), "{notes:?}");

    // It is listed, and its parent cannot be read.
    machine.clear_hook();
    let devices = listed(&machine);
    fails("0000:3b:00.2");
    let names_of = |nodes| {
        let built = Builder::new(wanted(), nodes).build(&devices).expect("built");
        super::tests::names(&built).len()
    };
    assert_eq!(names_of(known()), 5);
    assert_eq!(names_of(FakeNodes::default()), 4);
}

/// Whoever may rename devices must not get one under the name of another, nor anything else into the file.
#[test]
fn no_name_of_a_device_reaches_the_file_but_as_a_name() {
    for name in ["a\"b", "a/b", "..", "a b", "a\nb", "a$(b)", "-a", "a-", "\u{1b}[m", "a'b", "a=b"]
    {
        let machine = machine();
        let id = machine.instance_of(1).expect("there");
        machine.rename(id, name.as_bytes()).expect("renamed");
        let built = build(&machine, wanted(), FakeNodes::default());
        let own = format!("0000:3b:00.0-dev-{name}");
        // This one may be a part of a name.
        let is_there = names(&built).contains(&&*own);
        assert_eq!(is_there, name == "-a", "{name}: {:?}", names(&built));
        assert!(
            names(&built).contains(&"0000:3b:00.0-dev-mlx5_0")
                && names(&built).contains(&"0000:3b:00.0")
        );
        let is_noted =
            built.notes.iter().any(|note| note.contains("no CDI device may have that name"));
        assert_eq!(is_noted, !is_there, "{name}: {:?}", built.notes);
        assert!(!built.notes.iter().any(|note| note.contains(char::is_control)));
        let text = crate::cdi::text(&built.spec.expect("a file")).expect("JSON");
        let text = String::from_utf8(text).expect("text");
        assert!(is_there || !text.contains(&own), "{name}");
    }
    // A name that looks like a sub-function is still the name of a device.
    let machine = machine();
    let id = machine.instance_of(1).expect("there");
    machine.rename(id, b"sf88").expect("renamed");
    let built = build(&machine, wanted(), FakeNodes::default());
    assert_eq!(nodes(&built, "0000:3b:00.0-sf88"), ["uverbs2"]);
    assert_eq!(nodes(&built, "0000:3b:00.0-dev-sf88"), ["uverbs1"]);
}
