//! The cost of listing and opening, compared with libibverbs and with the minimum that the kernel needs: on one
//! kernel, in one run, with one device and with thousands.
//!
//! It prints a line for each figure, which `cargo xtask bench` collects, and one for each target. It fails if a
//! target is missed.

mod counted;
mod guarded;
mod measure;
mod sweep;
mod targets;

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Device, Host, Registry};

use crate::compare::rename;
use crate::ibverbs::{Ibverbs, List};
use crate::{alloc, guest, spawn};
use measure::{Note, Times, in_turns, on_threads, time};
use targets::Findings;

pub(crate) use counted::role as counted_role;
pub(crate) use guarded::{memory_role, role as guarded_role};

/// The number of threads where threads are measured.
const THREADS: usize = 8;

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let most = match *args {
        [] => 8000,
        ["--most", most] => most.parse().context("--most")?,
        _ => bail!("usage: uverbs-lab bench [--most DEVICES]"),
    };
    guest::clean()?;
    println!("kernel\t{}", guest::release());
    let mut findings = Findings::default();
    let mut there = 0;
    for (devices, prefix) in [(1, 'a'), (64, 'b'), (256, 'g'), (1000, 'c'), (8000, 'd')] {
        if devices > most {
            break;
        }
        let (more, guid) = (devices - there, 0x10000 + there);
        guest::hca(&format!("add name={prefix} guid={guid:016x} count={more}"))?;
        guest::until_uverbs(&format!("uverbs{}", devices - 1), true)?;
        there = devices;
        if devices != GUARDED_ONLY {
            measure(devices, &mut findings)?;
        }
        if GUARDED.contains(&devices) {
            measure_guard(devices, &mut findings)?;
        }
    }
    findings.judge()
}

/// The numbers of devices with which the guard is measured; with one of them, nothing else is.
const GUARDED: [usize; 3] = [1, GUARDED_ONLY, 1000];
const GUARDED_ONLY: usize = 256;

fn measure_guard(devices: usize, findings: &mut Findings) -> Result<()> {
    let device = guest::ibdev(&format!("uverbs{}", devices / 2))?;
    let mut figures = Vec::new();
    let mut note = |name: &str, times: &Times| {
        times.print(devices, name);
        figures.push((name.to_owned(), times.median()));
    };
    guarded::measure(&device, &mut note)?;
    if devices == 1 {
        guarded::start(findings, &mut note)?;
    }
    for (name, median) in figures {
        findings.time(devices, &name, median);
    }
    Ok(())
}

/// How many times the slow operations are repeated with that many devices. A list of libibverbs takes a time that
/// grows with the square of their number.
fn rounds(devices: usize) -> usize {
    match devices {
        ..=64 => 100,
        65..=1000 => 25,
        _ => 1,
    }
}

fn measure(devices: usize, findings: &mut Findings) -> Result<()> {
    let mut note = |name: &str, times: &Times| {
        times.print(devices, name);
        findings.time(devices, name, times.median());
    };
    first_lists(devices, &mut note)?;
    let ibverbs = Ibverbs::load()?;
    let registry = Registry::new(Host::open()?);
    let (heap, descriptors) = (alloc::live_bytes(), guest::open_descriptors());
    let listed = registry.devices()?;
    let heap = (alloc::live_bytes() - heap) / devices;
    let descriptors = guest::open_descriptors() - descriptors;
    ensure!(listed.len() == devices && listed.faults().count() == 0, "{} listed", listed.len());
    registry.devices()?;
    let allocations = alloc::calls();
    let unchanged = registry.devices()?;
    let allocations = alloc::calls() - allocations;
    ensure!(unchanged.iter().eq(&listed));

    let device = listed.iter().nth(devices / 2).context("none")?;
    let list = ibverbs.list()?;
    ensure!(list.len() == devices, "libibverbs lists {} devices", list.len());
    lists(devices, &ibverbs, &registry, &mut note)?;
    opens(&list, device, &mut note)?;
    if devices >= 1000 {
        changed(&registry, &mut note)?;
    }
    if devices == 1000 {
        threads(&list, &registry, &mut note)?;
    }
    findings.count(devices, "heap_per_device", heap);
    findings.count(devices, "descriptors_kept", descriptors);
    findings.count(devices, "allocations_rescan", allocations);
    if devices <= 1000 {
        counted::count(devices, findings)?;
    }
    Ok(())
}

/// The first list of a process, each in a new process.
fn first_lists(devices: usize, note: Note<'_>) -> Result<()> {
    let first = |which| {
        let output = guest::stdout(&spawn::exe()?, &["role", "first-list", which])?;
        Ok(Duration::from_nanos(output.trim().parse().context("nanoseconds")?))
    };
    // After the very first list, the kernel's inodes exist. If libibverbs is too slow for a median, ours is
    // measured nevertheless, as with fewer devices.
    let [theirs, ours] = match rounds(devices).min(25) {
        1 => {
            let [theirs] = in_turns(1, [&mut |_| first("ibverbs")])?;
            let [ours] = in_turns(5, [&mut |_| first("uverbs")])?;
            [theirs, ours]
        }
        rounds => in_turns(rounds, [&mut |_| first("ibverbs"), &mut |_| first("uverbs")])?,
    };
    note("first_list_ibverbs", &theirs);
    note("first_list", &ours);
    Ok(())
}

/// The role `first-list`: lists once and prints how long that took.
pub(crate) fn first_list(which: &str) -> Result<()> {
    // The kernel may still have to clean up after the previous process.
    std::thread::sleep(Duration::from_millis(100));
    let elapsed = match which {
        "ibverbs" => {
            let ibverbs = Ibverbs::load()?;
            time(|| ibverbs.list().map(std::mem::forget))?
        }
        _ => time(|| Ok(Registry::new(Host::open()?).devices()?))?,
    };
    println!("{}", elapsed.as_nanos());
    Ok(())
}

/// A list when nothing has changed.
fn lists(devices: usize, ibverbs: &Ibverbs, registry: &Registry, note: Note<'_>) -> Result<()> {
    let watched = Registry::new(Host::open()?);
    let _watch = watched.watch()?;
    // Several of the quick operations for each slow one, in separate turns.
    let mut quick = [Vec::new(), Vec::new(), Vec::new()];
    let mut slow = Vec::new();
    for round in 0..rounds(devices) {
        slow.push(time(|| ibverbs.list())?);
        for turn in 0..30 {
            let which = (round + turn) % 3;
            quick[which].push(match which {
                0 => time(sweep::both)?,
                1 => time(|| Ok(registry.devices()?))?,
                _ => {
                    // A list is current for a second, which the others may take.
                    watched.devices()?;
                    time(|| Ok(watched.devices()?))?
                }
            });
        }
    }
    let [swept, rescan, watched] = quick.map(Times::new);
    note("list_ibverbs", &Times::new(slow));
    note("sweep", &swept);
    note("rescan", &rescan);
    note("rescan_watched", &watched);
    Ok(())
}

/// Open and close, warm, and the first open after a list.
fn opens(list: &List<'_>, device: &Device, note: Note<'_>) -> Result<()> {
    let peer = list.find(&device.name().to_string())?;
    let ours = || open_and_close(device);
    peer.open_and_close()?;
    ours()?;
    let [theirs, ours] =
        in_turns(600, [&mut |_| time(|| peer.open_and_close()), &mut |_| time(ours)])?;
    note("open_ibverbs", &theirs);
    note("open", &ours);
    let first = |round: usize| {
        let listed = Registry::new(Host::open()?).devices()?;
        // Another device each time, because some are easier to find than others.
        let device = listed.iter().nth((round * 389 + 7) % listed.len()).context("none")?;
        time(|| open_and_close(device))
    };
    let [first] = in_turns(15, [&mut { first }])?;
    note("first_open", &first);
    Ok(())
}

fn open_and_close(device: &Device) -> Result<()> {
    drop(device.open()?);
    Ok(())
}

/// A list when some devices have changed: they are renamed.
fn changed(registry: &Registry, note: Note<'_>) -> Result<()> {
    let listed = registry.devices()?;
    for count in [1, 10, 100] {
        let some: Vec<_> = listed.iter().step_by(listed.len() / count).take(count).collect();
        let names: Vec<_> = some.iter().map(|device| device.name().to_string()).collect();
        let mut times = Vec::new();
        for round in 0..10 {
            // Every second round restores the names, because others use them.
            let prefix = if round % 2 == 0 { "was_" } else { "" };
            let names: Vec<_> = names.iter().map(|name| format!("{prefix}{name}")).collect();
            for (device, name) in some.iter().zip(&names) {
                rename(device.index()?, name)?.map_err(std::io::Error::from_raw_os_error)?;
            }
            times.push(time(|| Ok(registry.devices()?))?);
            for (device, name) in some.iter().zip(&names) {
                ensure!(device.name() == name.as_str(), "{device} is not {name}");
            }
        }
        note(&format!("rescan_{count}_changed"), &Times::new(times));
    }
    Ok(())
}

/// The same from one thread and from eight, opens from two as well.
fn threads(list: &List<'_>, registry: &Registry, note: Note<'_>) -> Result<()> {
    let devices: Vec<_> = registry.devices()?.iter().take(THREADS).cloned().collect();
    let peers = devices
        .iter()
        .map(|device| list.find(&device.name().to_string()))
        .collect::<Result<Vec<_>>>()?;
    for device in &devices {
        drop(device.open()?);
    }
    let swept = |_| sweep::both();
    let rescan = |_| Ok(registry.devices().map(drop)?);
    let opened = |thread: usize| open_and_close(&devices[thread]);
    let peer = |thread: usize| peers[thread].open_and_close();
    // Short and many, because the host's other work comes in bursts.
    let times = in_turns(
        40,
        [
            &mut |_| on_threads(1, 8, swept),
            &mut |_| on_threads(THREADS, 8, swept),
            &mut |_| on_threads(1, 8, rescan),
            &mut |_| on_threads(THREADS, 8, rescan),
            &mut |_| on_threads(1, 20, peer),
            &mut |_| on_threads(2, 20, peer),
            &mut |_| on_threads(THREADS, 20, peer),
            &mut |_| on_threads(1, 20, opened),
            &mut |_| on_threads(2, 20, opened),
            &mut |_| on_threads(THREADS, 20, opened),
        ],
    )?;
    let names = [
        ("sweep", &[1, THREADS][..]),
        ("rescan", &[1, THREADS]),
        ("open_ibverbs", &[1, 2, THREADS]),
        ("open", &[1, 2, THREADS]),
    ];
    let names =
        names.iter().flat_map(|(name, all)| all.iter().map(move |n| format!("{name}_{n}_threads")));
    for (name, times) in names.zip(&times) {
        note(&name, times);
    }
    Ok(())
}
