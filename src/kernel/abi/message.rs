//! `recvmsg(2)` with the sender's credentials. rustix cannot represent those of the kernel, whose process id is 0.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use super::{Errno, Sys};
use crate::kernel::uevent::Packet;

/// Room for control messages, aligned for their headers.
#[repr(C, align(8))]
struct Control([u8; 128]);

/// Receives one message of a netlink socket, without waiting.
// The types of the fields differ between C libraries. Some of these casts are redundant here.
#[allow(clippy::unnecessary_cast)]
pub(in crate::kernel) fn recv_uevent(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<Packet> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut address: libc::sockaddr_nl = unsafe { MaybeUninit::zeroed().assume_init() };
    let mut control = Control([0; 128]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    header.msg_name = (&raw mut address).cast();
    header.msg_namelen = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = control.0.len() as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer in the header leads to memory of the given length that is borrowed exclusively here.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) };
    let len = usize::try_from(len).map_err(|_| super::last_errno())?;
    if header.msg_namelen as usize != size_of::<libc::sockaddr_nl>() {
        return Err(Errno::AFNOSUPPORT);
    }
    #[allow(clippy::unnecessary_cast)] // the type differs between C libraries
    let control_len = (header.msg_controllen as usize).min(control.0.len());
    Ok(Packet {
        len: len.min(buffer.len()),
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        port: address.nl_pid,
        groups: address.nl_groups,
        sender: sender(&control.0[..control_len]),
    })
}

/// The first credentials among control messages.
#[allow(clippy::unnecessary_cast)]
pub(crate) fn sender(mut control: &[u8]) -> Option<(i32, u32)> {
    const HEADER: usize = align(size_of::<libc::cmsghdr>());
    const LEN: usize = size_of::<libc::ucred>();
    while control.len() >= HEADER {
        // SAFETY: the slice has at least as many bytes as the type, whose fields are integers.
        let header: libc::cmsghdr = unsafe { ptr::read_unaligned(control.as_ptr().cast()) };
        let len = header.cmsg_len as usize;
        let data = control.get(HEADER..len)?;
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS)
            && data.len() >= LEN
        {
            // SAFETY: as for the header.
            let sender: libc::ucred = unsafe { ptr::read_unaligned(data.as_ptr().cast()) };
            return Some((sender.pid, sender.uid));
        }
        control = control.get(align(len)..)?;
    }
    None
}

/// `CMSG_ALIGN` (`linux/socket.h`).
const fn align(len: usize) -> usize {
    len.next_multiple_of(size_of::<usize>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let header = align(size_of::<libc::cmsghdr>());
        let mut bytes = vec![0; align(header + data.len())];
        let at = |field: usize| field..field + 4;
        let len = header + data.len();
        let lowest = if cfg!(target_endian = "little") { 0 } else { size_of::<usize>() - 4 };
        bytes[at(lowest)].copy_from_slice(&(len as u32).to_ne_bytes());
        bytes[at(std::mem::offset_of!(libc::cmsghdr, cmsg_level))]
            .copy_from_slice(&level.to_ne_bytes());
        bytes[at(std::mem::offset_of!(libc::cmsghdr, cmsg_type))]
            .copy_from_slice(&kind.to_ne_bytes());
        bytes[header..len].copy_from_slice(data);
        bytes
    }

    #[test]
    fn credentials_are_found_within_bounds() {
        let ids: Vec<u8> = [7_i32, 8, 9].iter().flat_map(|id| id.to_ne_bytes()).collect();
        let credentials = message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &ids);
        let other = message(libc::SOL_SOCKET, libc::SCM_RIGHTS, &ids[..5]);
        assert_eq!(sender(&credentials), Some((7, 8)));
        assert_eq!(sender(&[&other[..], &credentials].concat()), Some((7, 8)));
        assert_eq!(sender(&other), None);
        assert_eq!(sender(&message(0, libc::SCM_CREDENTIALS, &ids)), None);
        assert_eq!(sender(&message(libc::SOL_SOCKET, libc::SCM_CREDENTIALS, &ids[..11])), None);
        for len in 0..28 {
            assert_eq!(sender(&credentials[..len]), None, "{len}");
        }
        // A length that would not advance.
        assert_eq!(sender(&[0; 128]), None);
    }
}
