//! System calls, counted exactly by strace, between marks that the program writes.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use uverbs::{Host, Registry};

use super::targets::Findings;
use crate::compare::rename;
use crate::guest;
use crate::spawn::{self, MARK};

const TRACE: &str = "/tmp/trace-calls";

/// The parts between the marks; `-` is preparation.
const PARTS: [&str; 11] = [
    "calls_first_list",
    "calls_first_open",
    "calls_second_list",
    "calls_rescan",
    "calls_open",
    "-",
    "calls_rescan_watched",
    "-",
    "calls_rescan_1_changed",
    "-",
    "calls_rescan_10_changed",
];

/// The role that is traced.
pub(crate) fn role() -> Result<()> {
    let registry = Registry::new(Host::open()?);
    spawn::mark();
    let listed = registry.devices()?;
    spawn::mark();
    let device = listed.iter().nth(listed.len() / 2).context("none")?;
    drop(device.open()?);
    spawn::mark();
    // It confirms the names.
    registry.devices()?;
    spawn::mark();
    registry.devices()?;
    spawn::mark();
    drop(device.open()?);
    spawn::mark();
    let watch = registry.watch()?;
    registry.devices()?;
    spawn::mark();
    registry.devices()?;
    spawn::mark();
    drop(watch);
    let names: Vec<_> = listed.iter().map(|device| device.name().to_string()).collect();
    let rename_some = |count: usize, prefix: &str| -> Result<()> {
        for (device, name) in listed.iter().zip(&names).take(count) {
            let name = format!("{prefix}{name}");
            rename(device.index()?, &name)?.map_err(std::io::Error::from_raw_os_error)?;
        }
        Ok(())
    };
    for (count, prefix) in [(1, "one_"), (10, "ten_")] {
        // The names before are confirmed.
        registry.devices()?;
        rename_some(count, prefix)?;
        spawn::mark();
        registry.devices()?;
        spawn::mark();
    }
    // If libibverbs listed the devices before, it would continue with the old names in this run.
    rename_some(10, "")
}

pub(super) fn count(devices: usize, findings: &mut Findings) -> Result<()> {
    guest::run("strace", &["-f", "-o", TRACE, &spawn::exe()?, "role", "counted"])?;
    let trace = fs::read_to_string(TRACE)?;
    let parts: Vec<_> = trace.split(MARK).collect();
    ensure!(parts.len() == PARTS.len() + 2, "{} marks in the trace", parts.len() - 1);
    for (name, part) in PARTS.iter().zip(&parts[1..]) {
        if *name != "-" {
            // Neither the end of a call that another thread interrupted, nor the end of a thread.
            let is_call = |line: &&str| !line.contains(" resumed>") && !line.contains(" +++ ");
            // The first and the last line belong to the marks.
            let calls = part.lines().filter(is_call).count().saturating_sub(2);
            findings.count(devices, name, calls);
        }
    }
    Ok(())
}
