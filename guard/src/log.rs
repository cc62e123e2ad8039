//! Messages: one line each, written by one `write(2)`.

use std::ffi::CString;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

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
        Log::Stderr => write(libc::STDERR_FILENO, &line),
        Log::File(path) => {
            let Ok(path) = CString::new(path.as_bytes()) else { return };
            const FLAGS: libc::c_int = libc::O_WRONLY
                | libc::O_APPEND
                | libc::O_CREAT
                | libc::O_CLOEXEC
                | libc::O_NOCTTY
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

fn write(fd: libc::c_int, line: &str) {
    // SAFETY: the bytes live for the call.
    unsafe { libc::write(fd, line.as_ptr().cast(), line.len()) };
}
