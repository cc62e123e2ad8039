//! The plan: which program is disturbed how, where, and before which of its calls.

use anyhow::{Result, ensure};

use super::mutation::{self, Mutation};
use super::program::Program;
use super::scene::{self, PLAIN, Scene};
use super::trace::{Point, names_node};
use super::world::Kind;

/// Which executions are run.
#[derive(Clone, Copy)]
pub(super) enum Extent {
    Sample,
    /// Everything that is not repetitive, and a part of the repetitive executions. With a shard, every `of`th of
    /// these.
    Full {
        spread: Share,
        shard: Share,
    },
    /// All executions in which the library's first rule is wrong.
    OldRule,
}

/// One of `of` equal parts, counted from 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) number: usize,
    pub(super) of: usize,
}

impl Share {
    pub(super) const ALL: Self = Self { number: 0, of: 1 };

    /// The third that is run without `--spread`.
    pub(super) const THIRD: Self = Self { number: 0, of: 3 };

    /// Whether it contains a number. Each number is in exactly one of the shares.
    pub(super) fn has(self, number: usize) -> bool {
        number % self.of == self.number
    }
}

impl Extent {
    /// The part of the repetitive executions that is run.
    fn spread(self) -> Share {
        if let Self::Full { spread, .. } = self { spread } else { Share::ALL }
    }
}

/// What happens, once or twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happens {
    Nothing,
    One(Mutation),
    /// Two things before one call.
    Both(Mutation, Mutation),
    /// Two things, each before its own call.
    Apart(Mutation, Mutation),
}

impl Happens {
    pub(super) fn name(self) -> String {
        match self {
            Self::Nothing => "Nothing".to_owned(),
            Self::One(one) => format!("{one:?}"),
            Self::Both(one, two) => format!("{one:?} and {two:?}"),
            Self::Apart(one, two) => format!("{one:?}, then {two:?}"),
        }
    }

    pub(super) fn mutations(self) -> Vec<Mutation> {
        match self {
            Self::Nothing => Vec::new(),
            Self::One(one) => vec![one],
            Self::Both(one, two) | Self::Apart(one, two) => vec![one, two],
        }
    }

    /// What happens before the boundary with that number.
    pub(super) fn at(self, boundary: usize) -> Vec<Mutation> {
        match self {
            Self::Apart(one, _) if boundary == 0 => vec![one],
            Self::Apart(_, two) => vec![two],
            _ => self.mutations(),
        }
    }
}

/// A program in its world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) program: Program,
    pub(super) kind: Kind,
    pub(super) scene: Scene,
}

impl Place {
    /// Whether the program must be refused if nothing happens to it.
    pub(super) fn is_refused(&self) -> bool {
        self.scene.stale || self.program.is_refused()
    }
}

/// What happens to a program, with the calls before which it happens.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub(super) place: Place,
    pub(super) happens: Happens,
    pub(super) points: Vec<Vec<Point>>,
}

/// The worlds in which each program is run.
pub(super) fn places(programs: &[Program], kinds: &[Kind], extent: Extent) -> Vec<Place> {
    if matches!(extent, Extent::OldRule) {
        let cut = each(&[scene::CUT], programs, kinds);
        return [cut, each(&[scene::BORDER], programs, &kinds[1 % kinds.len()..][..1])].concat();
    }
    let mut places = each(&[PLAIN], programs, kinds);
    if !programs.iter().any(|program| TRIED.contains(program)) {
        return places;
    }
    // With few others, the type of device matters less.
    let one_kind = |number: usize| &kinds[number % kinds.len()..][..1];
    // Each scene on one type of device, and on another type with another part of the spread.
    let spread = extent.spread();
    let some_kinds = |number: usize| -> Vec<Kind> {
        kinds.iter().copied().filter(|kind| spread.has(number + kind.number())).collect()
    };
    for (number, scene) in scene::short().enumerate() {
        if matches!(extent, Extent::Full { .. }) {
            places.extend(each(&[scene], &TRIED, &some_kinds(number)));
        } else if number % 2 == 1 {
            places.extend(each(
                &[scene],
                &TRIED[number / 2 % TRIED.len()..][..1],
                one_kind(number),
            ));
        }
    }
    if matches!(extent, Extent::Full { .. }) {
        for (number, scene) in scene::long().enumerate() {
            places.extend(each(&[scene], &TRIED, &some_kinds(number)));
        }
        places.extend(each(&[scene::BORDER], &TRIED, kinds));
    } else {
        // On a device whose removal waits for contexts, if there is such a type.
        places.extend(each(&[scene::BORDER], &TRIED[..2], one_kind(1)));
    }
    places
}

/// Each of the programs in each of the scenes on each type of device.
fn each(scenes: &[Scene], programs: &[Program], kinds: &[Kind]) -> Vec<Place> {
    let mut places = Vec::new();
    for &scene in scenes {
        for &kind in kinds {
            places.extend(programs.iter().map(|&program| Place { program, kind, scene }));
        }
    }
    places
}

/// The programs that are run in crowds, and those to which two things happen.
const TRIED: [Program; 3] = [Program::Open, Program::OpenAgain, Program::Verify];

/// The ways in which a program can be disturbed that makes these calls when it is undisturbed.
pub(super) fn ways(place: Place, calls: &[String], extent: Extent) -> Result<Vec<Way>> {
    ensure!(!calls.is_empty(), "{}: no calls", place.program.name());
    let way = |happens: Happens, points: Vec<Vec<Point>>| Way { place, happens, points };
    let every = || (0..calls.len()).map(|at| vec![Point::Call(at)]).collect::<Vec<_>>();
    let (spread, kind) = (extent.spread(), place.kind.number());
    let some = |number: usize| -> Vec<Vec<Point>> {
        let calls = (0..calls.len()).filter(|at| spread.has(at + number + kind));
        calls.map(|at| vec![Point::Call(at)]).collect()
    };
    // The truncated list was the one before the node is opened.
    let before = calls
        .iter()
        .position(|call| names_node(call))
        .filter(|_| matches!(extent, Extent::OldRule));
    let calls = &calls[..before.unwrap_or(calls.len())];
    if place.scene.is_long() {
        let is_full = matches!(extent, Extent::Full { .. });
        let points = decisive(calls, if is_full { &DECISIVE } else { &DECISIVE[..1] });
        let (leaves, stale) = (Mutation::CrowdLeaves, Mutation::StaleNodeSameGuid);
        if place.scene.stale {
            let points = points.map(|at| vec![at]).collect();
            return Ok(vec![way(Happens::One(leaves), points)]);
        }
        let mut ways = vec![way(Happens::Both(leaves, stale), points.map(|at| vec![at]).collect())];
        // A sample has no time for these.
        if !matches!(extent, Extent::Sample) {
            // An open looks at the node before it opens it.
            let names = if place.program.is_open() { 2 } else { 1 };
            let apart = |at| (0..names).map(move |node| vec![at, Point::Node(node)]);
            let points = decisive(calls, &DECISIVE[..1]).flat_map(apart).collect();
            ways.push(way(Happens::Apart(leaves, stale), points));
        }
        return Ok(ways);
    }
    let mut ways = Vec::new();
    if matches!(extent, Extent::OldRule) {
        return Ok(ways);
    }
    let ones = match place.program {
        Program::KeepRight | Program::KeepWrong => &mutation::NOT_ALONE[..],
        _ if place.scene != PLAIN => &mutation::NOT_ALONE,
        _ => &mutation::ALL,
    };
    // The new entries take the number by which the descriptor would be proved.
    let comes = (place.program == Program::OpenAgain && place.scene == PLAIN)
        .then_some(Mutation::CrowdComes);
    let ones = ones.iter().chain(&comes);
    ways.extend(ones.enumerate().map(|(number, &one)| {
        let points = match place.scene == PLAIN {
            true if one.depends_on_type() => every(),
            // Each call on one type of device.
            true => some(0),
            false => some(number),
        };
        way(Happens::One(one), points)
    }));
    if place.program.is_ours() && matches!(place.kind, Kind::Hca { .. }) {
        ways.extend(mutation::FAILURES.map(|one| way(Happens::One(one), every())));
    }
    let has_pairs = TRIED.contains(&place.program) || place.program == Program::Guarded;
    if has_pairs && place.scene == PLAIN {
        for (number, (one, two)) in mutation::PAIRS.into_iter().enumerate() {
            ways.push(way(Happens::Both(one, two), some(number)));
            let pairs = some_pairs(calls.len(), number, kind, extent);
            ways.push(way(Happens::Apart(one, two), pairs));
        }
    }
    ensure!(ways.iter().all(|way| !way.points.is_empty()), "too few calls: {calls:?}");
    Ok(ways)
}

/// The calls on which a list or a binding may depend, starting with those that may make the next page.
const DECISIVE: [&str; 5] =
    ["recvfrom", "sendto", "ioctl", "openat2 \"infiniband/", "openat \"/dev"];

fn decisive(calls: &[String], names: &[&str]) -> impl Iterator<Item = Point> {
    let is_named = move |call: &String| names.iter().any(|name| call.starts_with(name));
    calls.iter().enumerate().filter(move |(_, call)| is_named(call)).map(|(at, _)| Point::Call(at))
}

/// One in this many of all pairs of calls is run, spread evenly.
const SPARSE: usize = 16;

fn some_pairs(calls: usize, number: usize, kind: usize, extent: Extent) -> Vec<Vec<Point>> {
    let every = if matches!(extent, Extent::Sample) { 1 } else { SPARSE };
    let pairs = (0..calls).flat_map(|one| (one + 1..calls).map(move |two| (one, two)));
    let chosen = pairs.filter(|(one, two)| {
        let place = one * 5 + two * 7 + number;
        place.is_multiple_of(every) && extent.spread().has(place / every + kind)
    });
    chosen.map(|(one, two)| vec![Point::Call(one), Point::Call(two)]).collect()
}
