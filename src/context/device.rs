//! The attributes that a device reports through a context.

use super::Body;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::Guid;
use crate::kernel::{Attr, AttrData};
use crate::verbs::{QUERY_DEVICE_LEN, object};

/// A number at its offset in an answer of the kernel.
trait Field: Sized {
    fn at(bytes: &[u8], place: usize) -> Self;
    fn number(&self) -> u64;
}

macro_rules! numbers {
    ($($type:ident)*) => {
        $(impl Field for $type {
            fn at(bytes: &[u8], place: usize) -> Self {
                const LEN: usize = size_of::<$type>();
                let mut number = [0; LEN];
                number.copy_from_slice(&bytes[place..place + LEN]);
                Self::from_ne_bytes(number)
            }

            fn number(&self) -> u64 {
                u64::from(*self)
            }
        })*
    };
}

numbers!(u8 u16 u32 u64);

impl Field for Guid {
    fn at(bytes: &[u8], place: usize) -> Self {
        Self(u64::from_be(u64::at(bytes, place)))
    }

    fn number(&self) -> u64 {
        self.0
    }
}

/// A struct whose fields have fixed offsets in an answer.
macro_rules! attributes {
    ($(#[$outer:meta])* $name:ident: $len:ident; $($(#[$doc:meta])* $field:ident: $type:ident at $place:literal;)*) => {
        $(#[$outer])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl $name {
            pub(super) fn parse(bytes: &[u8; $len]) -> Self {
                Self { $($field: Field::at(bytes, $place),)* }
            }

            /// Every field's name and number, in the order of the struct. GUIDs are included as numbers.
            pub fn entries(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field.number()),)*].into_iter()
            }
        }
    };
}

attributes! {
    /// The attributes that QUERY_DEVICE returns (`ibv_query_device(3)`, `struct ib_uverbs_query_device_resp`).
    /// A field whose description is only a kind of resource is the maximum number of them.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// # let context: uverbs::Context = unimplemented!();
    /// let attributes = context.query_device()?;
    /// println!("at most {} queue pairs", attributes.max_qp);
    /// for (name, value) in attributes.entries() {
    ///     println!("{name}: {value}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "ibv_device_attr")]
    DeviceAttributes: QUERY_DEVICE_LEN;
    /// Version of the firmware, as the driver encodes it.
    #[doc(alias = "fw_ver")]
    firmware_version: u64 at 0;
    /// GUID of the node.
    node_guid: Guid at 8;
    /// GUID of the system that the node is part of.
    sys_image_guid: Guid at 16;
    /// Largest memory region, in bytes.
    max_mr_size: u64 at 24;
    /// Page sizes that memory regions can have: bit N stands for 2 to the power of N bytes.
    page_size_cap: u64 at 32;
    /// Vendor, as an IEEE OUI or a PCI id.
    vendor_id: u32 at 40;
    /// The vendor's number for this kind of device.
    vendor_part_id: u32 at 44;
    /// Version of the hardware.
    #[doc(alias = "hw_ver")]
    hardware_version: u32 at 48;
    /// Queue pairs.
    max_qp: u32 at 52;
    /// Outstanding work requests in a queue of a queue pair.
    max_qp_wr: u32 at 56;
    /// Capabilities (`enum ib_uverbs_device_cap_flags`).
    device_cap_flags: u32 at 60;
    /// Scatter/gather entries of a work request.
    max_sge: u32 at 64;
    /// Scatter/gather entries of an RDMA read.
    max_sge_rd: u32 at 68;
    /// Completion queues.
    max_cq: u32 at 72;
    /// Entries of a completion queue.
    max_cqe: u32 at 76;
    /// Memory regions.
    max_mr: u32 at 80;
    /// Protection domains.
    max_pd: u32 at 84;
    /// Outstanding RDMA reads and atomics with a queue pair as their target.
    max_qp_rd_atom: u32 at 88;
    /// Outstanding RDMA reads and atomics with an end-to-end context as their target.
    max_ee_rd_atom: u32 at 92;
    /// Outstanding RDMA reads and atomics with the device as their target.
    max_res_rd_atom: u32 at 96;
    /// Outstanding RDMA reads and atomics that a queue pair initiates.
    max_qp_init_rd_atom: u32 at 100;
    /// Outstanding RDMA reads and atomics that an end-to-end context initiates.
    max_ee_init_rd_atom: u32 at 104;
    /// Level of atomicity of atomic operations (`enum ib_atomic_cap`).
    atomic_cap: u32 at 108;
    /// End-to-end contexts.
    max_ee: u32 at 112;
    /// Reliable datagram domains.
    max_rdd: u32 at 116;
    /// Memory windows.
    max_mw: u32 at 120;
    /// Raw IPv6 queue pairs.
    max_raw_ipv6_qp: u32 at 124;
    /// Raw Ethertype queue pairs.
    max_raw_ethy_qp: u32 at 128;
    /// Multicast groups.
    max_mcast_grp: u32 at 132;
    /// Queue pairs attached to one multicast group.
    max_mcast_qp_attach: u32 at 136;
    /// Queue pairs attached to multicast groups.
    max_total_mcast_qp_attach: u32 at 140;
    /// Address handles.
    max_ah: u32 at 144;
    /// Fast memory regions.
    max_fmr: u32 at 148;
    /// Remappings of a fast memory region.
    max_map_per_fmr: u32 at 152;
    /// Shared receive queues.
    max_srq: u32 at 156;
    /// Work requests of a shared receive queue.
    max_srq_wr: u32 at 160;
    /// Scatter/gather entries of a shared receive queue.
    max_srq_sge: u32 at 164;
    /// Partition keys.
    max_pkeys: u16 at 168;
    /// Longest time to an acknowledgement: 4.096 us times two to the power of this.
    local_ca_ack_delay: u8 at 170;
    /// Number of ports.
    phys_port_count: u8 at 171;
}

/// Length of `struct ib_uverbs_ex_query_device_resp`.
const EX_QUERY_DEVICE_LEN: usize = 304;
/// Offset of the number of bytes that the kernel has filled.
const RESPONSE_LENGTH: usize = 180;

attributes! {
    /// The attributes that the extended QUERY_DEVICE returns beyond those of the plain one
    /// (`ibv_query_device_ex(3)`, `struct ib_uverbs_ex_query_device_resp`). A field that an older kernel does not
    /// fill is 0.
    #[doc(alias = "ibv_device_attr_ex")]
    ExtendedAttributes: EX_QUERY_DEVICE_LEN;
    /// On-demand paging in general (`IBV_ODP_SUPPORT`, `IBV_ODP_SUPPORT_IMPLICIT`).
    odp_general_caps: u64 at 184;
    /// On-demand paging of reliable connections, one bit per operation.
    rc_odp_caps: u32 at 192;
    /// On-demand paging of unreliable connections, likewise.
    uc_odp_caps: u32 at 196;
    /// On-demand paging of unreliable datagrams, likewise.
    ud_odp_caps: u32 at 200;
    /// On-demand paging of extended reliable connections, likewise.
    xrc_odp_caps: u32 at 296;
    /// The valid bits of a completion's timestamp; 0 if there are no timestamps.
    completion_timestamp_mask: u64 at 208;
    /// Frequency of the device's clock, in kHz; 0 if it has no clock.
    hca_core_clock_khz: u64 at 216;
    /// Capabilities, including those of the plain QUERY_DEVICE (`enum ib_uverbs_device_cap_flags`).
    device_cap_flags_ex: u64 at 224;
    /// Types of queue pairs that support receive-side scaling (RSS), one bit per type.
    rss_supported_qpts: u32 at 232;
    /// Indirection tables for receive-side scaling.
    max_rwq_indirection_tables: u32 at 236;
    /// Entries of such a table.
    max_rwq_indirection_table_size: u32 at 240;
    /// Receive work queues.
    max_wq_type_rq: u32 at 248;
    /// Capabilities for raw packets (`enum ib_uverbs_raw_packet_caps`).
    raw_packet_caps: u32 at 252;
    /// Tag matching: largest header of a rendezvous request, in bytes.
    tm_max_rndv_hdr_size: u32 at 256;
    /// Tag matching: entries of a list.
    tm_max_num_tags: u32 at 260;
    /// Tag matching: flags.
    tm_flags: u32 at 264;
    /// Tag matching: outstanding list operations.
    tm_max_ops: u32 at 268;
    /// Tag matching: scatter/gather entries of an entry.
    tm_max_sge: u32 at 272;
    /// Completions that one event may cover.
    max_cq_moderation_count: u16 at 280;
    /// Longest delay of such an event, in microseconds.
    max_cq_moderation_period: u16 at 282;
    /// Memory of the device itself, in bytes.
    max_device_memory: u64 at 288;
}

impl Body {
    pub(super) fn query_device_extended(&self) -> Result<ExtendedAttributes> {
        const NAME: &str = "EX_QUERY_DEVICE";
        let mut response = [0; EX_QUERY_DEVICE_LEN];
        let len = EX_QUERY_DEVICE_LEN as u16;
        let attrs = &mut [
            // comp_mask and a reserved word.
            Attr { id: object::CORE_IN, data: AttrData::In(&[0; 8]) },
            Attr { id: object::CORE_OUT, data: AttrData::Out { buffer: &mut response, len } },
            Attr { id: object::WRITE_CMD, data: AttrData::Const(object::EX_QUERY_DEVICE) },
        ];
        self.command(object::INVOKE_WRITE, NAME, attrs)?;
        let filled = u32::at(&response, RESPONSE_LENGTH) as usize;
        if !(RESPONSE_LENGTH + 4..=EX_QUERY_DEVICE_LEN).contains(&filled) {
            let text = format!("{NAME}: filled {filled} of {EX_QUERY_DEVICE_LEN} bytes");
            return Err(self.explain(Error::new(ErrorKind::Malformed, text)));
        }
        response[filled..].fill(0);
        Ok(ExtendedAttributes::parse(&response))
    }
}
