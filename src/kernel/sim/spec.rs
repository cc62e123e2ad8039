//! The description of a device, and the stages of its removal.

/// One registered device, until it is removed. Ids are never reused, and are valid only on the machine that
/// returned them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub(super) u32);

/// The properties of a device to be registered. The driver of [`DeviceSpec::default`] disassociates when the device
/// is removed.
#[derive(Debug, Clone, Hash)]
#[non_exhaustive]
pub struct DeviceSpec {
    pub(super) name: Vec<u8>,
    pub(super) guid: Option<u64>,
    pub(super) driver_id: u32,
    pub(super) abi_version: u32,
    pub(super) disassociates: bool,
    pub(super) parent: Option<String>,
    pub(super) modalias: Option<String>,
    pub(super) fw_version: String,
    pub(super) board_id: Option<String>,
    pub(super) node_type: u8,
    pub(super) ports: u32,
    pub(super) driver_data_in: usize,
    pub(super) driver_data_out: usize,
    pub(super) response: Vec<u8>,
}

impl Default for DeviceSpec {
    fn default() -> Self {
        Self {
            name: b"sim%d".to_vec(),
            guid: None,
            driver_id: 14,
            abi_version: 1,
            disassociates: true,
            parent: None,
            modalias: None,
            fw_version: "1.2.3".into(),
            board_id: None,
            node_type: 1,
            ports: 1,
            driver_data_in: 0,
            driver_data_out: 0,
            response: Vec::new(),
        }
    }
}

impl DeviceSpec {
    /// A device with this name. `%d` in it stands for the lowest free number. `/` becomes `!`, as in the kernel.
    pub fn new(name: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Sets the node GUID. The default is unique.
    pub fn guid(mut self, guid: u64) -> Self {
        self.guid = Some(guid);
        self
    }

    /// Sets the driver's id (`enum rdma_driver_id`) and the version of its ABI. The default is rxe's.
    pub fn driver(mut self, id: u32, abi_version: u32) -> Self {
        self.driver_id = id;
        self.abi_version = abi_version;
        self
    }

    /// Sets whether the driver disassociates when the device is removed. If it does not, the removal waits until
    /// all descriptors are closed.
    pub fn disassociates(mut self, disassociates: bool) -> Self {
        self.disassociates = disassociates;
        self
    }

    /// Sets the parent's path beneath `/sys/devices` and its modalias, as PCI devices have them.
    pub fn parent(mut self, path: impl Into<String>, modalias: impl Into<String>) -> Self {
        self.parent = Some(path.into());
        self.modalias = Some(modalias.into());
        self
    }

    /// Sets the parent's path beneath `/sys/devices`. What is there is up to
    /// [`World::add_pci_function`](super::World::add_pci_function) and its like.
    pub fn beneath(mut self, path: impl Into<String>) -> Self {
        self.parent = Some(path.into());
        self
    }

    /// Sets the firmware version, which may be empty.
    pub fn fw_version(mut self, version: impl Into<String>) -> Self {
        self.fw_version = version.into();
        self
    }

    /// Sets the contents of the attribute `board_id`. By default there is no such attribute.
    pub fn board_id(mut self, id: impl Into<String>) -> Self {
        self.board_id = Some(id.into());
        self
    }

    /// Sets the node type (`enum rdma_node_type`). The default is 1, a channel adapter.
    pub fn node_type(mut self, node_type: u8) -> Self {
        self.node_type = node_type;
        self
    }

    /// Sets the number of ports. The default is 1.
    pub fn ports(mut self, count: u32) -> Self {
        self.ports = count;
        self
    }

    /// Sets the least number of bytes of driver data that GET_CONTEXT requires, in and out. With fewer it fails
    /// with `EINVAL`.
    pub fn driver_data(mut self, input: usize, output: usize) -> Self {
        self.driver_data_in = input;
        self.driver_data_out = output;
        self
    }

    /// Sets what the driver writes to the output of GET_CONTEXT. It writes all of it, however short the output is,
    /// as drivers up to Linux 7.0 do ([`World::overruns`](super::World::overruns)).
    pub fn response(mut self, response: impl Into<Vec<u8>>) -> Self {
        self.response = response.into();
        self
    }
}

/// The stage that [`World::add_step`](super::World::add_step) has just done. A registration has them in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AddStage {
    /// The uverbs instance and its node are there, and their event was sent.
    Uverbs,
    /// Netlink reports the device number.
    Reported,
    /// The event of the RDMA device was sent. The registration is complete.
    Announced,
}

/// The stage that [`World::remove_step`](super::World::remove_step) has just done. A removal has them in this
/// order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// The device is no longer in netlink dumps, and netlink no longer reports its character device.
    Unlisted,
    /// The node that devtmpfs made is gone.
    NodeGone,
    /// The attribute `dev` is gone.
    DevGone,
    /// The link in `class/infiniband_verbs` is gone.
    LinkGone,
    /// `ibdev` and the other attributes are gone.
    AttributesGone,
    /// The uverbs directory is gone.
    DirectoryGone,
    /// Opening the device number no longer reaches the device.
    Unmapped,
    /// The uverbs number is free for another device.
    NumberFreed,
    /// Contexts are dead. For a driver that does not disassociate: all descriptors are closed.
    Disassociated,
    /// The RDMA device itself is gone: its name and netlink index are free.
    Unregistered,
}
