//! Plays a script on one kernel and records the results, with the same code for both kernels.

use anyhow::{Context as _, Result, ensure};
use uverbs::sim::{As, Probe, Probed, Root};
use uverbs::{Context, Device, Devices, Registry, Timestamp};

use super::foreign::{Foreign, open_unguarded};
use super::script::{Mutation, Node, Nodes, Program, Script, Step};
use super::side::Side;

const NODE: &str = "infiniband/uverbs0";
const DIRECTORY: &str = "devices/virtual/infiniband_verbs/uverbs";

/// The results of a script, in lines that must be the same on both kernels.
pub(super) type Record = Vec<String>;

/// What the program and the others hold. Only descriptors.
#[derive(Default)]
struct Held {
    /// Those of others.
    holder: Option<Context>,
    foreign: Vec<Probed>,
    /// Those of the program.
    context: Option<Context>,
    unguarded: Option<Probed>,
    /// Directory, `dev` and `ibdev`, with the context of [`Program::Watch`].
    watched: Option<[Probed; 3]>,
}

impl Held {
    /// Drops the holders' descriptors, but not the program's.
    fn drop_others(&mut self) {
        self.holder = None;
        self.foreign.clear();
    }
}

pub(super) struct Player<'a> {
    side: &'a mut dyn Side,
    foreign: &'a Foreign,
    script: &'a Script,
    probe: Probe,
    registry: Registry,
    listed: Device,
    /// When `ibdev` was cached, as first listed.
    stamped: Timestamp,
    devices: Option<Devices>,
    held: Held,
    /// Inode numbers of uverbs directories, in order of creation.
    instances: Vec<u64>,
    record: Record,
}

/// Plays a script from the beginning to the end.
pub(super) fn play(side: &mut dyn Side, foreign: &Foreign, script: &Script) -> Result<Record> {
    let mut player = Player::new(side, foreign, script)?;
    let steps = script.program.steps();
    for at in 0..=steps.len() {
        for (_, mutation) in script.mutations.iter().filter(|(place, _)| *place == at) {
            let came = player.mutate(*mutation)?;
            player.write(&format!("{mutation:?}"), &came)?;
            player.learn()?;
        }
        if let Some(step) = steps.get(at) {
            let came = player.step(*step)?;
            player.write(&format!("{step:?}"), &came)?;
        }
    }
    player.finish()
}

impl<'a> Player<'a> {
    fn new(side: &'a mut dyn Side, foreign: &'a Foreign, script: &'a Script) -> Result<Self> {
        let setup = &script.setup;
        for name in ["tst", "other"] {
            let added = side.add(name, 0xa0, setup.disassociates)?;
            ensure!(added == Ok(()), "{name}: {added:?}");
        }
        match setup.nodes {
            Nodes::Kernel => {}
            Nodes::ByHand => side.set_node(0, Node::Static)?,
            Nodes::Tmpfs => {
                side.set_node(0, Node::Static)?;
                side.set_node(1, Node::Static)?;
            }
        }
        let host = side.host()?;
        let registry = Registry::new(host.clone());
        let listed = registry.devices()?.by_name("tst")?;
        let stamped = listed.instance().timestamp;
        let mut player = Self {
            side,
            foreign,
            script,
            probe: Probe::new(&host),
            // The first list has no earlier records.
            registry: match script.program {
                Program::ListAndOpen => Registry::new(host),
                _ => registry,
            },
            listed,
            stamped,
            devices: None,
            held: Held::default(),
            instances: Vec::new(),
            record: Record::new(),
        };
        player.learn()?;
        player.hold()?;
        Ok(player)
    }

    /// Opens everything that is open before anything happens.
    fn hold(&mut self) -> Result<()> {
        let setup = &self.script.setup;
        if setup.held {
            self.held.holder = Some(self.listed.open()?);
        }
        if setup.crowded {
            for _ in 0..self.side.crowd() {
                let opened = self.foreign.open(&self.probe)?;
                self.held.foreign.push(opened.ok().context("the crowd")?);
            }
        }
        if self.script.program == Program::Through {
            self.held.context = Some(self.listed.open()?);
        }
        if self.script.program == Program::Watch {
            self.held.unguarded = open_unguarded(&self.probe).ok();
            let open =
                |name: &str, how| self.probe.open(Root::Sys, &format!("{DIRECTORY}0{name}"), how);
            let all = [open("", As::File), open("/dev", As::File), open("/ibdev", As::File)];
            let [Ok(directory), Ok(dev), Ok(ibdev)] = all else { anyhow::bail!("{all:?}") };
            self.held.watched = Some([directory, dev, ibdev]);
        }
        Ok(())
    }

    /// Adds a line, with the current state of all devices.
    fn write(&mut self, what: &str, came: &str) -> Result<()> {
        self.side.settle()?;
        let mut contexts = Vec::new();
        for device in 0..self.side.devices() {
            contexts.push(match self.side.contexts(device)? {
                None => "gone".to_owned(),
                Some(count) => self.count(count),
            });
        }
        let moved = match self.listed.instance().timestamp == self.stamped {
            true => "as listed",
            false => "moved",
        };
        self.record.push(format!("{what}: {came} | contexts {contexts:?}, timestamp {moved}"));
        Ok(())
    }

    /// A crowd counts as one word, because its number differs between the kernels.
    fn count(&self, count: usize) -> String {
        match count.checked_sub(self.side.crowd()) {
            Some(more) if self.script.setup.crowded => format!("crowd+{more}"),
            _ => count.to_string(),
        }
    }

    /// Records new instances.
    fn learn(&mut self) -> Result<()> {
        for number in 0..6 {
            let path = format!("{DIRECTORY}{number}");
            if let Ok(directory) = self.probe.open(Root::Sys, &path, As::Reference) {
                let ino = directory.facts().ok().context("fstat")?.ino;
                if !self.instances.contains(&ino) {
                    self.instances.push(ino);
                }
            }
        }
        Ok(())
    }

    fn instance(&self, ino: u64) -> String {
        match self.instances.iter().position(|known| *known == ino) {
            Some(place) => format!("instance {place}"),
            None => "an unknown instance".to_owned(),
        }
    }

    fn mutate(&mut self, mutation: Mutation) -> Result<String> {
        let disassociates = self.script.setup.disassociates;
        let refused = |outcome: super::side::Outcome| match outcome {
            Ok(()) => "done".to_owned(),
            Err(_) => "refused".to_owned(),
        };
        let done = || "done".to_owned();
        Ok(match mutation {
            Mutation::Remove => {
                self.side.remove(0)?;
                done()
            }
            Mutation::RemoveOther => {
                self.side.remove(1)?;
                done()
            }
            Mutation::Replace(name, guid) => self.replace(0, name, guid)?,
            Mutation::ReplaceTwice => {
                let first = self.replace(0, "tst", 0xa0)?;
                let last = self.side.devices() - 1;
                format!("{first}, {}", self.replace(last, "tst", 0xa0)?)
            }
            Mutation::Another => refused(self.side.add("another", 0xa0, disassociates)?),
            Mutation::Rename => refused(self.side.rename(0, "renamed")?),
            Mutation::SwapNames => refused(self.side.swap_names(0, 1)?),
            Mutation::Evict => {
                self.side.evict()?;
                done()
            }
            Mutation::Listxattr => {
                self.side.listxattr()?;
                done()
            }
            Mutation::Node(node) => {
                self.side.set_node(0, node)?;
                done()
            }
            Mutation::ForeignContext => match self.foreign.open(&self.probe)? {
                Ok(opened) => {
                    self.held.foreign.push(opened);
                    done()
                }
                Err(errno) => format!("errno {errno}"),
            },
            Mutation::ForeignComesAndGoes => {
                let opened = [self.foreign.open(&self.probe)?, self.foreign.open(&self.probe)?];
                format!("{:?}", opened.map(|opened| opened.map(drop)))
            }
            Mutation::HoldersLetGo => {
                self.held.drop_others();
                done()
            }
            Mutation::RecreateUverbs => refused(self.side.change_namespace(0, false)?),
            Mutation::MoveAway => refused(self.side.change_namespace(0, true)?),
            Mutation::ReloadUverbs => refused(self.side.reload_uverbs()?),
            Mutation::ReloadCore => {
                self.side.reload_core()?;
                refused(self.side.add("tst", 0xa0, disassociates)?)
            }
        })
    }

    /// Removes a device and adds another, with a different name if the old one is still taken.
    fn replace(&mut self, device: usize, name: &str, guid: u64) -> Result<String> {
        self.side.remove(device)?;
        for name in [name, "second", "third"] {
            if self.side.add(name, guid, self.script.setup.disassociates)? == Ok(()) {
                self.learn()?;
                return Ok(format!("by {name}"));
            }
        }
        Ok("by none".to_owned())
    }

    fn step(&mut self, step: Step) -> Result<String> {
        match step {
            Step::List => Ok(self.list()),
            Step::OpenListed => Ok(self.open(&self.listed.clone())),
            Step::OpenFound => {
                let listed = self.devices.as_ref();
                let found = listed.map(|all| all.by("uverbs0", |one| one.uverbs_number() == 0));
                Ok(match found {
                    None => "nothing was listed".to_owned(),
                    Some(Err(error)) => describe(&error),
                    Some(Ok(device)) => self.open(&device),
                })
            }
            Step::QueryDevice => Ok(match self.held.context.as_ref().map(Context::query_device) {
                None => "no context".to_owned(),
                Some(Ok(attributes)) => format!("GUID {}", attributes.node_guid),
                Some(Err(error)) => describe(&error),
            }),
            Step::Query => Ok(match self.listed.query() {
                Ok(facts) => format!(
                    "device {:?}, driver {:?}, {} {} {} {}",
                    self.device_of(facts.index),
                    facts.driver_id,
                    facts.node_guid,
                    facts.sys_image_guid,
                    facts.node_type.to_raw(),
                    facts.firmware_version
                ),
                Err(error) => describe(&error),
            }),
            Step::Pin => Ok(self
                .listed
                .index()
                .map_or_else(|error| describe(&error), |_| "joined".to_owned())),
            Step::ForeignOpen => {
                let opened = open_unguarded(&self.probe);
                let came = format!("{:?}", opened.as_ref().map(drop));
                self.held.unguarded = opened.ok();
                Ok(came)
            }
            Step::Verify => Ok(match &self.held.unguarded {
                Some(opened) => match self.listed.verify(opened) {
                    Ok(evidence) => self.proved(&evidence),
                    Err(error) => describe(&error),
                },
                _ => "nothing to verify".to_owned(),
            }),
            Step::Look => {
                self.look()?;
                Ok("looked".to_owned())
            }
        }
    }

    fn list(&mut self) -> String {
        match self.registry.devices() {
            Err(error) => describe(&error),
            Ok(devices) => {
                let each: Vec<_> = devices
                    .iter()
                    .map(|device| {
                        let instance = self.instance(device.instance().ino);
                        format!("{device} {} {instance}", device.device_number())
                    })
                    .collect();
                let faults: Vec<_> = devices.faults().map(describe).collect();
                let gone = self.listed.is_known_gone();
                self.devices = Some(devices);
                format!("{each:?}, faults {faults:?}, listed {:?} gone {gone}", self.listed.name())
            }
        }
    }

    fn open(&mut self, device: &Device) -> String {
        match device.open() {
            Ok(context) => {
                let proved = self.proved(context.evidence());
                let came = format!("{device} {}, {proved}", self.instance(device.instance().ino));
                self.held.context = Some(context);
                came
            }
            Err(error) => describe(&error),
        }
    }

    fn proved(&self, evidence: &uverbs::Evidence) -> String {
        let checks: Vec<_> =
            evidence.checks().iter().map(|check| (check.step.number(), check.what())).collect();
        let index = evidence.index().map(|index| self.device_of(index));
        format!("device {index:?} by {checks:?}")
    }

    /// Which device has an index. If two had it, the one that was added last.
    fn device_of(&self, index: u32) -> Option<usize> {
        (0..self.side.devices()).rev().find(|device| self.side.index(*device) == index)
    }

    /// Records the kernel's answers, call by call.
    fn look(&mut self) -> Result<()> {
        let mut seen = Vec::new();
        let names = |root, path| self.probe.open(root, path, As::File).and_then(|dir| dir.names());
        seen.push(format!("uverbs {:?}", names(Root::Sys, "class/infiniband_verbs")));
        seen.push(format!("names {:?}", names(Root::Sys, "class/infiniband")));
        let mut nodes = names(Root::Dev, "infiniband");
        // The other directory, which stays in place, would show the mount.
        if let Ok(nodes) = &mut nodes {
            nodes.retain(|name| name.starts_with("uverbs"));
        }
        seen.push(format!("nodes {nodes:?}"));
        let node = self.probe.open(Root::Dev, NODE, As::Reference).and_then(|node| node.facts());
        seen.push(format!("node {:?}", node.map(|node| (node.kind, node.rdev, node.nlink))));
        for number in 0..3 {
            let link = format!("class/infiniband_verbs/uverbs{number}");
            let text =
                self.probe.open(Root::Sys, &link, As::Reference).and_then(|link| link.link());
            let directory =
                self.probe.open(Root::Sys, &format!("{DIRECTORY}{number}"), As::Reference);
            let directory = directory.and_then(|directory| directory.facts());
            seen.push(format!(
                "link {:?} to {:?}",
                text.map(|text| String::from_utf8_lossy(&text).into_owned()),
                directory.map(|facts| (self.instance(facts.ino), facts.kind))
            ));
        }
        for device in 0..self.side.devices() {
            let index = self.side.index(device);
            let contexts = self.probe.contexts(index);
            let contexts = contexts.map(|(all, own)| (self.count(all), own));
            let name = self.probe.device(index);
            let name = name.map(|(name, guid)| (String::from_utf8_lossy(&name).into_owned(), guid));
            let chardev = self.probe.chardev(index);
            seen.push(format!("device {device}: {name:?} {chardev:?} contexts {contexts:?}"));
        }
        if let Some([directory, dev, ibdev]) = &self.held.watched {
            let text = |value: std::result::Result<Vec<u8>, i32>| {
                value.map(|value| String::from_utf8_lossy(&value).into_owned())
            };
            let facts = directory.facts().ok().context("fstat")?;
            let ctime = ibdev.facts().ok().context("fstat")?.ctime;
            // The link count of a directory that is gone is 0 from Linux 7.3 on. Nothing depends on it.
            let is_compared = crate::guest::version()? < (7, 3) || dev.read().is_ok();
            seen.push(format!(
                "held {} links {:?}, dev {:?}, ibdev {:?} {}, again {:?} {:?}, names {:?}",
                self.instance(facts.ino),
                is_compared.then_some(facts.nlink),
                text(dev.read()),
                text(ibdev.read()),
                if ctime == self.stamped { "as listed" } else { "moved" },
                text(directory.open("dev", As::File).and_then(|dev| dev.read())),
                text(directory.open("ibdev", As::File).and_then(|ibdev| ibdev.read())),
                // Opened again, because the position in a directory belongs to the descriptor.
                directory.open(".", As::File).and_then(|dir| dir.names()),
            ));
        }
        if let Some(context) = &self.held.unguarded {
            let again = context.get_context();
            seen.push(format!(
                "through the context {:?}, another {again:?}",
                context.query_device()
            ));
        }
        self.record.append(&mut seen);
        Ok(())
    }

    /// Looks a last time, also by opening the node, and checks that nothing is left once all descriptors are
    /// closed.
    fn finish(mut self) -> Result<Record> {
        self.look()?;
        let opened = open_unguarded(&self.probe);
        let came = match &opened {
            Ok(opened) => format!("{:?}", opened.query_device()),
            Err(errno) => format!("errno {errno}"),
        };
        self.write("opening the node", &came)?;
        drop(opened);
        self.held = Held::default();
        self.write("all closed", "")?;
        Ok(self.record)
    }
}

/// An error without the numbers that differ between the kernels: inodes, times, indices.
pub(super) fn describe(error: &uverbs::Error) -> String {
    let mut text = String::new();
    for letter in error.to_string().chars() {
        match letter.is_ascii_digit() {
            true if text.ends_with('#') => {}
            true => text.push('#'),
            false => text.push(letter),
        }
    }
    let step = error.step().map(|step| step.number());
    format!("{:?} in step {step:?}, errno {:?}: {text}", error.kind(), error.raw_os_error())
}
