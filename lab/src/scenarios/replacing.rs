//! A device that is removed, replaced, renamed, or only looks different, between list and open.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use uverbs::{ErrorKind, Host, Registry};

use super::expect::{listed, opened, refused, registry};
use crate::guest;
use crate::ibverbs::Ibverbs;

/// Replaces the test HCA's `tst`: same name, uverbs number and device number.
fn replace(guid: &str) -> Result<()> {
    let before = guest::device_number("uverbs0")?;
    guest::hca("del-sync name=tst")?;
    guest::hca(&format!("add name=tst guid={guid} disassociate=1"))?;
    ensure!(guest::device_number("uverbs0")? == before && guest::ibdev("uverbs0")? == "tst");
    Ok(())
}

fn swapped(guid: &str) -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    opened(device.open(), 0xa0)?;
    replace(guid)?;
    refused(device.open(), ErrorKind::Replaced)?;
    // Nobody has had a context on the new device.
    ensure!(guest::hca_value("tst", "allocs")? == "0", "{}", guest::hca_state()?);
    ensure!(device.is_known_gone());
    let fresh = listed(&registry, "tst")?;
    ensure!(fresh != device);
    opened(fresh.open(), u64::from_str_radix(guid, 16)?).map(drop)
}

pub(super) fn other_guid() -> Result<()> {
    swapped("00000000000000ff")
}

pub(super) fn same_guid() -> Result<()> {
    swapped("00000000000000a0")
}

pub(super) fn rxe() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    let registry = registry()?;
    let device = listed(&registry, "rxe0")?;
    let before = device.query()?.node_guid;
    guest::delete_rxe("rxe0")?;
    guest::add_rxe("rxe0", "d1")?;
    refused(device.open(), ErrorKind::Replaced)?;
    let fresh = listed(&registry, "rxe0")?;
    let after = fresh.query()?.node_guid;
    ensure!(after != before, "the replacement has the same GUID {after}");
    opened(fresh.open(), after.0).map(drop)
}

pub(super) fn control_libibverbs() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    let ibverbs = Ibverbs::load()?;
    let list = ibverbs.list()?;
    let listed = list.guid("rxe0")?;
    ensure!(list.guid_when_opened("rxe0")? == listed, "libibverbs opens another device by itself");
    guest::delete_rxe("rxe0")?;
    guest::add_rxe("rxe0", "d1")?;
    let found = list.guid_when_opened("rxe0")?;
    ensure!(found != listed, "libibverbs refused or saw through it: the scenarios prove nothing");
    println!("    libibverbs: listed {listed:016x}, opened {found:016x}");
    Ok(())
}

pub(super) fn removed() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 count=2 disassociate=1")?;
    let registry = registry()?;
    let (first, second) = (listed(&registry, "tst0")?, listed(&registry, "tst1")?);
    let context = opened(first.open(), 0xa0)?;
    guest::hca("del-sync name=tst0")?;
    // Not known yet: the open finds it.
    ensure!(!first.is_known_gone());
    refused(first.open(), ErrorKind::Removed)?;
    refused(context.query_device(), ErrorKind::Removed)?;
    guest::hca("del-sync name=tst1")?;
    // Known from a rescan: the open makes no call (strace_known_gone_makes_no_call).
    ensure!(registry.devices()?.is_empty());
    ensure!(second.is_known_gone());
    let error = refused(second.open(), ErrorKind::Removed)?;
    ensure!(error.raw_os_error().is_none(), "{error:?}");
    // The handle still works.
    ensure!(second.name() == "tst1" && second.uverbs_number() == 1);
    Ok(())
}

pub(super) fn renamed() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    let (rxe, tst) = (listed(&registry, "rxe0")?, listed(&registry, "tst")?);
    let guid = rxe.query()?.node_guid.0;
    guest::rename("rxe0", "other")?;
    // The open itself finds the new name.
    opened(rxe.open(), guid)?;
    ensure!(rxe.name() == "other");
    // Two devices swap names. The rescan notices.
    guest::rename("other", "third")?;
    guest::rename("tst", "other")?;
    guest::rename("third", "tst")?;
    let devices = registry.devices()?;
    ensure!(devices.by_name("tst")? == rxe && devices.by_name("other")? == tst);
    ensure!(rxe.name() == "tst" && tst.name() == "other");
    opened(tst.open(), 0xa0).map(drop)
}

pub(super) fn evicted() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    let before = device.instance();
    guest::drop_caches()?;
    opened(device.open(), 0xa0)?;
    let after = device.instance();
    ensure!(before == after, "another instance");
    ensure!(before.timestamp != after.timestamp, "the cache was not dropped: {before:?}");
    ensure!(listed(&registry, "tst")? == device && !device.is_known_gone());
    // Who demands that timestamps stay gets that.
    let device = listed(&Registry::new(Host::open()?), "tst")?;
    // An inode that was looked up more than once outlives some passes.
    for _ in 0..4 {
        guest::drop_caches()?;
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let strict = uverbs::OpenOptions::new().strict_timestamps(true);
    refused(strict.open(&device), ErrorKind::Replaced).map(drop)
}

pub(super) fn listxattr() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    let before = device.instance();
    let list = Command::new("/proc/self/exe")
        .args(["role", "listxattr", "/sys/class/infiniband_verbs/uverbs0/ibdev"])
        .status()?;
    ensure!(list.success());
    opened(device.open(), 0xa0)?;
    let after = device.instance();
    // Up to 7.2 it changes them.
    let moved = before.timestamp != after.timestamp;
    ensure!(before == after && moved == (guest::version()? < (7, 3)), "{before:?} {after:?}");
    ensure!(listed(&registry, "tst")? == device);
    Ok(())
}

pub(super) fn uverbs_reloaded() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    let registry = registry()?;
    let device = listed(&registry, "rxe0")?;
    opened(device.open(), device.query()?.node_guid.0)?;
    // rxe stays; its uverbs device goes and comes back.
    let _ = Command::new("rmmod").arg("rdma_ucm").output();
    let unloaded = Command::new("rmmod").arg("ib_uverbs").output()?;
    if !unloaded.status.success() {
        // rdma_rxe uses ib_uverbs' symbols, so it has to go first.
        guest::reload(false)?;
        ensure!(registry.devices()?.is_empty());
        guest::add_rxe("rxe0", "d0")?;
    } else {
        ensure!(registry.devices()?.is_empty(), "listed without ib_uverbs");
        guest::run("modprobe", &["ib_uverbs"])?;
    }
    // The list in between found it gone.
    refused(device.open(), ErrorKind::Removed)?;
    let fresh = listed(&registry, "rxe0")?;
    ensure!(fresh != device);
    opened(fresh.open(), fresh.query()?.node_guid.0).map(drop)
}

pub(super) fn core_reloaded() -> Result<()> {
    guest::reload(true)?;
    guest::add_rxe("rxe0", "d0")?;
    let registry = registry()?;
    let device = listed(&registry, "rxe0")?;
    let (index, guid) = (device.index()?, device.query()?.node_guid);
    opened(device.open(), guid.0)?;
    // The registry holds nothing that keeps the modules from being unloaded.
    guest::reload(true).context("the library holds a module")?;
    guest::add_rxe("rxe0", "d1")?;
    refused(device.open(), ErrorKind::Replaced)?;
    let fresh = listed(&registry, "rxe0")?;
    ensure!(fresh != device && fresh.index()? == index, "index {index} was not reused");
    ensure!(fresh.device_number() == device.device_number());
    opened(fresh.open(), fresh.query()?.node_guid.0).map(drop)
}
