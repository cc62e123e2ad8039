//! The file trees of sysfs and /dev: nodes, their cached inodes, and the walk of a path.

use std::collections::BTreeMap;

use super::super::{Errno, FileType, Stat, Sys};
use super::devices::UverbsId;
use super::spec::DeviceId;

/// A node. Ids are never reused, so a held one keeps its meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(u32);

/// The node that sockets are opened on. It is in no tree.
pub(super) const SOCKETS: NodeId = NodeId(0);
/// The root of /sys.
pub(super) const SYS: NodeId = NodeId(1);
/// The root of /dev.
pub(super) const DEV: NodeId = NodeId(2);

/// The first inode number. The kernel's counter is past 32 bits, which is rare but possible, so that a truncated
/// number becomes visible.
const FIRST_INO: u64 = (1 << 32) + 18_000;

/// `PATH_MAX`.
const PATH_MAX: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Fs {
    Sock,
    Sys,
    Dev,
}

#[derive(Debug, Hash)]
pub(super) enum Value {
    Bytes(Box<[u8]>),
    /// The device's name at the time of the read.
    NameOf(DeviceId),
}

#[derive(Debug, Hash)]
pub(super) enum Kind {
    Socket,
    Dir(BTreeMap<Box<[u8]>, NodeId>),
    /// A sysfs link. Its text follows renames.
    LinkTo(NodeId),
    /// A hand-made link.
    LinkText(Box<[u8]>),
    Attr(Value),
    /// A character device, with the cdev that its inode caches from an earlier open.
    Device {
        rdev: (u32, u32),
        cdev: Option<UverbsId>,
    },
    Fifo,
    Regular,
}

#[derive(Debug, Hash)]
pub(super) struct Node {
    pub(super) name: Box<[u8]>,
    pub(super) parent: NodeId,
    pub(super) fs: Fs,
    pub(super) kind: Kind,
    /// Still reachable through its directory.
    pub(super) linked: bool,
    /// Belongs to another network namespace.
    pub(super) hidden: bool,
    /// Made by devtmpfs, which therefore removes it.
    pub(super) by_kernel: bool,
    /// The program may not open it.
    pub(super) denied: bool,
    pins: u32,
    /// Change time of the cached inode, if it is cached.
    inode: Option<u64>,
    /// Has attributes of its own, once a user made the kernel allocate them.
    own_times: Option<u64>,
}

#[derive(Debug, Hash)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// The coarse clock, in nanoseconds since the epoch.
    pub(super) now: u64,
}

impl std::ops::Index<NodeId> for Tree {
    type Output = Node;

    fn index(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }
}

impl std::ops::IndexMut<NodeId> for Tree {
    fn index_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0 as usize]
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut tree = Self { nodes: Vec::with_capacity(64), now: 1_700_000_000_000_000_000 };
        tree.push(SOCKETS, b"socket:", Fs::Sock, Kind::Socket);
        tree.push(SYS, b"sys", Fs::Sys, Kind::Dir(BTreeMap::new()));
        tree.push(DEV, b"dev", Fs::Dev, Kind::Dir(BTreeMap::new()));
        tree
    }

    fn push(&mut self, parent: NodeId, name: &[u8], fs: Fs, kind: Kind) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node {
            name: name.into(),
            parent,
            fs,
            kind,
            linked: true,
            hidden: false,
            by_kernel: false,
            denied: false,
            pins: 0,
            // A tmpfs keeps its inodes, whose times nobody reads. Those of sysfs are created by the first lookup.
            inode: (fs != Fs::Sys).then_some(0),
            own_times: None,
        });
        id
    }

    /// Adds a node to a directory, in place of any node with that name.
    pub(super) fn add(&mut self, parent: NodeId, name: &[u8], kind: Kind) -> NodeId {
        let id = self.push(parent, name, self[parent].fs, kind);
        if let Kind::Dir(children) = &mut self[parent].kind {
            children.insert(name.into(), id);
        }
        id
    }

    pub(super) fn add_dir(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        self.add(parent, name, Kind::Dir(BTreeMap::new()))
    }

    pub(super) fn add_attr(&mut self, parent: NodeId, name: &[u8], value: &[u8]) -> NodeId {
        self.add(parent, name, Kind::Attr(Value::Bytes(value.into())))
    }

    /// The directory with that name, created if it is missing.
    pub(super) fn dir(&mut self, parent: NodeId, name: &[u8]) -> NodeId {
        self.child(parent, name).unwrap_or_else(|| self.add_dir(parent, name))
    }

    pub(super) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self[dir].kind {
            Kind::Dir(children) => children.get(name).copied(),
            _ => None,
        }
    }

    /// Removes a node and everything beneath it. Descriptors on them stay valid, but dead.
    pub(super) fn unlink(&mut self, id: NodeId) {
        if !self[id].linked {
            return;
        }
        self[id].linked = false;
        let (parent, name) = (self[id].parent, self[id].name.clone());
        if let Kind::Dir(siblings) = &mut self[parent].kind
            && siblings.get(&name) == Some(&id)
        {
            siblings.remove(&name);
        }
        if let Kind::Dir(children) = &mut self[id].kind {
            for child in std::mem::take(children).into_values() {
                self.unlink(child);
            }
        }
    }

    pub(super) fn unlink_child(&mut self, dir: NodeId, name: &[u8]) {
        if let Some(child) = self.child(dir, name) {
            self.unlink(child);
        }
    }

    /// Removes a directory that the kernel keeps only as long as it has an entry.
    pub(super) fn unlink_if_empty(&mut self, dir: NodeId) {
        if matches!(&self[dir].kind, Kind::Dir(children) if children.is_empty()) {
            self.unlink(dir);
        }
    }

    /// Renames a node. It keeps its identity and its inode number.
    pub(super) fn rename(&mut self, id: NodeId, name: &[u8]) {
        let old = std::mem::replace(&mut self[id].name, name.into());
        let (parent, linked) = (self[id].parent, self[id].linked);
        if let Kind::Dir(siblings) = &mut self[parent].kind
            && linked
        {
            siblings.remove(&old);
            siblings.insert(name.into(), id);
        }
    }

    /// Follows `path` beneath `start`. Links are not followed, and the path must not lead above `start`.
    pub(super) fn walk(&mut self, start: NodeId, path: &[u8], no_follow: bool) -> Sys<NodeId> {
        match path {
            [] => return Err(Errno::NOENT),
            [b'/', ..] => return Err(Errno::XDEV),
            _ if path.len() >= PATH_MAX => return Err(Errno::NAMETOOLONG),
            _ => {}
        }
        let mut at = start;
        let mut names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            if !matches!(self[at].kind, Kind::Dir(_)) {
                return Err(Errno::NOTDIR);
            }
            at = match name {
                b"." => at,
                b".." if at == start => return Err(Errno::XDEV),
                b".." => self[at].parent,
                _ => self.child(at, name).filter(|&id| !self[id].hidden).ok_or(Errno::NOENT)?,
            };
            self.instantiate(at);
            let last = names.peek().is_none() && !path.ends_with(b"/");
            if self.is_link(at) && !(last && no_follow) {
                return Err(Errno::LOOP);
            }
        }
        if path.ends_with(b"/") && !matches!(self[at].kind, Kind::Dir(_)) {
            return Err(Errno::NOTDIR);
        }
        Ok(at)
    }

    pub(super) fn is_link(&self, id: NodeId) -> bool {
        matches!(self[id].kind, Kind::LinkTo(_) | Kind::LinkText(_))
    }

    /// The text of the link.
    pub(super) fn link_text(&self, id: NodeId) -> Option<Vec<u8>> {
        let target = match &self[id].kind {
            Kind::LinkText(text) => return Some(text.to_vec()),
            Kind::LinkTo(target) => *target,
            _ => return None,
        };
        // Up from the link's directory to the lowest directory that it shares with the target, then down.
        let above = self.ancestors(self[id].parent);
        let mut down = self.ancestors(target);
        let both = above.iter().rev().zip(down[1..].iter().rev());
        let common = both.take_while(|(a, b)| a == b).count();
        down.truncate(down.len() - common);
        let mut text = b"../".repeat(above.len() - common);
        for id in down.iter().rev() {
            text.extend_from_slice(&self[*id].name);
            text.push(b'/');
        }
        text.pop();
        Some(text)
    }

    /// The node and everything above it.
    pub(super) fn ancestors(&self, id: NodeId) -> Vec<NodeId> {
        let mut all = vec![id];
        let mut at = id;
        while self[at].parent != at {
            at = self[at].parent;
            all.push(at);
        }
        all
    }

    /// The absolute path, for people to read.
    pub(super) fn path(&self, id: NodeId) -> String {
        use std::fmt::Write;
        let mut path = String::new();
        for id in self.ancestors(id).iter().rev() {
            // Writing to a String cannot fail.
            let _ = write!(path, "/{}", self[*id].name.escape_ascii());
        }
        path
    }

    fn instantiate(&mut self, id: NodeId) {
        let now = self.now;
        let node = &mut self[id];
        if node.inode.is_none() {
            node.inode = Some(node.own_times.unwrap_or(now));
        }
    }

    /// An open descriptor holds the inodes of its node and of everything above it, but not those below.
    pub(super) fn pin(&mut self, id: NodeId) {
        let mut at = id;
        loop {
            self.instantiate(at);
            self[at].pins += 1;
            if self[at].parent == at {
                return;
            }
            at = self[at].parent;
        }
    }

    pub(super) fn unpin(&mut self, id: NodeId) {
        let mut at = id;
        loop {
            self[at].pins -= 1;
            if self[at].parent == at {
                return;
            }
            at = self[at].parent;
        }
    }

    /// Drops every sysfs inode that nothing holds.
    pub(super) fn evict(&mut self) {
        for node in &mut self.nodes {
            if node.fs == Fs::Sys && node.pins == 0 {
                node.inode = None;
            }
        }
    }

    /// Gives the node times of its own, which changes them once.
    pub(super) fn take_own_times(&mut self, id: NodeId) {
        if self[id].own_times.is_none() {
            let now = self.now;
            let node = &mut self[id];
            node.own_times = Some(now);
            node.inode = Some(now);
        }
    }

    pub(super) fn ino(&self, id: NodeId) -> u64 {
        FIRST_INO + u64::from(id.0)
    }

    pub(super) fn stat(&self, id: NodeId) -> Stat {
        let node = &self[id];
        let time = node.inode.unwrap_or(self.now);
        let (kind, nlink, rdev) = match &node.kind {
            Kind::Socket => (FileType::Socket, 1, (0, 0)),
            Kind::Dir(children) => {
                let dirs = children.values().filter(|id| matches!(self[**id].kind, Kind::Dir(_)));
                (FileType::Directory, 2 + dirs.count() as u64, (0, 0))
            }
            Kind::LinkTo(_) | Kind::LinkText(_) => (FileType::Symlink, 1, (0, 0)),
            Kind::Attr(_) | Kind::Regular => (FileType::RegularFile, 1, (0, 0)),
            Kind::Device { rdev, .. } => (FileType::CharacterDevice, 1, *rdev),
            Kind::Fifo => (FileType::Fifo, 1, (0, 0)),
        };
        Stat {
            dev: match node.fs {
                Fs::Sock => 8,
                Fs::Sys => 22,
                Fs::Dev => 6,
            },
            ino: self.ino(id),
            kind,
            // A dead sysfs node keeps its count (up to 7.0); a dead tmpfs node does not.
            nlink: if node.fs == Fs::Dev && !node.linked { 0 } else { nlink },
            rdev,
            ctime: ((time / 1_000_000_000) as i64, (time % 1_000_000_000) as u32),
        }
    }
}
