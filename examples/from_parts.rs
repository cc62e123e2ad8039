//! A process that is handed two directories and a socket, locks itself in, and opens a device.
//!
//! After the filter it can open nothing by path (`openat` kills it), and make no socket: what it was
//! handed is all it has.
//!
//!     cargo run --example from_parts -- rxe0

use std::collections::BTreeMap;

use anyhow::Context as _;
use cap_std::ambient_authority;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use uverbs::{Dir, Host, Registry};

fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).context("usage: from_parts DEVICE")?;

    // What a broker would do, and hand over.
    #[allow(clippy::disallowed_methods)] // the two roots are the only paths of the program
    let root = |path| Dir::open_ambient_dir(path, ambient_authority());
    let (sys, dev) = (root("/sys")?, root("/dev")?);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?;

    let host = Host::from_parts(sys, dev, Some(netlink))?;
    lock_in()?;

    let device = Registry::new(host).devices()?.by_name(&name)?;
    let context = device.open()?;
    println!("{device}: node GUID {}", context.query_device()?.node_guid);
    for check in context.evidence().checks() {
        println!("  {}: {}: {}", check.step, check.what, check.found);
    }
    Ok(())
}

/// From here on: no path, no socket, no other program.
fn lock_in() -> anyhow::Result<()> {
    let forbidden = [libc::SYS_openat, libc::SYS_socket, libc::SYS_execve, libc::SYS_execveat];
    #[cfg(target_arch = "x86_64")]
    let forbidden = forbidden.into_iter().chain([libc::SYS_open, libc::SYS_creat]);
    let rules: BTreeMap<_, _> = forbidden.into_iter().map(|call| (call, Vec::new())).collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::KillProcess,
        std::env::consts::ARCH.try_into()?,
    )?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}
