//! `uverbs show DEVICE`.

mod opened;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Host, ProviderInfo, Registry};

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
    /// Null where netlink does not tell the driver.
    provider: Option<ProviderJson>,
}

/// Who knows what the driver has to be told.
#[derive(Serialize)]
struct ProviderJson {
    /// Null where none is known.
    name: Option<String>,
    matched_by: Option<String>,
    abi_version: u32,
    abi_min: u32,
    abi_max: u32,
    /// Whether the version is in between: if not, the device does not open.
    is_abi_known: bool,
}

impl ProviderJson {
    fn new(info: &ProviderInfo) -> Self {
        let (name, matched_by) = info.provider.clone().unzip();
        Self {
            name,
            matched_by: matched_by.map(|by| by.to_string()),
            abi_version: info.abi_version,
            abi_min: *info.abi_versions.start(),
            abi_max: *info.abi_versions.end(),
            is_abi_known: info.is_abi_known(),
        }
    }

    fn in_words(&self) -> String {
        let Self { name, matched_by, abi_version, abi_min, abi_max, is_abi_known } = self;
        let (Some(name), Some(by)) = (name, matched_by) else {
            return format!("none known, ABI {abi_version}");
        };
        let known = if *is_abi_known { "" } else { ": it does not open" };
        format!("{name} (by {by}), ABI {abi_version} of {abi_min} to {abi_max}{known}")
    }
}

pub(crate) fn run(args: &ShowArgs, out: &mut Out) -> Result<bool, Failure> {
    let selector = args.device.selector()?;
    let devices = Registry::new(Host::open()?).devices()?;
    let device = selector.find(&devices)?;
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
    let provider = match device.provider() {
        Ok(info) => Some(ProviderJson::new(&info)),
        Err(error) if is_gone(&error) => return Err(error.into()),
        // Why there is none was said above.
        Err(_) => None,
    };
    Ok(Shown {
        provider,
        device: DeviceJson::new(device, facts.as_ref()),
        timestamp: timestamp(instance.timestamp),
        sys_dev: instance.sys_dev,
    })
}

fn table(shown: &Shown) -> Table {
    let Shown { device, timestamp, sys_dev, provider } = shown;
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
        ("provider", or_dash(&provider.as_ref().map(ProviderJson::in_words))),
    ] {
        table.row([what.into(), value.into()]);
    }
    table
}
