//! The host: where the library may look, and what it demands.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use rustix::process::{Resource, geteuid, getrlimit};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Errno, Handle, Kernel, Resolve, SYSFS_MAGIC, retry};
use crate::netlink::{Socket, Source};
use crate::sysfs;

/// What is demanded of a host, and of every list and open on it. The default is the strictest that works on
/// an ordinary host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// Take a moved timestamp of a device's `ibdev` attribute for another device. The kernel moves
    /// it when it evicts a cached inode, so that this refuses devices that were not replaced. It does not
    /// change which [`Instance`](crate::Instance)s are equal.
    pub strict_timestamps: bool,
    /// Accept a `/sys` that is not sysfs. Nothing that is opened there is ever proved, and a moved timestamp
    /// counts as another device there, because inode numbers may repeat.
    pub allow_foreign_sys: bool,
}

impl Policy {
    /// The default policy.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`strict_timestamps`](Self::strict_timestamps).
    pub fn strict_timestamps(mut self, yes: bool) -> Self {
        self.strict_timestamps = yes;
        self
    }

    /// Sets [`allow_foreign_sys`](Self::allow_foreign_sys).
    pub fn allow_foreign_sys(mut self, yes: bool) -> Self {
        self.allow_foreign_sys = yes;
        self
    }
}

/// What a fork does to memory that is registered with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ForkSafety {
    /// The kernel gives the child a copy of it (Linux 5.12 and later): nothing has to be done
    /// (`IBV_FORK_UNNEEDED`).
    CopiedOnFork,
    /// The kernel does not say so: after a fork the parent may write to pages that the device no longer
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

/// The directories `/sys` and `/dev` and the RDMA netlink socket, and a [`Policy`].
///
/// Everything the library does goes through these. A clone is the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    kernel: Kernel,
    sys: Handle,
    dev: Handle,
    netlink: Source,
    policy: Policy,
    is_sysfs: bool,
}

impl Host {
    /// The host this process sees: `/sys`, `/dev`, and RDMA netlink. A missing netlink is no error
    /// here: devices are listed without it, but none can be proved.
    ///
    /// # Errors
    /// `Os` when `/sys` or `/dev` cannot be opened, `Unsupported` when `/sys` is not sysfs, or when
    /// `openat2(2)` is missing (Linux before 5.6) or blocked by a filter.
    pub fn open() -> Result<Self> {
        Self::open_with(Policy::default())
    }

    /// The same with a policy.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(policy: Policy) -> Result<Self> {
        #[allow(clippy::disallowed_methods)] // the only two paths of the library
        let root = |path: &'static str| {
            Dir::open_ambient_dir(path, ambient_authority()).map_err(|error| {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                Error::call(format!("openat(\"{path}\", O_DIRECTORY)"), errno)
            })
        };
        let (sys, dev) = (root("/sys")?, root("/dev")?);
        if let Some(limit) = memlock_limit()
            && limit <= LITTLE_MEMLOCK
            && !geteuid().is_root()
        {
            tracing::warn!(limit, "RLIMIT_MEMLOCK is low: memory can hardly be registered");
        }
        Self::make(Kernel::Linux, real(sys), real(dev), Source::Ambient, policy)
    }

    /// A host of what is handed in: the directories `/sys` and `/dev`, and a socket
    /// `socket(AF_NETLINK, SOCK_RAW, NETLINK_RDMA)`. With these nothing else is needed: no path,
    /// no `/proc`, no further socket; the process may be sandboxed before or after.
    ///
    /// The socket may be blocking or not. Nobody else may read it: whoever takes one of its answers can have a
    /// right device called wrong. It must not be subscribed to a group. While it is open, ib_core cannot be
    /// unloaded. Without one, devices are listed but none can be proved.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Unsupported` when the socket is subscribed to a group.
    pub fn from_parts(sys: Dir, dev: Dir, netlink: Option<OwnedFd>) -> Result<Self> {
        Self::from_parts_with(sys, dev, netlink, Policy::default())
    }

    /// The same with a policy.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_parts_with(
        sys: Dir,
        dev: Dir,
        netlink: Option<OwnedFd>,
        policy: Policy,
    ) -> Result<Self> {
        let netlink = match netlink {
            None => Source::Denied,
            Some(socket) => {
                Source::Given(Arc::new(Socket::given(Kernel::Linux, Handle::Real(socket))?))
            }
        };
        Self::make(Kernel::Linux, real(sys), real(dev), netlink, policy)
    }

    /// A host on a simulated kernel.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(feature = "sim")]
    pub fn simulated(machine: &crate::sim::Machine, policy: Policy) -> Result<Self> {
        let (sys, dev) = (Handle::Sim(machine.root_sys()), Handle::Sim(machine.root_dev()));
        Self::make(Kernel::Sim(machine.clone()), sys, dev, Source::Ambient, policy)
    }

    fn make(
        kernel: Kernel,
        sys: Handle,
        dev: Handle,
        netlink: Source,
        policy: Policy,
    ) -> Result<Self> {
        let probe = retry(|| kernel.openat2(&sys, c".", sysfs::DIRECTORY, Resolve::Sys));
        probe.map_err(|errno| {
            let error = Error::call(sysfs::open_text("sys", c".", sysfs::DIRECTORY), errno);
            match errno {
                Errno::NOSYS => error.into_kind(ErrorKind::Unsupported).hint(
                    "openat2 is missing: it needs Linux 5.6, or a filter answers as if it were older",
                ),
                Errno::PERM => error.into_kind(ErrorKind::Unsupported).hint(
                    "openat2 is blocked by a seccomp filter, such as a container's: allow it there",
                ),
                _ => error,
            }
        })?;
        let magic = retry(|| kernel.fstatfs_type(&sys))
            .map_err(|errno| Error::call("fstatfs(sys)", errno))?;
        let is_sysfs = magic == SYSFS_MAGIC;
        if !is_sysfs && !policy.allow_foreign_sys {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("/sys is not sysfs (f_type {magic:#x}, not {SYSFS_MAGIC:#x})"),
            ));
        }
        Ok(Self(Arc::new(Inner { kernel, sys, dev, netlink, policy, is_sysfs })))
    }

    /// What is demanded of this host.
    pub fn policy(&self) -> &Policy {
        &self.0.policy
    }

    /// Whether RDMA netlink can be asked. Without it devices are listed, but none can be proved.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn check_netlink(&self) -> Result<()> {
        self.netlink().map(drop)
    }

    /// What a fork does to memory that is registered with a device (`ibv_is_fork_initialized(3)`). It only asks:
    /// nothing is set up by it.
    ///
    /// # Errors
    /// `Unproven` when RDMA netlink is denied.
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

    pub(crate) fn dev(&self) -> &Handle {
        &self.0.dev
    }

    pub(crate) fn netlink(&self) -> Result<Arc<Socket>> {
        self.0.netlink.socket(&self.0.kernel)
    }

    /// `/sys` is the kernel's own.
    pub(crate) fn is_sysfs(&self) -> bool {
        self.0.is_sysfs
    }

    /// Inode numbers are never used twice: sysfs on a 64-bit kernel.
    pub(crate) fn has_unique_inodes(&self) -> bool {
        self.0.is_sysfs && cfg!(target_pointer_width = "64")
    }

    /// A moved timestamp is another device: inode numbers may repeat, or the policy demands it.
    pub(crate) fn heeds_timestamps(&self) -> bool {
        self.0.policy.strict_timestamps || !self.has_unique_inodes()
    }
}

fn real(dir: Dir) -> Handle {
    Handle::Real(OwnedFd::from(dir.into_std_file()))
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
        Host::simulated(&machine, Policy::new()).expect_err("no openat2")
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
        let host = Host::simulated(&machine, Policy::new()).expect("a host");
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
    fn a_foreign_sys_has_to_be_allowed() {
        let machine = Machine::new();
        let host = |policy| Host::simulated(&machine, policy);
        let sysfs = host(Policy::new()).expect("sysfs");
        assert!(sysfs.is_sysfs() && sysfs.policy() == &Policy::new());
        assert!(host(Policy::new().allow_foreign_sys(true)).expect("sysfs").is_sysfs());
        machine.set_sys_type(0x0102_1994);
        assert_eq!(host(Policy::new()).expect_err("tmpfs").kind(), ErrorKind::Unsupported);
        let foreign = host(Policy::new().allow_foreign_sys(true)).expect("allowed");
        assert!(!foreign.is_sysfs() && !foreign.has_unique_inodes());
        assert_eq!(sysfs.has_unique_inodes(), cfg!(target_pointer_width = "64"));
    }
}
