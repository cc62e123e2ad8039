//! Stops a program before one of its system calls.
#![allow(unsafe_code)]

use std::mem::{MaybeUninit, size_of};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::ptr;

use anyhow::{Context as _, Result, bail, ensure};
use libc::{c_int, c_long, c_uint, c_void, pid_t};

use crate::roles::MARK;

const OPTIONS: c_int = libc::PTRACE_O_EXITKILL | libc::PTRACE_O_TRACESYSGOOD;

/// Runs a program to its mark, and on to its `at`th system call after it (to the second mark without
/// one); does `meanwhile` there, and lets it go on by itself. Gives what was called since the mark.
pub(super) fn run(
    command: &mut Command,
    at: Option<usize>,
    meanwhile: impl FnOnce() -> Result<()>,
) -> Result<(Child, Vec<String>)> {
    let traceme = || ptrace(libc::PTRACE_TRACEME, 0, 0, ptr::null_mut()).map(drop);
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(traceme) };
    let mut child = command.spawn()?;
    let pid = pid_t::try_from(child.id())?;
    match to_boundary(pid, at) {
        Ok(calls) => {
            let done = meanwhile();
            ptrace(libc::PTRACE_DETACH, pid, 0, ptr::null_mut())?;
            done.map(|()| (child, calls))
        }
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

fn to_boundary(pid: pid_t, at: Option<usize>) -> Result<Vec<String>> {
    ensure!(wait(pid)? == libc::SIGTRAP, "not stopped by its exec");
    ptrace(libc::PTRACE_SETOPTIONS, pid, 0, OPTIONS as usize as *mut c_void)?;
    // What comes before is none of ours: it stops itself when it is ready.
    loop {
        ptrace(libc::PTRACE_CONT, pid, 0, ptr::null_mut())?;
        if wait(pid)? == libc::SIGSTOP {
            break;
        }
    }
    let (mut calls, mut marked, mut signal) = (Vec::new(), false, 0);
    loop {
        ptrace(libc::PTRACE_SYSCALL, pid, 0, signal as usize as *mut c_void)?;
        let stopped = wait(pid)?;
        signal = 0;
        if stopped != libc::SIGTRAP | 0x80 {
            signal = stopped;
            continue;
        }
        let Some((number, args)) = entry(pid)? else { continue };
        let is_mark = number == libc::SYS_write && args[0] == 2 && args[2] == MARK.len() as u64;
        match (is_mark, marked) {
            (true, false) => marked = true,
            (true, true) => return Ok(calls),
            (false, false) => {}
            (false, true) => {
                let here = at == Some(calls.len());
                let named = here || at.is_none();
                calls.push(if named { text(pid, number, &args) } else { String::new() });
                if here {
                    return Ok(calls);
                }
            }
        }
    }
}

fn ptrace(request: c_uint, pid: pid_t, addr: usize, data: *mut c_void) -> std::io::Result<c_long> {
    // SAFETY: `data` is what the request takes: nothing, a number, or a buffer of `addr` bytes.
    let result = unsafe { libc::ptrace(request, pid, addr as *mut c_void, data) };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}

/// The signal of its next stop.
fn wait(pid: pid_t) -> Result<c_int> {
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    ensure!(waited == pid, "waitpid: {}", std::io::Error::last_os_error());
    if !libc::WIFSTOPPED(status) {
        bail!("it ended before the boundary, with status {status:#x}");
    }
    Ok(libc::WSTOPSIG(status))
}

/// The system call that is about to be entered; none when one is about to be left.
fn entry(pid: pid_t) -> Result<Option<(c_long, [u64; 6])>> {
    let mut info = MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    ptrace(libc::PTRACE_GET_SYSCALL_INFO, pid, size, info.as_mut_ptr().cast())?;
    // SAFETY: all zeroes is a value of it, and the kernel wrote no more than its size.
    let info = unsafe { info.assume_init() };
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return Ok(None);
    }
    // SAFETY: at an entry this is what the kernel filled in.
    let entry = unsafe { info.u.entry };
    Ok(Some((entry.nr as c_long, entry.args)))
}

/// A call, with the path that it names.
fn text(pid: pid_t, number: c_long, args: &[u64; 6]) -> String {
    let (name, path) = match number {
        libc::SYS_openat2 => ("openat2", Some(args[1])),
        libc::SYS_openat => ("openat", Some(args[1])),
        libc::SYS_readlinkat => ("readlinkat", Some(args[1])),
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
        libc::SYS_brk => ("brk", None),
        libc::SYS_getrandom => ("getrandom", None),
        _ => return format!("call {number}"),
    };
    match path.map(|address| read_text(pid, address)) {
        Some(Ok(path)) => format!("{name} {path:?}"),
        _ => name.to_owned(),
    }
}

fn read_text(pid: pid_t, address: u64) -> Result<String> {
    let mut bytes = [0; 128];
    let memory = std::fs::File::open(format!("/proc/{pid}/mem"))?;
    let len = memory.read_at(&mut bytes, address)?;
    let text = bytes[..len].split(|byte| *byte == 0).next().context("empty")?;
    Ok(String::from_utf8_lossy(text).into_owned())
}
