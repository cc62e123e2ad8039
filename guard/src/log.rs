//! Messages: one line each, written by one `write(2)`. A message never stops the program: it is lost first.

use std::ffi::CString;
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
    match &config.log {
        Log::Off => {}
        Log::Stderr if !HAS_STDERR.load(SeqCst) => {}
        Log::Stderr => write(libc::STDERR_FILENO, &line),
        Log::File(path) => {
            let Ok(path) = CString::new(path.as_bytes()) else { return };
            const FLAGS: libc::c_int = libc::O_WRONLY
                | libc::O_APPEND
                | libc::O_CREAT
                | libc::O_CLOEXEC
                | libc::O_NOCTTY
                | libc::O_NOFOLLOW
                | libc::O_NONBLOCK;
            // SAFETY: the path ends with NUL and lives for the call.
            let fd = unsafe { libc::open(path.as_ptr(), FLAGS, 0o600) };
            if fd >= 0 {
                write(fd, &line);
                // SAFETY: this function opened it, and nobody else has it.
                unsafe { libc::close(fd) };
            }
        }
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
