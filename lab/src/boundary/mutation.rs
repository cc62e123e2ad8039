//! What happens to the device while the program is stopped.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Result, ensure};
use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::crowd::{Member, RIGHT};
use super::link;
use super::link::Resource;
use super::process::Process;
use super::world::{NODE, SYS, World, uverbs0};
use crate::guest;

/// Kept in devtmpfs, so that a rename moves it into the node's place.
pub(super) const ASIDE: &str = "/dev/infiniband/aside";

/// The GUIDs of the device that the program opens, and of another one.
const LISTED: u8 = 0xa0;
const OTHER: u8 = 0xb0;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mutation {
    Remove,
    ReplaceOtherGuid,
    ReplaceSameGuid,
    ReplaceOtherName,
    /// By another device, and that one by a third with the first one's GUID.
    ReplaceTwice,
    /// Another process holds the device open.
    HoldRemove,
    HoldReplaceOtherGuid,
    HoldReplaceSameGuid,
    Rename,
    SwapNames,
    Evict,
    Listxattr,
    /// The node becomes one that is bound to an older device.
    StaleNode,
    StaleNodeSameGuid,
    NodeMissing,
    NodeSymlink,
    NodeFifo,
    NodeOtherDevice,
    /// Hand-made, and right.
    NodeHandMade,
    /// The right node is back in its place.
    NodeBack,
    /// Others close what they have on the device; others come to it.
    CrowdLeaves,
    CrowdComes,
    /// The driver refuses to allocate a protection domain; to free one.
    AllocPdFails,
    DeallocPdFails,
}

pub(super) const ALL: [Mutation; 19] = [
    Mutation::Remove,
    Mutation::ReplaceOtherGuid,
    Mutation::ReplaceSameGuid,
    Mutation::ReplaceOtherName,
    Mutation::ReplaceTwice,
    Mutation::HoldRemove,
    Mutation::HoldReplaceOtherGuid,
    Mutation::HoldReplaceSameGuid,
    Mutation::Rename,
    Mutation::SwapNames,
    Mutation::Evict,
    Mutation::Listxattr,
    Mutation::StaleNode,
    Mutation::StaleNodeSameGuid,
    Mutation::NodeMissing,
    Mutation::NodeSymlink,
    Mutation::NodeFifo,
    Mutation::NodeOtherDevice,
    Mutation::NodeHandMade,
];

/// For a device on which the program, or others, have had contexts from the start.
pub(super) const NOT_ALONE: [Mutation; 5] = [
    Mutation::Remove,
    Mutation::ReplaceSameGuid,
    Mutation::StaleNodeSameGuid,
    Mutation::CrowdLeaves,
    Mutation::CrowdComes,
];

/// Only on the test HCA.
pub(super) const FAILURES: [Mutation; 2] = [Mutation::AllocPdFails, Mutation::DeallocPdFails];

/// Pairs whose second mutation adds to the effect of the first: at one call, and at two.
pub(super) const PAIRS: [(Mutation, Mutation); 10] = [
    (Mutation::StaleNodeSameGuid, Mutation::NodeBack),
    (Mutation::StaleNodeSameGuid, Mutation::Remove),
    (Mutation::StaleNodeSameGuid, Mutation::ReplaceSameGuid),
    (Mutation::StaleNodeSameGuid, Mutation::Rename),
    (Mutation::ReplaceSameGuid, Mutation::StaleNodeSameGuid),
    (Mutation::HoldReplaceSameGuid, Mutation::StaleNodeSameGuid),
    (Mutation::Rename, Mutation::StaleNodeSameGuid),
    (Mutation::Evict, Mutation::StaleNodeSameGuid),
    (Mutation::Evict, Mutation::ReplaceSameGuid),
    (Mutation::CrowdComes, Mutation::StaleNodeSameGuid),
];

impl Mutation {
    /// The GUID of the older device that its node is bound to, if it needs such a node.
    pub(super) fn old(self) -> Option<u8> {
        match self {
            Self::StaleNode => Some(OTHER),
            Self::StaleNodeSameGuid => Some(LISTED),
            _ => None,
        }
    }

    /// Whether the outcome may depend on the type of the device: on whether its removal waits, or on its driver.
    /// The other mutations change the node, the cache of /sys, or a name. No driver takes part in those.
    pub(super) fn depends_on_type(self) -> bool {
        !matches!(
            self,
            Self::Rename
                | Self::SwapNames
                | Self::Evict
                | Self::Listxattr
                | Self::NodeMissing
                | Self::NodeSymlink
                | Self::NodeFifo
                | Self::NodeOtherDevice
                | Self::NodeHandMade
        )
    }

    /// Whether it needs the right node under another name.
    pub(super) fn needs_right(self) -> bool {
        matches!(self, Self::NodeBack | Self::CrowdComes)
    }
}

/// The GUID of an older device that others may be bound to.
pub(super) const SAME: Option<u8> = Some(LISTED);

/// Sets up the host that mutations need: with an older device of that GUID and a node that is bound to it, and with
/// the right node under another name.
pub(super) fn prepare(
    world: &mut World,
    mutations: &[Mutation],
    old: Option<u8>,
    right: bool,
) -> Result<()> {
    if let Some(guid) = mutations.iter().find_map(|one| one.old()).or(old) {
        // Held by a descriptor, and by a node that stays where it is put.
        world.add_old(guid)?;
        world.hold()?;
        fs::rename(NODE, ASIDE)?;
        let index = world.index()?;
        world.old = Some(index);
        world.remove("old", index)?;
    }
    world.add("tst", 0, LISTED)?;
    if mutations.contains(&Mutation::SwapNames) {
        world.add("other", 1, OTHER)?;
    }
    world.first = uverbs0()?;
    if right || mutations.iter().any(|one| one.needs_right()) {
        fs::hard_link(NODE, RIGHT)?;
    }
    Ok(())
}

impl Mutation {
    /// Applies the mutation. A removal that waits is left waiting.
    pub(super) fn happen(self, world: &mut World) -> Result<()> {
        if let Self::HoldRemove | Self::HoldReplaceOtherGuid | Self::HoldReplaceSameGuid = self {
            world.hold()?;
        }
        match self {
            Self::Remove | Self::HoldRemove => remove(world, "tst").map(drop),
            Self::ReplaceOtherGuid | Self::HoldReplaceOtherGuid => {
                replace(world, "tst", OTHER).map(drop)
            }
            Self::ReplaceSameGuid | Self::HoldReplaceSameGuid => {
                replace(world, "tst", LISTED).map(drop)
            }
            Self::ReplaceOtherName => {
                remove(world, "tst")?;
                world.add("new", 0, LISTED)
            }
            Self::ReplaceTwice => {
                let name = replace(world, "tst", OTHER)?;
                replace(world, name, LISTED).map(drop)
            }
            Self::Rename => link::rename(world.index()?, "renamed"),
            Self::SwapNames => {
                let (tst, other) = (world.index()?, link::index_of("other")?);
                link::rename(tst, "third")?;
                link::rename(other, "tst")?;
                link::rename(tst, "other")
            }
            Self::NodeBack => {
                fs::rename(NODE, ASIDE)?;
                Ok(fs::hard_link(RIGHT, NODE)?)
            }
            Self::CrowdLeaves => world.leave(),
            Self::CrowdComes => {
                let mut member = Member::start(Resource::Domain, 2)?;
                member.ready()?;
                world.join(true, member);
                Ok(())
            }
            Self::AllocPdFails => guest::hca("set name=tst fail=ALLOC_PD:12"),
            Self::DeallocPdFails => {
                world.keeps_domains = true;
                guest::hca("set name=tst fail=DEALLOC_PD:16")
            }
            Self::Evict => guest::drop_caches(),
            Self::Listxattr => listxattr(),
            Self::StaleNode | Self::StaleNodeSameGuid => Ok(fs::rename(ASIDE, NODE)?),
            Self::NodeMissing => Ok(fs::rename(NODE, ASIDE)?),
            Self::NodeSymlink => {
                fs::rename(NODE, ASIDE)?;
                Ok(symlink(ASIDE, NODE)?)
            }
            Self::NodeFifo => {
                fs::remove_file(NODE)?;
                Ok(mknodat(CWD, NODE, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?)
            }
            Self::NodeOtherDevice => {
                fs::remove_file(NODE)?;
                guest::mknod(NODE, (1, 3))
            }
            Self::NodeHandMade => {
                fs::remove_file(NODE)?;
                guest::mknod(NODE, guest::device_number("uverbs0")?)
            }
        }
    }
}

/// Whether the removal is complete.
fn remove(world: &mut World, name: &str) -> Result<bool> {
    let index = world.index()?;
    world.remove(name, index)?;
    world.wait_for_removal(index)
}

/// Replaces uverbs0. Returns the name of the new device: the old one's name is taken as long as its removal waits.
fn replace(world: &mut World, old: &str, guid: u8) -> Result<&'static str> {
    let names = ["tst", "new", "newer"];
    let free = match (remove(world, old)?, old) {
        (true, _) if world.removed_all()? => 0,
        (_, "tst") => 1,
        _ => 2,
    };
    world.add(names[free], 0, guid)?;
    Ok(names[free])
}

/// Changes timestamps in /sys, up to Linux 7.2. A separate process does it, because of the lab's own inode.
fn listxattr() -> Result<()> {
    let path = format!("{SYS}/uverbs0/ibdev");
    let mut process =
        Process::fork(|_| i32::from(rustix::fs::listxattr(&path, &mut [0_u8; 256][..]).is_err()))?;
    ensure!(process.ends_within(std::time::Duration::from_secs(5))?, "listxattr hangs");
    Ok(())
}
