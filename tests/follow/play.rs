//! One world, its program, and the judgement of what the watch has reported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use uverbs::sim::{DeviceSpec, Machine, Verdict};
use uverbs::{Change, Devices, Host, Registry, ResyncReason, Watch};

use crate::happens::Happening;

/// What comes before which calls, counted from 0.
pub(crate) type Plan = Vec<(u64, Happening)>;

/// What is wrong, if anything is.
pub(crate) type Judgement = Result<(), String>;

/// A watch reports what was lost without a sign after this long.
const SAFETY: Duration = Duration::from_secs(2);
/// What it heard, or lost with a sign, after this long.
const PROMPT: Duration = Duration::from_millis(101);
/// A device is ready this long after it was added, at the latest.
const READY: Duration = Duration::from_secs(1);
/// More calls than this in an execution are a spin.
const TOO_MANY: u64 = 2_000;

/// A world before anything happens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) devices: usize,
    pub(crate) disassociates: bool,
    /// How many messages fit into the socket: none, one, or as many as come.
    pub(crate) room: usize,
    /// Events of the subsystem `infiniband_verbs` do not arrive.
    pub(crate) in_user_namespace: bool,
    /// Root is not mapped in the program's user namespace.
    pub(crate) root_unmapped: bool,
    /// There is no uevent socket.
    pub(crate) is_deaf: bool,
    /// One name a page, in reverse order.
    pub(crate) small_pages: bool,
    /// The program begins with an empty list.
    pub(crate) since_nothing: bool,
    /// The program lists between the changes.
    pub(crate) lists: bool,
    /// The program ends as soon as the watch has to be right.
    pub(crate) is_brief: bool,
}

impl Setup {
    /// The world with that many devices in which nothing is unusual.
    pub(crate) fn with(devices: usize) -> Self {
        Self {
            devices,
            disassociates: true,
            room: 4096,
            in_user_namespace: false,
            root_unmapped: false,
            is_deaf: false,
            small_pages: false,
            since_nothing: false,
            lists: false,
            is_brief: false,
        }
    }

    /// All worlds: the values at the boundaries of each parameter, not all combinations.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let plain = Self::with(0);
        let with = [
            plain,
            Self { is_brief: true, ..plain },
            Self { is_brief: true, room: 0, ..plain },
            Self { is_brief: true, since_nothing: true, lists: true, ..plain },
            Self { room: 0, ..plain },
            Self { room: 1, ..plain },
            Self { room: 1, small_pages: true, lists: true, ..plain },
            Self { in_user_namespace: true, ..plain },
            Self { is_deaf: true, ..plain },
            Self { is_brief: true, root_unmapped: true, ..plain },
            Self { small_pages: true, since_nothing: true, ..plain },
            Self { lists: true, ..plain },
            Self { lists: true, in_user_namespace: true, ..plain },
        ];
        let kinds = [(0, true), (1, true), (2, true), (2, false)];
        kinds.into_iter().flat_map(move |(devices, disassociates)| {
            with.map(|setup| Self { devices, disassociates, ..setup })
        })
    }

    /// The worlds for the deeper searches.
    pub(crate) fn is_plain(self) -> bool {
        self.devices == 2
            && self.disassociates
            && !self.small_pages
            && !self.is_deaf
            && !self.root_unmapped
    }

    /// Runs the program with a plan. Returns the judgement and the number of calls.
    pub(crate) fn execute(self, plan: &[(u64, Happening)]) -> (Judgement, u64) {
        let machine = Machine::new();
        machine.set_uevent_room(self.room);
        machine.set_in_user_namespace(self.in_user_namespace);
        machine.set_root_uid(if self.root_unmapped { 65_534 } else { 0 });
        machine.deny_uevents(self.is_deaf.then_some(1));
        if self.small_pages {
            machine.set_entries_a_page(1);
            machine.with(|world| world.set_lists_reversed(true));
        }
        let mut first = None;
        for at in 0..self.devices {
            let spec = DeviceSpec::new(format!("rxe{at}")).disassociates(self.disassociates);
            let id = machine.add(spec).expect("there is room");
            first = first.or(Some(id));
        }
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        // With a provider, or an open device, nothing changes here: a watch opens nothing.
        let before = registry.devices().expect("a list");
        let state = state_of(&before);
        let idle = machine.open_handles();

        let start = machine.calls() + 1;
        let last = Arc::new(Mutex::new(machine.clock()));
        let (plan_of_hook, changed) = (plan.to_vec(), last.clone());
        machine.on_call(move |world, call| {
            let number = call.ordinal() - start;
            assert!(number < TOO_MANY, "it spins: {plan_of_hook:?}");
            let mut verdict = Verdict::Continue;
            for (at, happening) in &plan_of_hook {
                if number == at + 1 {
                    happening.end(world);
                    *changed.lock().expect("no panic") = world.clock();
                }
                if number == *at {
                    verdict = happening.happen(world, first, call.kind());
                    *changed.lock().expect("no panic") = world.clock();
                }
            }
            verdict
        });
        let mut program = Program { setup: self, machine: &machine, registry, plan, start, last };
        let judgement = program.run(&before, state);
        let calls = machine.calls() + 1 - start;
        machine.clear_hook();
        drop(program);
        drop(before);
        let left = machine.open_handles();
        // The roots of the host are gone with the registry.
        if left >= idle && judgement.is_ok() {
            return (Err(format!("{left} descriptors are left open")), calls);
        }
        (judgement, calls)
    }
}

struct Program<'a> {
    setup: Setup,
    machine: &'a Machine,
    registry: Registry,
    plan: &'a [(u64, Happening)],
    /// The ordinal of the program's first call.
    start: u64,
    /// When something last happened.
    last: Arc<Mutex<Duration>>,
}

/// The devices as the changes show them: by the inode of the directory, number and name.
type State = BTreeMap<u64, (u32, Vec<u8>)>;

fn state_of(devices: &Devices) -> State {
    let entry = |device: &uverbs::Device| {
        (device.instance().ino, (device.uverbs_number(), device.name().as_bytes().to_vec()))
    };
    devices.iter().map(entry).collect()
}

/// The replayed stream.
struct Replay {
    state: State,
    added: BTreeSet<u64>,
    removed: BTreeSet<u64>,
    ready: BTreeSet<u64>,
    /// Events were reported as missing.
    misses_events: bool,
}

impl Program<'_> {
    fn run(&mut self, before: &Devices, state: State) -> Judgement {
        let has_fault = self.plan.iter().any(|(_, happening)| happening.is_fault());
        let mut watch = None;
        for _ in 0..3 {
            let begun = match self.setup.since_nothing {
                true => self.registry.watch_since(&Devices::default()),
                false => self.registry.watch_since(before),
            };
            match begun {
                Ok(begun) => {
                    watch = Some(begun);
                    break;
                }
                Err(error) if !has_fault && error.kind() != uverbs::ErrorKind::Unstable => {
                    return Err(format!("no watch: {error}"));
                }
                Err(_) => {}
            }
        }
        let Some(mut watch) = watch else { return Err("no watch".into()) };
        let state = match self.setup.since_nothing {
            true => State::new(),
            false => state,
        };
        let mut replay = Replay {
            state,
            added: BTreeSet::new(),
            removed: BTreeSet::new(),
            ready: BTreeSet::new(),
            misses_events: false,
        };
        // Long enough for every call of the watch, and for it to report missing events.
        for _ in 0..if self.setup.is_brief { 0 } else { 3 } {
            self.follow(&mut watch, &mut replay, Duration::from_millis(1))?;
            if self.setup.lists {
                self.list()?;
            }
            self.follow(&mut watch, &mut replay, SAFETY)?;
        }
        // Whatever is still to come of the plan comes now, with the last calls.
        self.follow(&mut watch, &mut replay, PROMPT)?;
        self.judge(&mut watch, &mut replay)?;
        self.list()
    }

    /// Reads the watch for that long.
    fn follow(&self, watch: &mut Watch, replay: &mut Replay, long: Duration) -> Judgement {
        let end = self.machine.clock() + long;
        loop {
            let left = end.saturating_sub(self.machine.clock());
            match watch.wait(Some(left)) {
                Ok(Some(change)) => replay.apply(change)?,
                Ok(None) => return Ok(()),
                Err(error) => self.accept(&error)?,
            }
        }
    }

    fn accept(&self, error: &uverbs::Error) -> Judgement {
        let is_caused = self.plan.iter().any(|(_, happening)| happening.is_fault());
        match is_caused || error.kind() == uverbs::ErrorKind::Unstable {
            true => Ok(()),
            false => Err(format!("an error without a cause: {error}")),
        }
    }

    fn truth(&self) -> State {
        let listed = self.machine.listed().into_iter();
        listed.map(|(number, ino, name)| (ino, (number, name))).collect()
    }

    /// Compares with the kernel, as soon as the watch has to be right.
    fn judge(&self, watch: &mut Watch, replay: &mut Replay) -> Judgement {
        let is_silent = self.setup.in_user_namespace
            || self.setup.is_deaf
            || self.plan.iter().any(|(_, happening)| happening.is_silent() || happening.is_fault());
        let limit = if is_silent { SAFETY + PROMPT } else { PROMPT };
        // More may happen meanwhile.
        let last = || *self.last.lock().expect("no panic");
        loop {
            let before = last();
            let left = (before + limit).saturating_sub(self.machine.clock());
            self.follow(watch, replay, left)?;
            if last() == before {
                break;
            }
        }
        let truth = self.truth();
        if replay.state != truth {
            return Err(format!("stale: {:?}, not {truth:?}", replay.state));
        }
        let is_unheard = |happening: &Happening| {
            happening.is_silent() || happening.is_slow() && !happening.is_fault()
        };
        let may_miss =
            self.setup.in_user_namespace || self.plan.iter().any(|(_, it)| is_unheard(it));
        if replay.misses_events && !may_miss {
            return Err("events that were heard are reported as missing".into());
        }
        let before_ready = last();
        if state_of(watch.devices()) != truth {
            return Err("its own list is stale".into());
        }
        let is_slow = self.plan.iter().any(|(_, happening)| happening.is_slow());
        self.follow(watch, replay, if is_slow { 9 * READY } else { READY })?;
        if last() > before_ready {
            return Ok(());
        }
        // Those of another namespace, and those whose registration is not complete, are not ready.
        let ready: BTreeSet<u64> = self.machine.with(|world| {
            let listed = world.listed().into_iter();
            let is_ready = |number: u32| {
                let id = world.instance_of(number);
                id.is_some_and(|id| world.is_ready(id))
            };
            listed.filter(|(number, ..)| is_ready(*number)).map(|(_, ino, _)| ino).collect()
        });
        let expected: BTreeSet<u64> = replay.added.intersection(&ready).copied().collect();
        let missing: Vec<_> = expected.difference(&replay.ready).collect();
        if !missing.is_empty() {
            return Err(format!("never ready: {missing:?} of {expected:?}"));
        }
        Ok(())
    }

    /// A list while the watch is attached is right after a second, and at once where events arrive.
    fn list(&self) -> Judgement {
        let is_silent = self.setup.in_user_namespace
            || self.plan.iter().any(|(_, happening)| happening.is_silent() || happening.is_fault());
        let before = self.truth();
        let next_call = || self.machine.calls() + 1 - self.start;
        let first_call = next_call();
        if is_silent {
            self.machine.advance(Duration::from_secs(1));
        }
        let listed = match self.registry.devices() {
            Ok(listed) => listed,
            Err(error) => return self.accept(&error),
        };
        // A device that could not be read is reported as a fault.
        if let Some(fault) = listed.faults().next() {
            return self.accept(fault);
        }
        let listed = state_of(&listed);
        // What changes during the call may be in it or not, even if it changes back.
        let is_during = |at: &u64| (first_call..next_call()).contains(at);
        if self.plan.iter().any(|(at, _)| is_during(at)) {
            return Ok(());
        }
        let after = self.truth();
        let is_of = |state: &State| listed.iter().all(|(ino, _)| state.contains_key(ino));
        let has = |state: &State| {
            state.iter().all(|(ino, entry)| {
                listed.get(ino) == Some(entry) || after.get(ino) != before.get(ino)
            })
        };
        let is_right = before != after || (is_of(&before) && has(&before));
        match is_right {
            true => Ok(()),
            false => Err(format!("a list is stale: {listed:?}, not {before:?}")),
        }
    }
}

impl Replay {
    fn add(&mut self, device: &uverbs::Device, name: &uverbs::Name) -> Judgement {
        let ino = device.instance().ino;
        let entry = (device.uverbs_number(), name.as_bytes().to_vec());
        match self.added.insert(ino) && self.state.insert(ino, entry).is_none() {
            true => Ok(()),
            false => Err(format!("added twice: {device}")),
        }
    }

    fn remove(&mut self, device: &uverbs::Device) -> Judgement {
        let ino = device.instance().ino;
        match self.state.remove(&ino).is_some() && self.removed.insert(ino) {
            true => Ok(()),
            false => Err(format!("removed, but not there: {device}")),
        }
    }

    fn apply(&mut self, change: Change) -> Judgement {
        match change {
            Change::Added { device, name, .. } => self.add(&device, &name),
            Change::Removed { device, .. } => self.remove(&device),
            Change::Replaced { old, new, name, .. } => {
                self.remove(&old)?;
                self.add(&new, &name)
            }
            Change::Renamed { device, from, to, .. } => {
                let entry = self.state.get_mut(&device.instance().ino);
                match entry {
                    Some((_, name)) if *name == from.as_bytes() => {
                        *name = to.as_bytes().to_vec();
                        Ok(())
                    }
                    entry => Err(format!("renamed from {from} to {to}, but it is {entry:?}")),
                }
            }
            Change::Ready { device, .. } => {
                let ino = device.instance().ino;
                match self.added.contains(&ino) && self.ready.insert(ino) {
                    true => Ok(()),
                    false => Err(format!("ready twice, or not added: {device}")),
                }
            }
            Change::Resynchronised { reason, .. } => {
                self.misses_events |= reason == ResyncReason::EventsMissing;
                Ok(())
            }
            other => Err(format!("unknown: {other:?}")),
        }
    }
}
