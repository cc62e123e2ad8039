//! Tests that the simulated kernel is true. Each script is played on the running kernel and on a simulated one, by
//! the same code, and all observations must be the same. A difference is a failure.

mod attack;
pub(crate) mod dump;
mod foreign;
mod nldev;
mod notify;
mod pages;
mod play;
mod real;
mod script;
mod show;
mod side;
pub(crate) mod uevents;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use crate::guest;
use foreign::Foreign;
pub(crate) use nldev::{Elsewhere, rename};
use play::{Record, play};
use real::Real;
use script::{NEEDS, Needs, Script};
use show::show;
use side::{Side, Simulated};

/// How long the sampled scenario may run, and the share of it, in tenths, that each of [`NEEDS`] gets.
const BUDGET: Duration = Duration::from_secs(40);
const SHARES: [u32; 4] = [5, 2, 1, 2];

/// After this many differences, more are of no use.
const ENOUGH: usize = 20;

/// Goes through a list in an order that visits everything once, and some of everything early.
const STRIDE: usize = 7919;

#[derive(Default)]
struct Tally {
    singles: usize,
    pairs: usize,
    lines: usize,
    differences: Vec<String>,
}

pub(crate) fn run(args: &[&str]) -> Result<()> {
    let budget = match args {
        [] => Some(BUDGET),
        ["--full"] => None,
        ["--old-rule"] => return old_rule(),
        ["--seconds", seconds] => Some(Duration::from_secs(seconds.parse()?)),
        _ => bail!("usage: uverbs-lab compare [--full | --seconds N | --old-rule]"),
    };
    guest::clean()?;
    compare(budget)
}

/// A library that counts contexts by lists is found wrong on both kernels, and at the same calls.
#[cfg(uverbs_leave_out)]
fn old_rule() -> Result<()> {
    guest::clean()?;
    raise_descriptor_limit()?;
    uverbs::leave_out::old_rule(true);
    let foreign = Foreign::new();
    let (contexts, _) = measure(&foreign, &script::removal_that_waits().setup)?;
    let contexts = contexts.context("not on this kernel: it lists no contexts")?;
    let (wrong, differences) = compare_attack(&foreign, contexts.long, 1)?;
    ensure!(differences.is_empty(), "different:\n{}", differences.join("\n"));
    ensure!(wrong > 0, "the old rule was not found wrong: the attack proves nothing");
    Ok(())
}

#[cfg(not(uverbs_leave_out))]
fn old_rule() -> Result<()> {
    bail!("this build has no old rule: build it with --cfg uverbs_leave_out")
}

fn raise_descriptor_limit() -> Result<()> {
    let limit = Some(16384);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit, maximum: limit },
    )?;
    Ok(())
}

pub(crate) fn sampled() -> Result<()> {
    compare(Some(BUDGET))
}

/// Plays as many scripts as the budget allows, or all.
fn compare(budget: Option<Duration>) -> Result<()> {
    raise_descriptor_limit()?;
    let mut scripts = script::singles();
    let all_singles = scripts.len();
    scripts.extend(script::pairs());
    let total = scripts.len();
    ensure!(!total.is_multiple_of(STRIDE), "the stride leaves scripts out");
    let order: Vec<_> = (0..total).map(|turn| &scripts[turn * STRIDE % total]).collect();
    let (foreign, mut tally) = (Foreign::new(), Tally::default());
    control(&foreign)?;
    tally.differences = compare_lists(budget.map(|budget| budget / 2), &foreign)?;
    for (needs, share) in NEEDS.into_iter().zip(SHARES) {
        let elsewhere = match needs {
            Needs::Exclusive => Some(Elsewhere::new()?),
            _ => None,
        };
        if needs == Needs::NoRxe {
            // The module of the test HCA must not be loaded meanwhile: rxe binds to devices with its driver id.
            let _ = Command::new("rmmod").arg("uverbs_test_hca").output()?;
            guest::run("rmmod", &["rdma_rxe"])?;
        }
        if needs == Needs::FreshCore {
            guest::run("modprobe", &["rdma_rxe"])?;
        }
        let started = Instant::now();
        let mut played = 0;
        for script in order.iter().filter(|script| script.needs() == Some(needs)) {
            let over = budget.is_some_and(|budget| started.elapsed() > budget * share / 10);
            if over || tally.differences.len() >= ENOUGH {
                break;
            }
            if needs == Needs::FreshCore {
                guest::reload(true)?;
            }
            tally.play(script, &foreign, elsewhere.as_ref())?;
            played += 1;
        }
        ensure!(played > 0, "no script that needs {needs:?} was played");
        println!("    {needs:?}: {played} scripts in {:.1} s", started.elapsed().as_secs_f64());
    }
    println!(
        "{}: {} scripts with one mutation or none of {all_singles}, {} with two of {}; {} lines compared, {} scripts differ",
        guest::release(),
        tally.singles,
        tally.pairs,
        total - all_singles,
        tally.lines,
        tally.differences.len()
    );
    ensure!(tally.differences.is_empty(), "different:\n{}", tally.differences.join("\n"));
    Ok(())
}

impl Tally {
    fn play(
        &mut self,
        script: &Script,
        foreign: &Foreign,
        elsewhere: Option<&Elsewhere>,
    ) -> Result<()> {
        let real = on_real(script, foreign, elsewhere)?;
        let simulated = on_simulated(Simulated::new(&script.setup)?, script, foreign)?;
        match script.mutations.len() {
            0 | 1 => self.singles += 1,
            _ => self.pairs += 1,
        }
        self.lines += real.len();
        if real != simulated {
            let shown = show(script, &real, &simulated);
            println!("{shown}");
            self.differences.push(shown);
        }
        Ok(())
    }
}

/// Lists page by page and by number, as many as the budget allows.
fn compare_lists(budget: Option<Duration>, foreign: &Foreign) -> Result<Vec<String>> {
    let setup = script::removal_that_waits().setup;
    let mut differences = Vec::new();
    let mut lines = 0;
    let mut compare = |what: &dyn std::fmt::Debug,
                       play: &dyn Fn(&mut dyn Side) -> Result<Record>|
     -> Result<usize> {
        let mut real = Real::new(&setup, None)?;
        // An administrator sees more of a PD than the simulated kernel shows.
        let unprivileged = Unprivileged::new()?;
        let on_real = play(&mut real).with_context(|| format!("on the real kernel: {what:?}"));
        drop(unprivileged);
        Side::clean(&mut real)?;
        let (on_real, mut simulated) = (on_real?, Simulated::new(&setup)?);
        let simulated =
            play(&mut simulated).with_context(|| format!("on the simulated kernel: {what:?}"))?;
        lines += on_real.len();
        if on_real != simulated {
            let shown = show(what, &on_real, &simulated);
            println!("{shown}");
            differences.push(shown);
        }
        Ok(differences.len())
    };
    for disassociates in [false, true] {
        let play = |side: &mut dyn Side| pages::numbers(side, foreign, disassociates);
        compare(&format!("by number, disassociates {disassociates}"), &play)?;
    }
    let (contexts, pds) = measure(foreign, &setup)?;
    // A sample has one in four.
    let step = if budget.is_some() { 4 } else { 1 };
    let (wrong, attacked) = match contexts {
        Some(contexts) => compare_attack(foreign, contexts.long, step)?,
        None => (0, Vec::new()),
    };
    let scripts = pages::all(contexts, pds);
    ensure!(!scripts.len().is_multiple_of(STRIDE), "the stride leaves scripts out");
    let started = Instant::now();
    let mut played = 0;
    for turn in 0..scripts.len() {
        let script = &scripts[turn * STRIDE % scripts.len()];
        if budget.is_some_and(|budget| started.elapsed() > budget) {
            break;
        }
        played += 1;
        if compare(script, &|side| pages::play(side, foreign, script))? >= ENOUGH {
            break;
        }
    }
    println!(
        "    lists: {played} of {} dumps in {:.1} s; {lines} lines compared, {} scripts differ",
        scripts.len(),
        started.elapsed().as_secs_f64(),
        differences.len()
    );
    ensure!(played > 0, "no dump was compared");
    differences.extend(attacked);
    ensure!(wrong == 0, "the library was wrong {wrong} times");
    Ok(differences)
}

/// While this exists, this thread is not an administrator of the network.
struct Unprivileged(CapabilitySets);

impl Unprivileged {
    fn new() -> Result<Self> {
        let before = capabilities(None)?;
        let mut without = before;
        without.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, without)?;
        Ok(Self(before))
    }
}

impl Drop for Unprivileged {
    fn drop(&mut self) {
        set_capabilities(None, self.0).expect("what was permitted still is");
    }
}

/// The attack before each `recvfrom` of an open, on both kernels. Returns how many times the library was wrong on
/// the real one.
fn compare_attack(foreign: &Foreign, crowd: usize, step: usize) -> Result<(usize, Vec<String>)> {
    /// More calls than an open makes.
    const MOST: usize = 100;
    let setup = script::removal_that_waits().setup;
    let (mut wrong, mut differences) = (0, Vec::new());
    for at in (1..).step_by(step) {
        let mut real = Real::new(&setup, None)?;
        let on_real = attack::play(&mut real, foreign, crowd, at);
        let on_real = on_real.with_context(|| format!("on the real kernel, {at}"));
        Side::clean(&mut real)?;
        let on_real = on_real?;
        let simulated = attack::play(&mut Simulated::new(&setup)?, foreign, crowd, at);
        let simulated = simulated.with_context(|| format!("on the simulated kernel, {at}"))?;
        if on_real != simulated {
            differences.push(format!("attack at {at}\nREAL  {on_real:?}\nSIM   {simulated:?}"));
        }
        wrong += usize::from(on_real.is_wrong);
        if on_real.is_over {
            println!(
                "    attack before one in {step} of {} calls: wrong {wrong} times, {} differ",
                at - 1,
                differences.len()
            );
            return Ok((wrong, differences));
        }
        ensure!(at < MOST, "the open does not end");
    }
    unreachable!("the loop ends by itself")
}

/// Measures the pages of the real kernel. The lists on both kernels have these lengths.
fn measure(foreign: &Foreign, setup: &script::Setup) -> Result<(Option<dump::Pages>, dump::Pages)> {
    const ENOUGH: usize = 3600;
    let mut real = Real::new(setup, None)?;
    ensure!(real.add("tst", 0xa0, false)? == Ok(()));
    let probe = uverbs::sim::Probe::new(&real.host()?);
    let _unprivileged = Unprivileged::new()?;
    let opened = (0..ENOUGH).map(|_| foreign.open(&probe)?.ok().context("a context"));
    let opened = opened.collect::<Result<Vec<_>>>()?;
    for _ in 0..ENOUGH {
        ensure!(opened[0].alloc_pd().is_ok(), "ALLOC_PD");
    }
    let pages = |of| dump::Pages::measure(&probe, of, real.index(0), 2 * 1024);
    let contexts = match guest::lists_contexts()? {
        true => Some(pages(dump::Of::Contexts)?),
        false => None,
    };
    let pds = pages(dump::Of::Pds)?;
    drop(opened);
    Side::clean(&mut real)?;
    match contexts {
        Some(contexts) => println!("    pages of contexts: {contexts:?}"),
        None => println!("    lists of contexts: not on this kernel"),
    }
    println!("    pages of PDs: {pds:?}");
    Ok((contexts, pds))
}

fn on_real(script: &Script, foreign: &Foreign, elsewhere: Option<&Elsewhere>) -> Result<Record> {
    let played = || {
        let mut real = Real::new(&script.setup, elsewhere)?;
        let record = play(&mut real, foreign, script);
        Side::clean(&mut real)?;
        record
    };
    played().with_context(|| format!("on the real kernel: {script:?}"))
}

fn on_simulated(mut kernel: Simulated, script: &Script, foreign: &Foreign) -> Result<Record> {
    play(&mut kernel, foreign, script)
        .with_context(|| format!("on the simulated kernel: {script:?}"))
}

/// A simulated kernel that is known to be wrong must be caught.
fn control(foreign: &Foreign) -> Result<()> {
    let script = script::removal_that_waits();
    let real = on_real(&script, foreign, None)?;
    let simulated = on_simulated(Simulated::wrong(&script.setup)?, &script, foreign)?;
    ensure!(real != simulated, "a wrong kernel was not caught: the comparison proves nothing");
    Ok(())
}
