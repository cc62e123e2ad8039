//! A thousand devices, few descriptors, little memory.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::expect::{opened, registry};
use crate::{alloc, guest};

pub(super) fn thousand() -> Result<()> {
    const DEVICES: usize = 1000;
    guest::hca("add name=m guid=0000000000010000 count=1000 disassociate=1")?;
    guest::until_uverbs("uverbs999", true)?;
    let limit = Some(16);
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?;
    let descriptors = guest::open_descriptors();
    {
        let registry = registry()?;
        let heap = alloc::live_bytes();
        let devices = registry.devices()?;
        let each = (alloc::live_bytes() - heap) / DEVICES;
        ensure!(devices.len() == DEVICES && devices.faults().count() == 0, "{}", devices.len());
        println!("    heap per listed device: {each} bytes");
        ensure!(each <= 1024);
        let again = registry.devices()?;
        ensure!(again.iter().eq(devices.iter()));
        let device = devices.by_name("m777")?;
        let context = opened(device.open(), 0x10000 + 777)?;
        ensure!(guest::open_descriptors() <= descriptors + 3, "roots and the cmd fd alone");
        let index = context.evidence().index();
        let each = (alloc::live_bytes() - heap) / DEVICES;
        println!("    heap per listed device, one opened: {each} bytes");
        ensure!(each <= 1024);
        ensure!(index == Some(device.index()?));
    }
    ensure!(guest::open_descriptors() == descriptors, "descriptors are left");
    Ok(())
}

/// The program as built with LeakSanitizer, which makes it exit with 23 if it leaks.
const LEAKS: &str = "uverbs-lab-leaks";

/// Scenarios that open, fail to open, hold and close, in a program that reports leaked memory.
pub(super) fn no_leak() -> Result<()> {
    let leaked = Command::new(LEAKS).args(["role", "leak"]).output().context(LEAKS)?;
    ensure!(leaked.status.code() == Some(23), "a leak is not noticed: {}", leaked.status);
    for scenario in [
        "a_hundred_contexts_while_devices_vanish",
        "every_kind_of_async_event",
        "a_removal_ends_the_events",
        "a_removal_ends_a_tokio_stream",
        "open_succeeds_with_evidence_on_each",
        "replaced_with_another_guid",
        "static_node_equal_guids",
        "wrong_kinds_of_node",
        "eight_threads_two_devices",
        "netlink_denied",
        "providers_of_the_program_are_torn_down_once",
        "providers_may_open_devices",
    ] {
        guest::clean()?;
        guest::run(LEAKS, &["scenario", scenario])?;
    }
    Ok(())
}
