//! Devices of the test HCA that take each other's place.

use anyhow::{Result, ensure};

use crate::guest;

/// Replaces the test HCA's `tst` by a device with this GUID, the same name, number and device number.
pub(super) fn replace(guid: u8) -> Result<()> {
    let before = guest::device_number("uverbs0")?;
    guest::hca("del-sync name=tst")?;
    guest::hca(&format!("add name=tst guid={guid:016x} disassociate=1"))?;
    ensure!(guest::device_number("uverbs0")? == before && guest::ibdev("uverbs0")? == "tst");
    Ok(())
}

/// Adds a device whose driver disassociates.
pub(super) fn add(name: &str, guid: u8) -> Result<()> {
    guest::hca(&format!("add name={name} guid={guid:016x} disassociate=1"))
}
