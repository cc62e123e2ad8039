use std::env;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use rustix::fs::flock;
use tempfile::TempDir;

use super::*;

/// What stands for the directory of a device, and its identity.
fn instance() -> (TempDir, (u64, u64)) {
    let directory = tempfile::tempdir().expect("a directory");
    File::create(directory.path().join(FILE)).expect("a file");
    let stat = fs::metadata(directory.path()).expect("there");
    (directory, (stat.dev(), stat.ino()))
}

/// The part of the tests below that runs in another process, in the directory: a process has no conflict with its own
/// locks.
#[test]
#[ignore = "it is run by the others"]
fn holds_the_lock() {
    let directory = Path::new(".");
    let stat = fs::metadata(directory).expect("there");
    let lock = take(directory, (stat.dev(), stat.ino()), Duration::from_secs(60));
    let lock = lock.expect("locked");
    let mark = directory.join("held");
    File::create_new(&mark).expect("no other process has the lock");
    writeln!(io::stdout(), "\nlocked").expect("somebody reads it");
    io::stdin().read_line(&mut String::new()).expect("stdin");
    fs::remove_file(mark).expect("it is ours");
    drop(lock);
}

/// A process that has the lock.
struct Other(Child, BufReader<ChildStdout>);

impl Other {
    fn start(directory: &Path) -> Self {
        let mut command = Command::new(env::current_exe().expect("this program"));
        command.args(["--exact", "check::lock::tests::holds_the_lock", "--ignored", "--nocapture"]);
        command.current_dir(directory).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self(child, stdout)
    }

    fn wait_until_locked(&mut self) {
        let is_locked = self.1.by_ref().lines().map_while(Result::ok).any(|line| line == "locked");
        assert!(is_locked, "it ended");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_second_lock_is_refused_with_the_holder_until_the_first_is_dropped() {
    let (directory, instance) = instance();
    let take = |wait| take(directory.path(), instance, wait);
    let mut first = Other::start(directory.path());
    first.wait_until_locked();
    let started = Instant::now();
    let Err(NotLocked::Held(holder)) = take(Duration::from_millis(100)) else {
        panic!("locked twice");
    };
    assert!(started.elapsed() >= Duration::from_millis(100));
    assert_eq!(holder, Holder { pid: first.0.id(), was_killed: false });

    thread::scope(|scope| {
        let waits = scope.spawn(|| take(Duration::from_secs(60)).is_ok());
        thread::sleep(Duration::from_millis(50));
        assert!(!waits.is_finished());
        writeln!(first.0.stdin.as_ref().expect("piped")).expect("read");
        assert!(waits.join().expect("no panic"));
    });
}

#[test]
fn of_several_at_once_each_gets_it() {
    let (directory, _) = instance();
    let mut others: Vec<_> = (0..4).map(|_| Other::start(directory.path())).collect();
    // They start together. Each ends as soon as it has the lock.
    for other in &mut others {
        writeln!(other.0.stdin.as_ref().expect("piped")).expect("read");
    }
    for other in &mut others {
        assert!(other.0.wait().expect("waited").success());
    }
}

#[test]
fn a_killed_process_is_waited_for_as_long_as_it_may_take_to_end() {
    let (directory, _) = instance();
    let file = File::open(directory.path().join(FILE)).expect("opened");
    let killed = Holder { pid: 4711, was_killed: true };
    let beside = [Holder { pid: 4712, was_killed: false }, killed.clone()];
    for wait in [Duration::ZERO, Duration::from_secs(600)] {
        let started = Instant::now();
        let held = lock_beside(&file, Some(1), wait, || Ok(beside.to_vec())).expect("looked");
        assert_eq!(held.as_ref(), Some(&killed));
        assert!(started.elapsed() >= GRACE && started.elapsed() < Duration::from_secs(300));
    }
}

#[test]
fn the_death_of_a_process_frees_it() {
    let (directory, instance) = instance();
    let mut other = Other::start(directory.path());
    other.wait_until_locked();
    // Nobody has waited for it.
    other.0.kill().expect("killed");
    let taken = take(directory.path(), instance, Duration::from_secs(60));
    assert!(taken.is_ok(), "{taken:?}");
}

#[test]
fn nobody_can_refuse_it() {
    let (directory, instance) = instance();
    let theirs = File::open(directory.path()).expect("opened");
    flock(&theirs, FlockOperation::NonBlockingLockExclusive).expect("locked");
    let file = File::open(directory.path().join(FILE)).expect("opened");
    flock(&file, FlockOperation::NonBlockingLockExclusive).expect("locked");
    let taken = take(directory.path(), instance, Duration::ZERO);
    assert!(taken.is_ok(), "{taken:?}");
    // Without write access there is no exclusive lock of fcntl(2).
    let refused = fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(refused, Err(rustix::io::Errno::BADF));
}

#[test]
fn another_instance_or_none_is_gone() {
    let (directory, (device, inode)) = instance();
    let empty = tempfile::tempdir().expect("a directory");
    let stat = fs::metadata(empty.path()).expect("there");
    for (path, instance) in [
        (directory.path().to_owned(), (device, inode + 1)),
        (directory.path().to_owned(), (device + 1, inode)),
        (directory.path().join("uverbs0"), (device, inode)),
        // What is left of a directory while it is removed.
        (empty.path().to_owned(), (stat.dev(), stat.ino())),
    ] {
        let taken = take(&path, instance, Duration::ZERO);
        assert!(matches!(taken, Err(NotLocked::Gone)), "{taken:?}");
    }
}

#[test]
fn the_holder_is_read_from_the_line_of_the_file() {
    let device = rustix::fs::makedev(0, 0x17);
    let pid = |line| pid_of(line, device, 17578);
    assert_eq!(pid("1: POSIX  ADVISORY  READ 4711 00:17:17578 0 EOF"), Some(4711));
    for other in [
        "",
        "1: FLOCK  ADVISORY  WRITE 4711 00:17:17578 0 EOF",
        "1: OFDLCK ADVISORY  READ -1 00:17:17578 0 EOF",
        "1: -> POSIX  ADVISORY  WRITE 4711 00:17:17578 0 EOF",
        "1: POSIX  ADVISORY  READ 4711 00:18:17578 0 EOF",
        "1: POSIX  ADVISORY  READ 4711 00:17:1757 0 EOF",
        "1: POSIX  ADVISORY  READ 0 00:17:17578 0 EOF",
        "1: POSIX  ADVISORY  READ -1 00:17:17578 0 EOF",
        "1: POSIX  ADVISORY  READ 4711",
    ] {
        assert_eq!(pid(other), None, "{other}");
    }
}

#[test]
fn only_this_user_and_root_count() {
    let is_of = |users: &str| is_of(&format!("Name:\tuverbs\nUid:\t{users}\nGid:\t0\n"), 1000);
    for users in ["1000\t1000\t1000\t1000", "0\t0\t0\t0", "0\t1000\t0\t1000"] {
        assert!(is_of(users), "{users}");
    }
    // The third is a set-user-ID program that another user has started.
    for users in ["1001\t1001\t1001\t1001", "100\t100\t100\t100", "1001\t0\t0\t0", "0", "", "x"] {
        assert!(!is_of(users), "{users}");
    }
    assert!(!super::is_of("State:\tZ (zombie)\n", 1000));
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
