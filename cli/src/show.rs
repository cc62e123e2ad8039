//! `uverbs show DEVICE`.

mod opened;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Host, ProviderInfo, Registry};

use crate::DeviceArg;
use crate::facts::{DeviceJson, Known, ParentJson, PortJson, or_dash, timestamp};
use crate::output::{Failure, JsonArgs, Out};
use crate::select::is_gone;
use crate::table::Table;

use opened::Opened;

/// Show a device: its identity, and through a context its ports, GIDs and limits.
///
/// The device is opened and proved for that. Where it cannot be opened, what is known without a context is printed, and
/// the exit status is 1.
#[derive(Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    device: DeviceArg,
    /// Do not open the device, and leave out what takes a context
    #[arg(long)]
    no_open: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Serialize)]
struct ShowJson {
    device: Shown,
    /// What takes a context; null where the device was not opened, or could not be.
    opened: Option<Opened>,
    /// Why it could not be opened.
    error: Option<Failure>,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    device: DeviceJson,
    /// `st_ctime` of the attribute `ibdev` when it was last looked at.
    timestamp: String,
    /// `st_dev` of the sysfs mount.
    sys_dev: u64,
    /// Null where netlink does not report the driver.
    provider: Option<ProviderJson>,
}

/// The provider, which knows what data the driver needs for a context.
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
    let shown = read(&device, args.no_open)?;
    if args.json.json {
        out.json(&shown)?;
    } else {
        out.text(&render(&shown.device, shown.opened.as_ref()))?;
    }
    if let Some(error) = &shown.error {
        error.report();
    }
    Ok(shown.error.is_none())
}

/// Reads what is known of a device, and opens it for the rest, if that is wanted.
fn read(device: &Device, no_open: bool) -> Result<ShowJson, Failure> {
    let (mut shown, unknown) = look(device)?;
    let opened = match no_open {
        true => Ok(None),
        false => device.open().and_then(|context| Opened::ask(&context)).map(Some),
    };
    let (opened, error) = match opened {
        Ok(opened) => (opened, None),
        Err(error) if is_gone(&error) => return Err(error.into()),
        Err(error) => (None, Some(Failure::from(error))),
    };
    // Where netlink does not describe the device, that is why it does not open.
    if error.is_none() {
        unknown.iter().for_each(Failure::report);
    }
    if let (None, Some(opened)) = (&shown.device.firmware, &opened) {
        shown.device.firmware = opened.firmware();
    }
    Ok(ShowJson { device: shown, opened, error })
}

fn render(shown: &Shown, opened: Option<&Opened>) -> String {
    let mut table = table(shown);
    let ports = shown.device.ports.as_deref().unwrap_or_default();
    match opened {
        // Its ports come behind.
        Some(_) => {
            let netdevs: Vec<_> = ports.iter().filter_map(PortJson::netdev_in_words).collect();
            let netdevs = if netdevs.is_empty() { "-".to_owned() } else { netdevs.join(", ") };
            table.row(["network devices".into(), netdevs.into()]);
        }
        None => {
            for (what, text) in ports.iter().map(PortJson::row) {
                table.row([what.into(), text.into()]);
            }
        }
    }
    opened.inspect(|opened| opened.identify(&mut table));
    let mut text = table.render();
    text.extend(opened.map(Opened::render));
    text
}

/// What is known without a context, and why a part is not.
fn look(device: &Device) -> Result<(Shown, Vec<Failure>), Failure> {
    let (known, failed) = Known::read(device)?;
    let unknown = failed.iter().map(Failure::from).collect();
    let instance = device.instance();
    let provider = match device.provider() {
        Ok(info) => Some(ProviderJson::new(&info)),
        Err(error) if is_gone(&error) => return Err(error.into()),
        // The reason is that of the query.
        Err(_) => None,
    };
    let shown = Shown {
        provider,
        device: DeviceJson::new(device, &known),
        timestamp: timestamp(instance.timestamp),
        sys_dev: instance.sys_dev,
    };
    Ok((shown, unknown))
}

fn table(shown: &Shown) -> Table {
    let Shown { device, timestamp, sys_dev, provider } = shown;
    let mut table = Table::plain(0);
    for (what, value) in [
        ("name", device.name.clone()),
        ("uverbs device", device.uverbs.clone()),
        ("device number", device.dev_t.clone()),
        ("parent", or_dash(&device.parent.as_ref().map(ParentJson::in_words))),
        ("PCI function", or_dash(&device.parent.as_ref().and_then(ParentJson::function_in_words))),
        ("NUMA node", or_dash(&device.numa_node())),
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

#[cfg(all(test, feature = "demo"))]
mod tests {
    use super::*;
    use uverbs::Host;
    use uverbs::sim::{DeviceSpec, Machine, NodeKind};

    fn listed(machine: &Machine, firmware: &str) -> Device {
        machine.add(DeviceSpec::new("rxe0").guid(0xa0).fw_version(firmware)).expect("added");
        let host = Host::simulated(machine).expect("a host");
        Registry::new(host).devices().expect("a list").by_name("rxe0").expect("listed")
    }

    #[test]
    fn ports_come_behind_the_identity() {
        let shown = read(&listed(&Machine::new(), "1.2.3"), false).expect("shown");
        let text = render(&shown.device, shown.opened.as_ref());
        let text = anstream::adapter::strip_str(&text).to_string();
        let places: Vec<_> = ["name", "vendor id", "\nport 1\n", "\nlimits\n"]
            .map(|words| text.find(words).unwrap_or_else(|| panic!("{words}: {text}")))
            .into();
        assert!(places.is_sorted(), "{text}");
        for words in ["vendor part id", "hardware version"] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn the_firmware_is_shown_once() {
        for (words, expected) in [("1.2.3", "1.2.3"), ("", "0x100020003")] {
            let shown = read(&listed(&Machine::new(), words), false).expect("shown");
            let json = serde_json::to_value(&shown).expect("JSON");
            assert_eq!(json["device"]["firmware"], expected);
            assert_eq!(json.to_string().matches("firmware").count(), 1, "{json}");
            let text = render(&shown.device, shown.opened.as_ref());
            assert_eq!(text.matches("firmware").count(), 1, "{text}");
        }
    }

    #[test]
    fn what_it_belongs_to_is_shown() {
        const VF: &str = "pci0000:3a/0000:3b:00.2";
        let machine = Machine::new();
        machine.add_pci_function(VF, (0x15b3, 0x101e), 1);
        let id = machine.add(DeviceSpec::new("mlx5_0").beneath(VF)).expect("added");
        machine.set_netdev(id, 1, Some((7, "eth0"))).expect("a port");
        let host = Host::simulated(&machine).expect("a host");
        let device = Registry::new(host).devices().expect("a list").get(0).expect("one").clone();
        let text = |no_open| {
            let shown = read(&device, no_open).expect("shown");
            let text = render(&shown.device, shown.opened.as_ref());
            anstream::adapter::strip_str(&text).to_string()
        };
        let lines = |no_open| -> Vec<_> {
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            text(no_open).lines().map(words).collect()
        };
        for (no_open, port) in [
            (true, "port 1 ACTIVE (LinkUp), 10Gb/s, eth0"),
            (false, "network devices eth0 (port 1)"),
        ] {
            for line in [
                "parent 0000:3b:00.2 (pci)",
                "PCI function 0000:3b:00.2, 15b3:101e",
                "NUMA node 1",
                port,
            ] {
                assert!(
                    lines(no_open).iter().any(|found| found == line),
                    "{line}: {}",
                    text(no_open)
                );
            }
        }
        machine.set_parent_attribute(VF, "vendor", Some(b"x\n"));
        assert!(lines(true).iter().any(|found| found == "parent -"), "{}", text(true));
    }

    #[test]
    fn a_device_that_does_not_open_is_shown_with_the_error() {
        let machine = Machine::new();
        let device = listed(&machine, "1.2.3");
        machine.set_node(0, NodeKind::Missing);
        let shown = read(&device, false).expect("shown");
        let json = serde_json::to_value(&shown).expect("JSON");
        assert!(json["opened"].is_null());
        assert_eq!((&json["error"]["step"], &json["error"]["errno"]), (&"node".into(), &2.into()));
        let shown = read(&device, true).expect("shown");
        assert!(shown.opened.is_none() && shown.error.is_none());
    }
}
