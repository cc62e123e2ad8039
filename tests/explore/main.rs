//! Everything that may happen, at every kernel call, on the simulated kernel.
//!
//! A world has two devices. A program lists and opens, opens a device that was listed before, verifies a descriptor
//! that another library opened, takes over a descriptor by a claim, lists again, or queries. One event comes before
//! any one of its kernel calls, two before any two, three before any three. The outcome must be one of a stated
//! set, the opened device must be the listed instance, nothing may be left open, and the program must end. The
//! simulated kernel is queried for the instance that a descriptor is really bound to, by the inode of its uverbs
//! directory.
//!
//! Most worlds start with a node that leads to the right device. In the adverse worlds it leads to another device
//! of the same GUID, whose removal waits, and the lists of contexts and PDs are as long as a buffer or a page, or
//! one entry shorter or longer; or the device has a provider that allocates a context of its own.
//!
//! `UVERBS_EXPLORE=full` tries all pairs in the plain worlds instead of some, and there all triples of those events
//! that change which device is which. Build with `--release` for that. With `RUSTFLAGS="--cfg uverbs_leave_out"`
//! each check is left out in turn, to find its purpose.

mod happens;
mod ibverbs;
#[cfg(uverbs_leave_out)]
mod leave_out;
mod play;
mod search;
mod threads;

use happens::Event;
use play::{PROGRAMS, Play, Program, Setup};
use search::{Limits, compare_later, everything, explore_all};

/// Whether to try everything.
#[allow(clippy::disallowed_methods)] // a test's own switch: the library reads no variable
fn is_full() -> bool {
    std::env::var("UVERBS_EXPLORE").is_ok_and(|value| value == "full")
}

/// The worlds that, in the bounded run, stand for all those that differ in the clock or the crowd.
fn is_plain(play: Play) -> bool {
    is_base(play) && !play.setup.is_crowded() && !play.setup.one_tick
}

/// The worlds whose node leads to the right device, if to any, and in which nobody makes a claim.
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
    println!("{compared} events, each before a call that it does not affect, and one call later");
    assert!(compared > 1000, "hardly anything was compared: {compared}");
}

/// One event before every call, and two before every two: a sample of the pairs, or all of them in the plain worlds
/// and a sample in the others, which differ from the plain worlds in the clock or the crowd.
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

/// Three events that change which device is which. The bounded run tries a sample, for an open of a device whose driver
/// does not disassociate. The full run tries all of them, for every program in the plain worlds.
#[test]
fn three_events() {
    fn is_hard(play: Play) -> bool {
        is_plain(play) && play.program == Program::Open && !play.setup.disassociates
    }
    let stride = if is_full() { 1 } else { 397 };
    let limits = Limits { depth: 3, stride, first_wrong: false };
    let open = "three events, an open without disassociation";
    explore_all(is_hard, limits, &identity_events()).require_right(open);
    if is_full() {
        let others = |play: Play| is_plain(play) && !is_hard(play);
        let what = "three events, the other programs in the plain worlds";
        explore_all(others, limits, &identity_events()).require_right(what);
    }
}

/// The adverse worlds: one of the events that change lists; or all of these, and pairs of them in some worlds.
///
/// A rule that takes "not listed" for "did not exist" binds wrongly here: a page of contexts closes while they are
/// listed, and an older context of the thread then looks new. So does a rule that takes any new context of the
/// thread for the descriptor's.
#[test]
fn lists_that_end_at_a_boundary() {
    let events = if is_full() { everything() } else { list_events() };
    let limits = Limits { depth: 1, stride: 1, first_wrong: false };
    // In the bounded run, two programs stand for those that get to the same check in different ways.
    let is_wanted = |play: Play| {
        let Play { program, setup } = play;
        if program == Program::Adopt {
            // In those it has opened the device before, and the node leads to that device.
            return !setup.is_adverse() && (is_full() || !setup.is_crowded());
        }
        let all_programs =
            setup.meddles || setup.known.is_some() || setup.crowd.others == happens::PAGE;
        let is_some = matches!(program, Program::Open | Program::Verify)
            || (all_programs && program != Program::Query);
        setup.is_adverse() && program.binds() && (is_full() || is_some)
    };
    let mut tally = explore_all(is_wanted, limits, &events);
    if is_full() {
        let some_worlds = |play: Play| {
            let Setup { crowd, meddles, stale, known, .. } = play.setup;
            let is_page = stale && crowd.others == happens::PAGE;
            play.program.binds() && (meddles || is_page || known.is_some())
        };
        let pairs = Limits { depth: 2, ..limits };
        tally.add(explore_all(some_worlds, pairs, &list_events()));
    }
    tally.require_right("one event, and two in some, the adverse worlds");
}

/// One event while the devices are listed again: a device that stays is not lost.
#[test]
fn a_list_that_skips_a_device() {
    let limits = Limits { depth: 1, stride: 1, first_wrong: false };
    let is_wanted = |play: Play| {
        play.program == Program::ListAgain
            && !play.setup.is_adverse()
            && (is_full() || !play.setup.is_crowded())
    };
    let tally = explore_all(is_wanted, limits, &everything());
    tally.require_right("one event, listing again");
}

/// Programs on libibverbs under the guard, in the plain worlds and in those with a wrong device within reach: one event
/// of all, and two of those that change which device is which, a sample or all.
#[test]
fn programs_on_libibverbs() {
    let full = is_full();
    let is_wanted = |play: Play| play.program.is_guarded() && is_small(play);
    let mut events = everything();
    events.extend(happens::OF_HANDLES);
    let single = Limits { depth: 1, stride: 1, first_wrong: false };
    let mut tally = explore_all(is_wanted, single, &events);
    tally.require_right("one event, programs on libibverbs");
    let pairs = Limits { depth: 2, stride: if full { 1 } else { 37 }, first_wrong: false };
    tally.add(explore_all(is_wanted, pairs, &handle_events()));
    tally.require_right("one event and two, programs on libibverbs");
}

/// The worlds that differ in the driver and the node, with a wrong device within reach or not.
fn is_small(play: Play) -> bool {
    let Setup { one_tick, meddles, known, .. } = play.setup;
    !play.setup.is_crowded() && !one_tick && !meddles && known.is_none()
}

/// The events that change which device is which, and those that change what a handle of libibverbs stands for.
fn handle_events() -> Vec<&'static Event> {
    let mut events = identity_events();
    events.extend(named(&["reload ib_core, index reused", "rename", "to another namespace"]));
    events.extend(happens::OF_HANDLES);
    events
}

/// The events that change what lists show, and how.
fn list_events() -> Vec<&'static Event> {
    const NAMES: [&str; 17] = [
        "a foreign context",
        "no more threads",
        "no list of contexts",
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

/// The events that change which device is which, one of each kind, and one error.
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

/// The events that leave a proof only its last method.
#[cfg(uverbs_leave_out)]
fn adverse_events() -> Vec<&'static Event> {
    named(&["no more threads", "ALLOC_PD fails, EINVAL"])
}

fn named(names: &[&str]) -> Vec<&'static Event> {
    let events: Vec<_> = happens::all().filter(|event| names.contains(&event.name)).collect();
    assert_eq!(events.len(), names.len(), "an event has another name");
    events
}
