//! A port and its GIDs, as the kernel reports them through a context.

use std::fmt;
use std::net::Ipv6Addr;

use super::Body;
use super::rate::{LinkSpeed, LinkWidth, PortRate};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::numbered;
use crate::kernel::{Attr, AttrData};
use crate::verbs::{QUERY_PORT_LEN, object};

numbered! {
    /// The logical state of a port (`enum ib_port_state`); it prints as sysfs does.
    ///
    /// ```
    /// use uverbs::PortState;
    ///
    /// assert_eq!(PortState::from_raw(4), PortState::ACTIVE);
    /// assert!(PortState::DOWN < PortState::ACTIVE);
    /// assert_eq!(PortState::from_raw(9).to_string(), "unknown(9)");
    /// ```
    #[doc(alias = "ibv_port_state")]
    #[doc(alias = "ibv_port_state_str")]
    PortState(u8):
    NOP = 0 "NOP" "IBV_PORT_NOP",
    DOWN = 1 "DOWN" "IBV_PORT_DOWN",
    INIT = 2 "INIT" "IBV_PORT_INIT",
    ARMED = 3 "ARMED" "IBV_PORT_ARMED",
    ACTIVE = 4 "ACTIVE" "IBV_PORT_ACTIVE",
    ACTIVE_DEFER = 5 "ACTIVE_DEFER" "IBV_PORT_ACTIVE_DEFER",
}

numbered! {
    /// The physical state of a port (`enum ib_port_phys_state`); it prints as sysfs does.
    #[doc(alias = "phys_state")]
    PhysicalState(u8):
    SLEEP = 1 "Sleep" "IB_PORT_PHYS_STATE_SLEEP",
    POLLING = 2 "Polling" "IB_PORT_PHYS_STATE_POLLING",
    DISABLED = 3 "Disabled" "IB_PORT_PHYS_STATE_DISABLED",
    PORT_CONFIGURATION_TRAINING = 4 "PortConfigurationTraining" "IB_PORT_PHYS_STATE_PORT_CONFIGURATION_TRAINING",
    LINK_UP = 5 "LinkUp" "IB_PORT_PHYS_STATE_LINK_UP",
    LINK_ERROR_RECOVERY = 6 "LinkErrorRecovery" "IB_PORT_PHYS_STATE_LINK_ERROR_RECOVERY",
    PHY_TEST = 7 "Phy Test" "IB_PORT_PHYS_STATE_PHY_TEST",
}

numbered! {
    /// The link layer of a port (`enum rdma_link_layer`, `IBV_LINK_LAYER_*`); it prints as sysfs does.
    #[doc(alias = "link_layer")]
    LinkLayer(u8):
    UNSPECIFIED = 0 "Unspecified" "IBV_LINK_LAYER_UNSPECIFIED",
    INFINIBAND = 1 "InfiniBand" "IBV_LINK_LAYER_INFINIBAND",
    ETHERNET = 2 "Ethernet" "IBV_LINK_LAYER_ETHERNET",
}

numbered! {
    /// The largest payload of a packet (`enum ib_mtu`); it prints in bytes.
    #[doc(alias = "ibv_mtu")]
    Mtu(u8):
    BYTES_256 = 1 "256" "IBV_MTU_256",
    BYTES_512 = 2 "512" "IBV_MTU_512",
    BYTES_1024 = 3 "1024" "IBV_MTU_1024",
    BYTES_2048 = 4 "2048" "IBV_MTU_2048",
    BYTES_4096 = 5 "4096" "IBV_MTU_4096",
}

numbered! {
    /// The protocol that a GID is for (`enum ib_uverbs_gid_type`); it prints as sysfs does.
    #[doc(alias = "ibv_gid_type")]
    GidType(u32):
    INFINIBAND = 0 "IB" "IBV_GID_TYPE_IB",
    ROCE_V1 = 1 "RoCE v1" "IBV_GID_TYPE_ROCE_V1",
    ROCE_V2 = 2 "RoCE v2" "IBV_GID_TYPE_ROCE_V2",
}

impl Mtu {
    /// The payload in bytes; `None` for a number without a name.
    pub const fn bytes(self) -> Option<u32> {
        match self.name() {
            Some(_) => Some(128 << self.to_raw()),
            None => None,
        }
    }
}

/// The attributes that QUERY_PORT returns (`ibv_query_port(3)`, `struct ib_uverbs_query_port_resp_ex`).
///
/// ```no_run
/// use uverbs::PortState;
///
/// # fn main() -> uverbs::Result<()> {
/// # let context: uverbs::Context = unimplemented!();
/// let port = context.query_port(1)?;
/// if port.state == PortState::ACTIVE {
///     let rate = port.rate().map_or("an unknown rate".to_owned(), |rate| rate.to_string());
///     println!("{} at {rate}", port.link_layer);
/// }
/// # Ok(())
/// # }
/// ```
#[doc(alias = "ibv_port_attr")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PortAttributes {
    /// Logical state.
    pub state: PortState,
    /// Physical state.
    pub physical_state: PhysicalState,
    /// Link layer.
    pub link_layer: LinkLayer,
    /// Largest payload that the port can carry.
    pub max_mtu: Mtu,
    /// Largest payload that is in use.
    pub active_mtu: Mtu,
    /// Number of lanes in use.
    pub active_width: LinkWidth,
    /// Speed of one lane. Linux before 6.7 reports NDR for faster links, too.
    pub active_speed: LinkSpeed,
    /// Length of the GID table, in entries.
    #[doc(alias = "gid_tbl_len")]
    pub gid_table_len: u32,
    /// Length of the partition key table, in entries.
    #[doc(alias = "pkey_tbl_len")]
    pub pkey_table_len: u16,
    /// Capabilities (`enum ib_uverbs_query_port_cap_flags`).
    #[doc(alias = "port_cap_flags")]
    pub capabilities: u32,
    /// More capabilities (`port_cap_flags2`).
    pub more_capabilities: u16,
    /// Flags of the port (`enum ib_uverbs_query_port_flags`).
    pub flags: u8,
    /// Largest message, in bytes.
    #[doc(alias = "max_msg_sz")]
    pub max_message_size: u32,
    /// Number of packets with a wrong partition key.
    pub bad_pkey_count: u32,
    /// Number of packets with a wrong queue key.
    pub qkey_violation_count: u32,
    /// Local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Number of low bits of the LID that are free (`lmc`).
    #[doc(alias = "lmc")]
    pub lid_mask_count: u8,
    /// Local identifier of the subnet manager.
    pub sm_lid: u16,
    /// Service level of the subnet manager.
    pub sm_service_level: u8,
    /// Number of virtual lanes, as encoded in PortInfo.
    pub max_vl_count: u8,
    /// The subnet's maximum timeout: 4.096 us times two to the power of this.
    pub subnet_timeout: u8,
    /// The subnet manager's reply to the requested type of initialisation (`InitTypeReply` of PortInfo).
    pub init_type_reply: u8,
}

impl PortAttributes {
    /// The rate of the link: the speed of one lane times the number of lanes. `None` if this version has no name
    /// for the width or the speed.
    pub const fn rate(&self) -> Option<PortRate> {
        PortRate::new(self.active_width, self.active_speed)
    }

    pub(super) fn parse(bytes: &[u8; QUERY_PORT_LEN]) -> Self {
        let int = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            capabilities: int(0),
            max_message_size: int(4),
            bad_pkey_count: int(8),
            qkey_violation_count: int(12),
            gid_table_len: int(16),
            pkey_table_len: short(20),
            lid: short(22),
            sm_lid: short(24),
            state: PortState::from_raw(bytes[26]),
            max_mtu: Mtu::from_raw(bytes[27]),
            active_mtu: Mtu::from_raw(bytes[28]),
            lid_mask_count: bytes[29],
            max_vl_count: bytes[30],
            sm_service_level: bytes[31],
            subnet_timeout: bytes[32],
            init_type_reply: bytes[33],
            active_width: LinkWidth::from_raw(bytes[34]),
            // `active_speed_ex`, if the kernel fills it. The byte cannot express more than NDR.
            active_speed: LinkSpeed::from_raw(match int(44) {
                0 => bytes[35].into(),
                speed => speed,
            }),
            physical_state: PhysicalState::from_raw(bytes[36]),
            link_layer: LinkLayer::from_raw(bytes[37]),
            flags: bytes[38],
            more_capabilities: short(40),
        }
    }
}

/// A global identifier of a port, in the form of an IPv6 address.
///
/// ```
/// let gid = uverbs::Gid([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0xc9, 3, 0, 5, 0x12, 0x34]);
/// assert_eq!(gid.to_string(), "fe80:0000:0000:0000:0002:c903:0005:1234");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[doc(alias = "ibv_gid")]
#[allow(clippy::exhaustive_structs)] // a GID has exactly these 16 bytes
pub struct Gid(pub [u8; 16]);

impl fmt::Display for Gid {
    /// As sysfs prints it, in full: `fe80:0000:0000:0000:0002:c903:0005:1234`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = Ipv6Addr::from(self.0).segments().map(|word| format!("{word:04x}"));
        f.pad(&words.join(":"))
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gid({self})")
    }
}

/// An entry of the GID table that is in use (`ibv_query_gid_table(3)`, `struct ib_uverbs_gid_entry`).
///
/// ```no_run
/// use uverbs::GidType;
///
/// # fn main() -> uverbs::Result<()> {
/// # let context: uverbs::Context = unimplemented!();
/// for entry in context.gids()?.iter().filter(|entry| entry.kind == GidType::ROCE_V2) {
///     println!("port {}, index {}: {}", entry.port, entry.index, entry.gid);
/// }
/// # Ok(())
/// # }
/// ```
#[doc(alias = "ibv_gid_entry")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct GidEntry {
    /// The GID.
    pub gid: Gid,
    /// Its index in the port's table, from 0.
    pub index: u32,
    /// The port, counted from 1.
    pub port: u32,
    /// The protocol that it is for.
    pub kind: GidType,
    /// Interface index of its network device, in the caller's network namespace. `None` if it has no network
    /// device.
    pub netdev_index: Option<u32>,
}

/// Length of `struct ib_uverbs_gid_entry`.
const GID_ENTRY_LEN: usize = 32;
/// The number of entries that fit in an output. Its length has 16 bits.
const MAX_GID_ENTRIES: usize = u16::MAX as usize / GID_ENTRY_LEN;

impl GidEntry {
    pub(super) fn parse(bytes: &[u8; GID_ENTRY_LEN]) -> Self {
        let int = |at: usize| {
            u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[..16]);
        Self {
            gid: Gid(gid),
            index: int(16),
            port: int(20),
            kind: GidType::from_raw(int(24)),
            netdev_index: Some(int(28)).filter(|index| *index != 0),
        }
    }
}

impl Body {
    pub(super) fn query_port(&self, port: u8) -> Result<PortAttributes> {
        let mut response = [0; QUERY_PORT_LEN];
        let attrs = &mut [
            Attr { id: object::PORT_NUM, data: AttrData::Const(port.into()) },
            Attr {
                id: object::PORT_RESP,
                data: AttrData::Out { buffer: &mut response, len: QUERY_PORT_LEN as u16 },
            },
        ];
        self.command(object::QUERY_PORT, "QUERY_PORT", attrs)?;
        Ok(PortAttributes::parse(&response))
    }

    pub(super) fn query_gids(&self) -> Result<Vec<GidEntry>> {
        // The kernel refuses a buffer that is too short for all entries, and no command returns their number.
        let mut entries = vec![0; MAX_GID_ENTRIES * GID_ENTRY_LEN];
        let (mut count, len) = ([0; 8], entries.len() as u16);
        let attrs = &mut [
            Attr { id: object::GID_ENTRY_SIZE, data: AttrData::Const(GID_ENTRY_LEN as u64) },
            Attr { id: object::GID_FLAGS, data: AttrData::Const(0) },
            Attr { id: object::GID_ENTRIES, data: AttrData::Out { buffer: &mut entries, len } },
            Attr { id: object::GID_COUNT, data: AttrData::Out { buffer: &mut count, len: 8 } },
        ];
        self.command(object::QUERY_GID_TABLE, "QUERY_GID_TABLE", attrs)?;
        let count = usize::try_from(u64::from_ne_bytes(count)).unwrap_or(usize::MAX);
        let (returned, _) = entries.as_chunks();
        let returned = returned.get(..count).ok_or_else(|| {
            let text = format!("QUERY_GID_TABLE: {count} entries where {MAX_GID_ENTRIES} fit");
            Error::new(ErrorKind::Malformed, text)
        })?;
        Ok(returned.iter().map(GidEntry::parse).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_port_has_its_place() {
        let mut bytes = [0; QUERY_PORT_LEN];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8;
        }
        let port = PortAttributes::parse(&bytes);
        assert_eq!(port.state, PortState::from_raw(26));
        assert_eq!(port.active_speed.to_raw(), u32::from_ne_bytes([44, 45, 46, 47]));
        assert_eq!(port.link_layer.to_raw(), 37);
        assert_eq!(port.more_capabilities, u16::from_ne_bytes([40, 41]));
        assert_eq!(port.gid_table_len, u32::from_ne_bytes([16, 17, 18, 19]));
        bytes[44..].fill(0);
        assert_eq!(PortAttributes::parse(&bytes).active_speed, LinkSpeed::from_raw(35));
    }

    #[test]
    fn names_and_sizes() {
        assert_eq!(Mtu::from_raw(5).bytes(), Some(4096));
        assert_eq!(Mtu::from_raw(6).bytes(), None);
        assert_eq!(PortState::from_raw(4).to_string(), "ACTIVE");
        assert_eq!(PortState::from_raw(9).to_string(), "unknown(9)");
        let gid = Gid([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 2, 0xc9, 3, 0, 5, 0x12, 0x34]);
        assert_eq!(gid.to_string(), "fe80:0000:0000:0000:0002:c903:0005:1234");
    }
}
