//! Lists match the kernel's devices.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use serde_json::Value;
use uverbs::{ErrorKind, Host, Registry};

use super::expect::{listed, opened, refused, registry};
use crate::guest;

/// Two rxe devices and three of the test HCA.
fn five_devices() -> Result<Vec<String>> {
    guest::add_rxe("rxe0", "d0")?;
    guest::add_rxe("rxe1", "d1")?;
    guest::hca("add name=tst guid=00000000000000a0 count=2 disassociate=1")?;
    guest::hca("add name=odd guid=00000000000000b0 disassociate=0")?;
    Ok(["rxe0", "rxe1", "tst0", "tst1", "odd"].map(String::from).into())
}

/// The output of `uverbs … --json`.
fn uverbs_json(args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&guest::stdout("uverbs", args)?)?)
}

pub(super) fn matches_the_kernel() -> Result<()> {
    let names = five_devices()?;
    let list = uverbs_json(&["list", "--json"])?;
    let devices = list["devices"].as_array().context("devices")?;
    ensure!(devices.len() == names.len(), "listed: {list}");
    let rdma: Value = serde_json::from_str(&guest::stdout("rdma", &["-j", "dev", "show"])?)?;
    for name in names {
        let ours = devices.iter().find(|device| device["name"] == *name).context("not listed")?;
        let theirs = rdma.as_array().context("rdma")?.iter().find(|dev| dev["ifname"] == *name);
        ensure!(ours["index"] == theirs.context("rdma")?["ifindex"], "{ours} {theirs:?}");
        let guid = fs::read_to_string(format!("/sys/class/infiniband/{name}/node_guid"))?;
        ensure!(ours["node_guid"] == guid.trim(), "{ours}");
        let uverbs = ours["uverbs"].as_str().context("uverbs")?;
        ensure!(guest::ibdev(uverbs)? == name, "{ours}");
        let (major, minor) = guest::device_number(uverbs)?;
        ensure!(ours["dev_t"] == format!("{major}:{minor}"), "{ours}");
        ensure!(ours["driver"] == "rxe", "{ours}");
        let index = ours["index"].as_u64().context("index")?;
        let found = registry()?.by_index(index.try_into()?)?;
        ensure!(found.name() == name.as_str() && ours["inode"] == found.instance().ino, "{found}");
    }
    Ok(())
}

pub(super) fn open_succeeds_with_evidence() -> Result<()> {
    for name in five_devices()? {
        let open = uverbs_json(&["open", &name, "--json"])?;
        ensure!(open["proven"] == true, "{open}");
        let guid = fs::read_to_string(format!("/sys/class/infiniband/{name}/node_guid"))?;
        ensure!(open["attributes"]["node_guid"] == guid.trim(), "{open}");
        let checks = open["evidence"].as_array().context("evidence")?;
        ensure!(checks.iter().all(|check| check["held"] == true), "{open}");
        for step in ["pin", "node", "open", "revalidate", "prove"] {
            ensure!(checks.iter().any(|check| check["step"] == step), "no step {step}: {open}");
        }
    }
    Ok(())
}

pub(super) fn hostile_names() -> Result<()> {
    guest::hca("add name=good guid=00000000000000a0")?;
    let registry = registry()?;
    let good = listed(&registry, "good")?;
    let mut current = "evil".to_owned();
    guest::hca("add name=evil guid=00000000000000b0")?;
    let paths = ["a/b", "..", ".", "../infiniband/good"];
    let others = ["x\ny", "\u{1b}[31mred", "%s%n", &"n".repeat(63)];
    for hostile in paths.into_iter().chain(others) {
        guest::rename(&current, hostile)?;
        current = hostile.to_owned();
        let devices = registry.devices()?;
        ensure!(devices.len() == 2, "{hostile:?}: {devices:?}");
        let device = devices.by_name(hostile)?;
        ensure!(device.name().as_bytes() == hostile.as_bytes());
        let printed = device.to_string();
        ensure!(printed.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{printed:?}");
        let context = opened(device.open(), 0xb0).with_context(|| format!("{hostile:?}"))?;
        // The partition keys are under the device's name. A name that is a path would lead to another device's.
        match context.pkeys(1) {
            Ok(keys) => {
                ensure!(!paths.contains(&hostile) && !keys.is_empty(), "{hostile:?}: {keys:?}")
            }
            keys => drop(refused(keys, ErrorKind::Unsupported)?),
        }
        opened(good.open(), 0xa0)?;
        let table = guest::stdout("uverbs", &["list"])?;
        ensure!(
            table.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)),
            "{table:?}"
        );
    }
    Ok(())
}

/// A file that is mounted over an attribute or a directory is not even read.
pub(super) fn mounted_over() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 count=3")?;
    let victim = fs::canonicalize("/sys/class/infiniband_verbs/uverbs1")?;
    fs::create_dir("/tmp/other")?;
    fs::write("/tmp/other/ibdev", "tst1\n")?;
    fs::write("/tmp/other/dev", "231:193\n")?;
    for (source, target) in [
        ("/tmp/other/ibdev", victim.join("ibdev")),
        ("/tmp/other/dev", victim.join("dev")),
        ("/tmp/other", victim),
    ] {
        guest::run("mount", &["--bind", source, &target.to_string_lossy()])?;
        let devices = registry()?.devices();
        guest::run("umount", &[&target.to_string_lossy()])?;
        let devices = devices?;
        ensure!(devices.len() == 2, "{source}: {devices:?}");
        let faults: Vec<_> = devices.faults().collect();
        ensure!(faults.len() == 1 && faults[0].device() == Some("uverbs1"), "{faults:?}");
        ensure!(faults[0].raw_os_error() == Some(libc::EXDEV), "{}", faults[0]);
        println!("    {}", faults[0]);
    }
    let devices = registry()?.devices()?;
    ensure!(devices.len() == 3 && devices.faults().count() == 0);
    refused(devices.by_name("tst7"), ErrorKind::NotFound)?;
    Ok(())
}

pub(super) fn handle_outlives_list() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let device = {
        let registry = registry()?;
        let devices = registry.devices()?;
        devices.by_name("tst")?
    };
    opened(device.open(), 0xa0).map(drop)
}

/// Contents that no kernel writes, in a tree that the policy explicitly allows in place of /sys.
pub(super) fn wrong_contents() -> Result<()> {
    let devices = Path::new("/tmp/tree/devices/virtual/infiniband_verbs");
    let class = Path::new("/tmp/tree/class/infiniband_verbs");
    fs::create_dir_all(class)?;
    fs::write(class.join("abi_version"), "6\n")?;
    let write = |number: u32, attribute: &str, contents: &[u8]| {
        fs::write(devices.join(format!("uverbs{number}")).join(attribute), contents)
    };
    for number in 0..2 {
        let name = format!("uverbs{number}");
        fs::create_dir_all(devices.join(&name))?;
        let target = format!("../../devices/virtual/infiniband_verbs/{name}");
        std::os::unix::fs::symlink(target, class.join(&name))?;
        write(number, "dev", format!("231:{}\n", 192 + number).as_bytes())?;
        write(number, "ibdev", format!("rxe{number}\n").as_bytes())?;
    }
    let root = |path| Dir::open_ambient_dir(path, ambient_authority());
    let host = Host::builder().sys(root("/tmp/tree")?).dev(root("/dev")?).allow_foreign_sys(true);
    let registry = Registry::new(host.build()?);
    ensure!(registry.devices()?.len() == 2);
    for (attribute, contents, good) in [
        ("ibdev", &b"no line feed"[..], &b"rxe1\n"[..]),
        ("ibdev", b"\n", b"rxe1\n"),
        ("ibdev", b"a name\0with a NUL\n", b"rxe1\n"),
        ("ibdev", &[b'n'; 5000], b"rxe1\n"),
        ("dev", b"231:193:1\n", b"231:193\n"),
        ("dev", b"-1:+2\n", b"231:193\n"),
        ("dev", b"99999999999:1\n", b"231:193\n"),
        ("dev", b"", b"231:193\n"),
    ] {
        write(1, attribute, contents)?;
        // Inodes are not unique here, so every listing reads all of them.
        let devices = registry.devices()?;
        let faults: Vec<_> = devices.faults().collect();
        ensure!(devices.len() == 1 && faults.len() == 1, "{attribute}: {devices:?} {faults:?}");
        ensure!(faults[0].kind() == ErrorKind::Malformed, "{}", faults[0]);
        ensure!(faults[0].device() == Some("uverbs1"), "{}", faults[0]);
        println!("    {}", faults[0]);
        write(1, attribute, good)?;
    }
    ensure!(registry.devices()?.len() == 2);
    Ok(())
}
