//! The messages of RDMA netlink's device family (`rdma/rdma_netlink.h`).

use super::Bad;
use super::netlink::{Attrs, Message};

/// `RDMA_NLDEV_CMD_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
pub(crate) enum Command {
    Get = 1,
    PortGet = 5,
    SysGet = 6,
    ResPdGet = 14,
    GetChardev = 15,
    ResCtxGet = 22,
}

impl Command {
    /// `RDMA_NL_GET_TYPE(RDMA_NL_NLDEV, command)`.
    pub(crate) const fn message_type(self) -> u16 {
        (5 << 10) + self as u16
    }

    /// Its name in the kernel's header.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Get => "RDMA_NLDEV_CMD_GET",
            Self::PortGet => "RDMA_NLDEV_CMD_PORT_GET",
            Self::SysGet => "RDMA_NLDEV_CMD_SYS_GET",
            Self::ResPdGet => "RDMA_NLDEV_CMD_RES_PD_GET",
            Self::GetChardev => "RDMA_NLDEV_CMD_GET_CHARDEV",
            Self::ResCtxGet => "RDMA_NLDEV_CMD_RES_CTX_GET",
        }
    }
}

/// `RDMA_NLDEV_ATTR_*`.
pub(crate) mod attr {
    pub(crate) const DEV_INDEX: u16 = 1;
    pub(crate) const DEV_NAME: u16 = 2;
    pub(crate) const PORT_INDEX: u16 = 3;
    pub(crate) const FW_VERSION: u16 = 5;
    pub(crate) const NODE_GUID: u16 = 6;
    pub(crate) const SYS_IMAGE_GUID: u16 = 7;
    pub(crate) const PORT_STATE: u16 = 12;
    pub(crate) const PORT_PHYS_STATE: u16 = 13;
    pub(crate) const DEV_NODE_TYPE: u16 = 14;
    pub(crate) const RES_PID: u16 = 28;
    pub(crate) const RES_PD: u16 = 46;
    pub(crate) const RES_PD_ENTRY: u16 = 47;
    pub(crate) const NDEV_INDEX: u16 = 50;
    pub(crate) const NDEV_NAME: u16 = 51;
    pub(crate) const RES_PDN: u16 = 60;
    pub(crate) const RES_CTXN: u16 = 64;
    pub(crate) const CHARDEV_TYPE: u16 = 69;
    pub(crate) const CHARDEV_NAME: u16 = 70;
    pub(crate) const CHARDEV: u16 = 72;
    pub(crate) const UVERBS_DRIVER_ID: u16 = 73;
    pub(crate) const RES_CTX: u16 = 86;
    pub(crate) const RES_CTX_ENTRY: u16 = 87;
    pub(crate) const SYS_COPY_ON_FORK: u16 = 93;
}

/// `huge_encode_dev`: how `RDMA_NLDEV_ATTR_CHARDEV` carries a device number (`linux/kdev_t.h`).
#[cfg(any(test, feature = "sim"))]
pub(crate) fn encode_dev((major, minor): (u32, u32)) -> u64 {
    let (major, minor) = (u64::from(major), u64::from(minor));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The reverse of `huge_encode_dev`.
pub(crate) fn decode_dev(dev: u64) -> Result<(u32, u32), Bad> {
    if dev > u64::from(u32::MAX) {
        return Err(Bad("a device number of more than 32 bits"));
    }
    let dev = dev as u32;
    Ok(((dev & 0x000f_ff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0x000f_ff00)))
}

/// The part of `RDMA_NLDEV_CMD_GET`'s answer that is used, for one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceInfo {
    pub(crate) index: u32,
    pub(crate) name: Box<[u8]>,
    pub(crate) node_guid: u64,
    pub(crate) sys_image_guid: u64,
    pub(crate) node_type: u8,
    pub(crate) fw_version: Box<[u8]>,
    /// The number of its last port. Ports are counted from 1.
    pub(crate) ports: u32,
}

/// The longest name of a device (`IB_DEVICE_NAME_MAX` - 1).
pub(crate) const NAME_MAX: usize = 63;

impl DeviceInfo {
    pub(crate) fn parse(message: &Message<'_>) -> Result<Self, Bad> {
        let (mut index, mut name, mut guid) = (None, None, None);
        let (mut sys_image_guid, mut node_type, mut fw_version) = (0, 0, Box::default());
        let mut ports = 0;
        for attribute in message.attrs() {
            let attribute = attribute?;
            match attribute.kind {
                attr::DEV_INDEX => index = Some(attribute.u32()?),
                attr::DEV_NAME => name = Some(attribute.string(NAME_MAX)?.into()),
                attr::NODE_GUID => guid = Some(attribute.u64()?),
                attr::SYS_IMAGE_GUID => sys_image_guid = attribute.u64()?,
                attr::DEV_NODE_TYPE => node_type = attribute.u8()?,
                attr::PORT_INDEX => ports = attribute.u32()?,
                attr::FW_VERSION => fw_version = attribute.string(255)?.into(),
                _ => {}
            }
        }
        Ok(Self {
            index: index.ok_or(Bad("a device without an index"))?,
            name: name.ok_or(Bad("a device without a name"))?,
            node_guid: guid.ok_or(Bad("a device without a node GUID"))?,
            sys_image_guid,
            node_type,
            fw_version,
            ports,
        })
    }
}

/// The part of `RDMA_NLDEV_CMD_GET_CHARDEV`'s answer that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chardev {
    pub(crate) dev: (u32, u32),
    /// `uverbsN`; empty if the kernel reports no name.
    pub(crate) name: Box<[u8]>,
    /// Absent for drivers that the kernel does not bind by id (mthca, hns).
    pub(crate) driver_id: Option<u32>,
}

impl Chardev {
    pub(crate) fn parse(message: &Message<'_>) -> Result<Self, Bad> {
        let (mut dev, mut name, mut driver_id) = (None, Box::default(), None);
        for attribute in message.attrs() {
            let attribute = attribute?;
            match attribute.kind {
                attr::CHARDEV_NAME => name = attribute.string(NAME_MAX)?.into(),
                attr::CHARDEV => dev = Some(decode_dev(attribute.u64()?)?),
                attr::UVERBS_DRIVER_ID => driver_id = Some(attribute.u32()?),
                _ => {}
            }
        }
        Ok(Self { dev: dev.ok_or(Bad("a character device without its number"))?, name, driver_id })
    }
}

/// The part of `RDMA_NLDEV_CMD_PORT_GET`'s answer that is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PortInfo {
    /// The name of the RDMA device at that moment.
    pub(crate) device_name: Box<[u8]>,
    pub(crate) state: u8,
    pub(crate) physical_state: u8,
    /// Index and name of its network device, if it has one in the network namespace of the socket.
    pub(crate) netdev: Option<(u32, Box<[u8]>)>,
}

/// The longest name of a network device (`IFNAMSIZ` - 1).
const NETDEV_NAME_MAX: usize = 15;

impl PortInfo {
    /// The answer to a request for one port of one device.
    pub(crate) fn parse(message: &Message<'_>, device: u32, port: u32) -> Result<Self, Bad> {
        let (mut of_device, mut of_port) = (None, None);
        let (mut state, mut physical_state) = (None, None);
        let (mut device_name, mut netdev, mut name) = (None, None, None);
        for attribute in message.attrs() {
            let attribute = attribute?;
            match attribute.kind {
                attr::DEV_INDEX => of_device = Some(attribute.u32()?),
                attr::DEV_NAME => device_name = Some(attribute.string(NAME_MAX)?.into()),
                attr::PORT_INDEX => of_port = Some(attribute.u32()?),
                attr::PORT_STATE => state = Some(attribute.u8()?),
                attr::PORT_PHYS_STATE => physical_state = Some(attribute.u8()?),
                attr::NDEV_INDEX => netdev = Some(attribute.u32()?),
                attr::NDEV_NAME => name = Some(attribute.string(NETDEV_NAME_MAX)?.into()),
                _ => {}
            }
        }
        if (of_device, of_port) != (Some(device), Some(port)) {
            return Err(Bad("another port"));
        }
        let netdev = match (netdev, name) {
            (None, None) => None,
            (Some(index @ 1..), Some(name)) => Some((index, name)),
            _ => return Err(Bad("a network device without an index or a name")),
        };
        Ok(Self {
            device_name: device_name.ok_or(Bad("a port without the name of its device"))?,
            state: state.ok_or(Bad("a port without its state"))?,
            physical_state: physical_state.ok_or(Bad("a port without its physical state"))?,
            netdev,
        })
    }
}

/// `RDMA_NLDEV_CMD_SYS_GET`: whether the kernel reports that pinned pages are copied on fork.
pub(crate) fn parse_copy_on_fork(message: &Message<'_>) -> Result<bool, Bad> {
    let mut copies = false;
    for attribute in message.attrs() {
        let attribute = attribute?;
        if attribute.kind == attr::SYS_COPY_ON_FORK {
            copies = attribute.u8()? != 0;
        }
    }
    Ok(copies)
}

/// A kind of resource that the kernel tracks by device (`enum rdma_restrack_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// A user context. Listed since Linux 5.13.
    Context,
    /// A protection domain. Since Linux 5.10 it can also be requested by its number.
    Pd,
}

impl Resource {
    pub(crate) fn command(self) -> Command {
        match self {
            Self::Context => Command::ResCtxGet,
            Self::Pd => Command::ResPdGet,
        }
    }

    /// The attribute that holds the number of such a resource.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Context => attr::RES_CTXN,
            Self::Pd => attr::RES_PDN,
        }
    }

    fn table_and_entry(self) -> (u16, u16) {
        match self {
            Self::Context => (attr::RES_CTX, attr::RES_CTX_ENTRY),
            Self::Pd => (attr::RES_PD, attr::RES_PD_ENTRY),
        }
    }
}

/// One context or protection domain of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResourceEntry {
    pub(crate) number: u32,
    /// The context that it belongs to; for a context, its own number. `None` for the kernel's own resources.
    pub(crate) context: Option<u32>,
    /// The thread that allocated it; `None` once that thread has exited, or if it is outside of the reader's pid
    /// namespace.
    pub(crate) thread: Option<u32>,
}

/// Passes each entry of one message of a dump to `each`.
pub(crate) fn parse_resources(
    message: &Message<'_>,
    kind: Resource,
    index: u32,
    each: &mut dyn FnMut(ResourceEntry),
) -> Result<(), Bad> {
    let mut of_index = None;
    let (table, entry_kind) = kind.table_and_entry();
    for attribute in message.attrs() {
        let attribute = attribute?;
        if attribute.kind == attr::DEV_INDEX {
            of_index = Some(attribute.u32()?);
        } else if attribute.kind == table {
            for entry in attribute.nested() {
                let entry = entry?;
                if entry.kind == entry_kind {
                    each(parse_resource(entry.nested(), kind)?);
                }
            }
        }
    }
    require_index(of_index, index)
}

/// The only entry in the answer to a request by number.
pub(crate) fn parse_one_resource(
    message: &Message<'_>,
    kind: Resource,
    index: u32,
) -> Result<ResourceEntry, Bad> {
    let of_index = message
        .attrs()
        .find_map(|attribute| attribute.ok().filter(|found| found.kind == attr::DEV_INDEX));
    require_index(of_index.map(|found| found.u32()).transpose()?, index)?;
    parse_resource(message.attrs(), kind)
}

fn require_index(found: Option<u32>, index: u32) -> Result<(), Bad> {
    if found == Some(index) { Ok(()) } else { Err(Bad("resources of another device")) }
}

fn parse_resource(attrs: Attrs<'_>, kind: Resource) -> Result<ResourceEntry, Bad> {
    let (mut number, mut context, mut thread) = (None, None, None);
    for attribute in attrs {
        let attribute = attribute?;
        if attribute.kind == kind.number() {
            number = Some(attribute.u32()?);
        }
        match attribute.kind {
            attr::RES_CTXN => context = Some(attribute.u32()?),
            attr::RES_PID => thread = Some(attribute.u32()?),
            _ => {}
        }
    }
    Ok(ResourceEntry { number: number.ok_or(Bad("a resource without a number"))?, context, thread })
}

#[cfg(test)]
mod tests;
