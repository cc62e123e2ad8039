//! Lists the devices, waits for Enter, and opens the listed device that was named.
//!
//! If another device of the same name has replaced it meanwhile, the open is refused.
//!
//!     cargo run --example hotplug -- rxe0

use std::io::{self, BufRead as _};
use std::process::ExitCode;

use uverbs::{Host, Registry};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let registry = Registry::new(Host::open()?);
    let devices = registry.devices()?;
    for device in &devices {
        println!("{device}: {}", device.device_number());
    }
    let Some(name) = std::env::args().nth(1) else {
        println!("name one of these to open it");
        return Ok(());
    };
    let device = devices.by_name(&name)?;
    // The list may be dropped: the handle stays valid.
    drop(devices);
    println!("press Enter to open {device}");
    io::stdin().lock().read_line(&mut String::new())?;

    let context = device.open()?;
    println!("opened {}: node GUID {}", device.name(), context.query_device()?.node_guid);
    Ok(())
}
