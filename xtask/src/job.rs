//! Commands that take long. Each has a time limit and a log of its own.

use std::env;
use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kernel::KernelChoice;
use crate::{lab, paths, tools};

/// One command.
pub(crate) struct Job {
    /// The name of its log, also shown in messages.
    pub(crate) name: String,
    pub(crate) command: Command,
    /// It is killed after this long.
    pub(crate) limit: Duration,
}

/// The cargo that started this program, or the one on the PATH.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(paths::workspace());
    command
}

/// A command in a guest, through this program.
pub(crate) fn in_guest(
    name: &str,
    kernel: &KernelChoice,
    limit: Duration,
    options: &[&str],
    command: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<Job> {
    let mut run = Command::new(env::current_exe().context("finding this program")?);
    run.args(["lab", "run", "--no-build", "--kernel"]).arg(kernel.to_string());
    run.arg("--timeout").arg(limit.as_secs().to_string());
    run.args(options).arg("--").args(command);
    let name = format!("{name}-{}", kernel.to_string().replace('/', "_"));
    // The guest's own limit is shorter, so that the log has its reason.
    Ok(Job { name, command: run, limit: limit + lab::PREPARATION })
}

/// The exit status of `timeout` when the time is over.
pub(crate) const TIMED_OUT: i32 = 124;

impl Job {
    /// The key under which its last duration is remembered.
    pub(crate) fn key(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
        words.join(" ").replace(['\t', '\n'], " ")
    }

    /// Its command as it is run. It has a process group of its own, with everything that it starts. The group is
    /// killed when the time is over or this program ends, even by a key.
    pub(crate) fn bounded(&self) -> Command {
        let mut bounded = match tools::find("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "TERM", "timeout"]);
                command
            }
            None => tools::command("timeout"),
        };
        bounded.args(["--kill-after", "10"]).arg(self.limit.as_secs().to_string());
        bounded.arg(self.command.get_program()).args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => bounded.env(name, value),
                None => bounded.env_remove(name),
            };
        }
        if let Some(directory) = self.command.get_current_dir() {
            bounded.current_dir(directory);
        }
        bounded.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        bounded
    }
}
