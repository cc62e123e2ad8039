//! What scenarios do with the library, and which results they expect.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
use uverbs::{Context, Device, Error, ErrorKind, Guid, Host, Registry};

/// A registry of this host.
pub(super) fn registry() -> Result<Registry> {
    Ok(Registry::new(Host::open()?))
}

/// A registry with another `/dev`.
pub(super) fn registry_at(dev: &Path) -> Result<Registry> {
    let root = |path: &Path| Dir::open_ambient_dir(path, ambient_authority());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?;
    let host = Host::builder().sys(root(Path::new("/sys"))?).dev(root(dev)?).netlink(socket);
    Ok(Registry::new(host.build()?))
}

/// The listed device with that name.
pub(super) fn listed(registry: &Registry, name: &str) -> Result<Device> {
    Ok(registry.devices()?.by_name(name)?)
}

/// Requires an error of that kind.
pub(super) fn refused<T: std::fmt::Debug>(
    result: uverbs::Result<T>,
    kind: ErrorKind,
) -> Result<Error> {
    let error = result.err().context("it was opened")?;
    ensure!(error.kind() == kind, "expected {kind:?}, found {:?}: {error}", error.kind());
    println!("    {error}");
    Ok(error)
}

/// Requires a proved context with that GUID.
pub(super) fn opened(result: uverbs::Result<Context>, guid: u64) -> Result<Context> {
    let context = result?;
    let found = context.query_device()?.node_guid;
    ensure!(found == Guid(guid), "expected GUID {}, found {found}", Guid(guid));
    let evidence = context.evidence();
    ensure!(evidence.context_number().is_some() && evidence.checks().iter().all(|c| c.held()));
    Ok(context)
}
