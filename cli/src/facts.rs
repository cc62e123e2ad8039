//! What is known of a device, as JSON and as text.

use serde::Serialize;
use uverbs::{Device, DeviceAttributes, DeviceFacts, Name, Timestamp};

use crate::output::hex;

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
}

impl DeviceJson {
    /// The device, and what netlink reports of it.
    pub(crate) fn new(device: &Device, facts: Option<&DeviceFacts>) -> Self {
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
        }
    }

    /// The same under the name that it had when something happened to it.
    pub(crate) fn named(self, name: &Name) -> Self {
        Self { name: name.to_string(), name_bytes_hex: hidden_bytes(name), ..self }
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
        let facts = device.query().expect("facts");

        let json = serde_json::to_value(DeviceJson::new(&device, Some(&facts))).expect("JSON");
        assert_eq!(json["name"], "rxe0");
        assert_eq!(json["uverbs"], "uverbs0");
        assert_eq!(json["dev_t"], "231:192");
        assert_eq!((&json["major"], &json["minor"]), (&231.into(), &192.into()));
        assert_eq!(json["node_guid"], "0000:0000:0000:00a0");
        assert_eq!((&json["driver"], &json["driver_id"]), (&"rxe".into(), &14.into()));
        assert_eq!(json["node_type"], "CA");
        assert!(json["firmware"].is_null() && json["inode"].is_u64() && json["index"].is_u64());
        assert!(json.get("name_bytes_hex").is_none());

        machine.rename(id, b"a\x1b/\xff").expect("renamed");
        registry.devices().expect("a list");
        let json = serde_json::to_value(DeviceJson::new(&device, None)).expect("JSON");
        assert_eq!(json["name"], r"a\x1b/\xff");
        assert_eq!(json["name_bytes_hex"], "611b2fff");
        for key in ["index", "driver", "driver_id", "node_guid", "sys_image_guid", "node_type"] {
            assert!(json[key].is_null(), "{key}");
        }
    }
}
