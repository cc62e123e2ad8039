//! Opens every device as soon as it is ready, and closes it when it is removed.
//!
//! With a driver that does not disassociate, the removal waits until the device is closed. The watch reports it at
//! once, so nobody waits for long.
//!
//!     cargo run --example follow

use std::collections::HashMap;
use std::process::ExitCode;

use uverbs::{Change, Devices, Host, Registry};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> uverbs::Result<()> {
    let registry = Registry::new(Host::open()?);
    let mut contexts = HashMap::new();
    // Since an empty list: the devices that are there are added first.
    for change in registry.watch_since(&Devices::default())? {
        let change = match change {
            Ok(change) => change,
            Err(error) => {
                // The watch goes on by itself.
                eprintln!("{error}");
                continue;
            }
        };
        println!("{change}");
        match change {
            Change::Ready { device, .. } => match device.open() {
                Ok(context) => {
                    println!("{device}: open, GUID {}", context.query_device()?.node_guid);
                    contexts.insert(device.instance(), context);
                }
                // It may be gone again.
                Err(error) => eprintln!("{error}"),
            },
            Change::Removed { device, .. } | Change::Replaced { old: device, .. } => {
                contexts.remove(&device.instance());
            }
            _ => {}
        }
    }
    Ok(())
}
