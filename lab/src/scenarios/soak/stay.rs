//! Devices that stay, listed while others go. Whatever a sweep of the directory leaves out, the registry must not
//! mark a device that is there as gone.
//!
//! A round adds some devices, and threads list again and again while those are removed. All of it runs on one
//! processor: a thread that is preempted while it reads the directory mostly waits in the middle of an entry,
//! without the directory's lock, and then the kernel may skip the next entry.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::thread::{CpuSet, sched_setaffinity};
use uverbs::Registry;

use super::super::expect;
use super::ledger::Random;
use crate::guest;

const STAY: usize = 30;
/// At most this many go in a round.
const GO: u64 = 12;
/// The numbers are first taken from this many.
const PLACES: usize = 64;
const LISTERS: usize = 3;

const CLASS: &str = "/sys/class/infiniband_verbs";

/// The processors of the kernel's workers. Those of the test HCA remove its devices.
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
    /// Rounds with a list that lacks a device which is there and which an earlier list had.
    left_out: u64,
    sample: Option<String>,
    /// Sweeps of the directory without the library, and those that lacked a device that is there.
    sweeps: u64,
    without: u64,
}

pub(super) fn soak(limit: Duration) -> Result<()> {
    // The devices that go take the lowest free numbers, which are spread among those that stay. Whether the kernel
    // skips an entry depends on the shape of the tree that it keeps them in, and so on earlier entries.
    let mut random = Random::new(300);
    let mut places: Vec<_> = (0..PLACES).collect();
    guest::hca(&format!("add name=place guid=000000000000c000 count={PLACES}"))?;
    while places.len() > STAY {
        let place = places.swap_remove(random.below(places.len() as u64) as usize);
        guest::hca(&format!("del-sync name=place{place}"))?;
    }
    let staying = places.into_iter().map(|number| {
        let number = number as u32;
        Ok(Staying { number, ino: ino(number).context("no directory")? })
    });
    let staying = staying.collect::<Result<Vec<_>>>()?;
    let workers = fs::read_to_string(WORKERS).context(WORKERS)?;
    fs::write(WORKERS, "1").context(WORKERS)?;
    let tally = rounds(&staying, &mut random, limit);
    fs::write(WORKERS, workers.trim()).context(WORKERS)?;
    let tally = tally?;
    guest::hca("del-all")?;
    guest::hca("wait-idle")?;

    let Tally { rounds, lists, marked, left_out, sample, sweeps, without } = tally;
    println!("    {STAY} devices stay while others go: {rounds} rounds, {lists} lists");
    println!(
        "    rounds in which one that is there was marked as gone: {marked}, left out: {left_out}"
    );
    println!(
        "    control: {without} of {sweeps} sweeps of the directory lacked a device that is there"
    );
    ensure!(rounds >= 10, "too few rounds to prove anything");
    ensure!(
        marked == 0 && left_out == 0,
        "a device that is there was marked as gone: {}",
        sample.unwrap_or_default()
    );
    Ok(())
}

fn rounds(staying: &[Staying], random: &mut Random, limit: Duration) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut registries = (0..LISTERS).map(|_| expect::registry()).collect::<Result<Vec<_>>>()?;
    let end = Instant::now() + limit;
    while Instant::now() < end {
        let going = 1 + random.below(GO) as usize;
        guest::hca(&format!("add name=goes guid=000000000000f000 count={going}"))?;
        let delay = Duration::from_micros(random.below(2000));
        let (barrier, is_over) = (Barrier::new(LISTERS + 2), AtomicBool::new(false));
        let seen = std::thread::scope(|scope| {
            let listers: Vec<_> = registries
                .iter()
                .map(|registry| scope.spawn(|| watch(registry, staying, &barrier)))
                .collect();
            let sweeper = scope.spawn(|| sweep(staying, &barrier, &is_over));
            barrier.wait();
            std::thread::sleep(delay);
            let removed =
                (0..going).try_for_each(|each| guest::hca(&format!("del name=goes{each}")));
            let join = |lister: ScopedJoinHandle<'_, _>| lister.join().expect("no panic");
            let seen = listers.into_iter().map(join).collect::<Result<Vec<Seen>>>();
            is_over.store(true, Relaxed);
            let (sweeps, without) = sweeper.join().expect("no panic")?;
            tally.sweeps += sweeps;
            tally.without += without;
            removed.and(seen)
        })?;
        for (registry, seen) in registries.iter_mut().zip(seen) {
            tally.lists += seen.lists;
            tally.marked += u64::from(seen.marked);
            tally.left_out += u64::from(seen.left_out);
            if seen.sample.is_some() {
                // A device that was marked once stays marked, so the next round uses a new registry.
                *registry = expect::registry()?;
            }
            tally.sample = tally.sample.or(seen.sample);
        }
        tally.rounds += LISTERS as u64;
        guest::hca("wait-idle")?;
    }
    Ok(tally)
}

/// The inode number of a uverbs directory; `None` if it is gone.
fn ino(number: u32) -> Option<u64> {
    let path = format!("{CLASS}/uverbs{number}");
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// Reads the directory until the round is over. Returns how many times, and how many times one of the staying
/// devices was missing.
fn sweep(staying: &[Staying], barrier: &Barrier, is_over: &AtomicBool) -> Result<(u64, u64)> {
    on_one_processor()?;
    let mut buffer = Vec::with_capacity(32 << 10);
    barrier.wait();
    let (mut sweeps, mut without) = (0, 0);
    while !is_over.load(Relaxed) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(CLASS, flags, Mode::empty())?;
        let mut is_there = [false; 64];
        let mut entries = RawDir::new(directory, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let name = entry?
                .file_name()
                .to_str()
                .unwrap_or_default()
                .strip_prefix("uverbs")
                .map(str::parse::<usize>);
            if let Some(Ok(number)) = name
                && let Some(is_there) = is_there.get_mut(number)
            {
                *is_there = true;
            }
        }
        sweeps += 1;
        without += u64::from(staying.iter().any(|one| !is_there[one.number as usize]));
    }
    Ok((sweeps, without))
}

fn on_one_processor() -> Result<()> {
    let mut one = CpuSet::new();
    one.set(0);
    Ok(sched_setaffinity(None, &one)?)
}

/// What one lister saw in one round.
#[derive(Default)]
struct Seen {
    lists: u64,
    marked: bool,
    left_out: bool,
    sample: Option<String>,
}

/// Lists until the devices that go are gone.
fn watch(registry: &Registry, staying: &[Staying], barrier: &Barrier) -> Result<Seen> {
    on_one_processor()?;
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
