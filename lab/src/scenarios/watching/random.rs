//! Thousands of random changes with a watch.
//!
//! The truth comes from `/sys`, not from the library: after each change the inode numbers of the uverbs directories
//! are recorded, with the time in which each directory was certainly there.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use uverbs::{Change, Watch};

use super::clock::{Clock, Reader, Time};
use super::loads::Loads;
use super::replay::{Ino, Replay, watch};
use crate::compare::{Elsewhere, rename};
use crate::guest;
use crate::scenarios::expect::registry;
use crate::scenarios::soak::Random;

const SYS: &str = "/sys/class/infiniband_verbs";
/// How many devices of the test HCA there are at most, and of soft-RoCE.
const MOST: usize = 8;
const MOST_RXE: usize = 2;
/// An instance that is there for this long is reported.
const LONG: Duration = Duration::from_millis(50);
/// How much time the changes may take. The host may be slow.
const LIMIT: Duration = Duration::from_secs(150);
const CHANGES: usize = 2000;

/// The watch follows on a thread of its own, which waits.
pub(in crate::scenarios) fn on_a_thread() -> Result<()> {
    load_all()?;
    // The watch does not wait for that here: the next scenario shows how often it would.
    let _loads = Loads::none()?;
    follow(CHANGES, true)
}

/// Loads what is loaded on demand.
fn load_all() -> Result<()> {
    guest::hca("wait-idle")?;
    guest::add_rxe("rxe0", "d0")?;
    guest::delete_rxe("rxe0")
}

/// The same for a shorter time, and how many times the kernel tries to load a module meanwhile.
pub(in crate::scenarios) fn loads() -> Result<()> {
    load_all()?;
    let loads = Loads::log()?;
    // How long a load takes is not the watch's.
    let followed = follow(CHANGES / 8, false);
    println!("    modules that the kernel tried to load: {:?}", loads.end()?);
    followed
}

fn follow(changes: usize, must_be_prompt: bool) -> Result<()> {
    let seed = seed()?;
    let (mut watch, mut replay) = watch(&registry()?)?;
    let stop = AtomicBool::new(false);
    let clock = Clock::start();
    let (mut world, heard) = std::thread::scope(|scope| {
        let following = scope.spawn(|| -> Result<_> {
            let (mut heard, mut slowest) = (HashMap::new(), Duration::ZERO);
            while !stop.load(Relaxed) {
                let began = Instant::now();
                if let Some(change) = watch.wait(Some(Duration::from_millis(20)))? {
                    note(&mut replay, &mut heard, &change)?;
                }
                slowest = slowest.max(began.elapsed());
            }
            println!("    the longest wait for at most 20 ms took {slowest:?}");
            while let Some(change) = watch.wait(Some(super::replay::SETTLED))? {
                note(&mut replay, &mut heard, &change)?;
            }
            Ok(heard)
        });
        let changed = World::new(seed, clock.reader()).and_then(|mut world| {
            world.change(changes, || !following.is_finished(), |_| Ok(()))?;
            Ok(world)
        });
        stop.store(true, Relaxed);
        let heard = following.join().expect("no panic");
        anyhow::Ok((changed?, heard?))
    })?;
    replay.is_exact(&watch)?;
    world.report(&replay);
    let reported = world.all_reported(&heard);
    if must_be_prompt {
        reported?;
    }
    world.end()
}

/// When each instance was reported.
fn note(replay: &mut Replay, heard: &mut HashMap<Ino, Instant>, change: &Change) -> Result<()> {
    replay.apply(change)?;
    if let Change::Added { device, .. } | Change::Replaced { new: device, .. } = change {
        heard.insert(device.instance().ino, Instant::now());
    }
    Ok(())
}

/// The watch is read between the changes, now and then.
pub(in crate::scenarios) fn between() -> Result<()> {
    let seed = seed()?;
    let (mut watch, mut replay) = watch(&registry()?)?;
    let clock = Clock::start();
    let mut world = World::new(seed, clock.reader())?;
    let read = |watch: &mut Watch, replay: &mut Replay| -> Result<()> {
        while let Some(change) = watch.try_next()? {
            replay.apply(&change)?;
        }
        Ok(())
    };
    world.change(
        CHANGES,
        || true,
        |random| match random.below(4) {
            0 => read(&mut watch, &mut replay),
            1 => watch.try_next()?.map_or(Ok(()), |change| replay.apply(&change)),
            _ => Ok(()),
        },
    )?;
    replay.settle(&mut watch)?;
    replay.is_exact(&watch)?;
    world.report(&replay);
    world.end()
}

/// Another one each time, unless the environment has one.
fn seed() -> Result<u64> {
    let seed = match std::env::var("UVERBS_SEED") {
        Ok(seed) => seed.parse().context("UVERBS_SEED")?,
        Err(_) => {
            u64::from(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned())
                ^ rustix::time::clock_gettime(rustix::time::ClockId::Realtime)
                    .tv_nsec
                    .cast_unsigned()
        }
    };
    println!("    seed: {seed}");
    Ok(seed)
}

/// One device, whatever its instance.
struct Own {
    name: String,
    /// The netlink index; `None` for soft-RoCE.
    index: Option<u32>,
    away: bool,
}

/// The time in which an instance was certainly there.
struct Life {
    from: Time,
    to: Option<Time>,
}

struct World {
    random: Random,
    elsewhere: Option<Elsewhere>,
    clock: Reader,
    devices: Vec<Own>,
    fresh: u32,
    lives: BTreeMap<Ino, Life>,
    done: BTreeMap<&'static str, usize>,
    took: Duration,
}

impl World {
    fn new(seed: u64, clock: Reader) -> Result<Self> {
        let elsewhere = Some(Elsewhere::new()?);
        let (lives, done) = (BTreeMap::new(), BTreeMap::new());
        let random = Random::new(seed);
        let took = Duration::ZERO;
        Ok(Self { random, elsewhere, clock, devices: Vec::new(), fresh: 0, lives, done, took })
    }

    fn change(
        &mut self,
        wanted: usize,
        go_on: impl Fn() -> bool,
        mut between: impl FnMut(&mut Random) -> Result<()>,
    ) -> Result<()> {
        let started = self.clock.now();
        let mut changes = 0;
        while changes < wanted && go_on() {
            let time = self.clock.now().usable_since(&started);
            ensure!(time < LIMIT, "{changes} changes took {time:?}");
            let (what, count) = self.one()?;
            *self.done.entry(what).or_default() += 1;
            changes += count;
            between(&mut self.random)?;
            if self.random.below(16) == 0 {
                std::thread::sleep(Duration::from_millis(self.random.below(120)));
            }
        }
        self.took = started.at.elapsed();
        Ok(())
    }

    /// Makes a random change. Returns how many changes that is.
    fn one(&mut self) -> Result<(&'static str, usize)> {
        let rxe = self.devices.iter().filter(|device| device.index.is_none()).count();
        let chance = self.random.below(100);
        let at = match self.devices.len() as u64 {
            0 => return self.add(),
            some => self.random.below(some) as usize,
        };
        match chance {
            0..25 if self.devices.len() - rxe < MOST => self.add(),
            25..28 if rxe < MOST_RXE => self.add_rxe(),
            28..48 => self.remove(at),
            48..68 => self.replace(at),
            68..75 => self.travel(at),
            _ => self.rename(at),
        }
    }

    fn name(&mut self, prefix: &str) -> String {
        self.fresh += 1;
        format!("{prefix}{}", self.fresh)
    }

    fn add_hca(&mut self, name: &str) -> Result<u32> {
        let disassociate = self.random.below(2);
        let guid = 0xa0 + self.random.below(4);
        guest::hca(&format!("add name={name} guid={guid:016x} disassociate={disassociate}"))?;
        guest::hca_value(name, "index")?.parse().context("index")
    }

    fn add(&mut self) -> Result<(&'static str, usize)> {
        let name = self.name("h");
        let index = Some(self.add_hca(&name)?);
        self.devices.push(Own { name, index, away: false });
        self.look(self.clock.now())?;
        Ok(("add", 1))
    }

    fn add_rxe(&mut self) -> Result<(&'static str, usize)> {
        let name = self.name("x");
        let netdev = (0..).map(|at| format!("dx{at}")).find(|netdev| {
            let used = fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten();
            !used.into_iter().any(|dir| {
                fs::read_to_string(dir.path().join("parent"))
                    .is_ok_and(|parent| parent.trim() == netdev)
            })
        });
        guest::add_rxe(&name, &netdev.context("no free netdev")?)?;
        self.devices.push(Own { name, index: None, away: false });
        self.look(self.clock.now())?;
        Ok(("add rxe", 1))
    }

    /// Removes a device of this namespace. Others are brought back first.
    fn remove(&mut self, at: usize) -> Result<(&'static str, usize)> {
        let began = self.clock.now();
        let device = self.devices.swap_remove(at);
        match device.index {
            Some(index) => guest::hca(&format!("del-sync id={}", id_of(index)?))?,
            None => guest::delete_rxe(&device.name)?,
        }
        self.look(began)?;
        Ok(("remove", 1))
    }

    /// Another device of the same name takes its place.
    fn replace(&mut self, at: usize) -> Result<(&'static str, usize)> {
        let device = &self.devices[at];
        // The test HCA has the name that a device was added under, the core only the present one.
        let (Some(index), name, false) = (device.index, device.name.clone(), device.away) else {
            return self.rename(at);
        };
        let began = self.clock.now();
        guest::hca(&format!("del-sync id={}", id_of(index)?))?;
        self.devices[at].index = Some(self.add_hca(&name)?);
        self.look(began)?;
        Ok(("replace", 2))
    }

    /// Moves a device to another network namespace, or back.
    fn travel(&mut self, at: usize) -> Result<(&'static str, usize)> {
        let (elsewhere, device) = (self.elsewhere.as_ref(), &mut self.devices[at]);
        let Some(index) = device.index else { return self.rename(at) };
        let began = self.clock.now();
        let moved = elsewhere.context("no other namespace")?.set(index, !device.away)?;
        let what = match (moved, device.away) {
            // Its driver does not disassociate.
            (Err(libc::EOPNOTSUPP), _) => return Ok(("move refused", 0)),
            (Err(errno), _) => anyhow::bail!("moving {}: errno {errno}", device.name),
            (Ok(()), false) => "move away",
            (Ok(()), true) => "move back",
        };
        device.away = !device.away;
        self.look(began)?;
        Ok((what, 1))
    }

    fn rename(&mut self, at: usize) -> Result<(&'static str, usize)> {
        let name = self.name("r");
        let device = &mut self.devices[at];
        match (device.index, &self.elsewhere) {
            (None, _) => guest::rename(&device.name, &name)?,
            (Some(index), Some(elsewhere)) if device.away => {
                elsewhere.rename(index, &name)?.map_err(std::io::Error::from_raw_os_error)?;
            }
            (Some(index), _) => {
                rename(index, &name)?.map_err(std::io::Error::from_raw_os_error)?;
            }
        }
        device.name = name;
        Ok(("rename", 1))
    }

    /// Records which instances have come, and which had gone when the change began.
    fn look(&mut self, began: Time) -> Result<()> {
        let there: Vec<_> = fs::read_dir(SYS)?
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"uverbs"))
            .map(|entry| Ok(fs::metadata(entry.path())?.ino()))
            .collect::<Result<_>>()?;
        for (ino, life) in &mut self.lives {
            if life.to.is_none() && !there.contains(ino) {
                life.to = Some(began);
            }
        }
        let from = self.clock.now();
        for ino in there {
            self.lives.entry(ino).or_insert(Life { from, to: None });
        }
        ensure!(self.lives.values().filter(|life| life.to.is_none()).count() == self.devices.len());
        Ok(())
    }

    fn report(&self, replay: &Replay) {
        println!("    made in {:.1} s: {:?}", self.took.as_secs_f64(), self.done);
        println!("    reported: {:?}", replay.counts);
    }

    /// Requires that every instance was reported that was there for long.
    fn all_reported(&mut self, heard: &HashMap<Ino, Instant>) -> Result<()> {
        let (mut long, mut unheard, mut delays) = (0, Duration::ZERO, Vec::new());
        let mut missing = Vec::new();
        let now = self.clock.now();
        for (ino, life) in &self.lives {
            let to = life.to.unwrap_or(now);
            let (time, usable) = (to.at - life.from.at, to.usable_since(&life.from));
            long += usize::from(usable >= LONG);
            match heard.get(ino) {
                Some(at) => delays.push(at.saturating_duration_since(life.from.at)),
                None => unheard = unheard.max(time),
            }
            if usable >= LONG && !heard.contains_key(ino) {
                missing.push((ino, time, usable));
            }
        }
        delays.sort_unstable();
        println!(
            "    {} instances, {long} of them for {LONG:?} or longer; {} reported, at most {:?} after they were there; the longest unreported was there for {unheard:?}",
            self.lives.len(),
            heard.len(),
            delays.last().copied().unwrap_or_default(),
        );
        ensure!(missing.is_empty(), "there for long and not reported: {missing:?}");
        ensure!(long * 20 > self.lives.len(), "only {long} instances were there for long");
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
        self.elsewhere = None;
        Ok(())
    }
}

/// The test HCA's id of a device.
fn id_of(index: u32) -> Result<String> {
    let (state, index) = (guest::hca_state()?, format!("index={index}"));
    let line = state
        .lines()
        .find(|line| line.split(' ').any(|word| word == index) && line.contains("state=live"));
    let line = line.with_context(|| format!("no live {index}"))?;
    let id = line.split(' ').find_map(|word| word.strip_prefix("id="));
    Ok(id.context("id")?.to_owned())
}
