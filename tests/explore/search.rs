//! The search: every event at every call of a play, and recursively at every call of the result.
//!
//! Each plan is executed from the start. If the world and all results of its calls are the same as in another
//! execution, the rest of both is the same, and its events need not be tried twice. So most plans are cut short or
//! not tried at all: those whose event changes nothing, and those whose event may as well come one call later.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::happens::{self, Class, Event};
use uverbs::ErrorKind;

use crate::play::{Execution, GUARDED, PROGRAMS, Plan, Play, Program, Setup, Show};

/// The outcomes that a program may have, whatever happens. The wrong device is never allowed.
const ALLOWED: &[&str] = &[
    "ok",
    "NotFound",
    "Removed",
    "Replaced",
    "Unstable",
    "NodeMismatch",
    "Unproven",
    "OtherNamespace",
    "NetlinkUnavailable",
    "PermissionDenied",
    "Malformed",
    "Os",
];

/// An open starts over twice, so it tolerates two changes.
const OFTEN: usize = 3;

/// What was explored, and the outcomes.
#[derive(Default)]
pub(crate) struct Tally {
    /// Executions that were judged, by the number of events.
    executions: [u64; 4],
    /// Executions that were cut short because their rest was known.
    pruned: u64,
    /// By the last event and the outcome.
    outcomes: BTreeMap<(&'static str, String), u64>,
    /// Bound to the wrong device: the plays and their plans.
    pub(crate) wrong: Vec<(Play, Vec<(u64, &'static Event)>)>,
}

impl Tally {
    fn judge(&mut self, play: Play, plan: Plan<'_>, execution: &Execution) {
        self.executions[plan.len()] += 1;
        if execution.wrong {
            self.wrong.push((play, plan.to_vec()));
        }
        let outcome = execution.outcome();
        assert!(ALLOWED.contains(&outcome.as_str()), "{outcome}: {play:?}: {}", Show(plan));
        let name = plan.last().map_or("nothing", |(_, event)| event.name);
        *self.outcomes.entry((name, outcome)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: Self) {
        for (sum, more) in self.executions.iter_mut().zip(other.executions) {
            *sum += more;
        }
        self.pruned += other.pruned;
        self.wrong.extend(other.wrong);
        for (key, count) in other.outcomes {
            *self.outcomes.entry(key).or_default() += count;
        }
    }

    pub(crate) fn print(&self, what: &str) {
        for ((event, outcome), count) in &self.outcomes {
            println!("{event:40} {outcome:18} {count}");
        }
        let [none, one, two, three] = self.executions;
        println!(
            "{what}: {} executions ({none} undisturbed, {one} with one event, {two} with two, {three} with three; \
             {} cut short where their rest was known), {} wrong, 0 left open",
            self.executions.iter().sum::<u64>() + self.pruned,
            self.pruned,
            self.wrong.len(),
        );
        for (play, plan) in self.wrong.iter().take(5) {
            println!("WRONG: {}", play.trace(plan));
        }
    }

    /// Requires that the wrong device was never opened.
    pub(crate) fn require_right(&self, what: &str) {
        self.print(what);
        assert!(self.wrong.is_empty(), "the wrong device was opened");
    }

    #[cfg(uverbs_leave_out)]
    /// The shortest plans that went wrong, for each program, in worlds that `wanted` accepts.
    pub(crate) fn shortest_wrong(&self, wanted: impl Fn(Play) -> bool) -> Vec<(Program, String)> {
        let shortest = |program| {
            let wrong =
                self.wrong.iter().filter(|(play, _)| play.program == program && wanted(*play));
            let (play, plan) = wrong.min_by_key(|(_, plan)| plan.len())?;
            Some((program, play.trace(plan)))
        };
        PROGRAMS.into_iter().filter_map(shortest).collect()
    }
}

/// The states that were seen, each with the number of further events that were tried from there.
type Seen = Arc<Mutex<HashMap<u64, usize>>>;

/// What the search looks for, and how far.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// The number of events.
    pub(crate) depth: usize,
    /// Of the plans with the most events, one in this many is tried.
    pub(crate) stride: u64,
    /// Whether to end at the first wrong binding.
    pub(crate) first_wrong: bool,
}

/// A call that an event may precede.
#[derive(Clone, Copy)]
struct Point {
    number: u64,
    class: Class,
    /// Whether the program closed something, or other code opened something, after this call and before the next.
    acts: bool,
}

impl Point {
    /// Whether it matters that the event comes before this call, and not before the next.
    fn matters(&self, event: &Event) -> bool {
        self.acts || event.matters_to.contains(&self.class)
    }
}

/// What is observed of an execution while it runs.
#[derive(Default)]
struct Watched {
    points: Vec<Point>,
    acts: u64,
    /// From this call on, the rest is known.
    known: bool,
}

struct Search {
    play: Play,
    limits: Limits,
    events: Vec<&'static Event>,
    seen: Seen,
    turn: u64,
    /// The outcome if nothing happens; `None` if that is wrong.
    undisturbed: Option<Result<(), ErrorKind>>,
    tally: Tally,
}

impl Search {
    fn new(play: Play, limits: Limits, events: &[&'static Event]) -> Self {
        Self {
            play,
            limits,
            events: events.to_vec(),
            seen: Seen::default(),
            turn: 0,
            undisturbed: None,
            tally: Tally::default(),
        }
    }

    fn visit(&mut self, plan: &mut Vec<(u64, &'static Event)>) {
        let left = self.limits.depth - plan.len();
        let (execution, watched) = self.execute(plan, left);
        if watched.known {
            self.tally.pruned += 1;
        } else {
            self.tally.judge(self.play, plan, &execution);
            self.require_harmless(plan, &execution);
        }
        if left == 0 {
            return;
        }
        // From the end: what is the same one call later is known by then.
        for point in watched.points.iter().rev() {
            for event in self.events.clone() {
                if self.limits.first_wrong && !self.tally.wrong.is_empty() {
                    return;
                }
                if !point.matters(event) || (left == 1 && !self.has_its_turn()) {
                    continue;
                }
                plan.push((point.number, event));
                self.visit(plan);
                plan.pop();
            }
        }
    }

    /// A harmless event must not cause an error, unless it happens too often.
    fn require_harmless(&mut self, plan: Plan<'_>, execution: &Execution) {
        if plan.is_empty() {
            self.undisturbed = (!execution.wrong).then_some(execution.result);
        }
        let is_guarded = self.play.program.is_guarded();
        let harmless = |event: &Event| {
            // libibverbs' own calls are not repeated, and it finds no device by a name that is another's by then.
            let may_fail = is_guarded && (event.is_fault || event.matters_to == happens::NAME);
            event.is_harmless && (plan.len() == 1 || !event.is_fault) && !may_fail
        };
        let is_harmless = plan.len() < OFTEN && plan.iter().all(|(_, event)| harmless(event));
        let result = execution.result;
        let Some(undisturbed) = self.undisturbed else { return };
        // A pinning program may have to pin again if something changed or was added to the list. A list of several
        // pages may not end in time.
        let is_verify = matches!(self.play.program, Program::Verify | Program::VerifyKeeping);
        let again = (is_verify || self.play.setup.is_crowded())
            && matches!(result, Err(ErrorKind::Unstable | ErrorKind::Unproven));
        assert!(
            !is_harmless || result == undisturbed || result.is_ok() || again,
            "{result:?}, where it is {:?} undisturbed: {}",
            self.undisturbed,
            self.play.trace(plan)
        );
    }

    fn has_its_turn(&mut self) -> bool {
        self.turn += 1;
        self.turn.is_multiple_of(self.limits.stride)
    }

    /// Runs a plan until its outcome is known.
    fn execute(&self, plan: Plan<'_>, left: usize) -> (Execution, Watched) {
        let (from, is_fault) = plan.last().map_or((0, false), |(at, event)| (*at, event.is_fault));
        // A fault changes nothing before its call is complete.
        let from = if is_fault { from + 1 } else { from };
        let watched = Arc::new(Mutex::new(Watched::default()));
        let (seen, shared) = (self.seen.clone(), watched.clone());
        let execution = self.play.execute(plan, move |number, call, world| {
            if number < from || (left == 0 && number > from) {
                return false;
            }
            let mut watched = shared.lock().expect("no panic");
            if watched.known {
                return false;
            }
            let watched = &mut *watched;
            let acts = world.closed() + world.opened_by_others();
            let has_acted = std::mem::replace(&mut watched.acts, acts) != acts;
            if let Some(before) = watched.points.last_mut() {
                before.acts = has_acted;
            }
            let mut seen = seen.lock().expect("no panic");
            let state = world.fingerprint();
            watched.known = seen.get(&state).is_some_and(|tried| *tried >= left);
            if !watched.known {
                seen.insert(state, left);
                if left > 0 {
                    let class = Class::of(call, world);
                    watched.points.push(Point { number, class, acts: false });
                }
            }
            watched.known
        });
        let watched = std::mem::take(&mut *watched.lock().expect("no panic"));
        (execution, watched)
    }
}

/// All programs in all worlds that `wanted` accepts, on all processors.
pub(crate) fn explore_all(
    wanted: impl Fn(Play) -> bool,
    limits: Limits,
    events: &[&'static Event],
) -> Tally {
    let plays: Vec<Play> = PROGRAMS
        .into_iter()
        .chain(GUARDED)
        .flat_map(|program| Setup::all().map(move |setup| Play { program, setup }))
        .filter(|play| wanted(*play))
        .collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Tally::default());
    let workers = thread::available_parallelism().map_or(1, |n| n.get());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(play) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if limits.first_wrong && !total.lock().expect("no panic").wrong.is_empty() {
                        break;
                    }
                    let mut search = Search::new(*play, limits, events);
                    search.visit(&mut Vec::new());
                    if limits.stride == 1 && !limits.first_wrong {
                        let executions: u64 = search.tally.executions.iter().sum();
                        println!(
                            "{play}: {executions} executions and {} cut short",
                            search.tally.pruned
                        );
                    }
                    total.lock().expect("no panic").add(search.tally);
                }
            });
        }
    });
    total.into_inner().expect("no panic")
}

/// All events.
pub(crate) fn everything() -> Vec<&'static Event> {
    happens::all().collect()
}

/// Tests, for all calls of a play, that it really makes no difference if an event comes one call later where
/// [`Event::matters_to`] claims that. Returns how many were compared.
pub(crate) fn compare_later(play: Play) -> u64 {
    let state_at = |plan: Plan<'_>, at: u64| {
        let state = Arc::new(Mutex::new(None));
        let shared = state.clone();
        play.execute(plan, move |number, _, world| {
            if number == at {
                *shared.lock().expect("no panic") = Some(world.fingerprint());
            }
            number == at
        });
        state.lock().expect("no panic").take()
    };
    let search = Search::new(play, Limits { depth: 1, stride: 1, first_wrong: false }, &[]);
    let (_, watched) = search.execute(&[], 1);
    let mut compared = 0;
    for point in &watched.points {
        for event in happens::all().filter(|event| !point.matters(event)) {
            let (now, later) = (point.number, point.number + 1);
            // No call follows the last one.
            let Some(after) = state_at(&[(later, event)], later) else { continue };
            compared += 1;
            assert_eq!(
                state_at(&[(now, event)], later),
                Some(after),
                "{play:?}: {} matters before call {now}",
                event.name
            );
        }
    }
    compared
}
