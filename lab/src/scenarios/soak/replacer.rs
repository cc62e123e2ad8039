//! The replacers: threads that remove devices and add others in their place.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;

use super::ledger::{self, Ledger, Random, Truth};
use crate::guest;

const SYS: &str = "/sys/class/infiniband_verbs";
/// How many times a new directory is searched for.
const SWEEPS: usize = 8;

/// For GUIDs and names that no other device has had.
static FRESH: AtomicU64 = AtomicU64::new(0);

/// A place for one device, always of the same replacer.
pub(super) struct Slot {
    /// The test HCA's id.
    id: u64,
    /// Its current name.
    name: String,
    guid: u64,
}

impl Slot {
    /// Adds the first device of a slot.
    pub(super) fn fill(ledger: &Ledger, slot: u64) -> Result<Self> {
        add(ledger, &format!("s{slot}"), 0xa0 + slot, slot.is_multiple_of(2))
    }

    /// Renames the device. The `rdma` tool looks for the old name in a list of all devices, which leaves some out
    /// while others come and go. In that case the device is not renamed.
    fn rename(&mut self, ledger: &Ledger) -> Result<()> {
        let name = format!("r{}", FRESH.fetch_add(1, Relaxed));
        match guest::rename(&self.name, &name) {
            Ok(()) => {
                self.name = name;
                ledger.count("renamed".to_owned());
            }
            Err(error) if error.to_string().contains("Wrong device name") => {
                ledger.count("not renamed: not in the rdma tool's list".to_owned());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Replaces the device by another. The removal may wait for holders of the device. This does not wait for the
    /// removal, but then the next device gets another name.
    fn replace(&mut self, ledger: &Ledger, random: &mut Random) -> Result<()> {
        let (same_name, same_guid) = (!random.one_in(4), random.one_in(2));
        let guid = match random.below(2) {
            _ if same_guid => self.guid,
            // A GUID that devices of other slots have, too.
            0 => 0xa0 + random.below(3),
            _ => 0x1_0000 + FRESH.fetch_add(1, Relaxed),
        };
        guest::hca(&format!("del id={}", self.id))?;
        let disassociate = random.one_in(2);
        let patience = Instant::now() + Duration::from_millis(if same_name { 100 } else { 0 });
        while Instant::now() < patience {
            match add(ledger, &self.name, guid, disassociate) {
                Err(error) if is_taken(&error) => random.pause(4),
                added => {
                    ledger.count(format!("replaced: same name, same GUID {same_guid}"));
                    *self = added?;
                    return Ok(());
                }
            }
        }
        ledger.count(format!("replaced: other name, same GUID {same_guid}"));
        let name = format!("n{}", FRESH.fetch_add(1, Relaxed));
        *self = add(ledger, &name, guid, disassociate)?;
        Ok(())
    }
}

/// Replaces one device after another until all threads together have replaced that many.
pub(super) fn replace_until(
    ledger: &Ledger,
    mut slots: Vec<Slot>,
    replacements: u64,
    seed: u64,
) -> Result<()> {
    let mut random = Random::new(seed);
    while ledger.begin(replacements) {
        let slot = random.below(slots.len() as u64) as usize;
        let slot = &mut slots[slot];
        if random.one_in(8) {
            slot.rename(ledger)?;
        }
        if random.one_in(16) {
            guest::drop_caches()?;
            ledger.count("caches dropped".to_owned());
        }
        let replaced = slot.replace(ledger, &mut random);
        if replaced.is_err() {
            ledger.stop.store(true, Relaxed);
        }
        replaced?;
        ledger.end(replacements);
        random.pause(20);
    }
    Ok(())
}

/// Adds a device and determines which one it is. Its name is unique as long as it lives, so the only directory with
/// that name is its own.
fn add(ledger: &Ledger, name: &str, guid: u64, disassociate: bool) -> Result<Slot> {
    let disassociate = u8::from(disassociate);
    guest::hca(&format!("add name={name} guid={guid:016x} disassociate={disassociate}"))?;
    let state = ledger::state()?;
    let line = state.into_iter().find(|line| line.live && line.name == name);
    let line = line.with_context(|| format!("the test HCA has no {name}"))?;
    // A sweep may lack a directory that is there, if another one is removed meanwhile.
    let sweeps = (0..SWEEPS).flat_map(|_| guest::names(SYS));
    for uverbs in sweeps.filter(|uverbs| uverbs.starts_with("uverbs")) {
        let path = format!("{SYS}/{uverbs}");
        // Read before and after, because another directory may take its place in between.
        let ino = || fs::metadata(&path).map(|meta| meta.ino()).ok();
        let (before, ibdev) = (ino(), fs::read_to_string(format!("{path}/ibdev")));
        if let Some(known) = before
            && ibdev.is_ok_and(|ibdev| ibdev.trim_end() == name)
            && ino() == before
        {
            ledger.know(known, Truth { index: line.index, guid: line.guid })?;
            return Ok(Slot { id: line.id, name: name.to_owned(), guid });
        }
    }
    bail!("no directory of {name}")
}

/// Whether a device with that name is there, or is still being removed.
fn is_taken(error: &anyhow::Error) -> bool {
    let errno = error.root_cause().downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    errno == Some(Errno::NFILE.raw_os_error())
}
