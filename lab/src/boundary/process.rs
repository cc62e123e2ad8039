//! Processes without an exec: forks of the lab. That saves most of the time that an execution takes on an emulated
//! kernel.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use libc::{c_int, pid_t};
use rustix::fs::OFlags;

/// A fork of this process. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: pid_t,
    ended: bool,
    output: File,
}

/// The descriptor to which a fork writes its output.
const OUTPUT: c_int = 3;

impl Process {
    /// Forks. The child gets only the standard descriptors and the one for its output, and none that the parent has
    /// open otherwise. Its exit status is the result of `work`.
    pub(super) fn fork(work: impl FnOnce(File) -> c_int) -> Result<Self> {
        let (read, write) = std::io::pipe()?;
        let (read, write) = (OwnedFd::from(read), OwnedFd::from(write));
        rustix::fs::fcntl_setfl(&read, OFlags::NONBLOCK)?;
        // SAFETY: the lab has one thread when it runs boundaries, so no lock is held by a thread that the child
        // does not have.
        let pid = unsafe { libc::fork() };
        ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            let status = in_child(&write, work);
            // SAFETY: it ends the process and runs no code of the parent.
            unsafe { libc::_exit(status) };
        }
        // Both sides do this, so it is done whichever runs first.
        let group = rustix::process::Pid::from_raw(pid);
        let _ = rustix::process::setpgid(group, group);
        Ok(Self { pid, ended: false, output: read.into() })
    }

    /// The output so far that was not read yet.
    pub(super) fn output(&self) -> String {
        let mut bytes = [0; 4096];
        let len = std::io::Read::read(&mut &self.output, &mut bytes).unwrap_or(0);
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
            ensure!(!self.ended, "ended with status {status:#x}: {}", self.output());
            ensure!(Instant::now() < end, "process {} does not stop: {}", self.pid, self.output());
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Continues it after it stopped itself.
    pub(super) fn resume(&self) {
        // SAFETY: it was not waited for, so the number is still its own.
        unsafe { libc::kill(self.pid, libc::SIGCONT) };
    }

    /// Whether it ends within that time. It is an error if it fails.
    pub(super) fn ends_within(&mut self, limit: Duration) -> Result<bool> {
        let end = Instant::now() + limit;
        while !self.ended {
            match self.changed()? {
                Some((tid, status)) if tid == self.pid && status != 0 => {
                    bail!("ended with status {status:#x}: {}", self.output())
                }
                Some(_) => {}
                None if Instant::now() > end => return Ok(false),
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Ok(true)
    }

    /// Kills it and waits for its end. That may take long if it waits for others.
    pub(super) fn kill(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        if !self.ended {
            // SAFETY: it was not waited for, so the number is still its own.
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
        // A process that cannot be killed now is in the kernel, and ends when it leaves the kernel.
        let _ = self.kill(Duration::from_secs(1));
    }
}

fn in_child(write: &OwnedFd, work: impl FnOnce(File) -> c_int) -> c_int {
    use rustix::process::{Signal, set_parent_process_death_signal, setpgid};
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || setpgid(None, None).is_err()
    {
        return 101;
    }
    if write.as_raw_fd() != OUTPUT {
        // SAFETY: both are numbers. The previous owners of these descriptors are never dropped, because the child
        // leaves by `_exit`.
        let copied = unsafe { libc::dup2(write.as_raw_fd(), OUTPUT) };
        if copied != OUTPUT {
            return 102;
        }
    }
    // The parent's descriptors are of no use here and would hold devices open.
    // SAFETY: as before.
    let closed = unsafe { libc::close_range(OUTPUT.cast_unsigned() + 1, u32::MAX, 0) };
    if closed != 0 {
        return 103;
    }
    // SAFETY: the descriptor is this process' own copy, and nothing else here owns it.
    let output = unsafe { File::from_raw_fd(OUTPUT) };
    work(output)
}
