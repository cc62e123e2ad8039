//! Messages: one line each, written by one `write(2)`. A message never stops the program: it is lost first.

use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::config::{self, Log};

/// Writes a line. A message that cannot be written is lost: there is nobody to report it to.
pub(crate) fn line(text: &str) {
    let config = config::get();
    if config.log == Log::Off {
        return;
    }
    let line = one_line(text);
    match &config.log {
        Log::Off => {}
        Log::Stderr if !HAS_STDERR.load(SeqCst) => {}
        Log::Stderr => write(libc::STDERR_FILENO, &line),
        Log::File(path) => append(path, &line),
    }
}

/// A message as a line of its own.
fn one_line(text: &str) -> String {
    // SAFETY: it takes nothing and returns a number.
    let pid = unsafe { libc::getpid() };
    let mut line = format!("uverbs-guard[{pid}]: ");
    for character in text.chars() {
        // Nothing in a message may end the line, or move a terminal's cursor.
        if character.is_control() {
            let _ = write!(line, "{}", character.escape_default());
        } else {
            line.push(character);
        }
    }
    line.push('\n');
    line
}

fn append(path: &OsStr, line: &str) {
    const FLAGS: libc::c_int = libc::O_WRONLY
        | libc::O_APPEND
        | libc::O_CREAT
        | libc::O_CLOEXEC
        | libc::O_NOCTTY
        | libc::O_NOFOLLOW
        | libc::O_NONBLOCK;
    let Ok(path) = CString::new(path.as_bytes()) else { return };
    // SAFETY: the path ends with NUL and lives for the call.
    let fd = unsafe { libc::open(path.as_ptr(), FLAGS, 0o600) };
    if fd >= 0 {
        write(fd, line);
        // SAFETY: this function opened it, and nobody else has it.
        unsafe { libc::close(fd) };
    }
}

/// Whether the standard error stream was open when the program started. If not, its number may be a file of the program's.
static HAS_STDERR: AtomicBool = AtomicBool::new(false);

/// To be called when the program starts.
pub(crate) fn start() {
    // SAFETY: it takes numbers.
    let flags = unsafe { libc::fcntl(libc::STDERR_FILENO, libc::F_GETFD) };
    HAS_STDERR.store(flags >= 0, SeqCst);
}

/// Writes without waiting and without a signal: a pipe may be full, or have no reader, and a file may be at its limit.
fn write(fd: libc::c_int, line: &str) {
    let mut ready = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: it is one live structure.
    if unsafe { libc::poll(&raw mut ready, 1, 0) } != 1 || ready.revents & libc::POLLOUT == 0 {
        return;
    }
    let blocked = Blocked::begin();
    // SAFETY: the bytes live for the call.
    unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
    drop(blocked);
}

/// The signals that a write can cause.
const OF_WRITES: [libc::c_int; 3] = [libc::SIGPIPE, libc::SIGXFSZ, libc::SIGTTOU];

/// Blocks these signals in this thread, and takes back those that came meanwhile.
struct Blocked {
    before: libc::sigset_t,
    pending: libc::sigset_t,
}

impl Blocked {
    fn begin() -> Self {
        let mut signals = empty();
        for signal in OF_WRITES {
            // SAFETY: the set is a live one.
            unsafe { libc::sigaddset(&raw mut signals, signal) };
        }
        let (mut before, mut pending) = (empty(), empty());
        // SAFETY: all of them are live sets.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, &raw mut before) };
        // SAFETY: as above.
        unsafe { libc::sigpending(&raw mut pending) };
        Self { before, pending }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let mut ours = empty();
        for signal in OF_WRITES {
            // SAFETY: the set is a live one.
            if unsafe { libc::sigismember(&raw const self.pending, signal) } == 0 {
                // SAFETY: as above.
                unsafe { libc::sigaddset(&raw mut ours, signal) };
            }
        }
        // SAFETY: the set and the time live for the call, and nothing is written.
        while unsafe { libc::sigtimedwait(&raw const ours, ptr::null_mut(), &raw const now) } > 0 {}
        // SAFETY: it is the mask that was read above.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

fn empty() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is writable.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: it was just made.
    unsafe { set.assume_init() }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{PipeReader, PipeWriter, Read as _, pipe};
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// Runs `body` in a child, whose signals are its own. Returns the wait status.
    fn in_child(body: impl FnOnce() -> bool) -> libc::c_int {
        // SAFETY: the child calls nothing that takes a lock of another thread: system calls, and the function under test.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork");
        if pid == 0 {
            // SAFETY: these take numbers. Rust's runtime ignores SIGPIPE, and a program need not. The alarm ends a write
            // that waits.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            // SAFETY: as above.
            unsafe { libc::alarm(20) };
            let is_right = body();
            // SAFETY: it ends the process.
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let mut status = 0;
        // SAFETY: `status` is writable.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(waited, pid);
        status
    }

    fn pair() -> (PipeReader, PipeWriter) {
        pipe().expect("a pipe")
    }

    fn pending(signal: libc::c_int) -> bool {
        let mut pending = empty();
        // SAFETY: it is a live set.
        unsafe { libc::sigpending(&raw mut pending) };
        // SAFETY: as above.
        unsafe { libc::sigismember(&raw const pending, signal) == 1 }
    }

    fn is_blocked(signal: libc::c_int) -> bool {
        let mut mask = empty();
        // SAFETY: the set is a live one, and nothing is changed.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), &raw mut mask) };
        // SAFETY: as above.
        unsafe { libc::sigismember(&raw const mask, signal) == 1 }
    }

    /// What a process with this `UVERBS_GUARD_LOG` writes to its standard error stream, for [`writes_a_line`].
    fn written(log: &str) -> String {
        let program = std::env::current_exe().expect("this test");
        let mut command = std::process::Command::new(program);
        command.args(["--quiet", "--ignored", "--exact", "log::tests::writes_a_line"]);
        let output = command.env("UVERBS_GUARD_LOG", log).output().expect("started");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).expect("text")
    }

    #[test]
    #[ignore = "another test starts it"]
    fn writes_a_line() {
        start();
        line("a message");
    }

    #[test]
    fn a_message_goes_where_it_is_asked_to_go() {
        let is_one = |text: &str| text.ends_with("]: a message\n") && text.lines().count() == 1;
        assert!(is_one(&written("stderr")), "{:?}", written("stderr"));
        assert_eq!(written("off"), "");
        let path = std::env::temp_dir().join(format!("uverbs-guard-line-{}", std::process::id()));
        assert_eq!(written(path.to_str().expect("text")), "");
        let text = fs::read_to_string(&path).expect("a file");
        fs::remove_file(&path).expect("removed");
        assert!(is_one(&text), "{text:?}");
    }

    #[test]
    fn a_fifo_without_a_reader_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("uverbs-guard-fifo-{}", std::process::id()));
        let name = CString::new(path.as_os_str().as_bytes()).expect("no NUL");
        // SAFETY: the path ends with NUL.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let status = in_child(|| {
            append(path.as_os_str(), "lost\n");
            true
        });
        fs::remove_file(&path).expect("removed");
        assert_eq!(status, 0);
    }

    #[test]
    fn a_message_is_one_line() {
        let pid = std::process::id();
        assert_eq!(
            one_line("a\nb\u{1b}[0m\u{9b}c \u{e9}"),
            format!("uverbs-guard[{pid}]: a\\nb\\u{{1b}}[0m\\u{{9b}}c \u{e9}\n")
        );
    }

    #[test]
    fn lines_are_appended_to_a_file() {
        let directory = std::env::temp_dir().join(format!("uverbs-guard-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let (file, link) = (directory.join("log"), directory.join("link"));
        append(file.as_os_str(), "one\n");
        append(file.as_os_str(), "two\n");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        append(link.as_os_str(), "three\n");
        append(OsStr::new("with\0NUL"), "four\n");
        let text = fs::read_to_string(&file);
        fs::remove_dir_all(&directory).expect("removed");
        assert_eq!(text.expect("a file"), "one\ntwo\n");
    }

    #[test]
    fn a_pipe_gets_the_line() {
        let (mut reader, writer) = pair();
        write(writer.as_raw_fd(), "a line\n");
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text, "a line\n");
    }

    #[test]
    fn a_pipe_without_a_reader_sends_no_signal() {
        let (reader, writer) = pair();
        drop(reader);
        let fd = writer.as_raw_fd();
        let status = in_child(|| {
            write(fd, "lost\n");
            !pending(libc::SIGPIPE) && !is_blocked(libc::SIGPIPE)
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn signals_of_the_program_stay_pending() {
        let (reader, writer) = pair();
        drop(reader);
        let fd = writer.as_raw_fd();
        let status = in_child(|| {
            let mut signals = empty();
            // SAFETY: the set is a live one.
            unsafe { libc::sigaddset(&raw mut signals, libc::SIGPIPE) };
            // SAFETY: as above, and the old mask is not wanted.
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, ptr::null_mut()) };
            // SAFETY: it takes a number.
            unsafe { libc::raise(libc::SIGPIPE) };
            write(fd, "lost\n");
            pending(libc::SIGPIPE) && is_blocked(libc::SIGPIPE)
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_full_pipe_is_not_waited_for() {
        let (_reader, writer) = pair();
        let fd = writer.as_raw_fd();
        let status = in_child(|| {
            let page = "x".repeat(4096);
            // A pipe holds 64 KiB (pipe(7)).
            for _ in 0..100 {
                write(fd, &page);
            }
            true
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_file_at_its_limit_sends_no_signal() {
        let path = std::env::temp_dir().join(format!("uverbs-guard-limit-{}", std::process::id()));
        let file = File::create(&path).expect("a file");
        let fd = file.as_raw_fd();
        let status = in_child(|| {
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            // SAFETY: the limit lives for the call.
            unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const none) };
            write(fd, "lost\n");
            !pending(libc::SIGXFSZ)
        });
        fs::remove_file(&path).expect("removed");
        assert_eq!(status, 0);
    }

    /// The program may have opened a file under the number of a stderr that was closed when it started.
    #[test]
    fn a_file_in_the_place_of_stderr_gets_nothing() {
        let (mut reader, writer) = pair();
        let fd = writer.as_raw_fd();
        let status = in_child(|| {
            // SAFETY: nothing of this process uses it after that.
            unsafe { libc::close(libc::STDERR_FILENO) };
            start();
            // SAFETY: both are numbers of this process.
            unsafe { libc::dup2(fd, libc::STDERR_FILENO) };
            line("lost");
            true
        });
        assert_eq!(status, 0);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("text");
        assert_eq!(text, "");
    }
}
