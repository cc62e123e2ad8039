//! The seam: every interaction with the kernel is one call here.
//!
//! Each method is one system call, without retries. Retries are in the layers above, so that tests on the simulated
//! kernel exercise them. The protocol code runs unchanged on both kernels.

pub(crate) mod abi;
mod linux;
pub(crate) mod netlink;
pub(crate) mod nldev;
#[cfg(feature = "sim")]
pub(crate) mod sim;
pub(crate) mod uevent;

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

pub(crate) use abi::{Uncancelled, Undisturbed};
pub(crate) use rustix::fs::{FileType, OFlags};
pub(crate) use rustix::io::Errno;
pub(crate) use uevent::Packet;

/// The result of one system call.
pub(crate) type Sys<T> = Result<T, Errno>;

/// How many times a call is repeated if it was interrupted, or lost a race against a rename or mount elsewhere
/// (`openat2(2)`, EAGAIN).
const RETRIES: usize = 8;

/// Repeats a call while it returns EINTR or EAGAIN, up to a limit. Then it returns the last error.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Sys<T>) -> Sys<T> {
    for _ in 1..RETRIES {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) => {}
            done => return done,
        }
    }
    call()
}

/// Why bytes from the kernel are malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bad(pub(crate) &'static str);

/// `f_type` of sysfs (`linux/magic.h`).
pub(crate) const SYSFS_MAGIC: u64 = 0x6265_6572;

/// The kernel that a host uses.
#[derive(Debug, Clone)]
pub(crate) enum Kernel {
    /// The kernel that this process runs on.
    Linux,
    /// A simulated one.
    #[cfg(feature = "sim")]
    Sim(sim::Machine),
}

/// An owned descriptor, real or simulated. Dropping it closes it.
#[derive(Debug)]
pub(crate) enum Handle {
    /// A descriptor of this process.
    Real(OwnedFd),
    /// A descriptor that exists only in the simulated kernel.
    #[cfg(feature = "sim")]
    Sim(sim::SimHandle),
}

impl AsFd for Handle {
    /// The real descriptor. For a simulated cmd fd, the inert stand-in that it carries.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Real(fd) => fd.as_fd(),
            #[cfg(feature = "sim")]
            Self::Sim(handle) => handle.as_fd(),
        }
    }
}

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl From<Handle> for OwnedFd {
    fn from(handle: Handle) -> Self {
        match handle {
            Handle::Real(fd) => fd,
            #[cfg(feature = "sim")]
            Handle::Sim(handle) => handle.into_owned_fd(),
        }
    }
}

/// How a path is resolved (`openat2(2)`). BENEATH and NO_MAGICLINKS always apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolve {
    /// Under /sys: no symbolic link and no other mount on the way.
    Sys,
    /// Under /dev: no symbolic link on the way. Mounts are allowed, because nodes in rootless containers are bind
    /// mounts.
    Dev,
}

/// The fields of `fstat(2)` that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    pub(crate) nlink: u64,
    /// Device number of a node, as major and minor.
    pub(crate) rdev: (u32, u32),
    /// `st_ctime`: seconds and nanoseconds. Users cannot set it, unlike `st_mtime`.
    pub(crate) ctime: (i64, u32),
}

/// One directory entry. The name lives as long as the call that passes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DirEntry<'a> {
    pub(crate) ino: u64,
    pub(crate) name: &'a [u8],
}

/// The result of one `recvfrom(2)`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagram {
    /// Full length of the message. It exceeds the buffer's length if the message was cut.
    pub(crate) len: usize,
    /// Whether the sender's netlink port is 0, which is the kernel.
    pub(crate) from_kernel: bool,
}

/// One attribute of an ioctl command (`struct ib_uverbs_attr`, `rdma/rdma_user_ioctl_cmds.h`).
#[derive(Debug)]
pub(crate) struct Attr<'a> {
    pub(crate) id: u16,
    pub(crate) data: AttrData<'a>,
}

#[derive(Debug)]
pub(crate) enum AttrData<'a> {
    /// Input bytes, stored inline if there are at most eight.
    In(&'a [u8]),
    /// A constant of eight bytes, stored inline.
    Const(u64),
    /// Room for output. The kernel is given the length `len`, and all of `buffer` is behind it, because drivers up
    /// to 7.0 write their whole response whatever the length.
    Out { buffer: &'a mut [u8], len: u16 },
    /// Room for a descriptor that the command creates. The kernel sets `O_CLOEXEC` on it.
    Descriptor(&'a mut Option<Handle>),
}

/// One command of the verbs ioctl ABI.
#[derive(Debug)]
pub(crate) struct VerbsCall<'a> {
    pub(crate) object: u16,
    pub(crate) method: u16,
    pub(crate) driver_id: u32,
    pub(crate) attrs: &'a mut [Attr<'a>],
}

/// Forwards a call to the real or the simulated kernel.
macro_rules! forward {
    ($kernel:expr, $call:ident ( $handle:expr $(, $arg:expr)* )) => {
        match ($kernel, $handle) {
            (Kernel::Linux, Handle::Real(fd)) => linux::$call(fd.as_fd() $(, $arg)*),
            #[cfg(feature = "sim")]
            (Kernel::Sim(machine), Handle::Sim(handle)) => machine.$call(handle $(, $arg)*),
            #[cfg(feature = "sim")]
            _ => Err(Errno::BADF),
        }
    };
}

impl Kernel {
    /// `openat2(dir, path, {flags | O_CLOEXEC, resolve})`.
    pub(crate) fn openat2(
        &self,
        dir: &Handle,
        path: &CStr,
        flags: OFlags,
        resolve: Resolve,
    ) -> Sys<Handle> {
        forward!(self, openat2(dir, path, flags, resolve))
    }

    /// `fstat(fd)`.
    pub(crate) fn fstat(&self, fd: &Handle) -> Sys<Stat> {
        forward!(self, fstat(fd))
    }

    /// `fstatfs(fd).f_type`.
    pub(crate) fn fstatfs_type(&self, fd: &Handle) -> Sys<u64> {
        forward!(self, fstatfs_type(fd))
    }

    /// `readlinkat(fd, path)` of a link in a directory, or with an empty path of one that was opened with
    /// `O_PATH | O_NOFOLLOW`. Returns the length. The path is one name: nothing limits where a longer one leads.
    pub(crate) fn readlink(&self, fd: &Handle, path: &CStr, buffer: &mut [u8]) -> Sys<usize> {
        forward!(self, readlink(fd, path, buffer))
    }

    /// `pread(fd, buffer, 0)`: for a sysfs attribute, the current value.
    pub(crate) fn pread(&self, fd: &Handle, buffer: &mut [u8]) -> Sys<usize> {
        forward!(self, pread(fd, buffer))
    }

    /// Reads one page of `getdents64(fd)` and passes each entry to `each`. Returns false at the end.
    pub(crate) fn getdents(&self, fd: &Handle, each: &mut dyn FnMut(DirEntry<'_>)) -> Sys<bool> {
        forward!(self, getdents(fd, each))
    }

    /// `socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_RDMA)`.
    pub(crate) fn rdma_socket(&self) -> Sys<Handle> {
        match self {
            Self::Linux => linux::rdma_socket(),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.rdma_socket(),
        }
    }

    /// `getsockname(socket).nl_groups`: the multicast groups that a netlink socket is subscribed to. It has the
    /// first 32 groups. (RDMA has four.)
    pub(crate) fn netlink_groups(&self, socket: &Handle) -> Sys<u32> {
        match (self, socket) {
            (Self::Linux, Handle::Real(fd)) => linux::netlink_groups(fd.as_fd()),
            // Sockets of a simulated kernel have no subscriptions.
            #[cfg(feature = "sim")]
            _ => Ok(0),
        }
    }

    /// `sendto(socket, message, MSG_DONTWAIT, kernel)`.
    pub(crate) fn send(&self, socket: &Handle, message: &[u8]) -> Sys<usize> {
        forward!(self, send(socket, message))
    }

    /// `recvfrom(socket, buffer, MSG_DONTWAIT | MSG_TRUNC)`. The kernel answers before the request returns, so
    /// there is no need to wait.
    pub(crate) fn recv(&self, socket: &Handle, buffer: &mut [u8]) -> Sys<Datagram> {
        forward!(self, recv(socket, buffer))
    }

    /// `fstat` of a descriptor that the library did not open.
    pub(crate) fn fstat_cmd(&self, fd: BorrowedFd<'_>) -> Sys<Stat> {
        match self {
            Self::Linux => linux::fstat(fd),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.fstat_cmd(fd),
        }
    }

    /// `ioctl(fd, RDMA_VERBS_IOCTL, call)`.
    pub(crate) fn verbs_ioctl(&self, fd: BorrowedFd<'_>, call: &mut VerbsCall<'_>) -> Sys<()> {
        match self {
            Self::Linux => abi::verbs_ioctl(fd, call),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.verbs_ioctl(fd, call),
        }
    }

    /// `fcntl(fd, F_DUPFD_CLOEXEC)` of a descriptor that the library did not open. The duplicate refers to the same
    /// open file, whatever happens to the original number.
    pub(crate) fn duplicate(&self, fd: BorrowedFd<'_>) -> Sys<Handle> {
        match self {
            Self::Linux => linux::duplicate(fd),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.duplicate(fd),
        }
    }

    /// `rt_sigprocmask` of all signals. It affects this process even if the host's kernel is simulated. Until the
    /// guard is dropped, the calling thread runs no signal handler, and neither does a thread that it starts
    /// meanwhile.
    pub(crate) fn undisturbed(&self) -> Sys<Undisturbed> {
        Undisturbed::begin()
    }

    /// `clone` of a thread that calls `run` with its thread id, as `RES_PID` reports it. Returns when the thread
    /// has exited. Nothing else runs on that thread, so everything that it has allocated in the kernel is known.
    ///
    /// `run` must not allocate memory, panic or log: the thread shares the thread-local storage of its caller.
    ///
    /// # Errors
    /// The errno of `clone(2)`: limits, a filter, or a pid namespace that this process has only prepared
    /// (`unshare(2)`).
    pub(crate) fn on_new_thread<T: Send>(
        &self,
        run: &mut (impl FnMut(u32) -> T + Send),
        undisturbed: &Undisturbed,
    ) -> Sys<T> {
        match self {
            Self::Linux => abi::on_new_thread(run, undisturbed),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.on_new_thread(run),
        }
    }

    /// `fcntl(fd, F_SETFL, O_NONBLOCK)`.
    pub(crate) fn set_nonblocking(&self, fd: &Handle) -> Sys<()> {
        forward!(self, set_nonblocking(fd))
    }

    /// `read(fd, buffer)`.
    pub(crate) fn read(&self, fd: &Handle, buffer: &mut [u8]) -> Sys<usize> {
        forward!(self, read(fd, buffer))
    }

    /// `ppoll(fd, POLLIN, timeout)`: whether there is data or a condition to read. Without a timeout it waits for
    /// that. (The simulated kernel does not wait: of an epoll descriptor, it advances its clock instead.)
    pub(crate) fn poll(&self, fd: &Handle, timeout: Option<Duration>) -> Sys<bool> {
        forward!(self, poll(fd, timeout))
    }

    /// `faccessat2(fd, "", R_OK | W_OK, AT_EMPTY_PATH | AT_EACCESS)` on a file that was opened with `O_PATH`: whether
    /// this process may open it to read and write. The kernel checks the mode, the device cgroup and security
    /// modules, and does not call the driver. (`ENOSYS` before Linux 5.8.)
    pub(crate) fn check_access(&self, fd: &Handle) -> Sys<()> {
        forward!(self, check_access(fd))
    }

    /// `socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT)`.
    pub(crate) fn uevent_socket(&self) -> Sys<Handle> {
        match self {
            Self::Linux => linux::uevent_socket(),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.uevent_socket(),
        }
    }

    /// `setsockopt(socket, SO_PASSCRED, 1)`: messages are received with their sender's credentials.
    pub(crate) fn pass_credentials(&self, socket: &Handle) -> Sys<()> {
        forward!(self, pass_credentials(socket))
    }

    /// `setsockopt(socket, SO_RCVBUFFORCE, bytes)`, which needs `CAP_NET_ADMIN`, or else `SO_RCVBUF`, which
    /// `net.core.rmem_max` limits.
    pub(crate) fn set_receive_buffer(&self, socket: &Handle, bytes: usize, force: bool) -> Sys<()> {
        forward!(self, set_receive_buffer(socket, bytes, force))
    }

    /// `bind(socket, {nl_pid 0, nl_groups 1})`: subscribes to the kernel's uevents.
    pub(crate) fn subscribe(&self, socket: &Handle) -> Sys<()> {
        forward!(self, subscribe(socket))
    }

    /// `recvmsg(socket, buffer, MSG_DONTWAIT)` on a uevent socket.
    pub(crate) fn recv_uevent(&self, socket: &Handle, buffer: &mut [u8]) -> Sys<Packet> {
        forward!(self, recv_uevent(socket, buffer))
    }

    /// `timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)`.
    pub(crate) fn timer(&self) -> Sys<Handle> {
        match self {
            Self::Linux => linux::timer(),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.timer(),
        }
    }

    /// `timerfd_settime(timer, after)`: the timer becomes readable after that time, and is not readable before.
    pub(crate) fn set_timer(&self, timer: &Handle, after: Duration) -> Sys<()> {
        forward!(self, set_timer(timer, after))
    }

    /// `epoll_create1(EPOLL_CLOEXEC)`.
    pub(crate) fn epoll(&self) -> Sys<Handle> {
        match self {
            Self::Linux => linux::epoll(),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.epoll(),
        }
    }

    /// `epoll_ctl(epoll, EPOLL_CTL_ADD, fd, EPOLLIN)`.
    pub(crate) fn epoll_add(&self, epoll: &Handle, fd: &Handle) -> Sys<()> {
        match (self, epoll, fd) {
            (Self::Linux, Handle::Real(epoll), Handle::Real(fd)) => linux::epoll_add(epoll, fd),
            #[cfg(feature = "sim")]
            (Self::Sim(machine), Handle::Sim(epoll), Handle::Sim(fd)) => {
                machine.epoll_add(epoll, fd)
            }
            #[cfg(feature = "sim")]
            _ => Err(Errno::BADF),
        }
    }

    /// `epoll_ctl(epoll, EPOLL_CTL_DEL, fd)`.
    pub(crate) fn epoll_remove(&self, epoll: &Handle, fd: &Handle) -> Sys<()> {
        match (self, epoll, fd) {
            (Self::Linux, Handle::Real(epoll), Handle::Real(fd)) => linux::epoll_remove(epoll, fd),
            #[cfg(feature = "sim")]
            (Self::Sim(machine), Handle::Sim(epoll), Handle::Sim(fd)) => {
                machine.epoll_remove(epoll, fd)
            }
            #[cfg(feature = "sim")]
            _ => Err(Errno::BADF),
        }
    }

    /// `clock_gettime(CLOCK_MONOTONIC)`, which is no system call: the vDSO answers it.
    pub(crate) fn now(&self) -> Duration {
        match self {
            Self::Linux => linux::now(),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.now(),
        }
    }

    /// `gettid()`, as `RES_PID` names the thread that allocated a context.
    #[cfg(any(uverbs_leave_out, feature = "sim"))]
    pub(crate) fn gettid(&self) -> u32 {
        match self {
            Self::Linux => linux::gettid(),
            #[cfg(feature = "sim")]
            Self::Sim(machine) => machine.gettid(),
        }
    }
}
