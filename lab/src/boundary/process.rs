//! Processes without an exec: a fork of the lab that goes its own way, which saves most of the time
//! that an execution takes on an emulated kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libc::{c_int, pid_t};
use rustix::fs::OFlags;

/// A fork of this process. Killed when it is dropped.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: pid_t,
    ended: bool,
    said: File,
}

/// The descriptor on which a fork talks to its parent.
const SAY: c_int = 3;

impl Process {
    /// Forks. The child is given the one descriptor by which it says something and none that the
    /// parent has open besides the standard ones; its exit status is what `work` returns.
    pub(super) fn fork(work: impl FnOnce(File) -> c_int) -> Result<Self> {
        let (read, write) = std::io::pipe()?;
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        // SAFETY: the lab has one thread when it runs boundaries, so that no lock is held by one that
        // the child does not have.
        let pid = unsafe { libc::fork() };
        ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let status = in_child(&write, work);
            // SAFETY: it ends the process and runs nothing of the parent's.
            unsafe { libc::_exit(status) };
        }
        // Both sides do it, so that it is done whichever comes first.
        let group = rustix::process::Pid::from_raw(pid);
        let _ = rustix::process::setpgid(group, group);
        Ok(Self { pid, ended: false, said: read.into() })
    }

    /// What it has said so far and was not read yet.
    pub(super) fn said(&self) -> String {
        let mut bytes = [0; 4096];
        let len = std::io::Read::read(&mut &self.said, &mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..len]).trim_end().to_owned()
    }

    /// Takes the next change of state of one of its threads, if there is one now.
    pub(super) fn changed(&mut self) -> Result<Option<(pid_t, c_int)>> {
        let mut status = 0;
        // SAFETY: `status` is writable.
        let tid =
            unsafe { libc::waitpid(-self.pid, &raw mut status, libc::__WALL | libc::WNOHANG) };
        ensure!(tid >= 0, "waitpid: {}", std::io::Error::last_os_error());
        let gone = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        self.ended |= tid == self.pid && gone;
        Ok((tid > 0).then_some((tid, status)))
    }

    /// Waits until it has stopped itself.
    pub(super) fn stops(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let mut status = 0;
            let options = libc::WNOHANG | libc::WUNTRACED;
            // SAFETY: `status` is writable.
            let pid = unsafe { libc::waitpid(self.pid, &raw mut status, options) };
            ensure!(pid >= 0, "waitpid: {}", std::io::Error::last_os_error());
            if pid > 0 && libc::WIFSTOPPED(status) {
                return Ok(());
            }
            self.ended |= pid > 0;
            ensure!(!self.ended, "ended with status {status:#x}: {}", self.said());
            ensure!(Instant::now() < end, "process {} does not stop: {}", self.pid, self.said());
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Has it go on after it stopped itself.
    pub(super) fn resume(&self) {
        // SAFETY: it was not waited for, so that the number is still its own.
        unsafe { libc::kill(self.pid, libc::SIGCONT) };
    }

    /// Whether it ends within that time; an error when it did not end well.
    pub(super) fn ends_within(&mut self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        while !self.ended {
            match self.changed()? {
                Some((tid, status)) if tid == self.pid && status != 0 => {
                    bail!("ended with status {status:#x}: {}", self.said())
                }
                Some(_) => {}
                None if Instant::now() > end => return Ok(false),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Ok(true)
    }

    /// Kills it and waits for its end, which may be long in coming where it waits for others.
    pub(super) fn kill(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        if !self.ended {
            // SAFETY: it was not waited for, so that the number is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        while !self.ended {
            if self.changed()?.is_none() {
                ensure!(Instant::now() < end, "process {} does not die", self.pid);
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What cannot be killed now is in the kernel and ends by itself when it comes out.
        let _ = self.kill(Duration::from_secs(1));
    }
}

fn in_child(write: &OwnedFd, work: impl FnOnce(File) -> c_int) -> c_int {
    use rustix::process::{Signal, set_parent_process_death_signal, setpgid};
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || setpgid(None, None).is_err()
    {
        return 101;
    }
    if write.as_raw_fd() != SAY {
        // SAFETY: both are numbers. Who owned what was there is never dropped, for the child leaves
        // by `_exit`.
        let copied = unsafe { libc::dup2(write.as_raw_fd(), SAY) };
        if copied != SAY {
            return 102;
        }
    }
    // What the parent had open is of no use here and would hold devices.
    // SAFETY: as before.
    let closed = unsafe { libc::close_range(SAY.cast_unsigned() + 1, u32::MAX, 0) };
    if closed != 0 {
        return 103;
    }
    // SAFETY: it is this process' own copy, and nothing else here owns it.
    let say = unsafe { File::from_raw_fd(SAY) };
    work(say)
}
