//! The contents of /dev/infiniband, and what opening them does.

use super::super::{Errno, Sys};
use super::devices::{UverbsId, device_number, node_name, number_of_device};
use super::spec::DeviceId;
use super::tree::{DEV, Kind, NodeId};
use super::world::World;

/// The kind of node that [`World::set_node`] puts at `/dev/infiniband/uverbsN`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeKind {
    /// The node that the kernel makes for the device that has the number, if there is one.
    Kernel,
    /// A hand-made node with the right device number, as in containers. It stays when the device is removed, and
    /// its inode remembers the device that was last opened through it, as long as anybody has that device open.
    Static,
    /// A hand-made node with another device number.
    Device(u32, u32),
    /// A symbolic link.
    Symlink(String),
    /// A named pipe.
    Fifo,
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// The node that is there already, but without the permission to open it.
    Forbidden,
    /// No node.
    Missing,
}

/// What an open in /dev reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeOpened {
    /// A cmd fd on this device.
    Verbs(DeviceId),
    /// A uverbs device number whose open failed.
    Refused(u32, u32),
    /// A character device of another kind.
    Device(u32, u32),
    /// A named pipe.
    Fifo,
    /// A regular file.
    Regular,
}

/// The name of a node that was set aside.
const ASIDE: &[u8] = b"aside";

impl World {
    /// Puts a node at `/dev/infiniband/uverbsN`, in place of the one that is there.
    pub fn set_node(&mut self, number: u32, kind: NodeKind) {
        let name = node_name(number);
        let dir = match self.tree.child(DEV, b"infiniband") {
            Some(dir) => dir,
            None if kind == NodeKind::Missing => return,
            None => self.tree.add_dir(DEV, b"infiniband"),
        };
        if kind == NodeKind::Forbidden
            && let Some(node) = self.tree.child(dir, &name)
        {
            self.tree[node].denied = true;
            return;
        }
        self.tree.unlink_child(dir, &name);
        let device = |rdev| Kind::Device { rdev, cdev: None };
        let kind = match kind {
            NodeKind::Kernel => {
                if self.numbers.contains_key(&number) {
                    self.make_node(number);
                }
                return;
            }
            // The directory stays: only devtmpfs removes an empty one.
            NodeKind::Missing => return,
            NodeKind::Directory => {
                self.tree.add_dir(dir, &name);
                return;
            }
            NodeKind::Forbidden => {
                let node = self.tree.add(dir, &name, device(device_number(number)));
                self.tree[node].denied = true;
                return;
            }
            NodeKind::Static => device(device_number(number)),
            NodeKind::Device(major, minor) => device((major, minor)),
            NodeKind::Symlink(text) => Kind::LinkText(text.into_bytes().into()),
            NodeKind::Fifo => Kind::Fifo,
            NodeKind::Regular => Kind::Regular,
        };
        self.tree.add(dir, &name, kind);
    }

    /// Renames the node of that number. It then survives its device, with the device that its inode remembers.
    pub fn set_node_aside(&mut self, number: u32) {
        self.rename_node(&node_name(number), ASIDE);
    }

    /// Renames the node that was set aside, over the node that is there.
    pub fn put_node_back(&mut self, number: u32) {
        self.rename_node(ASIDE, &node_name(number));
    }

    fn rename_node(&mut self, from: &[u8], to: &[u8]) {
        let dir = self.tree.child(DEV, b"infiniband");
        if let Some(dir) = dir
            && let Some(node) = self.tree.child(dir, from)
        {
            self.tree.unlink_child(dir, to);
            self.tree.rename(node, to);
        }
    }

    /// devtmpfs makes the node of a new device, unless something has its name already.
    pub(super) fn make_kernel_node(&mut self, number: u32) {
        if self.settings.devtmpfs {
            self.make_node(number);
        }
    }

    fn make_node(&mut self, number: u32) {
        let dir = self.tree.child(DEV, b"infiniband").unwrap_or_else(|| {
            let dir = self.tree.add_dir(DEV, b"infiniband");
            self.tree[dir].by_kernel = true;
            dir
        });
        let name = node_name(number);
        if self.tree.child(dir, &name).is_none() {
            let kind = Kind::Device { rdev: device_number(number), cdev: None };
            let node = self.tree.add(dir, &name, kind);
            self.tree[node].by_kernel = true;
        }
    }

    /// devtmpfs removes the node of a device if devtmpfs made it.
    pub(super) fn remove_kernel_node(&mut self, number: u32) {
        let Some(dir) = self.tree.child(DEV, b"infiniband") else { return };
        if let Some(node) = self.tree.child(dir, &node_name(number))
            && self.tree[node].by_kernel
        {
            self.tree.unlink(node);
            // A hand-made node stays.
            if self.tree[dir].by_kernel {
                self.tree.unlink_if_empty(dir);
            }
        }
    }

    /// Opens a character device. Returns the uverbs instance that it leads to, or `None` if it is of another kind.
    pub(super) fn open_device(
        &mut self,
        node: NodeId,
        rdev: (u32, u32),
        cached: Option<UverbsId>,
    ) -> Sys<Option<UverbsId>> {
        let Some(number) = number_of_device(rdev) else {
            self.opened.push(NodeOpened::Device(rdev.0, rdev.1));
            return Ok(None);
        };
        let result = self.open_uverbs(node, number, cached);
        self.opened.push(match result {
            Ok(id) => NodeOpened::Verbs(self.uverbs[id.0 as usize].device),
            Err(_) => NodeOpened::Refused(rdev.0, rdev.1),
        });
        result.map(Some)
    }

    fn open_uverbs(
        &mut self,
        node: NodeId,
        number: u32,
        cached: Option<UverbsId>,
    ) -> Sys<UverbsId> {
        let id = match cached {
            Some(id) => id,
            None => {
                let mapped = |id: &UverbsId| self.uverbs[id.0 as usize].mapped;
                let id = self.numbers.get(&number).copied().filter(mapped).ok_or(Errno::NXIO)?;
                self.cache_in(node, id);
                id
            }
        };
        let uverbs = &self.uverbs[id.0 as usize];
        if uverbs.disassociated {
            return Err(Errno::IO);
        }
        if self.devices[uverbs.device].visible { Ok(id) } else { Err(Errno::PERM) }
    }

    fn cache_in(&mut self, node: NodeId, id: UverbsId) {
        if let Kind::Device { cdev, .. } = &mut self.tree[node].kind {
            *cdev = Some(id);
            self.uverbs[id.0 as usize].cached_in.push(node);
        }
    }

    /// Makes the inode of the node in /dev remember the cdev, if the node fits and remembers none.
    pub(super) fn cache_cdev(&mut self, id: UverbsId) {
        let number = self.uverbs[id.0 as usize].number;
        let dir = self.tree.child(DEV, b"infiniband");
        let node = dir.and_then(|dir| self.tree.child(dir, &node_name(number)));
        if let Some(node) = node
            && let Kind::Device { rdev, cdev: None } = self.tree[node].kind
            && rdev == device_number(number)
        {
            self.cache_in(node, id);
        }
    }
}
