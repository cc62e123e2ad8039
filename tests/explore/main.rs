//! Everything that may happen, at every kernel call, on the simulated kernel.
//!
//! A world with two devices; a program that lists and opens, opens what was listed before, pins and
//! verifies, or asks; one event before any one of its kernel calls, two before any two, three before any
//! three. Whatever comes of it has to lie in a stated set; what is opened is the instance that was asked
//! for; nothing is left open; and it ends. Which instance a descriptor is really bound to is asked of the
//! simulated kernel, by the inode of its uverbs directory.
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
    !play.setup.crowded && !play.setup.one_tick
}

#[test]
fn an_event_that_does_not_matter_may_come_later() {
    let full = is_full();
    let mut compared = 0;
    for program in PROGRAMS {
        for setup in Setup::all() {
            let play = Play { program, setup };
            if full || is_plain(play) {
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
    let explore = |wanted: fn(Play) -> bool, stride| {
        explore_all(wanted, Limits { depth: 2, stride, first_wrong: false }, &everything())
    };
    let (plain, others) = if full { (1, 16) } else { (797, 797) };
    let mut tally = explore(is_plain, plain);
    tally.print("one event all, two: the plain worlds");
    tally.add(explore(|play| !is_plain(play), others));
    tally.print("one event all, two: all worlds");
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
    explore_all(wanted, limits, &identity_events()).print(what);
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
    let events: Vec<_> = happens::all().filter(|event| NAMES.contains(&event.name)).collect();
    assert_eq!(events.len(), NAMES.len(), "an event is called otherwise");
    events
}
