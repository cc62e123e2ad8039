//! At most one probe of a user on each device: a lock in the sysfs directory of its instance.
//!
//! A probe whose call never returns cannot be ended. It keeps its lock, so that a later run finds it and does not add
//! another one. The kernel frees the lock when the probe ends, whatever ends it. The directory is that of one
//! instance, so that a replacement has a lock of its own. Nothing is created, so that it works in a read-only
//! container and for any user. A probe through another sysfs, as a container with a network namespace of its own has
//! it, is not seen, nor is one of a PID namespace that `/proc` does not show.
//!
//! Every user can open that directory. So the lock is a shared one, which nobody can refuse without write access, and
//! `/proc/locks` shows who else has one. Locks of other users do not count: they may have them for their own reasons.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, fcntl_lock, major, minor, openat};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};

/// How often to look whether another probe has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a process may take to end once it was killed.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// The file in the directory of a device that is locked. A lock of fcntl(2) is lost when the process closes any
/// descriptor of the file, and nothing else in this program opens this one.
const FILE: &str = "uevent";

/// A process of this user, or of root, that has a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) pid: u32,
    /// It was sent SIGKILL, and has not ended.
    pub(super) was_killed: bool,
}

/// Why the lock was not taken.
#[derive(Debug)]
pub(super) enum NotLocked {
    /// Another process has it, and had it for all of the time.
    Held(Holder),
    /// The directory is not there, or is that of another instance.
    Gone,
    /// It could not be tried.
    Failed(String),
}

/// The lock of an instance, until it is dropped or the process ends.
#[derive(Debug)]
pub(super) struct Lock {
    /// The directory of the instance.
    pub(super) directory: File,
    _file: File,
}

/// Opens the directory of an instance and locks it. Waits for so long for a process that has the lock, and for
/// [`GRACE`] if that process was killed.
pub(super) fn take(
    directory: &Path,
    instance: (u64, u64),
    wait: Duration,
) -> Result<Lock, NotLocked> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => NotLocked::Gone,
        _ => NotLocked::Failed(format!("its directory in /sys: {error}")),
    };
    let flags = OFlags::DIRECTORY.bits().cast_signed();
    let directory =
        File::options().read(true).custom_flags(flags).open(directory).map_err(failed)?;
    let stat = directory.metadata().map_err(failed)?;
    if (stat.dev(), stat.ino()) != instance {
        return Err(NotLocked::Gone);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(&directory, FILE, flags, Mode::empty());
    let file = File::from(file.map_err(|errno| failed(errno.into()))?);
    let holder = lock(&file, wait).map_err(|error| {
        NotLocked::Failed(format!("its directory in /sys is not locked: {error}"))
    })?;
    match holder {
        Some(holder) => Err(NotLocked::Held(holder)),
        None => Ok(Lock { directory, _file: file }),
    }
}

/// Locks the file once no other process has it. Returns the one that has it in the end.
fn lock(file: &File, wait: Duration) -> io::Result<Option<Holder>> {
    let stat = file.metadata()?;
    // As /proc numbers processes, which may be mounted for another PID namespace.
    let own = fs::read_link("/proc/self").ok().and_then(|pid| pid.to_str()?.parse().ok());
    lock_beside(file, own, wait, || others(&stat, own))
}

/// The same, with what finds the others.
fn lock_beside(
    file: &File,
    own: Option<u32>,
    wait: Duration,
    others: impl Fn() -> io::Result<Vec<Holder>>,
) -> io::Result<Option<Holder>> {
    let end = Instant::now() + wait;
    let mut is_locked = false;
    let mut killed_since = None;
    loop {
        let others = others()?;
        let Some(first) = others.iter().find(|other| other.was_killed).or(others.first()) else {
            if is_locked {
                return Ok(None);
            }
            // Another process may do the same now, so both look once more.
            fcntl_lock(file, FlockOperation::NonBlockingLockShared)?;
            is_locked = true;
            continue;
        };
        // Of those that locked it at once, the one with the lowest number keeps its lock.
        if is_locked && others.iter().any(|other| Some(other.pid) < own) {
            fcntl_lock(file, FlockOperation::NonBlockingUnlock)?;
            is_locked = false;
        }
        let now = Instant::now();
        let is_over = match first.was_killed {
            true => now >= *killed_since.get_or_insert(now) + GRACE,
            false => {
                killed_since = None;
                now >= end
            }
        };
        if is_over {
            return Ok(Some(first.clone()));
        }
        thread::sleep(PAUSE);
    }
}

/// The other processes of this user, or of root, that have locked a file.
fn others(file: &fs::Metadata, own: Option<u32>) -> io::Result<Vec<Holder>> {
    let locks = fs::read_to_string("/proc/locks").map_err(|error| {
        io::Error::other(format!(
            "without /proc/locks an earlier probe that hangs would not be seen: {error}"
        ))
    })?;
    let pids = locks.lines().filter_map(|line| pid_of(line, file.dev(), file.ino()));
    let user = geteuid().as_raw();
    let holder = |pid| {
        // One that has ended has no status. One that is hidden belongs to another user.
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        is_of(&status, user).then(|| Holder { pid, was_killed: is_ending(&status) })
    };
    Ok(pids.filter(|pid| Some(*pid) != own).filter_map(holder).collect())
}

/// The process of a line of `proc_locks(5)`, if it is a lock of fcntl(2) on that file.
fn pid_of(line: &str, device: u64, inode: u64) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    if fields.next()? != "POSIX" {
        return None;
    }
    let pid = fields.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
    let mut file = fields.next()?.splitn(3, ':');
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let found = (number(file.next()?)?, number(file.next()?)?, file.next()?.parse().ok()?);
    (found == (major(device), minor(device), inode)).then_some(pid)
}

/// Whether a process belongs to this user or to root, by its `proc_pid_status(5)`. Anybody can start a set-user-ID
/// program, so that the real user counts as well as the effective one.
fn is_of(status: &str, user: u32) -> bool {
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    let mut users = users.split_ascii_whitespace().map(|number| number.parse::<u32>());
    let mut next = || matches!(users.next(), Some(Ok(number)) if number == 0 || number == user);
    next() && next()
}

/// Whether a process was sent SIGKILL, or has ended but for threads that do not: by its `proc_pid_status(5)`.
fn is_ending(status: &str) -> bool {
    const SIGKILL: u32 = 9;
    status.lines().any(|line| match line.split_once(':') {
        Some(("State", state)) => state.trim_start().starts_with(['Z', 'X']),
        Some(("SigPnd" | "ShdPnd", set)) => {
            u64::from_str_radix(set.trim(), 16).is_ok_and(|set| set >> (SIGKILL - 1) & 1 == 1)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests;
