//! Compares numbers and layouts with the kernel's headers (package `linux-libc-dev`), as compiled by the C compiler
//! that also links Rust programs.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::device::{DeviceAttributes, ExtendedAttributes};
use super::events::{self, AsyncEvent};
use super::port::{GidEntry, PortAttributes};
use crate::ids::DriverId;
use crate::kernel::abi;
use crate::kernel::netlink::{NLMSG_DONE, NLMSG_ERROR};
use crate::kernel::nldev::{Command as Nldev, attr};
use crate::provider::data_of;
use crate::verbs::object;

const INCLUDES: &str = "
#include <stdio.h>
#include <stddef.h>
#include <string.h>
#include <endian.h>
#include <sys/ioctl.h>
#include <linux/types.h>
#include <linux/netlink.h>
#include <rdma/ib_user_verbs.h>
#include <rdma/ib_user_ioctl_cmds.h>
#include <rdma/ib_user_ioctl_verbs.h>
#include <rdma/rdma_user_ioctl.h>
#include <rdma/rdma_user_ioctl_cmds.h>
#include <rdma/rdma_netlink.h>
#include <rdma/cxgb4-abi.h>
#include <rdma/efa-abi.h>
#include <rdma/erdma-abi.h>
#include <rdma/hns-abi.h>
#include <rdma/irdma-abi.h>
#include <rdma/mlx4-abi.h>
#include <rdma/mlx5-abi.h>
#include <rdma/mthca-abi.h>
#include <rdma/ocrdma-abi.h>
#include <rdma/siw-abi.h>
#include <rdma/vmw_pvrdma-abi.h>
";

const MISSING: &str = "cc, with the headers of linux-libc-dev";

/// Compiles a source with the C compiler.
fn cc(args: &[&str], source: &str) -> Vec<u8> {
    let mut cc = Command::new("cc");
    let cc = cc.args(args).args(["-x", "c", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = cc.spawn().expect(MISSING);
    child.stdin.take().expect("piped").write_all(source.as_bytes()).expect("taken");
    let output = child.wait_with_output().expect("ended");
    assert!(output.status.success(), "{MISSING}: {}", output.status);
    output.stdout
}

/// Runs a C program whose `main` has this body, and returns the lines that it prints.
fn c(body: &str) -> Vec<String> {
    // The directory of this test's own program, to which nobody else writes.
    let tests = std::env::current_exe().expect("a test");
    static PROGRAMS: AtomicU32 = AtomicU32::new(0);
    let number = PROGRAMS.fetch_add(1, Relaxed);
    let program = tests.with_file_name(format!("layouts-{}-{number}", std::process::id()));
    let program = program.to_str().expect("a path");
    cc(&["-o", program], &format!("{INCLUDES}\nint main(void) {{\n{body}\nreturn 0;\n}}\n"));
    let output = Command::new(program).output().expect("run");
    #[allow(clippy::disallowed_methods)] // the program that was just compiled
    std::fs::remove_file(program).expect("removed");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("of ASCII");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn numbers_are_those_of_the_headers() {
    let nldev = |command: Nldev| u64::from(command.message_type());
    let mut numbers = vec![
        ("UVERBS_OBJECT_DEVICE", object::OBJECT.into()),
        ("UVERBS_METHOD_INVOKE_WRITE", object::INVOKE_WRITE.into()),
        ("UVERBS_METHOD_QUERY_PORT", object::QUERY_PORT.into()),
        ("UVERBS_METHOD_GET_CONTEXT", object::GET_CONTEXT.into()),
        ("UVERBS_METHOD_QUERY_GID_TABLE", object::QUERY_GID_TABLE.into()),
        ("UVERBS_ATTR_CORE_IN", object::CORE_IN.into()),
        ("UVERBS_ATTR_CORE_OUT", object::CORE_OUT.into()),
        ("UVERBS_ATTR_WRITE_CMD", object::WRITE_CMD.into()),
        ("UVERBS_ATTR_GET_CONTEXT_NUM_COMP_VECTORS", object::NUM_COMP_VECTORS.into()),
        ("UVERBS_ATTR_QUERY_PORT_PORT_NUM", object::PORT_NUM.into()),
        ("UVERBS_ATTR_QUERY_PORT_RESP", object::PORT_RESP.into()),
        ("UVERBS_ATTR_QUERY_GID_TABLE_ENTRY_SIZE", object::GID_ENTRY_SIZE.into()),
        ("UVERBS_ATTR_QUERY_GID_TABLE_FLAGS", object::GID_FLAGS.into()),
        ("UVERBS_ATTR_QUERY_GID_TABLE_RESP_ENTRIES", object::GID_ENTRIES.into()),
        ("UVERBS_ATTR_QUERY_GID_TABLE_RESP_NUM_ENTRIES", object::GID_COUNT.into()),
        ("UVERBS_ATTR_UHW_IN", object::UHW_IN.into()),
        ("UVERBS_ATTR_UHW_OUT", object::UHW_OUT.into()),
        ("IB_USER_VERBS_CMD_QUERY_DEVICE", object::QUERY_DEVICE),
        ("IB_USER_VERBS_CMD_ALLOC_PD", object::ALLOC_PD),
        ("IB_USER_VERBS_CMD_DEALLOC_PD", object::DEALLOC_PD),
        ("sizeof(struct ib_uverbs_alloc_pd)", 8),
        ("sizeof(struct ib_uverbs_alloc_pd_resp)", 4),
        ("sizeof(struct ib_uverbs_dealloc_pd)", 4),
        (
            "IB_USER_VERBS_CMD_FLAG_EXTENDED | (unsigned)IB_USER_VERBS_EX_CMD_QUERY_DEVICE",
            object::EX_QUERY_DEVICE,
        ),
        ("UVERBS_OBJECT_ASYNC_EVENT", events::ALLOC.0.into()),
        ("UVERBS_METHOD_ASYNC_EVENT_ALLOC", events::ALLOC.1.into()),
        ("UVERBS_ATTR_ASYNC_EVENT_ALLOC_FD_HANDLE", events::FD_HANDLE.into()),
        ("(RDMA_NL_NLDEV << 10) + RDMA_NLDEV_CMD_GET", nldev(Nldev::Get)),
        ("(RDMA_NL_NLDEV << 10) + RDMA_NLDEV_CMD_SYS_GET", nldev(Nldev::SysGet)),
        ("(RDMA_NL_NLDEV << 10) + RDMA_NLDEV_CMD_GET_CHARDEV", nldev(Nldev::GetChardev)),
        ("(RDMA_NL_NLDEV << 10) + RDMA_NLDEV_CMD_RES_CTX_GET", nldev(Nldev::ResCtxGet)),
        ("(RDMA_NL_NLDEV << 10) + RDMA_NLDEV_CMD_RES_PD_GET", nldev(Nldev::ResPdGet)),
        ("RDMA_NLDEV_ATTR_DEV_INDEX", attr::DEV_INDEX.into()),
        ("RDMA_NLDEV_ATTR_DEV_NAME", attr::DEV_NAME.into()),
        ("RDMA_NLDEV_ATTR_FW_VERSION", attr::FW_VERSION.into()),
        ("RDMA_NLDEV_ATTR_NODE_GUID", attr::NODE_GUID.into()),
        ("RDMA_NLDEV_ATTR_SYS_IMAGE_GUID", attr::SYS_IMAGE_GUID.into()),
        ("RDMA_NLDEV_ATTR_DEV_NODE_TYPE", attr::DEV_NODE_TYPE.into()),
        ("RDMA_NLDEV_ATTR_RES_PID", attr::RES_PID.into()),
        ("RDMA_NLDEV_ATTR_RES_CTXN", attr::RES_CTXN.into()),
        ("RDMA_NLDEV_ATTR_RES_PD", attr::RES_PD.into()),
        ("RDMA_NLDEV_ATTR_RES_PD_ENTRY", attr::RES_PD_ENTRY.into()),
        ("RDMA_NLDEV_ATTR_RES_PDN", attr::RES_PDN.into()),
        ("RDMA_NLDEV_ATTR_CHARDEV_TYPE", attr::CHARDEV_TYPE.into()),
        ("RDMA_NLDEV_ATTR_CHARDEV", attr::CHARDEV.into()),
        ("RDMA_NLDEV_ATTR_UVERBS_DRIVER_ID", attr::UVERBS_DRIVER_ID.into()),
        ("RDMA_NLDEV_ATTR_RES_CTX", attr::RES_CTX.into()),
        ("RDMA_NLDEV_ATTR_RES_CTX_ENTRY", attr::RES_CTX_ENTRY.into()),
        ("RDMA_NLDEV_SYS_ATTR_COPY_ON_FORK", attr::SYS_COPY_ON_FORK.into()),
        ("NLMSG_DONE", NLMSG_DONE.into()),
        ("NLMSG_ERROR", NLMSG_ERROR.into()),
        // These drivers write their whole response, or require room for it.
        ("sizeof(struct mlx4_ib_alloc_ucontext_resp)", data_of(DriverId::MLX4).output_len.into()),
        ("sizeof(struct c4iw_alloc_ucontext_resp)", data_of(DriverId::CXGB4).output_len.into()),
        ("sizeof(struct mthca_alloc_ucontext_resp)", data_of(DriverId::MTHCA).output_len.into()),
        ("sizeof(struct ocrdma_alloc_ucontext_resp)", data_of(DriverId::OCRDMA).output_len.into()),
        (
            "sizeof(struct pvrdma_alloc_ucontext_resp)",
            data_of(DriverId::VMW_PVRDMA).output_len.into(),
        ),
        ("sizeof(struct siw_uresp_alloc_ctx)", data_of(DriverId::SIW).output_len.into()),
        ("sizeof(struct erdma_uresp_alloc_ctx)", data_of(DriverId::ERDMA).output_len.into()),
    ];
    numbers.extend(abi::layout());
    let print = |(expression, _): &(&str, u64)| {
        format!("printf(\"%llu\\n\", (unsigned long long)({expression}));")
    };
    let printed = c(&numbers.iter().map(print).collect::<Vec<_>>().join("\n"));
    assert_eq!(printed.len(), numbers.len());
    for ((expression, ours), printed) in numbers.iter().zip(printed) {
        assert_eq!(printed, ours.to_string(), "{expression}");
    }
}

/// The bytes of C structs, each given as its initialised declaration of `v`.
fn bytes_of<const N: usize>(declarations: [&str; N]) -> [Vec<u8>; N] {
    let print = |declaration: &&str| {
        format!(
            "{{ {declaration} for (size_t i = 0; i < sizeof v; i++) printf(\"%02x\", ((unsigned char *)&v)[i]); puts(\"\"); }}"
        )
    };
    let lines = c(&declarations.iter().map(print).collect::<Vec<_>>().join("\n"));
    let bytes = lines.iter().map(|line| {
        let digits = line.as_bytes().chunks(2);
        let byte = |two: &[u8]| u8::from_str_radix(str::from_utf8(two).ok()?, 16).ok();
        digits.map(|two| byte(two).expect("digits")).collect()
    });
    bytes.collect::<Vec<_>>().try_into().expect("one line each")
}

/// A struct whose fields are 1, 2, 3, … in the given order.
fn counted(kind: &str, fields: &str) -> String {
    let set = |(at, field): (usize, &str)| format!("v.{field} = {};", at + 1);
    let fields: String = fields.split_whitespace().enumerate().map(set).collect();
    format!("struct {kind} v; memset(&v, 0, sizeof v); {fields}")
}

#[test]
fn every_field_of_an_answer_is_where_the_headers_have_it() {
    // In the order of the Rust fields.
    let device = counted(
        "ib_uverbs_query_device_resp",
        "fw_ver node_guid sys_image_guid max_mr_size page_size_cap vendor_id vendor_part_id hw_ver max_qp \
         max_qp_wr device_cap_flags max_sge max_sge_rd max_cq max_cqe max_mr max_pd max_qp_rd_atom \
         max_ee_rd_atom max_res_rd_atom max_qp_init_rd_atom max_ee_init_rd_atom atomic_cap max_ee max_rdd max_mw \
         max_raw_ipv6_qp max_raw_ethy_qp max_mcast_grp max_mcast_qp_attach max_total_mcast_qp_attach max_ah \
         max_fmr max_map_per_fmr max_srq max_srq_wr max_srq_sge max_pkeys local_ca_ack_delay phys_port_cnt",
    );
    let extended = counted(
        "ib_uverbs_ex_query_device_resp",
        "odp_caps.general_caps odp_caps.per_transport_caps.rc_odp_caps odp_caps.per_transport_caps.uc_odp_caps \
         odp_caps.per_transport_caps.ud_odp_caps xrc_odp_caps timestamp_mask hca_core_clock device_cap_flags_ex \
         rss_caps.supported_qpts rss_caps.max_rwq_indirection_tables rss_caps.max_rwq_indirection_table_size \
         max_wq_type_rq raw_packet_caps tm_caps.max_rndv_hdr_size tm_caps.max_num_tags tm_caps.flags \
         tm_caps.max_ops tm_caps.max_sge cq_moderation_caps.max_cq_moderation_count \
         cq_moderation_caps.max_cq_moderation_period max_dm_size",
    );
    let port = counted(
        "ib_uverbs_query_port_resp_ex",
        "legacy_resp.state legacy_resp.phys_state legacy_resp.link_layer legacy_resp.max_mtu \
         legacy_resp.active_mtu legacy_resp.active_width legacy_resp.active_speed legacy_resp.gid_tbl_len \
         legacy_resp.pkey_tbl_len legacy_resp.port_cap_flags port_cap_flags2 legacy_resp.flags \
         legacy_resp.max_msg_sz legacy_resp.bad_pkey_cntr legacy_resp.qkey_viol_cntr legacy_resp.lid \
         legacy_resp.lmc legacy_resp.sm_lid legacy_resp.sm_sl legacy_resp.max_vl_num \
         legacy_resp.subnet_timeout legacy_resp.init_type_reply",
    );
    // Headers before 6.7 reserve this field.
    let newer = cc(&["-E"], "#include <rdma/ib_user_ioctl_verbs.h>\n");
    if newer.windows(15).any(|word| word == b"active_speed_ex") {
        let port =
            counted("ib_uverbs_query_port_resp_ex", "active_speed_ex legacy_resp.active_speed");
        let [port] = bytes_of([&*port]);
        let port = PortAttributes::parse(&port.try_into().expect("as long"));
        assert_eq!(port.active_speed.to_raw(), 1);
    }
    let gid = counted("ib_uverbs_gid_entry", "gid_index port_num gid_type netdev_ifindex");
    let gid = format!("{gid} ((unsigned char *)v.gid)[15] = 9;");
    let event = counted("ib_uverbs_async_event_desc", "element event_type");
    let [device, extended, port, gid, event] =
        bytes_of([&device, &extended, &port, &gid, &event].map(String::as_str));

    let device = DeviceAttributes::parse(&device.try_into().expect("as long"));
    for (at, (name, value)) in device.entries().enumerate() {
        let value = if name.ends_with("_guid") { u64::from_be(value) } else { value };
        assert_eq!(value, at as u64 + 1, "{name}");
    }
    assert_eq!(device.entries().count(), 40);
    let extended = ExtendedAttributes::parse(&extended.try_into().expect("as long"));
    for (at, (name, value)) in extended.entries().enumerate() {
        assert_eq!(value, at as u64 + 1, "{name}");
    }
    assert_eq!(extended.entries().count(), 21);
    let port = PortAttributes::parse(&port.try_into().expect("as long"));
    let fields: [u64; 22] = [
        port.state.to_raw().into(),
        port.physical_state.to_raw().into(),
        port.link_layer.to_raw().into(),
        port.max_mtu.to_raw().into(),
        port.active_mtu.to_raw().into(),
        port.active_width.to_raw().into(),
        port.active_speed.to_raw().into(),
        port.gid_table_len.into(),
        port.pkey_table_len.into(),
        port.capabilities.into(),
        port.more_capabilities.into(),
        port.flags.into(),
        port.max_message_size.into(),
        port.bad_pkey_count.into(),
        port.qkey_violation_count.into(),
        port.lid.into(),
        port.lid_mask_count.into(),
        port.sm_lid.into(),
        port.sm_service_level.into(),
        port.max_vl_count.into(),
        port.subnet_timeout.into(),
        port.init_type_reply.into(),
    ];
    assert_eq!(fields, std::array::from_fn(|at| at as u64 + 1));
    let gid = GidEntry::parse(&gid.try_into().expect("as long"));
    assert_eq!((gid.gid.0[15], gid.index, gid.port, gid.kind.to_raw()), (9, 1, 2, 3));
    assert_eq!(gid.netdev_index, Some(4));
    let event = AsyncEvent::parse(&event.try_into().expect("as long"));
    assert_eq!((event.element, event.kind.to_raw()), (1, 2));
}

#[test]
fn driver_data_has_the_layout_of_the_headers() {
    let [mlx5, efa, irdma] = bytes_of([
        "struct mlx5_ib_alloc_ucontext_req v = { .total_num_bfregs = 16 };",
        "struct efa_ibv_alloc_ucontext_cmd v = \
         { .comp_mask = EFA_ALLOC_UCONTEXT_CMD_COMP_TX_BATCH | EFA_ALLOC_UCONTEXT_CMD_COMP_MIN_SQ_WR };",
        // The request up to its comp_mask, which was added later.
        "struct irdma_alloc_ucontext_req r = { .userspace_ver = 5 }; unsigned char v[8]; memcpy(v, &r, 8);",
    ]);
    assert_eq!(data_of(DriverId::MLX5).input, mlx5);
    assert_eq!(data_of(DriverId::EFA).input, efa);
    assert_eq!(data_of(DriverId::IRDMA).input, irdma);
}

#[test]
fn drivers_have_the_numbers_of_the_header() {
    let text = cc(&["-E"], "#include <rdma/ib_user_ioctl_verbs.h>\n");
    let text = String::from_utf8_lossy(&text);
    let body = text.split_once("enum rdma_driver_id {").expect(MISSING).1;
    let names = body.split_once('}').expect("its end").0.split(',');
    let names = names.filter_map(|name| name.split('=').next()).map(str::trim);
    // The header also has the former name of irdma.
    let names: Vec<_> =
        names.filter(|name| !name.is_empty() && *name != "RDMA_DRIVER_I40IW").collect();
    let print = |name: &&str| format!("printf(\"%d\\n\", {name});");
    let numbers = c(&names.iter().map(print).collect::<Vec<_>>().join("\n"));
    let mut compared = 0;
    for (name, number) in names.iter().zip(numbers) {
        let ours = DriverId::from_raw(number.parse().expect("a number"));
        // A header may be newer than this.
        if ours.name().is_some() {
            let word = name.trim_start_matches("RDMA_DRIVER_").to_lowercase();
            assert_eq!(ours.to_string(), word, "{name}");
            compared += 1;
        }
    }
    assert!(compared >= 19, "only {compared} drivers in {names:?}");
}
