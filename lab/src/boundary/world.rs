//! The host that a program is run on: a device `tst`, which is uverbs0, and the actions on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::crowd::Member;
use super::link;
use super::process::Process;
use crate::guest;

const DIRECTORY: &str = "/dev/infiniband";
pub(super) const NODE: &str = "/dev/infiniband/uverbs0";
pub(super) const SYS: &str = "/sys/class/infiniband_verbs";

/// The driver of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The test HCA, whose removal cuts contexts off or waits for them.
    Hca { disassociate: bool },
    /// Soft-RoCE, whose removal cuts contexts off from Linux 7.3 on.
    Rxe { disassociate: bool },
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Hca { disassociate: true } => "HCA disassociate=1",
            Self::Hca { disassociate: false } => "HCA disassociate=0",
            Self::Rxe { .. } => "rxe",
        }
    }

    /// Whether removal cuts contexts off; otherwise it waits for them.
    fn disassociates(self) -> bool {
        let (Self::Hca { disassociate } | Self::Rxe { disassociate }) = self;
        disassociate
    }

    /// A number for each of the three types.
    pub(super) fn number(self) -> usize {
        match self {
            Self::Hca { disassociate: true } => 0,
            Self::Hca { disassociate: false } => 1,
            Self::Rxe { .. } => 2,
        }
    }

    /// The kinds that this kernel has.
    pub(super) fn all() -> Result<Vec<Self>> {
        let rxe = Self::Rxe { disassociate: rxe_disassociates()? };
        if guest::hca("wait-idle").is_ok() {
            let hca = [true, false].map(|disassociate| Self::Hca { disassociate });
            return Ok([&hca[..], &[rxe]].concat());
        }
        println!("test HCA: not on this kernel");
        Ok(vec![rxe])
    }
}

/// Removes a device that is held open, and checks whether the removal waits.
fn rxe_disassociates() -> Result<bool> {
    let mut world = World::new(Kind::Rxe { disassociate: false });
    world.add("tst", 0, 0xa0)?;
    world.hold()?;
    let index = link::index_of("tst")?;
    world.remove("tst", index)?;
    let end = Instant::now() + Duration::from_secs(2);
    let mut disassociates = false;
    while !disassociates && Instant::now() < end {
        sleep(Duration::from_millis(5));
        disassociates = world.is_removed(index)?;
    }
    world.clean()?;
    println!(
        "rxe: removal {}",
        if disassociates { "cuts contexts off" } else { "waits for contexts" }
    );
    Ok(disassociates)
}

/// A device instance, as the kernel that made it knows it.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) index: u32,
    pub(super) guid: u64,
    /// How many protection domains it had when it was new: the kernel's own.
    pub(super) domains: usize,
}

pub(super) struct World {
    pub(super) kind: Kind,
    /// By the inode number of the directory in /sys.
    pub(super) instances: BTreeMap<u64, Instance>,
    /// The first instance that is uverbs0.
    pub(super) first: u64,
    /// Held open by a process other than the one under test.
    pub(super) held: Vec<File>,
    /// The index of the device that a stale node is bound to, if there is one.
    pub(super) old: Option<u32>,
    /// How many contexts the program itself has on `first`, not counting the one that it opens.
    pub(super) own: usize,
    /// How many protection domains.
    pub(super) own_domains: usize,
    /// Whether the driver refuses to free them.
    pub(super) keeps_domains: bool,
    /// Others with contexts on `first`: those that stay, and those that go when the crowd leaves.
    stay: Vec<Member>,
    go: Vec<Member>,
    /// Removals of soft-RoCE that may still be waiting, by index.
    removals: Vec<(u32, Process)>,
    /// How many soft-RoCE devices have had each GUID.
    made: BTreeMap<u8, usize>,
}

impl World {
    /// An empty world.
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            kind,
            instances: BTreeMap::new(),
            first: 0,
            held: Vec::new(),
            old: None,
            own: 0,
            own_domains: 0,
            keeps_domains: false,
            stay: Vec::new(),
            go: Vec::new(),
            removals: Vec::new(),
            made: BTreeMap::new(),
        }
    }

    /// Adds a device with a GUID that contains `guid`. It must get that number.
    pub(super) fn add(&mut self, name: &str, number: u32, guid: u8) -> Result<()> {
        // The number of a removed device becomes free a moment after the device has left /sys.
        for _ in 0..100 {
            match self.kind {
                Kind::Hca { disassociate } => guest::hca(&format!(
                    "add name={name} guid={guid:016x} disassociate={}",
                    u8::from(disassociate)
                ))?,
                Kind::Rxe { .. } => link::add_rxe(name, &self.netdev(guid)?)?,
            }
            let found = number_of(name)?;
            if found == Some(number) {
                return self.know(name, number);
            }
            let index = link::index_of(name)?;
            self.remove(name, index)?;
            guest::until("another try", || self.is_removed(index).unwrap_or(true))?;
        }
        anyhow::bail!("{name} does not become uverbs{number}")
    }

    /// Adds a device as uverbs0 whose removal waits for `held`, even if the other devices' drivers disassociate.
    pub(super) fn add_old(&mut self, guid: u8) -> Result<()> {
        let kind = self.kind;
        if let Kind::Hca { .. } = kind {
            self.kind = Kind::Hca { disassociate: false };
        }
        let added = self.add("old", 0, guid);
        self.kind = kind;
        added
    }

    fn know(&mut self, name: &str, number: u32) -> Result<()> {
        let ino = fs::metadata(format!("{SYS}/uverbs{number}"))?.ino();
        let guid = fs::read_to_string(format!("/sys/class/infiniband/{name}/node_guid"))?;
        let guid = u64::from_str_radix(&guid.trim().replace(':', ""), 16)?;
        let index = link::index_of(name)?;
        self.instances.insert(ino, Instance { index, guid, domains: link::domains(index)? });
        Ok(())
    }

    /// Adds a network device for one soft-RoCE device. The GUID comes from its address.
    fn netdev(&mut self, guid: u8) -> Result<String> {
        let made = self.made.entry(guid).or_default();
        let netdev = format!("nd{guid:02x}x{made}");
        *made += 1;
        if !Path::new("/sys/class/net").join(&netdev).exists() {
            let address = format!("02:00:00:00:00:{guid:02x}");
            guest::run("ip", &["link", "add", &netdev, "address", &address, "type", "dummy"])?;
            guest::run("ip", &["link", "set", &netdev, "up"])?;
        }
        Ok(netdev)
    }

    /// Holds uverbs0 open, as another process would.
    pub(super) fn hold(&mut self) -> Result<()> {
        self.held.push(File::options().read(true).write(true).open(NODE)?);
        Ok(())
    }

    /// Adds others to the first device.
    pub(super) fn join(&mut self, stays: bool, member: Member) {
        let members = if stays { &mut self.stay } else { &mut self.go };
        members.push(member);
    }

    /// Ends the others that are meant to go. They are gone when this returns.
    pub(super) fn leave(&mut self) -> Result<()> {
        self.go.drain(..).try_for_each(Member::leave)
    }

    /// How many contexts the first device has, not counting the one that the program is to open.
    pub(super) fn besides(&self) -> usize {
        self.own + self.others().map(|member| member.contexts).sum::<usize>()
    }

    /// How many protection domains programs have on it.
    pub(super) fn domains_besides(&self) -> usize {
        self.own_domains + self.others().map(|member| member.domains).sum::<usize>()
    }

    fn others(&self) -> impl Iterator<Item = &Member> {
        self.stay.iter().chain(&self.go)
    }

    /// The contexts on each device, by index.
    pub(super) fn contexts(&self) -> Result<BTreeMap<u32, usize>> {
        let mut contexts = match self.kind {
            Kind::Hca { .. } => hca_contexts()?,
            Kind::Rxe { .. } => {
                let each = self.instances.values();
                let counted = each.map(|one| Ok((one.index, link::contexts(one.index)?)));
                counted.collect::<Result<BTreeMap<_, _>>>()?
            }
        };
        contexts.retain(|_, count| *count > 0);
        Ok(contexts)
    }

    /// The index of uverbs0.
    pub(super) fn index(&self) -> Result<u32> {
        let ino = uverbs0()?;
        Ok(self.instances.get(&ino).context("uverbs0 is unknown")?.index)
    }

    /// Removes a device, as far as the removal does not wait, and waits until it is gone from /sys.
    pub(super) fn remove(&mut self, name: &str, index: u32) -> Result<()> {
        let number = number_of(name)?.context("it is not there")?;
        match self.kind {
            Kind::Hca { .. } => guest::hca(&format!("del name={name}"))?,
            Kind::Rxe { .. } => {
                let removal = Process::fork(|_| i32::from(link::delete_rxe(index).is_err()))?;
                self.removals.push((index, removal));
            }
        }
        guest::until_uverbs(&format!("uverbs{number}"), false)
    }

    /// Whether the removal is complete. Otherwise somebody holds the device.
    pub(super) fn is_removed(&mut self, index: u32) -> Result<bool> {
        match self.kind {
            Kind::Hca { .. } => Ok(!hca_contexts()?.contains_key(&index)),
            Kind::Rxe { .. } => {
                for (_, removal) in self.removals.iter_mut().filter(|(of, _)| *of == index) {
                    if !removal.ends_within(Duration::ZERO)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    /// Whether no removal waits, so that every name is free.
    pub(super) fn removed_all(&mut self) -> Result<bool> {
        if let Kind::Hca { .. } = self.kind {
            return Ok(!guest::hca_state()?.contains("state=removing"));
        }
        for (_, removal) in &mut self.removals {
            if !removal.ends_within(Duration::ZERO)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits until the removal is complete, or until it is certain that the removal itself waits.
    pub(super) fn wait_for_removal(&mut self, index: u32) -> Result<bool> {
        let cut_off = self.kind.disassociates();
        // All processes with a context are stopped, so the removal cannot end.
        if !cut_off && self.has_contexts(index)? {
            return Ok(false);
        }
        // A node may be open without a context. The kernel lists no such node.
        let limit = Duration::from_millis(if cut_off { 10_000 } else { 60 });
        let end = Instant::now() + limit;
        while !self.is_removed(index)? {
            if Instant::now() > end {
                ensure!(!cut_off, "the removal of index {index} waits");
                return Ok(false);
            }
            sleep(Duration::from_millis(1));
        }
        Ok(true)
    }

    /// Whether a device has contexts, even if it is being removed.
    fn has_contexts(&self, index: u32) -> Result<bool> {
        match self.kind {
            Kind::Hca { .. } => Ok(hca_contexts()?.get(&index).is_some_and(|count| *count > 0)),
            Kind::Rxe { .. } => Ok(link::contexts(index)? > 0),
        }
    }

    /// Removes everything. Only the world itself may still have anything open.
    pub(super) fn clean(mut self) -> Result<()> {
        self.held.clear();
        self.leave()?;
        self.stay.drain(..).try_for_each(Member::leave)?;
        if let Kind::Hca { .. } = self.kind {
            guest::hca("del-all")?;
            guest::until("the test HCA to be idle", || self.removed_all().unwrap_or(false))?;
        }
        let waiting: BTreeSet<u32> = self.removals.iter().map(|(index, _)| *index).collect();
        for (_, mut removal) in self.removals.drain(..) {
            ensure!(removal.ends_within(Duration::from_secs(20))?, "a removal does not end");
        }
        for name in guest::names("/sys/class/infiniband") {
            let index = link::index_of(&name)?;
            ensure!(!waiting.contains(&index), "{name} was removed and is there");
            link::delete_rxe(index).with_context(|| format!("removing {name}"))?;
        }
        for node in guest::names(DIRECTORY).iter().filter(|name| *name != "rdma_cm") {
            fs::remove_file(Path::new(DIRECTORY).join(node))?;
        }
        Ok(())
    }
}

/// The instance that is uverbs0 now.
pub(super) fn uverbs0() -> Result<u64> {
    Ok(fs::metadata(format!("{SYS}/uverbs0"))?.ino())
}

fn number_of(name: &str) -> Result<Option<u32>> {
    for uverbs in guest::names(SYS).iter().filter(|entry| entry.starts_with("uverbs")) {
        if guest::ibdev(uverbs).is_ok_and(|found| found == name) {
            return Ok(Some(uverbs.trim_start_matches("uverbs").parse()?));
        }
    }
    Ok(None)
}

/// The contexts on the test HCA's devices, according to its own state, including devices that are being removed.
fn hca_contexts() -> Result<BTreeMap<u32, usize>> {
    let state = guest::hca_state()?;
    let value = |line: &str, key: &str| -> Option<u32> {
        line.split_whitespace().find_map(|word| word.strip_prefix(key))?.parse().ok()
    };
    let counted = state.lines().map(|line| {
        let (index, count) = (value(line, "index="), value(line, "contexts="));
        Some((index?, count? as usize))
    });
    counted.collect::<Option<_>>().with_context(|| format!("the test HCA reports: {state}"))
}
