//! Hot plug at every kernel call of a watch, on the simulated kernel.
//!
//! A world has some devices and a program that watches them, and lists in between. One change of the world, with or
//! without its uevents, comes before any one of the program's kernel calls, or two before any two. The changes that
//! the watch reports are applied to the list that it began with. The result must be the kernel's list: one safety
//! interval after the last change, and much earlier where the kernel sent events and reported what it lost. Each
//! device must be added once and removed once, in this order; each new one must be ready once; the program
//! must not spin; and nothing may be left open.
//!
//! `UVERBS_EXPLORE=full` tries more pairs: one in 29 in the plain worlds, one in 997 in the others. With `RUSTFLAGS="--cfg uverbs_leave_out"`, parts of the watch
//! are left out in turn, and the search has to find a stale state.

mod happens;
mod play;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use happens::{Happening, everything};
use play::{Judgement, Plan, Setup};

/// Whether to try everything.
#[cfg(not(uverbs_leave_out))]
#[allow(clippy::disallowed_methods)] // a test's own switch: the library reads no variable
fn is_full() -> bool {
    std::env::var("UVERBS_EXPLORE").is_ok_and(|value| value == "full")
}

#[derive(Default)]
struct Tally {
    executions: [u64; 3],
    faults: Vec<String>,
}

impl Tally {
    fn add(&mut self, plan: &Plan, setup: Setup, judgement: Judgement) {
        self.executions[plan.len()] += 1;
        if let Err(fault) = judgement {
            self.faults.push(format!("{fault}: {setup:?}: {plan:?}"));
        }
    }
}

/// Every happening before every call, or before one in `step`, in the worlds that `wanted` accepts; and one in `stride`
/// of the pairs, if any.
fn explore(
    wanted: impl Fn(Setup) -> bool,
    happenings: &[Happening],
    step: usize,
    stride: Option<u64>,
) -> Tally {
    let setups: Vec<Setup> = Setup::all().filter(|setup| wanted(*setup)).collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Tally::default());
    let workers = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(setup) = setups.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = explore_one(*setup, happenings, step, stride);
                    let mut total = total.lock().expect("no panic");
                    for (sum, more) in total.executions.iter_mut().zip(found.executions) {
                        *sum += more;
                    }
                    total.faults.extend(found.faults);
                }
            });
        }
    });
    total.into_inner().expect("no panic")
}

fn explore_one(setup: Setup, happenings: &[Happening], step: usize, stride: Option<u64>) -> Tally {
    let mut tally = Tally::default();
    let (judgement, calls) = setup.execute(&[]);
    tally.add(&vec![], setup, judgement);
    let mut turn = 0;
    for at in (0..calls).step_by(step) {
        for happening in happenings {
            let plan = vec![(at, *happening)];
            let (judgement, calls) = setup.execute(&plan);
            tally.add(&plan, setup, judgement);
            let Some(stride) = stride else { continue };
            for second in at..calls {
                for other in happenings {
                    turn += 1;
                    if turn % stride == 0 {
                        let plan = vec![(at, *happening), (second, *other)];
                        let (judgement, _) = setup.execute(&plan);
                        tally.add(&plan, setup, judgement);
                    }
                }
            }
        }
    }
    tally
}

#[cfg(not(uverbs_leave_out))]
fn require_right(what: &str, tally: &Tally) {
    let [none, one, two] = tally.executions;
    println!(
        "{what}: {} executions ({none} undisturbed, {one} with one change, {two} with two), {} wrong",
        none + one + two,
        tally.faults.len()
    );
    for fault in tally.faults.iter().step_by(1 + tally.faults.len() / 20) {
        println!("WRONG: {fault}");
    }
    assert!(tally.faults.is_empty(), "{} wrong", tally.faults.len());
}

#[cfg(not(uverbs_leave_out))]
#[test]
fn one_and_two_changes() {
    let happenings = everything();
    let (step, others, plain) = if is_full() { (1, 997, 29) } else { (5, 200_003, 1_000_003) };
    let tally = explore(|setup| !setup.is_plain(), &happenings, step, Some(others));
    require_right("the other worlds", &tally);
    require_right("the plain worlds", &explore(Setup::is_plain, &happenings, 1, Some(plain)));
}

/// Without each of these parts, a stale state is found.
#[cfg(uverbs_leave_out)]
#[test]
fn each_part_earns_its_place() {
    use uverbs::leave_out::{WatchPart, leave_out_of_watch};
    let happenings = everything();
    let require = |part: Option<WatchPart>| {
        leave_out_of_watch(part);
        let tally = explore(Setup::is_plain, &happenings, 1, None);
        leave_out_of_watch(None);
        println!("{part:?} left out: {} of {}", tally.faults.len(), tally.executions[1]);
        let shortest = tally.faults.iter().min_by_key(|fault| fault.len());
        println!("  {shortest:?}");
        assert_eq!(tally.faults.is_empty(), part.is_none(), "{part:?}");
    };
    require(None);
    for part in [
        WatchPart::SafetySweep,
        WatchPart::SweepAfterLoss,
        WatchPart::SubscribeFirst,
        WatchPart::SweepAgain,
    ] {
        require(Some(part));
    }
}

/// Pairs that the larger search once found wrong.
#[cfg(not(uverbs_leave_out))]
#[test]
fn pairs_that_were_wrong() {
    use happens::Change::*;
    use happens::Fate::*;
    use happens::Fault::Fail;
    use happens::Happening::{Change as C, Fault as F};

    let plain = Setup::with;
    let small = |devices| Setup { room: 1, small_pages: true, lists: true, ..plain(devices) };
    let pairs: [(Setup, [(u64, Happening); 2]); 12] = [
        (Setup { room: 1, ..plain(0) }, [(88, C(Add, Cut)), (106, C(RemoveStages(4), Cut))]),
        (
            Setup { lists: true, ..plain(0) },
            [(30, C(BeginAdd, Sent)), (47, C(RemoveStages(4), Lost))],
        ),
        (plain(1), [(3, C(ReplaceTwice, Cut)), (29, F(Fail(12)))]),
        (Setup { room: 0, ..plain(1) }, [(1, C(MoveBack, SentTwice)), (21, F(Fail(12)))]),
        (Setup { room: 1, ..plain(1) }, [(3, C(ReplaceRenamed, Cut)), (28, F(Fail(24)))]),
        (small(2), [(1, C(Replace, Sent)), (34, F(Fail(12)))]),
        (small(2), [(89, C(SwapNames, Lost)), (117, C(SwapNames, Sent))]),
        (
            Setup { root_unmapped: true, is_brief: true, ..plain(2) },
            [(30, C(SwapNames, Reordered)), (49, C(SwapNames, Cut))],
        ),
        (
            Setup { small_pages: true, since_nothing: true, ..plain(2) },
            [(95, C(SwapNames, Lost)), (109, C(SwapNames, Cut))],
        ),
        (
            Setup { in_user_namespace: true, ..plain(2) },
            [(89, C(SwapNames, Lost)), (101, C(SwapNames, Delayed))],
        ),
        (
            Setup { is_deaf: true, disassociates: false, ..plain(2) },
            [(181, C(SwapNames, Reordered)), (196, C(SwapNames, Sent))],
        ),
        (
            Setup { small_pages: true, since_nothing: true, ..plain(2) },
            [(182, C(SwapNames, Cut)), (199, C(SwapNames, SentTwice))],
        ),
    ];
    // The calls have other numbers by now, so each is tried at some before and after, too.
    let mut tally = Tally::default();
    for (setup, [one, two]) in pairs {
        for earlier in 0..30 {
            for apart in 0..30 {
                let first = (one.0 + 15).saturating_sub(earlier);
                let second = first + (two.0 - one.0 + 15).saturating_sub(apart);
                let plan = vec![(first, one.1), (second, two.1)];
                let (judgement, _) = setup.execute(&plan);
                tally.add(&plan, setup, judgement);
            }
        }
    }
    require_right("pairs that were wrong, and their neighbours", &tally);
}
