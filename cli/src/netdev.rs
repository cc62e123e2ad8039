//! Network devices by index and by name, in the network namespace of this process (`netdevice(7)`).

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

use crate::output::Failure;

fn socket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
}

/// The index of the network device of that name.
pub(crate) fn index(name: &[u8]) -> Result<u32, Failure> {
    let find = |socket: OwnedFd| netdevice::name_to_index(socket, str::from_utf8(name).ok()?).ok();
    let socket = socket().map_err(|errno| Failure::os("socket", &errno.into()))?;
    find(socket).ok_or_else(|| {
        let name = name.escape_ascii();
        let text = format!("there is no network device \"{name}\" in this network namespace");
        Failure::new("not_found", text)
    })
}

/// The name of a network device, escaped; none where it has gone.
pub(crate) fn name(index: u32) -> Option<String> {
    let name = netdevice::index_to_name(socket().ok()?, index).ok()?;
    Some(name.as_bytes().escape_ascii().to_string())
}
