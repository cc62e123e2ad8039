//! Every system call as a boundary. The program is stopped before it. Meanwhile the kernel really removes,
//! replaces, renames, evicts or holds the device, and then the program continues. It must open the device that it
//! listed. libibverbs, as a control, must be caught opening something else.

mod crowd;
mod judge;
mod link;
mod mutation;
mod plan;
mod process;
mod program;
mod scene;
mod selfcheck;
mod table;
mod trace;
mod verbs;
mod world;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guest::{self, GUARD};
use link::Resource;
use plan::{Extent, Happens, Place, Share, Way};
use program::Program;
use scene::Bounds;
use table::{Row, Table};
use trace::Point;
use world::{Kind, World};

/// How long a sampled scenario may run. Executions that do not fit are left out evenly.
const BUDGET: Duration = Duration::from_secs(35);

/// After this many failures of the lab itself, the rest would show nothing.
const LAB_FAILURES: usize = 5;

/// The interval between progress messages.
const SHOWN_EVERY: Duration = Duration::from_secs(20);

const USAGE: &str =
    "usage: uverbs-lab boundary [[--guarded] --full [--spread I/N] [--shard I/N] | --old-rule]";

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let extent = match args {
        [] => Extent::Sample,
        ["--old-rule"] => return old_rule(),
        ["--guarded", options @ ..] if !is_guarded()? => return under_the_guard(options),
        ["--guarded"] => return guarded(Extent::Sample),
        ["--guarded", "--full", options @ ..] => return guarded(full(options)?),
        ["--full", options @ ..] => full(options)?,
        _ => bail!("{USAGE}"),
    };
    guest::clean()?;
    let ours = table(&program::OURS, extent, true)?;
    ours.summary();
    let control = table(&program::CONTROL, extent, true)?;
    control.summary();
    println!("{}, ours: {}", guest::release(), ours.count());
    println!("{}, control: {}", guest::release(), control.count());
    ours.all_right()?;
    control.caught(&program::CONTROL)
}

fn full(options: &[&str]) -> Result<Extent> {
    let (mut spread, mut shard) = (Share::THIRD, Share::ALL);
    for option in options.chunks(2) {
        let [name @ ("--spread" | "--shard"), value] = option else { bail!("{USAGE}") };
        let (number, of) = value.split_once('/').with_context(|| format!("{name} I/N"))?;
        let (number, of): (usize, usize) = (number.parse()?, of.parse()?);
        ensure!((1..=of).contains(&number), "{name} I/N: I is from 1 to N");
        // Each shard needs a part of the control that catches it. Each part of the spread needs some executions of
        // every way.
        ensure!(of <= 8, "{name} I/N: N is at most 8");
        let share = Share { number: number - 1, of };
        if *name == "--spread" { spread = share } else { shard = share }
    }
    Ok(Extent::Full { spread, shard })
}

/// Whether the boundaries would find a wrong proof. The library follows its first rule, which took a truncated list
/// of contexts for complete.
fn old_rule() -> Result<()> {
    ensure!(cfg!(uverbs_leave_out), "--old-rule takes a lab built with --cfg uverbs_leave_out");
    #[cfg(uverbs_leave_out)]
    uverbs::leave_out::old_rule(true);
    guest::clean()?;
    let table = table(&program::OLD_RULE, Extent::OldRule, true)?;
    table.summary();
    println!("{}, old rule: {}", guest::release(), table.count());
    table.caught(&program::OLD_RULE)
}

pub(crate) fn sampled() -> Result<()> {
    let table = table(&program::OURS, Extent::Sample, false)?;
    table.summary();
    table.all_right()
}

/// Programs on libibverbs under the guard. The control is the same program without it.
fn guarded(extent: Extent) -> Result<()> {
    guest::clean()?;
    let table = table(&program::GUARDED, extent, !matches!(extent, Extent::Sample))?;
    table.summary();
    println!("{}, guarded: {}", guest::release(), table.count());
    table.all_right()
}

/// Whether the guard was preloaded into this program.
fn is_guarded() -> Result<bool> {
    Ok(std::fs::read_to_string("/proc/self/maps")?.contains(GUARD))
}

/// Runs this program again, with the guard.
fn under_the_guard(options: &[&str]) -> Result<()> {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.args(["boundary", "--guarded"]).args(options);
    command.env("LD_PRELOAD", GUARD).env("UVERBS_GUARD_LOG", "off");
    let status = command.status().context("starting the boundaries")?;
    ensure!(status.success(), "the boundaries under the guard: {status}");
    Ok(())
}

pub(crate) fn guarded_sample() -> Result<()> {
    under_the_guard(&[])
}

pub(crate) fn control() -> Result<()> {
    let table = table(&program::CONTROL, Extent::Sample, false)?;
    table.summary();
    table.caught(&program::CONTROL)
}

pub(crate) use selfcheck::deaths_hangs_and_threads;

fn table(programs: &[Program], extent: Extent, show: bool) -> Result<Table> {
    let started = Instant::now();
    trace::prepare()?;
    // Adding and removing devices mostly waits for grace periods.
    let _ = std::fs::write("/sys/kernel/rcu_expedited", "1");
    let kinds = Kind::all()?;
    let mut places = plan::places(programs, &kinds, extent);
    // An older device whose driver disassociates cannot be opened any more.
    places.retain(|place| {
        !(place.program.needs_old() && place.kind == Kind::Rxe { disassociate: true })
    });
    let listed = Resource::listed()?;
    places.retain(|place| !place.scene.is_bounded() || listed.contains(&place.scene.resource));
    let mut bounds = Bounds::default();
    let mut table = Table::default();
    let ways = ways(&places, &mut bounds, extent, &mut table, show)?;
    println!("    {:.0} s to run each undisturbed", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let order = order(&ways, extent);
    let mut progress = Progress::new(order.len());
    let mut done = BTreeSet::new();
    let mut failures = 0;
    for (way, at) in order {
        if matches!(extent, Extent::Sample) && started.elapsed() > BUDGET {
            break;
        }
        let Way { place, happens, points } = &ways[way];
        let Some(at) = points.get(at).filter(|_| done.insert((way, at))) else { continue };
        let row = Row { place: *place, happens: *happens, at: at.clone() };
        match execute(*place, *happens, &mut bounds, at) {
            Ok((run, outcome)) => {
                let last = run.calls.last().filter(|_| run.reached == at.len());
                table.add(show, row, last.cloned().unwrap_or_default(), outcome);
            }
            // The results so far are shown nevertheless.
            Err(error) => {
                table.add(show, row, String::new(), format!("WRONG: the lab: {error:#}"));
                failures += 1;
                if failures == LAB_FAILURES || guest::clean().is_err() {
                    println!("    the lab fails: the rest is not run");
                    break;
                }
            }
        }
        if !matches!(extent, Extent::Sample) {
            progress.step();
        }
    }
    table.took = started.elapsed();
    Ok(table)
}

/// The order of the executions: the number of the way, and the number of its point.
fn order(ways: &[Way], extent: Extent) -> Vec<(usize, usize)> {
    let most = ways.iter().map(|way| way.points.len()).max().unwrap_or(0);
    let rounds = (0..most).flat_map(|round| (0..ways.len()).map(move |step| (round, step)));
    if !matches!(extent, Extent::Sample) {
        let shard = if let Extent::Full { shard, .. } = extent { shard } else { Share::ALL };
        let all = rounds.filter(|(at, way)| *at < ways[*way].points.len()).enumerate();
        let chosen = all.filter(|(number, _)| shard.has(*number));
        return chosen.map(|(_, (at, way))| (way, at)).collect();
    }
    // A sample begins with the slow ones, which otherwise would seldom run.
    let long = ways.iter().enumerate().filter(|(_, way)| way.place.scene.is_long());
    let long = long.flat_map(|(number, way)| (0..way.points.len()).map(move |at| (number, at)));
    // Then it takes the ways in turn, distant neighbours first, each time at another call.
    let rest = rounds.map(|(round, step)| {
        let way = scattered(step, ways.len());
        (way, (round * 17 + way * 29) % ways[way].points.len())
    });
    long.chain(rest).collect()
}

/// Shows the progress on standard error.
struct Progress {
    started: Instant,
    shown: Instant,
    done: usize,
    total: usize,
}

impl Progress {
    fn new(total: usize) -> Self {
        let now = Instant::now();
        Self { started: now, shown: now, done: 0, total }
    }

    /// Counts one more execution.
    fn step(&mut self) {
        self.done += 1;
        if self.shown.elapsed() < SHOWN_EVERY && self.done < self.total {
            return;
        }
        self.shown = Instant::now();
        let Self { done, total, .. } = *self;
        let each = self.started.elapsed().as_secs_f64() / done as f64;
        let left = each * (total - done) as f64 / 60.0;
        eprintln!("progress: {done}/{total} executions, {left:.0} min left");
    }
}

/// Runs each program undisturbed. Returns the ways in which each can be disturbed.
fn ways(
    places: &[Place],
    bounds: &mut Bounds,
    extent: Extent,
    table: &mut Table,
    show: bool,
) -> Result<Vec<Way>> {
    let mut ways = Vec::new();
    for &place in places {
        let (program, kind, scene) = (place.program.name(), place.kind.name(), place.scene.name());
        let started = Instant::now();
        let (run, outcome) = execute(place, Happens::Nothing, bounds, &[])?;
        let took = started.elapsed().as_millis();
        let (calls, threads) = (run.calls.len(), run.threads);
        println!(
            "    {program}, {kind}, {scene}: {calls} calls, {threads} threads, {outcome}, {took} ms"
        );
        // The old rule could prove nothing if a list had several pages.
        let any = matches!(extent, Extent::OldRule) || outcome.starts_with("WRONG");
        let expected = (outcome == "opened") != place.is_refused();
        ensure!(any || expected, "{program}, {kind}, {scene}, undisturbed: {outcome}");
        ways.extend(plan::ways(place, &run.calls, extent)?);
        let row = Row { place, happens: Happens::Nothing, at: Vec::new() };
        table.add(show, row, String::new(), outcome);
    }
    Ok(ways)
}

/// A permutation of the numbers below `len`.
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

/// Runs a program once, in a new world, and returns the outcome.
fn execute(
    place: Place,
    happens: Happens,
    bounds: &mut Bounds,
    at: &[Point],
) -> Result<(trace::Run, String)> {
    let Place { program, kind, scene } = place;
    let mut world = World::new(kind);
    let is_alone = scene.parts.is_empty();
    let old = if program.needs_old() || scene.stale { mutation::SAME } else { None };
    mutation::prepare(&mut world, &happens.mutations(), old, program.needs_old() || !is_alone)?;
    let process = scene.start(&mut world, bounds, program)?;
    let mut run = trace::run(process, at, trace::LIMIT, |boundary| {
        happens.at(boundary).into_iter().try_for_each(|one| one.happen(&mut world))
    })?;
    let outcome = match judge::judge(&world, program, &run)? {
        // With more than one thread, the number of calls varies.
        right if !at.is_empty() && run.reached == 0 && !right.starts_with("WRONG") => {
            if run.threads > 1 { "not reached" } else { "WRONG: never came to this call" }
                .to_owned()
        }
        outcome => outcome,
    };
    run.process.kill(Duration::from_secs(10))?;
    world.clean()?;
    Ok((run, outcome))
}
