//! Runs this program again, in a role (`roles.rs`): under strace, as another user, in a namespace.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitStatus};

use anyhow::{Context as _, Result};

/// Written between parts that a trace has to separate.
pub(crate) const MARK: &str = "== mark";

/// The path of this program.
pub(crate) fn exe() -> Result<String> {
    Ok(std::env::current_exe()?.to_string_lossy().into_owned())
}

/// Runs a role as another user.
pub(crate) fn as_user(uid: u32, args: &[&str]) -> Result<ExitStatus> {
    Command::new(exe()?).arg("role").args(args).uid(uid).gid(uid).status().context("role")
}

/// Runs a role in its own process.
pub(crate) fn run_and_show(args: &[&str]) -> Result<ExitStatus> {
    Command::new(exe()?).arg("role").args(args).status().context("role")
}

/// Writes the mark.
pub(crate) fn mark() {
    let _ = std::io::stderr().write_all(MARK.as_bytes());
}
