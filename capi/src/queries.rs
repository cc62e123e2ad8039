//! Queries through a context.

use std::ffi::c_int;
use std::mem::MaybeUninit;

use uverbs::GidEntry;

use crate::context::{either, uverbs_context};
use crate::entry::run;
use crate::error::uverbs_error;
use crate::fault::{Fault, require};
use crate::sized::{self, Plain};

/// The attributes that QUERY_DEVICE returns (ibv_query_device, struct ib_uverbs_query_device_resp). A field whose
/// description is only a kind of resource is the maximum number of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_device_attr {
    /// Version of the firmware, as the driver encodes it.
    pub firmware_version: u64,
    /// GUID of the node, in host byte order.
    pub node_guid: u64,
    /// GUID of the system that the node is part of, in host byte order.
    pub sys_image_guid: u64,
    /// Largest memory region, in bytes.
    pub max_mr_size: u64,
    /// Page sizes that memory regions can have: bit N stands for 2 to the power of N bytes.
    pub page_size_cap: u64,
    /// Vendor, as an IEEE OUI or a PCI id.
    pub vendor_id: u32,
    /// The vendor's number for this kind of device.
    pub vendor_part_id: u32,
    /// Version of the hardware.
    pub hardware_version: u32,
    /// Queue pairs.
    pub max_qp: u32,
    /// Outstanding work requests in a queue of a queue pair.
    pub max_qp_wr: u32,
    /// Capabilities (`enum ib_uverbs_device_cap_flags`).
    pub device_cap_flags: u32,
    /// Scatter/gather entries of a work request.
    pub max_sge: u32,
    /// Scatter/gather entries of an RDMA read.
    pub max_sge_rd: u32,
    /// Completion queues.
    pub max_cq: u32,
    /// Entries of a completion queue.
    pub max_cqe: u32,
    /// Memory regions.
    pub max_mr: u32,
    /// Protection domains.
    pub max_pd: u32,
    /// Outstanding RDMA reads and atomics with a queue pair as their target.
    pub max_qp_rd_atom: u32,
    /// Outstanding RDMA reads and atomics with an end-to-end context as their target.
    pub max_ee_rd_atom: u32,
    /// Outstanding RDMA reads and atomics with the device as their target.
    pub max_res_rd_atom: u32,
    /// Outstanding RDMA reads and atomics that a queue pair initiates.
    pub max_qp_init_rd_atom: u32,
    /// Outstanding RDMA reads and atomics that an end-to-end context initiates.
    pub max_ee_init_rd_atom: u32,
    /// Level of atomicity of atomic operations (`enum ib_atomic_cap`).
    pub atomic_cap: u32,
    /// End-to-end contexts.
    pub max_ee: u32,
    /// Reliable datagram domains.
    pub max_rdd: u32,
    /// Memory windows.
    pub max_mw: u32,
    /// Raw IPv6 queue pairs.
    pub max_raw_ipv6_qp: u32,
    /// Raw Ethertype queue pairs.
    pub max_raw_ethy_qp: u32,
    /// Multicast groups.
    pub max_mcast_grp: u32,
    /// Queue pairs attached to one multicast group.
    pub max_mcast_qp_attach: u32,
    /// Queue pairs attached to multicast groups.
    pub max_total_mcast_qp_attach: u32,
    /// Address handles.
    pub max_ah: u32,
    /// Fast memory regions.
    pub max_fmr: u32,
    /// Remappings of a fast memory region.
    pub max_map_per_fmr: u32,
    /// Shared receive queues.
    pub max_srq: u32,
    /// Work requests of a shared receive queue.
    pub max_srq_wr: u32,
    /// Scatter/gather entries of a shared receive queue.
    pub max_srq_sge: u32,
    /// Partition keys.
    pub max_pkeys: u16,
    /// Longest time to an acknowledgement: 4.096 us times two to the power of this.
    pub local_ca_ack_delay: u8,
    /// Number of ports.
    pub phys_port_count: u8,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: numbers, in the order of their size, 176 bytes.
unsafe impl Plain for uverbs_device_attr {}

/// The attributes that the extended QUERY_DEVICE returns beyond those of the plain one (ibv_query_device_ex, struct
/// ib_uverbs_ex_query_device_resp). A field that an older kernel does not fill is 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_device_attr_ex {
    /// On-demand paging in general (`IBV_ODP_SUPPORT`, `IBV_ODP_SUPPORT_IMPLICIT`).
    pub odp_general_caps: u64,
    /// The valid bits of a completion's timestamp; 0 if there are no timestamps.
    pub completion_timestamp_mask: u64,
    /// Frequency of the device's clock, in kHz; 0 if it has no clock.
    pub hca_core_clock_khz: u64,
    /// Capabilities, including those of the plain QUERY_DEVICE (`enum ib_uverbs_device_cap_flags`).
    pub device_cap_flags_ex: u64,
    /// Memory of the device itself, in bytes.
    pub max_device_memory: u64,
    /// On-demand paging of reliable connections, one bit per operation.
    pub rc_odp_caps: u32,
    /// On-demand paging of unreliable connections, likewise.
    pub uc_odp_caps: u32,
    /// On-demand paging of unreliable datagrams, likewise.
    pub ud_odp_caps: u32,
    /// On-demand paging of extended reliable connections, likewise.
    pub xrc_odp_caps: u32,
    /// Types of queue pairs that support receive-side scaling (RSS), one bit per type.
    pub rss_supported_qpts: u32,
    /// Indirection tables for receive-side scaling.
    pub max_rwq_indirection_tables: u32,
    /// Entries of such a table.
    pub max_rwq_indirection_table_size: u32,
    /// Receive work queues.
    pub max_wq_type_rq: u32,
    /// Capabilities for raw packets (`enum ib_uverbs_raw_packet_caps`).
    pub raw_packet_caps: u32,
    /// Tag matching: largest header of a rendezvous request, in bytes.
    pub tm_max_rndv_hdr_size: u32,
    /// Tag matching: entries of a list.
    pub tm_max_num_tags: u32,
    /// Tag matching: flags.
    pub tm_flags: u32,
    /// Tag matching: outstanding list operations.
    pub tm_max_ops: u32,
    /// Tag matching: scatter/gather entries of an entry.
    pub tm_max_sge: u32,
    /// Completions that one event may cover.
    pub max_cq_moderation_count: u16,
    /// Longest delay of such an event, in microseconds.
    pub max_cq_moderation_period: u16,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: numbers, in the order of their size, 104 bytes.
unsafe impl Plain for uverbs_device_attr_ex {}

/// The attributes of a port (ibv_query_port, struct ib_uverbs_query_port_resp_ex).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_port_attr {
    /// Length of the GID table, in entries.
    pub gid_table_len: u32,
    /// Capabilities (enum ib_uverbs_query_port_cap_flags).
    pub capabilities: u32,
    /// Largest message, in bytes.
    pub max_message_size: u32,
    /// Number of packets with a wrong partition key.
    pub bad_pkey_count: u32,
    /// Number of packets with a wrong queue key.
    pub qkey_violation_count: u32,
    /// Speed of one lane (enum ib_port_speed).
    pub active_speed: u32,
    /// The rate of the link in Mb/s; 0 if this version has no name for the width or the speed.
    pub rate: u32,
    /// Length of the partition key table, in entries.
    pub pkey_table_len: u16,
    /// More capabilities (port_cap_flags2).
    pub more_capabilities: u16,
    /// Local identifier; 0 on Ethernet.
    pub lid: u16,
    /// Local identifier of the subnet manager.
    pub sm_lid: u16,
    /// Logical state (enum ib_port_state): 4 is active.
    pub state: u8,
    /// Physical state (enum ib_port_phys_state): 5 is up.
    pub physical_state: u8,
    /// Link layer: 1 InfiniBand, 2 Ethernet (IBV_LINK_LAYER_*).
    pub link_layer: u8,
    /// Largest payload that the port can carry (enum ib_mtu): 1 is 256 bytes, each further one doubles it.
    pub max_mtu: u8,
    /// Largest payload that is in use.
    pub active_mtu: u8,
    /// Number of lanes in use (enum ib_port_width).
    pub active_width: u8,
    /// Flags of the port (enum ib_uverbs_query_port_flags).
    pub flags: u8,
    /// Number of low bits of the LID that are free.
    pub lid_mask_count: u8,
    /// Service level of the subnet manager.
    pub sm_service_level: u8,
    /// Number of virtual lanes, as encoded in PortInfo.
    pub max_vl_count: u8,
    /// The subnet's maximum timeout: 4.096 us times two to the power of this.
    pub subnet_timeout: u8,
    /// The subnet manager's reply to the requested type of initialisation.
    pub init_type_reply: u8,
}

// SAFETY: numbers, in the order of their size, 48 bytes.
unsafe impl Plain for uverbs_port_attr {}

/// An entry of a GID table that is in use (ibv_query_gid_table, struct ib_uverbs_gid_entry).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_gid_entry {
    /// The GID, in network byte order.
    pub gid: [u8; 16],
    /// Its index in the port's table, from 0.
    pub index: u32,
    /// The port, counted from 1.
    pub port: u32,
    /// The protocol that it is for: 0 InfiniBand, 1 RoCE v1, 2 RoCE v2 (enum ib_uverbs_gid_type).
    pub kind: u32,
    /// Interface index of its network device; 0 if it has none.
    pub netdev_index: u32,
}

// SAFETY: 32 bytes.
unsafe impl Plain for uverbs_gid_entry {}

/// Queries the device's attributes. `size` is sizeof(struct uverbs_device_attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_query_device(
    context: Option<&uverbs_context>,
    attributes: *mut uverbs_device_attr,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let context = require(context, "context")?;
        let found = either!(&context.opened, it => it.query_device())?;
        let found = uverbs_device_attr {
            firmware_version: found.firmware_version,
            node_guid: found.node_guid.0,
            sys_image_guid: found.sys_image_guid.0,
            max_mr_size: found.max_mr_size,
            page_size_cap: found.page_size_cap,
            vendor_id: found.vendor_id,
            vendor_part_id: found.vendor_part_id,
            hardware_version: found.hardware_version,
            max_qp: found.max_qp,
            max_qp_wr: found.max_qp_wr,
            device_cap_flags: found.device_cap_flags,
            max_sge: found.max_sge,
            max_sge_rd: found.max_sge_rd,
            max_cq: found.max_cq,
            max_cqe: found.max_cqe,
            max_mr: found.max_mr,
            max_pd: found.max_pd,
            max_qp_rd_atom: found.max_qp_rd_atom,
            max_ee_rd_atom: found.max_ee_rd_atom,
            max_res_rd_atom: found.max_res_rd_atom,
            max_qp_init_rd_atom: found.max_qp_init_rd_atom,
            max_ee_init_rd_atom: found.max_ee_init_rd_atom,
            atomic_cap: found.atomic_cap,
            max_ee: found.max_ee,
            max_rdd: found.max_rdd,
            max_mw: found.max_mw,
            max_raw_ipv6_qp: found.max_raw_ipv6_qp,
            max_raw_ethy_qp: found.max_raw_ethy_qp,
            max_mcast_grp: found.max_mcast_grp,
            max_mcast_qp_attach: found.max_mcast_qp_attach,
            max_total_mcast_qp_attach: found.max_total_mcast_qp_attach,
            max_ah: found.max_ah,
            max_fmr: found.max_fmr,
            max_map_per_fmr: found.max_map_per_fmr,
            max_srq: found.max_srq,
            max_srq_wr: found.max_srq_wr,
            max_srq_sge: found.max_srq_sge,
            max_pkeys: found.max_pkeys,
            local_ca_ack_delay: found.local_ca_ack_delay,
            phys_port_count: found.phys_port_count,
            reserved: 0,
        };
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, attributes, size) }?;
        Ok(0)
    })
}

/// Queries more of the device's attributes. `size` is sizeof(struct uverbs_device_attr_ex).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_query_device_ex(
    context: Option<&uverbs_context>,
    attributes: *mut uverbs_device_attr_ex,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let context = require(context, "context")?;
        let found = either!(&context.opened, it => it.query_device_extended())?;
        let found = uverbs_device_attr_ex {
            odp_general_caps: found.odp_general_caps,
            completion_timestamp_mask: found.completion_timestamp_mask,
            hca_core_clock_khz: found.hca_core_clock_khz,
            device_cap_flags_ex: found.device_cap_flags_ex,
            max_device_memory: found.max_device_memory,
            rc_odp_caps: found.rc_odp_caps,
            uc_odp_caps: found.uc_odp_caps,
            ud_odp_caps: found.ud_odp_caps,
            xrc_odp_caps: found.xrc_odp_caps,
            rss_supported_qpts: found.rss_supported_qpts,
            max_rwq_indirection_tables: found.max_rwq_indirection_tables,
            max_rwq_indirection_table_size: found.max_rwq_indirection_table_size,
            max_wq_type_rq: found.max_wq_type_rq,
            raw_packet_caps: found.raw_packet_caps,
            tm_max_rndv_hdr_size: found.tm_max_rndv_hdr_size,
            tm_max_num_tags: found.tm_max_num_tags,
            tm_flags: found.tm_flags,
            tm_max_ops: found.tm_max_ops,
            tm_max_sge: found.tm_max_sge,
            max_cq_moderation_count: found.max_cq_moderation_count,
            max_cq_moderation_period: found.max_cq_moderation_period,
            reserved: 0,
        };
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, attributes, size) }?;
        Ok(0)
    })
}

/// Queries a port's attributes. Ports count from 1. `size` is sizeof(struct uverbs_port_attr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_query_port(
    context: Option<&uverbs_context>,
    port: u8,
    attributes: *mut uverbs_port_attr,
    size: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let context = require(context, "context")?;
        let found = either!(&context.opened, it => it.query_port(port))?;
        let found = uverbs_port_attr {
            gid_table_len: found.gid_table_len,
            capabilities: found.capabilities,
            max_message_size: found.max_message_size,
            bad_pkey_count: found.bad_pkey_count,
            qkey_violation_count: found.qkey_violation_count,
            active_speed: found.active_speed.to_raw(),
            rate: found.rate().map_or(0, |rate| rate.megabits_per_second()),
            pkey_table_len: found.pkey_table_len,
            more_capabilities: found.more_capabilities,
            lid: found.lid,
            sm_lid: found.sm_lid,
            state: found.state.to_raw(),
            physical_state: found.physical_state.to_raw(),
            link_layer: found.link_layer.to_raw(),
            max_mtu: found.max_mtu.to_raw(),
            active_mtu: found.active_mtu.to_raw(),
            active_width: found.active_width.to_raw(),
            flags: found.flags,
            lid_mask_count: found.lid_mask_count,
            sm_service_level: found.sm_service_level,
            max_vl_count: found.max_vl_count,
            subnet_timeout: found.subnet_timeout,
            init_type_reply: found.init_type_reply,
        };
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, attributes, size) }?;
        Ok(0)
    })
}

/// Queries the GIDs in use, of all ports, and fills up to `room` entries of an array. `size` is
/// sizeof(struct uverbs_gid_entry). Returns the number of GIDs that there are, which may be more than `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_query_gids(
    context: Option<&uverbs_context>,
    entries: *mut uverbs_gid_entry,
    size: usize,
    room: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let context = require(context, "context")?;
        let found = either!(&context.opened, it => it.gids())?;
        let entry = |entry: &GidEntry| uverbs_gid_entry {
            gid: entry.gid.0,
            index: entry.index,
            port: entry.port,
            kind: entry.kind.to_raw(),
            netdev_index: entry.netdev_index.unwrap_or(0),
        };
        // SAFETY: the caller's array has `room` structs of that size.
        unsafe { sized::put_each(found.iter().map(entry), entries, size, room) }
    })
}

/// Reads the partition keys of a port, in the order of its table, and fills up to `room` entries of an array. Returns
/// the number of entries that the table has, which may be more than `room`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_query_pkeys(
    context: Option<&uverbs_context>,
    port: u8,
    pkeys: *mut u16,
    room: usize,
    error: Option<&mut MaybeUninit<*mut uverbs_error>>,
) -> c_int {
    run(error, || {
        let context = require(context, "context")?;
        let found = either!(&context.opened, it => it.pkeys(port))?;
        let copied = found.len().min(room);
        if copied > 0 {
            if pkeys.is_null() {
                return Err(Fault::Null("pkeys"));
            }
            // SAFETY: the caller's array has room for these, and is not where a Rust value is.
            unsafe { std::ptr::copy_nonoverlapping(found.as_ptr(), pkeys, copied) };
        }
        Ok(c_int::try_from(found.len()).unwrap_or(c_int::MAX))
    })
}
