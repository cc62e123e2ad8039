//! Everything that may happen, at every kernel call, on the simulated kernel.
//!
//! A world with two devices; a program that lists and opens, opens what was listed before, pins and
//! verifies, takes over a descriptor by a claim, lists again, or asks; one event before any one of its
//! kernel calls, two before any two, three before any three. Whatever comes of it has to lie in a stated
//! set; what is opened is the instance that was asked for; nothing is left open; and it ends. Which instance
//! a descriptor is really bound to is asked of the simulated kernel, by the inode of its uverbs directory.
//!
//! Most worlds start with a node that leads to the right device. In the adverse ones it leads to another
//! device of the same GUID, whose removal waits, and the lists of contexts and PDs are as long as a buffer
//! or a page, or one shorter or longer; or the device has a provider that allocates a context of its own.
//!
//! `UVERBS_EXPLORE=full` tries, in place of some, all pairs in the plain worlds, and there all triples of those
//! events that change which device is which; for that build with `--release`. With
//! `RUSTFLAGS="--cfg uverbs_leave_out"` each check is left out in turn, to see what it is good for.

mod happens;
#[cfg(uverbs_leave_out)]
mod leave_out;
mod play;
mod search;

use happens::Event;
use play::{PROGRAMS, Play, Program, Setup};
use search::{Limits, compare_later, everything, explore_all};

/// Whether all of it is to be tried.
#[allow(clippy::disallowed_methods)] // a test's own switch: the library reads no variable
fn is_full() -> bool {
    std::env::var("UVERBS_EXPLORE").is_ok_and(|value| value == "full")
}

/// Worlds of which one, in the bounded run, stands for all that differ in the clock or the crowd.
fn is_plain(play: Play) -> bool {
    is_base(play) && !play.setup.is_crowded() && !play.setup.one_tick
}

/// Worlds where the node leads to the right device, if to any, and nobody claims anything.
fn is_base(play: Play) -> bool {
    !play.setup.is_adverse() && play.program.binds()
}

#[test]
fn an_event_that_does_not_matter_may_come_later() {
    let full = is_full();
    let mut compared = 0;
    for program in PROGRAMS {
        for setup in Setup::all() {
            let play = Play { program, setup };
            if (full && is_base(play)) || is_plain(play) {
                compared += compare_later(play);
            }
        }
    }
    println!("{compared} events, each before a call that it does not matter to and one call later");
    assert!(compared > 1000, "hardly anything was compared: {compared}");
}

/// One event before every call, and two before every two: some of these; or all in the plain worlds, and
/// some in the others, which differ from them in the clock or the crowd.
#[test]
fn one_and_two_events() {
    let full = is_full();
    let explore = |wanted: fn(Play) -> bool, depth, stride| {
        explore_all(wanted, Limits { depth, stride, first_wrong: false }, &everything())
    };
    let ((plain, other), (depth, stride)) =
        if full { ((2, 1), (2, 16)) } else { ((2, 797), (1, 5)) };
    let mut tally = explore(is_plain, plain, other);
    tally.require_right("one event all, two: the plain worlds");
    tally.add(explore(|play| is_base(play) && !is_plain(play), depth, stride));
    tally.require_right("one event, two: the worlds of a right node");
}

/// Three events, of those that change which device is which: some, of an open of a device whose driver does
/// not disassociate; or all, of every program in the plain worlds.
#[test]
fn three_events() {
    let is_hard =
        |play: Play| is_plain(play) && play.program == Program::Open && !play.setup.disassociates;
    let (what, wanted, stride): (_, fn(Play) -> bool, _) = match is_full() {
        true => ("three events, the plain worlds", is_plain, 1),
        false => ("three events, an open without disassociation", is_hard, 397),
    };
    let limits = Limits { depth: 3, stride, first_wrong: false };
    explore_all(wanted, limits, &identity_events()).require_right(what);
}

/// The adverse worlds: one event, of those that change lists; or all of them, and pairs of those in some
/// worlds.
///
/// A rule that takes "not listed" for "was not there" binds wrongly here (`leave_out`): a page of contexts
/// closes while they are listed, and an older context of the thread then looks new. So does a rule that
/// takes any new context of the thread for the descriptor's.
#[test]
fn lists_that_end_at_a_boundary() {
    let events = if is_full() { everything() } else { list_events() };
    let limits = Limits { depth: 1, stride: 1, first_wrong: false };
    // Bounded, two programs stand for those that differ in how they come to the same look.
    let is_wanted = |play: Play| {
        let Play { program, setup } = play;
        if program == Program::Adopt {
            // In those it has opened the device before, which is the one of the node.
            return !setup.is_adverse() && (is_full() || !setup.is_crowded());
        }
        let all_programs = setup.meddles || setup.crowd.others == happens::PAGE;
        let is_some = matches!(program, Program::Open | Program::Verify)
            || (all_programs && program != Program::Query);
        setup.is_adverse() && program.binds() && (is_full() || is_some)
    };
    let mut tally = explore_all(is_wanted, limits, &events);
    if is_full() {
        let some_worlds = |play: Play| {
            let Setup { crowd, meddles, stale, .. } = play.setup;
            play.program.binds() && (meddles || (stale && crowd.others == happens::PAGE))
        };
        let pairs = Limits { depth: 2, ..limits };
        tally.add(explore_all(some_worlds, pairs, &list_events()));
    }
    let what = "one event, and two in some, the adverse worlds";
    tally.require_right(what);
}

/// One event, while the devices are listed again: a device that stays is not forgotten.
#[test]
fn a_list_that_steps_over_a_device() {
    let limits = Limits { depth: 1, stride: 1, first_wrong: false };
    let is_wanted = |play: Play| {
        play.program == Program::ListAgain
            && !play.setup.is_adverse()
            && (is_full() || !play.setup.is_crowded())
    };
    let tally = explore_all(is_wanted, limits, &everything());
    let what = "one event, listing again";
    tally.require_right(what);
}

/// The events that change what lists show, and how.
fn list_events() -> Vec<&'static Event> {
    const NAMES: [&str; 15] = [
        "a foreign context",
        "the oldest context closes",
        "a page of contexts closes",
        "a long page of contexts closes",
        "all contexts of others close",
        "an older context of the program closes",
        "the program's older contexts close",
        "the next context is not tracked",
        "a foreign PD",
        "a page of PDs goes",
        "all PDs of others go",
        "older PDs are absent once",
        "the next PD is not tracked",
        "ALLOC_PD fails, EINVAL",
        "no memory for long pages",
    ];
    named(&NAMES)
}

/// The events that change which device is which, one of each sort; and an error in between.
fn identity_events() -> Vec<&'static Event> {
    const NAMES: [&str; 11] = [
        "remove, one stage",
        "remove, four stages",
        "replace, same name and GUID",
        "replace under a held node, same GUID",
        "recreate uverbs",
        "swap names",
        "listxattr",
        "node: the other uverbs device",
        "node: by hand",
        "the oldest context closes",
        "EIO",
    ];
    named(&NAMES)
}

fn named(names: &[&str]) -> Vec<&'static Event> {
    let events: Vec<_> = happens::all().filter(|event| names.contains(&event.name)).collect();
    assert_eq!(events.len(), names.len(), "an event is called otherwise");
    events
}
