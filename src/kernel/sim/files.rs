//! The calls on files and directories.

use std::ops::Bound;
use std::os::fd::OwnedFd;

use super::super::{Errno, OFlags, Stat, Sys};
use super::devices::node_name;
use super::nodes::NodeOpened;
use super::resources::Pds;
use super::tree::{DEV, Fs, Kind, NodeId, SOCKETS, Value};
use super::world::{DirPlace, FileId, FileState, World, pair};

/// The flags that may accompany `O_PATH`; openat2 refuses any other.
const WITH_PATH: OFlags =
    OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// `f_type` of a tmpfs, and of a devtmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const SOCKFS_MAGIC: u64 = 0x534f_434b;

/// Names and inode numbers of one page of a directory.
pub(super) type Page = Vec<(u64, Box<[u8]>)>;

impl World {
    pub(super) fn openat2(
        &mut self,
        dir: FileId,
        path: &[u8],
        flags: OFlags,
    ) -> Sys<(FileId, Option<OwnedFd>)> {
        let path_only = flags.contains(OFlags::PATH);
        if path_only && !WITH_PATH.contains(flags) {
            return Err(Errno::INVAL);
        }
        let start = self.file(dir)?.node;
        let node = self.tree.walk(start, path, flags.contains(OFlags::NOFOLLOW))?;
        let is_dir = matches!(self.tree[node].kind, Kind::Dir(_));
        if flags.contains(OFlags::DIRECTORY) && !is_dir {
            return Err(Errno::NOTDIR);
        }
        if path_only {
            return Ok((self.open_file(node, FileState::Path), None));
        }
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let denied = self.tree[node].denied;
        match self.tree[node].kind {
            Kind::LinkTo(_) | Kind::LinkText(_) => Err(Errno::LOOP),
            Kind::Socket => Err(Errno::NXIO),
            Kind::Dir(_) if writes => Err(Errno::ISDIR),
            Kind::Dir(_) => Ok((self.open_file(node, FileState::Dir(DirPlace::default())), None)),
            Kind::Attr(_) if writes => Err(Errno::ACCESS),
            Kind::Attr(_) => Ok((self.open_file(node, FileState::Attr), None)),
            _ if denied => Err(Errno::ACCESS),
            Kind::Fifo => self.open_other(node, NodeOpened::Fifo),
            Kind::Regular => self.open_other(node, NodeOpened::Regular),
            Kind::Device { rdev, cdev } => {
                // Allocated first, because it may fail for lack of descriptors.
                let pair = pair()?;
                let uverbs = self.open_device(node, rdev, cdev)?;
                let state = match uverbs {
                    Some(uverbs) => FileState::Cmd { uverbs, context: None, pds: Pds::new() },
                    None => FileState::Node,
                };
                self.open_with(node, state, pair)
            }
        }
    }

    fn open_other(&mut self, node: NodeId, opened: NodeOpened) -> Sys<(FileId, Option<OwnedFd>)> {
        let pair = pair()?;
        self.opened.push(opened);
        self.open_with(node, FileState::Node, pair)
    }

    pub(super) fn open_with(
        &mut self,
        node: NodeId,
        state: FileState,
        pair: (OwnedFd, OwnedFd),
    ) -> Sys<(FileId, Option<OwnedFd>)> {
        let id = self.open_file(node, state);
        match self.stand_in(id, pair) {
            Ok(fd) => Ok((id, Some(fd))),
            Err(errno) => {
                self.close(id);
                Err(errno)
            }
        }
    }

    pub(super) fn fstat(&self, id: FileId) -> Sys<Stat> {
        Ok(self.tree.stat(self.file(id)?.node))
    }

    pub(super) fn fstatfs_type(&self, id: FileId) -> Sys<u64> {
        Ok(match self.tree[self.file(id)?.node].fs {
            Fs::Sock => SOCKFS_MAGIC,
            Fs::Sys => self.settings.sys_type,
            Fs::Dev => TMPFS_MAGIC,
        })
    }

    pub(super) fn readlink(&mut self, id: FileId, path: &[u8], buffer: &mut [u8]) -> Sys<usize> {
        let file = self.file(id)?.node;
        let (link, errno) = match path {
            // With an empty path, a file that is not a link counts as an empty path that leads nowhere.
            [] => (file, Errno::NOENT),
            name => (self.tree.walk(file, name, true)?, Errno::INVAL),
        };
        let text = self.tree.link_text(link).ok_or(errno)?;
        if buffer.is_empty() {
            return Err(Errno::INVAL);
        }
        Ok(copy(&text, buffer))
    }

    pub(super) fn pread(&self, id: FileId, buffer: &mut [u8]) -> Sys<usize> {
        let file = self.file(id)?;
        match file.state {
            FileState::Path => return Err(Errno::BADF),
            FileState::Dir(_) => return Err(Errno::ISDIR),
            FileState::Socket(_)
            | FileState::Uevents(_)
            | FileState::Timer(_)
            | FileState::Epoll(_) => {
                return Err(Errno::SPIPE);
            }
            FileState::Async { .. } => return Err(Errno::SPIPE),
            FileState::Cmd { .. } | FileState::Node => return Err(Errno::INVAL),
            FileState::Attr => {}
        }
        let node = &self.tree[file.node];
        if !node.linked {
            return Err(Errno::NODEV);
        }
        match &node.kind {
            Kind::Attr(Value::Bytes(bytes)) => Ok(copy(bytes, buffer)),
            Kind::Attr(Value::NameOf(device)) => {
                let line = [&*self.devices[*device].name, b"\n"].concat();
                Ok(copy(&line, buffer))
            }
            _ => Err(Errno::INVAL),
        }
    }

    /// Reads one async event.
    pub(super) fn read(&mut self, id: FileId, buffer: &mut [u8]) -> Sys<usize> {
        const LEN: usize = 16;
        let FileState::Async { events, .. } = &mut self.file_mut(id)?.state else {
            return Err(Errno::INVAL);
        };
        let (element, kind) = *events.front().ok_or(Errno::AGAIN)?;
        let event = buffer.get_mut(..LEN).ok_or(Errno::INVAL)?;
        event.fill(0);
        event[..8].copy_from_slice(&element.to_ne_bytes());
        event[8..12].copy_from_slice(&kind.to_ne_bytes());
        events.pop_front();
        Ok(LEN)
    }

    /// Whether there is an async event to read.
    pub(super) fn poll(&self, id: FileId) -> Sys<bool> {
        match &self.file(id)?.state {
            FileState::Async { events, .. } => Ok(!events.is_empty()),
            _ => Ok(true),
        }
    }

    /// One page of a directory; empty at its end.
    pub(super) fn getdents(&mut self, id: FileId) -> Sys<Page> {
        let file = self.files.get_mut(&id).ok_or(Errno::BADF)?;
        let place = match &mut file.state {
            FileState::Dir(place) => place,
            FileState::Path => return Err(Errno::BADF),
            _ => return Err(Errno::NOTDIR),
        };
        let Kind::Dir(children) = &self.tree[file.node].kind else { return Err(Errno::NOTDIR) };
        let room = self.settings.entries_a_page;
        let mut page = Page::new();
        let dots: [(NodeId, &[u8]); 2] = [(file.node, b"."), (self.tree[file.node].parent, b"..")];
        for (node, name) in dots.into_iter().skip(place.dots).take(room) {
            page.push((self.tree.ino(node), name.into()));
            place.dots += 1;
        }
        // The kernel goes by the hash of the names; here the order is that of the names. Either way, a name that
        // was neither added nor renamed meanwhile is shown once, unless it is skipped.
        let after = place.after.clone();
        let is_reversed = self.settings.lists_reversed;
        let rest: Vec<(Box<[u8]>, NodeId)> = match (after, is_reversed) {
            (None, false) => children.iter().map(own).collect(),
            (None, true) => children.iter().rev().map(own).collect(),
            (Some(after), false) => children
                .range::<[u8], _>((Bound::Excluded(&*after), Bound::Unbounded))
                .map(own)
                .collect(),
            (Some(after), true) => children
                .range::<[u8], _>((Bound::Unbounded, Bound::Excluded(&*after)))
                .rev()
                .map(own)
                .collect(),
        };
        let mut steps_over = false;
        let mut last = None;
        for (name, node) in rest {
            if self.tree[node].hidden || !self.tree[node].linked {
                continue;
            }
            if steps_over {
                steps_over = false;
                last = Some(name);
                continue;
            }
            if page.len() >= room {
                break;
            }
            if name.contains(&b'/') {
                // The names before it are returned first.
                return if page.is_empty() { Err(Errno::IO) } else { Ok(page) };
            }
            page.push((self.tree.ino(node), name.clone()));
            last = Some(name);
            steps_over = self.happens_while_listed(node) && self.settings.steps_over;
        }
        if let Some(name) = last
            && let FileState::Dir(place) = &mut self.file_mut(id)?.state
        {
            place.after = Some(name);
        }
        Ok(page)
    }

    /// The file's path, for people to read.
    pub(super) fn describe(&self, id: FileId) -> String {
        match self.file(id) {
            Ok(file) if file.node == SOCKETS => "socket".into(),
            Ok(file) => self.tree.path(file.node),
            Err(_) => "closed".into(),
        }
    }

    /// The inode number of the node at `/dev/infiniband/uverbsN`.
    pub fn node_ino(&self, number: u32) -> Option<u64> {
        let dir = self.tree.child(DEV, b"infiniband")?;
        let node = self.tree.child(dir, &node_name(number))?;
        Some(self.tree.ino(node))
    }
}

#[allow(clippy::borrowed_box)] // the type of the map's entries
fn own((name, node): (&Box<[u8]>, &NodeId)) -> (Box<[u8]>, NodeId) {
    (name.clone(), *node)
}

/// Copies as much of `from` as fits. Returns the length.
pub(super) fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
    len
}
