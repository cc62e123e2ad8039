//! The purpose of each check: it is left out, and the exploration looks for what then goes wrong.
//!
//! If nothing goes wrong, another check backs it, so two are left out at a time, too.

use std::sync::{Mutex, PoisonError};

use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{CheckId, Device, Host, Registry, Step, leave_out};

use crate::happens::{Event, OF_HANDLES, PAGE};
use crate::ibverbs::{self, Part};
use crate::play::{Play, Program};
use crate::search::{Limits, everything, explore_all};
use crate::{
    adverse_events, handle_events, identity_events, is_base, is_full, is_plain, is_small,
    list_events, named,
};

type Check = (Step, CheckId);

/// The checks that no other check backs: without one of these, a wrong device is opened.
const NEEDED: [Check; 3] = [
    (Step::Pin, CheckId::UverbsInode),
    (Step::Prove, CheckId::ProtectionDomain),
    (Step::Prove, CheckId::Context),
];

/// A left-out check is left out for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The rule that was broken once is found to bind wrongly by single events.
#[test]
fn the_old_rule_is_found_wrong() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    leave_out::old_rule(true);
    let opens = |play: Play| matches!(play.program, Program::Open | Program::ListAndOpen);
    let limits = Limits { depth: 1, stride: 1, first_wrong: false };
    let is_wanted = |play: Play| {
        let is_small = is_full() || play.setup.crowd.others <= PAGE;
        opens(play) && play.setup.stale && play.setup.known.is_none() && is_small
    };
    let tally = explore_all(is_wanted, limits, &list_events());
    leave_out::old_rule(false);
    tally.print("the rule that counted contexts");
    let found = tally.shortest_wrong(|play| !play.setup.meddles);
    for (_, trace) in &found {
        println!("the old rule: {trace}");
    }
    let found: Vec<Program> = found.into_iter().map(|(program, _)| program).collect();
    assert_eq!(found, [Program::ListAndOpen, Program::Open]);
}

#[test]
fn each_needed_check_is_found_necessary() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let checks = checks();
    // Bounded, and with two events at a time: only events that change which device is which.
    let singles = match is_full() {
        true => everything(),
        false => identity_events().into_iter().chain(adverse_events()).collect(),
    };
    let deeper = |left_out: &[Check]| {
        is_full().then(|| first_wrong(left_out, 2, &identity_events())).flatten()
    };
    let mut needed = Vec::new();
    println!("| step | check left out | what then goes wrong |\n|---|---|---|");
    for &(step, id) in &checks {
        let left_out = [(step, id)];
        let wrong = first_wrong(&left_out, 1, &singles).or_else(|| deeper(&left_out));
        if wrong.is_some() {
            needed.push((step, id));
        }
        let wrong = wrong.unwrap_or_else(|| "nothing was found".to_owned());
        println!("| {} | {} | {wrong} |", step.number(), id.name());
    }
    assert_eq!(needed, NEEDED, "an exploration that does not find these proves nothing");
    if !is_full() {
        return;
    }
    println!("\n| left out together | what then goes wrong |\n|---|---|");
    for (at, &first) in checks.iter().enumerate() {
        for &second in checks.iter().skip(at + 1) {
            if needed.contains(&first) || needed.contains(&second) {
                continue;
            }
            if let Some(wrong) = first_wrong(&[first, second], 1, &everything()) {
                let [(a, one), (b, other)] = [first, second];
                let (one, other) = (one.name(), other.name());
                println!("| {} {one}; {} {other} | {wrong} |", a.number(), b.number());
            }
        }
    }
}

/// What of the guard no other part backs: without one of these, a program on libibverbs gets a wrong device.
const NEEDED_OF_GUARD: [Left; 6] = [
    Left::Check(CheckId::Epoch),
    Left::Check(CheckId::HandleGuid),
    Left::Check(CheckId::HandleName),
    Left::Part(Part::Mending),
    Left::Part(Part::MendingWhole),
    Left::Part(Part::Proof),
];

/// Something of the guard that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    Check(CheckId),
    Part(Part),
}

#[test]
fn each_part_of_the_guard_is_found_necessary() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let checks = [CheckId::Epoch, CheckId::HandleGuid, CheckId::HandleName, CheckId::HandleNode]
        .map(Left::Check);
    let parts = [Part::Mending, Part::MendingWhole, Part::Proof].map(Left::Part);
    let mut needed = Vec::new();
    println!("| left out of the guard | what then goes wrong |\n|---|---|");
    for left in checks.into_iter().chain(parts) {
        match left {
            Left::Check(id) => leave_out::leave_out(&[(Step::Handle, id)]),
            Left::Part(part) => ibverbs::leave_out(Some(part)),
        }
        // One event, and two of the few that a handle or a list may mistake.
        let few = named(&["swap names", "reload ib_core, index reused", "EIO"]);
        let few = few.into_iter().chain(OF_HANDLES).collect::<Vec<_>>();
        let first = |depth, events: &[&'static Event]| {
            let limits = Limits { depth, stride: 1, first_wrong: true };
            let is_wanted = |play: Play| {
                let is_one =
                    play.setup.disassociates && !play.setup.held && !play.setup.static_node;
                play.program.is_guarded() && is_small(play) && (depth == 1 || is_one)
            };
            let tally = explore_all(is_wanted, limits, events);
            let (play, plan) = tally.wrong.into_iter().min_by_key(|(_, plan)| plan.len())?;
            Some(play.trace(&plan))
        };
        let wrong = first(1, &handle_events()).or_else(|| first(2, &few));
        leave_out::leave_out(&[]);
        ibverbs::leave_out(None);
        if wrong.is_some() {
            needed.push(left);
        }
        println!("| {left:?} | {} |", wrong.unwrap_or_else(|| "nothing was found".to_owned()));
    }
    assert_eq!(needed, NEEDED_OF_GUARD, "an exploration that does not find these proves nothing");
}

/// All checks of an open: of one with a PD, and of one for which the driver allocates none.
fn checks() -> Vec<Check> {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("rxe0")).expect("added");
    let listed = || {
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        registry.devices().expect("a list").by_name("rxe0").expect("listed")
    };
    let mut checks: Vec<Check> = Vec::new();
    let mut open = |device: &Device| {
        let context = device.open().expect("opened");
        for check in context.evidence().checks() {
            if !checks.contains(&(check.step, check.id)) {
                checks.push((check.step, check.id));
            }
        }
    };
    open(&listed());
    machine.fail_alloc_pd(22, u32::MAX);
    open(&listed());
    checks.sort_by_key(|(step, _)| *step);
    checks
}

/// The shortest plan that leads to the wrong device.
fn first_wrong(left_out: &[Check], depth: usize, events: &[&'static Event]) -> Option<String> {
    leave_out::leave_out(left_out);
    // More than one event at a time only in the plain worlds.
    let all_worlds = is_full() && depth == 1 && left_out.len() == 1;
    let limits = Limits { depth, stride: 1, first_wrong: true };
    // Adverse worlds in which the crowd does not matter: no check depends on it.
    let is_wanted = |play: Play| {
        let is_adverse =
            play.setup.is_adverse() && !play.setup.is_crowded() && play.program.binds();
        is_plain(play) || is_adverse || (all_worlds && is_base(play))
    };
    let tally = explore_all(is_wanted, limits, events);
    let wrong = tally.wrong.into_iter().min_by_key(|(_, plan)| plan.len());
    let trace = wrong.map(|(play, plan)| play.trace(&plan));
    leave_out::leave_out(&[]);
    trace
}
