//! The host: where the library may look.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::net::{AddressFamily, netlink, sockopt};
use rustix::process::{Resource, geteuid, getrlimit};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Errno, Handle, Kernel, Resolve, SYSFS_MAGIC, retry};
use crate::netlink::{Kept, Socket, Source};
use crate::sysfs;
use crate::uevents::Uevents;

/// What a fork does to memory that is registered with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ForkSafety {
    /// The kernel gives the child a copy of it (Linux 5.12 and later): nothing has to be done
    /// (`IBV_FORK_UNNEEDED`).
    CopiedOnFork,
    /// The kernel does not report that it does: after a fork the parent may write to pages that the device no longer
    /// sees, unless they were marked `MADV_DONTFORK`, as `ibv_fork_init(3)` has it done.
    MarkPages,
}

/// How much memory this process may lock, in bytes; none is without limit (`RLIMIT_MEMLOCK`, `getrlimit(2)`).
/// Registered memory is locked.
pub fn memlock_limit() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Less than this and hardly any queue can be made, which is where libibverbs warns, too.
const LITTLE_MEMLOCK: u64 = 32 << 10;

/// The directories `/sys` and `/dev`, RDMA netlink, and uevents. Every access of the library goes through these. A
/// clone is the same host.
///
/// # Blocking
/// The library never sleeps or waits for a device to come. Its system calls may wait in the kernel: a sysfs attribute
/// or a netlink answer for a device that is being added or removed, a request about an index without a node for a
/// module to be loaded, a command to a device for its firmware, without limit if that hangs. An asynchronous
/// program makes such calls on a thread for blocking work.
///
/// # Threads
/// A host may be shared by threads. Threads that use one socket that was passed in ([`HostBuilder::netlink`]) wait for
/// one another's exchanges. Otherwise each has a socket of its own.
///
/// # Fork
/// A child needs a host of its own, and a registry made of it. A socket that was passed in is shared with the parent:
/// each takes answers that are meant for the other, and both get errors that have nothing to do with a device. The
/// locks of a host, a [`Registry`](crate::Registry) and a [`Device`](crate::Device) also stay locked in the child if
/// another thread of the parent held them.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: Kernel,
    sys: Handle,
    /// `None` if nothing may be opened.
    dev: Option<Handle>,
    netlink: Source,
    uevents: UeventSource,
    is_sysfs: bool,
}

/// An RDMA netlink socket that stays open ([`Host::keep_netlink`]).
#[derive(Debug)]
#[must_use]
pub struct KeptNetlink {
    _socket: Arc<Socket>,
}

/// Where uevent sockets come from.
#[derive(Debug)]
enum UeventSource {
    /// Each watch opens its own.
    Ambient,
    /// The only one. One watch at a time uses it.
    Given(Mutex<Arc<Uevents>>),
    Denied,
}

/// What a [`Host`] is made of ([`Host::builder`]).
///
/// A directory that is not passed in is opened by [`build`](Self::build), by its path. Where neither is passed in, the
/// library also opens RDMA netlink sockets of its own, each for as long as it needs one. Where one of the directories
/// is passed in, it opens none: nothing can be proved without [`netlink`](Self::netlink).
///
/// With both directories and a socket, `build` and everything after it use no path and make no socket. The
/// process may be sandboxed before or after.
///
/// ```no_run
/// use std::fs::File;
///
/// use uverbs::Host;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let socket: std::os::fd::OwnedFd = unimplemented!();
/// let (sys, dev) = (File::open("/sys")?, File::open("/dev")?);
/// let host = Host::builder().sys(sys).dev(dev).netlink(socket).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[must_use]
pub struct HostBuilder {
    sys: Option<OwnedFd>,
    dev: Option<OwnedFd>,
    without_dev: bool,
    netlink: Netlink,
    uevents: Netlink,
    allow_foreign_sys: bool,
    #[cfg(feature = "sim")]
    machine: Option<crate::sim::Machine>,
}

/// Which sockets to use of a family.
#[derive(Debug, Default)]
enum Netlink {
    /// Sockets of the library's own, unless a directory is passed in.
    #[default]
    Default,
    Given(OwnedFd),
    Denied,
}

impl HostBuilder {
    /// The directory `/sys`, such as a `std::fs::File` or a `cap_std::fs::Dir`.
    pub fn sys(mut self, directory: impl Into<OwnedFd>) -> Self {
        self.sys = Some(directory.into());
        self
    }

    /// The directory `/dev`.
    pub fn dev(mut self, directory: impl Into<OwnedFd>) -> Self {
        self.dev = Some(directory.into());
        self
    }

    /// Uses no `/dev`. Devices are listed, and descriptors that somebody else opened can be
    /// [verified](crate::Device::verify), but no device can be opened.
    pub fn without_dev(mut self) -> Self {
        self.without_dev = true;
        self
    }

    /// The RDMA netlink socket, as of `socket(AF_NETLINK, SOCK_RAW, NETLINK_RDMA)`, blocking or not. It must not be
    /// subscribed to a group. Nobody else may read it: another reader that takes an answer can make a right device
    /// look wrong. While it is open, ib_core cannot be unloaded.
    pub fn netlink(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.netlink = Netlink::Given(socket.into());
        self
    }

    /// Uses no RDMA netlink. Devices are listed, but none can be proved.
    pub fn without_netlink(mut self) -> Self {
        self.netlink = Netlink::Denied;
        self
    }

    /// The uevent socket of a [watch](crate::Registry::watch): `socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT)`,
    /// bound to group 1. `build` makes it non-blocking and has it pass credentials. Only one watch at a time can use
    /// it, and nobody else may read it: a message that another reader takes is lost. It must have neither a filter
    /// (`SO_ATTACH_FILTER`) nor `NETLINK_NO_ENOBUFS`, which lose messages without a sign.
    pub fn uevents(mut self, socket: impl Into<OwnedFd>) -> Self {
        self.uevents = Netlink::Given(socket.into());
        self
    }

    /// Uses no uevents. A [watch](crate::Registry::watch) then finds changes only by looking again and again.
    pub fn without_uevents(mut self) -> Self {
        self.uevents = Netlink::Denied;
        self
    }

    /// Accepts a `/sys` that is not sysfs. Nothing that is opened there is ever proved, and a moved timestamp counts
    /// as another device there, because inode numbers may repeat.
    pub fn allow_foreign_sys(mut self, yes: bool) -> Self {
        self.allow_foreign_sys = yes;
        self
    }

    /// Takes everything from a simulated kernel. Directories and a socket that are passed in are not used then.
    #[cfg(feature = "sim")]
    pub fn simulated(mut self, machine: &crate::sim::Machine) -> Self {
        self.machine = Some(machine.clone());
        self
    }

    /// The host.
    ///
    /// # Errors
    /// `Os` when `/sys` or `/dev` cannot be opened. `Unsupported` when `/sys` is not sysfs, when `openat2(2)` is
    /// missing (Linux before 5.6) or blocked by a filter, when the RDMA socket is subscribed to a group, and when the
    /// uevent socket is not subscribed to group 1.
    pub fn build(self) -> Result<Host> {
        #[cfg(feature = "sim")]
        if let Some(machine) = self.machine {
            let sys = Handle::Sim(machine.root_sys());
            let dev = (!self.without_dev).then(|| Handle::Sim(machine.root_dev()));
            let netlink = match self.netlink {
                Netlink::Denied => Source::Denied,
                Netlink::Default | Netlink::Given(_) => Source::Ambient(Kept::default()),
            };
            let uevents = match self.uevents {
                Netlink::Denied => UeventSource::Denied,
                Netlink::Default | Netlink::Given(_) => UeventSource::Ambient,
            };
            let sources = (netlink, uevents);
            return Host::make(Kernel::Sim(machine), sys, dev, sources, self.allow_foreign_sys);
        }
        let is_ambient = self.sys.is_none() && self.dev.is_none();
        let netlink = match self.netlink {
            Netlink::Default if is_ambient => Source::Ambient(Kept::default()),
            Netlink::Default | Netlink::Denied => Source::Denied,
            Netlink::Given(socket) => {
                Source::Given(Arc::new(Socket::given(Kernel::Linux, Handle::Real(socket))?))
            }
        };
        let uevents = match self.uevents {
            Netlink::Default if is_ambient => UeventSource::Ambient,
            Netlink::Default | Netlink::Denied => UeventSource::Denied,
            Netlink::Given(socket) => {
                check_uevent_socket(&socket)?;
                let socket = Uevents::given(Kernel::Linux, Handle::Real(socket))?;
                UeventSource::Given(Mutex::new(Arc::new(socket)))
            }
        };
        let root = |given: Option<OwnedFd>, path| match given {
            Some(directory) => Ok(Handle::Real(directory)),
            None => open_root(path),
        };
        let sys = root(self.sys, "/sys")?;
        let dev = (!self.without_dev).then(|| root(self.dev, "/dev")).transpose()?;
        // A program that hands in its directories may be sandboxed already: no call more than needed.
        if is_ambient
            && dev.is_some()
            && let Some(limit) = memlock_limit()
            && limit <= LITTLE_MEMLOCK
            && !geteuid().is_root()
        {
            tracing::warn!(limit, "RLIMIT_MEMLOCK is low: memory can hardly be registered");
        }
        Host::make(Kernel::Linux, sys, dev, (netlink, uevents), self.allow_foreign_sys)
    }
}

fn check_uevent_socket(socket: &OwnedFd) -> Result<()> {
    let found = sockopt::socket_domain(socket).and_then(|domain| {
        let is_netlink = domain == AddressFamily::NETLINK;
        Ok(is_netlink && sockopt::socket_protocol(socket)? == Some(netlink::KOBJECT_UEVENT))
    });
    match found {
        Ok(true) => Ok(()),
        Ok(false) => {
            let text = "the socket that was passed in for uevents is another kind of socket";
            let error = Error::new(ErrorKind::Unsupported, text);
            Err(error.with_hint("pass in one of NETLINK_KOBJECT_UEVENT"))
        }
        Err(errno) => Err(Error::call("getsockopt(uevent socket, SO_DOMAIN)", errno)),
    }
}

fn open_root(path: &str) -> Result<Handle> {
    #[allow(clippy::disallowed_methods)] // `/sys` and `/dev`: the only two paths of the library
    let root = Dir::open_ambient_dir(path, ambient_authority()).map_err(|error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let error = Error::call(format!("openat(\"{path}\", O_DIRECTORY)"), errno);
        if errno == Errno::NOENT {
            error.with_hint("mount sysfs at /sys and devtmpfs at /dev")
        } else {
            error
        }
    })?;
    Ok(Handle::Real(OwnedFd::from(root.into_std_file())))
}

impl Host {
    /// The host of this process: `/sys`, `/dev`, and RDMA netlink. A missing netlink is no error
    /// here: devices are listed without it, but none can be proved.
    ///
    /// # Errors
    /// As [`HostBuilder::build`].
    pub fn open() -> Result<Self> {
        Self::builder().build()
    }

    /// A builder, for a caller that passes in some of the host's parts, or all of them.
    pub fn builder() -> HostBuilder {
        HostBuilder::default()
    }

    /// A host on a simulated kernel.
    ///
    /// # Errors
    /// As [`HostBuilder::build`].
    #[cfg(feature = "sim")]
    pub fn simulated(machine: &crate::sim::Machine) -> Result<Self> {
        Self::builder().simulated(machine).build()
    }

    fn make(
        kernel: Kernel,
        sys: Handle,
        dev: Option<Handle>,
        (netlink, uevents): (Source, UeventSource),
        allow_foreign_sys: bool,
    ) -> Result<Self> {
        let probe = retry(|| kernel.openat2(&sys, c".", sysfs::DIRECTORY, Resolve::Sys));
        probe.map_err(|errno| {
            let error = Error::call(sysfs::open_text("sys", c".", sysfs::DIRECTORY), errno);
            match errno {
                Errno::NOSYS => error.into_kind(ErrorKind::Unsupported).with_hint(
                    "openat2 is missing: it needs Linux 5.6, or a filter answers as if it were older",
                ),
                Errno::PERM => error.into_kind(ErrorKind::Unsupported).with_hint(
                    "openat2 is blocked by a seccomp filter, such as a container's: allow it there",
                ),
                _ => error,
            }
        })?;
        let magic = retry(|| kernel.fstatfs_type(&sys))
            .map_err(|errno| Error::call("fstatfs(sys)", errno))?;
        let is_sysfs = magic == SYSFS_MAGIC;
        if !is_sysfs && !allow_foreign_sys {
            let text = format!("/sys is not sysfs: f_type {magic:#x}, not {SYSFS_MAGIC:#x}");
            let error = Error::new(ErrorKind::Unsupported, text);
            return Err(error.with_hint("mount it there: mount -t sysfs sysfs /sys"));
        }
        Ok(Self(Arc::new(Inner { kernel, sys, dev, netlink, uevents, is_sysfs })))
    }

    /// Whether RDMA netlink is available. Without it devices are listed, but none can be proved.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_netlink(&self) -> Result<()> {
        self.netlink().map(drop)
    }

    /// Keeps one RDMA netlink socket open, which all calls of the calling thread on this host and its clones use until
    /// the returned value is dropped. Otherwise each call opens one of its own and closes it. It is for a thread that
    /// queries many devices one after the other.
    ///
    /// Meanwhile ib_core cannot be unloaded, and all answers are of the network namespace that the calling thread is in
    /// now. Where a socket was passed in, that one is used anyway.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// let _kept = registry.host().keep_netlink()?;
    /// for device in &registry.devices()? {
    ///     println!("{device}: {}", device.query()?.node_guid);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Why RDMA netlink cannot be used.
    pub fn keep_netlink(&self) -> Result<KeptNetlink> {
        Ok(KeptNetlink { _socket: self.0.netlink.keep(&self.0.kernel)? })
    }

    /// What a fork does to memory that is registered with a device (`ibv_is_fork_initialized(3)`). It only queries:
    /// nothing is set up by it.
    ///
    /// # Errors
    /// `NetlinkUnavailable` when RDMA netlink is denied.
    pub fn fork_safety(&self) -> Result<ForkSafety> {
        Ok(match self.netlink()?.copies_on_fork()? {
            true => ForkSafety::CopiedOnFork,
            false => ForkSafety::MarkPages,
        })
    }

    pub(crate) fn kernel(&self) -> &Kernel {
        &self.0.kernel
    }

    pub(crate) fn sys(&self) -> &Handle {
        &self.0.sys
    }

    /// # Errors
    /// `Unsupported` if this host has none.
    pub(crate) fn dev(&self) -> Result<&Handle> {
        self.0.dev.as_ref().ok_or_else(|| {
            let text = "this host was made without /dev, so nothing can be opened";
            Error::new(ErrorKind::Unsupported, text)
        })
    }

    pub(crate) fn netlink(&self) -> Result<Arc<Socket>> {
        self.0.netlink.socket(&self.0.kernel)
    }

    /// A uevent socket for one user, whose own socket has a receive buffer of `room` bytes. `None` if this host has
    /// none.
    ///
    /// # Errors
    /// `Busy` while another watch uses the socket that was passed in; `Os`, `PermissionDenied`.
    pub(crate) fn uevents(&self, room: usize) -> Result<Option<Arc<Uevents>>> {
        match &self.0.uevents {
            UeventSource::Ambient => {
                Uevents::open(&self.0.kernel, room).map(|it| Some(Arc::new(it)))
            }
            UeventSource::Denied => Ok(None),
            UeventSource::Given(socket) => {
                let socket = socket.lock().unwrap_or_else(|poison| poison.into_inner());
                if Arc::strong_count(&socket) == 1 {
                    return Ok(Some(Arc::clone(&socket)));
                }
                let text = "another watch uses the uevent socket that was passed in";
                let error = Error::new(ErrorKind::Busy, text);
                Err(error.with_hint("use one watch per socket"))
            }
        }
    }

    /// Whether each user of uevents has a socket of its own.
    pub(crate) fn has_own_uevents(&self) -> bool {
        matches!(self.0.uevents, UeventSource::Ambient)
    }

    /// `/sys` is the kernel's own.
    pub(crate) fn is_sysfs(&self) -> bool {
        self.0.is_sysfs
    }

    /// Inode numbers are never used twice: sysfs on a 64-bit kernel.
    pub(crate) fn has_unique_inodes(&self) -> bool {
        self.0.is_sysfs && cfg!(target_pointer_width = "64")
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;
    use crate::sim::{CallKind, Machine, Verdict};

    /// The first error of a host where every `openat2` fails so.
    fn refused(errno: Errno) -> Error {
        let machine = Machine::new();
        machine.on_call(move |_, call| match call.kind() {
            CallKind::Openat2 => Verdict::Fail(errno.raw_os_error()),
            _ => Verdict::Continue,
        });
        Host::simulated(&machine).expect_err("no openat2")
    }

    #[test]
    fn without_openat2_there_is_no_host() {
        for (errno, kind, hint) in [
            (Errno::NOSYS, ErrorKind::Unsupported, "Linux 5.6"),
            (Errno::PERM, ErrorKind::Unsupported, "seccomp"),
            (Errno::ACCESS, ErrorKind::PermissionDenied, "openat2"),
            (Errno::IO, ErrorKind::Os, "openat2"),
        ] {
            let error = refused(errno);
            assert_eq!((error.kind(), error.errno()), (kind, Some(errno)));
            assert!(error.to_string().contains(hint), "{error}");
        }
    }

    #[test]
    fn netlink_is_asked_for_each_time() {
        let machine = Machine::new();
        let host = Host::simulated(&machine).expect("a host");
        host.check_netlink().expect("a socket");
        machine.deny_netlink(Some(Errno::AFNOSUPPORT.raw_os_error()));
        let error = host.check_netlink().expect_err("no socket");
        assert_eq!(
            (error.kind(), error.errno()),
            (ErrorKind::NetlinkUnavailable, Some(Errno::AFNOSUPPORT))
        );
        machine.deny_netlink(None);
        host.check_netlink().expect("a socket");
        assert!(host.netlink().is_ok());
    }

    #[test]
    fn a_kept_socket_is_shared_until_nobody_keeps_it() {
        let machine = Machine::new();
        let host = Host::simulated(&machine).expect("a host");
        let opened = || {
            machine.record_calls(true);
            host.check_netlink().expect("a socket");
            host.clone().fork_safety().expect("an answer");
            let log = machine.call_log();
            log.iter().filter(|call| call.contains("NETLINK_RDMA")).count()
        };
        assert_eq!(opened(), 2);
        let first = host.keep_netlink().expect("a socket");
        let second = host.clone().keep_netlink().expect("a socket");
        assert_eq!(opened(), 0);
        drop(first);
        assert_eq!(opened(), 0);
        assert_eq!(std::thread::scope(|scope| scope.spawn(opened).join().expect("counted")), 2);
        drop(second);
        assert_eq!((opened(), machine.open_handles()), (2, 2), "only /sys and /dev");
        machine.deny_netlink(Some(Errno::PERM.raw_os_error()));
        let error = host.keep_netlink().expect_err("denied");
        assert_eq!(error.kind(), ErrorKind::NetlinkUnavailable);
        let host = Host::builder().simulated(&machine).without_netlink().build().expect("a host");
        assert!(host.keep_netlink().is_err());
    }

    #[test]
    fn a_foreign_sys_has_to_be_allowed() {
        let machine = Machine::new();
        let host = |allow| Host::builder().simulated(&machine).allow_foreign_sys(allow).build();
        let sysfs = host(false).expect("sysfs");
        assert!(sysfs.is_sysfs() && host(true).expect("sysfs").is_sysfs());
        machine.set_sys_type(0x0102_1994);
        assert_eq!(host(false).expect_err("tmpfs").kind(), ErrorKind::Unsupported);
        let foreign = host(true).expect("allowed");
        assert!(!foreign.is_sysfs() && !foreign.has_unique_inodes());
        assert_eq!(sysfs.has_unique_inodes(), cfg!(target_pointer_width = "64"));
    }
}
