//! The kernel that this process runs on.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{self, PollFd, PollFlags, Timespec, epoll};
use rustix::fs::{RawDir, major, minor};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recvfrom, sendto,
    socket_with,
};

use rustix::net::sockopt;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::uevent::{KERNEL_GROUP, Packet};
use super::{Datagram, DirEntry, FileType, Handle, OFlags, Resolve, Stat, Sys, abi};

/// The size of a page of names, the same as glibc's readdir uses.
const DIR_PAGE: usize = 32 * 1024;

pub(super) fn openat2(
    dir: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
    resolve: Resolve,
) -> Sys<Handle> {
    abi::openat2(dir, path, flags, resolve).map(Handle::Real)
}

// The types of the fields differ between architectures. Some of these casts are redundant here.
#[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
pub(super) fn fstat(fd: BorrowedFd<'_>) -> Sys<Stat> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(Stat {
        dev: stat.st_dev as u64,
        ino: stat.st_ino as u64,
        kind: FileType::from_raw_mode(stat.st_mode as _),
        nlink: stat.st_nlink as u64,
        rdev: (major(stat.st_rdev as _), minor(stat.st_rdev as _)),
        ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
    })
}

#[allow(clippy::unnecessary_cast)]
pub(super) fn fstatfs_type(fd: BorrowedFd<'_>) -> Sys<u64> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u64)
}

pub(super) fn readlink(fd: BorrowedFd<'_>, path: &CStr, buffer: &mut [u8]) -> Sys<usize> {
    rustix::fs::readlinkat_raw(fd, path, buffer)
}

pub(super) fn pread(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<usize> {
    rustix::io::pread(fd, buffer, 0)
}

pub(super) fn getdents(fd: BorrowedFd<'_>, each: &mut dyn FnMut(DirEntry<'_>)) -> Sys<bool> {
    let mut page = [MaybeUninit::uninit(); DIR_PAGE];
    let mut dir = RawDir::new(fd, &mut page);
    let mut found = false;
    // The position in the directory belongs to the descriptor, so a new RawDir for each page continues there. The
    // first error ends the page, because RawDir would repeat it endlessly.
    while !found || !dir.is_buffer_empty() {
        match dir.next() {
            None => return Ok(false),
            Some(entry) => {
                let entry = entry?;
                each(DirEntry { ino: entry.ino(), name: entry.file_name().to_bytes() });
                found = true;
            }
        }
    }
    Ok(true)
}

pub(super) fn rdma_socket() -> Sys<Handle> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::RDMA))
        .map(Handle::Real)
}

pub(super) fn netlink_groups(socket: BorrowedFd<'_>) -> Sys<u32> {
    let address = rustix::net::getsockname(socket)?;
    Ok(netlink::SocketAddrNetlink::try_from(address)?.groups())
}

pub(super) fn send(socket: BorrowedFd<'_>, message: &[u8]) -> Sys<usize> {
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    sendto(socket, message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL, &kernel)
}

pub(super) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<Datagram> {
    let (_, len, from) = recvfrom(socket, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
    let from_kernel = from
        .and_then(|address| netlink::SocketAddrNetlink::try_from(address).ok())
        .is_some_and(|address| address.pid() == 0);
    Ok(Datagram { len, from_kernel })
}

pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Sys<Handle> {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).map(Handle::Real)
}

pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> Sys<()> {
    rustix::fs::fcntl_setfl(fd, OFlags::NONBLOCK)
}

pub(super) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<usize> {
    rustix::io::read(fd, buffer)
}

pub(super) fn poll(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> Sys<bool> {
    // A timeout that does not fit into a timespec counts as no timeout.
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    Ok(event::poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], timeout.as_ref())? > 0)
}

pub(super) fn check_access(fd: BorrowedFd<'_>) -> Sys<()> {
    abi::check_access(fd)
}

pub(super) fn uevent_socket() -> Sys<Handle> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let protocol = Some(netlink::KOBJECT_UEVENT);
    socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol).map(Handle::Real)
}

pub(super) fn pass_credentials(socket: BorrowedFd<'_>) -> Sys<()> {
    sockopt::set_socket_passcred(socket, true)
}

pub(super) fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: usize, force: bool) -> Sys<()> {
    match force {
        true => sockopt::set_socket_recv_buffer_size_force(socket, bytes),
        false => sockopt::set_socket_recv_buffer_size(socket, bytes),
    }
}

pub(super) fn subscribe(socket: BorrowedFd<'_>) -> Sys<()> {
    rustix::net::bind(socket, &netlink::SocketAddrNetlink::new(0, KERNEL_GROUP))
}

pub(super) fn recv_uevent(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Sys<Packet> {
    abi::recv_uevent(socket, buffer)
}

pub(super) fn timer() -> Sys<Handle> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    timerfd_create(TimerfdClockId::Monotonic, flags).map(Handle::Real)
}

pub(super) fn set_timer(timer: BorrowedFd<'_>, after: Duration) -> Sys<()> {
    // Zero would disarm it.
    let after = after.max(Duration::from_nanos(1));
    let it_value = Timespec::try_from(after).map_err(|_| super::Errno::INVAL)?;
    let once = Itimerspec { it_interval: Timespec::default(), it_value };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).map(drop)
}

pub(super) fn epoll() -> Sys<Handle> {
    epoll::create(epoll::CreateFlags::CLOEXEC).map(Handle::Real)
}

pub(super) fn epoll_add(epoll: &OwnedFd, fd: &OwnedFd) -> Sys<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
}

pub(super) fn epoll_remove(epoll: &OwnedFd, fd: &OwnedFd) -> Sys<()> {
    epoll::delete(epoll, fd)
}

pub(super) fn now() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(any(uverbs_leave_out, feature = "sim"))]
pub(super) fn gettid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}
