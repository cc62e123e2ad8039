//! A process that is given two directories and a socket, locks itself in, and opens a device.
//!
//! Its filter allows it to make no socket and to start nothing, and to open files only by `openat2`, which the
//! library uses only beneath the two directories. `sandbox` documents the limits of a filter.
//!
//!     cargo run --example handed_in -- rxe0
//!
//! `handed_in --try-forbidden DEVICE` tries what is forbidden first, to see that it is refused.

mod sandbox;

use anyhow::bail;
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use sandbox::{Allowed, any};
use uverbs::{Host, Registry};

/// What listing needs, and holding an instance in place.
const LIST: &[Allowed] = &[
    any(libc::SYS_openat2), // every open of the library, beneath one of the two directories
    any(libc::SYS_readlinkat), // class links
    any(libc::SYS_getdents64), // class directories
    any(libc::SYS_pread64), // attributes
    any(libc::SYS_fstatfs), // whether /sys is sysfs
    any(libc::SYS_getsockname), // whether the netlink socket is subscribed to anything
];

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (name, tries) = match args[..] {
        [name] => (name, false),
        ["--try-forbidden", name] => (name, true),
        _ => bail!("usage: handed_in [--try-forbidden] DEVICE"),
    };

    // A broker would open these and pass them on.
    #[allow(clippy::disallowed_methods)] // the two roots are the only paths of the program
    let root = |path| Dir::open_ambient_dir(path, ambient_authority());
    let (sys, dev) = (root("/sys")?, root("/dev")?);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let netlink = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?;

    sandbox::lock_in(&[sandbox::RUNTIME, sandbox::PROVE, LIST])?;
    if tries {
        sandbox::try_forbidden()?;
    }

    let host = Host::builder().sys(sys).dev(dev).netlink(netlink).build()?;
    let device = Registry::new(host).devices()?.by_name(name)?;
    let context = device.open()?;
    println!("{device}: node GUID {}", context.query_device()?.node_guid);
    for check in context.evidence().checks() {
        println!("  {}: {}: {}", check.step, check.what(), check.found);
    }
    Ok(())
}
