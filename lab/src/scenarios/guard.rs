//! Programs on libibverbs under the guard: of each kind, on replaced, renamed and moved devices.

mod caller;
mod classes;
mod inside;
mod launcher;
mod stale;

use anyhow::{Result, ensure};

use crate::guest;

pub(super) use classes::each_class;
pub(super) use inside::inside;
pub(crate) use inside::role;
pub(super) use launcher::refuses;
pub(super) use stale::{core_reloaded, moved, names_swapped, unproven};

/// Replaces the test HCA's `tst` by a device with this GUID, the same name, number and device number.
fn replace(guid: u8) -> Result<()> {
    let before = guest::device_number("uverbs0")?;
    guest::hca("del-sync name=tst")?;
    guest::hca(&format!("add name=tst guid={guid:016x} disassociate=1"))?;
    ensure!(guest::device_number("uverbs0")? == before && guest::ibdev("uverbs0")? == "tst");
    Ok(())
}

fn add(name: &str, guid: u8) -> Result<()> {
    guest::hca(&format!("add name={name} guid={guid:016x} disassociate=1"))
}
