//! A context reports the same as libibverbs and sysfs, field by field.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use uverbs::{Context, DeviceAttributes, ErrorKind, ExtendedAttributes, LinkSpeed, PortAttributes};

use super::expect::{listed, refused, registry};
use crate::guest;

pub(super) fn rxe() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    let context = listed(&registry()?, "rxe0")?.open()?;
    let text = guest::stdout("ibv_devinfo", &["-v", "-d", "rxe0"])?;
    let devinfo = Devinfo::parse(&text);

    let device = context.query_device()?;
    let port = context.query_port(1)?;
    let ours = device_fields(&device).into_iter().chain(port_fields(&port));
    let mut compared = 0;
    for (key, ours) in ours.chain([("num_comp_vectors", context.completion_vectors().into())]) {
        let theirs = devinfo.number(key)?;
        ensure!(ours == theirs, "{key}: {ours}, ibv_devinfo has {theirs}");
        compared += 1;
    }
    println!("    {compared} fields are equal to those of ibv_devinfo");

    let extended = context.query_device_extended()?;
    for (key, ours) in extended_fields(&extended) {
        let theirs = devinfo.number(key)?;
        ensure!(ours == theirs, "{key}: {ours}, ibv_devinfo has {theirs}");
    }
    // rxe has none of these, and ibv_devinfo prints that in words.
    let words = [
        ("completion_timestamp_mask not supported", extended.completion_timestamp_mask),
        ("core clock not supported", extended.hca_core_clock_khz),
        ("tag matching not supported", extended.tm_max_num_tags.into()),
    ];
    for (words, ours) in words {
        ensure!(text.contains(words) && ours == 0, "{ours}, not {words:?}");
    }

    for (file, ours) in sysfs_fields(&device, &port) {
        let theirs = fs::read_to_string(format!("/sys/class/infiniband/rxe0/{file}"))?;
        ensure!(ours == theirs.trim(), "{file}: {ours:?}, sysfs has {theirs:?}");
    }
    gids(&context)?;
    refused(context.query_port(2), ErrorKind::Os)?;
    Ok(())
}

/// Every GID in use, and no other.
fn gids(context: &Context) -> Result<()> {
    const PORT: &str = "/sys/class/infiniband/rxe0/ports/1";
    let ours = context.gids()?;
    ensure!(!ours.is_empty(), "no GID");
    for entry in &ours {
        let i = entry.index;
        let attribute = |file: &str| -> Result<String> {
            let path = format!("{PORT}/{file}/{i}");
            Ok(fs::read_to_string(&path).context(path)?.trim().to_owned())
        };
        ensure!(entry.port == 1, "{entry:?}");
        ensure!(entry.gid.to_string() == attribute("gids")?, "{entry:?}: {}", attribute("gids")?);
        ensure!(entry.kind.to_string() == attribute("gid_attrs/types")?, "{entry:?}");
        let netdev = attribute("gid_attrs/ndevs")?;
        let index = fs::read_to_string(format!("/sys/class/net/{netdev}/ifindex"))?;
        ensure!(entry.netdev_index == index.trim().parse().ok(), "{entry:?}: {netdev}");
    }
    let used = guest::names(format!("{PORT}/gids")).into_iter().filter(|i| {
        let gid = fs::read_to_string(format!("{PORT}/gids/{i}")).unwrap_or_default();
        gid.contains(|digit: char| digit.is_ascii_hexdigit() && digit != '0')
    });
    ensure!(used.count() == ours.len(), "{ours:?}");
    println!("    {} GIDs are equal to those of sysfs", ours.len());
    Ok(())
}

/// The library reports each speed of a port as sysfs does, including the one that needs more than a byte.
pub(super) fn speeds() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a1")?;
    let context = listed(&registry()?, "tst")?.open()?;
    let version = guest::version()?;
    for speed in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        guest::hca(&format!("set name=tst speed={speed}"))?;
        let port = context.query_port(1)?;
        if speed == 256 && version <= (6, 1) {
            // These kernels report a byte, with the fastest speed that fits.
            ensure!(port.active_speed == LinkSpeed::NDR, "{:?}", port.active_speed);
            continue;
        }
        ensure!(port.active_speed.to_raw() == speed, "{speed}: {:?}", port.active_speed);
        let (ours, theirs) =
            (rate(&port), fs::read_to_string("/sys/class/infiniband/tst/ports/1/rate")?);
        // The sysfs of 5.10 treats an unknown speed as the slowest.
        let known = if speed == 128 && version <= (5, 10) { "10 Gb/sec (4X SDR)" } else { &ours };
        ensure!(known == theirs.trim(), "{ours:?}, sysfs has {theirs:?}");
        println!("    {ours}");
    }
    Ok(())
}

/// The device is removed under an open context. Every command reports that.
pub(super) fn removed() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
    let context = listed(&registry()?, "tst")?.open()?;
    context.query_port(1)?;
    context.gids()?;
    guest::hca("del name=tst")?;
    guest::hca("wait-idle")?;
    refused(context.query_device(), ErrorKind::Removed)?;
    refused(context.query_port(1), ErrorKind::Removed)?;
    refused(context.gids(), ErrorKind::Removed)?;
    Ok(())
}

/// The output of `ibv_devinfo -v`, by key.
struct Devinfo(BTreeMap<String, String>);

impl Devinfo {
    fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Self(pairs.map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned())).collect())
    }

    /// The number for a key: the one in brackets, if there is one.
    fn number(&self, key: &str) -> Result<u64> {
        let value = self.0.get(key).with_context(|| format!("ibv_devinfo has no {key}"))?;
        let word = match value.split_once('(') {
            Some((_, rest)) => rest.trim_end_matches(')'),
            None => value,
        };
        let number = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => word.parse(),
        };
        number.with_context(|| format!("{key}: {value:?}"))
    }
}

#[rustfmt::skip]
fn device_fields(device: &DeviceAttributes) -> Vec<(&'static str, u64)> {
    vec![
        ("vendor_id", device.vendor_id.into()),
        ("vendor_part_id", device.vendor_part_id.into()),
        ("hw_ver", device.hardware_version.into()),
        ("phys_port_cnt", device.phys_port_count.into()),
        ("max_mr_size", device.max_mr_size),
        ("page_size_cap", device.page_size_cap),
        ("max_qp", device.max_qp.into()),
        ("max_qp_wr", device.max_qp_wr.into()),
        ("device_cap_flags", device.device_cap_flags.into()),
        ("max_sge", device.max_sge.into()),
        ("max_sge_rd", device.max_sge_rd.into()),
        ("max_cq", device.max_cq.into()),
        ("max_cqe", device.max_cqe.into()),
        ("max_mr", device.max_mr.into()),
        ("max_pd", device.max_pd.into()),
        ("max_qp_rd_atom", device.max_qp_rd_atom.into()),
        ("max_ee_rd_atom", device.max_ee_rd_atom.into()),
        ("max_res_rd_atom", device.max_res_rd_atom.into()),
        ("max_qp_init_rd_atom", device.max_qp_init_rd_atom.into()),
        ("max_ee_init_rd_atom", device.max_ee_init_rd_atom.into()),
        ("atomic_cap", device.atomic_cap.into()),
        ("max_ee", device.max_ee.into()),
        ("max_rdd", device.max_rdd.into()),
        ("max_mw", device.max_mw.into()),
        ("max_raw_ipv6_qp", device.max_raw_ipv6_qp.into()),
        ("max_raw_ethy_qp", device.max_raw_ethy_qp.into()),
        ("max_mcast_grp", device.max_mcast_grp.into()),
        ("max_mcast_qp_attach", device.max_mcast_qp_attach.into()),
        ("max_total_mcast_qp_attach", device.max_total_mcast_qp_attach.into()),
        ("max_ah", device.max_ah.into()),
        ("max_fmr", device.max_fmr.into()),
        ("max_srq", device.max_srq.into()),
        ("max_srq_wr", device.max_srq_wr.into()),
        ("max_srq_sge", device.max_srq_sge.into()),
        ("max_pkeys", device.max_pkeys.into()),
        ("local_ca_ack_delay", device.local_ca_ack_delay.into()),
    ]
}

fn extended_fields(device: &ExtendedAttributes) -> [(&'static str, u64); 4] {
    [
        ("device_cap_flags_ex", device.device_cap_flags_ex),
        ("max_rwq_indirection_tables", device.max_rwq_indirection_tables.into()),
        ("max_rwq_indirection_table_size", device.max_rwq_indirection_table_size.into()),
        ("max_wq_type_rq", device.max_wq_type_rq.into()),
    ]
}

#[rustfmt::skip]
fn port_fields(port: &PortAttributes) -> Vec<(&'static str, u64)> {
    vec![
        ("state", port.state.to_raw().into()),
        ("max_mtu", port.max_mtu.to_raw().into()),
        ("active_mtu", port.active_mtu.to_raw().into()),
        ("sm_lid", port.sm_lid.into()),
        ("port_lid", port.lid.into()),
        ("port_lmc", port.lid_mask_count.into()),
        ("max_msg_sz", port.max_message_size.into()),
        ("port_cap_flags", port.capabilities.into()),
        ("port_cap_flags2", port.more_capabilities.into()),
        ("max_vl_num", port.max_vl_count.into()),
        ("bad_pkey_cntr", port.bad_pkey_count.into()),
        ("qkey_viol_cntr", port.qkey_violation_count.into()),
        ("sm_sl", port.sm_service_level.into()),
        ("pkey_tbl_len", port.pkey_table_len.into()),
        ("gid_tbl_len", port.gid_table_len.into()),
        ("subnet_timeout", port.subnet_timeout.into()),
        ("init_type_reply", port.init_type_reply.into()),
        ("active_width", port.active_width.to_raw().into()),
        ("active_speed", port.active_speed.to_raw().into()),
        ("phys_state", port.physical_state.to_raw().into()),
    ]
}

/// As sysfs prints it.
fn rate(port: &PortAttributes) -> String {
    port.rate().map_or_else(|| "unknown".to_owned(), |rate| rate.to_string())
}

#[rustfmt::skip]
fn sysfs_fields(device: &DeviceAttributes, port: &PortAttributes) -> Vec<(&'static str, String)> {
    vec![
        ("node_guid", device.node_guid.to_string()),
        ("sys_image_guid", device.sys_image_guid.to_string()),
        ("ports/1/state", format!("{}: {}", port.state.to_raw(), port.state)),
        ("ports/1/phys_state", format!("{}: {}", port.physical_state.to_raw(), port.physical_state)),
        ("ports/1/link_layer", port.link_layer.to_string()),
        ("ports/1/rate", rate(port)),
        ("ports/1/lid", format!("{:#x}", port.lid)),
        ("ports/1/lid_mask_count", port.lid_mask_count.to_string()),
        ("ports/1/sm_lid", format!("{:#x}", port.sm_lid)),
        ("ports/1/sm_sl", port.sm_service_level.to_string()),
        ("ports/1/cap_mask", format!("{:#010x}", port.capabilities)),
    ]
}
