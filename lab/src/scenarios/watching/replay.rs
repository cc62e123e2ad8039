//! The changes of a watch, applied strictly.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Change, Devices, Registry, Watch};

/// Nothing is left to report after this long without a change: longer than the interval of the safety sweep.
pub(super) const SETTLED: Duration = Duration::from_millis(2500);

/// One instance of a device: its uverbs directory's inode number, which no other has until the next boot.
pub(super) type Ino = u64;

/// What the changes lead to.
#[derive(Debug)]
pub(super) struct Replay {
    /// By uverbs number.
    devices: BTreeMap<u32, (Ino, String)>,
    /// Every instance that was listed or added.
    pub(super) seen: HashSet<Ino>,
    pub(super) ready: HashSet<Ino>,
    /// How many changes of each kind were applied.
    pub(super) counts: BTreeMap<&'static str, usize>,
}

impl Replay {
    pub(super) fn new(devices: &Devices) -> Self {
        let devices = state(devices);
        let seen = devices.values().map(|(ino, _)| *ino).collect();
        Self { devices, seen, ready: HashSet::new(), counts: BTreeMap::new() }
    }

    /// Applies a change. It is an error if the change does not fit.
    pub(super) fn apply(&mut self, change: &Change) -> Result<()> {
        let kind = match change {
            Change::Added { device, name, .. } => {
                let (number, ino) = (device.uverbs_number(), device.instance().ino);
                let before = self.devices.insert(number, (ino, name.to_string()));
                ensure!(before.is_none(), "{change}: {before:?} has the number");
                ensure!(self.seen.insert(ino), "{change}: a second time");
                "added"
            }
            Change::Ready { device, .. } => {
                let ino = device.instance().ino;
                ensure!(self.there(device.uverbs_number()) == Some(ino), "{change}: not there");
                ensure!(self.ready.insert(ino), "{change}: a second time");
                "ready"
            }
            Change::Removed { device, .. } => {
                let gone = self.devices.remove(&device.uverbs_number()).map(|(ino, _)| ino);
                ensure!(gone == Some(device.instance().ino), "{change}: {gone:?} was there");
                "removed"
            }
            Change::Replaced { old, new, name, .. } => {
                let (number, ino) = (new.uverbs_number(), new.instance().ino);
                let gone = self.devices.insert(number, (ino, name.to_string()));
                let gone = gone.map(|(ino, _)| ino);
                ensure!(gone == Some(old.instance().ino), "{change}: {gone:?} was there");
                ensure!(self.seen.insert(ino), "{change}: a second time");
                "replaced"
            }
            Change::Renamed { device, from, to, .. } => {
                let found = self.devices.get_mut(&device.uverbs_number());
                let (ino, name) = found.with_context(|| format!("{change}: not there"))?;
                let expected = (device.instance().ino, from.to_string());
                ensure!((*ino, name.clone()) == expected, "{change}: {ino} {name} is there");
                *name = to.to_string();
                "renamed"
            }
            Change::Resynchronised { reason, .. } => reason.name(),
            other => bail!("an unknown change: {other:?}"),
        };
        *self.counts.entry(kind).or_default() += 1;
        Ok(())
    }

    fn there(&self, number: u32) -> Option<Ino> {
        self.devices.get(&number).map(|(ino, _)| *ino)
    }

    pub(super) fn count(&self, kind: &str) -> usize {
        self.counts.get(kind).copied().unwrap_or(0)
    }

    /// Applies everything that a watch reports until nothing has come for a while.
    pub(super) fn settle(&mut self, watch: &mut Watch) -> Result<()> {
        while let Some(change) = watch.wait(Some(SETTLED))? {
            self.apply(&change)?;
        }
        Ok(())
    }

    /// Requires that the changes have led to the kernel's state, as a new registry lists it.
    pub(super) fn is_exact(&self, watch: &Watch) -> Result<()> {
        let (fresh, own) =
            (state(&crate::scenarios::expect::registry()?.devices()?), state(watch.devices()));
        ensure!(self.devices == fresh, "replayed {:?}\nlisted {fresh:?}", self.devices);
        ensure!(own == fresh, "the watch's own list {own:?}\nlisted {fresh:?}");
        Ok(())
    }
}

/// A list by number: instances and names.
fn state(devices: &Devices) -> BTreeMap<u32, (Ino, String)> {
    let state = devices
        .iter()
        .map(|device| (device.uverbs_number(), (device.instance().ino, device.name().to_string())));
    state.collect()
}

/// A watch from now on, with the replay of its changes.
pub(super) fn watch(registry: &Registry) -> Result<(Watch, Replay)> {
    let watch = registry.watch()?;
    let replay = Replay::new(watch.devices());
    Ok((watch, replay))
}

/// The next change that is wanted, and how many came before it. The others are applied as well.
pub(super) fn next(
    watch: &mut Watch,
    replay: &mut Replay,
    limit: Duration,
    is_wanted: impl Fn(&Change) -> bool,
) -> Result<Change> {
    let end = std::time::Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(std::time::Instant::now());
        let change = watch.wait(Some(left))?;
        let change = change.with_context(|| format!("it did not come within {limit:?}"))?;
        replay.apply(&change)?;
        if is_wanted(&change) {
            return Ok(change);
        }
    }
}

pub(super) fn is_added(change: &Change) -> bool {
    matches!(change, Change::Added { .. } | Change::Replaced { .. })
}

pub(super) fn is_removed(change: &Change) -> bool {
    matches!(change, Change::Removed { .. })
}

pub(super) fn is_renamed(change: &Change) -> bool {
    matches!(change, Change::Renamed { .. })
}
