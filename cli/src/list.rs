//! `uverbs list`.

use clap::Args;
use serde::Serialize;
use uverbs::{ErrorKind, Host, Registry};

use crate::DEMO_HINT;
use crate::absent::Absent;
use crate::explain;
use crate::facts::{DeviceJson, or_dash};
use crate::output::{Failure, JsonArgs, Out, note};
use crate::select::is_gone;
use crate::table::Table;
use crate::verbose;

/// List the devices.
///
/// A `-` stands for what RDMA netlink does not report.
#[derive(Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Serialize)]
struct ListJson {
    devices: Vec<DeviceJson>,
    /// Errors of devices that are therefore not listed.
    faults: Vec<Failure>,
    is_ib_uverbs_loaded: bool,
    /// RDMA devices that have no verbs device, by name, escaped.
    without_verbs: Vec<String>,
}

pub(crate) fn run(args: &ListArgs, out: &mut Out) -> Result<bool, Failure> {
    let registry = Registry::new(Host::open()?);
    list(&registry, args, out)
}

/// Lists the devices of a registry. Returns whether every device could be listed.
fn list(registry: &Registry, args: &ListArgs, out: &mut Out) -> Result<bool, Failure> {
    let found = registry.devices()?;
    let netlink = registry.host().check_netlink();
    let (mut devices, mut elsewhere) = (Vec::with_capacity(found.len()), Vec::new());
    for device in &found {
        let facts = match device.query() {
            Ok(facts) => Some(facts),
            Err(error) if is_gone(&error) => {
                if verbose::is_on() {
                    note(format_args!("left out: {error}"));
                }
                continue;
            }
            Err(error) if error.kind() == ErrorKind::OtherNamespace => {
                elsewhere.push(device);
                None
            }
            Err(error) => {
                // Where netlink cannot be used at all, that is reported once, below.
                if netlink.is_ok() {
                    Failure::from(error).report();
                }
                None
            }
        };
        devices.push(DeviceJson::new(device, facts.as_ref()));
    }
    if !elsewhere.is_empty() {
        note(explain::elsewhere(&elsewhere));
    }
    if let (Err(error), false) = (netlink, devices.is_empty()) {
        Failure::from(error).report_as("opens will be refused: ");
    }
    let faults: Vec<_> = found.faults().map(Failure::from).collect();
    for fault in &faults {
        fault.report_as("not listed: ");
    }
    let complete = faults.is_empty();
    let absent = Absent::look(&found);
    if args.json.json {
        let (is_ib_uverbs_loaded, without_verbs) = (absent.is_loaded, absent.without_verbs);
        out.json(&ListJson { devices, faults, is_ib_uverbs_loaded, without_verbs })?;
    } else if !devices.is_empty() {
        out.text(&table(&devices).render())?;
        absent.in_words().into_iter().for_each(note);
    } else if complete {
        out.text(&format!("{}{DEMO_HINT}\n", absent.of_empty_list()))?;
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
    fn json_has_every_key() {
        let json = ListJson {
            devices: Vec::new(),
            faults: Vec::new(),
            is_ib_uverbs_loaded: false,
            without_verbs: vec!["mlx5_0".to_owned()],
        };
        let expected = serde_json::json!({
            "devices": [],
            "faults": [],
            "is_ib_uverbs_loaded": false,
            "without_verbs": ["mlx5_0"],
        });
        assert_eq!(serde_json::to_value(json).expect("JSON"), expected);
    }
}
