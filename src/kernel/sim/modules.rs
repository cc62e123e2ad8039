//! Loading and unloading the modules of RDMA.

use super::devices::errno;
use super::tree::SYS;
use super::world::World;

impl World {
    /// Unloads ib_uverbs: all uverbs instances go, and `class/infiniband_verbs` with them. `EBUSY` while any cmd fd
    /// is open, because each holds the module.
    pub fn unload_ib_uverbs(&mut self) -> Result<(), i32> {
        if self.cmd_fds().next().is_some() {
            return Err(errno::BUSY);
        }
        for id in self.device_ids() {
            self.remove_uverbs(id);
        }
        if let Some(class) = self.infiniband_verbs.take() {
            self.tree.unlink(class);
        }
        Ok(())
    }

    /// Loads ib_uverbs: every registered device gets a uverbs instance, in the order of their indices.
    pub fn load_ib_uverbs(&mut self) {
        if self.infiniband_verbs.is_some() {
            return;
        }
        let class = self.tree.dir(SYS, b"class");
        let dir = self.tree.add_dir(class, b"infiniband_verbs");
        self.tree.add_attr(dir, b"abi_version", b"6\n");
        self.infiniband_verbs = Some(dir);
        for id in self.device_ids() {
            if self.devices[id].listed {
                self.add_uverbs(id);
            }
        }
    }

    /// Unloads and loads ib_uverbs.
    pub fn reload_ib_uverbs(&mut self) -> Result<(), i32> {
        self.unload_ib_uverbs()?;
        self.load_ib_uverbs();
        Ok(())
    }

    /// Unloads all of RDMA and loads it again, without devices. The next netlink index is 0, and the class
    /// directories are new ones. `EBUSY` while a cmd fd or an RDMA netlink socket is open, because each holds a
    /// module. [`World::force_reload_ib_core`] ignores that.
    pub fn reload_ib_core(&mut self) -> Result<(), i32> {
        if self.cmd_fds().next().is_some() || self.sockets() > 0 {
            return Err(errno::BUSY);
        }
        self.force_reload_ib_core();
        Ok(())
    }

    /// Reloads it even if descriptors are open, as after `rmmod -f`. Contexts die.
    pub fn force_reload_ib_core(&mut self) {
        for id in self.device_ids() {
            self.devices[id].spec.disassociates = true;
            self.remove(id);
        }
        if let Some(class) = self.infiniband_verbs.take() {
            self.tree.unlink(class);
        }
        let class = self.tree[self.infiniband].parent;
        self.tree.unlink(self.infiniband);
        self.infiniband = self.tree.add_dir(class, b"infiniband");
        self.next_index = 0;
        self.load_ib_uverbs();
    }
}
