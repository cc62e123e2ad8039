//! One execution: a world, a program, and a plan of events.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use uverbs::sim::{Call, DeviceId, Machine, NodeKind, Verdict, World};
use uverbs::{
    Allocation, Context, ContextClaim, Device, DeviceProvider, DriverId, ErrorKind, Host, Match,
    PinnedView, Provider, Registry, Result,
};

use crate::happens::{Class, Event, LONG_PAGE, NAME, PAGE, PROGRAM, spec};
use crate::ibverbs::Ibverbs;

/// More kernel calls than any of the programs needs, including all retries. A program that makes more does not end.
const TOO_MANY: u64 = 2_000;

/// The state of the world before the program starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    /// Whether the driver disassociates open contexts when its device is removed.
    pub(crate) disassociates: bool,
    /// Whether the node is hand-made, and the kernel has a PD of its own on the device.
    pub(crate) static_node: bool,
    /// Whether the program holds the device open, through that node.
    pub(crate) held: bool,
    /// Whether the clock of inodes stands still: everything happens within one tick.
    pub(crate) one_tick: bool,
    /// Contexts on the device, each with a PD.
    pub(crate) crowd: Crowd,
    /// Whether the node is hand-made and leads to an older device of the same GUID, which somebody holds.
    pub(crate) stale: bool,
    /// Whether the device has a provider that allocates a context and a PD of its own before each allocation.
    pub(crate) meddles: bool,
    /// Whether the library has opened the device before, so that it guesses a number.
    pub(crate) known: Option<Next>,
}

/// The owner of the context with the number that the library guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nobody.
    Free,
    /// The program's own thread, which allocated it earlier.
    Own,
    /// Another thread, and the program's own thread has the next number.
    Others,
}

/// Contexts that exist before the program starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// How many contexts other threads have.
    pub(crate) others: usize,
    /// The positions of the program's own contexts in the list.
    pub(crate) own: &'static [usize],
    /// Whether each page of a list is short, however long the buffers are.
    pub(crate) short_pages: bool,
}

impl Crowd {
    fn gather(self, machine: &Machine, id: DeviceId) {
        machine.set_contexts_a_page(PAGE);
        machine.set_short_pages(self.short_pages);
        let count = self.others + self.own.len();
        for place in 0..count {
            // Positions past the end are at the end.
            let is_own = self.own.contains(&place)
                || (place + 1 == count && self.own.iter().any(|own| *own >= count));
            let ctxn = match is_own {
                true => machine.context_by(id, PROGRAM),
                false => machine.foreign_context(id),
            };
            let ctxn = ctxn.expect("a context");
            let thread = if is_own { PROGRAM } else { PROGRAM + 5000 + place as u32 };
            machine.pd_by(id, ctxn, thread).expect("and a PD");
        }
    }
}

/// The number in the name of a node that nobody else uses.
const ASIDE: u32 = 7;

/// The last position.
const LAST: usize = usize::MAX;

impl Setup {
    /// The worlds that differ in the driver, the node, the clock and, roughly, the crowd.
    fn base() -> impl Iterator<Item = Self> {
        (0..32).map(|bits| Self {
            disassociates: bits & 1 != 0,
            static_node: bits & 2 != 0,
            held: bits & 4 != 0,
            one_tick: bits & 16 != 0,
            crowd: Crowd { others: if bits & 8 != 0 { 5 } else { 0 }, ..Crowd::default() },
            ..Self::default()
        })
    }

    /// The worlds with a wrong device within reach, whose lists exactly fill their buffers, or nearly do: the
    /// library's first buffer, a page, and two pages, of both lengths.
    fn boundaries() -> impl Iterator<Item = Self> {
        // The first buffer holds one.
        const SHORT: [usize; 6] = [0, 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1];
        const LONG: [usize; 4] = [LONG_PAGE - 1, LONG_PAGE, LONG_PAGE + 1, 2 * LONG_PAGE];
        const OWN_SHORT: [&[usize]; 6] = [&[], &[0], &[LAST], &[PAGE - 1], &[PAGE], &[0, LAST]];
        const OWN_LONG: [&[usize]; 6] =
            [&[], &[0], &[LAST], &[LONG_PAGE - 1], &[LONG_PAGE], &[0, LAST]];
        let crowds = |others: &'static [usize], own: &'static [&'static [usize]], short_pages| {
            others.iter().flat_map(move |&others| {
                // A position past the end is the last one, which is covered already.
                let differs = move |own: &&&'static [usize]| match own {
                    [place] => *place == LAST || *place < others,
                    _ => true,
                };
                own.iter().filter(differs).map(move |&own| Crowd { others, own, short_pages })
            })
        };
        let crowds = crowds(&SHORT, &OWN_SHORT, true).chain(crowds(&LONG, &OWN_LONG, false));
        let stale = Self { static_node: true, stale: true, ..Self::default() };
        let meddles = [0, PAGE + 1].into_iter().map(move |others| Self {
            crowd: Crowd { others, ..Crowd::default() },
            meddles: true,
            ..stale
        });
        let right = [false, true].map(|disassociates| Self {
            disassociates,
            meddles: true,
            ..Self::default()
        });
        // A known number: with the wrong device within reach, and with the right one.
        let known = [Next::Free, Next::Own, Next::Others].into_iter().flat_map(move |next| {
            [stale, Self::default()].into_iter().flat_map(move |world| {
                [false, true].map(|meddles| Self { known: Some(next), meddles, ..world })
            })
        });
        crowds.map(move |crowd| Self { crowd, ..stale }).chain(meddles).chain(right).chain(known)
    }

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::base().chain(Self::boundaries())
    }

    /// Whether a wrong device is within reach, or a provider does something that deceives a rule that counts
    /// contexts.
    pub(crate) fn is_adverse(self) -> bool {
        self.stale || self.meddles || self.known.is_some()
    }

    /// Whether others, or the program itself, have contexts on the device.
    pub(crate) fn is_crowded(self) -> bool {
        self.crowd.others > 0 || !self.crowd.own.is_empty()
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.disassociates { "disassociating" } else { "not disassociating" })?;
        let more = [
            (self.static_node, "static node"),
            (self.stale, "which leads to an older device"),
            (self.held, "held"),
            (self.crowd.short_pages, "short pages"),
            (self.one_tick, "one tick"),
            (self.meddles, "a provider with contexts of its own"),
        ];
        more.iter().filter(|(is, _)| *is).try_for_each(|(_, what)| write!(f, ", {what}"))?;
        match self.known {
            None => {}
            Some(Next::Free) => f.write_str(", the next number known")?,
            Some(Next::Own) => f.write_str(", the next number known, and the program has it")?,
            Some(Next::Others) => f.write_str(", the next number known, and others have it")?,
        }
        if self.crowd.others > 0 {
            write!(f, ", contexts of others: {}", self.crowd.others)?;
        }
        for place in self.crowd.own {
            match *place {
                LAST => f.write_str(", one of the program at the end")?,
                place => write!(f, ", one of the program at {place}")?,
            }
        }
        Ok(())
    }
}

/// The program that is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Lists, and opens the device that then has uverbs0, which may be a replacement.
    ListAndOpen,
    /// Opens the device that was listed before anything happened.
    Open,
    /// Verifies a descriptor that somebody else opened through the node.
    Verify,
    /// The same, and in between also allocates a context and a PD on the right device.
    VerifyKeeping,
    /// Queries netlink about the device.
    Query,
    /// Has opened it before, and takes over another descriptor by the claim of that context.
    Adopt,
    /// Lists again, and opens.
    ListAgain,
    /// On libibverbs, under the guard: opens by a handle that was listed before anything happened.
    Guarded,
    /// The same, and the guard did not see the list.
    GuardedUnseen,
    /// Lists again, and opens by the name.
    GuardedAgain,
    /// The same, and the guard sees no list.
    GuardedAgainUnseen,
    /// Lists again, and opens by the GUID.
    GuardedByGuid,
}

/// Programs on libibverbs under the guard.
pub(crate) const GUARDED: [Program; 5] = [
    Program::Guarded,
    Program::GuardedUnseen,
    Program::GuardedAgain,
    Program::GuardedAgainUnseen,
    Program::GuardedByGuid,
];

pub(crate) const PROGRAMS: [Program; 7] = [
    Program::ListAndOpen,
    Program::Open,
    Program::Verify,
    Program::VerifyKeeping,
    Program::Query,
    Program::Adopt,
    Program::ListAgain,
];

impl Program {
    /// Whether it gets to one device by looking at the host by itself.
    pub(crate) fn binds(self) -> bool {
        !matches!(self, Self::Adopt | Self::ListAgain) && !self.is_guarded()
    }

    pub(crate) fn is_guarded(self) -> bool {
        GUARDED.contains(&self)
    }

    /// Whether it is on libibverbs, and the guard sees its lists.
    pub(crate) fn is_list_seen(self) -> bool {
        matches!(self, Self::Guarded | Self::GuardedAgain | Self::GuardedByGuid)
    }

    /// Whether it is on libibverbs, and lists again before it opens.
    pub(crate) fn lists_again(self) -> bool {
        matches!(self, Self::GuardedAgain | Self::GuardedAgainUnseen | Self::GuardedByGuid)
    }
}

/// A program in a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Play {
    pub(crate) program: Program,
    pub(crate) setup: Setup,
}

impl fmt::Display for Play {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {}", self.program, self.setup)
    }
}

/// The events of one execution, each before the call with that number, in order.
pub(crate) type Plan<'a> = &'a [(u64, &'static Event)];

/// A plan, for people to read.
pub(crate) struct Show<'a>(pub(crate) Plan<'a>);

impl fmt::Display for Show<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> =
            self.0.iter().map(|(at, event)| format!("{} before call {at}", event.name)).collect();
        f.write_str(&parts.join(", "))
    }
}

/// A provider that keeps a context and a PD of its own on each device for which it is called.
struct Meddler {
    machine: Machine,
    matches: [Match; 1],
}

impl Meddler {
    fn on(machine: &Machine) -> Arc<dyn Provider> {
        Arc::new(Self { machine: machine.clone(), matches: [Match::Driver(DriverId::RXE)] })
    }
}

impl Provider for Meddler {
    fn name(&self) -> &str {
        "meddler"
    }

    fn matches(&self) -> &[Match] {
        &self.matches
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        0..=9
    }

    fn attach(&self, _device: &PinnedView<'_>) -> Result<Box<dyn DeviceProvider>> {
        Ok(Box::new(Self { machine: self.machine.clone(), matches: self.matches.clone() }))
    }
}

impl DeviceProvider for Meddler {
    fn allocation(&self, _device: &PinnedView<'_>) -> Result<Allocation> {
        self.machine.with(|world| {
            if let Some(id) = world.instance_of(0) {
                allocate_aside(world, id);
            }
        });
        Ok(Allocation::default())
    }
}

/// The program's own thread allocates a context and a PD through a separate descriptor.
fn allocate_aside(world: &mut World, id: DeviceId) {
    if let Some(ctxn) = world.context_by(id, PROGRAM) {
        world.pd_by(id, ctxn, PROGRAM);
    }
}

/// The result of one execution.
pub(crate) struct Execution {
    /// The kind of the error, if there was one.
    pub(crate) result: std::result::Result<(), ErrorKind>,
    /// Whether it was bound to, or reported, another instance than the listed one; or reported the right one as
    /// wrong, or a live device as removed.
    pub(crate) wrong: bool,
}

impl Execution {
    pub(crate) fn outcome(&self) -> String {
        match self.result {
            Ok(()) => "ok".to_owned(),
            Err(kind) => format!("{kind:?}"),
        }
    }
}

impl Play {
    /// Runs it. `watch` sees the world before each call, after the plan's events there. If it returns that this is
    /// enough, every further call fails, and the result is meaningless.
    pub(crate) fn execute(
        self,
        plan: Plan<'_>,
        watch: impl FnMut(u64, &Call<'_>, &World) -> bool + Send + 'static,
    ) -> Execution {
        let Self { program, setup } = self;
        let machine = Machine::new();
        assert_eq!(machine.this_thread(), PROGRAM, "the program's thread is another one");
        let mut aside = None;
        if setup.one_tick {
            machine.set_tick(0);
        }
        // Any order is possible on a real kernel, which goes by hashes.
        machine.set_lists_reversed(program == Program::ListAgain);
        if setup.stale || program == Program::Adopt {
            let old = machine.add(spec("old", 0xa0).disassociates(false)).expect("added");
            if setup.stale {
                machine.set_node(0, NodeKind::Static);
                machine.foreign_context(old).expect("held, through the node");
            } else {
                machine.set_node(ASIDE, NodeKind::Device(231, 192));
                aside = Some(machine.open_unguarded(ASIDE).expect("held, through a node aside"));
            }
            if setup.stale && setup.known.is_some() {
                machine.set_node_aside(0);
            }
            machine.remove(old);
        }
        let added = machine.add(spec("rxe0", 0xa0).disassociates(setup.disassociates));
        let id = added.expect("a new machine takes a device");
        machine.add(spec("rxe1", 0xa0)).expect("and another one");
        let is_aside = setup.stale && setup.known.is_some();
        if setup.static_node && (!setup.stale || is_aside) {
            machine.set_node(0, NodeKind::Static);
        }
        if setup.static_node {
            machine.kernel_pd(id);
        }
        if setup.is_crowded() {
            setup.crowd.gather(&machine, id);
        }
        let providers = || setup.meddles.then(|| Meddler::on(&machine));
        let registry = || {
            let host = Host::simulated(&machine).expect("a host");
            Registry::with_providers(host, providers())
        };
        let before = registry();
        let listed = before.devices().expect("a list").by_name("rxe0").expect("listed");
        if let Some(next) = setup.known {
            drop(listed.open().expect("the node is the right one so far"));
            if next == Next::Others {
                machine.foreign_context(id).expect("a context");
            }
            if next != Next::Free {
                machine.with(|world| allocate_aside(world, id));
            }
            if is_aside {
                machine.put_node_back(0);
            }
        }
        let is_held = setup.held || program == Program::Adopt;
        let held = is_held.then(|| listed.open().expect("opened"));
        let fresh = registry();

        let claim = match program {
            Program::Adopt => held.as_ref().map(|context| context.claim().expect("claimed")),
            _ => None,
        };
        let mut ibverbs = program.is_guarded().then(|| {
            let mut ibverbs = Ibverbs::new(&machine);
            ibverbs.list(program).expect("a list");
            ibverbs.asked.only(id);
            ibverbs
        });
        let asked = ibverbs.as_ref().map(|ibverbs| ibverbs.asked.clone());
        let mut watch = watch;
        let watch = move |number, call: &Call<'_>, world: &World| {
            // Before any other call, a change of names may as well come one call later.
            if let Some(asked) = &asked
                && NAME.contains(&Class::of(call, world))
            {
                asked.observe(program, world);
            }
            watch(number, call, world)
        };
        hook(&machine, id, plan.to_vec(), machine.calls() + 1, watch);
        let registry = if program == Program::ListAgain { &before } else { &fresh };
        // Two PDs in a row that the kernel had no memory to track look like those of another device
        // (`audits/open-protocol.md`).
        let untracked = plan.iter().filter(|(_, event)| event.name == "the next PD is not tracked");
        let has_faults = untracked.count() > 1 || plan.iter().any(|(_, event)| event.is_fault);
        let (result, wrong) = match &mut ibverbs {
            Some(ibverbs) => ibverbs.run(program),
            None => run(program, &machine, id, registry, &listed, claim.as_ref(), has_faults),
        };
        machine.clear_hook();
        drop((held, listed, before, fresh, aside, ibverbs));
        let left = machine.open_handles();
        assert_eq!(left, 0, "left open: {self:?}: {}", Show(plan));
        Execution { result, wrong }
    }
}

impl Play {
    /// A play and its plan, with the calls that its events precede.
    pub(crate) fn trace(self, plan: Plan<'_>) -> String {
        let calls: Vec<u64> = plan.iter().map(|(at, _)| *at).collect();
        let texts = Arc::new(Mutex::new(Vec::new()));
        let shared = texts.clone();
        self.execute(plan, move |number, call, world| {
            if calls.contains(&number) {
                let text = format!("{:?} {}", call.kind(), call.detail(world));
                shared.lock().expect("no panic").push((number, text));
            }
            false
        });
        let texts = texts.lock().expect("no panic");
        let before = |(at, event): &(u64, &'static Event)| {
            let text = texts.iter().find(|(number, _)| number == at).map_or("?", |(_, text)| text);
            format!("{} before call {at} ({text})", event.name)
        };
        let events: Vec<String> = plan.iter().map(before).collect();
        let events = if events.is_empty() { "nothing happens".into() } else { events.join("; ") };
        format!("{self}: {events}")
    }
}

fn hook(
    machine: &Machine,
    id: DeviceId,
    plan: Vec<(u64, &'static Event)>,
    start: u64,
    mut watch: impl FnMut(u64, &Call<'_>, &World) -> bool + Send + 'static,
) {
    let mut enough = false;
    machine.on_call(move |world, call| {
        if enough {
            return Verdict::Fail(5);
        }
        let number = call.ordinal() - start;
        assert!(number < TOO_MANY, "it does not end: {}", Show(&plan));
        let mut verdict = Verdict::Continue;
        for (_, event) in plan.iter().filter(|(at, _)| *at == number) {
            let more = event.happen(world, id);
            if more != Verdict::Continue {
                verdict = more;
            }
        }
        enough = watch(number, call, world);
        if enough { Verdict::Fail(5) } else { verdict }
    });
}

/// Runs a program. Returns its result, and whether it got to the wrong device.
fn run(
    program: Program,
    machine: &Machine,
    id: DeviceId,
    registry: &Registry,
    listed: &Device,
    claim: Option<&ContextClaim>,
    has_faults: bool,
) -> (std::result::Result<(), ErrorKind>, bool) {
    let opened = |device: &Device| match device.open() {
        Ok(context) => {
            let bound = machine.directory_of(context.as_fd());
            (Ok(()), bound != Some(device.instance().ino))
        }
        Err(error) => (Err(error.kind()), false),
    };
    match program {
        Program::Open => opened(listed),
        Program::ListAndOpen => {
            let is_first = |device: &&Device| device.uverbs_number() == 0;
            match registry.devices().and_then(|devices| devices.by("uverbs0", is_first)) {
                Ok(device) => opened(&device),
                Err(error) => (Err(error.kind()), false),
            }
        }
        Program::Verify | Program::VerifyKeeping => {
            if program == Program::VerifyKeeping {
                machine.with(|world| allocate_aside(world, id));
            }
            // What another library might open: the node by its name, whatever it leads to. If it opens nothing,
            // there is nothing to verify.
            let Ok(fd) = machine.open_unguarded(0) else { return (Ok(()), false) };
            let bound = machine.directory_of(fd.as_fd());
            let verified = listed.verify(fd.as_fd()).map_err(|error| error.kind());
            let is_right = bound == Some(listed.instance().ino);
            // A mismatch is a claim, too, as long as the device stays and no call was made to fail.
            let stays = machine.is_alive(id) && machine.directory(id) == bound;
            let is_slandered =
                is_right && stays && matches!(verified, Err(ErrorKind::NodeMismatch));
            let wrong = if is_right { is_slandered && !has_faults } else { verified.is_ok() };
            (verified.map(drop), wrong)
        }
        Program::Adopt => {
            let Some(claim) = claim else { return (Ok(()), false) };
            // The older device, with the same number and GUID.
            let Ok(fd) = machine.open_unguarded(ASIDE) else { return (Ok(()), false) };
            match Context::from_fd(listed, fd, claim) {
                Ok(context) => {
                    let bound = machine.directory_of(context.as_fd());
                    (Ok(()), bound != Some(listed.instance().ino))
                }
                Err(error) => (Err(error.kind()), false),
            }
        }
        Program::ListAgain => match registry.devices() {
            Err(error) => (Err(error.kind()), false),
            Ok(_) => {
                let (result, wrong) = opened(listed);
                let is_there =
                    machine.is_alive(id) && machine.directory(id) == Some(listed.instance().ino);
                (result, wrong || (is_there && result == Err(ErrorKind::Removed)))
            }
        },
        Program::Guarded
        | Program::GuardedUnseen
        | Program::GuardedAgain
        | Program::GuardedAgainUnseen
        | Program::GuardedByGuid => unreachable!("they run on libibverbs"),
        Program::Query => match listed.query() {
            Err(error) => (Err(error.kind()), false),
            Ok(facts) => {
                let truth = (machine.index_of(id), machine.guid_of(id));
                (Ok(()), (facts.index, facts.node_guid.0) != truth)
            }
        },
    }
}
