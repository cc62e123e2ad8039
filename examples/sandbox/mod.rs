//! A sandbox for system calls, with a list of allowed calls. Every other call fails with `EPERM`.
//!
//! A filter sees numbers, not memory: it cannot check the path or the flags of an `openat2`. If that call is on the
//! list, code that took over the process could open any path with it, and only Landlock or a mount namespace
//! prevents that. If it is not on the list, nothing can be opened.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::ensure;
use rustix::io::Errno;
use rustix::{fs, net};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

/// An allowed system call. If an argument is given, only with that value.
pub(crate) struct Allowed(i64, Option<(u8, u64)>);

pub(crate) const fn any(call: i64) -> Allowed {
    Allowed(call, None)
}

pub(crate) const fn only(call: i64, argument: u8, value: u64) -> Allowed {
    Allowed(call, Some((argument, value)))
}

/// `RDMA_VERBS_IOCTL` (`rdma/rdma_user_ioctl_cmds.h`): every command to a verbs device.
const RDMA_VERBS_IOCTL: u64 = 0xc018_1b01;

/// Private memory, without a file or device.
const MEMORY: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;

/// The flags of the thread that proves.
const THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// What a Rust program needs to compute, print and exit.
pub(crate) const RUNTIME: &[Allowed] = &[
    any(libc::SYS_write),            // to an open descriptor
    any(libc::SYS_close),            // closes a descriptor
    any(libc::SYS_brk),              // the allocator
    only(libc::SYS_mmap, 3, MEMORY), // the allocator
    any(libc::SYS_munmap),           // the allocator, and the signal stack at the end
    any(libc::SYS_mremap),           // the allocator, for a large block that grows
    any(libc::SYS_madvise),          // the allocator
    any(libc::SYS_futex),            // waiting for a lock
    any(libc::SYS_rt_sigprocmask),   // a thread blocks signals while it proves
    any(libc::SYS_sigaltstack),      // the signal stack at the end
    any(libc::SYS_exit_group),       // the end
];

/// What is needed to query a context, and to prove, through its descriptor and a netlink socket, which device it is
/// on.
pub(crate) const PROVE: &[Allowed] = &[
    only(libc::SYS_ioctl, 1, RDMA_VERBS_IOCTL), // commands to the device
    only(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u64), // holds the descriptor during the proof
    any(libc::SYS_fstat),                       // the device number of the descriptor
    any(libc::SYS_sendto),                      // requests on the netlink socket
    any(libc::SYS_recvfrom),                    // their answers
    only(libc::SYS_clone, 0, THREAD),           // the thread that proves, and no process
    any(libc::SYS_exit),                        // that thread exits
];

/// From here on, this thread and everything that it starts may only make the calls on these lists.
pub(crate) fn lock_in(lists: &[&[Allowed]]) -> anyhow::Result<()> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for Allowed(call, argument) in lists.iter().copied().flatten() {
        let rules = rules.entry(*call).or_default();
        if let Some((argument, value)) = *argument {
            let (width, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
            let condition = SeccompCondition::new(argument, width, equal, value)?;
            rules.push(SeccompRule::new(vec![condition])?);
        }
    }
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch)?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Ok(())
}

/// Tries the calls that both sandboxes must refuse, and fails unless all are refused.
pub(crate) fn try_forbidden() -> anyhow::Result<()> {
    let stdin = io::stdin();
    let stdin = stdin.as_fd();
    let peer = net::SocketAddrUnix::new("/run/anything")?;
    let (null, flags) = ("/dev/null", fs::OFlags::RDONLY);
    #[allow(clippy::disallowed_methods)] // to be refused
    is_refused("openat", fs::open(null, flags, fs::Mode::empty()))?;
    is_refused("execve", Err::<(), _>(Command::new("/bin/true").exec()))?;
    is_refused("a process", Command::new("/bin/true").spawn())?;
    is_refused("socket", net::socket(net::AddressFamily::UNIX, net::SocketType::STREAM, None))?;
    is_refused("connect", net::connect(stdin, &peer))?;
    is_refused("another ioctl", rustix::io::ioctl_fionread(stdin))?;
    is_refused("another fcntl", fs::fcntl_getfl(stdin))
}

/// Checks that the filter refuses a call, and that it does not fail for another reason.
pub(crate) fn is_refused<T, E>(call: &str, result: Result<T, E>) -> anyhow::Result<()>
where
    io::Error: From<E>,
{
    let error = result.map_err(io::Error::from).err();
    let errno = error.as_ref().and_then(Errno::from_io_error);
    ensure!(errno == Some(Errno::PERM), "{call} is not refused: {error:?}");
    println!("refused: {call}");
    Ok(())
}
