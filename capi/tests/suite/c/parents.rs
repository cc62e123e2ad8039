//! Parents and ports, out of the structs of C.

use std::ffi::c_char;

use uverbs_capi::*;

use super::{bytes, text};
use crate::api::{Address, Function, Parent, Port};

pub(super) fn parent(parent: &uverbs_parent) -> Parent {
    let name = |field: &[c_char]| bytes(field.as_ptr()).filter(|name| !name.is_empty());
    let number = |number: i64| match number {
        -1 => None,
        number => Some(u32::try_from(number).expect("32 bits")),
    };
    let kind = match parent.function_kind {
        UVERBS_FUNCTION_NONE => None,
        UVERBS_FUNCTION_UNKNOWN => Some("unknown"),
        UVERBS_FUNCTION_PHYSICAL => Some("physical"),
        UVERBS_FUNCTION_VIRTUAL => Some("virtual"),
        other => panic!("{other}"),
    };
    let pci = address(&parent.pci);
    assert_eq!(kind.is_some(), pci.is_some());
    assert!(pci.is_some() || (parent.vendor_id, parent.device_id) == (0, 0));
    let function = kind.zip(pci).map(|(kind, pci)| Function {
        address: pci,
        ids: (parent.vendor_id, parent.device_id),
        kind,
        physical: address(&parent.physical),
        number: number(parent.vf_number),
    });
    Parent {
        bus: match parent.bus {
            UVERBS_BUS_PCI => "pci",
            UVERBS_BUS_AUXILIARY => "auxiliary",
            UVERBS_BUS_PLATFORM => "platform",
            UVERBS_BUS_VMBUS => "vmbus",
            UVERBS_BUS_VIRTUAL => "virtual",
            UVERBS_BUS_OTHER => "other",
            UVERBS_BUS_UNKNOWN => "unknown",
            other => panic!("{other}"),
        },
        bus_name: name(&parent.bus_name),
        name: name(&parent.name),
        subfunction: number(parent.subfunction),
        function,
        numa_node: number(parent.numa_node),
    }
}

pub(super) fn port(port: &uverbs_port_facts) -> Port {
    let name = bytes(port.netdev_name.as_ptr()).expect("a name");
    assert_eq!(name.is_empty(), port.netdev_index == 0);
    Port {
        port: port.port,
        state: port.state,
        physical_state: port.physical_state,
        rate: Some(port.rate).filter(|rate| *rate != 0),
        netdev: (port.netdev_index != 0).then_some((port.netdev_index, name)),
    }
}

fn address(address: &uverbs_pci_address) -> Option<Address> {
    let text = text(address.text.as_ptr()).expect("a text");
    let numbers = (address.domain, address.bus, address.device, address.function);
    assert!(!text.is_empty() || numbers == (0, 0, 0, 0));
    (!text.is_empty()).then_some((text, numbers))
}
