//! `uverbs show DEVICE`.

mod opened;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Host, Registry};

use crate::DeviceArg;
use crate::facts::{DeviceJson, or_dash, timestamp};
use crate::output::{Failure, Out, note};
use crate::select::is_gone;
use crate::table::Table;

use opened::Opened;

/// Shows all that is known of a device: what the kernel tells of it, and, with a context on it, its limits,
/// ports and GIDs.
#[derive(Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    device: DeviceArg,
    /// Do not open the device: leave out what only a context tells
    #[arg(long)]
    no_open: bool,
    /// Print JSON: {"device": {...}, "opened": {"attributes": {...}, "ports": [...], ...} or null}
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Serialize)]
struct ShowJson {
    device: Shown,
    /// What a context tells; null where the device was not opened, or could not be.
    opened: Option<Opened>,
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
    let opened = if args.no_open { None } else { open(&device)? };
    if args.json {
        out.json(&ShowJson { device: shown, opened })?;
    } else {
        let mut text = table(&shown).render();
        text.extend(opened.map(|opened| opened.render()));
        out.text(&text)?;
    }
    Ok(true)
}

/// What a context on the device tells; a note where there can be none.
fn open(device: &Device) -> Result<Option<Opened>, Failure> {
    match device.open().and_then(|context| Opened::ask(&context)) {
        Ok(opened) => Ok(Some(opened)),
        Err(error) if is_gone(&error) => Err(error.into()),
        Err(error) => {
            note(format_args!("what only a context tells is left out: {error}"));
            Ok(None)
        }
    }
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
