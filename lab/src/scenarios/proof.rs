//! The proof itself, amid other contexts, threads and processes.

use std::io::{BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use uverbs::{ErrorKind, Host, Opened, Registry, Step};

use super::expect::{listed, opened, refused, registry};
use crate::{alloc, guest, spawn};

/// A role that runs until it is stopped.
struct Background(Child);

impl Background {
    fn start(args: &[&str]) -> Result<Self> {
        let mut child = Command::new(spawn::exe()?)
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

    /// Stops it. It must have succeeded.
    fn end(mut self) -> Result<()> {
        drop(self.0.stdin.take());
        let status = crate::guest::wait(&mut self.0, std::time::Duration::from_secs(60))?;
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

/// More contexts than the library's first buffer has room for, and fewer than one page holds.
pub(super) fn long_list() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let registry = registry()?;
    let device = listed(&registry, "tst")?;
    for count in [120, 180, 600] {
        let crowd = Background::start(&["crowd", "tst", &count.to_string()])?;
        let context = opened(device.open(), 0xa0)?;
        let evidence = device.verify(&context)?;
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
    let first = opened(device.open(), 0xa0)?;
    let second = opened(device.open(), 0xa0)?;
    ensure!(first.evidence().context_number() != second.evidence().context_number());
    // Also while the list changes during the dump.
    let churn = Background::start(&["churn", "tst"])?;
    for _ in 0..10 {
        opened(device.open(), 0xa0)?;
    }
    churn.end()?;
    // The proof does not depend on the existing contexts.
    device.verify(&first)?;
    crowd.end()
}

/// The thread that allocates a PD or a context uses the thread-local storage of its caller.
pub(super) fn allocates_nothing() -> Result<()> {
    guest::hca("add name=old guid=00000000000000a0 disassociate=0")?;
    let registry = registry()?;
    let wrong = opened(listed(&registry, "old")?.open(), 0xa0)?;
    guest::hca("del name=old")?;
    guest::take_over("tst", "guid=00000000000000a0")?;
    let device = listed(&registry, "tst")?;
    let (result, count) = alloc::with_borrowed_storage(|| {
        // By a list, then by the number.
        let first = opened(device.open(), 0xa0)?;
        let second = opened(device.open(), 0xa0)?;
        device.verify(&second)?;
        // Two PDs that are not listed.
        let mismatch = refused(device.verify(&wrong), ErrorKind::NodeMismatch)?;
        ensure!(mismatch.step() == Some(Step::Prove), "{mismatch}");
        // A list with a long buffer, because the number is taken.
        let crowd = Background::start(&["crowd", "tst", "120"])?;
        opened(device.open(), 0xa0)?;
        crowd.end()?;
        // The context itself, on a new thread.
        guest::hca("set name=tst fail=ALLOC_PD:22")?;
        if guest::lists_contexts()? {
            opened(device.open(), 0xa0)?;
        } else {
            refused(device.open(), ErrorKind::Unproven)?;
        }
        refused(device.verify(&first), ErrorKind::Unproven)?;
        guest::hca("set name=tst fail=GET_CONTEXT:5")?;
        let fails = refused(device.open(), ErrorKind::Os)?;
        ensure!(fails.raw_os_error() == Some(5), "the node is in order: {fails}");
        Ok(())
    });
    result?;
    ensure!(count == 0, "{count} allocations on borrowed thread-local storage");
    let ((), control) = alloc::with_borrowed_storage(|| {
        alloc::disown_storage();
        drop(std::hint::black_box(Box::new([0; 64])));
    });
    ensure!(control >= 1, "the control was counted {control} times");
    Ok(())
}

pub(super) fn pid_namespace() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let outside = listed(&registry()?, "tst")?.open()?;
    for _ in 0..3 {
        guest::run("unshare", &["--pid", "--fork", &spawn::exe()?, "role", "open", "tst"])?;
    }
    drop(outside);
    Ok(())
}

pub(super) fn netlink_denied() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let root = |path| Dir::open_ambient_dir(path, ambient_authority());
    let registry = Registry::new(Host::builder().sys(root("/sys")?).dev(root("/dev")?).build()?);
    let device = listed(&registry, "tst")?;
    refused(device.index(), ErrorKind::NetlinkUnavailable)?;
    refused(device.open(), ErrorKind::NetlinkUnavailable)?;
    let null = std::fs::File::open("/dev/null")?;
    refused(device.verify(&null), ErrorKind::NodeMismatch)?;
    ensure!(guest::hca_value("tst", "allocs")? == "0", "something was opened");
    match device.open_allow_unproven()? {
        Opened::Unproven(context) => {
            ensure!(context.reason().kind() == ErrorKind::NetlinkUnavailable);
            ensure!(context.query_device()?.node_guid.0 == 0xa0);
        }
        Opened::Proven(context) => anyhow::bail!("proved by nothing: {context:?}"),
    }
    // The mode changes between two calls.
    let denied = spawn::run_and_show(&["socket-denied", "tst"])?;
    ensure!(denied.success(), "{denied}");
    Ok(())
}

pub(super) fn verify() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 count=2")?;
    let registry = registry()?;
    let (first, second) = (listed(&registry, "tst0")?, listed(&registry, "tst1")?);
    let (ours, other): (OwnedFd, OwnedFd) = (first.open()?.into(), second.open()?.into());
    // Any number of times, and on any thread.
    for _ in 0..3 {
        let evidence = first.verify(&ours)?;
        ensure!(evidence.index() == Some(first.index()?) && evidence.context_number().is_some());
        refused(first.verify(&other), ErrorKind::NodeMismatch)?;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| first.verify(&ours).map(drop)).join().expect("no panic")
    })?;
    // A descriptor of another kind.
    let null = std::fs::File::open("/dev/null")?;
    refused(first.verify(&null), ErrorKind::NodeMismatch)?;
    let file = std::fs::File::open("/proc/self/exe")?;
    refused(first.verify(&file), ErrorKind::NodeMismatch)?;
    // Without a context.
    let bare = std::fs::File::open("/dev/infiniband/uverbs0")?;
    refused(first.verify(&bare), ErrorKind::Unproven)?;
    // The device is removed.
    drop((bare, ours));
    guest::hca("del name=tst1")?;
    guest::until_uverbs("uverbs1", false)?;
    refused(second.verify(&other), ErrorKind::Removed).map(drop)
}
