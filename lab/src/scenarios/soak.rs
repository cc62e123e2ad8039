//! The soak: threads list, open, query and drop while others replace the devices.
//!
//! The truth does not come from the library. The thread that adds a device records the netlink index and the GUID
//! that the test HCA gave it, under the inode number of its uverbs directory, which no other device has until the
//! next boot. At the end, everything that was opened is compared with that, by the inode number that was listed. A
//! control opens nodes by their number alone, and must be caught on other devices.

mod crowd;
mod foreign;
mod ledger;
mod replacer;
mod stay;
mod tally;
pub(crate) mod tide;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Context, Device, ErrorKind, Registry};

use self::foreign::Foreign;
pub(crate) use self::ledger::Random;
use self::ledger::{Ledger, Observation};
use super::expect::{registry, registry_at};
use crate::{alloc, guest};

/// Each replaces the devices of its own slots.
const REPLACERS: u64 = 3;
const SLOTS: u64 = 3;

/// How long a thread may take to finish its work at the end. No thread waits for another.
const GRACE: Duration = Duration::from_secs(30);

/// How much more heap may be in use afterwards: room for what hash tables keep, but not for growth.
const HEAP_SLACK: usize = 16 << 10;
/// The same for resident memory, which includes what the allocator keeps.
const RESIDENT_SLACK: usize = 4 << 20;

/// What an opener does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Open,
    /// Opens by other means and verifies.
    Verify,
    /// Opens by other means, without a check.
    Control,
}

/// The number of openers on stale nodes. Each keeps two processors busy, with its crowd.
const OPENERS: usize = 1;

/// `uverbs-lab soak [--replacements N] [--part PART] [--seconds N] | --old-rule`
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (mut replacements, mut only, mut seconds) = (3000, None, 120);
    for pair in args.chunks(2) {
        match *pair {
            ["--replacements", number] => {
                replacements = number.parse().context("--replacements")?
            }
            ["--seconds", number] => seconds = number.parse().context("--seconds")?,
            ["--part", part @ ("replaced" | "crowd" | "stay")] => only = Some(part),
            ["--old-rule"] if args.len() == 1 => return old_rule(Duration::from_secs(seconds)),
            _ => bail!(
                "usage: uverbs-lab soak [--replacements N] [--part replaced|crowd|stay] \
                 [--seconds N] | --old-rule"
            ),
        }
    }
    let limit = Duration::from_secs(seconds);
    let is_wanted = |part| only.is_none_or(|only| only == part);
    // The next part runs whatever the result of this one: each has its own figures.
    let mut failures = Vec::new();
    guest::clean()?;
    if is_wanted("replaced") {
        // Under emulation, on a busy host, a replacement takes a quarter of a second.
        let replaced = soak(replacements, Duration::from_secs(60 + replacements / 2));
        failures.extend(replaced.and_then(|replaced| enough(replaced, replacements)).err());
        guest::clean()?;
    }
    if is_wanted("crowd") {
        failures.extend(crowded(limit).err());
        guest::clean()?;
    }
    if is_wanted("stay") {
        failures.extend(stay::soak(limit / 2).err());
    }
    let failures: Vec<_> = failures.iter().map(|error| format!("{error:?}")).collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

fn enough(replaced: u64, replacements: u64) -> Result<()> {
    ensure!(
        replaced >= replacements,
        "{replaced} of {replacements} replacements were made in time"
    );
    Ok(())
}

/// As many replacements as the time allows.
pub(super) fn bounded() -> Result<()> {
    let replaced = soak(u64::MAX, Duration::from_secs(12))?;
    ensure!(replaced >= 20, "no more than {replaced} replacements in 12 s");
    crowded(Duration::from_secs(20))?;
    stay::soak(Duration::from_secs(8))
}

/// Stale nodes, with crowds that come and go around a page.
fn crowded(limit: Duration) -> Result<()> {
    let tally = crowd::soak(OPENERS, limit)?;
    tally.print();
    tally.all_right()
}

/// The control of that: a library that counts contexts by lists is found wrong.
#[cfg(uverbs_leave_out)]
fn old_rule(limit: Duration) -> Result<()> {
    guest::clean()?;
    uverbs::leave_out::old_rule(true);
    let tally = crowd::soak(OPENERS, limit)?;
    tally.print();
    tally.caught()
}

#[cfg(not(uverbs_leave_out))]
fn old_rule(_: Duration) -> Result<()> {
    bail!("this build has no old rule: build it with --cfg uverbs_leave_out")
}

/// Runs until that many devices have been replaced, or the time is over. Returns how many were replaced.
fn soak(replacements: u64, limit: Duration) -> Result<u64> {
    let registry = registry()?;
    let elsewhere = registry_with_static_nodes()?;
    let ledger = Arc::new(Ledger::default());
    let slots = (0..REPLACERS * SLOTS).map(|slot| replacer::Slot::fill(&ledger, slot));
    let mut slots = slots.collect::<Result<Vec<_>>>()?;
    // What is created once, at the first use, is not growth.
    for registry in [&registry, &elsewhere] {
        for device in &registry.devices()? {
            device.open()?;
        }
    }
    let before = Held::now()?;
    let started = Instant::now();

    let mut threads = Vec::new();
    let ways = [Way::Open, Way::Open, Way::Open, Way::Verify, Way::Control];
    let shared = ways.map(|way| (way, registry.clone()));
    for (way, registry) in shared.into_iter().chain([(Way::Open, elsewhere.clone())]) {
        let seed = threads.len() as u64;
        let ledger = ledger.clone();
        threads.push(std::thread::spawn(move || open_all_the_while(&ledger, &registry, way, seed)));
    }
    for seed in 0..REPLACERS {
        let own = slots.split_off(slots.len() - SLOTS as usize);
        let ledger = ledger.clone();
        threads.push(std::thread::spawn(move || {
            replacer::replace_until(&ledger, own, replacements, 100 + seed)
        }));
    }
    join(&ledger, threads, started + limit)?;
    let elapsed = started.elapsed();

    guest::hca("del-all")?;
    guest::hca("wait-idle")?;
    ensure!(guest::hca_state()?.is_empty(), "a device is still there");
    for slot in 0..REPLACERS * SLOTS {
        replacer::Slot::fill(&ledger, slot)?;
    }
    for registry in [&registry, &elsewhere] {
        for device in &registry.devices()? {
            device.open()?;
        }
    }
    let ledger = Arc::into_inner(ledger).context("a thread still has the ledger")?;
    let replaced = ledger.replaced();
    let verdict = ledger.report(elapsed);
    let after = Held::now()?;
    println!("    before: {before:?}\n    after:  {after:?}");
    verdict?;
    before.no_less_than(&after)?;
    Ok(replaced)
}

/// Waits for all threads. If one fails, the others end, too.
fn join(ledger: &Ledger, threads: Vec<JoinHandle<Result<()>>>, end: Instant) -> Result<()> {
    let mut failure = None;
    for thread in threads {
        while !thread.is_finished() {
            let now = Instant::now();
            if now > end {
                ledger.stop.store(true, Relaxed);
            }
            // A thread that hangs ends with the process.
            ensure!(now < end + GRACE, "a thread hangs; {} were replaced", ledger.replaced());
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Err(error) = thread.join().expect("no panic") {
            ledger.stop.store(true, Relaxed);
            failure.get_or_insert(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The resources that this process holds.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    heap: usize,
    resident: usize,
}

impl Held {
    fn now() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|text| text.split_whitespace().next());
        let resident = resident.context("VmRSS")?.parse::<usize>()? << 10;
        let descriptors = guest::open_descriptors();
        let threads = guest::names("/proc/self/task").len();
        Ok(Self { descriptors, threads, heap: alloc::live_bytes(), resident })
    }

    fn no_less_than(&self, after: &Self) -> Result<()> {
        ensure!(after.descriptors <= self.descriptors, "descriptors are left");
        ensure!(after.threads <= self.threads, "threads are left");
        ensure!(after.heap <= self.heap + HEAP_SLACK, "the heap has grown");
        ensure!(after.resident <= self.resident + RESIDENT_SLACK, "resident memory has grown");
        Ok(())
    }
}

/// A registry whose nodes stay in place, whatever happens to the devices. A node leads to a removed device as long
/// as somebody has that device open.
fn registry_with_static_nodes() -> Result<Registry> {
    let dev = guest::container_dev()?;
    for number in 0..32 {
        guest::mknod(dev.join(format!("infiniband/uverbs{number}")), (231, 192 + number))?;
    }
    registry_at(&dev)
}

/// Lists and opens until the replacers are done.
fn open_all_the_while(ledger: &Ledger, registry: &Registry, way: Way, seed: u64) -> Result<()> {
    let mut random = Random::new(seed);
    while !ledger.stop.load(Relaxed) {
        let devices = match registry.devices() {
            Ok(devices) => devices,
            Err(error) => {
                ledger.count(format!("devices: {:?}", error.kind()));
                continue;
            }
        };
        for fault in devices.faults() {
            ledger.count(format!("fault: {:?}", fault.kind()));
        }
        if devices.is_empty() {
            continue;
        }
        if way == Way::Control {
            // The later, the more devices have been replaced since they were listed.
            for device in &devices {
                random.pause(100);
                control(ledger, device);
            }
            continue;
        }
        let device = devices.iter().nth(random.below(devices.len() as u64) as usize);
        let device = device.context("no such device")?;
        // Half of the time at once, so that devices are replaced during every step of an open.
        if random.one_in(2) {
            let most = if random.one_in(4) { 400 } else { 8 };
            random.pause(most);
        }
        match way {
            Way::Verify => verify(ledger, device, &mut random)?,
            _ => open(ledger, device, &mut random)?,
        }
    }
    Ok(())
}

fn open(ledger: &Ledger, device: &Device, random: &mut Random) -> Result<()> {
    let context = match device.open() {
        Ok(context) => context,
        Err(error) => {
            ledger.refused("open", &error);
            return Ok(());
        }
    };
    ledger.opened("open");
    observe(ledger, device, &context, "open")?;
    hold(random);
    // It stays on its device, or is cut off.
    observe(ledger, device, &context, "held")
}

/// Records what a context reports about itself, and that the kernel has a context on that device.
fn observe(ledger: &Ledger, device: &Device, context: &Context, how: &'static str) -> Result<()> {
    let index = context.evidence().index().context("proved without an index")?;
    let guid = match context.query_device() {
        Ok(attributes) => Some(attributes.node_guid.0),
        Err(error) if error.kind() == ErrorKind::Removed => {
            ledger.count(format!("{how}, gone since"));
            None
        }
        Err(error) => bail!("a query of an opened device: {error}"),
    };
    let state = ledger::state()?;
    let line = state.iter().find(|line| line.index == index);
    // A device that is being removed may have cut its contexts off already. Any other device has this one.
    if line.is_some_and(|line| line.live && line.contexts == 0) {
        ledger.wrong(format!("{how}: no context on index {index}, which is {device}"));
    }
    ledger.observe(Observation { ino: device.instance().ino, index: Some(index), guid, how });
    Ok(())
}

fn verify(ledger: &Ledger, device: &Device, random: &mut Random) -> Result<()> {
    if random.one_in(2) {
        random.pause(8);
    }
    let Ok(foreign) = Foreign::open(device.uverbs_number()) else {
        ledger.count("verify: no foreign context".to_owned());
        return Ok(());
    };
    match device.verify(&foreign) {
        Ok(evidence) => {
            ledger.opened("verify");
            let index = evidence.index();
            ensure!(index.is_some(), "verified without an index");
            let (ino, guid) = (device.instance().ino, foreign.node_guid().ok());
            ledger.observe(Observation { ino, index, guid, how: "verify" });
        }
        Err(error) => ledger.refused("verify", &error),
    }
    hold(random);
    Ok(())
}

/// What happens without the library. Its GUIDs are judged separately, and some have to be wrong.
fn control(ledger: &Ledger, device: &Device) {
    let guid = Foreign::open(device.uverbs_number()).and_then(|foreign| foreign.node_guid());
    if let Ok(guid) = guid {
        let ino = device.instance().ino;
        ledger.control(Observation { ino, index: None, guid: Some(guid), how: "control" });
    }
}

/// Keeps the object open for a while, sometimes long enough for a removal to wait.
fn hold(random: &mut Random) {
    match random.below(40) {
        0 => random.pause(300),
        1..10 => random.pause(20),
        _ => {}
    }
}
