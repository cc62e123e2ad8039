//! Every system call as a boundary: the program is stopped before it, the kernel really removes,
//! replaces, renames, evicts or holds the device meanwhile, and the program goes on. What it opens has
//! to be what was asked for; libibverbs, as control, has to be caught at opening something else.

mod mutate;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Host, Registry};

use crate::ibverbs::Ibverbs;
use crate::{guest, roles, runner};
use mutate::{Mutation, World};

/// What is stopped.
const OURS: [&str; 3] = ["list+open", "open", "verify"];
const CONTROL: [&str; 1] = ["ibv_open_device"];

/// How long the sampled scenarios may run; what does not fit is left out evenly.
const BUDGET: Duration = Duration::from_secs(45);

/// By program, mutation, disassociate, boundary and outcome.
type Row = (&'static str, Mutation, bool, usize, String);

#[derive(Default)]
struct Table {
    rows: BTreeMap<Row, String>,
    wrong: Vec<String>,
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let full = match args {
        [] => false,
        ["--full"] => true,
        _ => bail!("usage: uverbs-lab boundary [--full]"),
    };
    guest::clean()?;
    let ours = table(&OURS, full)?;
    ours.print();
    let control = table(&CONTROL, full)?;
    control.print();
    println!("{}: {} executions, {} wrong", guest::release(), ours.rows.len(), ours.wrong.len());
    println!("control: {} executions, {} wrong", control.rows.len(), control.wrong.len());
    ours.all_right()?;
    control.caught()
}

pub(crate) fn sampled() -> Result<()> {
    let table = table(&OURS, false)?;
    table.summary();
    table.all_right()
}

pub(crate) fn control() -> Result<()> {
    let table = table(&CONTROL, false)?;
    table.summary();
    table.caught()
}

impl Table {
    fn all_right(&self) -> Result<()> {
        ensure!(!self.rows.is_empty(), "nothing was run");
        ensure!(self.wrong.is_empty(), "wrong:\n{}", self.wrong.join("\n"));
        Ok(())
    }

    fn caught(&self) -> Result<()> {
        ensure!(!self.wrong.is_empty(), "libibverbs was not caught: the boundaries prove nothing");
        Ok(())
    }

    fn print(&self) {
        for ((program, mutation, disassociate, boundary, outcome), call) in &self.rows {
            let disassociate = u8::from(*disassociate);
            println!(
                "{program} | {boundary} {call} | {mutation:?} disassociate={disassociate} | {outcome}"
            );
        }
        self.summary();
    }

    fn summary(&self) {
        let mut counts: BTreeMap<_, BTreeMap<&str, usize>> = BTreeMap::new();
        for (program, mutation, disassociate, _, outcome) in self.rows.keys() {
            let outcomes = counts.entry((program, mutation, disassociate)).or_default();
            *outcomes.entry(outcome).or_default() += 1;
        }
        for ((program, mutation, disassociate), outcomes) in counts {
            let outcomes: Vec<_> = outcomes.iter().map(|(what, n)| format!("{what} {n}")).collect();
            let disassociate = u8::from(*disassociate);
            println!(
                "    {program} | {mutation:?} disassociate={disassociate} | {}",
                outcomes.join(", ")
            );
        }
        println!("    {} executions, {} wrong", self.rows.len(), self.wrong.len());
    }
}

fn table(programs: &[&'static str], full: bool) -> Result<Table> {
    let started = Instant::now();
    let mut table = Table::default();
    let mut kinds = Vec::new();
    let mut most = 0;
    for program in programs {
        let (outcome, calls) = execute(program, Mutation::Nothing, true, None)?;
        ensure!(outcome == "opened", "{program}, undisturbed: {outcome}");
        println!("    {program}: {} system calls", calls.len());
        most = most.max(calls.len());
        for mutation in mutate::ALL {
            kinds.extend([true, false].map(|cuts_off| (*program, mutation, cuts_off, calls.len())));
        }
    }
    // The sample takes every kind in turn, each time elsewhere, the same each time.
    let rounds = (0..most).flat_map(|round| (0..kinds.len()).map(move |kind| (round, kind)));
    let mut done = BTreeSet::new();
    for (round, kind) in rounds {
        if !full && started.elapsed() > BUDGET {
            break;
        }
        let (program, mutation, disassociate, len) = kinds[kind];
        let at = if full { round } else { (round * 17 + kind * 29) % len };
        if at >= len || !done.insert((kind, at)) {
            continue;
        }
        let (outcome, calls) = execute(program, mutation, disassociate, Some(at))
            .with_context(|| format!("{program} {mutation:?} {disassociate} at {at}"))?;
        let call = calls.last().cloned().unwrap_or_default();
        if outcome.starts_with("WRONG") {
            table.wrong.push(format!(
                "{program} at {at} {call}, {mutation:?} disassociate={disassociate}: {outcome}"
            ));
        }
        table.rows.insert((program, mutation, disassociate, at, outcome), call);
    }
    Ok(table)
}

/// Runs a program once; gives what came of it and the system calls up to the boundary.
fn execute(
    program: &str,
    mutation: Mutation,
    disassociate: bool,
    at: Option<usize>,
) -> Result<(String, Vec<String>)> {
    let mut world = World::new(mutation, disassociate)?;
    let first = World::asked()?;
    let mut command = Command::new(roles::exe()?);
    command.args(["role", "boundary", program]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let (mut child, calls) = trace::run(&mut command, at, || world.mutate())?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
    let outcome = judge(&world, program, first, line.trim_end());
    drop(child.stdin.take());
    runner::wait(&mut child, Duration::from_secs(20))?;
    world.clean()?;
    Ok((outcome?, calls))
}

/// What a program says that it opened, held against what the kernel says.
fn judge(world: &World, program: &str, first: u64, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    let busy = World::with_contexts()?;
    match words[..] {
        // Nothing of a refused open stays; but for verify the context is another's.
        ["refused", why] if program != "verify" && !busy.is_empty() => {
            Ok(format!("WRONG: {why}, and a context was left"))
        }
        ["refused", why] => Ok(why.to_owned()),
        ["opened", ino, guid, index] => {
            let ino = if ino == "-" { first } else { ino.parse()? };
            let asked = world.instances.get(&ino).context("an unknown instance was asked for")?;
            let elsewhere = busy.iter().any(|index| *index != asked.index);
            if elsewhere
                || (guid != "-" && guid.parse() != Ok(asked.guid))
                || (index != "-" && index.parse() != Ok(asked.index))
            {
                return Ok("WRONG: another device".to_owned());
            }
            Ok(if busy.is_empty() { "opened, gone since" } else { "opened" }.to_owned())
        }
        _ => bail!("it said {line:?}"),
    }
}

/// The program that is stopped: says what it opened and holds it until its input ends.
pub(crate) fn role(program: &str) -> Result<()> {
    let mark = || std::io::stderr().write_all(roles::MARK.as_bytes());
    let ready = || -> Result<()> {
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP)?;
        Ok(mark()?)
    };
    let say = |line: &str| -> Result<()> {
        println!("{line}");
        std::io::stdout().flush()?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    };
    let refused = |error: &uverbs::Error| format!("refused {:?}", error.kind());
    if program == "ibv_open_device" {
        let ibverbs = Ibverbs::load()?;
        let list = ibverbs.list()?;
        ready()?;
        let opened = list.open_and_keep("tst");
        mark()?;
        return say(if opened.is_ok() { "opened - - -" } else { "refused failed" });
    }
    let registry = Registry::new(Host::open()?);
    if program == "verify" {
        let ibverbs = Ibverbs::load()?;
        let list = ibverbs.list()?;
        let device = registry.devices()?.by_name("tst")?;
        ready()?;
        let verified = match device.pin() {
            Err(error) => Err(refused(&error)),
            Ok(pinned) => match list.open_and_keep("tst") {
                Err(_) => Err("refused libibverbs".to_owned()),
                Ok(()) => verify(&pinned),
            },
        };
        mark()?;
        return say(&match verified {
            Ok(index) => format!("opened {} - {index}", device.instance().ino),
            Err(line) => line,
        });
    }
    let listed = || registry.devices().and_then(|devices| devices.by_name("tst"));
    let before = if program == "open" { Some(listed()?) } else { None };
    ready()?;
    let device = before.map_or_else(listed, Ok);
    let opened = device.and_then(|device| device.open().map(|context| (device, context)));
    mark()?;
    match opened {
        Err(error) => say(&refused(&error)),
        Ok((device, context)) => {
            let guid = context.query_device().map_or("-".into(), |a| a.node_guid.0.to_string());
            let index = context.evidence().index().context("no index")?;
            say(&format!("opened {} {guid} {index}", device.instance().ino))
        }
    }
}

/// Verifies the descriptor that libibverbs has opened.
fn verify(pinned: &uverbs::PinnedDevice) -> std::result::Result<u32, String> {
    let fd = cmd_fd().map_err(|_| "refused no-descriptor".to_owned())?;
    let evidence = pinned.verify(fd.as_fd());
    let evidence = evidence.map_err(|error| format!("refused {:?}", error.kind()))?;
    evidence.index().ok_or_else(|| "refused no-index".to_owned())
}

/// The one descriptor of this process that is a uverbs node.
fn cmd_fd() -> Result<std::os::fd::OwnedFd> {
    for name in guest::names("/proc/self/fd") {
        let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{name}")) else { continue };
        if path.starts_with("/dev/infiniband") {
            return borrowed(name.parse()?);
        }
    }
    bail!("libibverbs has no uverbs node open")
}

#[allow(unsafe_code)]
fn borrowed(fd: i32) -> Result<std::os::fd::OwnedFd> {
    // SAFETY: libibverbs keeps it open for as long as the process lives.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(fd.try_clone_to_owned()?)
}
