//! Async events, and what remains when devices are removed under open contexts.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_core::Stream as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::{FdFlags, fcntl_getfd};
use uverbs::{AsyncEventKind, Context, ErrorKind, ForkSafety};

use super::expect::{listed, refused, registry};
use super::soak::Random;
use crate::guest;

/// The kinds that a driver raises for a port. (The core itself raises GID_CHANGE, when a GID has changed.)
const KINDS: [AsyncEventKind; 6] = [
    AsyncEventKind::PORT_ACTIVE,
    AsyncEventKind::PORT_ERROR,
    AsyncEventKind::LID_CHANGE,
    AsyncEventKind::PKEY_CHANGE,
    AsyncEventKind::SM_CHANGE,
    AsyncEventKind::CLIENT_REREGISTER,
];

/// The longest wait in these scenarios.
const LONG: Duration = Duration::from_secs(20);

pub(super) fn every_kind() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 ports=2")?;
    let context = listed(&registry()?, "tst")?.open()?;
    let mut events = context.async_events()?;
    ensure!(fcntl_getfl(&events)?.contains(OFlags::NONBLOCK), "it would block");
    ensure!(fcntl_getfd(&events)?.contains(FdFlags::CLOEXEC), "it would be inherited");
    ensure!(!is_readable(&events)?, "there is an event already");
    ensure!(events.try_next()?.is_none());
    ensure!(events.wait(Some(Duration::from_millis(20)))?.is_none());
    for (number, kind) in KINDS.into_iter().enumerate() {
        let port = 1 + number as u8 % 2;
        guest::hca(&format!("event name=tst type={} port={port}", kind.to_raw()))?;
    }
    until("there is an event", || is_readable(&events))?;
    // The kernel's workqueue may reorder them.
    let mut seen = Vec::new();
    for _ in KINDS {
        let event = events.wait(Some(LONG))?.with_context(|| format!("only {seen:?}"))?;
        seen.push((event.kind.to_raw(), event.port()));
    }
    seen.sort_unstable();
    let raised = KINDS.into_iter().enumerate();
    let mut raised: Vec<_> =
        raised.map(|(number, kind)| (kind.to_raw(), Some(1 + number as u8 % 2))).collect();
    raised.sort_unstable();
    ensure!(seen == raised, "{seen:?}, not {raised:?}");
    ensure!(events.try_next()?.is_none());
    println!("    {} kinds of events came as they were raised", KINDS.len());
    gid_change()
}

/// A new address of the network device is a new GID. The network device is used only here, because an address
/// stays.
fn gid_change() -> Result<()> {
    const NETDEV: &str = "dgid";
    guest::add_rxe("rxe0", NETDEV)?;
    let context = listed(&registry()?, "rxe0")?.open()?;
    let (mut events, before) = (context.async_events()?, context.gids()?.len());
    guest::run("ip", &["address", "add", "192.0.2.1/24", "dev", NETDEV])?;
    let event = events.wait(Some(LONG))?.context("no event")?;
    ensure!((event.kind, event.port()) == (AsyncEventKind::GID_CHANGE, Some(1)), "{event:?}");
    until("there is one GID more", || Ok(context.gids()?.len() == before + 1))?;
    drop(events);
    drop(context);
    guest::delete_rxe("rxe0")?;
    guest::run("ip", &["link", "delete", NETDEV]).map(drop)
}

pub(super) fn removal_ends_the_stream() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
    let context = listed(&registry()?, "tst")?.open()?;
    let mut late = context.async_events()?;
    ensure!(context.is_device_present()?);
    let seen: Vec<_> = thread::scope(|scope| {
        let waiting = scope.spawn(|| -> Result<Vec<_>> {
            // It blocks until the removal wakes it.
            let events = context.async_events()?;
            Ok(events.map(|event| event.map(|event| event.kind)).collect::<uverbs::Result<_>>()?)
        });
        thread::sleep(Duration::from_millis(100));
        guest::hca("event name=tst type=9 port=1")?;
        guest::hca("del-sync name=tst")?;
        waiting.join().map_err(|_| anyhow::anyhow!("it panicked"))?
    })?;
    ensure!(seen == [AsyncEventKind::PORT_ACTIVE, AsyncEventKind::DEVICE_FATAL], "{seen:?}");
    let kinds: Vec<_> = late.by_ref().map(|event| event.map(|event| event.kind)).collect();
    ensure!(kinds.len() == 2 && late.has_ended() && late.try_next()?.is_none(), "{kinds:?}");
    ensure!(!context.is_device_present()?);
    refused(context.query_device(), ErrorKind::Removed)?;
    refused(context.query_device_extended(), ErrorKind::Removed)?;
    refused(context.async_events(), ErrorKind::Removed)?;
    refused(context.pkeys(1), ErrorKind::Removed)?;
    Ok(())
}

/// The same under tokio. The kernel wakes its runtime.
pub(super) fn a_stream_ends() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
    let context = listed(&registry()?, "tst")?.open()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let seen = runtime.block_on(async {
        let mut stream = std::pin::pin!(context.async_events()?.into_stream()?);
        let act = thread::spawn(|| -> Result<()> {
            thread::sleep(Duration::from_millis(100));
            guest::hca("event name=tst type=10 port=1")?;
            thread::sleep(Duration::from_millis(100));
            guest::hca("del-sync name=tst")
        });
        let mut seen = Vec::new();
        while let Some(event) = std::future::poll_fn(|task| stream.as_mut().poll_next(task)).await {
            seen.push(event?.kind);
        }
        act.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
        anyhow::Ok(seen)
    })?;
    ensure!(seen == [AsyncEventKind::PORT_ERROR, AsyncEventKind::DEVICE_FATAL], "{seen:?}");
    Ok(())
}

/// A driver that does not disassociate: no removal is reported, everything continues to work, and the removal waits
/// for the events just as for the context.
pub(super) fn no_removal_is_reported() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=0")?;
    let device = listed(&registry()?, "tst")?;
    let context = device.open()?;
    let mut events = context.async_events()?;
    guest::hca("del name=tst")?;
    until("the directory is gone", || Ok(!context.is_device_present()?))?;
    ensure!(events.wait(Some(Duration::from_millis(200)))?.is_none() && !events.has_ended());
    context.query_device()?;
    context.query_port(1)?;
    let removing = || -> Result<bool> { Ok(guest::hca_state()?.contains("name=tst")) };
    ensure!(removing()?, "the removal did not wait");
    drop(events);
    ensure!(removing()?, "the removal did not wait");
    drop(context);
    until("the removal ends", || Ok(!removing()?))?;
    refused(device.open(), ErrorKind::Removed)?;
    Ok(())
}

/// A hundred contexts on a hundred devices, closed in any order while their devices vanish.
pub(super) fn a_hundred() -> Result<()> {
    const DEVICES: usize = 100;
    guest::hca(&format!("add name=h guid=0000000000010000 count={DEVICES} disassociate=1"))?;
    let registry = registry()?;
    // Descriptors that are opened once and kept are not counted.
    drop(listed(&registry, "h0")?.open()?);
    let before = guest::names("/proc/self/fd").len();
    let devices = registry.devices()?;
    ensure!(devices.len() == DEVICES, "{} are listed", devices.len());
    let mut contexts: Vec<Option<Context>> =
        devices.iter().map(|device| device.open().map(Some)).collect::<uverbs::Result<_>>()?;
    let held = guest::names("/proc/self/fd").len() - before;
    ensure!(held == DEVICES, "{held} descriptors for {DEVICES} contexts");
    ensure!(sum("contexts")? == DEVICES as u64);

    let mut random = Random::new(7);
    let (mut removed, mut answered) = (vec![false; DEVICES], 0);
    for round in 0..2 * DEVICES {
        let at = random.below(DEVICES as u64) as usize;
        if round % 2 == 0 && !removed[at] {
            guest::hca(&format!("del-sync name=h{at}"))?;
            removed[at] = true;
        } else if let Some(context) = contexts[at].take() {
            answered += usize::from(context.query_device().is_ok());
        }
    }
    for (at, context) in contexts.iter().enumerate() {
        let Some(context) = context else { continue };
        let name = context.device().name();
        let gone = removed[name.to_string()[1..].parse::<usize>()?];
        let answer = context.query_device().map_err(|error| error.kind()).map(drop);
        let expected = if gone { Err(ErrorKind::Removed) } else { Ok(()) };
        ensure!(answer == expected, "{at}: {answer:?}, expected {expected:?}");
    }
    let open = contexts.iter().flatten().filter(|context| context.query_device().is_ok()).count();
    ensure!(sum("contexts")? == open as u64, "{open} contexts are on devices that are left");
    let left = removed.iter().filter(|removed| !**removed).count();
    println!(
        "    {left} devices and {open} contexts on them are left; {answered} answered when closed"
    );
    drop(contexts);
    ensure!(sum("contexts")? == 0 && registry.devices()?.len() == left);
    drop((devices, registry));
    let after = guest::names("/proc/self/fd").len();
    ensure!(after <= before, "{after} descriptors, {before} before");
    Ok(())
}

pub(super) fn fork_safety() -> Result<()> {
    let found = registry()?.host().fork_safety()?;
    // 5.10 does not report that it copies.
    let copies = guest::version()? > (5, 10);
    let expected = if copies { ForkSafety::CopiedOnFork } else { ForkSafety::MarkPages };
    ensure!(found == expected, "{found:?}");
    Ok(())
}

/// Sums a value over the test HCA's devices.
fn sum(key: &str) -> Result<u64> {
    let prefix = format!("{key}=");
    let state = guest::hca_state()?;
    let values = state.split_whitespace().filter_map(|word| word.strip_prefix(&prefix));
    Ok(values.map(str::parse::<u64>).sum::<std::result::Result<u64, _>>()?)
}

fn is_readable(events: &uverbs::AsyncEvents) -> Result<bool> {
    let events = PollFd::new(events, PollFlags::IN);
    Ok(poll(&mut [events], Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + LONG;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "timed out before {what}");
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
