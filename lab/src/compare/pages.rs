//! Lists of contexts and PDs, page by page and by number, while contexts and PDs come and go: compares how the two
//! kernels list the same objects.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use uverbs::sim::{Probe, Probed};

use super::dump::{Dump, Entry, LONG, Of, Page, Pages};
use super::foreign::{Foreign, open_unguarded};
use super::play::Record;
use super::side::{Side, settle_removal};

/// The library's first buffer.
const SHORT: usize = 2 * 1024;

/// An event between two calls of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    FirstGo(usize),
    LastGo(usize),
    /// From the middle of the list.
    MiddleGo(usize),
    AllGo,
    Come(usize),
    /// As many come as go.
    FirstGoAndCome(usize),
}

const EVENTS: [Event; 9] = [
    Event::Nothing,
    Event::FirstGo(1),
    Event::FirstGo(3),
    Event::LastGo(1),
    Event::MiddleGo(2),
    Event::AllGo,
    Event::Come(1),
    Event::Come(3),
    Event::FirstGoAndCome(2),
];

/// One dump.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paged {
    of: Of,
    /// How many there are. The last ones are this thread's.
    total: usize,
    /// Whether the socket has received into a long buffer before.
    is_warm: bool,
    /// How much room each `recvfrom` has.
    room: usize,
    /// Before which `recvfrom` the event happens; the first is 1.
    before: usize,
    event: Event,
}

/// All dumps, for pages of these lengths.
pub(super) fn all(contexts: Option<Pages>, pds: Pages) -> Vec<Paged> {
    let mut scripts = Vec::new();
    let contexts = contexts.map(|pages| (Of::Contexts, pages));
    for (of, pages) in contexts.into_iter().chain([(Of::Pds, pds)]) {
        for (border, is_warm, rooms) in [
            (0, false, [SHORT, LONG].as_slice()),
            (pages.buffer, false, &[SHORT, LONG]),
            (pages.short, false, &[SHORT, LONG]),
            (2 * pages.short, false, &[SHORT, 4096, LONG]),
            (pages.long, true, &[LONG]),
        ] {
            for total in border.saturating_sub(1)..border + 3 {
                for room in rooms {
                    for before in 1..=3 {
                        for event in EVENTS {
                            let room = *room;
                            scripts.push(Paged { of, total, is_warm, room, before, event });
                        }
                    }
                }
            }
        }
    }
    scripts
}

/// The listed objects, in order of creation.
struct Listed<'a> {
    of: Of,
    probe: Probe,
    foreign: &'a Foreign,
    contexts: Vec<Probed>,
    /// The context that has the PDs, and their handles.
    keeper: Option<Arc<Probed>>,
    pds: Vec<u32>,
}

impl Listed<'_> {
    fn len(&self) -> usize {
        self.contexts.len() + self.pds.len()
    }

    /// Adds one more, of the other thread or of this one.
    fn come(&mut self, is_own: bool) -> Result<()> {
        match (self.of, &self.keeper) {
            (Of::Pds, Some(keeper)) => {
                let keeper = keeper.clone();
                let allocated = match is_own {
                    true => keeper.alloc_pd(),
                    false => self.foreign.run(move || keeper.alloc_pd())?,
                };
                self.pds.push(allocated.ok().context("ALLOC_PD")?);
            }
            _ => {
                let opened = match is_own {
                    true => open_unguarded(&self.probe),
                    false => self.foreign.open(&self.probe)?,
                };
                self.contexts.push(opened.ok().context("a context")?);
            }
        }
        Ok(())
    }

    fn go(&mut self, from: usize, count: usize) -> Result<()> {
        let until = (from + count).min(self.len());
        if let Some(keeper) = &self.keeper {
            for handle in self.pds.drain(from..until) {
                ensure!(keeper.free_pd(handle) == Ok(()), "DEALLOC_PD");
            }
        } else {
            self.contexts.drain(from..until);
        }
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Result<()> {
        let len = self.len();
        match event {
            Event::Nothing => Ok(()),
            Event::FirstGo(count) => self.go(0, count),
            Event::LastGo(count) => self.go(len.saturating_sub(count), count),
            Event::MiddleGo(count) => self.go(len / 2, count),
            Event::AllGo => self.go(0, len),
            Event::Come(count) => (0..count).try_for_each(|_| self.come(false)),
            Event::FirstGoAndCome(count) => {
                self.go(0, count)?;
                (0..count).try_for_each(|_| self.come(false))
            }
        }
    }
}

/// Plays one dump.
pub(super) fn play(side: &mut dyn Side, foreign: &Foreign, script: &Paged) -> Result<Record> {
    ensure!(side.add("tst", 0xa0, false)? == Ok(()));
    let probe = Probe::new(&side.host()?);
    let index = side.index(0);
    let mut listed = Listed {
        of: script.of,
        probe,
        foreign,
        contexts: Vec::new(),
        keeper: None,
        pds: Vec::new(),
    };
    if script.of == Of::Pds {
        let keeper = open_unguarded(&listed.probe).ok().context("a context")?;
        listed.keeper = Some(Arc::new(keeper));
    }
    for number in 0..script.total {
        listed.come(number + 1 == script.total)?;
    }
    let dump = Dump::new(&listed.probe, script.of, index)?;
    let mut base = 0;
    if script.is_warm {
        dump.begin()?;
        base = first(&dump.rest(LONG)?);
    } else if script.total > 0 {
        let other = Dump::new(&listed.probe, script.of, index)?;
        other.begin()?;
        base = first(&other.rest(LONG)?);
    }
    let mut record = Record::new();
    dump.begin()?;
    for turn in 1.. {
        if turn == script.before {
            listed.happen(script.event)?;
        }
        let page = dump.page(script.room)?;
        record.push(describe(&page, script.of, base, listed.probe.thread()));
        if page.end.is_some() {
            break;
        }
        ensure!(turn < 100, "the answer does not end");
    }
    Ok(record)
}

fn number(entry: &Entry, of: Of) -> Option<u32> {
    match of {
        Of::Contexts => entry.ctxn,
        Of::Pds => entry.pdn,
    }
}

/// The number of the oldest object, which is shown first.
fn first(pages: &[Page]) -> u32 {
    let entry = pages.first().and_then(|page| page.entries.first());
    entry.and_then(|entry| entry.pdn.or(entry.ctxn)).unwrap_or_default()
}

/// A page in words: its entries, counted from the oldest object, and their owners.
fn describe(page: &Page, of: Of, base: u32, this: u32) -> String {
    let mut text = format!("{} bytes", page.len);
    let mut last: Option<(u32, u32, &str)> = None;
    let mut flush = |last: Option<(u32, u32, &str)>| {
        if let Some((from, to, whose)) = last {
            let _ = write!(text, ", {from}-{to} {whose}");
        }
    };
    for entry in &page.entries {
        let number = number(entry, of).unwrap_or(u32::MAX).wrapping_sub(base);
        let whose = match entry.thread {
            Some(thread) if thread == this => "own",
            Some(_) => "another's",
            None => "nobody's",
        };
        last = match last {
            Some((from, to, before)) if to + 1 == number && before == whose => {
                Some((from, number, whose))
            }
            before => {
                flush(before);
                Some((number, number, whose))
            }
        };
    }
    flush(last);
    match (page.is_cut, page.end) {
        (true, _) => text + ", cut",
        (_, Some(None)) => text + ", done",
        (_, Some(Some(errno))) => format!("{text}, errno {errno}"),
        _ => text,
    }
}

/// Entries by their numbers, PDs by their handles, and how both change.
pub(super) fn numbers(
    side: &mut dyn Side,
    foreign: &Foreign,
    disassociates: bool,
) -> Result<Record> {
    ensure!(side.add("tst", 0xa0, disassociates)? == Ok(()));
    let probe = Probe::new(&side.host()?);
    let (index, this) = (side.index(0), probe.thread());
    let mut record = Record::new();
    let lists = || -> Result<[Dump; 2]> {
        Ok([Dump::new(&probe, Of::Contexts, index)?, Dump::new(&probe, Of::Pds, index)?])
    };
    let look = |record: &mut Record, what: &str| -> Result<()> {
        for dump in lists()? {
            let of = dump.of();
            dump.begin()?;
            for page in dump.rest(LONG)? {
                record.push(format!("{what}: list of {of:?}: {}", describe(&page, of, 0, this)));
            }
            for number in (0..6).chain([1 << 20, u32::MAX]) {
                let page = dump.by_number(number)?;
                let ctxn = page.entries.first().and_then(|entry| entry.ctxn);
                let entry = describe(&page, of, 0, this);
                record.push(format!("{what}: {of:?} {number}: {entry}, context {ctxn:?}"));
            }
            let page = dump.without_number()?;
            record
                .push(format!("{what}: {of:?} without a number: {}", describe(&page, of, 0, this)));
        }
        Ok(())
    };
    look(&mut record, "nothing yet")?;
    for of in [Of::Contexts, Of::Pds] {
        let nowhere = Dump::new(&probe, of, index + 1000)?;
        record.push(format!("no such device: {}", describe(&nowhere.by_number(0)?, of, 0, this)));
        nowhere.begin()?;
        record.push(format!("no such device: {}", describe(&nowhere.page(LONG)?, of, 0, this)));
    }

    let bare = probe.open(uverbs::sim::Root::Dev, "infiniband/uverbs0", uverbs::sim::As::Node);
    let bare = bare.ok().context("the node")?;
    record.push(format!("without a context: {:?}, {:?}", bare.alloc_pd(), bare.free_pd(0)));
    let own = open_unguarded(&probe).ok().context("a context")?;
    let other = foreign.open(&probe)?.ok().context("a context")?;
    record.push(format!("handles {:?}", [own.alloc_pd(), own.alloc_pd(), other.alloc_pd()]));
    look(&mut record, "two contexts")?;
    // A freed handle is reused, the lowest first. A freed number is not.
    record.push(format!("freed {:?}, again {:?}", own.free_pd(0), own.free_pd(0)));
    record.push(format!("never there {:?}, another's {:?}", own.free_pd(7), other.free_pd(1)));
    look(&mut record, "one freed")?;
    record.push(format!("handles {:?}", [own.alloc_pd(), own.alloc_pd()]));
    look(&mut record, "allocated again")?;

    // A thread that ends: the objects that it allocated remain, but belong to no thread.
    let (thread, at_exit) = (probe.clone(), side.at_exit());
    let ended = std::thread::spawn(move || {
        let opened = open_unguarded(&thread)?;
        let pd = opened.alloc_pd()?;
        at_exit();
        Ok::<_, i32>((opened, pd))
    });
    let ended = ended.join().expect("no panic");
    let (orphan, pd) = ended.map_err(std::io::Error::from_raw_os_error)?;
    until_forgotten(&lists()?[1])?;
    look(&mut record, "a thread has ended")?;
    // A PD that this thread allocates on the other thread's context is this thread's.
    record.push(format!("{pd}, of this thread {:?}", orphan.alloc_pd()));
    look(&mut record, "on an orphan")?;
    // Closing a descriptor frees its PDs.
    drop(other);
    look(&mut record, "one closed")?;

    drop(bare);
    side.remove(0)?;
    look(&mut record, "removed")?;
    // If the driver has disassociated, handles can still be freed.
    let freed = [own.free_pd(0), own.free_pd(0), own.free_pd(70), orphan.free_pd(0)];
    record.push(format!("alloc {:?}, free {freed:?}", own.alloc_pd()));
    look(&mut record, "removed, and tried")?;
    drop((own, orphan));
    side.settle()?;
    if !disassociates {
        settle_removal(side, 0)?;
    }
    look(&mut record, "gone")?;
    Ok(record)
}

/// The kernel forgets a joined thread a moment later.
fn until_forgotten(pds: &Dump) -> Result<()> {
    crate::guest::until("the thread to be forgotten", || {
        let listed = pds.begin().and_then(|()| pds.rest(LONG));
        listed.is_ok_and(|pages| {
            pages.iter().flat_map(|page| &page.entries).any(|entry| entry.thread.is_none())
        })
    })
}
