//! What each check is good for: it is left out, and what then goes wrong is looked for.
//!
//! Where nothing does, another check stands behind it; so two are left out at a time, too.

use std::sync::Mutex;

use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{Host, Policy, Registry, Step, leave_out};

use crate::happens::{Event, PAGE};
use crate::play::{Play, Program, Setup};
use crate::search::{Limits, everything, explore_all};
use crate::{identity_events, is_base, is_full, is_plain, list_events};

type Check = (Step, &'static str);

/// The checks that nothing stands behind: without one of these it comes to the wrong device.
const NEEDED: [Check; 4] = [
    (Step::Pin, "uverbs directory (inode)"),
    (Step::Prove, "PD of a new thread, under the index"),
    (Step::Prove, "context number, before"),
    (Step::Prove, "thread of the context of that number"),
];

/// What is left out is left out of the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The rule that was broken once is still found to be: an exploration that does not find that proves nothing.
#[test]
fn the_old_rule_binds_wrongly() {
    let _alone = ONE_AT_A_TIME.lock();
    leave_out::old_rule(true);
    let limits = Limits { depth: 1, stride: 1, first_wrong: false };
    let is_wanted = |play: Play| {
        let opens = matches!(play.program, Program::Open | Program::ListAndOpen);
        opens && play.setup.stale && (is_full() || play.setup.crowd.others == PAGE)
    };
    let tally = explore_all(is_wanted, limits, &list_events());
    let found = tally.shortest_wrong(|_| true);
    leave_out::old_rule(false);
    tally.print("one event, by the old rule");
    for (_, trace) in &found {
        println!("{trace}");
    }
    let found: Vec<Program> = found.into_iter().map(|(program, _)| program).collect();
    assert_eq!(found, [Program::ListAndOpen, Program::Open]);
}

#[test]
fn each_check_earns_its_place() {
    let _alone = ONE_AT_A_TIME.lock();
    let checks = checks();
    // Bounded, and with two events at a time, by those that change which device is which.
    let singles = if is_full() { everything() } else { identity_events() };
    let deeper = |left_out: &[Check]| {
        is_full().then(|| first_wrong(left_out, 2, &identity_events())).flatten()
    };
    let mut needed = Vec::new();
    println!("| step | check left out | what then goes wrong |\n|---|---|---|");
    for &(step, what) in &checks {
        let left_out = [(step, what)];
        let wrong = first_wrong(&left_out, 1, &singles).or_else(|| deeper(&left_out));
        if wrong.is_some() {
            needed.push((step, what));
        }
        let wrong = wrong.unwrap_or_else(|| "nothing was found".to_owned());
        println!("| {} | {what} | {wrong} |", step.number());
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
                println!("| {} {one}; {} {other} | {wrong} |", a.number(), b.number());
            }
        }
    }
}

/// All checks of an open.
fn checks() -> Vec<Check> {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("rxe0")).expect("added");
    let registry = Registry::new(Host::simulated(&machine, Policy::new()).expect("a host"));
    let device = registry.devices().expect("a list").by_name("rxe0").expect("listed");
    // The first open has no guess of a number, the second has.
    let contexts = [0, 1].map(|_| device.open().expect("opened"));
    let checks = contexts.iter().flat_map(|context| context.evidence().checks());
    let mut found: Vec<Check> = Vec::new();
    for check in checks.map(|check| (check.step, check.what)) {
        if !found.contains(&check) {
            found.push(check);
        }
    }
    found
}

/// The shortest plan that leads to the wrong device.
fn first_wrong(left_out: &[Check], depth: usize, events: &[&'static Event]) -> Option<String> {
    leave_out::leave_out(left_out);
    // More than one thing at a time in the plain worlds alone; and one world where a wrong device is at hand.
    let all_worlds = is_full() && depth == 1 && left_out.len() == 1;
    let limits = Limits { depth, stride: 1, first_wrong: true };
    let wanted = |play: Play| {
        let Setup { stale, held, meddles, .. } = play.setup;
        let is_adverse = stale && play.program.binds() && (held || !play.setup.is_crowded());
        let is_adverse = is_adverse && (held || !meddles);
        is_plain(play) || is_adverse || (all_worlds && is_base(play))
    };
    let tally = explore_all(wanted, limits, events);
    let wrong = tally.wrong.into_iter().min_by_key(|(_, plan)| plan.len());
    let told = wrong.map(|(play, plan)| play.trace(&plan));
    leave_out::leave_out(&[]);
    told
}
