//! Nodes in /dev that lead elsewhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use uverbs::{ErrorKind, Host, Registry};

use super::expect::{listed, opened, refused, registry};
use crate::guest;

/// A registry with another directory for `/dev`.
fn registry_with_dev(dev: &Path) -> Result<Registry> {
    let sys = Dir::open_ambient_dir("/sys", ambient_authority())?;
    let dev = Dir::open_ambient_dir(dev, ambient_authority())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?;
    Ok(Registry::new(Host::builder().sys(sys).dev(dev).netlink(socket).build()?))
}

/// The old device is held open through a node that stays, and its driver does not disassociate. Its removal waits,
/// and the new device takes over its uverbs number and device number.
fn stale_node(dev: &Path, registry: &Registry, guid: &str) -> Result<()> {
    let node = dev.join("infiniband/uverbs0");
    guest::hca("add name=old guid=00000000000000a0 disassociate=0")?;
    let number = guest::device_number("uverbs0")?;
    if node.exists() {
        fs::remove_file(&node)?;
    }
    guest::mknod(&node, number)?;
    // On the right device such a node works like any other.
    let old = listed(registry, "old")?;
    let context = opened(old.open(), 0xa0)?;
    guest::hca("del name=old")?;
    guest::take_over("new", &format!("guid={guid} disassociate=0"))?;
    ensure!(guest::device_number("uverbs0")? == number);

    refused(old.open(), ErrorKind::Replaced)?;
    let new = listed(registry, "new")?;
    refused(new.open(), ErrorKind::NodeMismatch)?;
    ensure!(guest::hca_value("new", "contexts")? == "0");
    // The refused open leaves nothing on the old device: only the context that holds it.
    ensure!(context.query_device()?.node_guid.0 == 0xa0);
    drop(context);
    guest::hca("wait-idle")?;
    // Once the last descriptor is closed, the node leads to the new device.
    opened(new.open(), u64::from_str_radix(guid, 16)?).map(drop)
}

pub(super) fn static_node() -> Result<()> {
    let dev = guest::container_dev()?;
    stale_node(&dev, &registry_with_dev(&dev)?, "00000000000000b0")
}

pub(super) fn static_node_equal_guids() -> Result<()> {
    let dev = guest::container_dev()?;
    stale_node(&dev, &registry_with_dev(&dev)?, "00000000000000a0")
}

pub(super) fn hand_made() -> Result<()> {
    stale_node(Path::new("/dev"), &registry()?, "00000000000000b0")
}

pub(super) fn static_node_rxe() -> Result<()> {
    let dev = guest::container_dev()?;
    let registry = registry_with_dev(&dev)?;
    guest::add_rxe("rxe0", "d0")?;
    guest::mknod(dev.join("infiniband/uverbs0"), guest::device_number("uverbs0")?)?;
    let old = listed(&registry, "rxe0")?;
    let context = opened(old.open(), old.query()?.node_guid.0)?;
    // Waits until the context is closed.
    let removal = std::thread::spawn(|| guest::delete_rxe("rxe0"));
    guest::until_uverbs("uverbs0", false)?;
    // The number is free shortly after.
    guest::until("rxe1 to be uverbs0", || {
        guest::add_rxe("rxe1", "d1").is_ok()
            && (guest::ibdev("uverbs0").is_ok_and(|name| name == "rxe1")
                || guest::delete_rxe("rxe1").is_err())
    })?;
    let new = listed(&registry, "rxe1")?;
    ensure!(new.uverbs_number() == 0);
    refused(new.open(), ErrorKind::NodeMismatch)?;
    drop(context);
    removal.join().expect("no panic")?;
    opened(new.open(), new.query()?.node_guid.0).map(drop)
}

pub(super) fn wrong_kinds() -> Result<()> {
    let dev = guest::container_dev()?;
    let registry = registry_with_dev(&dev)?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    let device = listed(&registry, "tst")?;
    let node = dev.join("infiniband/uverbs0");
    let promptly = |kind| {
        let started = Instant::now();
        refused(device.open(), kind)?;
        ensure!(started.elapsed() < Duration::from_secs(1), "it waited {:?}", started.elapsed());
        anyhow::Ok(())
    };

    promptly(ErrorKind::Os)?; // missing
    symlink("/dev/infiniband/uverbs0", &node)?;
    promptly(ErrorKind::NodeMismatch)?;
    fs::remove_file(&node)?;
    guest::run("mkfifo", &[&node.to_string_lossy()])?;
    promptly(ErrorKind::NodeMismatch)?;
    fs::remove_file(&node)?;
    fs::write(&node, "")?;
    promptly(ErrorKind::NodeMismatch)?;
    fs::remove_file(&node)?;
    guest::mknod(&node, (1, 3))?;
    promptly(ErrorKind::NodeMismatch)?;
    fs::remove_file(&node)?;
    fs::create_dir(&node)?;
    promptly(ErrorKind::NodeMismatch)?;
    fs::remove_dir(&node)?;
    // A link on the way is refused, too.
    fs::remove_dir(dev.join("infiniband"))?;
    symlink("/dev/infiniband", dev.join("infiniband"))?;
    promptly(ErrorKind::Os)?;
    fs::remove_file(dev.join("infiniband"))?;
    fs::create_dir(dev.join("infiniband"))?;
    guest::mknod(&node, guest::device_number("uverbs0")?)?;
    opened(device.open(), 0xa0).map(drop)
}

pub(super) fn forbidden() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    guest::run("chmod", &["600", "/dev/infiniband/uverbs0"])?;
    let role = crate::spawn::as_user(1000, &["open-refused", "tst", "PermissionDenied"])?;
    guest::run("chmod", &["666", "/dev/infiniband/uverbs0"])?;
    ensure!(role.success(), "{role}");
    let role = crate::spawn::as_user(1000, &["open", "tst"])?;
    ensure!(role.success(), "{role}");
    Ok(())
}
