//! The host that a program is run on, and what is done to it meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::guest;

const NODE: &str = "/dev/infiniband/uverbs0";
const STALE: &str = "/dev/infiniband/stale";
const SYS: &str = "/sys/class/infiniband_verbs";

/// What happens to the device while the program is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mutation {
    Nothing,
    Remove,
    ReplaceOtherGuid,
    ReplaceSameGuid,
    Rename,
    SwapNames,
    Evict,
    Listxattr,
    StaleNode,
    StaleNodeSameGuid,
}

pub(super) const ALL: [Mutation; 9] = [
    Mutation::Remove,
    Mutation::ReplaceOtherGuid,
    Mutation::ReplaceSameGuid,
    Mutation::Rename,
    Mutation::SwapNames,
    Mutation::Evict,
    Mutation::Listxattr,
    Mutation::StaleNode,
    Mutation::StaleNodeSameGuid,
];

/// A device instance, as the test HCA knows it.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) index: u32,
    pub(super) guid: u64,
}

/// A host with the device `tst`, which is uverbs0.
pub(super) struct World {
    mutation: Mutation,
    disassociate: u8,
    held: Option<File>,
    /// By the inode number of the directory in /sys.
    pub(super) instances: BTreeMap<u64, Instance>,
}

impl World {
    pub(super) fn new(mutation: Mutation, disassociate: bool) -> Result<Self> {
        let disassociate = u8::from(disassociate);
        let mut world = Self { mutation, disassociate, held: None, instances: BTreeMap::new() };
        if let Mutation::StaleNode | Mutation::StaleNodeSameGuid = mutation {
            let guid = if mutation == Mutation::StaleNode { 0xd0 } else { 0xa0 };
            // Held by a descriptor, and by a node that stays where it is put.
            guest::hca(&format!("add name=old guid={guid:016x} disassociate=0"))?;
            guest::until("the node", || Path::new(NODE).exists())?;
            world.held = Some(File::options().read(true).write(true).open(NODE)?);
            world.know("old", "uverbs0", guid)?;
            fs::rename(NODE, STALE)?;
            guest::hca("del name=old")?;
            until_numbered_anew()?;
        }
        world.add("tst", "uverbs0", 0xa0)?;
        if mutation == Mutation::SwapNames {
            world.add("other", "uverbs1", 0xc0)?;
        }
        Ok(world)
    }

    fn add(&mut self, name: &str, uverbs: &str, guid: u64) -> Result<()> {
        guest::hca(&format!(
            "add name={name} guid={guid:016x} disassociate={}",
            self.disassociate
        ))?;
        self.know(name, uverbs, guid)
    }

    fn know(&mut self, name: &str, uverbs: &str, guid: u64) -> Result<()> {
        let index = guest::hca_value(name, "index")?.parse()?;
        let ino = fs::metadata(format!("{SYS}/{uverbs}")).context("another number")?.ino();
        self.instances.insert(ino, Instance { index, guid });
        Ok(())
    }

    /// The device that is `tst` and uverbs0 now.
    pub(super) fn asked() -> Result<u64> {
        Ok(fs::metadata(format!("{SYS}/uverbs0"))?.ino())
    }

    /// Does it. A removal that waits is left waiting.
    pub(super) fn mutate(&mut self) -> Result<()> {
        match self.mutation {
            Mutation::Nothing => Ok(()),
            Mutation::Remove => {
                guest::hca("del name=tst")?;
                until_numbered_anew()
            }
            Mutation::ReplaceOtherGuid => self.replace(0xb0),
            Mutation::ReplaceSameGuid => self.replace(0xa0),
            Mutation::Rename => guest::rename("tst", "renamed"),
            Mutation::SwapNames => {
                guest::rename("tst", "third")?;
                guest::rename("other", "tst")?;
                guest::rename("third", "other")
            }
            Mutation::Evict => guest::drop_caches(),
            Mutation::Listxattr => {
                let path = format!("{SYS}/uverbs0/ibdev");
                let role = ["role", "listxattr", &path];
                ensure!(Command::new("/proc/self/exe").args(role).status()?.success());
                Ok(())
            }
            Mutation::StaleNode | Mutation::StaleNodeSameGuid => Ok(fs::rename(STALE, NODE)?),
        }
    }

    fn replace(&mut self, guid: u64) -> Result<()> {
        guest::hca("del name=tst")?;
        until_numbered_anew()?;
        // The old one's name is taken for as long as its removal waits.
        for _ in 0..10 {
            if self.add("tst", "uverbs0", guid).is_ok() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.add("new", "uverbs0", guid)
    }

    /// The indices of devices with contexts on them.
    pub(super) fn with_contexts() -> Result<Vec<u32>> {
        let value = |line: &str, key: &str| -> Option<u32> {
            line.split_whitespace().find_map(|word| word.strip_prefix(key))?.parse().ok()
        };
        let state = guest::hca_state()?;
        let busy = state.lines().filter(|line| value(line, "contexts=").is_some_and(|n| n > 0));
        Ok(busy.filter_map(|line| value(line, "index=")).collect())
    }

    pub(super) fn clean(mut self) -> Result<()> {
        self.held = None;
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
        for node in [NODE, STALE] {
            let _ = fs::remove_file(node);
        }
        Ok(())
    }
}

/// Waits until uverbs0 is gone from /sys, and its number is free, which it is right after.
fn until_numbered_anew() -> Result<()> {
    guest::until_uverbs("uverbs0", false)?;
    std::thread::sleep(Duration::from_millis(20));
    Ok(())
}
