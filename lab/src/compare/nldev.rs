//! RDMA netlink as an administrator uses it: renaming, and moving between network namespaces.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, sendto,
    socket_with,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// `rdma/rdma_netlink.h`.
const SET: u16 = (5 << 10) + 2;
const SYS_SET: u16 = (5 << 10) + 7;
const DEV_INDEX: u16 = 1;
const DEV_NAME: u16 = 2;
const SYS_NETNS_MODE: u16 = 66;
const NET_NS_FD: u16 = 68;
const REQUEST_ACK: u16 = 5;

fn socket() -> Result<OwnedFd> {
    let family = AddressFamily::NETLINK;
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::RDMA));
    socket.context("socket(NETLINK_RDMA)")
}

/// Sends one request. Returns the errno if the kernel refuses it.
fn request(
    socket: &OwnedFd,
    kind: u16,
    attrs: &[(u16, &[u8])],
) -> Result<std::result::Result<(), i32>> {
    let mut message = vec![0; 16];
    for (kind, value) in attrs {
        message.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(value);
        message.resize(message.len().next_multiple_of(4), 0);
    }
    let len = message.len() as u32;
    message[..4].copy_from_slice(&len.to_ne_bytes());
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST_ACK.to_ne_bytes());
    sendto(socket, &message, SendFlags::empty(), &netlink::SocketAddrNetlink::new(0, 0))?;
    let mut answer = [0; 4096];
    let (_, len) = recv(socket, &mut answer[..], RecvFlags::DONTWAIT)?;
    // The acknowledgement is an error of 0.
    let errno = answer[..len].get(16..20).context("a short answer")?;
    let errno = i32::from_ne_bytes(errno.try_into()?);
    Ok(if errno == 0 { Ok(()) } else { Err(-errno) })
}

/// Renames the device with that index. Returns the errno if the kernel refuses it.
pub(crate) fn rename(index: u32, name: &str) -> Result<std::result::Result<(), i32>> {
    let name = format!("{name}\0");
    request(&socket()?, SET, &[(DEV_INDEX, &index.to_ne_bytes()), (DEV_NAME, name.as_bytes())])
}

/// Waits until the mode can be set. That is possible while there is only one namespace.
fn set_exclusive(exclusive: bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(errno) =
        request(&socket()?, SYS_SET, &[(SYS_NETNS_MODE, &[u8::from(!exclusive)])])?
    {
        if errno != Errno::BUSY.raw_os_error() || Instant::now() > end {
            bail!("setting exclusive = {exclusive}: errno {errno}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Another network namespace, in exclusive mode. Dropping it returns to shared mode.
pub(crate) struct Elsewhere {
    namespaces: Option<Namespaces>,
}

struct Namespaces {
    home: File,
    there: File,
}

impl Elsewhere {
    pub(crate) fn new() -> Result<Self> {
        set_exclusive(true)?;
        // From here on the mode is reset, whatever fails.
        let mut elsewhere = Self { namespaces: None };
        let namespace = || File::open("/proc/thread-self/ns/net").context("namespace");
        let home = namespace()?;
        let made = std::thread::spawn(move || {
            leave()?;
            namespace()
        });
        let there = made.join().expect("no panic")?;
        elsewhere.namespaces = Some(Namespaces { home, there });
        Ok(elsewhere)
    }

    /// Moves a device there, or back.
    pub(crate) fn set(&self, index: u32, away: bool) -> Result<std::result::Result<(), i32>> {
        let Namespaces { home, there } = self.namespaces.as_ref().context("no namespaces")?;
        let (from, to) = if away { (home, there) } else { (there, home) };
        let fd = to.as_raw_fd().to_ne_bytes();
        within(from, || {
            request(&socket()?, SET, &[(DEV_INDEX, &index.to_ne_bytes()), (NET_NS_FD, &fd)])
        })
    }

    /// Renames a device that is there.
    pub(crate) fn rename(&self, index: u32, name: &str) -> Result<std::result::Result<(), i32>> {
        let Namespaces { there, .. } = self.namespaces.as_ref().context("no namespaces")?;
        within(there, || rename(index, name))
    }
}

/// Runs a closure in a namespace: the caller must be in the device's namespace.
fn within<T: Send>(namespace: &File, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).context("setns")?;
            act()
        });
        acting.join().expect("no panic")
    })
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.namespaces = None;
        if let Err(error) = set_exclusive(false) {
            eprintln!("{error:?}");
        }
    }
}

/// Moves this thread into a new network namespace.
#[allow(unsafe_code)]
fn leave() -> Result<()> {
    // SAFETY: only the descriptor table must not be unshared, and it is not.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}
