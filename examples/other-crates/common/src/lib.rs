//! What both programs do around the other crate: they list, wait for a line on standard input, open, and print what
//! became of it.

use std::io::{BufRead as _, Write as _};

use anyhow::{Context as _, Result};
use uverbs::{Device, Evidence, Host, Registry};

/// The name of the device, from the command line.
pub fn name() -> Result<String> {
    std::env::args().nth(1).context("usage: PROGRAM DEVICE")
}

/// The device of that name, as this library lists it.
pub fn listed(name: &str) -> Result<Device> {
    Ok(Registry::new(Host::open()?).devices()?.by_name(name)?)
}

/// Prints "ready" and waits for a line: here a device may be replaced.
pub fn pause() -> Result<()> {
    println!("ready");
    std::io::stdout().flush()?;
    std::io::stdin().lock().read_line(&mut String::new())?;
    Ok(())
}

/// Prints whether the descriptor was proved to be on the device.
pub fn report(verified: uverbs::Result<Evidence>) {
    match verified {
        Ok(evidence) => println!("proved: {} checks", evidence.checks().len()),
        Err(error) => println!("refused: {:?}: {error}", error.kind()),
    }
}
