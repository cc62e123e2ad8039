//! A removal that waits, and events that do not fit.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use uverbs::{Host, Registry};

use super::clock::Clock;
use super::replay::{is_added, is_removed, is_renamed, next, watch};
use super::wire;
use crate::compare::rename;
use crate::guest;
use crate::scenarios::expect::{listed, registry};

/// Well within the interval of the safety sweep.
const AT_ONCE: Duration = Duration::from_millis(1500);
/// The longest wait. The clock of the guest may jump.
const LIMIT: Duration = Duration::from_secs(60);

/// The removal of a device waits for an open descriptor. It is reported at once all the same.
pub(in crate::scenarios) fn blocked() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=0")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    let context = device.open()?;
    let (mut watch, mut replay) = watch(&registry)?;
    ensure!(watch.try_next()?.is_none(), "a change before there was one");
    let clock = Clock::start();
    let began = clock.reader().now();
    guest::hca("del name=tst")?;
    next(&mut watch, &mut replay, LIMIT, is_removed)?;
    let reported = clock.reader().now().usable_since(&began);
    ensure!(reported < AT_ONCE, "reported after {reported:?}");
    ensure!(guest::hca_state()?.contains("state=removing"), "the removal did not wait");
    ensure!(device.is_known_gone() && registry.devices()?.is_empty());
    context.query_device()?;
    // The next device takes over the number while the first one is still open.
    guest::hca("add name=new guid=00000000000000b0 disassociate=0")?;
    next(&mut watch, &mut replay, LIMIT, is_added)?;
    drop(context);
    guest::hca("wait-idle")?;
    replay.settle(&mut watch)?;
    println!("    reported after {reported:?}; {:?}", replay.counts);
    ensure!(replay.count("removed") == 1 && replay.count("added") == 1, "{:?}", replay.counts);
    replay.is_exact(&watch)
}

/// More events than fit, while the watch is not read: it reports that once, and then exactly what there is.
pub(in crate::scenarios) fn burst() -> Result<()> {
    const DEVICES: usize = 500;
    guest::hca("add name=first guid=00000000000000a0")?;
    let host = Host::builder().uevents(wire::small_socket()?).build()?;
    let registry = Registry::new(host);
    let index = listed(&registry, "first")?.index()?;
    let (mut watch, mut replay) = watch(&registry)?;
    guest::hca(&format!("add name=b guid=0000000000010000 count={DEVICES}"))?;
    let reported = watch.try_next()?.context("nothing was reported")?;
    ensure!(reported.to_string().contains("buffer was full"), "{reported} came first");
    replay.apply(&reported)?;
    // The state may be wrong before the list that follows, which comes soon.
    while replay.count("added") < DEVICES {
        next(&mut watch, &mut replay, LIMIT, is_added)?;
    }
    replay.settle(&mut watch)?;
    println!("    {:?}", replay.counts);
    ensure!(replay.count("overflow") == 1 && replay.count("added") == DEVICES);
    ensure!(replay.count("ready") == DEVICES, "not all are ready");
    replay.is_exact(&watch)?;
    // It still hears.
    rename(index, "renamed")?.map_err(std::io::Error::from_raw_os_error)?;
    next(&mut watch, &mut replay, LIMIT, is_renamed)?;
    guest::hca("del-all")?;
    guest::hca("wait-idle")?;
    replay.settle(&mut watch)?;
    println!("    and after their removal: {:?}", replay.counts);
    ensure!(replay.count("removed") == DEVICES + 1);
    ensure!((1..=2).contains(&replay.count("overflow")), "a series is reported once");
    replay.is_exact(&watch)
}
