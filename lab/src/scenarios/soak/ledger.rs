//! What the threads of the soak record, and its evaluation.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use uverbs::{Error, ErrorKind};

use crate::guest;

/// A device instance, as the test HCA has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Truth {
    pub(super) index: u32,
    pub(super) guid: u64,
}

/// What an opened context reported about itself, and the directory that was listed.
#[derive(Debug)]
pub(super) struct Observation {
    pub(super) ino: u64,
    pub(super) index: Option<u32>,
    /// `None` if the device was gone before it could be queried.
    pub(super) guid: Option<u64>,
    pub(super) how: &'static str,
}

#[derive(Default)]
pub(super) struct Ledger {
    pub(super) stop: AtomicBool,
    /// How many replacements have begun, which limits them, and how many are done.
    begun: AtomicU64,
    done: AtomicU64,
    /// By the inode number of the directory in /sys.
    truth: Mutex<HashMap<u64, Truth>>,
    observations: Mutex<Vec<Observation>>,
    controls: Mutex<Vec<Observation>>,
    opened: AtomicU64,
    refused: AtomicU64,
    counts: Mutex<BTreeMap<String, u64>>,
    /// The first error of each kind.
    samples: Mutex<BTreeMap<String, String>>,
    wrong: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().expect("no panic under a lock")
}

impl Ledger {
    pub(super) fn know(&self, ino: u64, truth: Truth) -> Result<()> {
        let known = lock(&self.truth).insert(ino, truth);
        ensure!(known.is_none(), "inode {ino} was {known:?} before");
        Ok(())
    }

    /// Whether another replacement is to be made.
    pub(super) fn begin(&self, of: u64) -> bool {
        !self.stop.load(Relaxed) && self.begun.fetch_add(1, Relaxed) < of
    }

    /// A replacement was made. After the last one, everything is done.
    pub(super) fn end(&self, of: u64) {
        if self.done.fetch_add(1, Relaxed) + 1 == of {
            self.stop.store(true, Relaxed);
        }
    }

    pub(super) fn replaced(&self) -> u64 {
        self.done.load(Relaxed)
    }

    pub(super) fn count(&self, what: String) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    pub(super) fn opened(&self, way: &str) {
        self.opened.fetch_add(1, Relaxed);
        self.count(format!("{way}: proved"));
    }

    pub(super) fn refused(&self, way: &str, error: &Error) {
        self.refused.fetch_add(1, Relaxed);
        let kind = format!("{way}: {:?}", error.kind());
        lock(&self.samples).entry(kind.clone()).or_insert_with(|| error.to_string());
        self.count(kind);
        // Errors that the coming and going of devices does not explain.
        if let ErrorKind::Malformed | ErrorKind::Unsupported | ErrorKind::PermissionDenied =
            error.kind()
        {
            self.wrong(format!("{way}: {error}"));
        }
    }

    pub(super) fn wrong(&self, what: String) {
        lock(&self.wrong).push(what);
    }

    pub(super) fn observe(&self, observation: Observation) {
        lock(&self.observations).push(observation);
    }

    pub(super) fn control(&self, observation: Observation) {
        lock(&self.controls).push(observation);
    }

    /// Judges and prints the records.
    pub(super) fn report(self, elapsed: Duration) -> Result<()> {
        let truth = lock(&self.truth);
        let judge = |seen: &Observation| match truth.get(&seen.ino) {
            Some(truth) => {
                seen.guid.is_none_or(|guid| guid == truth.guid)
                    && seen.index.is_none_or(|index| index == truth.index)
            }
            None => false,
        };
        let mut wrong = std::mem::take(&mut *lock(&self.wrong));
        let observations = lock(&self.observations);
        for seen in observations.iter().filter(|seen| !judge(seen)) {
            let Observation { ino, index, guid, how } = seen;
            let wanted = truth.get(ino);
            wrong.push(format!("{how}: index {index:?}, GUID {guid:?}, listed {wanted:?}"));
        }
        let controls = lock(&self.controls);
        let caught = controls.iter().filter(|seen| !judge(seen)).count();

        for (what, count) in &*lock(&self.counts) {
            println!("    {what}: {count}");
        }
        for (kind, sample) in &*lock(&self.samples) {
            println!("    e.g. {kind}: {sample}");
        }
        let (replaced, opened) = (self.replaced(), self.opened.load(Relaxed));
        let opens = opened + self.refused.load(Relaxed);
        let seconds = elapsed.as_secs_f64();
        let rate = |count: u64| count as f64 / seconds;
        println!("    {replaced} replacements in {seconds:.1} s, {:.1}/s", rate(replaced));
        println!("    {opens} opens, {:.1}/s; {opened} proved", rate(opens));
        println!("    {} opened contexts checked: {} wrong", observations.len(), wrong.len());
        println!("    control: {} opens by number alone: {caught} wrong", controls.len());
        wrong.truncate(20);
        ensure!(wrong.is_empty(), "wrong:\n{}", wrong.join("\n"));
        ensure!(opened > 0 && 3 * opened >= opens, "fewer than a third of the opens succeed");
        ensure!(caught > 0, "the control was never on another device: the soak proves nothing");
        Ok(())
    }
}

/// A line of the test HCA's state.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) id: u64,
    pub(super) name: String,
    pub(super) live: bool,
    pub(super) index: u32,
    pub(super) guid: u64,
    pub(super) contexts: u64,
    pub(super) allocs: u64,
}

/// The test HCA's devices.
pub(super) fn state() -> Result<Vec<Line>> {
    let text = guest::hca_state()?;
    text.lines().map(|line| parse(line).with_context(|| line.to_owned())).collect()
}

fn parse(line: &str) -> Result<Line> {
    let value = |key: &str| {
        let mut words = line.split(' ').filter_map(|word| word.split_once('='));
        words.find(|(found, _)| *found == key).map(|(_, value)| value).context("missing value")
    };
    Ok(Line {
        id: value("id")?.parse()?,
        name: value("name")?.to_owned(),
        live: value("state")? == "live",
        index: value("index")?.parse()?,
        guid: u64::from_str_radix(value("guid")?, 16)?,
        contexts: value("contexts")?.parse()?,
        allocs: value("allocs")?.parse()?,
    })
}

/// Pseudo-random numbers: xorshift.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    pub(super) fn one_in(&mut self, of: u64) -> bool {
        self.below(of) == 0
    }

    /// Sleeps up to `most` milliseconds.
    pub(super) fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_micros(self.below(most * 1000)));
    }
}
