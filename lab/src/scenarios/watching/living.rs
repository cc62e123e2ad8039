//! A watch that stays: while modules are unloaded, under tokio, and for a long time.

use std::pin::pin;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_core::Stream as _;
use uverbs::Change;

use super::follow::Follower;
use super::replay::{Replay, is_added, next, watch};
use crate::compare::rename;
use crate::scenarios::expect::registry;
use crate::{alloc, guest};

const SOON: Duration = Duration::from_secs(10);

/// A watch keeps nobody from unloading ib_core, and follows when it is loaded again.
pub(in crate::scenarios) fn unload() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    // Once with a watch that nobody reads, once with one that waits on a thread.
    let (mut idle, mut replay) = watch(&registry)?;
    let follower = Follower::start(&registry)?;
    for round in 0..3 {
        guest::reload(true).with_context(|| format!("a watch holds a module, round {round}"))?;
        guest::add_rxe("rxe0", "d0")?;
        follower.until("rxe0 is added", |replay| {
            replay.count("added") + replay.count("replaced") > round
        })?;
    }
    guest::hca("add name=tst guid=00000000000000a0")?;
    let (watch, followed, errors) = follower.stop()?;
    println!("    on a thread: {:?}; errors: {errors:?}", followed.counts);
    followed.is_exact(&watch)?;
    let mut errors = Vec::new();
    loop {
        match idle.wait(Some(super::replay::SETTLED)) {
            Ok(Some(change)) => replay.apply(&change)?,
            Ok(None) => break,
            Err(error) => errors.push(error.to_string()),
        }
    }
    println!("    not read meanwhile: {:?}; errors: {errors:?}", replay.counts);
    ensure!(errors.is_empty(), "errors after everything was over");
    replay.is_exact(&idle)
}

/// A watch as a stream of tokio.
pub(in crate::scenarios) fn a_stream() -> Result<()> {
    guest::hca("add name=old guid=00000000000000a0")?;
    let registry = registry()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut replay = Replay::new(&registry.devices()?);
    let seen = runtime.block_on(async {
        let mut stream = pin!(registry.watch()?.into_stream()?);
        let act = thread::spawn(|| -> Result<()> {
            thread::sleep(Duration::from_millis(200));
            guest::hca("add name=new guid=00000000000000b0")?;
            thread::sleep(Duration::from_millis(200));
            guest::hca("del-sync name=old")
        });
        let mut seen = Vec::new();
        while let Some(change) = std::future::poll_fn(|task| stream.as_mut().poll_next(task)).await
        {
            let change = change?;
            replay.apply(&change)?;
            seen.push(change.to_string());
            if matches!(change, Change::Removed { .. }) {
                break;
            }
        }
        act.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        anyhow::Ok(seen)
    })?;
    let expected = ["new (uverbs1): added", "new (uverbs1): ready", "old (uverbs0): removed"];
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

/// Neither heap nor descriptors grow with the number of changes.
pub(in crate::scenarios) fn memory() -> Result<()> {
    const DEVICES: usize = 100;
    const CHANGES: usize = 100_000;
    /// What hash tables and queues keep.
    const SLACK: usize = 4096;
    guest::hca(&format!("add name=m guid=0000000000010000 count={DEVICES}"))?;
    let registry = registry()?;
    let listed = registry.devices()?;
    let indexes: Vec<_> = listed.iter().map(|d| d.index()).collect::<uverbs::Result<_>>()?;
    drop(listed);
    let (mut watch, mut replay) = watch(&registry)?;
    let mut early = None;
    let mut most = 0;
    for round in 0..CHANGES / DEVICES {
        for (number, index) in indexes.iter().enumerate() {
            let name = format!("{}{number:03}", if round % 2 == 0 { "a" } else { "b" });
            rename(*index, &name)?.map_err(std::io::Error::from_raw_os_error)?;
        }
        let wanted = (round + 1) * DEVICES;
        while replay.count("renamed") < wanted {
            let change = watch.wait(Some(SOON))?.context("a rename was not reported")?;
            replay.apply(&change)?;
        }
        let held = (alloc::live_bytes(), guest::open_descriptors());
        most = most.max(held.0);
        if wanted >= 2000 && early.is_none() {
            early = Some(held);
            most = held.0;
        }
    }
    let (heap, descriptors) = early.context("too few changes")?;
    let after = (alloc::live_bytes(), guest::open_descriptors());
    println!(
        "    {} renames reported; heap {heap} bytes after 2000, at most {most} from then on, {} at the end; descriptors {descriptors}, {}",
        replay.count("renamed"),
        after.0,
        after.1
    );
    ensure!(most <= heap + SLACK && after.0 <= heap + SLACK, "the heap has grown");
    ensure!(after.1 <= descriptors, "descriptors are left");
    replay.is_exact(&watch)?;
    // The same with instances, which are larger. The replay keeps those that it has seen: it has room for them.
    replay.seen.reserve(1000);
    replay.ready.reserve(1000);
    let mut early = None;
    for round in 0..60 {
        guest::hca("add name=come guid=00000000000000a0")?;
        next(&mut watch, &mut replay, SOON, is_added)?;
        guest::hca("del-sync name=come")?;
        next(&mut watch, &mut replay, SOON, super::replay::is_removed)?;
        if round == 20 {
            early = Some(alloc::live_bytes());
        }
    }
    let (heap, after) = (early.context("early")?, alloc::live_bytes());
    println!("    60 devices came and went: heap {heap} bytes after 20, {after} at the end");
    // Nothing of the 40 instances may stay.
    ensure!(after <= heap + SLACK / 4, "the heap has grown");
    Ok(())
}
