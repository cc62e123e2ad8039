//! RDMA devices and their uverbs instances: registration, and removal stage by stage.

use std::collections::BTreeMap;
use std::ops::{Index, IndexMut};

use super::ports::{self, Port};
use super::resources::Pd;
use super::spec::{AddStage, DeviceId, DeviceSpec, Stage};
use super::tree::{Kind, NodeId, Value};
use super::world::{WhileListed, World};

/// `EBUSY` and the like, as the mutations of a [`World`] return them.
pub(super) mod errno {
    pub(in super::super) const NOENT: i32 = 2;
    pub(in super::super) const BUSY: i32 = 16;
    pub(in super::super) const EXIST: i32 = 17;
    pub(in super::super) const INVAL: i32 = 22;
    pub(in super::super) const NFILE: i32 = 23;
    pub(in super::super) const OPNOTSUPP: i32 = 95;
}

/// `RDMA_MAX_PORTS`: the number of uverbs numbers.
const NUMBERS: u32 = 8192;

/// One uverbs instance of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct UverbsId(pub(super) u32);

#[derive(Debug, Hash)]
pub(super) struct IbDevice {
    pub(super) spec: DeviceSpec,
    pub(super) guid: u64,
    pub(super) name: Box<[u8]>,
    pub(super) index: u32,
    pub(super) dir: NodeId,
    link: NodeId,
    /// The last stage of its registration that was done.
    pub(super) added: Option<AddStage>,
    /// Listed in dumps (`DEVICE_REGISTERED`).
    pub(super) listed: bool,
    /// In the network namespace of the caller.
    pub(super) visible: bool,
    pub(super) gone: bool,
    /// The instance, and its number and marks as netlink reports them.
    pub(super) uverbs: Option<UverbsId>,
    /// A waiting removal continues by itself as soon as it can.
    goes_on: bool,
    /// CTXN and the thread that allocated it.
    pub(super) contexts: BTreeMap<u32, Option<u32>>,
    pub(super) next_ctxn: u32,
    /// PDN and PD.
    pub(super) pds: BTreeMap<u32, Pd>,
    pub(super) next_pdn: u32,
    pub(super) driver_data: Vec<u8>,
    pub(super) ports: Vec<Port>,
}

impl IbDevice {
    /// ib_uverbs has marked it, so netlink reports its device number.
    pub(super) fn is_reported(&self) -> bool {
        self.added >= Some(AddStage::Reported)
    }
}

/// All devices that have ever existed.
#[derive(Debug, Default, Hash)]
pub(super) struct Devices(Vec<IbDevice>);

impl Index<DeviceId> for Devices {
    type Output = IbDevice;

    fn index(&self, id: DeviceId) -> &IbDevice {
        &self.0[id.0 as usize]
    }
}

impl IndexMut<DeviceId> for Devices {
    fn index_mut(&mut self, id: DeviceId) -> &mut IbDevice {
        &mut self.0[id.0 as usize]
    }
}

impl Devices {
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut IbDevice> {
        self.0.iter_mut()
    }
}

#[derive(Debug, Hash)]
pub(super) struct Uverbs {
    pub(super) device: DeviceId,
    pub(super) number: u32,
    pub(super) dir: NodeId,
    link: NodeId,
    /// The next stage of its removal.
    pub(super) next: Stage,
    /// Reachable by its device number.
    pub(super) mapped: bool,
    /// Its contexts are dead (`ib_dev` is NULL).
    pub(super) disassociated: bool,
    /// Open cmd fds.
    pub(super) open: u32,
    /// Nodes whose inode caches its cdev.
    pub(super) cached_in: Vec<NodeId>,
}

/// The device number of `uverbsN`: 32 are fixed, the others have a dynamic major number.
pub(super) fn device_number(number: u32) -> (u32, u32) {
    if number < 32 { (231, 192 + number) } else { (510, number - 32) }
}

/// The reverse of [`device_number`].
pub(super) fn number_of_device((major, minor): (u32, u32)) -> Option<u32> {
    match major {
        231 if (192..224).contains(&minor) => Some(minor - 192),
        510 => minor.checked_add(32),
        _ => None,
    }
}

pub(super) fn node_name(number: u32) -> Vec<u8> {
    format!("uverbs{number}").into_bytes()
}

impl World {
    /// Registers a device. `ENFILE` if its name is taken, also by a device that is being removed.
    pub fn add(&mut self, spec: DeviceSpec) -> Result<DeviceId, i32> {
        let id = self.begin_add(spec)?;
        while self.add_step(id).is_some() {}
        Ok(id)
    }

    /// Does the next stage of a device's registration. Returns `None` if the registration is complete.
    pub fn add_step(&mut self, id: DeviceId) -> Option<AddStage> {
        let stage = match self.devices[id].added {
            None => {
                self.add_uverbs(id);
                AddStage::Uverbs
            }
            Some(AddStage::Uverbs) => AddStage::Reported,
            Some(AddStage::Reported) => {
                self.rdma_event("add", id, None);
                AddStage::Announced
            }
            Some(AddStage::Announced) => return None,
        };
        self.devices[id].added = Some(stage);
        Some(stage)
    }

    /// Begins to register a device: it is in `class/infiniband` and in netlink dumps, and nothing else of it is
    /// there. [`World::add_step`] continues.
    pub fn begin_add(&mut self, spec: DeviceSpec) -> Result<DeviceId, i32> {
        let name = self.free_name(&spec.name)?;
        let id = DeviceId(self.devices.0.len() as u32);
        while self.indices.contains_key(&self.next_index) {
            self.next_index = self.next_index.wrapping_add(1);
        }
        let index = self.next_index;
        self.next_index = index.wrapping_add(1);
        let guid = spec.guid.unwrap_or(0x0200_5eff_fe00_0001 + u64::from(id.0));
        let glue = self.glue(&spec, b"infiniband");
        let tree = &mut self.tree;
        let dir = tree.add_dir(glue, &name);
        let g = guid.to_be_bytes();
        let words: Vec<String> =
            g.chunks(2).map(|word| format!("{:02x}{:02x}", word[0], word[1])).collect();
        tree.add_attr(dir, b"node_guid", format!("{}\n", words.join(":")).as_bytes());
        tree.add_attr(dir, b"sys_image_guid", format!("{}\n", words.join(":")).as_bytes());
        let node_type = match spec.node_type {
            1 => "CA",
            2 => "switch",
            3 => "router",
            4 => "RNIC",
            _ => "<unknown>",
        };
        let text = format!("{}: {node_type}\n", spec.node_type);
        tree.add_attr(dir, b"node_type", text.as_bytes());
        tree.add_attr(dir, b"fw_ver", format!("{}\n", spec.fw_version).as_bytes());
        if let Some(id) = &spec.board_id {
            tree.add_attr(dir, b"board_id", format!("{id}\n").as_bytes());
        }
        ports::add_directories(tree, dir, spec.ports);
        let link = tree.add(self.infiniband, &name, Kind::LinkTo(dir));
        let ports = vec![Port::default(); spec.ports as usize];
        self.devices.0.push(IbDevice {
            ports,
            spec,
            guid,
            name,
            index,
            dir,
            link,
            added: None,
            listed: true,
            visible: true,
            gone: false,
            uverbs: None,
            goes_on: false,
            contexts: BTreeMap::new(),
            next_ctxn: 0,
            pds: BTreeMap::new(),
            next_pdn: 0,
            driver_data: Vec::new(),
        });
        self.indices.insert(index, id);
        Ok(id)
    }

    fn free_name(&self, wanted: &[u8]) -> Result<Box<[u8]>, i32> {
        let wanted: Vec<u8> =
            wanted.iter().map(|&byte| if byte == b'/' { b'!' } else { byte }).collect();
        let taken = |name: &[u8]| self.indices.values().any(|id| *self.devices[*id].name == *name);
        let name = match wanted.windows(2).position(|two| two == b"%d") {
            Some(at) => (0..u32::MAX)
                .map(|n| [&wanted[..at], n.to_string().as_bytes(), &wanted[at + 2..]].concat())
                .find(|name| !taken(name))
                .ok_or(errno::NFILE)?,
            None => wanted,
        };
        check_name(&name)?;
        if taken(&name) { Err(errno::NFILE) } else { Ok(name.into()) }
    }

    /// The directory of a class under a device's parent. It exists as long as it has an entry.
    fn glue(&mut self, spec: &DeviceSpec, class: &[u8]) -> NodeId {
        let at = self.device_dir(spec.parent.as_deref().unwrap_or("virtual"));
        let tree = &mut self.tree;
        if let Some(modalias) = &spec.modalias
            && tree.child(at, b"modalias").is_none()
        {
            tree.add_attr(at, b"modalias", format!("{modalias}\n").as_bytes());
        }
        tree.dir(at, class)
    }

    /// Gives a device its uverbs instance, if ib_uverbs is loaded.
    pub(super) fn add_uverbs(&mut self, id: DeviceId) {
        let Some(class) = self.infiniband_verbs else { return };
        // A device beyond the last number gets none, as in the kernel.
        let Some(number) = (0..NUMBERS).find(|n| !self.numbers.contains_key(n)) else { return };
        let uverbs = UverbsId(self.uverbs.len() as u32);
        let spec = self.devices[id].spec.clone();
        let glue = self.glue(&spec, b"infiniband_verbs");
        let (major, minor) = device_number(number);
        let name = node_name(number);
        let tree = &mut self.tree;
        let dir = tree.add_dir(glue, &name);
        let link = tree.add(class, &name, Kind::LinkTo(dir));
        tree.add(dir, b"subsystem", Kind::LinkTo(class));
        if spec.parent.is_some() {
            let parent = tree[glue].parent;
            tree.add(dir, b"device", Kind::LinkTo(parent));
        }
        tree.add(dir, b"ibdev", Kind::Attr(Value::NameOf(id)));
        tree.add_attr(dir, b"abi_version", format!("{}\n", spec.abi_version).as_bytes());
        tree.add_attr(dir, b"dev", format!("{major}:{minor}\n").as_bytes());
        tree.add_attr(dir, b"uevent", format!("MAJOR={major}\nMINOR={minor}\n").as_bytes());
        tree.add_dir(dir, b"power");
        self.uverbs.push(Uverbs {
            device: id,
            number,
            dir,
            link,
            next: Stage::NodeGone,
            mapped: true,
            disassociated: false,
            open: 0,
            cached_in: Vec::new(),
        });
        self.numbers.insert(number, uverbs);
        self.make_kernel_node(number);
        self.devices[id].uverbs = Some(uverbs);
        self.verbs_event("add", dir, number);
    }

    /// Removes a device. If its driver does not disassociate and descriptors are open, all stages up to
    /// [`Stage::NumberFreed`] are done now, and the rest when the last descriptor is closed. Until then its name
    /// and netlink index stay taken.
    pub fn remove(&mut self, id: DeviceId) {
        while self.remove_step(id).is_some() {}
        self.devices[id].goes_on = true;
    }

    /// Does the next stage of a device's removal. Returns `None` if the removal is over, or has to wait until
    /// descriptors are closed.
    pub fn remove_step(&mut self, id: DeviceId) -> Option<Stage> {
        let device = &mut self.devices[id];
        if device.gone {
            return None;
        }
        // A removal waits until the registration is complete.
        while self.add_step(id).is_some() {}
        let device = &mut self.devices[id];
        if device.listed {
            device.listed = false;
            return Some(Stage::Unlisted);
        }
        if let Some(uverbs) = device.uverbs {
            return self.remove_uverbs_step(uverbs);
        }
        device.gone = true;
        let (index, dir, link) = (device.index, device.dir, device.link);
        self.rdma_event("remove", id, None);
        self.indices.remove(&index);
        self.tree.unlink(link);
        self.unlink_device_dir(dir);
        Some(Stage::Unregistered)
    }

    /// The links to a device in its classes.
    pub(super) fn links_of(&self, id: DeviceId) -> Vec<NodeId> {
        let uverbs = self.devices[id].uverbs.map(|uverbs| self.uverbs[uverbs.0 as usize].link);
        uverbs.into_iter().chain([self.devices[id].link]).collect()
    }

    fn unlink_device_dir(&mut self, dir: NodeId) {
        let glue = self.tree[dir].parent;
        self.tree.unlink(dir);
        self.tree.unlink_if_empty(glue);
    }

    /// One stage of the removal of a uverbs instance.
    fn remove_uverbs_step(&mut self, id: UverbsId) -> Option<Stage> {
        let uverbs = &mut self.uverbs[id.0 as usize];
        let (device, number, dir, link) = (uverbs.device, uverbs.number, uverbs.dir, uverbs.link);
        let stage = uverbs.next;
        uverbs.next = match stage {
            Stage::NodeGone => Stage::DevGone,
            Stage::DevGone => Stage::LinkGone,
            Stage::LinkGone => Stage::AttributesGone,
            Stage::AttributesGone => Stage::DirectoryGone,
            Stage::DirectoryGone => Stage::Unmapped,
            Stage::Unmapped => Stage::NumberFreed,
            Stage::NumberFreed => Stage::Disassociated,
            stage => stage,
        };
        match stage {
            Stage::NodeGone => {
                self.tree.unlink_child(dir, b"power");
                self.remove_kernel_node(number);
            }
            Stage::DevGone => self.tree.unlink_child(dir, b"dev"),
            Stage::LinkGone => {
                self.tree.unlink(link);
                self.tree.unlink_child(dir, b"subsystem");
                self.tree.unlink_child(dir, b"device");
            }
            Stage::AttributesGone => {
                self.tree.unlink_child(dir, b"uevent");
                self.tree.unlink_child(dir, b"ibdev");
                self.tree.unlink_child(dir, b"abi_version");
                self.verbs_event("remove", dir, number);
            }
            Stage::DirectoryGone => self.unlink_device_dir(dir),
            Stage::Unmapped => uverbs.mapped = false,
            Stage::NumberFreed => {
                self.numbers.remove(&number);
            }
            _ => {
                if self.devices[device].spec.disassociates {
                    // IB_EVENT_DEVICE_FATAL
                    self.deliver_event(id, (0, 8));
                    self.uverbs[id.0 as usize].disassociated = true;
                    self.release_all(device);
                } else if uverbs_open(self, id) {
                    return None;
                }
                self.uverbs[id.0 as usize].next = Stage::Unregistered;
                self.forget_cdev(id);
                self.devices[device].uverbs = None;
            }
        }
        Some(stage)
    }

    /// After one of its descriptors was closed, continues what waits for the last one.
    pub(super) fn uverbs_closed(&mut self, id: UverbsId) {
        let uverbs = &mut self.uverbs[id.0 as usize];
        uverbs.open -= 1;
        let device = uverbs.device;
        self.forget_cdev(id);
        if self.devices[device].goes_on && self.devices[device].uverbs == Some(id) {
            self.remove(device);
        }
    }

    /// Inodes cache a cdev until its last reference goes: the device's, and that of every cmd fd.
    fn forget_cdev(&mut self, id: UverbsId) {
        let uverbs = &mut self.uverbs[id.0 as usize];
        if uverbs.open > 0 || uverbs.next != Stage::Unregistered {
            return;
        }
        for node in std::mem::take(&mut uverbs.cached_in) {
            if let Kind::Device { cdev, .. } = &mut self.tree[node].kind {
                *cdev = cdev.filter(|cached| *cached != id);
            }
        }
    }

    /// Removes only a device's uverbs instance. Its descriptors must be closed, or its driver must disassociate.
    pub(super) fn remove_uverbs(&mut self, id: DeviceId) {
        while let Some(uverbs) = self.devices[id].uverbs
            && self.remove_uverbs_step(uverbs).is_some()
        {}
    }

    /// Removes a device's uverbs instance and makes another, as a move to another network namespace and back does.
    /// The RDMA device stays. `EOPNOTSUPP` for a driver that does not disassociate.
    pub fn recreate_uverbs(&mut self, id: DeviceId) -> Result<(), i32> {
        if self.devices[id].gone || !self.devices[id].listed {
            return Err(errno::NOENT);
        }
        if !self.devices[id].spec.disassociates {
            return Err(errno::OPNOTSUPP);
        }
        self.remove_uverbs(id);
        self.add_uverbs(id);
        Ok(())
    }

    /// Moves a device to another network namespace, or back to the caller's (`rdma_dev_change_netns`): the uverbs
    /// instance is another one afterwards. `EOPNOTSUPP` for a driver that does not disassociate.
    pub fn move_netns(&mut self, id: DeviceId, visible: bool) -> Result<(), i32> {
        if self.devices[id].gone || !self.devices[id].listed {
            return Err(errno::NOENT);
        }
        if !self.devices[id].spec.disassociates {
            return Err(errno::OPNOTSUPP);
        }
        while self.add_step(id).is_some() {}
        self.rdma_event("remove", id, None);
        self.remove_uverbs(id);
        self.set_netns_visible(id, visible);
        // The kernel renames it to its own name (`device_rename`), in the namespace that it comes to.
        let path = self.rdma_devpath(id);
        self.rdma_event("move", id, Some(&path));
        self.devices[id].added = None;
        while self.add_step(id).is_some() {}
        Ok(())
    }

    /// Renames a device. The name may be hostile. `EEXIST` if it is taken, `EINVAL` if it is empty, longer than 63
    /// bytes or contains a NUL.
    pub fn rename(&mut self, id: DeviceId, name: &[u8]) -> Result<(), i32> {
        check_name(name)?;
        if self.devices[id].gone {
            return Err(errno::NOENT);
        }
        if self.indices.values().any(|other| *other != id && *self.devices[*other].name == *name) {
            return Err(errno::EXIST);
        }
        let from = self.rdma_devpath(id);
        self.devices[id].name = name.into();
        let (dir, link) = (self.devices[id].dir, self.devices[id].link);
        self.tree.rename(dir, name);
        self.tree.rename(link, name);
        self.rdma_event("move", id, Some(&from));
        Ok(())
    }

    /// Gives a device another node GUID, as some drivers allow.
    pub fn set_guid(&mut self, id: DeviceId, guid: u64) {
        self.devices[id].guid = guid;
    }

    /// Exchanges the names of two devices.
    pub fn swap_names(&mut self, a: DeviceId, b: DeviceId) -> Result<(), i32> {
        let (name_a, name_b) = (self.devices[a].name.clone(), self.devices[b].name.clone());
        self.rename(a, b"swapping names")?;
        self.rename(b, &name_a)?;
        self.rename(a, &name_b)
    }

    /// Does what is set to happen once the link `node` was shown. Returns whether that moved or removed the link.
    pub(super) fn happens_while_listed(&mut self, node: NodeId) -> bool {
        let Some(happens) = &self.settings.while_listed else { return false };
        let (WhileListed::Remove(id) | WhileListed::Rename(id, _)) = *happens;
        if !self.links_of(id).contains(&node) {
            return false;
        }
        let name = self.tree[node].name.clone();
        match self.settings.while_listed.take() {
            // If the new name is taken, the link stays where it is.
            Some(WhileListed::Rename(_, name)) => drop(self.rename(id, &name)),
            _ => self.remove(id),
        }
        !self.tree[node].linked || self.tree[node].name != name
    }

    /// Sets whether the device belongs to the caller's network namespace, in exclusive mode. If not, netlink and
    /// `class/infiniband` do not show it, and opening it fails with `EPERM`.
    pub fn set_netns_visible(&mut self, id: DeviceId, visible: bool) {
        self.devices[id].visible = visible;
        let (dir, link) = (self.devices[id].dir, self.devices[id].link);
        self.tree[dir].hidden = !visible;
        self.tree[link].hidden = !visible;
    }

    /// Sets the content of an attribute in the device's uverbs directory, or in its RDMA directory.
    pub fn set_attribute(&mut self, id: DeviceId, name: &str, value: &[u8]) -> Result<(), i32> {
        let uverbs = self.devices[id].uverbs.map(|uverbs| self.uverbs[uverbs.0 as usize].dir);
        let node = [uverbs, Some(self.devices[id].dir)]
            .into_iter()
            .flatten()
            .find_map(|dir| self.tree.child(dir, name.as_bytes()))
            .ok_or(errno::NOENT)?;
        if let Kind::Attr(attr) = &mut self.tree[node].kind {
            *attr = Value::Bytes(value.into());
        }
        Ok(())
    }
}

fn uverbs_open(world: &World, id: UverbsId) -> bool {
    world.uverbs[id.0 as usize].open > 0
}

fn check_name(name: &[u8]) -> Result<(), i32> {
    let good = !name.is_empty() && name.len() <= 63 && !name.contains(&0);
    if good { Ok(()) } else { Err(errno::INVAL) }
}
