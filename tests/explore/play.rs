//! One execution: a world, a program, and a plan of what happens meanwhile.

use std::fmt;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use uverbs::sim::{Call, DeviceId, Machine, NodeKind, Verdict, World};
use uverbs::{
    Allocation, Context, ContextClaim, Device, DeviceProvider, DriverId, ErrorKind, Host, Match,
    PinnedView, Provider, Registry, Result,
};

use crate::happens::{Event, LONG_PAGE, PAGE, PROGRAM, spec};

/// More kernel calls than any of the programs needs with all its repetitions: one that makes more does
/// not end.
const TOO_MANY: u64 = 2_000;

/// How the world is before the program starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The driver lets go of open contexts when its device goes.
    pub(crate) disassociates: bool,
    /// The node was made by hand; and the kernel has a PD of its own on the device.
    pub(crate) static_node: bool,
    /// The program holds the device open, through that node.
    pub(crate) held: bool,
    /// The clock of inodes stands still: all that happens is within one tick of it.
    pub(crate) one_tick: bool,
    /// Contexts on the device, each with a PD.
    pub(crate) crowd: Crowd,
    /// The node was made by hand and leads to an older device of the same GUID, which somebody holds.
    pub(crate) stale: bool,
    /// The device has a provider that allocates a context and a PD of its own before each allocation.
    pub(crate) meddles: bool,
    /// The library has opened the device before, so that it knows a number to look for.
    pub(crate) known: Option<Next>,
}

/// Whose context has the number that the library knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nobody's.
    Free,
    /// An older one of the program's own thread.
    Own,
    /// One of another thread, and the program's own thread has the one after it.
    Others,
}

/// Contexts that there are before the program starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Crowd {
    /// How many other threads have.
    pub(crate) others: usize,
    /// Places in the list, other than those of others, of what the program's own thread has.
    pub(crate) own: &'static [usize],
    /// Each page of a list is short, however long the buffers are.
    pub(crate) short_pages: bool,
}

impl Crowd {
    fn gather(self, machine: &Machine, id: DeviceId) {
        machine.set_contexts_a_page(PAGE);
        machine.set_short_pages(self.short_pages);
        let count = self.others + self.own.len();
        for place in 0..count {
            // What is beyond the end is at the end.
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

/// The number in the name of a node that nobody else looks at.
const ASIDE: u32 = 7;

/// The last place.
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

    /// The worlds where a wrong device is at hand and the lists are just so long that they fill what they
    /// are put into, or not quite: the library's first buffer, a page, two pages, of both lengths.
    fn boundaries() -> impl Iterator<Item = Self> {
        // As many as the first buffer takes is one.
        const SHORT: [usize; 6] = [0, 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1];
        const LONG: [usize; 4] = [LONG_PAGE - 1, LONG_PAGE, LONG_PAGE + 1, 2 * LONG_PAGE];
        const OWN_SHORT: [&[usize]; 6] = [&[], &[0], &[LAST], &[PAGE - 1], &[PAGE], &[0, LAST]];
        const OWN_LONG: [&[usize]; 6] =
            [&[], &[0], &[LAST], &[LONG_PAGE - 1], &[LONG_PAGE], &[0, LAST]];
        let crowds = |others: &'static [usize], own: &'static [&'static [usize]], short_pages| {
            others.iter().flat_map(move |&others| {
                // A place that is beyond the end is the last, which there is already.
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
        // A number that is known: with the wrong device at hand, and with the right one.
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

    /// A wrong device is at hand, or a provider does what deceives a rule that counts contexts.
    pub(crate) fn is_adverse(self) -> bool {
        self.stale || self.meddles || self.known.is_some()
    }

    /// Others, or the program itself, have contexts on the device.
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

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Lists, and opens what has uverbs0 then: maybe a replacement.
    ListAndOpen,
    /// Opens what was listed before anything happened.
    Open,
    /// Verifies what somebody else opened on the node.
    Verify,
    /// The same, and between the two allocates a context and a PD on the right device, too.
    VerifyKeeping,
    /// Asks for what netlink says of it.
    Query,
    /// Has opened it before, and takes over another descriptor by the claim of that context.
    Adopt,
    /// Lists again, and opens.
    ListAgain,
}

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
    /// It comes to one device, by a look at the host that is all its own.
    pub(crate) fn binds(self) -> bool {
        !matches!(self, Self::Adopt | Self::ListAgain)
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

/// What happens during one execution, each event before the call of that number; in order.
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

/// A provider that keeps a context and a PD of its own on each device that it is asked about.
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

/// The program's own thread allocates a context and a PD through a descriptor of its own.
fn allocate_aside(world: &mut World, id: DeviceId) {
    if let Some(ctxn) = world.context_by(id, PROGRAM) {
        world.pd_by(id, ctxn, PROGRAM);
    }
}

/// What came of one execution.
pub(crate) struct Execution {
    /// The kind of the error, if it is one.
    pub(crate) result: std::result::Result<(), ErrorKind>,
    /// It was bound to, or reported, another instance than the one that was asked for; or it called the
    /// right one wrong, or a live device removed.
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
    /// Runs it. `watch` sees the world before each call, after what the plan does there; when it says
    /// that this is enough every further call fails, and what comes of the execution means nothing.
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
        // Any order is that of a kernel, which goes by hashes.
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
        let asked = before.devices().expect("a list").by_name("rxe0").expect("listed");
        if let Some(next) = setup.known {
            drop(asked.open().expect("the node is the right one so far"));
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
        let held = is_held.then(|| asked.open().expect("opened"));
        let fresh = registry();

        let claim = match program {
            Program::Adopt => held.as_ref().map(|context| context.claim().expect("claimed")),
            _ => None,
        };
        hook(&machine, id, plan.to_vec(), machine.calls() + 1, watch);
        let registry = if program == Program::ListAgain { &before } else { &fresh };
        let has_faults = plan.iter().any(|(_, event)| event.is_fault);
        let (result, wrong) =
            run(program, &machine, id, registry, &asked, claim.as_ref(), has_faults);
        machine.clear_hook();
        drop((held, asked, before, fresh, aside));
        let left = machine.open_handles();
        assert_eq!(left, 0, "left open: {self:?}: {}", Show(plan));
        Execution { result, wrong }
    }
}

impl Play {
    /// A play and its plan, with the calls that the events come before.
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

/// Runs a program; says also whether it came to the wrong device.
fn run(
    program: Program,
    machine: &Machine,
    id: DeviceId,
    registry: &Registry,
    asked: &Device,
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
        Program::Open => opened(asked),
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
            // What another library might open: the node by its name, whatever it leads to. Where it opens
            // nothing there is nothing to verify.
            let Ok(fd) = machine.open_unguarded(0) else { return (Ok(()), false) };
            let bound = machine.directory_of(fd.as_fd());
            let verified = asked.verify(fd.as_fd()).map_err(|error| error.kind());
            let is_right = bound == Some(asked.instance().ino);
            // A mismatch is a statement, too, as long as the device stays and no call was made to fail.
            let stays = machine.is_alive(id) && machine.directory(id) == bound;
            let is_slandered =
                is_right && stays && matches!(verified, Err(ErrorKind::NodeMismatch));
            let wrong = if is_right { is_slandered && !has_faults } else { verified.is_ok() };
            (verified.map(drop), wrong)
        }
        Program::Adopt => {
            let Some(claim) = claim else { return (Ok(()), false) };
            // The older device's, of the same number and GUID.
            let Ok(fd) = machine.open_unguarded(ASIDE) else { return (Ok(()), false) };
            match Context::from_fd(asked, fd, claim) {
                Ok(context) => {
                    let bound = machine.directory_of(context.as_fd());
                    (Ok(()), bound != Some(asked.instance().ino))
                }
                Err(error) => (Err(error.kind()), false),
            }
        }
        Program::ListAgain => match registry.devices() {
            Err(error) => (Err(error.kind()), false),
            Ok(_) => {
                let (result, wrong) = opened(asked);
                let is_there =
                    machine.is_alive(id) && machine.directory(id) == Some(asked.instance().ino);
                (result, wrong || (is_there && result == Err(ErrorKind::Removed)))
            }
        },
        Program::Query => match asked.query() {
            Err(error) => (Err(error.kind()), false),
            Ok(facts) => {
                let truth = (machine.index_of(id), machine.guid_of(id));
                (Ok(()), (facts.index, facts.node_guid.0) != truth)
            }
        },
    }
}
