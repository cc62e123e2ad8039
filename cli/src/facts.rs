//! What is known of a device, as JSON and as text.

mod parent;
mod ports;

use serde::Serialize;
use uverbs::{
    Device, DeviceAttributes, DeviceFacts, Error, Name, Parent, PortFacts, Result, Timestamp,
};

use crate::output::hex;
use crate::select::is_gone;

pub(crate) use parent::{ParentJson, address};
pub(crate) use ports::{PortJson, columns};

/// What was read of a device beside the list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) facts: Option<DeviceFacts>,
    pub(crate) parent: Option<Parent>,
    pub(crate) ports: Option<Vec<PortFacts>>,
}

impl Known {
    /// Reads all of it. Returns the reasons why a part could not be read, too.
    ///
    /// # Errors
    /// The device is gone.
    pub(crate) fn read(device: &Device) -> Result<(Self, Vec<Error>)> {
        let mut failed = Vec::new();
        let parent = noted(device.parent(), &mut failed)?;
        let facts = noted(device.query(), &mut failed)?;
        // Where netlink does not answer for the device, it does not for its ports.
        let ports = match facts {
            Some(_) => noted(device.ports(), &mut failed)?,
            None => None,
        };
        Ok((Self { facts, parent, ports }, failed))
    }

    /// All of it, without the reasons; nothing of a device that is gone.
    pub(crate) fn read_quietly(device: &Device) -> Self {
        Self::read(device).map(|(known, _)| known).unwrap_or_default()
    }
}

/// The value, or none, with the reason among those that failed.
pub(crate) fn noted<T>(result: Result<T>, failed: &mut Vec<Error>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_gone(&error) => Err(error),
        Err(error) => {
            failed.push(error);
            Ok(None)
        }
    }
}

/// A device as `--json` prints it. What netlink does not report is null.
#[derive(Debug, Serialize)]
pub(crate) struct DeviceJson {
    /// The name, escaped.
    pub(crate) name: String,
    /// Its bytes, where they are not what `name` shows.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_bytes_hex: Option<String>,
    /// `uverbs0`.
    pub(crate) uverbs: String,
    /// The N of it.
    number: u32,
    /// `231:192`.
    pub(crate) dev_t: String,
    major: u32,
    minor: u32,
    /// Inode number of the uverbs directory, which no other device ever has.
    pub(crate) inode: u64,
    /// Netlink index.
    pub(crate) index: Option<u32>,
    /// The driver's name.
    pub(crate) driver: Option<String>,
    driver_id: Option<u32>,
    pub(crate) node_guid: Option<String>,
    pub(crate) sys_image_guid: Option<String>,
    /// Kind of node, in words.
    pub(crate) node_type: Option<String>,
    /// The firmware's version; null where the driver reports none.
    pub(crate) firmware: Option<String>,
    /// What it belongs to.
    pub(crate) parent: Option<ParentJson>,
    /// The ports as they are seen without a context.
    pub(crate) ports: Option<Vec<PortJson>>,
}

impl DeviceJson {
    /// The device, and what is known of it.
    pub(crate) fn new(device: &Device, known: &Known) -> Self {
        let facts = known.facts.as_ref();
        let ports = known.ports.as_ref().map(|ports| ports.iter().map(PortJson::new).collect());
        let name = device.name();
        let (instance, number) = (device.instance(), device.device_number());
        let driver = facts.and_then(|facts| facts.driver_id);
        Self {
            name: name.to_string(),
            name_bytes_hex: hidden_bytes(&name),
            uverbs: format!("uverbs{}", device.uverbs_number()),
            number: device.uverbs_number(),
            dev_t: number.to_string(),
            major: number.major,
            minor: number.minor,
            inode: instance.ino,
            index: facts.map(|facts| facts.index),
            driver: driver.map(|driver| driver.to_string()),
            driver_id: driver.map(|driver| driver.to_raw()),
            node_guid: facts.map(|facts| facts.node_guid.to_string()),
            sys_image_guid: facts.map(|facts| facts.sys_image_guid.to_string()),
            node_type: facts.map(|facts| facts.node_type.to_string()),
            firmware: facts
                .map(|facts| facts.firmware_version.to_string())
                .filter(|version| !version.is_empty()),
            parent: known.parent.as_ref().map(ParentJson::new),
            ports,
        }
    }

    /// The same under the name that it had when something happened to it.
    pub(crate) fn named(self, name: &Name) -> Self {
        Self { name: name.to_string(), name_bytes_hex: hidden_bytes(name), ..self }
    }

    /// The PCI address, as the selector `pci=` takes it.
    pub(crate) fn pci(&self) -> Option<String> {
        self.parent.as_ref().and_then(ParentJson::address)
    }

    pub(crate) fn numa_node(&self) -> Option<u32> {
        self.parent.as_ref().and_then(|parent| parent.numa_node)
    }

    /// The driver's name and number.
    pub(crate) fn driver_in_words(&self) -> Option<String> {
        Some(format!("{} (id {})", self.driver.as_ref()?, self.driver_id?))
    }
}

/// The bytes of a name whose escaped form is not the name itself.
fn hidden_bytes(name: &Name) -> Option<String> {
    let bytes = name.as_bytes();
    (name.to_string().as_bytes() != bytes).then(|| hex(bytes))
}

/// The firmware's version as the driver encodes it; none where there is no firmware.
pub(crate) fn firmware_number(attributes: &DeviceAttributes) -> Option<String> {
    let number = attributes.firmware_version;
    (number != 0).then(|| format!("{number:#x}"))
}

/// `-` for what is not known.
pub(crate) fn or_dash<T: ToString>(value: &Option<T>) -> String {
    value.as_ref().map_or_else(|| "-".to_owned(), T::to_string)
}

/// Seconds and nanoseconds, as `stat -c %.9Z` prints them.
pub(crate) fn timestamp((seconds, nanoseconds): Timestamp) -> String {
    format!("{seconds}.{nanoseconds:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_keeps_its_zeros() {
        assert_eq!(timestamp((17, 1_000)), "17.000001000");
    }

    #[cfg(feature = "demo")]
    #[test]
    fn json_has_the_documented_keys() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        let id = machine.add(DeviceSpec::new("rxe0").guid(0xa0).fw_version("")).expect("added");
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let registry = uverbs::Registry::new(host);
        let device = registry.devices().expect("a list").by_name("rxe0").expect("listed");
        machine.set_netdev(id, 1, Some((7, "eth0"))).expect("a port");

        let known = Known::read_quietly(&device);
        let json = serde_json::to_value(DeviceJson::new(&device, &known)).expect("JSON");
        assert_eq!(json["name"], "rxe0");
        assert_eq!(json["uverbs"], "uverbs0");
        assert_eq!(json["dev_t"], "231:192");
        assert_eq!((&json["major"], &json["minor"]), (&231.into(), &192.into()));
        assert_eq!(json["node_guid"], "0000:0000:0000:00a0");
        assert_eq!((&json["driver"], &json["driver_id"]), (&"rxe".into(), &14.into()));
        assert_eq!(json["node_type"], "CA");
        assert!(json["firmware"].is_null() && json["inode"].is_u64() && json["index"].is_u64());
        assert!(json.get("name_bytes_hex").is_none());
        assert_eq!(json["parent"]["bus"], "virtual");
        for key in ["name", "pci", "vendor_id", "device_id", "function", "vf", "subfunction"] {
            assert!(json["parent"][key].is_null(), "{key}");
        }
        let port = serde_json::json!({
            "port": 1,
            "state": "ACTIVE",
            "physical_state": "LinkUp",
            "rate_gbps": 10.0,
            "netdev": "eth0",
            "netdev_index": 7,
        });
        assert_eq!(json["ports"], serde_json::json!([port]));

        machine.rename(id, b"a\x1b/\xff").expect("renamed");
        registry.devices().expect("a list");
        let json = serde_json::to_value(DeviceJson::new(&device, &Known::default())).expect("JSON");
        assert_eq!(json["name"], r"a\x1b/\xff");
        assert_eq!(json["name_bytes_hex"], "611b2fff");
        for key in [
            "index",
            "driver",
            "driver_id",
            "node_guid",
            "sys_image_guid",
            "node_type",
            "parent",
            "ports",
        ] {
            assert!(json[key].is_null(), "{key}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn functions_are_in_words() {
        use uverbs::sim::{DeviceSpec, Machine};

        const PF: &str = "pci0000:3a/0000:3b:00.0";
        const VF: &str = "pci0000:3a/0000:3b:00.2";
        const SF: &str = "pci0000:3a/0000:3b:00.0/mlx5_core.sf.4";
        let machine = Machine::new();
        for path in [PF, VF] {
            machine.add_pci_function(path, (0x15b3, 0x101e), 1);
        }
        machine.make_physical(PF, 8, 1, 1);
        machine.make_virtual(VF, PF, 1);
        machine.add_auxiliary(SF, Some(88));
        for (name, path) in [("pf", PF), ("vf", VF), ("sf", SF)] {
            machine.add(DeviceSpec::new(name).beneath(path)).expect("added");
        }
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let parent = |name: &str| {
            let device = devices.by_name(name).expect("listed");
            DeviceJson::new(&device, &Known::read_quietly(&device)).parent.expect("a parent")
        };
        let words = |name: &str| parent(name).function_in_words().expect("a function");
        assert_eq!(words("pf"), "0000:3b:00.0, 15b3:101e, physical function");
        assert_eq!(words("vf"), "0000:3b:00.2, 15b3:101e, virtual function 1 of 0000:3b:00.0");
        assert_eq!(parent("sf").address().as_deref(), Some("0000:3b:00.0/sf88"));
        assert_eq!(parent("sf").in_words(), "mlx5_core.sf.4 (auxiliary)");
        machine.set_parent_link(PF, "virtfn1", None);
        assert_eq!(words("vf"), "0000:3b:00.2, 15b3:101e, virtual function of 0000:3b:00.0");
        machine.set_parent_link(VF, "physfn", None);
        assert_eq!(words("vf"), "0000:3b:00.2, 15b3:101e");
        let json = serde_json::to_value(parent("sf")).expect("JSON");
        let expected = serde_json::json!({
            "bus": "auxiliary",
            "name": "mlx5_core.sf.4",
            "pci": "0000:3b:00.0",
            "vendor_id": 0x15b3,
            "device_id": 0x101e,
            "function": "physical",
            "physical_function": null,
            "vf": null,
            "subfunction": 88,
            "numa_node": 1,
        });
        assert_eq!(json, expected);
    }
}
