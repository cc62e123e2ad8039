//! The nodes beside `uverbsN` that a container was given: `umadN` and `issmN` of its device, and `rdma_cm`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;

use uverbs::{Device, DeviceNumber, Parent};

use super::AGAIN;
use super::container::Container;
use crate::cdi::host::{Mad, Nodes, RDMA_CM, mad_kind};
use crate::select;

/// A node, and the number under which it was given.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GivenNode {
    name: String,
    number: DeviceNumber,
}

/// `NAME=MAJOR:MINOR`. A name that is not known is an error: a check that this version cannot make must not be left
/// out.
pub(super) fn parse(texts: &[OsString]) -> Result<Vec<GivenNode>, String> {
    let parse = |text: &OsString| {
        let found = text.to_str().and_then(|text| {
            let (name, number) = text.split_once('=')?;
            let number = select::device_number(number.as_bytes())?;
            let is_known = name == RDMA_CM || mad_kind(name).is_some();
            is_known.then(|| GivenNode { name: name.to_owned(), number })
        });
        found.ok_or_else(|| {
            let text = text.as_bytes().escape_ascii();
            format!("\"{text}\" is no node: umadN, issmN or rdma_cm, and its number")
        })
    };
    texts.iter().map(parse).collect()
}

/// Compares them: on the host, and then in the container.
pub(super) fn compare(
    nodes: &[GivenNode],
    host: &impl Nodes,
    devices: &[Device],
    container: &Container,
) -> Result<(), String> {
    let parents = devices.iter().map(Device::parent).collect::<Result<Vec<_>, _>>();
    let parents = parents.map_err(|error| error.to_string())?;
    let of_group = devices.len() > 1;
    let is_ours = |mad: &Mad| {
        let is_of = |(device, parent): (&Device, &Parent)| {
            let parent = parent.name.as_ref().map(|name| name.as_bytes());
            mad.is_of(parent, device.name().as_bytes(), of_group)
        };
        devices.iter().zip(&parents).any(is_of)
    };
    let unread = |error| format!("the nodes of the host cannot be read: {error}");
    let mads = match nodes.iter().all(|node| node.name == RDMA_CM) {
        true => Vec::new(),
        false => host.mads().map_err(unread)?,
    };
    for node in nodes {
        let GivenNode { name, number } = node;
        let found = if name == RDMA_CM {
            host.rdma_cm().map_err(unread)?
        } else {
            let mad = mads.iter().find(|mad| mad.name == *name);
            if let Some(mad) = mad.filter(|mad| !is_ours(mad)) {
                let (device, parent) = (mad.device.escape_ascii(), mad.parent.escape_ascii());
                return Err(format!(
                    "expected {name} of the device that was given, found that of {device} ({parent}): {AGAIN}"
                ));
            }
            mad.map(|mad| mad.number)
        };
        match found {
            Some(found) if found == *number => {}
            Some(found) => {
                return Err(format!("expected {name} as {number}, found {found}: {AGAIN}"));
            }
            None => return Err(format!("expected {name} as {number}, found no {name}: {AGAIN}")),
        }
        container.check_node(&format!("/dev/infiniband/{name}"), *number)?;
    }
    Ok(())
}
