//! The devices above verbs devices: PCI functions with their virtual ones, and devices of other buses, as directories
//! in /sys/devices with links and attributes.

use super::devices::errno;
use super::tree::{Kind, NodeId, SYS, Value};
use super::world::World;

impl World {
    /// Adds a PCI function at a path beneath `/sys/devices`, such as `pci0000:3a/0000:3a:00.0/0000:3b:00.0`, with its
    /// link `subsystem` and the attributes `vendor`, `device` and `numa_node`. A NUMA node of -1 is none.
    pub fn add_pci_function(&mut self, path: &str, (vendor, device): (u16, u16), numa_node: i32) {
        let dir = self.add_bus_device(path, "pci");
        for (name, value) in [
            ("vendor", format!("{vendor:#06x}\n")),
            ("device", format!("{device:#06x}\n")),
            ("numa_node", format!("{numa_node}\n")),
        ] {
            self.tree.add_attr(dir, name.as_bytes(), value.as_bytes());
        }
    }

    /// Makes a PCI function a physical one: `sriov_totalvfs`, `sriov_offset` and `sriov_stride`.
    pub fn make_physical(&mut self, path: &str, total: u16, offset: u16, stride: u16) {
        let dir = self.device_dir(path);
        for (name, value) in
            [("sriov_totalvfs", total), ("sriov_offset", offset), ("sriov_stride", stride)]
        {
            self.tree.add_attr(dir, name.as_bytes(), format!("{value}\n").as_bytes());
        }
    }

    /// Makes a PCI function the virtual one of a number: `physfn`, and `virtfnN` of the physical one.
    pub fn make_virtual(&mut self, path: &str, physical: &str, number: u32) {
        let [own, physical] = [path, physical].map(|path| self.device_dir(path));
        self.tree.add(own, b"physfn", Kind::LinkTo(physical));
        self.tree.add(physical, format!("virtfn{number}").as_bytes(), Kind::LinkTo(own));
    }

    /// Adds a device of the auxiliary bus, with the attribute `sfnum` if it is a sub-function.
    pub fn add_auxiliary(&mut self, path: &str, subfunction: Option<u32>) {
        let dir = self.add_bus_device(path, "auxiliary");
        if let Some(number) = subfunction {
            self.tree.add_attr(dir, b"sfnum", format!("{number}\n").as_bytes());
        }
    }

    /// Adds a device of a bus, such as `platform`: its directory and its link `subsystem`.
    pub fn add_device_of_bus(&mut self, path: &str, bus: &str) {
        self.add_bus_device(path, bus);
    }

    fn add_bus_device(&mut self, path: &str, bus: &str) -> NodeId {
        let buses = self.tree.dir(SYS, b"bus");
        let bus = self.tree.dir(buses, bus.as_bytes());
        let dir = self.device_dir(path);
        self.tree.add(dir, b"subsystem", Kind::LinkTo(bus));
        dir
    }

    /// A directory beneath `/sys/devices`, made if it is missing.
    pub(super) fn device_dir(&mut self, path: &str) -> NodeId {
        let mut at = self.tree.dir(SYS, b"devices");
        for name in path.split('/').filter(|name| !name.is_empty()) {
            at = self.tree.dir(at, name.as_bytes());
        }
        at
    }

    /// Sets an attribute of a device above, or removes it. The contents may be hostile.
    pub fn set_parent_attribute(&mut self, path: &str, name: &str, value: Option<&[u8]>) {
        let dir = self.device_dir(path);
        self.tree.unlink_child(dir, name.as_bytes());
        if let Some(value) = value {
            self.tree.add(dir, name.as_bytes(), Kind::Attr(Value::Bytes(value.into())));
        }
    }

    /// Sets the text of a link of a device above, or removes it. It may be hostile.
    pub fn set_parent_link(&mut self, path: &str, name: &str, text: Option<&[u8]>) {
        let dir = self.device_dir(path);
        self.tree.unlink_child(dir, name.as_bytes());
        if let Some(text) = text {
            self.tree.add(dir, name.as_bytes(), Kind::LinkText(text.into()));
        }
    }

    /// Removes a device above, once the verbs devices beneath it are gone (`EBUSY` before). The link `virtfnN` of its
    /// physical function goes with it.
    pub fn remove_parent(&mut self, path: &str) -> Result<(), i32> {
        let dir = self.device_dir(path);
        let ids = self.device_ids();
        if ids.into_iter().any(|id| self.tree.ancestors(self.devices[id].dir).contains(&dir)) {
            return Err(errno::BUSY);
        }
        if let Some(physfn) = self.tree.child(dir, b"physfn")
            && let Kind::LinkTo(physical) = self.tree[physfn].kind
            && let Kind::Dir(children) = &self.tree[physical].kind
        {
            let leads_here =
                |id: &&NodeId| matches!(self.tree[**id].kind, Kind::LinkTo(to) if to == dir);
            let link = children.values().find(leads_here).copied();
            link.into_iter().for_each(|link| self.tree.unlink(link));
        }
        self.tree.unlink(dir);
        Ok(())
    }
}
