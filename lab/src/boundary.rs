//! Every system call as a boundary: the program is stopped before it, the kernel really removes,
//! replaces, renames, evicts or holds the device meanwhile, and the program goes on. What it opens has
//! to be what was asked for; libibverbs, as control, has to be caught at opening something else.

mod judge;
mod link;
mod mutation;
mod process;
mod program;
mod selfcheck;
mod table;
mod trace;
mod world;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guest;
use mutation::Mutation;
use program::Program;
use table::{Row, Table};
use world::{Kind, World};

/// How long a sampled scenario may run; what does not fit is left out evenly.
const BUDGET: Duration = Duration::from_secs(35);

/// After so many failures of the lab itself the rest would tell nothing.
const LAB_FAILURES: usize = 5;

/// Which executions are run.
#[derive(Clone, Copy)]
enum Extent {
    Sample,
    /// All of them, or every `of`th.
    Full {
        shard: usize,
        of: usize,
    },
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let extent = match args {
        [] => Extent::Sample,
        ["--full"] => Extent::Full { shard: 0, of: 1 },
        ["--full", "--shard", shard] => {
            let (shard, of) = shard.split_once('/').context("--shard I/N")?;
            let (shard, of): (usize, usize) = (shard.parse()?, of.parse()?);
            ensure!((1..=of).contains(&shard), "--shard I/N: I is from 1 to N");
            // Each has to have a part of the control at which it is caught.
            ensure!(of <= 8, "--shard I/N: N is at most 8");
            Extent::Full { shard: shard - 1, of }
        }
        _ => bail!("usage: uverbs-lab boundary [--full [--shard I/N]]"),
    };
    // Whether the judge would see it: the library with the rule that was broken.
    #[cfg(uverbs_leave_out)]
    uverbs::leave_out::old_rule(true);
    guest::clean()?;
    let ours = table(&program::OURS, extent, true)?;
    ours.summary();
    let control = table(&program::CONTROL, extent, true)?;
    control.summary();
    println!("{}, ours: {}", guest::release(), ours.count());
    println!("{}, control: {}", guest::release(), control.count());
    ours.all_right()?;
    control.caught()
}

pub(crate) fn sampled() -> Result<()> {
    let table = table(&program::OURS, Extent::Sample, false)?;
    table.summary();
    table.all_right()
}

pub(crate) fn control() -> Result<()> {
    let table = table(&program::CONTROL, Extent::Sample, false)?;
    table.summary();
    table.caught()
}

pub(crate) use selfcheck::deaths_hangs_and_threads;

/// A program and what is done to it, on what.
#[derive(Clone, Copy)]
struct Way {
    program: Program,
    mutation: Mutation,
    kind: Kind,
    /// How many system calls the program makes when nothing is done to it.
    calls: usize,
}

/// Runs each program undisturbed; gives the ways in which each can be disturbed.
fn ways(programs: &[Program]) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for kind in Kind::all()? {
        for &program in programs {
            let (run, outcome) = execute(program, Mutation::Nothing, kind, None)?;
            let (name, calls) = (program.name(), run.calls.len());
            ensure!(outcome == "opened", "{name}, {}, undisturbed: {outcome}", kind.name());
            let crowded = program == Program::OpenCrowded;
            println!("    {name}, {}: {calls} calls", kind.name());
            let mutations = if crowded { &mutation::CROWDED[..] } else { &mutation::ALL };
            ways.extend(mutations.iter().map(|&mutation| Way { program, mutation, kind, calls }));
        }
    }
    Ok(ways)
}

fn table(programs: &[Program], extent: Extent, show: bool) -> Result<Table> {
    let started = Instant::now();
    trace::prepare()?;
    // Adding and removing devices waits for grace periods more than for anything else.
    let _ = std::fs::write("/sys/kernel/rcu_expedited", "1");
    let ways = ways(programs)?;
    let most = ways.iter().map(|way| way.calls).max().context("nothing to run")?;
    let mut table = Table::default();
    let mut done = BTreeSet::new();
    let mut failures = 0;
    for step in 0..most * ways.len() {
        let round = step / ways.len();
        // A sample takes the ways in turn, neighbours far apart, each time at another call.
        let (way, at) = match extent {
            Extent::Sample if started.elapsed() > BUDGET => break,
            Extent::Full { shard, of } if step % of != shard => continue,
            Extent::Full { .. } => (step % ways.len(), round),
            Extent::Sample => {
                let way = scattered(step, ways.len());
                (way, (round * 17 + way * 29) % ways[way].calls)
            }
        };
        let Way { program, mutation, kind, calls } = ways[way];
        if at >= calls || !done.insert((way, at)) {
            continue;
        }
        let row = Row { program, kind, mutation, at };
        match execute(program, mutation, kind, Some(at)) {
            Ok((run, outcome)) => {
                table.add(show, row, run.calls.last().cloned().unwrap_or_default(), outcome);
            }
            // What was done so far is shown all the same.
            Err(error) => {
                table.add(show, row, String::new(), format!("WRONG: the lab: {error:#}"));
                failures += 1;
                if failures == LAB_FAILURES || guest::clean().is_err() {
                    println!("    the lab fails: no more is run");
                    break;
                }
            }
        }
        if table.len() % 500 == 0 {
            eprintln!("{} executions in {:.0} s", table.len(), started.elapsed().as_secs_f64());
        }
    }
    table.took = started.elapsed();
    Ok(table)
}

/// A permutation of what is below `len`.
fn scattered(step: usize, len: usize) -> usize {
    let coprime = |stride: &usize| {
        let (mut a, mut b) = (*stride, len);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    let stride = (len * 3 / 8..).find(coprime).unwrap_or(1);
    step % len * stride % len
}

/// Runs a program once; says what came of it.
fn execute(
    program: Program,
    mutation: Mutation,
    kind: Kind,
    at: Option<usize>,
) -> Result<(trace::Run, String)> {
    let mut world = World::new(kind);
    mutation.prepare(&mut world)?;
    if program == Program::OpenCrowded {
        world.crowd()?;
    }
    let process = program.start()?;
    let mut run = trace::run(process, at, trace::LIMIT, || mutation.happen(&mut world))?;
    let outcome = judge::judge(&world, program, &run, at.is_some())?;
    run.process.kill(Duration::from_secs(10))?;
    world.clean()?;
    Ok((run, outcome))
}
