//! Programs that a scenario starts as separate processes: under strace, as another user, in a namespace, behind a
//! filter.

use std::io::Read as _;

use anyhow::{Context as _, Result, bail, ensure};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use uverbs::{Device, ErrorKind, Host, Registry};

use crate::ibverbs::Ibverbs;
use crate::scenarios::watching;
use crate::spawn::mark;
use crate::{bench, guest};

pub(crate) fn run(name: &str, args: &[&str]) -> Result<()> {
    match (name, args) {
        ("listxattr", [path]) => {
            rustix::fs::listxattr(*path, &mut [0u8; 256][..])?;
            Ok(())
        }
        ("open", [device]) => {
            let device = device_named(&Registry::new(Host::open()?), device)?;
            let context = device.open()?;
            let found = context.query_device()?.node_guid;
            ensure!(found == device.query()?.node_guid);
            Ok(())
        }
        ("open-refused", [device, kind]) => {
            let error = device_named(&Registry::new(Host::open()?), device)?.open();
            let error = error.err().context("it was opened")?;
            println!("    {error}");
            ensure!(format!("{:?}", error.kind()) == *kind, "{:?}", error.kind());
            Ok(())
        }
        ("marked-open", [dev, device, kind]) => marked_open(dev, device, kind),
        ("known-gone", []) => known_gone(),
        ("blocked", [errno]) => blocked(errno.parse()?),
        ("socket-denied", [device]) => socket_denied(device),
        ("leak", []) => {
            std::mem::forget(std::hint::black_box(vec![0u8; 1000]));
            Ok(())
        }
        ("crowd", [device, count]) => crowd(device, count.parse()?),
        ("churn", [device]) => churn(device),
        ("tide", [node]) => crate::scenarios::soak::tide::role(node),
        ("watch-follow", []) => watching::follow_role(),
        ("watch-forged", []) => watching::forge_role(),
        ("watch-idle", []) => watching::idle_role(),
        ("watch-synthetic", []) => watching::synthetic_role(),
        ("guarded", [part]) => crate::scenarios::guard::role(part),
        ("first-list", [which]) => bench::first_list(which),
        ("guarded-times", [device]) => bench::guarded_role(device),
        ("own-memory", []) => bench::memory_role(),
        ("counted", []) => bench::counted_role(),
        _ => bail!("no such role: {name} {args:?}"),
    }
}

fn device_named(registry: &Registry, name: &str) -> Result<Device> {
    Ok(registry.devices()?.by_name(name)?)
}

/// Lists and opens between marks, with another `/dev`. `kind` is the expected error, or `ok`.
fn marked_open(dev: &str, device: &str, kind: &str) -> Result<()> {
    let host = if dev == "/dev" {
        Host::open()?
    } else {
        let open = |path| Dir::open_ambient_dir(path, ambient_authority());
        let socket = rustix::net::socket(
            rustix::net::AddressFamily::NETLINK,
            rustix::net::SocketType::RAW,
            Some(rustix::net::netlink::RDMA),
        )?;
        Host::builder().sys(open("/sys")?).dev(open(dev)?).netlink(socket).build()?
    };
    mark();
    let device = device_named(&Registry::new(host), device)?;
    let result = device.open();
    let outcome = match &result {
        Ok(context) => context.query_device().map_or("unusable".into(), |_| "ok".into()),
        Err(error) => format!("{:?}", error.kind()),
    };
    drop(result);
    mark();
    ensure!(outcome == kind, "expected {kind}, found {outcome}");
    Ok(())
}

fn known_gone() -> Result<()> {
    let registry = Registry::new(Host::open()?);
    let device = device_named(&registry, "tst")?;
    guest::hca("del-sync name=tst")?;
    ensure!(registry.devices()?.is_empty());
    mark();
    let error = device.open().err();
    mark();
    ensure!(error.context("opened")?.kind() == ErrorKind::Removed);
    Ok(())
}

/// Makes a system call fail with an errno from now on, for this process.
fn filter(syscall: libc::c_long, rules: Vec<SeccompRule>, errno: i32) -> Result<()> {
    let arch = std::env::consts::ARCH.try_into()?;
    let rules = [(syscall, rules)].into();
    let action = SeccompAction::Errno(errno.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

fn blocked(errno: i32) -> Result<()> {
    let registry = Registry::new(Host::open()?);
    ensure!(!registry.devices()?.is_empty());
    filter(libc::SYS_openat2, Vec::new(), errno)?;
    let error = Host::open().err().context("a host without openat2")?;
    println!("    {error}");
    ensure!(error.kind() == ErrorKind::Unsupported);
    ensure!(error.raw_os_error() == Some(errno));
    // A host that was opened before fails, too: an empty list would be wrong.
    let error = registry.devices().err().context("listed without openat2")?;
    ensure!(error.raw_os_error() == Some(errno), "{error}");
    Ok(())
}

fn socket_denied(device: &str) -> Result<()> {
    let registry = Registry::new(Host::open()?);
    let before = device_named(&registry, device)?;
    let index = before.index()?;
    before.open()?;
    let netlink = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        libc::AF_NETLINK.cast_unsigned().into(),
    )?;
    filter(libc::SYS_socket, vec![SeccompRule::new(vec![netlink])?], libc::EPERM)?;
    let after = device_named(&registry, device)?;
    ensure!(after == before && after.index()? == index, "another record");
    let error = after.open().err().context("proved without netlink")?;
    println!("    {error}");
    ensure!(error.kind() == ErrorKind::NetlinkUnavailable, "{error}");
    ensure!(error.raw_os_error() == Some(libc::EPERM));
    Ok(())
}

/// Holds that many contexts until its input ends. Prints a line when it has them.
fn crowd(device: &str, count: usize) -> Result<()> {
    guest::raise_descriptor_limit()?;
    let ibverbs = Ibverbs::load()?;
    let list = ibverbs.list()?;
    for _ in 0..count {
        list.open_and_keep(device)?;
    }
    ready_until_eof()
}

/// Opens and closes contexts, some of them held for a while, until its input ends.
fn churn(device: &str) -> Result<()> {
    let ibverbs = Ibverbs::load()?;
    let list = ibverbs.list()?;
    let device = device.to_owned();
    list.open_and_keep(&device)?;
    println!("ready");
    let end = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = std::io::stdin().read_to_end(&mut Vec::new());
            end.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut opened = 0;
        while !end.load(std::sync::atomic::Ordering::Relaxed) {
            list.guid_when_opened(&device)?;
            opened += 1;
        }
        ensure!(opened > 0, "nothing came and went");
        Ok(())
    })
}

fn ready_until_eof() -> Result<()> {
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
