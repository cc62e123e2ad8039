//! What a device says of itself through a context.

use crate::name::Guid;

/// Length of `struct ib_uverbs_query_device_resp`.
pub(crate) const QUERY_DEVICE_LEN: usize = 176;

/// A number as it stands in an answer of the kernel.
trait Field: Sized {
    fn at(bytes: &[u8], place: usize) -> Self;
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
        })*
    };
}

numbers!(u8 u16 u32 u64);

impl Field for Guid {
    fn at(bytes: &[u8], place: usize) -> Self {
        Self(u64::from_be(u64::at(bytes, place)))
    }
}

macro_rules! attributes {
    ($($(#[$doc:meta])* $field:ident: $type:ident at $place:literal;)*) => {
        /// What QUERY_DEVICE says (`ibv_query_device(3)`, `struct ib_uverbs_query_device_resp`): for each
        /// kind of resource the most that there can be.
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct DeviceAttributes {
            $($(#[$doc])* pub $field: $type,)*
        }

        impl DeviceAttributes {
            pub(super) fn parse(bytes: &[u8; QUERY_DEVICE_LEN]) -> Self {
                Self { $($field: Field::at(bytes, $place),)* }
            }
        }
    };
}

attributes! {
    /// Version of the firmware, as the driver encodes it.
    firmware_version: u64 at 0;
    /// GUID of the node.
    node_guid: Guid at 8;
    /// GUID of the system the node is part of.
    sys_image_guid: Guid at 16;
    /// Largest memory region, in bytes.
    max_mr_size: u64 at 24;
    /// Page sizes that memory regions can have, a bit each.
    page_size_cap: u64 at 32;
    /// Vendor, as an IEEE OUI or a PCI id.
    vendor_id: u32 at 40;
    /// The vendor's number for this kind of device.
    vendor_part_id: u32 at 44;
    /// Version of the hardware.
    hardware_version: u32 at 48;
    /// Queue pairs.
    max_qp: u32 at 52;
    /// Work requests waiting in a queue of a queue pair.
    max_qp_wr: u32 at 56;
    /// Capabilities (`enum ib_uverbs_device_cap_flags`).
    device_cap_flags: u32 at 60;
    /// Scatter/gather entries of a work request.
    max_sge: u32 at 64;
    /// The same of an RDMA read.
    max_sge_rd: u32 at 68;
    /// Completion queues.
    max_cq: u32 at 72;
    /// Entries of a completion queue.
    max_cqe: u32 at 76;
    /// Memory regions.
    max_mr: u32 at 80;
    /// Protection domains.
    max_pd: u32 at 84;
    /// RDMA reads and atomics that a queue pair has under way as a target.
    max_qp_rd_atom: u32 at 88;
    /// The same of an end-to-end context.
    max_ee_rd_atom: u32 at 92;
    /// The same of the device.
    max_res_rd_atom: u32 at 96;
    /// RDMA reads and atomics that a queue pair has under way as an initiator.
    max_qp_init_rd_atom: u32 at 100;
    /// The same of an end-to-end context.
    max_ee_init_rd_atom: u32 at 104;
    /// How atomic atomics are (`enum ib_atomic_cap`).
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
    /// How long the device takes to acknowledge: 4.096 us times two to the power of this.
    local_ca_ack_delay: u8 at 170;
    /// Number of ports.
    phys_port_count: u8 at 171;
}
