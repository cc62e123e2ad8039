//! One line for syslog, because crun discards what a hook prints.

use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// daemon.err (RFC 3164, 4.1.1).
const PRIORITY: u32 = 3 << 3 | 3;
/// RFC 3164, 4.1: no longer than this.
const LENGTH_MAX: usize = 1024;

/// Sends a line, if somebody listens. It never waits.
pub(super) fn send(line: &str) {
    send_to(Path::new("/dev/log"), line);
}

fn send_to(path: &Path, line: &str) {
    // The receiver adds the time.
    let message = format!("<{PRIORITY}>uverbs-hook[{}]: {line}", std::process::id());
    let message = &message.as_bytes()[..message.len().min(LENGTH_MAX)];
    if let Ok(socket) = UnixDatagram::unbound()
        && socket.set_nonblocking(true).is_ok()
    {
        // Nobody is left to whom a failure could be reported.
        let _ = socket.send_to(message, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_bounded_datagram_and_never_waits() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log");
        send_to(&path, "nobody listens");
        let socket = UnixDatagram::bind(&path).expect("bound");
        send_to(&path, "refused");
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).expect("received");
        let expected = format!("<27>uverbs-hook[{}]: refused", std::process::id());
        assert_eq!(&buffer[..len], expected.as_bytes());
        send_to(&path, &"x".repeat(9999));
        assert_eq!(socket.recv(&mut buffer).expect("received"), LENGTH_MAX);
        // Nobody reads: its queue is full after some.
        for _ in 0..10_000 {
            send_to(&path, "more");
        }
    }
}
