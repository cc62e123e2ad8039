//! RDMA netlink as far as the lab needs it: adding and removing soft-RoCE links, renaming devices, and counting the
//! contexts on a device. Written independently of the library, whose answers it judges. Running the program `rdma`
//! for each request would take most of an execution's time.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, socket_with,
};

use crate::guest;

const GET: u16 = 1;
const SET: u16 = 2;
const NEWLINK: u16 = 3;
const DELLINK: u16 = 4;
const RES_PD_GET: u16 = 14;
const RES_CTX_GET: u16 = 22;

const DEV_INDEX: u16 = 1;
const DEV_NAME: u16 = 2;
const NDEV_NAME: u16 = 51;
const RES_PD: u16 = 46;
const LINK_TYPE: u16 = 65;
const RES_CTX: u16 = 86;

const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;

/// The netlink index of the device with that name.
pub(super) fn index_of(name: &str) -> Result<u32> {
    let mut index = None;
    request(GET, DUMP, &[], |attributes| {
        if find(attributes, DEV_NAME).and_then(text) == Some(name) {
            index = find(attributes, DEV_INDEX).and_then(number);
        }
    })?;
    index.with_context(|| format!("netlink knows no {name}"))
}

/// Renames a device.
pub(super) fn rename(index: u32, name: &str) -> Result<()> {
    let name = zero(name);
    Ok(request(SET, ACK, &[(DEV_INDEX, &index.to_ne_bytes()), (DEV_NAME, &name)], |_| ())?)
}

/// Adds a soft-RoCE device on a network device.
pub(super) fn add_rxe(name: &str, netdev: &str) -> Result<()> {
    let (name, netdev) = (zero(name), zero(netdev));
    let attributes = [(DEV_NAME, &*name), (NDEV_NAME, &*netdev), (LINK_TYPE, b"rxe\0")];
    request(NEWLINK, ACK, &attributes, |_| ()).context("adding a soft-RoCE device")
}

/// Removes a soft-RoCE device. Returns when it is gone, which may be never.
pub(super) fn delete_rxe(index: u32) -> Result<()> {
    Ok(request(DELLINK, ACK, &[(DEV_INDEX, &index.to_ne_bytes())], |_| ())?)
}

/// How many contexts are on a device, even if it is being removed; 0 if it is gone.
pub(super) fn contexts(index: u32) -> Result<usize> {
    let mut count = 0;
    let result = request(RES_CTX_GET, DUMP, &[(DEV_INDEX, &index.to_ne_bytes())], |attributes| {
        count += find(attributes, RES_CTX).map_or(0, |table| each(table).count());
    });
    match result {
        // Gone, or Linux is older than 5.13 and lists no contexts.
        Err(error) if is_unknown(&error) => counted(index),
        result => result.map(|()| count).context("counting contexts"),
    }
}

/// The same, from the summary of a device's objects, which older kernels have, too.
fn counted(index: u32) -> Result<usize> {
    const RES_GET: u16 = 9;
    const SUMMARY: u16 = 15;
    const ENTRY: u16 = 16;
    const NAME: u16 = 17;
    const CURRENT: u16 = 18;
    let mut count = None;
    let result = request(RES_GET, ACK, &[(DEV_INDEX, &index.to_ne_bytes())], |attributes| {
        let entries = find(attributes, SUMMARY).into_iter().flat_map(each);
        let mut entries = entries.filter(|(kind, _)| *kind == ENTRY).map(|(_, entry)| entry);
        let contexts = entries.find(|entry| find(entry, NAME).and_then(text) == Some("ctx"));
        let current = contexts.and_then(|entry| find(entry, CURRENT)?.try_into().ok());
        count = current.map(u64::from_ne_bytes);
    });
    match result {
        Err(error) if is_unknown(&error) => Ok(0),
        result => {
            result.context("counting contexts")?;
            Ok(usize::try_from(count.context("the summary has no contexts")?)?)
        }
    }
}

/// Whether the kernel does not know the device or the request.
fn is_unknown(error: &io::Error) -> bool {
    [libc::EINVAL, libc::ENODEV].map(Some).contains(&error.raw_os_error())
}

/// The objects that the kernel lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resource {
    Context,
    Domain,
}

impl Resource {
    /// The kinds that this kernel lists.
    pub(super) fn listed() -> Result<&'static [Self]> {
        match guest::lists_contexts()? {
            true => Ok(&[Self::Context, Self::Domain]),
            false => {
                println!("    lists of contexts: not on this kernel");
                Ok(&[Self::Domain])
            }
        }
    }
}

/// The pages of a list of a device's objects: the length of each in bytes, and how many entries it holds. They are
/// those of a socket that has been read with a long buffer before.
pub(super) fn pages(resource: Resource, index: u32) -> Result<Vec<(usize, usize)>> {
    let (command, table) = match resource {
        Resource::Context => (RES_CTX_GET, RES_CTX),
        Resource::Domain => (RES_PD_GET, RES_PD),
    };
    let socket = socket()?;
    let mut pages = Vec::new();
    for _ in 0..2 {
        pages.clear();
        exchange(
            &socket,
            command,
            DUMP,
            &[(DEV_INDEX, &index.to_ne_bytes())],
            |len, attributes| {
                pages.push((len, find(attributes, table).map_or(0, |table| each(table).count())));
            },
        )?;
    }
    Ok(pages)
}

/// How many protection domains are on a device, including the kernel's own; 0 if it is gone.
pub(super) fn domains(index: u32) -> Result<usize> {
    match pages(Resource::Domain, index) {
        Ok(pages) => Ok(pages.iter().map(|(_, entries)| entries).sum()),
        Err(error) if is_gone(&error) => Ok(0),
        Err(error) => Err(error.context("counting domains")),
    }
}

fn is_gone(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
    matches!(errno, Some(libc::EINVAL | libc::ENODEV))
}

fn zero(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(b"\0")?).ok()
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// The attributes in these bytes, with their types.
fn each(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = rest.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & 0x3fff;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    each(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Sends one request and reads all of its answers.
fn request(
    command: u16,
    flags: u16,
    attributes: &[(u16, &[u8])],
    mut answer: impl FnMut(&[u8]),
) -> io::Result<()> {
    exchange(&socket()?, command, flags, attributes, |_, attributes| answer(attributes))
}

/// The same on a given socket. Each answer is passed with its length.
fn exchange(
    socket: &OwnedFd,
    command: u16,
    flags: u16,
    attributes: &[(u16, &[u8])],
    mut answer: impl FnMut(usize, &[u8]),
) -> io::Result<()> {
    const NLDEV: u16 = 5;
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    let mut body = Vec::new();
    for (kind, value) in attributes {
        body.extend(((4 + value.len()) as u16).to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(*value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    let mut message = Vec::new();
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend((NLDEV << 10 | command).to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let (_, len) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::TRUNC)?;
        let mut rest = buffer.get(..len).ok_or(io::ErrorKind::InvalidData)?;
        while let Some(head) = rest.get(..16) {
            let len = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
            let kind = u16::from_ne_bytes([head[4], head[5]]);
            let body = rest.get(16..len).ok_or(io::ErrorKind::InvalidData)?;
            if kind == ERROR || kind == DONE {
                let errno = body.get(..4).and_then(number).unwrap_or(0).cast_signed();
                return if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) };
            }
            answer(len, body);
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))?)
}
