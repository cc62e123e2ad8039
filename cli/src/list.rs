//! `uverbs list`.

use std::panic::resume_unwind;
use std::thread;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Devices, Error, ErrorKind, Host, KeptNetlink, Registry, Summary};

use crate::DEMO_HINT;
use crate::absent::Absent;
use crate::explain;
use crate::facts::{DeviceJson, Known, PortJson, address, columns, noted, or_dash};
use crate::output::{Failure, JsonArgs, Out, note};
use crate::table::{Cell, Table};
use crate::verbose;

/// List the devices: node, PCI address, NUMA node, and the state, rate and network device of the ports.
///
/// The address of a sub-function is followed by its number, as in 0000:3b:00.0/sf88. Of two ports that differ, both are
/// shown; of more, the active ones are counted. With -v there is also the netlink index, the driver, the node GUID, the
/// device number and the inode. A `-` stands for what is not there or not known, such as the network device of IPoIB or
/// of another network namespace.
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
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
    // One socket for all devices.
    let netlink = registry.host().keep_netlink();
    let Listed { devices, rows, faults, absent } = match args.json.json || verbose::is_on() {
        true => Listed::in_full(registry, &netlink, threads)?,
        false => Listed::in_short(registry, &netlink, threads)?,
    };
    if let (Err(error), false) = (netlink, rows.is_empty()) {
        Failure::from(error).report_as("opens will be refused: ");
    }
    for fault in &faults {
        fault.report_as("not listed: ");
    }
    let complete = faults.is_empty();
    if args.json.json {
        let (is_ib_uverbs_loaded, without_verbs) = (absent.is_loaded, absent.without_verbs);
        out.json(&ListJson { devices, faults, is_ib_uverbs_loaded, without_verbs })?;
    } else if !rows.is_empty() {
        out.text(&table(rows, verbose::is_on()).render())?;
        absent.in_words().into_iter().for_each(note);
    } else if complete {
        out.text(&format!("{}{DEMO_HINT}\n", absent.of_empty_list()))?;
    }
    Ok(complete)
}

/// From this many devices on, several threads read them in full.
const MANY: usize = 64;
/// More threads gain little: most of the time is the kernel's, which takes locks.
const THREADS: usize = 4;

/// What was read of a device, and why a part could not be read. The error is that the device is gone.
type Read<T> = uverbs::Result<(T, Vec<Error>)>;

/// What was read of all devices.
struct Listed {
    /// Empty in the short form.
    devices: Vec<DeviceJson>,
    rows: Vec<Row>,
    faults: Vec<Failure>,
    absent: Absent,
}

impl Listed {
    fn in_full(
        registry: &Registry,
        netlink: &uverbs::Result<KeptNetlink>,
        threads: usize,
    ) -> uverbs::Result<Self> {
        let found = registry.devices_by(threads)?;
        let devices = report(netlink, in_full_json(&found, threads));
        let rows = devices.iter().map(|device| Row::in_full(device, verbose::is_on())).collect();
        let faults = found.faults().map(Failure::from).collect();
        Ok(Self { devices, rows, faults, absent: Absent::look(&found) })
    }

    fn in_short(
        registry: &Registry,
        netlink: &uverbs::Result<KeptNetlink>,
        threads: usize,
    ) -> uverbs::Result<Self> {
        let (mut summaries, mut faults) = (Vec::new(), Vec::new());
        for summary in registry.summaries(threads)? {
            match summary {
                Ok(summary) => summaries.push(summary),
                Err(error) => faults.push(Failure::from(error)),
            }
        }
        let names = summaries.iter().map(|summary| summary.name.clone());
        let absent = Absent::beside(names, faults.is_empty());
        let rows = report(netlink, summaries.into_iter().map(Row::in_short));
        Ok(Self { devices: Vec::new(), rows, faults, absent })
    }
}

/// Returns what was read of the devices that are there, in order. Reports what could not be read.
fn report<T>(
    netlink: &uverbs::Result<KeptNetlink>,
    found: impl IntoIterator<Item = Read<T>>,
) -> Vec<T> {
    let (mut all, mut elsewhere) = (Vec::new(), Vec::new());
    for read in found {
        let (known, failed) = match read {
            Ok(read) => read,
            Err(error) => {
                if verbose::is_on() {
                    note(format_args!("left out: {error}"));
                }
                continue;
            }
        };
        for error in failed {
            match error.kind() {
                ErrorKind::OtherNamespace => {
                    elsewhere.push(error.device().unwrap_or_default().to_owned());
                }
                // Where netlink cannot be used at all, that is reported once, in the end.
                ErrorKind::NetlinkUnavailable if netlink.is_err() => {}
                _ => Failure::from(error).report(),
            }
        }
        all.push(known);
    }
    if !elsewhere.is_empty() {
        note(explain::elsewhere(&elsewhere));
    }
    all
}

/// Reads everything, by so many threads.
fn in_full_json(devices: &Devices, threads: usize) -> Vec<Read<DeviceJson>> {
    let read = |part: &[Device]| -> Vec<Read<DeviceJson>> {
        // One socket for all. Without it each device has the error.
        let _kept = part.first().and_then(|device| device.host().keep_netlink().ok());
        let read = |device| {
            let (known, failed) = Known::read(device)?;
            Ok((DeviceJson::new(device, &known), failed))
        };
        part.iter().map(read).collect()
    };
    let devices = devices.as_slice();
    if threads == 1 || devices.len() < MANY {
        return read(devices);
    }
    thread::scope(|scope| {
        let parts = devices.chunks(devices.len().div_ceil(threads)).map(|part| {
            (part, thread::Builder::new().spawn_scoped(scope, move || read(part)).ok())
        });
        let parts: Vec<_> = parts.collect();
        parts
            .into_iter()
            .flat_map(|(part, thread)| match thread {
                Some(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // Threads are forbidden or used up.
                None => read(part),
            })
            .collect()
    })
}

/// A line of the table.
struct Row {
    device: String,
    node: String,
    pci: Option<String>,
    numa_node: Option<u32>,
    /// State, rate and network device.
    ports: [Option<String>; 3],
    /// The columns of `-v`.
    more: Option<[String; 5]>,
}

impl Row {
    fn in_short(summary: Summary) -> Read<Self> {
        let Summary { uverbs_number, name, place, ports, .. } = summary;
        let mut failed = Vec::new();
        let (place, ports) = (noted(place, &mut failed)?, noted(ports, &mut failed)?);
        let ports: Vec<_> = ports.iter().flatten().map(PortJson::new).collect();
        let place = place.as_ref();
        let row = Self {
            device: name.to_string(),
            node: format!("uverbs{uverbs_number}"),
            pci: place.and_then(|place| address(place.pci, place.subfunction)),
            numa_node: place.and_then(|place| place.numa_node),
            ports: columns(&ports),
            more: None,
        };
        Ok((row, failed))
    }

    fn in_full(device: &DeviceJson, with_more: bool) -> Self {
        let more = || {
            [
                or_dash(&device.index),
                or_dash(&device.driver),
                or_dash(&device.node_guid),
                device.dev_t.clone(),
                device.inode.to_string(),
            ]
        };
        Self {
            device: device.name.clone(),
            node: device.uverbs.clone(),
            pci: device.pci(),
            numa_node: device.numa_node(),
            ports: columns(device.ports.as_deref().unwrap_or_default()),
            more: with_more.then(more),
        }
    }
}

fn table(rows: Vec<Row>, in_full: bool) -> Table {
    let usual = ["DEVICE", "NODE", "PCI", "NUMA", "STATE", "RATE", "NETDEV"];
    let more = ["INDEX", "DRIVER", "NODE GUID", "DEV_T", "INODE"];
    let heading = [&usual[..], if in_full { &more } else { &[] }].concat();
    let mut table = Table::new(0, &heading);
    for Row { device, node, pci, numa_node, ports, more } in rows {
        let usual = [device, node, or_dash(&pci), or_dash(&numa_node)];
        let ports = ports.iter().map(or_dash);
        table.row(usual.into_iter().chain(ports).chain(more.into_iter().flatten()).map(Cell::from));
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

    #[cfg(feature = "demo")]
    #[test]
    fn each_device_is_a_line() {
        use uverbs::sim::{CallKind, DeviceSpec, Machine, Verdict};

        const VF: &str = "pci0000:3a/0000:3b:00.2";
        let machine = Machine::new();
        machine.add_pci_function(VF, (0x15b3, 0x101e), 1);
        let id = machine.add(DeviceSpec::new("mlx5_0").beneath(VF).ports(2)).expect("added");
        machine.set_netdev(id, 2, Some((7, "eth0"))).expect("a port");
        machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        let found = registry.devices().expect("a list");
        let read = || -> Vec<_> {
            let json = |device| DeviceJson::new(device, &Known::read_quietly(device));
            found.iter().map(json).collect()
        };
        let text = |devices: &[DeviceJson], in_full| {
            let rows = devices.iter().map(|device| Row::in_full(device, in_full)).collect();
            anstream::adapter::strip_str(&table(rows, in_full).render()).to_string()
        };
        let expected = "DEVICE  NODE     PCI           NUMA  STATE   RATE    NETDEV\n\
                        mlx5_0  uverbs0  0000:3b:00.2  1     ACTIVE  10Gb/s  -,eth0\n\
                        rxe0    uverbs1  -             -     ACTIVE  10Gb/s  -\n";
        assert_eq!(text(&read(), false), expected);
        let listed = Listed::in_short(&registry, &registry.host().keep_netlink(), 1);
        let in_short = table(listed.expect("listed").rows, false).render();
        assert_eq!(anstream::adapter::strip_str(&in_short).to_string(), expected);
        let in_full = text(&read(), true);
        let ends = in_full.lines().map(|line| line.split_whitespace().skip(7).collect::<Vec<_>>());
        let ends: Vec<_> = ends.collect();
        assert_eq!(ends[0], ["INDEX", "DRIVER", "NODE", "GUID", "DEV_T", "INODE"]);
        assert_eq!(ends[2][..4], ["1", "rxe", "0000:0000:0000:00a0", "231:193"]);
        assert_eq!(ends[2][4], found.as_slice()[1].instance().ino.to_string());

        // One socket for the whole list, and what netlink denies is not known.
        let (sockets, counted) = std::sync::mpsc::channel();
        machine.on_call(move |_, call| {
            if call.kind() == CallKind::RdmaSocket {
                let _ = sockets.send(());
            }
            Verdict::Continue
        });
        let mut out = Out::new(JsonArgs::default());
        let args = ListArgs { json: JsonArgs::default() };
        assert!(list(&registry, &args, &mut out).expect("listed"));
        assert_eq!(counted.try_iter().count(), 1);
        machine.clear_hook();
        machine.deny_netlink(Some(1));
        let words: Vec<_> = text(&read(), false).lines().map(str::to_owned).collect();
        assert_eq!(
            words[1].split_whitespace().skip(2).collect::<Vec<_>>(),
            ["0000:3b:00.2", "1", "-", "-", "-"]
        );
    }
}
