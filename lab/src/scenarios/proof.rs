//! The proof itself, where other contexts, threads and processes stand around.

use std::io::{BufRead as _, BufReader};
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use uverbs::{ErrorKind, Host, Opened, Registry};

use super::{listed, opened, refused, registry};
use crate::{guest, roles};

/// A role that runs until it is told to end.
struct Background(Child);

impl Background {
    fn start(args: &[&str]) -> Result<Self> {
        let mut child = Command::new(roles::exe()?)
            .arg("role")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "{args:?} did not come up: {line:?}");
        Ok(Self(child))
    }

    /// Ends it; it has to have gone well.
    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = crate::runner::wait(&mut self.0, std::time::Duration::from_secs(60))?;
        ensure!(status.success(), "{status}");
        Ok(())
    }
}

pub(super) fn eight_threads() -> Result<()> {
    const ROUNDS: u64 = 10;
    guest::hca("add name=tst guid=00000000000000a0 count=2 disassociate=1")?;
    let registry = registry()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8u64)
            .map(|thread| {
                let registry = registry.clone();
                scope.spawn(move || -> Result<()> {
                    let devices = [listed(&registry, "tst0")?, listed(&registry, "tst1")?];
                    let mut older = Vec::new();
                    for round in 0..ROUNDS {
                        let which = (thread + round) % 2;
                        let device = &devices[which as usize];
                        let context = opened(device.open(), 0xa0 + which)?;
                        ensure!(context.evidence().index() == Some(device.index()?));
                        older.push(context);
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let allocs = guest::hca_value("tst0", "allocs")?.parse::<u64>()?
        + guest::hca_value("tst1", "allocs")?.parse::<u64>()?;
    ensure!(allocs == 8 * ROUNDS, "{allocs} contexts were allocated: one an open");
    ensure!(guest::hca_value("tst0", "contexts")? == "0");
    Ok(())
}

pub(super) fn churn() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let device = listed(&registry()?, "tst")?;
    let churn = Background::start(&["churn", "tst"])?;
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(opened(device.open(), 0xa0)?);
        if held.len() > 5 {
            held.remove(0);
        }
    }
    churn.end()
}

/// More contexts than the buffer has room for with which the library asks at first, and fewer than
/// one message holds: the list counts, which `verify` needs.
pub(super) fn long_list() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    for count in [120, 180, 600] {
        let crowd = Background::start(&["crowd", "tst", &count.to_string()])?;
        opened(device.open(), 0xa0)?;
        let pinned = device.pin()?;
        let context = device.open()?;
        let evidence = pinned.verify(context.as_fd())?;
        ensure!(evidence.context_number() == context.evidence().context_number());
        crowd.end()?;
    }
    Ok(())
}

pub(super) fn paged() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    // An entry takes 20 bytes of the 32 KiB that a message holds.
    let crowd = Background::start(&["crowd", "tst", "2000"])?;
    let contexts: usize = guest::hca_value("tst", "contexts")?.parse()?;
    ensure!(contexts >= 2000, "{contexts}");
    // Proved on a thread of its own, which has no other contexts.
    let first = opened(device.open(), 0xa0)?;
    let second = opened(device.open(), 0xa0)?;
    ensure!(first.evidence().context_number() != second.evidence().context_number());
    // Also while the list changes under the dump.
    let churn = Background::start(&["churn", "tst"])?;
    for _ in 0..10 {
        opened(device.open(), 0xa0)?;
    }
    churn.end()?;
    // Who brings the descriptor along cannot have that.
    let pinned = device.pin()?;
    let third = device.open()?;
    refused(pinned.verify(third.as_fd()), ErrorKind::Unproven)?;
    crowd.end()
}

pub(super) fn pid_namespace() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let outside = listed(&registry()?, "tst")?.open()?;
    for _ in 0..3 {
        guest::run("unshare", &["--pid", "--fork", &roles::exe()?, "role", "open", "tst"])?;
    }
    drop(outside);
    Ok(())
}

pub(super) fn netlink_denied() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let root = |path| Dir::open_ambient_dir(path, ambient_authority());
    let registry = Registry::new(Host::from_parts(root("/sys")?, root("/dev")?, None)?);
    let device = listed(&registry, "tst")?;
    refused(device.index(), ErrorKind::Unproven)?;
    refused(device.open(), ErrorKind::Unproven)?;
    refused(device.pin(), ErrorKind::Unproven)?;
    ensure!(guest::hca_value("tst", "allocs")? == "0", "something was opened");
    match device.open_allow_unproven()? {
        Opened::Unproven(context) => {
            ensure!(context.reason().kind() == ErrorKind::Unproven);
            ensure!(context.query_device()?.node_guid.0 == 0xa0);
        }
        Opened::Proven(context) => anyhow::bail!("proved by nothing: {context:?}"),
    }
    // The mode changes between two calls.
    let denied = roles::run_and_show(&["socket-denied", "tst"])?;
    ensure!(denied.success(), "{denied}");
    Ok(())
}

pub(super) fn verify() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 count=2")?;
    let registry = registry()?;
    let (first, second) = (listed(&registry, "tst0")?, listed(&registry, "tst1")?);
    let before: OwnedFd = first.open()?.into();
    let pinned = first.pin()?;
    // Of before the pin: it is on the device, but that cannot be told.
    refused(pinned.verify(before.as_fd()), ErrorKind::Unproven)?;
    // Of another device.
    let other: OwnedFd = second.open()?.into();
    refused(pinned.verify(other.as_fd()), ErrorKind::NodeMismatch)?;
    // Something else altogether.
    let null = OwnedFd::from(std::fs::File::open("/dev/null")?);
    refused(pinned.verify(null.as_fd()), ErrorKind::NodeMismatch)?;
    let file = OwnedFd::from(std::fs::File::open("/proc/self/exe")?);
    refused(pinned.verify(file.as_fd()), ErrorKind::NodeMismatch)?;
    // Without a context.
    let bare = OwnedFd::from(std::fs::File::open("/dev/infiniband/uverbs0")?);
    refused(pinned.verify(bare.as_fd()), ErrorKind::Unproven)?;
    // From another thread.
    let context: OwnedFd = first.open()?.into();
    std::thread::scope(|scope| {
        let elsewhere =
            scope.spawn(|| refused(pinned.verify(context.as_fd()), ErrorKind::Unproven));
        elsewhere.join().expect("no panic")
    })?;
    // As it is meant.
    let evidence = pinned.verify(context.as_fd())?;
    ensure!(evidence.index() == Some(first.index()?) && evidence.context_number().is_some());
    // Two new ones: which of them is this?
    let another: OwnedFd = first.open()?.into();
    refused(pinned.verify(another.as_fd()), ErrorKind::Unproven)?;
    // The device goes while it is pinned.
    drop((before, bare, context, another));
    let pinned = second.pin()?;
    let context: OwnedFd = second.open()?.into();
    guest::hca("del name=tst1")?;
    guest::until_uverbs("uverbs1", false)?;
    refused(pinned.verify(context.as_fd()), ErrorKind::Removed).map(drop)
}
