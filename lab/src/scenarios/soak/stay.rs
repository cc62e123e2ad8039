//! Devices that stay, listed while others go: whatever a look at the directory leaves out, the registry
//! must not take a device that is there for one that is gone.
//!
//! A round adds some devices, and threads list again and again while those are removed. All of it runs on
//! one processor: a thread that is preempted while it reads the directory mostly waits with an entry in
//! hand, outside of the directory's lock, and that is when the kernel can step over the next one.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Barrier;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use uverbs::Registry;

use super::super::registry;
use super::ledger::Random;
use crate::guest;

const STAY: usize = 30;
const GO: usize = 6;
const LISTERS: usize = 3;

/// The processors of the kernel's workers; those of the test HCA remove its devices.
const WORKERS: &str = "/sys/devices/virtual/workqueue/cpumask";

/// A device that stays, as the kernel has it.
struct Staying {
    number: u32,
    ino: u64,
}

#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    lists: u64,
    /// Rounds in which a device that is there was marked as gone.
    marked: u64,
    /// Rounds with a list without a device that an earlier one had and that is there.
    left_out: u64,
    sample: Option<String>,
}

pub(super) fn soak(limit: Duration) -> Result<()> {
    // One of those that go after two that stay: they take the lowest numbers that are free, so that some
    // stay behind them in whatever order the directory is read.
    let mut staying = Vec::new();
    for number in 0..(STAY + GO) as u32 {
        if number % 3 == 1 && (number as usize) < 3 * GO {
            guest::hca(&format!("add name=place{number} guid={:016x}", 0xf000 + number))?;
        } else {
            guest::hca(&format!("add name=stay{number} guid={:016x}", 0xc000 + number))?;
            staying.push(Staying { number, ino: ino(number).context("no directory")? });
        }
    }
    ensure!(staying.len() == STAY);
    for number in (0..GO).map(|each| 3 * each + 1) {
        guest::hca(&format!("del-sync name=place{number}"))?;
    }

    let workers = fs::read_to_string(WORKERS).context(WORKERS)?;
    fs::write(WORKERS, "1").context(WORKERS)?;
    let tally = rounds(&staying, limit);
    fs::write(WORKERS, workers.trim()).context(WORKERS)?;
    let tally = tally?;
    guest::hca("del-all")?;
    guest::hca("wait-idle")?;

    let Tally { rounds, lists, marked, left_out, sample } = tally;
    println!("    {STAY} devices stay while {GO} go: {rounds} rounds, {lists} lists");
    println!(
        "    rounds in which one that is there was marked as gone: {marked}, left out: {left_out}"
    );
    ensure!(rounds >= 10, "too few rounds to prove anything");
    ensure!(
        marked == 0 && left_out == 0,
        "a device that is there was taken for gone: {}",
        sample.unwrap_or_default()
    );
    Ok(())
}

fn rounds(staying: &[Staying], limit: Duration) -> Result<Tally> {
    let (mut tally, mut random) = (Tally::default(), Random::new(300));
    let mut registries = (0..LISTERS).map(|_| registry()).collect::<Result<Vec<_>>>()?;
    let end = Instant::now() + limit;
    while Instant::now() < end {
        guest::hca(&format!("add name=goes guid=000000000000f000 count={GO}"))?;
        let delay = Duration::from_micros(random.below(2000));
        let barrier = Barrier::new(LISTERS + 1);
        let seen = std::thread::scope(|scope| {
            let listers: Vec<_> = registries
                .iter()
                .map(|registry| scope.spawn(|| watch(registry, staying, &barrier)))
                .collect();
            barrier.wait();
            std::thread::sleep(delay);
            let removed = (0..GO).try_for_each(|each| guest::hca(&format!("del name=goes{each}")));
            let join = |lister: ScopedJoinHandle<_>| lister.join().expect("no panic");
            let seen = listers.into_iter().map(join).collect::<Result<Vec<Seen>>>();
            removed.and(seen)
        })?;
        for (registry, seen) in registries.iter_mut().zip(seen) {
            tally.lists += seen.lists;
            tally.marked += u64::from(seen.marked);
            tally.left_out += u64::from(seen.left_out);
            if seen.sample.is_some() {
                // A device that was marked once stays so: the next round is another registry's.
                *registry = super::super::registry()?;
            }
            tally.sample = tally.sample.or(seen.sample);
        }
        tally.rounds += LISTERS as u64;
        guest::hca("wait-idle")?;
    }
    Ok(tally)
}

/// The inode number of a uverbs directory; none where it is gone.
fn ino(number: u32) -> Option<u64> {
    let path = format!("/sys/class/infiniband_verbs/uverbs{number}");
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// What one lister saw in one round.
#[derive(Default)]
struct Seen {
    lists: u64,
    marked: bool,
    left_out: bool,
    sample: Option<String>,
}

/// Lists until those that go are gone.
fn watch(registry: &Registry, staying: &[Staying], barrier: &Barrier) -> Result<Seen> {
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one)?;
    let known = registry.devices();
    barrier.wait();
    let known = known?;
    let known: Vec<_> = staying
        .iter()
        .filter_map(|one| Some((one, known.iter().find(|d| d.instance().ino == one.ino)?)))
        .collect();
    ensure!(known.len() == STAY, "nothing went, and {} of {STAY} were listed", known.len());
    let end = Instant::now() + Duration::from_secs(20);
    let mut seen = Seen::default();
    loop {
        let listed = registry.devices()?;
        seen.lists += 1;
        for (one, device) in &known {
            let is_listed = listed.iter().any(|found| found.instance().ino == one.ino);
            if is_listed && !device.is_known_gone() {
                continue;
            }
            ensure!(ino(one.number) == Some(one.ino), "uverbs{} did not stay", one.number);
            seen.left_out |= !is_listed;
            seen.marked |= device.is_known_gone();
            seen.sample.get_or_insert_with(|| {
                let open = device.open().map(drop).map_err(|error| error.to_string());
                format!("{device}, listed: {is_listed}, open: {open:?}")
            });
        }
        if !listed.iter().any(|device| device.name().to_string().starts_with("goes")) {
            return Ok(seen);
        }
        ensure!(Instant::now() < end, "those that go do not go");
    }
}
