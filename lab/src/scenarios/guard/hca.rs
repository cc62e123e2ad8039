//! Devices of the test HCA that take each other's place.

use anyhow::{Context as _, Result, ensure};

use crate::guest;

/// Replaces the test HCA's `tst` by a device with this GUID, the same name, number and device number.
pub(super) fn replace(guid: u8) -> Result<()> {
    let before = guest::device_number("uverbs0")?;
    guest::hca("del-sync name=tst")?;
    guest::hca(&format!("add name=tst guid={guid:016x} disassociate=1"))?;
    ensure!(guest::device_number("uverbs0")? == before && guest::ibdev("uverbs0")? == "tst");
    Ok(())
}

/// Replaces a device of the test HCA by one of the same name and number, with this GUID.
pub(super) fn replace_named(name: &str, guid: u8) -> Result<()> {
    let node = guest::names("/sys/class/infiniband_verbs")
        .into_iter()
        .find(|node| guest::ibdev(node).is_ok_and(|ibdev| ibdev == name));
    guest::hca(&format!("del-sync name={name}"))?;
    add(name, guid)?;
    let node = node.context("no node")?;
    ensure!(guest::ibdev(&node)? == name, "the replacement has another node");
    Ok(())
}

/// Adds a device whose driver disassociates.
pub(super) fn add(name: &str, guid: u8) -> Result<()> {
    guest::hca(&format!("add name={name} guid={guid:016x} disassociate=1"))
}
