//! The serde forms of plain data. They are part of the interface.

use serde_json::{Value, json, to_value};
use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{
    AsyncEventKind, Context, ContextClaim, Device, DeviceNumber, DriverId, ErrorKind, Guid, Host,
    LinkLayer, NodeType, PciAddress, PortState, Registry, ResyncReason,
};

fn device(machine: &Machine, spec: DeviceSpec) -> Device {
    machine.add(spec).expect("added");
    let host = Host::simulated(machine).expect("a host");
    Registry::new(host).devices().expect("a list").get(0).expect("listed").clone()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

fn opened() -> (Machine, Context) {
    let machine = Machine::new();
    let context = device(&machine, DeviceSpec::new("a").guid(0xa0)).open().expect("opened");
    (machine, context)
}

#[test]
fn numbers_are_numbers_and_round_trip() {
    assert_eq!(to_value(DriverId::MLX5).expect("JSON"), json!(1));
    assert_eq!(to_value(PortState::ACTIVE).expect("JSON"), json!(4));
    assert_eq!(to_value(AsyncEventKind::DEVICE_FATAL).expect("JSON"), json!(8));
    assert_eq!(serde_json::from_value::<DriverId>(json!(99)).expect("any"), DriverId::from_raw(99));
    assert_eq!(serde_json::from_value::<NodeType>(json!(1)).expect("any"), NodeType::CA);
    assert!(serde_json::from_value::<LinkLayer>(json!(256)).is_err());
    let number = DeviceNumber::from((231, 192));
    assert_eq!(to_value(number).expect("JSON"), json!({"major": 231, "minor": 192}));
    assert_eq!(
        serde_json::from_value::<DeviceNumber>(json!({"major": 231, "minor": 192})).expect("one"),
        number
    );
}

#[test]
fn guids_are_texts_and_round_trip() {
    let guid = Guid(0x0002_c903_0005_1234);
    assert_eq!(to_value(guid).expect("JSON"), json!("0002:c903:0005:1234"));
    for text in ["0002:c903:0005:1234", "0x0002c90300051234"] {
        assert_eq!(serde_json::from_value::<Guid>(json!(text)).expect("a GUID"), guid);
    }
    for bad in [json!(5), json!("5"), json!(null)] {
        assert!(serde_json::from_value::<Guid>(bad).is_err());
    }
}

#[test]
fn pci_addresses_are_texts_and_round_trip() {
    let address: PciAddress = "b4a8:00:02.0".parse().expect("an address");
    assert_eq!(to_value(address).expect("JSON"), json!("b4a8:00:02.0"));
    for text in ["b4a8:00:02.0", "0000B4A8:00:02.0"] {
        assert_eq!(serde_json::from_value::<PciAddress>(json!(text)).expect("one"), address);
    }
    for bad in [json!(5), json!("00:02.0"), json!(null)] {
        assert!(serde_json::from_value::<PciAddress>(bad).is_err());
    }
}

#[test]
fn a_parent_is_a_map() {
    let machine = Machine::new();
    let [pf, vf] = ["pci0000:3a/0000:3b:00.0", "pci0000:3a/0000:3b:00.1"];
    for path in [pf, vf] {
        machine.add_pci_function(path, (0x15b3, 0x1017), 1);
    }
    machine.make_physical(pf, 8, 1, 1);
    machine.make_virtual(vf, pf, 0);
    let device = device(&machine, DeviceSpec::new("a").beneath(vf));
    let expected = json!({
        "bus": "pci",
        "name": "0000:3b:00.1",
        "subfunction": null,
        "function": {
            "address": "0000:3b:00.1",
            "vendor_id": 0x15b3,
            "device_id": 0x1017,
            "kind": {"virtual": {"physical": "0000:3b:00.0", "number": 0}},
        },
        "numa_node": 1,
    });
    let parent = || to_value(device.parent().expect("a parent")).expect("JSON");
    assert_eq!(parent(), expected);
    let registry = Registry::new(device.host().clone());
    let summary = registry.summaries(1).expect("a list").remove(0).expect("read");
    let place = to_value(summary.place.expect("a place")).expect("JSON");
    assert_eq!(place, json!({"pci": "0000:3b:00.1", "subfunction": null, "numa_node": 1}));
    machine.set_parent_link(vf, "physfn", None);
    assert_eq!(parent()["function"]["kind"], "unknown");
}

#[test]
fn names_are_texts_and_invalid_utf_8_is_escaped() {
    for (name, text) in
        [(&b"mlx5_0"[..], "mlx5_0"), ("\u{e9}\n".as_bytes(), "\u{e9}\n"), (b"a\xff\n", r"a\xff\n")]
    {
        let machine = Machine::new();
        let name = device(&machine, DeviceSpec::new(name)).name();
        assert_eq!(to_value(name).expect("JSON"), json!(text));
    }
}

#[test]
fn a_device_and_its_facts() {
    let machine = Machine::new();
    let device = device(&machine, DeviceSpec::new("a").guid(0xa0).fw_version("1.2"));
    let facts = to_value(device.query().expect("facts")).expect("JSON");
    assert_eq!(facts["node_guid"], "0000:0000:0000:00a0");
    assert_eq!((&facts["node_type"], &facts["driver_id"]), (&json!(1), &json!(14)));
    assert_eq!(facts["firmware_version"], "1.2");
    assert_eq!((keys(&facts).len(), &facts["port_count"]), (7, &json!(1)));
    let ports = to_value(device.ports().expect("ports")).expect("JSON");
    let rate = json!({"width": 1, "speed": 4, "megabits_per_second": 10_000});
    let port = json!({"port": 1, "state": 4, "physical_state": 5, "rate": rate, "netdev": null});
    assert_eq!(ports, json!([port]));
    let instance = device.instance();
    let (seconds, nanoseconds) = instance.timestamp;
    assert_eq!(
        to_value(instance).expect("JSON"),
        json!({
            "sys_dev": instance.sys_dev,
            "ino": instance.ino,
            "device_number": {"major": 231, "minor": 192},
            "timestamp": [seconds, nanoseconds],
        })
    );
    let provider = to_value(device.provider().expect("a provider")).expect("JSON");
    assert_eq!(provider["provider"], json!(["rxe", "driver"]));
    assert_eq!(provider["abi_versions"], json!({"start": 1, "end": 2}));
}

#[test]
fn reports_of_a_context() {
    let (_machine, context) = opened();
    let attributes = context.query_device().expect("attributes");
    let json = to_value(&attributes).expect("JSON");
    assert_eq!(json["node_guid"], "0000:0000:0000:00a0");
    assert_eq!(keys(&json).len(), attributes.entries().count());
    let port = context.query_port(1).expect("a port");
    let json = to_value(&port).expect("JSON");
    assert_eq!((&json["state"], &json["link_layer"]), (&json!(4), &json!(2)));
    let rate = to_value(port.rate().expect("known")).expect("JSON");
    assert_eq!(keys(&rate), ["megabits_per_second", "speed", "width"]);
    let gid = to_value(&context.gids().expect("GIDs")[0]).expect("JSON");
    assert_eq!(keys(&gid), ["gid", "index", "kind", "netdev_index", "port"]);
    assert!(gid["gid"].as_str().expect("a text").starts_with("fe80:"), "{gid}");
}

#[test]
fn evidence_has_every_check_and_its_result() {
    let (_machine, context) = opened();
    let json = to_value(context.evidence()).expect("JSON");
    assert_eq!(keys(&json), ["checks", "context_number", "index", "leaked_pd"]);
    let checks = json["checks"].as_array().expect("an array");
    assert_eq!(checks.len(), context.evidence().checks().len());
    for check in checks {
        assert_eq!(keys(check), ["expected", "found", "held", "id", "step", "what"]);
        assert_eq!(check["held"], true);
        assert_eq!(keys(&check["expected"]).len(), 1, "{check}");
    }
    let of = |kind: &str| checks.iter().find_map(|check| check["expected"].get(kind));
    assert!(of("time").is_some_and(Value::is_array) && of("number").is_some_and(Value::is_u64));
    assert_eq!(of("guid"), Some(&json!("0000:0000:0000:00a0")));
    assert_eq!(of("device_number"), Some(&json!({"major": 231, "minor": 192})));
    assert!(checks.iter().any(|check| check["step"] == "revalidate"));
    assert_eq!(checks[0]["id"], "sysfs_mount");
}

#[test]
fn a_claim_round_trips() {
    let (_machine, context) = opened();
    let claim = context.claim().expect("a claim");
    let mut json = to_value(claim).expect("JSON");
    assert_eq!(serde_json::from_value::<ContextClaim>(json.clone()).expect("a claim"), claim);
    // Additions of a newer version are ignored. A missing field is an error.
    json["newer"] = json!(1);
    assert_eq!(serde_json::from_value::<ContextClaim>(json.clone()).expect("a claim"), claim);
    json.as_object_mut().expect("an object").remove("ino");
    assert!(serde_json::from_value::<ContextClaim>(json).is_err());
}

#[test]
fn kinds_of_errors_are_their_codes() {
    for reason in [ResyncReason::EventsMissing, ResyncReason::Overflow] {
        assert_eq!(to_value(reason).expect("JSON"), json!(reason.name()));
    }
    assert_eq!(to_value(ErrorKind::NodeMismatch).expect("JSON"), json!("node_mismatch"));
}
