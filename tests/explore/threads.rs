//! Two threads of one program on libibverbs, under the guard: both list, and one of them opens by the name.
//!
//! The simulated kernel has one thread. So the other thread's list is a sequence of steps: the list of libibverbs, and
//! for each handle, a name that is read over netlink and then written into the handle. The steps are made before two
//! of the system calls of the first thread: some before one call, and the rest before another one. Before any call,
//! devices may be renamed or replaced.

use std::sync::{Arc, Mutex, MutexGuard};

use uverbs::sim::{Call, Machine, Verdict, World};

use crate::happens::{Class, Event, NAME, OF_HANDLES, spec};
use crate::ibverbs::{Handle, Ibverbs, keep};
use crate::play::Program;

/// The lists of one program: the handles that libibverbs keeps, and the two locks.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    handles: Vec<Handle>,
    /// Whether the first thread is in libibverbs' own list, which has a lock.
    is_listing: bool,
    /// Whether the first thread has the guard's lock.
    is_locked: bool,
    other: Option<Other>,
}

/// Holds the guard's lock.
pub(crate) struct Locked<'a>(&'a Shared);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.state().is_locked = false;
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic")
    }

    /// Takes the guard's lock. If the other thread has it, its list ends first.
    pub(crate) fn lock(&self, machine: &Machine) -> Locked<'_> {
        machine.with(|world| {
            let mut state = self.state();
            if state.other.as_ref().is_some_and(Other::has_lock) {
                state.go(world, Other::ALL);
            }
            state.is_locked = true;
        });
        Locked(self)
    }

    /// The handles that libibverbs has.
    pub(crate) fn begin_list(&self) -> Vec<Handle> {
        let mut state = self.state();
        state.is_listing = true;
        state.handles.clone()
    }

    pub(crate) fn end_list(&self, found: &[Handle]) {
        let mut state = self.state();
        state.is_listing = false;
        state.handles = found.to_vec();
    }
}

/// The list of the other thread.
#[derive(Default)]
struct Other {
    /// The number of steps that are made, and of those that are due. Where a lock is taken, they are made later.
    made: usize,
    due: usize,
    list: Vec<Handle>,
    /// The name that was read last, and is not written yet.
    read: Option<Vec<u8>>,
    /// Whether the guard's lists are made one at a time.
    is_alone: bool,
}

impl Other {
    /// All steps: a list of two devices.
    const ALL: usize = 5;

    fn has_lock(&self) -> bool {
        self.is_alone && (1..Self::ALL).contains(&self.made)
    }
}

impl State {
    /// The other thread makes these steps, unless it has to wait.
    fn go(&mut self, world: &World, steps: usize) {
        let Some(mut other) = self.other.take() else { return };
        other.due = Other::ALL.min(other.due + steps);
        while other.made < other.due && !self.waits(&other) {
            self.step(&mut other, world);
            other.made += 1;
        }
        self.other = Some(other);
    }

    fn waits(&self, other: &Other) -> bool {
        other.made == 0 && (self.is_listing || (other.is_alone && self.is_locked))
    }

    fn step(&mut self, other: &mut Other, world: &World) {
        let Some(at) = other.made.checked_sub(1) else {
            self.handles = listed(world, &self.handles);
            other.list.clone_from(&self.handles);
            return;
        };
        let Some(handle) = other.list.get(at / 2) else { return };
        if at.is_multiple_of(2) {
            other.read = name_of(world, handle.index);
        } else if let Some(name) = other.read.take() {
            handle.set_name(&name);
        }
    }
}

/// The devices that libibverbs finds, and their names and indices.
fn listed(world: &World, known: &[Handle]) -> Vec<Handle> {
    let there = world.listed().into_iter();
    let found = there.filter_map(|(number, _, name)| {
        let id = world.instance_of(number)?;
        let (index, guid) = (world.index_of(id), world.guid_of(id));
        Some(keep(known, Handle::new(index, (231, 192 + number), name, guid)))
    });
    found.collect()
}

fn name_of(world: &World, index: u32) -> Option<Vec<u8>> {
    let mut there = world.listed().into_iter();
    there.find_map(|(number, _, name)| {
        (world.index_of(world.instance_of(number)?) == index).then_some(name)
    })
}

/// When the other thread makes its steps, and when something happens: each before the call with that number.
#[derive(Clone, Debug)]
struct Turns {
    /// The first steps, and how many.
    first: (u64, usize),
    /// All others.
    rest: u64,
    events: Vec<(u64, usize)>,
}

/// What came of an execution.
struct Ended {
    wrong: bool,
    opened: bool,
    /// The calls of the list.
    calls: Vec<Class>,
}

/// Lists again and opens by the name, while the other thread lists.
fn execute(turns: &Turns, events: &[&'static Event], is_alone: bool) -> Ended {
    let machine = Machine::new();
    let id = machine.add(spec("rxe0", 0xa0)).expect("a new machine takes a device");
    machine.add(spec("rxe1", 0xa0)).expect("and another one");
    let mut ibverbs = Ibverbs::new(&machine);
    ibverbs.list(Program::GuardedAgain).expect("a list");
    let start = machine.calls() + 1;
    let (shared, asked) = (ibverbs.shared.clone(), ibverbs.asked.clone());
    shared.state().other = Some(Other { is_alone, ..Other::default() });
    let (plan, events) = (turns.clone(), events.to_vec());
    let (calls, in_hook) = (Arc::new(Mutex::new(Vec::new())), shared);
    let listed = calls.clone();
    machine.on_call(move |world, call: &Call<'_>| {
        let number = call.ordinal() - start;
        let mut state = in_hook.state();
        if state.is_locked {
            listed.lock().expect("no panic").push(Class::of(call, world));
        }
        let steps = if number == plan.first.0 { plan.first.1 } else { 0 };
        state.go(world, if number >= plan.rest { Other::ALL } else { steps });
        let mut verdict = Verdict::Continue;
        for (_, event) in plan.events.iter().filter(|(at, _)| *at == number) {
            let more = events[*event].happen(world, id);
            if more != Verdict::Continue {
                verdict = more;
            }
        }
        if NAME.contains(&Class::of(call, world)) {
            asked.observe(Program::GuardedAgain, world);
        }
        verdict
    });
    let (result, wrong) = ibverbs.run(Program::GuardedAgain);
    machine.clear_hook();
    drop(ibverbs);
    let calls = std::mem::take(&mut *calls.lock().expect("no panic"));
    assert_eq!(machine.open_handles(), 0, "left open: {turns:?}");
    Ended { wrong, opened: result.is_ok(), calls }
}

/// Counts of executions.
#[derive(Debug, Default)]
struct Tally {
    executions: u64,
    opened: u64,
    wrong: u64,
    example: Option<String>,
}

/// All turns with one event, and some of those with two. Unless everything is to be tried, only before those calls with
/// which a name or an epoch is requested, and with few events.
fn explore(is_alone: bool) -> Tally {
    /// One in so many executions with two events is made.
    const PAIRS: u64 = 41;
    let mut events = crate::named(&["rename", "swap names"]);
    // Reloads of ib_core are in the other exploration.
    events.extend(OF_HANDLES.iter().filter(|event| event.name == "replace, and swap names"));
    if crate::is_full() {
        events.extend(crate::named(&["replace, other name", "EIO"]));
    }
    let never = Turns { first: (u64::MAX, 0), rest: u64::MAX, events: Vec::new() };
    let calls = execute(&never, &events, is_alone).calls;
    let requests =
        |class: &Class| crate::is_full() || matches!(class, Class::Send | Class::SysOpen);
    let mut places: Vec<u64> =
        (0..).zip(&calls).filter(|(_, c)| requests(c)).map(|(at, _)| at).collect();
    assert!(places.len() > 10, "a list of {} calls", calls.len());
    let mut tally = Tally::default();
    let mut run = |turns: &Turns| {
        let ended = execute(turns, &events, is_alone);
        tally.executions += 1;
        tally.opened += u64::from(ended.opened);
        tally.wrong += u64::from(ended.wrong);
        if ended.wrong && tally.example.is_none() {
            let names: Vec<_> = turns.events.iter().map(|(_, event)| events[*event].name).collect();
            tally.example = Some(format!("{turns:?} {names:?}"));
        }
    };
    let happen: Vec<(u64, usize)> =
        places.iter().flat_map(|at| (0..events.len()).map(move |event| (*at, event))).collect();
    // The first call after the list: its handle is chosen.
    places.push(calls.len() as u64);
    let mut pairs = 0_u64;
    for (number, &at) in places.iter().enumerate() {
        let turns =
            places[number..].iter().flat_map(|&rest| (1..Other::ALL).map(move |n| ((at, n), rest)));
        for (first, rest) in turns {
            for &one in &happen {
                run(&Turns { first, rest, events: vec![one] });
                for &other in happen.iter().filter(|other| other.0 > one.0) {
                    pairs += 1;
                    if pairs.is_multiple_of(PAIRS) {
                        run(&Turns { first, rest, events: vec![one, other] });
                    }
                }
            }
        }
    }
    tally
}

/// With the guard's lists made one at a time, no program gets a wrong device. Otherwise one does: a thread writes a name
/// that it read before the devices swapped theirs, after the program's list has written the new one.
#[test]
fn two_threads_list_at_once() {
    let tally = explore(true);
    println!("one list at a time: {tally:?}");
    assert!(tally.opened > 1000, "hardly anything was opened");
    assert_eq!(tally.wrong, 0, "the wrong device was opened");
    let tally = explore(false);
    println!("without the lock: {tally:?}");
    assert!(tally.wrong > 0, "the lock was not found necessary");
}
