//! Openers on stale nodes, while crowds of contexts and PDs come and go around the pages of their lists.
//!
//! Each opener has two devices of one GUID: `old`, removed but held, and `new`, in its place. A static node still
//! leads to `old`. Everything that is proved through that node to be on `new` is wrong. The opener has contexts and
//! PDs of its own on `new`, from the same thread, and another process has a crowd there.
//!
//! Two things show where a descriptor is, and the library looks at neither: the system image GUID, by which the
//! devices are marked, and the number of contexts that the test HCA counts on each of them.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Context, Device, Error, ErrorKind, Host, Registry};

use super::foreign::Foreign;
use super::ledger::{self, Random};
use super::tally::{Length, Outcome, Tally, Way};
use super::tide::{Crowd, Ebb, Tide};
use crate::compare::dump::{Of, Pages};
use crate::guest;

/// The buffer with which the library first requests a list.
const BUFFER: usize = 2 * 1024;
/// This many rounds with one crowd before it changes, and this many crowds of one length.
const ROUNDS: usize = 8;
const EPOCHS: usize = 5;
/// At most this many go during a round.
const EBB: u64 = 4;
/// How long a call is assumed to take before one was measured.
const GUESS: Duration = Duration::from_millis(5);

/// The position of the opener's own contexts and PDs in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Before the crowd.
    First,
    /// The last entry of a page, and the first of the next.
    Border,
    /// After the crowd.
    Last,
}

const PLACES: [Place; 5] = [Place::Last, Place::Border, Place::Last, Place::First, Place::Border];

/// The other entries during some rounds.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    /// The length of both lists, including the opener's own entries.
    total: Crowd,
    /// How many contexts the opener has. Each has a PD if the list of PDs is long enough.
    own: usize,
    place: Place,
    /// How many entries come before the opener's own.
    before: Crowd,
    length: Length,
    /// How many contexts come after that border.
    over: usize,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} contexts (about {:?}) and {} PDs, {} own, {:?}",
            self.total.contexts, self.length, self.total.pds, self.own, self.place
        )
    }
}

/// The pages of both lists.
#[derive(Clone, Copy, Debug)]
struct Lists {
    contexts: Pages,
    pds: Pages,
}

/// One opener's devices, and what it keeps open.
struct Opener {
    number: usize,
    /// Leads to the new device.
    right: PathBuf,
    /// Leads to the old one.
    stale: PathBuf,
    through_right: Registry,
    through_stale: Registry,
    marks: Marks,
    /// Keeps the old device.
    _holder: Foreign,
    tide: Tide,
    random: Random,
    /// How long a call took lately. The crowd goes within that time.
    typical: HashMap<(Way, Length), Duration>,
    tally: Tally,
}

/// The system image GUIDs and the test HCA's ids.
#[derive(Clone, Copy, Debug)]
struct Marks {
    new: u64,
    old: u64,
    old_id: u64,
    new_id: u64,
}

/// Lets openers run for that long. The caller judges the result.
pub(super) fn soak(openers: usize, limit: Duration) -> Result<Tally> {
    guest::raise_descriptor_limit()?;
    let openers = (0..openers).map(Opener::new).collect::<Result<Vec<_>>>()?;
    let mut openers = openers;
    let lists = openers[0].measure()?;
    println!("    a list of contexts: {:?}\n    a list of PDs: {:?}", lists.contexts, lists.pds);
    let end = Instant::now() + limit;
    let tallies = std::thread::scope(|scope| {
        let threads: Vec<_> =
            openers.into_iter().map(|opener| scope.spawn(move || opener.run(lists, end))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    guest::hca("del-all")?;
    guest::hca("wait-idle")?;
    let mut sum = Tally::default();
    for tally in tallies {
        sum.add(tally?);
    }
    Ok(sum)
}

impl Opener {
    fn new(number: usize) -> Result<Self> {
        let (guid, old, new) = (0xd0 + number as u64, 0xd00 + number as u64, 0xe00 + number as u64);
        let add = |name: &str, mark: u64| {
            guest::hca(&format!(
                "add name={name}{number} guid={guid:016x} sys_image_guid={mark:016x} disassociate=0"
            ))
        };
        let names = || guest::names("/sys/class/infiniband_verbs");
        let before = names();
        add("old", old)?;
        let uverbs = names().into_iter().find(|name| !before.contains(name));
        let uverbs = uverbs.context("no new uverbs device")?;
        let devnum = guest::device_number(&uverbs)?;
        let dev = PathBuf::from(format!("/tmp/stale{number}"));
        std::fs::create_dir_all(dev.join("infiniband"))?;
        let stale = dev.join("infiniband").join(&uverbs);
        guest::mknod(&stale, devnum)?;
        let holder = Foreign::open_at(&stale)?;
        let id = |name: &str| -> Result<u64> {
            let state = ledger::state()?;
            let line = state.iter().find(|line| line.name == format!("{name}{number}"));
            Ok(line.context("the test HCA has no such device")?.id)
        };
        let old_id = id("old")?;
        guest::hca(&format!("del id={old_id}"))?;
        // The number is free right after the directory is gone.
        guest::until_uverbs(&uverbs, false)?;
        std::thread::sleep(Duration::from_millis(20));
        add("new", new)?;
        ensure!(
            guest::ibdev(&uverbs)? == format!("new{number}"),
            "the new device has not taken the place of the old one"
        );
        let marks = Marks { new, old, old_id, new_id: id("new")? };
        let right = PathBuf::from("/dev/infiniband").join(&uverbs);
        ensure!(Foreign::open_at(&stale)?.mark()? == old, "the node is not stale");
        ensure!(Foreign::open_at(&right)?.mark()? == new, "the kernel's node is wrong");
        let tide = Tide::start(right.to_str().context("a path")?)?;
        Ok(Self {
            number,
            through_right: Registry::new(Host::open()?),
            through_stale: super::super::expect::registry_at(&dev)?,
            right,
            stale,
            marks,
            _holder: holder,
            tide,
            random: Random::new(200 + number as u64),
            typical: HashMap::new(),
            tally: Tally::default(),
        })
    }

    fn device(&self, registry: &Registry) -> Result<Device> {
        Ok(registry.devices()?.by_name(format!("new{}", self.number))?)
    }

    fn measure(&mut self) -> Result<Lists> {
        // Enough for two long pages of each.
        self.tide.fill(Crowd { contexts: 3600, pds: 3600 })?;
        let probe = uverbs::sim::Probe::new(self.through_right.host());
        let index = self.device(&self.through_right)?.index()?;
        let pages = |of| Pages::measure(&probe, of, index, BUFFER);
        let pds = pages(Of::Pds)?;
        let contexts = match guest::lists_contexts()? {
            true => pages(Of::Contexts)?,
            false => {
                println!("    a list of contexts: not on this kernel");
                pds
            }
        };
        let lists = Lists { contexts, pds };
        self.tide.fill(Crowd::default())?;
        Ok(lists)
    }

    fn run(mut self, lists: Lists, end: Instant) -> Result<Tally> {
        let (mut epochs, mut length) = (0, Length::APage);
        while Instant::now() < end {
            if epochs % EPOCHS == 0 {
                length = Length::pick(&mut self.random);
            }
            let epoch = self.epoch(lists, length, epochs);
            epochs += 1;
            if epoch.place == Place::First {
                self.tide.fill(Crowd::default())?;
            }
            let mut own = None;
            for _ in 0..ROUNDS {
                // The oldest of a crowd go and are replaced by new ones, so the first entries stay first.
                if epoch.place != Place::First {
                    own = None;
                }
                let owned = match own.take() {
                    Some(owned) => owned,
                    None => {
                        self.tide.fill(epoch.before)?;
                        Own::open(&self.right, epoch.own, epoch.total.pds > 0)?
                    }
                };
                let pds = owned.pds();
                self.tide.fill(Crowd {
                    contexts: epoch.total.contexts - epoch.own,
                    pds: epoch.total.pds - pds,
                })?;
                own = Some(owned);
                self.round(&epoch).with_context(|| epoch.to_string())?;
                if Instant::now() > end {
                    break;
                }
            }
        }
        // What it holds would keep the devices from being removed.
        let Self { tide, tally, .. } = self;
        tide.end()?;
        Ok(tally)
    }

    /// Lengths by boundary values. Those around a long page are as frequent as all others together.
    fn epoch(&mut self, lists: Lists, length: Length, turn: usize) -> Epoch {
        let random = &mut self.random;
        let place = PLACES[turn % PLACES.len()];
        let own = [1, 2, 1, 1, 0][turn / PLACES.len() % 5];
        let border = length.border(lists.contexts);
        let pd_border = Length::pick(random).border(lists.pds);
        // From one below to three above the border, mostly one or two above: those are on the next page.
        let mut about = |border: usize| {
            (border + [0, 1, 2, 2, 3, 3, 4][random.below(7) as usize]).saturating_sub(1)
        };
        let (contexts, pds) = (about(border), about(pd_border));
        let pds = if pds > own { pds } else { 0 };
        let total = Crowd { contexts: contexts.max(own + usize::from(pds > 0)), pds };
        let before = |border: usize, total: usize| match place {
            Place::First => 0,
            Place::Last => total - own.min(total),
            // After that many others, the opener's entry is the last of a page or the first of the next.
            Place::Border => border.saturating_sub(turn % 2).min(total - own.min(total)),
        };
        let before =
            Crowd { contexts: before(border, total.contexts), pds: before(pd_border, total.pds) };
        let before = if before.contexts == 0 { Crowd::default() } else { before };
        Epoch { total, own, place, before, length, over: contexts.saturating_sub(border) }
    }

    fn round(&mut self, epoch: &Epoch) -> Result<()> {
        let way = Way::pick(&mut self.random);
        let (through_right, through_stale) =
            (self.through_right.clone(), self.through_stale.clone());
        let random = &mut self.random;
        let typical = self.typical.get(&(way, epoch.length)).copied().unwrap_or(GUESS);
        // Half of the time within the first half of the call, where the first list is, and then so many that the
        // entries after the border move before it.
        let is_aimed = random.one_in(2);
        let within = typical.as_micros() as u64 / (1 + u64::from(is_aimed)) + 1;
        let contexts = match is_aimed {
            true => epoch.over + random.below(2) as usize,
            false => random.below(EBB + 1) as usize,
        };
        let ebb = Ebb {
            crowd: Crowd { contexts, pds: random.below(EBB + 1) as usize },
            delay: Duration::from_micros(random.below(within)),
            gap: Duration::from_micros(random.below(50)),
            comes_back: random.one_in(2),
        };
        let device = match way {
            Way::OpenStale => self.device(&through_stale)?,
            _ => self.device(&through_right)?,
        };
        let contexts = self.contexts()?;
        self.tide.ebb(ebb)?;
        let started = Instant::now();
        let seen = match way {
            Way::OpenStale | Way::OpenRight => match device.open() {
                Ok(context) => Seen::of_context(context),
                Err(error) => Seen::Refused(error),
            },
            _ => self.verify(way, &device)?,
        };
        let took = started.elapsed();
        self.tide.done()?;
        self.typical.insert((way, epoch.length), (typical * 3 + took) / 4);
        let outcome = self.judge(way, seen, contexts)?;
        self.tally.count(way, epoch.length, outcome, || {
            format!("{way:?} with {epoch}; {ebb:?}, and it took {took:?}")
        });
        Ok(())
    }

    /// Verifies a descriptor that was opened by other means.
    fn verify(&mut self, way: Way, device: &Device) -> Result<Seen> {
        let kept = match way {
            Way::VerifyStaleKeepingRight | Way::VerifyStaleAfterRight => {
                let right = Foreign::open_at(&self.right)?;
                // With a PD, which can be mistaken for another one just as a context can.
                right.allocate_pd()?;
                Some(right)
            }
            _ => None,
        };
        if let (Way::VerifyStaleAfterRight, Some(right)) = (way, &kept) {
            // `VerifyRight` judges this outcome.
            let _ = device.verify(right);
        }
        let node = if way == Way::VerifyRight { &self.right } else { &self.stale };
        let brought = Foreign::open_at(node)?;
        Ok(match device.verify(&brought) {
            Ok(_) => Seen::Proved { mark: brought.mark()?, _held: Held::Foreign(brought) },
            Err(error) => Seen::Refused(error),
        })
    }

    /// How many contexts the old device has, and how many it ever had.
    fn contexts(&self) -> Result<(u64, u64)> {
        let state = ledger::state()?;
        let line = |id| state.iter().find(|line| line.id == id).context("a device is gone");
        ensure!(line(self.marks.new_id)?.live, "the new device is being removed");
        let old = line(self.marks.old_id)?;
        Ok((old.contexts, old.allocs))
    }

    fn judge(&self, way: Way, seen: Seen, before: (u64, u64)) -> Result<Outcome> {
        let after = self.contexts()?;
        let outcome = match &seen {
            Seen::Proved { mark, .. } => {
                let is_old = match *mark {
                    mark if mark == self.marks.old => true,
                    mark if mark == self.marks.new => false,
                    mark => bail!("a device of mark {mark:x}"),
                };
                // Nobody else opens the old device: both indications must agree, or neither can be trusted.
                let grew = after.0 - before.0;
                ensure!(
                    grew == u64::from(is_old),
                    "{way:?}: mark {mark:x}, and {grew} contexts more on the old device"
                );
                if is_old { Outcome::Wrong } else { Outcome::Proved }
            }
            Seen::Refused(error) => {
                ensure!(after.0 == before.0, "{way:?}: refused, and a context is left");
                match error.kind() {
                    ErrorKind::Unproven => Outcome::Unproven,
                    ErrorKind::NodeMismatch if !way.is_right() => Outcome::Mismatch,
                    // Nothing was removed, and no node has changed.
                    _ => Outcome::False(error.to_string()),
                }
            }
        };
        // A stale node was opened, or the judged descriptor is not the intended one.
        if way != Way::OpenStale {
            let opened = u64::from(!way.is_right());
            let refused_early = matches!(seen, Seen::Refused(_)) && after.1 == before.1;
            ensure!(after.1 - before.1 == opened || refused_early, "{way:?}: the wrong node");
        }
        Ok(outcome)
    }
}

/// The result of a round.
enum Seen {
    Proved { mark: u64, _held: Held },
    Refused(Error),
}

/// Stays open until it is judged.
enum Held {
    #[expect(dead_code, reason = "held open")]
    Context(Context),
    #[expect(dead_code, reason = "held open")]
    Foreign(Foreign),
}

impl Seen {
    fn of_context(context: Context) -> Self {
        match context.query_device() {
            Ok(attributes) => {
                Self::Proved { mark: attributes.sys_image_guid.0, _held: Held::Context(context) }
            }
            Err(error) => Self::Refused(error),
        }
    }
}

/// The opener's own contexts on the new device.
struct Own(Vec<(Foreign, Option<u32>)>);

impl Own {
    fn open(node: &std::path::Path, count: usize, with_pds: bool) -> Result<Self> {
        let one = || {
            let context = Foreign::open_at(node)?;
            let pd = with_pds.then(|| context.allocate_pd()).transpose()?;
            Ok((context, pd))
        };
        (0..count).map(|_| one()).collect::<Result<_>>().map(Self)
    }

    fn pds(&self) -> usize {
        self.0.iter().filter(|(_, pd)| pd.is_some()).count()
    }
}
