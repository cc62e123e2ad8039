//! Other processes that hold contexts and protection domains on the device, and the number of entries that the
//! kernel puts into a page of a list.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::link::Resource;
use super::process::Process;
use super::trace::stop;
use super::{link, verbs};
use crate::guest;

/// The right node under another name. It stays when the node's own name leads elsewhere.
pub(super) const RIGHT: &str = "/dev/infiniband/right";

/// A process that holds a number of contexts or protection domains.
#[derive(Debug)]
pub(super) struct Member {
    process: Process,
    /// How many contexts it has. If it holds domains, it has one.
    pub(super) contexts: usize,
    pub(super) domains: usize,
}

impl Member {
    /// Starts it. It is `ready` some time later.
    pub(super) fn start(resource: Resource, count: usize) -> Result<Self> {
        let process = Process::fork(|output| {
            let held = hold(resource, count);
            let what =
                held.as_ref().map_or_else(|error| format!("{error:#}"), |_| "ready".to_owned());
            let _ = writeln!(&output, "{what}");
            stop();
            0
        })?;
        let (contexts, domains) = match resource {
            Resource::Context => (count, 0),
            Resource::Domain => (1, count),
        };
        Ok(Self { process, contexts, domains })
    }

    /// Waits until it holds them.
    pub(super) fn ready(&mut self) -> Result<()> {
        self.process.stops(Duration::from_secs(30))?;
        let output = self.process.output();
        ensure!(output == "ready", "the crowd: {output}");
        Ok(())
    }

    /// Ends it. Returns when the kernel has released everything that it held.
    pub(super) fn leave(mut self) -> Result<()> {
        self.process.kill(Duration::from_secs(20))
    }
}

fn hold(resource: Resource, count: usize) -> Result<Vec<std::os::fd::OwnedFd>> {
    let limit = Some(count as u64 + 64);
    let limit = rustix::process::Rlimit { current: limit, maximum: limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)?;
    match resource {
        Resource::Context => {
            Ok((0..count).map(|_| verbs::open(RIGHT)).collect::<std::io::Result<_>>()?)
        }
        Resource::Domain => {
            let node = verbs::open(RIGHT)?;
            (0..count).try_for_each(|_| verbs::allocate_domain(&node).map(drop))?;
            Ok(vec![node])
        }
    }
}

/// The library's first buffer (`src/netlink.rs`).
const SHORT: usize = 2048;

/// More than a page of any kernel holds.
const MANY: usize = 1700;

/// How many entries a list on the device `tst` may have, not counting those of the kernel, so that the library's
/// first buffer holds it. Nobody else has anything on the device meanwhile.
pub(super) fn measure_buffer(resource: Resource) -> Result<usize> {
    let one = listed_with(resource, 1)?;
    let two = listed_with(resource, 2)?;
    let ([(one, _)], [(two, _)]) = (&one[..], &two[..]) else {
        anyhow::bail!("lists of one and of two: {one:?}, {two:?}")
    };
    let (entry, holds) = (two - one, 1 + (SHORT - one) / (two - one));
    println!("    {resource:?}: {entry} bytes an entry, {holds} in {SHORT} bytes");
    Ok(holds)
}

/// The same for a page.
pub(super) fn measure_page(resource: Resource) -> Result<usize> {
    let before = entries(&link::pages(resource, link::index_of("tst")?)?);
    let all = listed_with(resource, MANY)?;
    let holds = all.first().context("no page")?.1;
    ensure!(holds < MANY, "a page holds all of {MANY}: {all:?}");
    println!(
        "    {resource:?}: {holds} in a page, {before} of them the kernel's; pages of {MANY}: {all:?}"
    );
    Ok(holds - before)
}

/// The list while a process has that many.
fn listed_with(resource: Resource, count: usize) -> Result<Vec<(usize, usize)>> {
    let listed = || link::pages(resource, link::index_of("tst")?);
    let before = entries(&listed()?);
    let mut member = Member::start(resource, count)?;
    member.ready()?;
    let pages = listed()?;
    member.leave()?;
    guest::until("the list as it was", || listed().is_ok_and(|now| entries(&now) == before))?;
    Ok(pages)
}

fn entries(pages: &[(usize, usize)]) -> usize {
    pages.iter().map(|(_, entries)| entries).sum()
}
