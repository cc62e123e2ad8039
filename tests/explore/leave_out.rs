//! What each check is good for: it is left out, and what then goes wrong is looked for.
//!
//! Where nothing does, another check stands behind it; so two are left out at a time, too.

use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{Host, Policy, Registry, Step, leave_out};

use crate::happens::Event;
use crate::search::{Limits, everything, explore_all};
use crate::{identity_events, is_base, is_full, is_plain};

type Check = (Step, &'static str);

/// The checks that nothing stands behind: without one of these it comes to the wrong device.
const NEEDED: [Check; 2] = [
    (Step::Pin, "uverbs directory (inode)"),
    (Step::Prove, "new contexts of this thread under the index"),
];

#[test]
fn each_check_earns_its_place() {
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
    let context = device.open().expect("opened");
    context.evidence().checks().iter().map(|check| (check.step, check.what)).collect()
}

/// The shortest plan that leads to the wrong device.
fn first_wrong(left_out: &[Check], depth: usize, events: &[&'static Event]) -> Option<String> {
    leave_out::leave_out(left_out);
    // More than one thing at a time in the plain worlds alone.
    let all_worlds = is_full() && depth == 1 && left_out.len() == 1;
    let limits = Limits { depth, stride: 1, first_wrong: true };
    let tally = explore_all(|play| is_plain(play) || (all_worlds && is_base(play)), limits, events);
    let wrong = tally.wrong.into_iter().min_by_key(|(_, plan)| plan.len());
    let told = wrong.map(|(play, plan)| play.trace(&plan));
    leave_out::leave_out(&[]);
    told
}
