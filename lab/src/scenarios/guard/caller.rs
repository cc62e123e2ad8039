//! The program in lab/callers, built in several ways.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

/// Where the guest has libibverbs and what the callers load.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libibverbs.so.1";
const PLUGIN: &str = "/usr/bin/ibv-plugin.so";

/// A way in which a program reaches libibverbs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub(super) name: &'static str,
    command: &'static [&'static str],
    /// Whether its lists go through the guard.
    pub(super) is_list_seen: bool,
}

const fn class(name: &'static str, command: &'static [&'static str], seen: bool) -> Class {
    Class { name, command, is_list_seen: seen }
}

pub(super) const LAZY: Class = class("PLT, lazy", &["ibv-lazy"], true);
pub(super) const DLVSYM: Class =
    class("dlvsym, libibverbs.so.1", &["ibv-dynamic", "dlvsym", "libibverbs.so.1"], false);

/// Every way that the guard covers.
pub(super) const CLASSES: [Class; 10] = [
    LAZY,
    class("PLT, now", &["ibv-now"], true),
    class("GLOB_DAT", &["ibv-noplt"], true),
    class("dlsym", &["ibv-dynamic", "dlsym", "libibverbs.so.1"], false),
    DLVSYM,
    class("dlvsym, libibverbs.so", &["ibv-dynamic", "dlvsym", "libibverbs.so"], false),
    class("dlvsym, a path", &["ibv-dynamic", "dlvsym", LIBRARY], false),
    class("dlsym, RTLD_DEFAULT", &["ibv-dynamic", "default", "libibverbs.so.1"], true),
    class("a plugin, RTLD_LOCAL", &["ibv-dynamic", "plugin", PLUGIN], true),
    class("RTLD_DEEPBIND", &["ibv-dynamic", "deepbind", "libibverbs.so.1"], false),
];

/// A running caller, which has listed the devices.
pub(super) struct Caller {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// What a caller runs under.
#[derive(Clone, Copy, Debug)]
pub(super) enum Under<'a> {
    Nothing,
    /// `uverbs guard` with these options.
    Guard(&'a [&'a str]),
}

impl Caller {
    pub(super) fn start(class: Class, under: Under<'_>, device: &str) -> Result<Self> {
        // Some programs look for the library under the name that is for linking.
        let link = Path::new(LIBRARY).with_file_name("libibverbs.so");
        if !link.exists() {
            std::os::unix::fs::symlink("libibverbs.so.1", &link)?;
        }
        let mut command = match under {
            Under::Nothing => Command::new(class.command[0]),
            Under::Guard(options) => {
                let mut command = Command::new("uverbs");
                command.arg("guard").args(options).arg("--").arg(class.command[0]);
                command
            }
        };
        command.args(&class.command[1..]).args([device, "1000"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {class:?}"))?;
        let (input, output) = (child.stdin.take().context("stdin")?, child.stdout.take());
        let mut caller = Self { child, input, output: BufReader::new(output.context("stdout")?) };
        let ready = caller.line()?;
        if ready != "ready" {
            let messages = caller.end()?;
            anyhow::bail!("{class:?}: {ready:?}, {messages}");
        }
        Ok(caller)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Opens by the handle of the last list, and returns what the program reports.
    pub(super) fn open(&mut self) -> Result<String> {
        self.input.write_all(b"open\n")?;
        self.line()
    }

    /// Lists again, and opens by a handle of the new list.
    pub(super) fn list_and_open(&mut self) -> Result<String> {
        self.input.write_all(b"list\n")?;
        self.line()
    }

    /// Opens by a handle whose list was freed before.
    pub(super) fn free_and_open(&mut self) -> Result<String> {
        self.input.write_all(b"free\n")?;
        self.line()
    }

    /// Ends it. Returns its messages.
    pub(super) fn end(self) -> Result<String> {
        let Self { mut child, input, output: _ } = self;
        drop(input);
        let mut messages = String::new();
        child.stderr.take().context("stderr")?.read_to_string(&mut messages)?;
        let status = child.wait()?;
        ensure!(status.code().is_some(), "{status}: {messages}");
        Ok(messages)
    }
}

/// What a caller reports of an open of a device with this GUID.
pub(super) fn opened(guid: u8) -> String {
    format!("opened {guid:016x}")
}

/// What it reports of an open that the guard refused.
pub(super) fn refused() -> String {
    format!("refused {}", rustix::io::Errno::NODEV.raw_os_error())
}
