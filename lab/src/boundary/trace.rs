//! Stops a program before one of its system calls, on whichever of its threads.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::mem::{MaybeUninit, size_of};
use std::os::unix::fs::FileExt as _;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use libc::{c_int, c_long, c_uint, c_void, pid_t};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::process::Process;
use crate::spawn::MARK;

const OPTIONS: c_int =
    libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;

/// A stop for a system call (`PTRACE_O_TRACESYSGOOD`).
const SYSCALL_STOP: c_int = libc::SIGTRAP | 0x80;

/// How long a program may take, longer than libibverbs waits for a node (5 s).
pub(super) const LIMIT: Duration = Duration::from_secs(30);

/// A system call before which a program is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Point {
    /// The call with that number, counted from the mark.
    Call(usize),
    /// The call with that number among those that name the node in /dev, counted from the previous boundary. What
    /// happened there may have changed the numbers of the calls.
    Node(usize),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(number) => write!(f, "{number}"),
            Self::Node(number) => write!(f, "node {number}"),
        }
    }
}

/// How the program ended.
pub(super) enum End {
    /// It reported a result and is stopped, with everything still open.
    Reported(String),
    /// It ended by itself.
    Died(String),
    Hung(String),
}

pub(super) struct Run {
    pub(super) end: End,
    /// The system calls between the marks: all of them, or those up to and including the last boundary.
    pub(super) calls: Vec<String>,
    /// How many boundaries were reached.
    pub(super) reached: usize,
    pub(super) threads: usize,
    /// Kept for its drop: it kills the program when the reader is done.
    pub(super) process: Process,
}

/// Called by the program that is to be traced, when it is ready.
pub(super) fn trace_me() -> Result<()> {
    ptrace(libc::PTRACE_TRACEME, 0, 0, 0)?;
    stop();
    Ok(())
}

/// Stops the calling process.
pub(super) fn stop() {
    // SAFETY: it takes a number.
    unsafe { libc::raise(libc::SIGSTOP) };
}

/// A system call without effect that is recognisable among the others.
pub(super) fn mark() {
    // SAFETY: no such descriptor exists, so nothing is read or written.
    unsafe { libc::write(-1, MARK.as_ptr().cast(), MARK.len()) };
}

/// Lets the programs' changes of state wait until they are collected.
pub(super) fn prepare() -> Result<()> {
    // A program and its tracer take turns. On one processor neither has to wake the other up, which takes an
    // emulated kernel longer than the calls themselves.
    let mut one = CpuSet::new();
    one.set(0);
    sched_setaffinity(None, &one)?;
    let set = child_signal();
    // SAFETY: `set` was made.
    let blocked = unsafe { libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    ensure!(blocked == 0, "sigprocmask: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Runs a program to its first mark, and on to each boundary in turn. Calls `meanwhile` there, with the boundary's
/// position in `at`, and continues the program until it reports its result.
pub(super) fn run(
    process: Process,
    at: &[Point],
    limit: Duration,
    mut meanwhile: impl FnMut(usize) -> Result<()>,
) -> Result<Run> {
    let mut tracer = Tracer {
        process,
        threads: BTreeMap::new(),
        calls: Vec::new(),
        marks: 0,
        at: at.to_vec(),
        nodes: 0,
        reached: 0,
        limit,
        started: Instant::now(),
    };
    let end = loop {
        match tracer.next()? {
            Next::Boundary(tid) => {
                meanwhile(tracer.reached - 1)?;
                // Only the program's own time counts.
                tracer.started = Instant::now();
                tracer.resume(tid, 0)?;
            }
            Next::End(end) => break end,
        }
    };
    let (calls, threads) = (tracer.calls, tracer.threads.len());
    Ok(Run { end, calls, reached: tracer.reached, threads, process: tracer.process })
}

struct Tracer {
    process: Process,
    /// All threads that existed, with the system call that each was last seen at.
    threads: BTreeMap<pid_t, String>,
    calls: Vec<String>,
    marks: usize,
    /// The boundaries, and how many of them were reached.
    at: Vec<Point>,
    /// How many calls named the node since the last boundary.
    nodes: usize,
    reached: usize,
    limit: Duration,
    started: Instant,
}

enum Next {
    Boundary(pid_t),
    End(End),
}

impl Tracer {
    fn next(&mut self) -> Result<Next> {
        loop {
            let Some((tid, status)) = self.process.changed()? else {
                if self.started.elapsed() > self.limit {
                    let threads: Vec<_> = self.threads.values().map(String::as_str).collect();
                    return Ok(Next::End(End::Hung(threads.join("; "))));
                }
                wait_a_moment();
                continue;
            };
            if !libc::WIFSTOPPED(status) {
                if tid == self.process.pid {
                    let output = self.process.output();
                    return Ok(Next::End(End::Died(format!("status {status:#x} {output}"))));
                }
                continue;
            }
            let signal = libc::WSTOPSIG(status);
            if tid == self.process.pid && signal == libc::SIGSTOP {
                if !self.threads.is_empty() {
                    return Ok(Next::End(End::Reported(self.process.output())));
                }
                ptrace(libc::PTRACE_SETOPTIONS, tid, 0, OPTIONS as usize)?;
            }
            if signal == SYSCALL_STOP {
                if self.is_boundary(tid)? {
                    return Ok(Next::Boundary(tid));
                }
                self.resume(tid, 0)?;
            } else if self.threads.contains_key(&tid) && status >> 16 == 0 {
                self.resume(tid, signal)?;
            } else {
                // A new thread begins with a stop, and its creation stops, too.
                self.threads.entry(tid).or_default();
                self.resume(tid, 0)?;
            }
        }
    }

    /// Records a system call that is about to be entered.
    fn is_boundary(&mut self, tid: pid_t) -> Result<bool> {
        let Some((number, args)) = entry(tid)? else { return Ok(false) };
        if number == libc::SYS_write && args[0] as i32 == -1 && args[2] == MARK.len() as u64 {
            self.marks += 1;
            return Ok(false);
        }
        if self.marks != 1 {
            return Ok(false);
        }
        let text = text(tid, number, &args);
        let names_node = names_node(&text);
        let here = match self.at.get(self.reached) {
            Some(Point::Call(number)) => *number == self.calls.len(),
            Some(Point::Node(number)) => names_node && *number == self.nodes,
            None => false,
        };
        self.nodes = if here { 0 } else { self.nodes + usize::from(names_node) };
        self.threads.insert(tid, text.clone());
        self.calls.push(text);
        if here {
            self.reached += 1;
            if self.reached == self.at.len() {
                // Calls after the last boundary need not be recorded.
                self.marks = 2;
            }
        }
        Ok(here)
    }

    fn resume(&self, tid: pid_t, signal: c_int) -> Result<()> {
        let how = if self.marks < 2 { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        match ptrace(how, tid, 0, signal as usize) {
            // It was killed or is ending: that is reported, too.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            done => Ok(done.map(drop)?),
        }
    }
}

fn child_signal() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `set` is writable.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was just made.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD) };
    // SAFETY: as before.
    unsafe { set.assume_init() }
}

/// Waits until a child changes, but not long.
fn wait_a_moment() {
    let set = child_signal();
    let limit = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    // SAFETY: both live for the call, and nobody reads the signal's information.
    unsafe { libc::sigtimedwait(&raw const set, ptr::null_mut(), &raw const limit) };
}

fn ptrace(request: c_uint, tid: pid_t, addr: usize, data: usize) -> std::io::Result<c_long> {
    // SAFETY: `data` is the argument that the request takes: nothing, a number, or a buffer of `addr` bytes.
    let result = unsafe { libc::ptrace(request, tid, addr as *mut c_void, data as *mut c_void) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// The system call that is about to be entered; `None` if one is about to be left.
fn entry(tid: pid_t) -> Result<Option<(c_long, [u64; 6])>> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    ptrace(libc::PTRACE_GET_SYSCALL_INFO, tid, size, info.as_mut_ptr().expose_provenance())?;
    // SAFETY: all zeroes is a valid value, and the kernel wrote at most its size.
    let info = unsafe { info.assume_init() };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: at an entry the kernel fills in this member.
    let entry = unsafe { info.u.entry };
    Ok(Some((entry.nr as c_long, entry.args)))
}

/// Whether a call names the node in /dev.
pub(super) fn names_node(call: &str) -> bool {
    call.contains("infiniband/uverbs0")
}

/// A call, with the path that it names.
fn text(tid: pid_t, number: c_long, args: &[u64; 6]) -> String {
    let (name, path) = match number {
        libc::SYS_openat2 => ("openat2", Some(args[1])),
        libc::SYS_openat => ("openat", Some(args[1])),
        libc::SYS_readlinkat => ("readlinkat", Some(args[1])),
        libc::SYS_readlink => ("readlink", Some(args[0])),
        libc::SYS_newfstatat => ("newfstatat", Some(args[1])),
        libc::SYS_statx => ("statx", Some(args[1])),
        libc::SYS_fstat => ("fstat", None),
        libc::SYS_fstatfs => ("fstatfs", None),
        libc::SYS_read => ("read", None),
        libc::SYS_pread64 => ("pread64", None),
        libc::SYS_getdents64 => ("getdents64", None),
        libc::SYS_socket => ("socket", None),
        libc::SYS_sendto => ("sendto", None),
        libc::SYS_recvfrom => ("recvfrom", None),
        libc::SYS_recvmsg => ("recvmsg", None),
        libc::SYS_bind => ("bind", None),
        libc::SYS_ioctl => ("ioctl", None),
        libc::SYS_close => ("close", None),
        libc::SYS_write => ("write", None),
        libc::SYS_lseek => ("lseek", None),
        libc::SYS_fcntl => ("fcntl", None),
        libc::SYS_gettid => ("gettid", None),
        libc::SYS_mmap => ("mmap", None),
        libc::SYS_munmap => ("munmap", None),
        libc::SYS_mprotect => ("mprotect", None),
        libc::SYS_madvise => ("madvise", None),
        libc::SYS_brk => ("brk", None),
        libc::SYS_getrandom => ("getrandom", None),
        libc::SYS_futex => ("futex", None),
        libc::SYS_clone => ("clone", None),
        libc::SYS_clone3 => ("clone3", None),
        libc::SYS_exit => ("exit", None),
        libc::SYS_exit_group => ("exit_group", None),
        libc::SYS_getpid => ("getpid", None),
        libc::SYS_getppid => ("getppid", None),
        libc::SYS_sched_yield => ("sched_yield", None),
        libc::SYS_rseq => ("rseq", None),
        libc::SYS_set_robust_list => ("set_robust_list", None),
        libc::SYS_sigaltstack => ("sigaltstack", None),
        libc::SYS_rt_sigaction => ("rt_sigaction", None),
        libc::SYS_rt_sigprocmask => ("rt_sigprocmask", None),
        libc::SYS_sched_getaffinity => ("sched_getaffinity", None),
        _ => return format!("call {number}"),
    };
    match path.map(|address| read_text(tid, address)) {
        Some(Ok(path)) => format!("{name} {path:?}"),
        _ => name.to_owned(),
    }
}

fn read_text(tid: pid_t, address: u64) -> Result<String> {
    let mut bytes = [0; 128];
    let memory = std::fs::File::open(format!("/proc/{tid}/mem"))?;
    let len = memory.read_at(&mut bytes, address)?;
    let text = bytes[..len].split(|byte| *byte == 0).next().context("empty")?;
    Ok(String::from_utf8_lossy(text).into_owned())
}
