//! One execution: a world, a program, and a plan of what happens meanwhile.

use std::fmt;
use std::os::fd::AsFd as _;

use uverbs::sim::{Call, DeviceId, Machine, NodeKind, Verdict, World};
use uverbs::{Device, ErrorKind, Host, Policy, Registry};

use crate::happens::{Event, spec};

/// More kernel calls than any of the programs needs with all its repetitions: one that makes more does
/// not end.
const TOO_MANY: u64 = 2_000;

/// How the world is before the program starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The driver lets go of open contexts when its device goes.
    pub(crate) disassociates: bool,
    /// The node was made by hand.
    pub(crate) static_node: bool,
    /// Somebody holds the device open, through that node.
    pub(crate) held: bool,
    /// The list of contexts takes several messages.
    pub(crate) crowded: bool,
    /// The clock of inodes stands still: all that happens is within one tick of it.
    pub(crate) one_tick: bool,
}

impl Setup {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..32).map(|bits| Self {
            disassociates: bits & 1 != 0,
            static_node: bits & 2 != 0,
            held: bits & 4 != 0,
            crowded: bits & 8 != 0,
            one_tick: bits & 16 != 0,
        })
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.disassociates { "disassociating" } else { "not disassociating" })?;
        let more = [
            (self.static_node, "static node"),
            (self.held, "held"),
            (self.crowded, "crowded"),
            (self.one_tick, "one tick"),
        ];
        more.iter().filter(|(is, _)| *is).try_for_each(|(_, what)| write!(f, ", {what}"))
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
    /// Asks for what netlink says of it.
    Query,
}

pub(crate) const PROGRAMS: [Program; 4] =
    [Program::ListAndOpen, Program::Open, Program::Verify, Program::Query];

/// A program in a world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Play {
    pub(crate) program: Program,
    pub(crate) setup: Setup,
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

/// What came of one execution.
pub(crate) struct Execution {
    /// The kind of the error, if it is one.
    pub(crate) result: Result<(), ErrorKind>,
    /// It was bound to, or told of, another instance than the one that was asked for.
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
        if setup.one_tick {
            machine.set_tick(0);
        }
        let added = machine.add(spec("rxe0", 0xa0).disassociates(setup.disassociates));
        let id = added.expect("a new machine takes a device");
        machine.add(spec("rxe1", 0xa0)).expect("and another one");
        if setup.static_node {
            machine.set_node(0, NodeKind::Static);
        }
        if setup.crowded {
            machine.set_contexts_a_page(2);
            for _ in 0..5 {
                machine.foreign_context(id);
            }
        }
        let registry = || Registry::new(Host::simulated(&machine, Policy::new()).expect("a host"));
        let before = registry();
        let asked = before.devices().expect("a list").by_name("rxe0").expect("listed");
        let held = setup.held.then(|| asked.open().expect("opened"));
        let fresh = registry();

        let start = machine.calls() + 1;
        hook(&machine, id, plan.to_vec(), start, watch);
        let (result, wrong) = run(program, &machine, id, &fresh, &asked);
        machine.clear_hook();
        drop((held, asked, before, fresh));
        let left = machine.open_handles();
        assert_eq!(left, 0, "left open: {self:?}: {}", Show(plan));
        Execution { result, wrong }
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
) -> (Result<(), ErrorKind>, bool) {
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
        Program::Verify => {
            // What another library might open: the node by its name, whatever it leads to. Where it opens
            // nothing there is nothing to verify.
            let Ok(fd) = machine.open_unguarded(0) else { return (Ok(()), false) };
            let bound = machine.directory_of(fd.as_fd());
            let verified = asked.verify(fd.as_fd()).map_err(|error| error.kind());
            let wrong = verified.is_ok() && bound != Some(asked.instance().ino);
            (verified.map(drop), wrong)
        }
        Program::Query => match asked.query() {
            Err(error) => (Err(error.kind()), false),
            Ok(facts) => {
                let truth = (machine.index_of(id), machine.guid_of(id));
                (Ok(()), (facts.index, facts.node_guid.0) != truth)
            }
        },
    }
}
