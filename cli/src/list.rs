//! `uverbs list`.

use clap::Args;
use serde::Serialize;
use uverbs::{Host, Registry};

use crate::DEMO_HINT;
use crate::facts::{DeviceJson, or_dash};
use crate::output::{Failure, Out, note};
use crate::select::is_gone;
use crate::table::Table;

/// Lists the devices.
///
/// A `-` stands for what RDMA netlink does not tell.
#[derive(Args)]
pub(crate) struct ListArgs {
    /// Print JSON: {"devices": [...], "faults": [...]}
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct ListJson {
    devices: Vec<DeviceJson>,
    /// What was wrong with devices that are therefore not listed.
    faults: Vec<Failure>,
}

pub(crate) fn run(args: &ListArgs, verbose: bool, out: &mut Out) -> Result<bool, Failure> {
    let registry = Registry::new(Host::open()?);
    list(&registry, args, verbose, out)
}

/// Lists what the registry finds; whether every device could be listed.
pub(crate) fn list(
    registry: &Registry,
    args: &ListArgs,
    verbose: bool,
    out: &mut Out,
) -> Result<bool, Failure> {
    let found = registry.devices()?;
    let netlink = registry.host().check_netlink();
    let mut devices = Vec::with_capacity(found.len());
    for device in &found {
        let facts = match device.query() {
            Ok(facts) => Some(facts),
            Err(error) if is_gone(&error) => {
                if verbose {
                    note(format_args!("left out: {error}"));
                }
                continue;
            }
            Err(error) => {
                // Said once below where netlink is denied altogether.
                if netlink.is_ok() {
                    note(error);
                }
                None
            }
        };
        devices.push(DeviceJson::new(device, facts.as_ref()));
    }
    if let (Err(error), false) = (netlink, devices.is_empty()) {
        note(format_args!("RDMA netlink cannot be asked, and opens will be Unproven: {error}"));
    }
    let faults: Vec<_> = found.faults().map(Failure::from).collect();
    for fault in &faults {
        note(format_args!("not listed: {fault}"));
    }
    let complete = faults.is_empty();
    if args.json {
        out.json(&ListJson { devices, faults })?;
    } else if devices.is_empty() && complete {
        out.text(&format!(
            "no RDMA verbs devices (or ib_uverbs is not loaded, which looks the same){DEMO_HINT}\n"
        ))?;
    } else if !devices.is_empty() {
        out.text(&table(&devices).render())?;
    }
    Ok(complete)
}

fn table(devices: &[DeviceJson]) -> Table {
    let heading = ["DEVICE", "UVERBS", "INDEX", "DRIVER", "NODE GUID", "DEV_T", "INODE"];
    let mut table = Table::new(0, &heading);
    for device in devices {
        table.row([
            (&device.name).into(),
            (&device.uverbs).into(),
            or_dash(&device.index).into(),
            or_dash(&device.driver).into(),
            or_dash(&device.node_guid).into(),
            (&device.dev_t).into(),
            device.inode.into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_list_has_both_arrays() {
        let json = ListJson { devices: Vec::new(), faults: Vec::new() };
        let json = serde_json::to_value(json).expect("JSON");
        assert_eq!(json, serde_json::json!({"devices": [], "faults": []}));
    }
}
