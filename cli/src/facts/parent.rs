//! The parent of a device, as JSON and as text.

use serde::Serialize;
use uverbs::{FunctionKind, Parent, PciAddress};

/// What a device belongs to. What does not apply is null.
#[derive(Debug, Serialize)]
pub(crate) struct ParentJson {
    /// `pci`, `auxiliary`, `platform`, `vmbus`, `virtual`, or another name; null where the kernel names none.
    bus: Option<String>,
    /// The name on the bus, escaped.
    name: Option<String>,
    /// The address of the PCI function.
    pub(crate) pci: Option<String>,
    vendor_id: Option<u16>,
    device_id: Option<u16>,
    /// `physical`, `virtual` or `unknown`.
    function: Option<&'static str>,
    /// Of a virtual function: the address of the physical one.
    physical_function: Option<String>,
    /// Of a virtual function: its number.
    vf: Option<u32>,
    subfunction: Option<u32>,
    pub(crate) numa_node: Option<u32>,
}

impl ParentJson {
    pub(crate) fn new(parent: &Parent) -> Self {
        let function = parent.function.as_ref();
        let (kind, physical, vf) = match function.map(|function| function.kind) {
            None => (None, None, None),
            Some(FunctionKind::Physical) => (Some("physical"), None, None),
            Some(FunctionKind::Virtual { physical, number, .. }) => {
                (Some("virtual"), Some(physical), number)
            }
            Some(_) => (Some("unknown"), None, None),
        };
        Self {
            bus: parent.bus.name().map(|name| name.to_string()),
            name: parent.name.as_ref().map(ToString::to_string),
            pci: function.map(|function| function.address.to_string()),
            vendor_id: function.map(|function| function.vendor_id),
            device_id: function.map(|function| function.device_id),
            function: kind,
            physical_function: physical.as_ref().map(PciAddress::to_string),
            vf,
            subfunction: parent.subfunction,
            numa_node: parent.numa_node,
        }
    }

    pub(crate) fn address(&self) -> Option<String> {
        address(self.pci.as_ref(), self.subfunction)
    }

    /// Bus and name.
    pub(crate) fn in_words(&self) -> String {
        let bus = self.bus.as_deref().unwrap_or("unknown bus");
        match &self.name {
            Some(name) => format!("{name} ({bus})"),
            None => bus.to_owned(),
        }
    }

    /// The PCI function: address, vendor and device, and what it is to SR-IOV.
    pub(crate) fn function_in_words(&self) -> Option<String> {
        let (pci, vendor, device) = (self.pci.as_ref()?, self.vendor_id?, self.device_id?);
        let kind = match (self.function, &self.physical_function, self.vf) {
            (Some("physical"), ..) => ", physical function".to_owned(),
            (_, Some(physical), Some(vf)) => format!(", virtual function {vf} of {physical}"),
            (_, Some(physical), None) => format!(", virtual function of {physical}"),
            _ => String::new(),
        };
        Some(format!("{pci}, {vendor:04x}:{device:04x}{kind}"))
    }
}

/// The address as the selector `pci=` takes it: `0000:3b:00.2`, or `0000:3b:00.0/sf88` of a sub-function.
pub(crate) fn address(pci: Option<impl ToString>, subfunction: Option<u32>) -> Option<String> {
    let pci = pci?.to_string();
    Some(match subfunction {
        Some(number) => format!("{pci}/sf{number}"),
        None => pci,
    })
}
