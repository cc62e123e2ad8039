//! The code that the fuzz targets in `fuzz/` and the tests that replay their seeds call. It is outside of Semantic
//! Versioning.

use crate::ids::PciAddress;
use crate::kernel::netlink::Messages;
use crate::kernel::nldev::{
    Chardev, DeviceInfo, PortInfo, Resource, parse_one_resource, parse_resources,
};
use crate::kernel::uevent::Hint;
use crate::sysfs;

/// Parses the bytes as the value of every attribute, and as the text of a class link.
pub fn attributes(bytes: &[u8]) {
    if let Ok(text) = sysfs::line(bytes) {
        if let Ok(name) = sysfs::parse_name(text) {
            assert_eq!(name.as_bytes(), text);
            assert!(name.to_string().bytes().all(|byte| (b' '..=b'~').contains(&byte)));
        }
        if let Ok(number) = sysfs::parse_device_number(text) {
            assert_eq!(number.to_string().as_bytes(), text);
        }
    }
    let _ = sysfs::parse_pci_id(bytes);
    if let Some(address) = str::from_utf8(bytes).ok().and_then(|text| text.parse().ok()) {
        let address: PciAddress = address;
        assert!(bytes.to_ascii_lowercase().ends_with(address.to_string().as_bytes()));
    }
    if let Some(number) = sysfs::parse_uverbs(bytes) {
        assert_eq!(format!("uverbs{number}").as_bytes(), bytes);
    }
    if let Ok(path) = sysfs::parse_class_link(bytes, 0) {
        let mut parts = path.to_bytes().split(|&byte| byte == b'/');
        assert_eq!(parts.next(), Some(&b"devices"[..]));
        assert!(parts.all(|part| !matches!(part, b"" | b"." | b"..")));
    }
}

/// Parses the bytes as a datagram of RDMA netlink.
pub fn netlink(bytes: &[u8]) {
    for message in Messages(bytes).flatten() {
        let _ = message.errno();
        let _ = DeviceInfo::parse(&message);
        let _ = Chardev::parse(&message);
        let _ = PortInfo::parse(&message, 3, 1);
        for kind in [Resource::Context, Resource::Pd] {
            let _ = parse_resources(&message, kind, 0, &mut |_| {});
            let _ = parse_one_resource(&message, kind, 0);
        }
    }
}

/// Parses the bytes as a uevent, and as the control messages that come with one.
pub fn uevent(bytes: &[u8]) {
    let hint = Hint::of(bytes);
    let is_about =
        |subsystem: &[u8]| bytes.windows(subsystem.len()).any(|window| window == subsystem);
    if hint != Hint::Malformed {
        assert!(bytes.contains(&b'@') && is_about(b"\0ACTION=") && is_about(b"\0SUBSYSTEM="));
    }
    if matches!(hint, Hint::Verbs | Hint::Registered | Hint::Rdma) {
        assert!(is_about(b"infiniband"));
    }
    if let Some((pid, uid)) = crate::kernel::abi::sender(bytes) {
        let ids = [pid.to_ne_bytes(), uid.to_ne_bytes()].concat();
        assert!(is_about(&ids));
    }
}
