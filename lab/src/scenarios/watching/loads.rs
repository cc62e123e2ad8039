//! The modules that the kernel asks for. A query about a device that is being added or removed makes it try to load
//! the client module of that device, and wait (`ib_get_client_nl_info`). Under emulation that takes a second.

use std::collections::BTreeMap;
use std::fs;

use anyhow::Result;

use crate::guest;

const HELPER: &str = "/proc/sys/kernel/modprobe";
const LOG: &str = "/tmp/loads";

/// While this exists, no module is loaded on demand.
pub(super) struct Loads;

impl Loads {
    /// The kernel asks nobody.
    pub(super) fn none() -> Result<Self> {
        fs::write(HELPER, "\n")?;
        Ok(Self)
    }

    pub(super) fn log() -> Result<Self> {
        let script = "/tmp/logging-modprobe";
        fs::write(script, format!("#!/bin/sh\necho \"$*\" >>{LOG}\nexit 1\n"))?;
        guest::run("chmod", &["755", script])?;
        fs::write(HELPER, script)?;
        Ok(Self)
    }

    /// How many times it asked for each.
    pub(super) fn end(self) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for line in fs::read_to_string(LOG).unwrap_or_default().lines() {
            let module = line.rsplit(' ').next().unwrap_or_default();
            *counts.entry(module.to_owned()).or_default() += 1;
        }
        Ok(counts)
    }
}

impl Drop for Loads {
    fn drop(&mut self) {
        let _ = fs::write(HELPER, "/sbin/modprobe");
    }
}
