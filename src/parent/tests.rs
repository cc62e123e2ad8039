use proptest::prelude::*;

use super::*;

fn at(text: &str) -> PciAddress {
    text.parse().expect(text)
}

proptest! {
    #[test]
    fn a_function_has_the_number_that_places_it(
        pf: u16, offset: u16, stride in 1u16.., number in 0u32..0x1_0000, domain: u32,
    ) {
        let function = |rid: u16| {
            PciAddress::new(domain, (rid >> 8) as u8, (rid >> 3 & 31) as u8, (rid & 7) as u8).expect("in range")
        };
        let rid = u32::from(pf) + u32::from(offset) + u32::from(stride) * number;
        // Beyond the last bus there is no function.
        if let Ok(rid) = u16::try_from(rid) {
            prop_assert_eq!(vf_number(function(pf), function(rid), offset, stride), Some(number));
        }
    }

    #[test]
    fn any_two_functions_have_a_number_or_none(pf: u16, vf: u16, offset: u16, stride: u16) {
        let function = |rid: u16| {
            PciAddress::new(0, (rid >> 8) as u8, (rid >> 3 & 31) as u8, (rid & 7) as u8).expect("in range")
        };
        if let Some(number) = vf_number(function(pf), function(vf), offset, stride) {
            let rid = u64::from(pf) + u64::from(offset) + u64::from(stride) * u64::from(number);
            prop_assert_eq!(rid, u64::from(vf));
        }
    }

    #[test]
    fn a_link_stays_beneath_devices(text in r"(\.\./){0,6}(/|\./)?([a-z.:0]{0,3}/?){0,3}") {
        let directory = b"devices/pci0000:00/0000:00:03.0";
        if let Ok(path) = resolve(directory, text.as_bytes()) {
            let path = path.to_str().expect("of ASCII");
            prop_assert!(path.starts_with("devices/"), "{}", path);
            prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", path);
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_a_value(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = (unsigned(&bytes), routing_part(&bytes), Bus::parse(&bytes));
        let _ = (resolve(b"devices/a", &bytes), sysfs::parse_pci_id(&bytes));
        if let Ok(Some(node)) = parse_numa_node(&bytes) {
            prop_assert_eq!(node.to_string().into_bytes(), bytes.clone());
        }
        if let Some(address) = address(&bytes) {
            prop_assert_eq!(address.to_string().into_bytes(), bytes);
        }
    }
}

#[test]
fn numbers_of_real_functions() {
    let number = |vf: &str, offset, stride| vf_number(at("0000:3b:00.0"), at(vf), offset, stride);
    assert_eq!(number("0000:3b:00.1", 1, 1), Some(0));
    assert_eq!(number("0000:3b:00.3", 1, 1), Some(2));
    // On the next bus.
    assert_eq!(number("0000:3c:00.0", 1, 1), Some(255));
    assert_eq!(number("0000:3b:10.2", 128, 2), Some(1));
    assert_eq!(number("0000:3b:00.1", 1, 0), Some(0));
    for (vf, offset, stride) in [
        ("0000:3b:00.1", 2, 1),
        ("0000:3b:10.1", 128, 2),
        ("0000:3b:00.2", 1, 0),
        ("0000:3a:00.1", 1, 1),
        ("0001:3b:00.1", 1, 1),
        ("0000:ff:1f.7", u16::MAX, u16::MAX),
    ] {
        assert_eq!(number(vf, offset, stride), None, "{vf}");
    }
    // The routing ID and the offset exceed 16 bits together.
    assert_eq!(vf_number(at("0000:ff:1f.7"), at("0000:00:00.0"), 1, 1), None);
}

#[test]
fn links_of_the_kernel_are_resolved() {
    let directory = b"devices/pci0000:3a/0000:3a:00.0/0000:3b:00.2";
    for (text, expected) in [
        (&b"../0000:3b:00.0"[..], Some("devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0")),
        (b"../../0000:3a:01.0/0000:3c:00.0", Some("devices/pci0000:3a/0000:3a:01.0/0000:3c:00.0")),
        (b"../../../pci0000:00/x", Some("devices/pci0000:00/x")),
        (b"../../../../devices/x", None),
        (b"../../../../../x", None),
        (b"/sys/devices/x", None),
        (b"../x/../../y", None),
        (b"../x/", None),
        (b"..", None),
        (b"", None),
        (b"../a\0b", None),
    ] {
        let found = resolve(directory, text).ok();
        assert_eq!(found.as_deref().map(|path| path.to_str().expect("text")), expected, "{text:?}");
    }
}

#[test]
fn buses_go_by_the_whole_link() {
    let parse = |text: &str| Bus::parse(text.as_bytes());
    assert_eq!(parse("../../../../bus/pci"), Ok(Bus::Pci));
    assert_eq!(parse("../../../../bus/vmbus"), Ok(Bus::Vmbus));
    assert_eq!(parse("../../../../class/pci"), Ok(Bus::Other(Name::new(b"pci"))));
    assert_eq!(parse("../bus/usb"), Ok(Bus::Other(Name::new(b"usb"))));
    for bad in
        ["", "pci", "../../bus/", "../../bus/..", "../bus/pci/x", "/sys/bus/pci", "../x/bus/pci"]
    {
        assert!(parse(bad).is_err(), "{bad:?}");
    }
    for bus in [Bus::Pci, Bus::Auxiliary, Bus::Platform, Bus::Vmbus] {
        assert_eq!(parse(&format!("../bus/{bus}")), Ok(bus.clone()));
        assert_eq!(bus.name().map(|name| name.to_string()), Some(bus.to_string()));
    }
}

#[test]
fn nodes_and_ids_are_read_strictly() {
    assert_eq!(parse_numa_node(b"-1"), Ok(None));
    assert_eq!(parse_numa_node(b"0"), Ok(Some(0)));
    assert_eq!(parse_numa_node(b"2147483647"), Ok(Some(i32::MAX as u32)));
    for bad in [&b"-2"[..], b"", b"+1", b"01", b"2147483648", b"1 ", b"0x1"] {
        assert!(parse_numa_node(bad).is_err(), "{bad:?}");
    }
    assert_eq!(routing_part(b"65535"), Ok(u16::MAX));
    assert!(routing_part(b"65536").is_err() && routing_part(b"-1").is_err());
    assert_eq!(sysfs::parse_pci_id(b"0x15b3"), Ok(0x15b3));
    for bad in [&b"15b3"[..], b"0x15B3", b"0x15b", b"0x015b3", b"0x"] {
        assert!(sysfs::parse_pci_id(bad).is_err(), "{bad:?}");
    }
    assert_eq!(above(b"devices/a/b"), Some(&b"devices/a"[..]));
    assert_eq!((above(b"devices/a"), above(b"devices")), (None, None));
}
