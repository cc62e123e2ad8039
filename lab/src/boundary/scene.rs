//! The other objects on the device, by the boundary values of a list. The kernel makes a list page by page, each
//! page in a system call of its own, and skips by position the entries that it has shown.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::crowd::{self, Member};
use super::link::Resource;
use super::mutation::Mutation;
use super::process::Process;
use super::program::Program;
use super::world::{Kind, World};

/// The maximum time that a program takes to open one node.
const LIMIT: Duration = Duration::from_secs(10);

/// A number of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Count {
    Of(usize),
    /// As many as the library's first buffer holds, plus this number.
    Short(isize),
    /// As many as a page holds, plus this number.
    Page(isize),
    /// As many as two pages hold, plus this number.
    Pages(isize),
}

/// Entries that follow one another in the kernel's list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Those of another process, which stay.
    Stay(Count),
    /// Those of another process, which go when the crowd leaves.
    Go(Count),
    /// One that the program's own thread has had from the start.
    Own,
}

/// The state of the device before the program begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scene {
    pub(super) resource: Resource,
    pub(super) parts: &'static [Part],
    /// The node is bound to an older device of the same GUID from the beginning.
    pub(super) stale: bool,
}

pub(super) const PLAIN: Scene = Scene { resource: Resource::Context, parts: &[], stale: false };

use Count::{Of, Page, Pages, Short};
use Part::{Go, Own, Stay};

/// The scenes in which a list is as long as a page, or nearly so. The program's own entries are last, on both sides
/// of the border, or first.
const PAGES: [&[Part]; 6] = [
    &[Go(Of(1)), Stay(Page(-2)), Own],
    &[Go(Of(1)), Stay(Page(-1)), Own],
    &[Go(Of(2)), Stay(Page(-1)), Own],
    &[Go(Of(1)), Stay(Page(-2)), Own, Own],
    &[Own, Go(Of(1)), Stay(Page(-1))],
    &[Go(Of(1)), Stay(Pages(-1)), Own],
];

/// The quick scenes: few other entries, or as many as the first buffer holds, or nearly so.
const SHORT: [&[Part]; 6] = [
    &[Own],
    &[Own, Own],
    &[Own, Go(Of(1)), Own],
    &[Go(Of(1)), Stay(Short(-3)), Own],
    &[Go(Of(1)), Stay(Short(-2)), Own],
    &[Go(Of(1)), Stay(Short(-1)), Own],
];

/// The scenes with few entries.
pub(super) fn short() -> impl Iterator<Item = Scene> {
    let of = |resource| SHORT.map(|parts| Scene { resource, parts, stale: false });
    [Resource::Context, Resource::Domain].into_iter().flat_map(of)
}

/// The scenes with a page or two. Their node is a wrong one, so a truncated list is enough.
pub(super) fn long() -> impl Iterator<Item = Scene> {
    let of = |resource| PAGES.map(|parts| Scene { resource, parts, stale: true });
    [Resource::Context, Resource::Domain].into_iter().flat_map(of)
}

/// The same, with a node that is wrong from the beginning.
pub(super) const CUT: Scene = Scene { stale: true, ..BORDER };

/// The scene whose second page has only the program's own context. The node is right.
pub(super) const BORDER: Scene =
    Scene { resource: Resource::Context, parts: PAGES[1], stale: false };

impl Scene {
    pub(super) fn name(&self) -> String {
        let count = |count: &Count| match count {
            Of(count) => count.to_string(),
            Short(more) => format!("buffer{more:+}"),
            Page(more) => format!("page{more:+}"),
            Pages(more) => format!("2 pages{more:+}"),
        };
        let part = |part: &Part| match part {
            Own => "own".to_owned(),
            Stay(stay) => count(stay),
            Go(go) => format!("({})", count(go)),
        };
        let parts: Vec<String> = self.parts.iter().map(part).collect();
        let what = if self.resource == Resource::Context { "contexts" } else { "domains" };
        let node = if self.stale { ", stale node" } else { "" };
        match parts.is_empty() {
            true => format!("alone{node}"),
            false => format!("{what}: {}{node}", parts.join(" ")),
        }
    }

    /// Whether it depends on the boundary values of a list. What the program has opened before counts towards
    /// these.
    pub(super) fn is_bounded(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Stay(Short(_) | Page(_) | Pages(_))))
    }

    /// Whether it takes long to set up.
    pub(super) fn is_long(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Stay(Page(_) | Pages(_))))
    }

    /// Sets up the rest of the world, and starts the program in it. The program stops when it is ready.
    pub(super) fn start(
        &self,
        world: &mut World,
        bounds: &mut Bounds,
        program: Program,
    ) -> Result<Process> {
        bounds.measure(world.kind, self)?;
        let mut process = program.start(self.resource, self.own())?;
        process.stops(LIMIT)?;
        let mut joining: Vec<(bool, Member)> = Vec::new();
        let join = |world: &mut World, joining: &mut Vec<(bool, Member)>| {
            joining.drain(..).try_for_each(|(stays, mut member)| -> Result<()> {
                member.ready()?;
                world.join(stays, member);
                Ok(())
            })
        };
        for part in self.parts {
            let (stays, count) = match part {
                Stay(count) => (true, count),
                Go(count) => (false, count),
                Own => {
                    join(world, &mut joining)?;
                    process.resume();
                    process.stops(LIMIT)?;
                    continue;
                }
            };
            let mut count = bounds.count(world.kind, self.resource, *count)?;
            if stays && self.resource == Resource::Context && self.is_bounded() {
                count -= program.opened_before();
            }
            joining.push((stays, Member::start(self.resource, count)?));
        }
        join(world, &mut joining)?;
        world.own = self.own();
        world.own_domains = if self.resource == Resource::Domain { world.own } else { 0 };
        if self.stale {
            Mutation::StaleNodeSameGuid.happen(world)?;
        }
        process.resume();
        Ok(process)
    }

    /// How many entries the program itself has.
    pub(super) fn own(&self) -> usize {
        self.parts.iter().filter(|part| **part == Own).count()
    }
}

/// How many entries lists may have, measured once for each type of device.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    buffers: BTreeMap<(Kind, Resource), usize>,
    pages: BTreeMap<(Kind, Resource), usize>,
}

impl Bounds {
    /// Measures what a scene needs, on the device `tst`, on which nobody has anything yet.
    fn measure(&mut self, kind: Kind, scene: &Scene) -> Result<()> {
        let resource = scene.resource;
        for part in scene.parts {
            match part {
                Stay(Short(_)) if !self.buffers.contains_key(&(kind, resource)) => {
                    self.buffers.insert((kind, resource), crowd::measure_buffer(resource)?);
                }
                Stay(Page(_) | Pages(_)) if !self.pages.contains_key(&(kind, resource)) => {
                    self.pages.insert((kind, resource), crowd::measure_page(resource)?);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn count(&self, kind: Kind, resource: Resource, count: Count) -> Result<usize> {
        let of = |bounds: &BTreeMap<_, usize>| bounds.get(&(kind, resource)).copied();
        let count = match count {
            Of(count) => Some(count),
            Short(more) => of(&self.buffers).and_then(|holds| holds.checked_add_signed(more)),
            Page(more) => of(&self.pages).and_then(|holds| holds.checked_add_signed(more)),
            Pages(more) => of(&self.pages).and_then(|holds| (2 * holds).checked_add_signed(more)),
        };
        count.context("a bound that was not measured")
    }
}
