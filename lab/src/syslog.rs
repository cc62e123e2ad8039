//! The syslog of the guest, which has no daemon for it.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;

use anyhow::{Context as _, Result};

const LOG: &str = "/dev/log";

/// Receives what programs log, until it is dropped.
pub(crate) struct Syslog(UnixDatagram);

impl Syslog {
    pub(crate) fn start() -> Result<Self> {
        // Who logs waits while the queue is full, and the default is ten messages.
        fs::write("/proc/sys/net/unix/max_dgram_qlen", "512").context("max_dgram_qlen")?;
        let _ = fs::remove_file(LOG);
        let socket = UnixDatagram::bind(LOG).context(LOG)?;
        fs::set_permissions(LOG, fs::Permissions::from_mode(0o666))?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// The messages since the last call, each with its priority (`<N>`), time and program.
    pub(crate) fn messages(&self) -> Result<Vec<String>> {
        let mut messages = Vec::new();
        let mut buffer = [0; 8192];
        loop {
            match self.0.recv(&mut buffer) {
                Ok(length) => {
                    messages.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(messages),
                Err(error) => return Err(error).context(LOG),
            }
        }
    }
}

impl Drop for Syslog {
    fn drop(&mut self) {
        let _ = fs::remove_file(LOG);
    }
}
