//! `uverbs show DEVICE`.

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Host, Registry};

use crate::DeviceArg;
use crate::facts::{DeviceJson, or_dash, timestamp};
use crate::output::{Failure, Out, note};
use crate::select::is_gone;
use crate::table::Table;

/// Shows all that is known of a device, without opening it.
#[derive(Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    device: DeviceArg,
    /// Print JSON: {"device": {...}}
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct ShowJson {
    device: Shown,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    device: DeviceJson,
    /// `st_ctime` of the attribute `ibdev` when it was last looked at.
    timestamp: String,
    /// `st_dev` of the sysfs mount.
    sys_dev: u64,
}

pub(crate) fn run(args: &ShowArgs, out: &mut Out) -> Result<bool, Failure> {
    let devices = Registry::new(Host::open()?).devices()?;
    let device = args.device.selector.find(&devices)?;
    let shown = look(&device)?;
    if args.json {
        out.json(&ShowJson { device: shown })?;
    } else {
        out.text(&table(&shown).render())?;
    }
    Ok(true)
}

fn look(device: &Device) -> Result<Shown, Failure> {
    let facts = match device.query() {
        Ok(facts) => Some(facts),
        Err(error) if is_gone(&error) => return Err(error.into()),
        Err(error) => {
            note(error);
            None
        }
    };
    let instance = device.instance();
    Ok(Shown {
        device: DeviceJson::new(device, facts.as_ref()),
        timestamp: timestamp(instance.timestamp),
        sys_dev: instance.sys_dev,
    })
}

fn table(shown: &Shown) -> Table {
    let Shown { device, timestamp, sys_dev } = shown;
    let mut table = Table::plain(0);
    for (what, value) in [
        ("name", device.name.clone()),
        ("uverbs device", device.uverbs.clone()),
        ("device number", device.dev_t.clone()),
        ("inode", device.inode.to_string()),
        ("sysfs mount", sys_dev.to_string()),
        ("timestamp", timestamp.clone()),
        ("netlink index", or_dash(&device.index)),
        ("driver", or_dash(&device.driver_in_words())),
        ("node GUID", or_dash(&device.node_guid)),
        ("system image GUID", or_dash(&device.sys_image_guid)),
        ("node type", or_dash(&device.node_type)),
        ("firmware", or_dash(&device.firmware)),
    ] {
        table.row([what.into(), value.into()]);
    }
    table
}
