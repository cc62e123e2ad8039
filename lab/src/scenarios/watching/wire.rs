//! Uevent sockets: a small one, and forged messages.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, bind, netlink, sendto, socket_with, sockopt,
};

fn socket() -> Result<OwnedFd> {
    let protocol = Some(netlink::KOBJECT_UEVENT);
    let family = AddressFamily::NETLINK;
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, protocol);
    socket.context("socket(NETLINK_KOBJECT_UEVENT)")
}

/// A subscribed socket with the least receive buffer that the kernel allows, which is about 2 KiB.
pub(super) fn small_socket() -> Result<OwnedFd> {
    let socket = socket()?;
    sockopt::set_socket_recv_buffer_size(&socket, 2048)?;
    bind(&socket, &netlink::SocketAddrNetlink::new(0, 1))?;
    Ok(socket)
}

/// A message as of a new verbs device.
const FORGED: &[u8] = b"add@/forged\0ACTION=add\0DEVPATH=/forged\0SUBSYSTEM=infiniband_verbs\0MAJOR=231\0MINOR=192\0DEVNAME=infiniband/uverbs0\0";

/// Sends forged messages to everybody who listens in this network namespace.
pub(super) struct Forger(OwnedFd);

impl Forger {
    pub(super) fn new() -> Result<Self> {
        Ok(Self(socket()?))
    }

    /// Has the kernel broadcast one, with its own port number 0 (`uevent_net_rcv_skb`, Linux 4.18). It is allowed to
    /// `CAP_SYS_ADMIN` in the user namespace of the network namespace.
    pub(super) fn through_the_kernel(&self) -> Result<()> {
        /// `NLM_F_REQUEST`.
        const REQUEST: u16 = 1;
        /// The least type that is not netlink's own.
        const TYPE: u16 = 16;
        let mut message = Vec::with_capacity(16 + FORGED.len());
        message.extend_from_slice(&(16 + FORGED.len() as u32).to_ne_bytes());
        message.extend_from_slice(&TYPE.to_ne_bytes());
        message.extend_from_slice(&REQUEST.to_ne_bytes());
        message.resize(16, 0);
        message.extend_from_slice(FORGED);
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        sendto(&self.0, &message, SendFlags::empty(), &kernel).context("to the kernel")?;
        Ok(())
    }

    /// Sends one to the kernel's group itself. It is allowed to `CAP_NET_ADMIN`.
    pub(super) fn to_the_group(&self) -> Result<()> {
        let group = netlink::SocketAddrNetlink::new(0, 1);
        sendto(&self.0, FORGED, SendFlags::empty(), &group).context("to the group")?;
        Ok(())
    }
}
