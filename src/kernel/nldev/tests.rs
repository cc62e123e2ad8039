//! Answers that the parsers accept, and answers that they refuse.

use proptest::prelude::*;

use super::super::Errno;
use super::super::netlink::{Attribute, HEADER, Messages, NLMSG_DONE, NLMSG_ERROR, Writer};
use super::*;

/// An answer to RDMA_NLDEV_CMD_GET, with the attributes in the kernel's order.
fn device(name: &[u8]) -> Vec<u8> {
    let name = [name, b"\0"].concat();
    Writer::message(Command::Get.message_type(), 0, 7)
        .attr(attr::DEV_INDEX, &3u32.to_ne_bytes())
        .attr(attr::DEV_NAME, &name)
        .attr(attr::NODE_GUID, &0xa0u64.to_ne_bytes())
        .attr(attr::SYS_IMAGE_GUID, &0xa1u64.to_ne_bytes())
        .attr(attr::DEV_NODE_TYPE, &[1])
        .attr(attr::FW_VERSION, b"1.0\0")
        .finish()
}

fn first(bytes: &[u8]) -> Message<'_> {
    Messages(bytes).next().expect("a message").expect("well-formed")
}

#[test]
fn a_device_is_parsed() {
    let bytes = device(b"mlx5_0");
    let message = first(&bytes);
    assert_eq!((message.kind, message.seq), (0x1401, 7));
    let info = DeviceInfo::parse(&message).expect("understood");
    assert_eq!((info.index, &*info.name), (3, &b"mlx5_0"[..]));
    assert_eq!((info.node_guid, info.sys_image_guid, info.node_type), (0xa0, 0xa1, 1));
}

#[test]
fn a_message_cut_anywhere_is_an_error() {
    let bytes = device(b"mlx5_0");
    for len in 1..bytes.len() {
        assert!(Messages(&bytes[..len]).next().expect("something").is_err(), "{len}");
    }
    // The length is less than the bytes that are there: an attribute is cut.
    let mut short = bytes.clone();
    short[..4].copy_from_slice(&22u32.to_ne_bytes());
    assert!(DeviceInfo::parse(&first(&short)).is_err());
}

#[test]
fn attributes_are_read_strictly() {
    let of = |value| Attribute { kind: attr::DEV_NAME, value };
    assert_eq!(of(b"abc\0").string(3), Ok(&b"abc"[..]));
    for bad in [&b"abcd\0"[..], b"a\0c\0", b"abc", b""] {
        assert!(of(bad).string(3).is_err(), "{bad:?}");
    }
    assert_eq!((of(&[2]).u8(), of(&[0]).u8()), (Ok(2), Ok(0)));
    assert!(of(&[]).u8().is_err() && of(&[0; 2]).u8().is_err());
    assert!(of(&[0; 8]).u32().is_err() && of(&[0; 4]).u64().is_err());
    // The flags of a type are ignored.
    let flagged = Writer::message(0, 0, 0).attr(0x8000 | attr::DEV_NAME, b"a").finish();
    let kinds: Vec<_> = first(&flagged).attrs().map(|found| found.map(|at| at.kind)).collect();
    assert_eq!(kinds, [Ok(attr::DEV_NAME)]);
    assert_eq!(decode_dev(u64::from(u32::MAX)), Ok((0xfff, 0xf_ffff)));
    assert!(decode_dev(1 << 32).is_err());
}

#[test]
fn facts_of_devices_are_parsed() {
    let chardev = |message: Writer| Chardev::parse(&first(&message.finish()));
    let message = || Writer::message(Command::GetChardev.message_type(), 0, 1);
    let dev = encode_dev((231, 192)).to_ne_bytes();
    let known = chardev(
        message()
            .attr(attr::CHARDEV, &dev)
            .attr(attr::CHARDEV_NAME, b"uverbs0\0")
            .attr(attr::UVERBS_DRIVER_ID, &14u32.to_ne_bytes()),
    );
    let (dev_t, name) = ((231, 192), Box::from(*b"uverbs0"));
    assert_eq!(known, Ok(Chardev { dev: dev_t, name, driver_id: Some(14) }));
    let unknown = chardev(message().attr(attr::CHARDEV, &dev));
    assert_eq!(unknown, Ok(Chardev { dev: dev_t, name: Box::default(), driver_id: None }));
    assert!(chardev(message()).is_err());
    let copies = |message: Writer| parse_copy_on_fork(&first(&message.finish()));
    assert_eq!(copies(message()), Ok(false));
    for copied in [false, true] {
        let message = message().attr(attr::SYS_COPY_ON_FORK, &[copied.into()]);
        assert_eq!(copies(message), Ok(copied));
    }
    let mut bytes = device(b"mlx5_0");
    assert_eq!(&*DeviceInfo::parse(&first(&bytes)).expect("a device").fw_version, b"1.0");
    // An answer without its index, its name or its GUID, which are the first three attributes, is not a device.
    for at in [18, 26, 38] {
        assert_ne!(bytes[at], 0, "the type of an attribute");
        bytes[at] ^= 0x20;
        assert!(DeviceInfo::parse(&first(&bytes)).is_err(), "{at}");
        bytes[at] ^= 0x20;
    }
}

/// An answer to RDMA_NLDEV_CMD_PORT_GET, with the attributes in the kernel's order.
fn port(netdev: Option<(u32, &[u8])>) -> Vec<u8> {
    let mut message = Writer::message(Command::Get.message_type(), 0, 7)
        .attr(attr::DEV_INDEX, &3u32.to_ne_bytes())
        .attr(attr::DEV_NAME, b"mlx5_0\0")
        .attr(attr::PORT_INDEX, &1u32.to_ne_bytes())
        .attr(attr::PORT_STATE, &[4])
        .attr(attr::PORT_PHYS_STATE, &[5]);
    if let Some((index, name)) = netdev {
        message = message.attr(attr::NDEV_INDEX, &index.to_ne_bytes()).attr(attr::NDEV_NAME, name);
    }
    message.finish()
}

#[test]
fn a_port_is_parsed() {
    let parse = |bytes: &[u8]| PortInfo::parse(&first(bytes), 3, 1);
    let device_name = Box::from(*b"mlx5_0");
    let expected = PortInfo { device_name, state: 4, physical_state: 5, netdev: None };
    assert_eq!(parse(&port(None)), Ok(expected.clone()));
    for (index, name) in [(7, &b"eth0"[..]), (u32::MAX, b"a name of 15 by"), (1, b"\x1b\xff")] {
        let bytes = port(Some((index, &[name, b"\0"].concat())));
        let netdev = Some((index, Box::from(name)));
        assert_eq!(parse(&bytes), Ok(PortInfo { netdev, ..expected.clone() }));
    }
    for (index, name) in
        [(0, &b"eth0\0"[..]), (7, b"eth0"), (7, b"a name of 16 byt\0"), (7, b"a\0b\0")]
    {
        assert!(parse(&port(Some((index, name)))).is_err(), "{}", name.escape_ascii());
    }
    let bytes = port(Some((7, b"eth0\0")));
    assert!(PortInfo::parse(&first(&bytes), 4, 1).is_err(), "of another device");
    assert!(PortInfo::parse(&first(&bytes), 3, 2).is_err(), "of another port");
    // Without any one of its attributes, it is no answer.
    let kinds: Vec<_> = first(&bytes).attrs().map(|found| found.expect("one").kind).collect();
    for (at, kind) in kinds.into_iter().enumerate() {
        let mut message = Writer::message(Command::Get.message_type(), 0, 7);
        for (_, found) in first(&bytes).attrs().enumerate().filter(|(other, _)| *other != at) {
            let found = found.expect("an attribute");
            message = message.attr(found.kind, found.value);
        }
        assert!(parse(&message.finish()).is_err(), "{kind}");
    }
}

/// Errors use the names of the kernel's header for requests.
#[test]
fn requests_have_their_names_and_types() {
    for (command, name, kind) in [
        (Command::Get, "RDMA_NLDEV_CMD_GET", 0x1401),
        (Command::PortGet, "RDMA_NLDEV_CMD_PORT_GET", 0x1405),
        (Command::SysGet, "RDMA_NLDEV_CMD_SYS_GET", 0x1406),
        (Command::ResPdGet, "RDMA_NLDEV_CMD_RES_PD_GET", 0x140e),
        (Command::GetChardev, "RDMA_NLDEV_CMD_GET_CHARDEV", 0x140f),
        (Command::ResCtxGet, "RDMA_NLDEV_CMD_RES_CTX_GET", 0x1416),
    ] {
        assert_eq!((command.name(), command.message_type()), (name, kind));
    }
}

#[test]
fn errnos_are_distinguished_from_success() {
    let ended = |kind, body: &[u8]| {
        let bytes = Writer::message(kind, 0, 1).raw(body).finish();
        first(&bytes).errno()
    };
    assert_eq!(ended(NLMSG_DONE, &0i32.to_ne_bytes()), Ok(None));
    assert_eq!(ended(NLMSG_DONE, &[]), Ok(None));
    assert_eq!(ended(NLMSG_DONE, &(-22i32).to_ne_bytes()), Ok(Some(Errno::INVAL)));
    assert_eq!(ended(NLMSG_ERROR, &(-1i32).to_ne_bytes()), Ok(Some(Errno::PERM)));
    assert!(ended(NLMSG_ERROR, &[]).is_err());
    assert!(ended(NLMSG_ERROR, &22i32.to_ne_bytes()).is_err());
    assert!(ended(NLMSG_ERROR, &i32::MIN.to_ne_bytes()).is_err());
}

/// Entries of a dump and the answer to a request by number are parsed alike.
#[test]
fn resources_are_parsed() {
    let entry = |message: Writer| {
        message.attr(attr::RES_PDN, &7u32.to_ne_bytes()).attr(attr::RES_CTXN, &3u32.to_ne_bytes())
    };
    let nested = |writer: Writer| writer.finish().split_off(HEADER);
    let message = || {
        Writer::message(Command::ResPdGet.message_type(), 0, 1)
            .attr(attr::DEV_INDEX, &5u32.to_ne_bytes())
    };
    let expected = ResourceEntry { number: 7, context: Some(3), thread: None };
    let one = entry(message()).finish();
    assert_eq!(parse_one_resource(&first(&one), Resource::Pd, 5), Ok(expected));
    assert!(parse_one_resource(&first(&one), Resource::Pd, 6).is_err());
    let in_table = nested(entry(Writer::message(0, 0, 0)).attr(attr::RES_PID, &9u32.to_ne_bytes()));
    let table = nested(Writer::message(0, 0, 0).attr(attr::RES_PD_ENTRY, &in_table));
    let dump = message().attr(attr::RES_PD, &table).finish();
    let mut found = Vec::new();
    let parsed = parse_resources(&first(&dump), Resource::Pd, 5, &mut |entry| found.push(entry));
    assert_eq!((parsed, found), (Ok(()), vec![ResourceEntry { thread: Some(9), ..expected }]));
    // A table of protection domains has no contexts.
    let none = &mut |_| panic!("an entry of another kind");
    assert_eq!(parse_resources(&first(&dump), Resource::Context, 5, none), Ok(()));
}

proptest! {
    #[test]
    fn device_numbers_round_trip(major in 0u32..1 << 12, minor in 0u32..1 << 20) {
        prop_assert_eq!(decode_dev(encode_dev((major, minor))), Ok((major, minor)));
    }

    #[test]
    fn any_bytes_are_an_error_or_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for message in Messages(&bytes).flatten() {
            let _ = message.errno();
            let _ = DeviceInfo::parse(&message);
            let _ = Chardev::parse(&message);
            let _ = PortInfo::parse(&message, 3, 1);
            let _ = parse_copy_on_fork(&message);
            for kind in [Resource::Context, Resource::Pd] {
                let _ = parse_resources(&message, kind, 0, &mut |_| {});
                let _ = parse_one_resource(&message, kind, 0);
            }
        }
    }

    #[test]
    fn a_wrong_byte_does_no_harm(at in 0usize..80, byte: u8) {
        let mut bytes = device(b"mlx5_0");
        let at = at % bytes.len();
        bytes[at] = byte;
        for message in Messages(&bytes).flatten() {
            let _ = DeviceInfo::parse(&message);
        }
    }
}
