//! At most one probe on each device: a lock on the directory of its instance in sysfs.
//!
//! A probe whose call never returns cannot be ended. It keeps the lock, so that a later run finds it and does not add
//! another one. The kernel frees the lock when the probe ends, whatever ends it. The directory is that of one
//! instance, so that a replacement has a lock of its own. Nothing is created, so that it works in a read-only
//! container and for any user. What it does not cover is a probe through another sysfs, as a container with a network
//! namespace of its own has it.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock, major, minor};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// How often a lock is tried that another probe has.
const PAUSE: Duration = Duration::from_millis(20);

/// The process that has the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    /// `None` where `/proc/locks` does not show it, such as one of another PID namespace.
    pub(super) pid: Option<u32>,
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

/// Opens the directory of an instance and locks it, waiting for so long. The lock lasts until the file is closed,
/// which the end of the process does, too.
pub(super) fn take(
    directory: &Path,
    (sys_dev, inode): (u64, u64),
    wait: Duration,
) -> Result<File, NotLocked> {
    let flags = OFlags::DIRECTORY.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(flags).open(directory);
    let found = opened.and_then(|file| Ok((file.metadata()?, file)));
    let (stat, file) = match found {
        Ok((stat, _)) if (stat.dev(), stat.ino()) != (sys_dev, inode) => {
            return Err(NotLocked::Gone);
        }
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(NotLocked::Gone),
        Err(error) => return Err(NotLocked::Failed(format!("its directory in /sys: {error}"))),
    };
    let end = Instant::now() + wait;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < end => thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Err(NotLocked::Held(holder(stat.dev(), stat.ino()))),
            Err(Errno::INTR) => {}
            Err(errno) => {
                let error = std::io::Error::from(errno);
                return Err(NotLocked::Failed(format!(
                    "its directory in /sys is not locked: {error}"
                )));
            }
        }
    }
}

/// The process that has the lock, as far as `/proc` shows it.
fn holder(device: u64, inode: u64) -> Holder {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let pid = locks.lines().find_map(|line| pid_of(line, device, inode));
    let status = pid.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok());
    Holder { pid, was_killed: status.is_some_and(|status| is_ending(&status)) }
}

/// The process of a line of `proc_locks(5)`, if it is a lock of flock(2) on that file.
fn pid_of(line: &str, device: u64, inode: u64) -> Option<u32> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    if fields.next()? != "FLOCK" {
        return None;
    }
    let pid = fields.nth(2)?.parse().ok().filter(|pid| *pid > 0)?;
    let mut file = fields.next()?.splitn(3, ':');
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let found = (number(file.next()?)?, number(file.next()?)?, file.next()?.parse().ok()?);
    (found == (major(device), minor(device), inode)).then_some(pid)
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
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_with_the_holder_until_the_first_is_dropped() {
        let directory = tempfile::tempdir().expect("a directory");
        let stat = fs::metadata(directory.path()).expect("there");
        let instance = (stat.dev(), stat.ino());
        let take = |wait| take(directory.path(), instance, wait);
        let first = take(Duration::ZERO).expect("locked");
        let started = Instant::now();
        let Err(NotLocked::Held(holder)) = take(Duration::from_millis(100)) else {
            panic!("locked twice");
        };
        assert!(started.elapsed() >= Duration::from_millis(100));
        assert_eq!(holder, Holder { pid: Some(std::process::id()), was_killed: false });

        thread::scope(|scope| {
            let waits = scope.spawn(|| take(Duration::from_secs(60)).is_ok());
            thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished());
            drop(first);
            assert!(waits.join().expect("no panic"));
        });
    }

    #[test]
    fn another_instance_or_none_is_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let stat = fs::metadata(directory.path()).expect("there");
        for (path, instance) in [
            (directory.path().to_owned(), (stat.dev(), stat.ino() + 1)),
            (directory.path().to_owned(), (stat.dev() + 1, stat.ino())),
            (directory.path().join("uverbs0"), (stat.dev(), stat.ino())),
        ] {
            let taken = take(&path, instance, Duration::ZERO);
            assert!(matches!(taken, Err(NotLocked::Gone)), "{taken:?}");
        }
    }

    #[test]
    fn the_holder_is_read_from_the_line_of_the_file() {
        let device = rustix::fs::makedev(0, 0x17);
        let pid = |line| pid_of(line, device, 17578);
        assert_eq!(pid("1: FLOCK  ADVISORY  WRITE 4711 00:17:17578 0 EOF"), Some(4711));
        for other in [
            "",
            "1: POSIX  ADVISORY  WRITE 4711 00:17:17578 0 EOF",
            "1: -> FLOCK  ADVISORY  WRITE 4711 00:17:17578 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 4711 00:18:17578 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 4711 00:17:1757 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 0 00:17:17578 0 EOF",
            "1: FLOCK  ADVISORY  WRITE -1 00:17:17578 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 4711",
        ] {
            assert_eq!(pid(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_that_was_killed_is_known_by_its_status() {
        let status = |state: &str, own: &str, shared: &str| {
            format!("Name:\tuverbs\nState:\t{state}\nSigPnd:\t{own}\nShdPnd:\t{shared}\n")
        };
        let none = "0000000000000000";
        let kill = "0000000000000100";
        assert!(is_ending(&status("D (disk sleep)", kill, none)));
        assert!(is_ending(&status("D (disk sleep)", none, kill)));
        assert!(is_ending(&status("Z (zombie)", none, none)));
        assert!(!is_ending(&status("D (disk sleep)", none, none)));
        assert!(!is_ending(&status("S (sleeping)", "0000000000000080", "0000000000004000")));
        assert!(!is_ending(""));
    }
}
