//! What a device is like, and how far its removal has gone.

/// One device as it was registered, until it is removed. Never reused; it means nothing to another
/// machine than the one that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub(super) u32);

/// What a device to be registered is like. [`DeviceSpec::default`] is one whose driver lets go of
/// its contexts when it is removed.
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
            driver_data_in: 0,
            driver_data_out: 0,
            response: Vec::new(),
        }
    }
}

impl DeviceSpec {
    /// A device of this name. `%d` in it stands for the lowest free number; `/` becomes `!`, as
    /// the kernel does it.
    pub fn new(name: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// The node GUID, in place of one that no other device has.
    pub fn guid(mut self, guid: u64) -> Self {
        self.guid = Some(guid);
        self
    }

    /// The driver's id (`enum rdma_driver_id`) and the version of its ABI, in place of rxe's.
    pub fn driver(mut self, id: u32, abi_version: u32) -> Self {
        self.driver_id = id;
        self.abi_version = abi_version;
        self
    }

    /// Whether the driver lets go of contexts when the device is removed. If it does not, the
    /// removal waits until all descriptors are closed.
    pub fn disassociates(mut self, disassociates: bool) -> Self {
        self.disassociates = disassociates;
        self
    }

    /// The parent's path beneath `/sys/devices` and its modalias, as a PCI device has them.
    pub fn parent(mut self, path: impl Into<String>, modalias: impl Into<String>) -> Self {
        self.parent = Some(path.into());
        self.modalias = Some(modalias.into());
        self
    }

    /// The firmware version; may be empty.
    pub fn fw_version(mut self, version: impl Into<String>) -> Self {
        self.fw_version = version.into();
        self
    }

    /// The contents of the attribute `board_id`, which is missing otherwise.
    pub fn board_id(mut self, id: impl Into<String>) -> Self {
        self.board_id = Some(id.into());
        self
    }

    /// The node type (`enum rdma_node_type`), in place of 1, a channel adapter.
    pub fn node_type(mut self, node_type: u8) -> Self {
        self.node_type = node_type;
        self
    }

    /// How many bytes of driver data GET_CONTEXT asks for at least, in and out; with fewer it
    /// fails with `EINVAL`.
    pub fn driver_data(mut self, input: usize, output: usize) -> Self {
        self.driver_data_in = input;
        self.driver_data_out = output;
        self
    }

    /// What the driver writes to the output of GET_CONTEXT: all of it, however short the output
    /// says it is, as drivers up to Linux 7.0 do ([`World::overruns`](super::World::overruns)).
    pub fn response(mut self, response: impl Into<Vec<u8>>) -> Self {
        self.response = response.into();
        self
    }
}

/// What [`World::remove_step`](super::World::remove_step) has just done. In this order a removal goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// No longer in netlink dumps, and its character device no longer told.
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
    /// Opening the device number no longer leads here.
    Unmapped,
    /// The uverbs number may be given to another device.
    NumberFreed,
    /// Contexts are dead; of a driver that does not disassociate: all descriptors are closed.
    Disassociated,
    /// The RDMA device itself is gone: name and netlink index are free.
    Unregistered,
}
