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
    Ok(Packet {
        len: len.min(buffer.len()),
        is_cut: header.msg_flags & libc::MSG_TRUNC != 0,
        port: address.nl_pid,
        groups: address.nl_groups,
        sender: sender(&header),
    })
}

/// The first credentials among the control messages of a received message.
fn sender(header: &libc::msghdr) -> Option<(i32, u32)> {
    // SAFETY: `recvmsg` has set the length of the control messages, which are still borrowed by the caller.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: the macros return only headers that lie within the control messages. They may be unaligned.
        let found = unsafe { ptr::read_unaligned(message) };
        // SAFETY: the macro only computes a length.
        let least = unsafe { libc::CMSG_LEN(size_of::<libc::ucred>() as u32) } as usize;
        if (found.cmsg_level, found.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_CREDENTIALS)
            && found.cmsg_len as usize >= least
        {
            // SAFETY: the header is within the control messages, and its data follows it.
            let data = unsafe { libc::CMSG_DATA(message) }.cast::<libc::ucred>();
            // SAFETY: the kernel has written this many bytes there, as the length shows, and the type is three integers.
            let sender = unsafe { ptr::read_unaligned(data) };
            return Some((sender.pid, sender.uid));
        }
        // SAFETY: as for the first header.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    None
}
