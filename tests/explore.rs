//! Everything that may happen, at every kernel call, on the simulated kernel.
//!
//! A world with two devices; a program that lists and opens, opens what was listed before, or pins and
//! verifies; one mutation before any one of its kernel calls, and two before any two. Whatever comes
//! of it has to lie in a stated set; what is opened is the instance that was asked for; nothing is left
//! open; and it ends. Which instance a descriptor is really bound to is asked of the simulated kernel, by
//! the inode of its uverbs directory.
//!
//! `UVERBS_EXPLORE=full` tries all pairs in place of some. With `RUSTFLAGS="--cfg uverbs_leave_out"` each
//! check is left out in turn, to see what it is good for.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd as _;

use uverbs::sim::{DeviceId, DeviceSpec, Machine, NodeKind, Verdict, World};
use uverbs::{Device, ErrorKind, Host, Policy, Registry};

/// More kernel calls than any of the programs needs with all its repetitions: one that makes more does
/// not end.
const TOO_MANY: u64 = 2_000;

/// What happens between two kernel calls, or instead of one.
#[derive(Clone, Copy)]
struct Mutation {
    name: &'static str,
    act: fn(&mut World, DeviceId) -> Verdict,
}

macro_rules! mutations {
    ($($name:literal: |$world:ident, $id:ident| $act:expr;)*) => {
        &[$(Mutation { name: $name, act: |$world, $id| { let _ = ($id, $act); Verdict::Continue } }),*]
    };
}

/// What the world does with the device that is asked for.
const MUTATIONS: &[Mutation] = mutations! {
    "remove": |world, id| world.remove(id);
    "remove, one stage": |world, id| world.remove_step(id);
    "remove, four stages": |world, id| (0..4).for_each(|_| { world.remove_step(id); });
    "replace, same name and GUID": |world, id| replace(world, id, "rxe0", 0xa0);
    "replace, same name, other GUID": |world, id| replace(world, id, "rxe0", 0xb0);
    "replace, other name": |world, id| replace(world, id, "other", 0xb0);
    "recreate uverbs": |world, id| world.recreate_uverbs(id);
    "rename": |world, id| world.rename(id, b"renamed");
    "swap names": |world, id| swap_names(world, id);
    "evict": |world, _id| world.evict();
    "listxattr": |world, _id| world.listxattr(0);
    "node: link": |world, _id| world.set_node(0, NodeKind::Symlink("uverbs1".into()));
    "node: FIFO": |world, _id| world.set_node(0, NodeKind::Fifo);
    "node: regular file": |world, _id| world.set_node(0, NodeKind::Regular);
    "node: another device": |world, _id| world.set_node(0, NodeKind::Device(1, 3));
    "node: the other uverbs device": |world, _id| world.set_node(0, NodeKind::Device(231, 193));
    "node: static": |world, _id| world.set_node(0, NodeKind::Static);
    "node: missing": |world, _id| world.set_node(0, NodeKind::Missing);
    "node: the kernel's": |world, _id| world.set_node(0, NodeKind::Kernel);
    "reload ib_uverbs": |world, _id| world.reload_ib_uverbs();
    "reload ib_core, index reused": |world, _id| {
        world.force_reload_ib_core();
        world.add(spec("rxe0", 0xa0))
    };
    "another namespace's": |world, id| world.set_netns_visible(id, false);
    "a foreign context": |world, id| world.foreign_context(id);
    "no context list": |world, _id| world.set_no_res_ctx(true);
    "netlink denied": |world, _id| world.deny_netlink(Some(1));
};

/// What a call may fail with, or lose.
const FAULTS: &[Mutation] = &[
    Mutation { name: "EINTR", act: |_, _| Verdict::Fail(4) },
    Mutation { name: "EIO", act: |_, _| Verdict::Fail(5) },
    Mutation { name: "EAGAIN", act: |_, _| Verdict::Fail(11) },
    Mutation { name: "ENOMEM", act: |_, _| Verdict::Fail(12) },
    Mutation { name: "EMFILE", act: |_, _| Verdict::Fail(24) },
    Mutation { name: "ENOBUFS", act: |_, _| Verdict::Fail(105) },
    Mutation { name: "lost", act: |_, _| Verdict::Lose },
    Mutation { name: "cut short", act: |_, _| Verdict::Truncate(20) },
];

fn spec(name: &str, guid: u64) -> DeviceSpec {
    DeviceSpec::new(name).guid(guid)
}

fn replace(world: &mut World, id: DeviceId, name: &str, guid: u64) {
    world.remove(id);
    // Where the removal waits the old name is taken.
    if world.add(spec(name, guid).disassociates(false)).is_err() {
        let _ = world.add(spec("second", guid).disassociates(false));
    }
}

fn swap_names(world: &mut World, id: DeviceId) {
    if let Some(other) = world.instance_of(1) {
        let _ = world.swap_names(id, other);
    }
}

/// How the world is before the program starts.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// The driver lets go of open contexts when its device goes.
    disassociates: bool,
    /// The node was made by hand.
    static_node: bool,
    /// Somebody holds the device open, through that node.
    held: bool,
    /// The list of contexts takes several messages.
    crowded: bool,
}

impl Setup {
    fn all() -> impl Iterator<Item = Self> {
        (0..16).map(|bits| Self {
            disassociates: bits & 1 != 0,
            static_node: bits & 2 != 0,
            held: bits & 4 != 0,
            crowded: bits & 8 != 0,
        })
    }
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// Lists, and opens what has uverbs0 then: maybe a replacement.
    ListAndOpen,
    /// Opens what was listed before anything happened.
    Open,
    /// Pins it, and verifies what somebody else opened on the node.
    Verify,
    /// Asks for what netlink says of it.
    Query,
}

const PROGRAMS: [Program; 4] =
    [Program::ListAndOpen, Program::Open, Program::Verify, Program::Query];

/// What came of one execution.
struct Execution {
    outcome: String,
    calls: u64,
    /// It was bound to, or told of, another instance than the one that was asked for.
    wrong: bool,
}

/// The mutations of one execution, each before the call of that number.
type Plan<'a> = &'a [(u64, Mutation)];

struct Show<'a>(Plan<'a>);

impl fmt::Display for Show<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<_> = self
            .0
            .iter()
            .map(|(at, mutation)| format!("{} before call {at}", mutation.name))
            .collect();
        f.write_str(&parts.join(", "))
    }
}

fn execute(program: Program, setup: Setup, plan: Plan<'_>) -> Execution {
    let machine = Machine::new();
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

    let start = machine.calls();
    let hooked: Vec<_> = plan.to_vec();
    machine.on_call(move |world, call| {
        let number = call.ordinal() - start;
        assert!(number < TOO_MANY, "it does not end");
        let mut verdict = Verdict::Continue;
        for (_, mutation) in hooked.iter().filter(|(at, _)| *at == number) {
            let more = (mutation.act)(world, id);
            if more != Verdict::Continue {
                verdict = more;
            }
        }
        verdict
    });
    let (result, wrong) = run(program, &machine, id, &fresh, &asked);
    machine.clear_hook();
    let calls = machine.calls() - start;

    drop((held, asked, before, fresh));
    let left = machine.open_handles();
    assert_eq!(left, 0, "left open: {program:?}, {setup:?}: {}", Show(plan));
    let outcome = match result {
        Ok(()) => "ok".to_owned(),
        Err(kind) => format!("{kind:?}"),
    };
    Execution { outcome, calls, wrong }
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
        Program::Verify => match asked.pin() {
            Err(error) => (Err(error.kind()), false),
            Ok(pinned) => {
                // What another library might open: the node by its name, whatever it leads to. Where it
                // opens nothing there is nothing to verify.
                let Ok(fd) = machine.open_unguarded(0) else { return (Ok(()), false) };
                let bound = machine.directory_of(fd.as_fd());
                let verified = pinned.verify(fd.as_fd()).map_err(|error| error.kind());
                let wrong = verified.is_ok() && bound != Some(asked.instance().ino);
                (verified.map(drop), wrong)
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

/// What may come of a program, whatever happens: nothing else, and never the wrong device.
const ALLOWED: &[&str] = &[
    "ok",
    "NotFound",
    "Removed",
    "Replaced",
    "Unstable",
    "NodeMismatch",
    "Unproven",
    "PermissionDenied",
    "Malformed",
    "Os",
];

/// What was explored, and what came of it.
#[derive(Default)]
struct Tally {
    executions: u64,
    outcomes: BTreeMap<(&'static str, String), u64>,
}

impl Tally {
    /// One execution, which has to be as all have to be.
    fn execute(&mut self, program: Program, setup: Setup, plan: Plan<'_>) -> Execution {
        let execution = execute(program, setup, plan);
        self.executions += 1;
        let show = Show(plan);
        assert!(!execution.wrong, "WRONG DEVICE: {program:?}, {setup:?}: {show}");
        let allowed = ALLOWED.contains(&execution.outcome.as_str());
        assert!(allowed, "{}: {program:?}, {setup:?}: {show}", execution.outcome);
        let name = plan.first().map_or("nothing", |(_, mutation)| mutation.name);
        *self.outcomes.entry((name, execution.outcome.clone())).or_default() += 1;
        execution
    }

    fn print(&self, what: &str) {
        for ((mutation, outcome), count) in &self.outcomes {
            println!("{mutation:32} {outcome:18} {count}");
        }
        println!("{what}: {} executions, 0 wrong, 0 left open", self.executions);
    }
}

/// Whether all of it is to be tried.
#[allow(clippy::disallowed_methods)] // a test's own switch: the library reads no variable
fn is_full() -> bool {
    std::env::var("UVERBS_EXPLORE").is_ok_and(|value| value == "full")
}

/// Every mutation and fault alone, before every call.
#[test]
fn one_at_every_call() {
    let mut tally = Tally::default();
    for program in PROGRAMS {
        for setup in Setup::all() {
            let undisturbed = tally.execute(program, setup, &[]).outcome;
            for &mutation in MUTATIONS.iter().chain(FAULTS) {
                let mut at = 0;
                loop {
                    let execution = tally.execute(program, setup, &[(at, mutation)]);
                    let outcome = execution.outcome.as_str();
                    // What does no harm is no error.
                    const HARMLESS: &[&str] = &[
                        "evict",
                        "listxattr",
                        "rename",
                        "swap names",
                        "a foreign context",
                        "EINTR",
                        "EAGAIN",
                    ];
                    let harmless = HARMLESS.contains(&mutation.name);
                    // Who pins may have to pin anew, where something moved or was added to the list.
                    let again =
                        program == Program::Verify && ["Unstable", "Unproven"].contains(&outcome);
                    assert!(
                        !harmless || outcome == undisturbed || outcome == "ok" || again,
                        "{}: {outcome}: {program:?}, {setup:?}, before call {at}",
                        mutation.name
                    );
                    at += 1;
                    if at > execution.calls {
                        break;
                    }
                }
            }
        }
    }
    tally.print("one mutation or fault");
}

/// Two mutations, before every two calls: some of them, or all.
#[test]
fn two_at_every_two_calls() {
    let full = is_full();
    let stride = if full { 1 } else { 6007 };
    let mut tally = Tally::default();
    let mut turn = 0u64;
    for program in PROGRAMS {
        for setup in Setup::all() {
            let calls = execute(program, setup, &[]).calls;
            for &first in MUTATIONS {
                for &second in MUTATIONS.iter().chain(FAULTS) {
                    for at in 0..=calls {
                        for later in at..=calls + 12 {
                            turn += 1;
                            if turn.is_multiple_of(stride) {
                                tally.execute(program, setup, &[(at, first), (later, second)]);
                            }
                        }
                    }
                }
            }
        }
    }
    tally.print(if full { "two mutations, all" } else { "two mutations, some" });
}

/// Leaves each check out in turn, and looks for what then goes wrong: with one mutation, or with two.
#[cfg(uverbs_leave_out)]
#[test]
fn each_check_earns_its_place() {
    let machine = Machine::new();
    machine.add(spec("rxe0", 0xa0)).expect("added");
    let registry = Registry::new(Host::simulated(&machine, Policy::new()).expect("a host"));
    let device = registry.devices().expect("a list").by_name("rxe0").expect("listed");
    let context = device.open().expect("opened");
    let checks: Vec<_> =
        context.evidence().checks().iter().map(|check| (check.step, check.what)).collect();
    let mut needed = 0;
    println!("| step | check left out | what then goes wrong |\n|---|---|---|");
    for (step, what) in checks {
        uverbs::leave_out::leave_out(Some((step, what)));
        let wrong = first_wrong();
        uverbs::leave_out::leave_out(None);
        needed += u64::from(wrong.is_some());
        let wrong = wrong.unwrap_or_else(|| "nothing was found".to_owned());
        println!("| {} | {what} | {wrong} |", step.number());
    }
    assert!(needed > 0, "an exploration that never finds a wrong binding proves nothing");
}

/// The shortest plan that leads to the wrong device.
#[cfg(uverbs_leave_out)]
fn first_wrong() -> Option<String> {
    let shown = |program, setup: Setup, plan: Plan<'_>| {
        let wrong = execute(program, setup, plan).wrong;
        wrong.then(|| format!("{program:?}, {setup:?}: {}", Show(plan)))
    };
    let each =
        || PROGRAMS.into_iter().flat_map(|program| Setup::all().map(move |setup| (program, setup)));
    for (program, setup) in each() {
        let calls = execute(program, setup, &[]).calls;
        if let Some(wrong) = shown(program, setup, &[]) {
            return Some(wrong);
        }
        for &mutation in MUTATIONS {
            for at in 0..=calls {
                if let Some(wrong) = shown(program, setup, &[(at, mutation)]) {
                    return Some(wrong);
                }
            }
        }
    }
    // The crowded world differs in how it lists alone.
    for (program, setup) in each().filter(|(_, setup)| is_full() && !setup.crowded) {
        let calls = execute(program, setup, &[]).calls;
        for &first in MUTATIONS {
            for &second in MUTATIONS {
                for at in (0..=calls).step_by(3) {
                    for later in (at..=calls).step_by(3) {
                        let plan = [(at, first), (later, second)];
                        if let Some(wrong) = shown(program, setup, &plan) {
                            return Some(wrong);
                        }
                    }
                }
            }
        }
    }
    None
}
