//! Probes devices within a time, whatever the kernel does: through a worker, which is left behind where it does not
//! end.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use uverbs::Device;

use super::lock::{GRACE, Holder};
use super::ports::Port;
use super::worker::{Line, Refusal, Request, Task};

/// What was found out about a device.
#[derive(Debug, Default)]
pub(super) struct Probed {
    /// Whether it was opened and proved; `None` where that was not to be done, or is not known.
    pub(super) opened: Option<Result<(), Refusal>>,
    pub(super) ports: Vec<Port>,
    /// Why the rest is missing.
    pub(super) trouble: Option<Trouble>,
}

/// Why a probe has no result.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It was not done in time, and its worker was killed.
    TimedOut {
        /// What it was doing.
        doing: &'static str,
        timeout: Duration,
        /// The worker, where it did not end.
        left_behind: Option<u32>,
    },
    /// The worker did not come as far as the device in this time, and was killed.
    NotReady { within: Duration },
    /// Another process probes the device.
    Held(Holder),
    /// The device is not there any more, or was replaced.
    Gone,
    /// It could not be probed.
    Failed(String),
}

/// Something that probes devices.
pub(super) trait Probe {
    fn probe(&mut self, device: &Device, task: Task) -> Probed;
}

/// Probes through a worker, and through another one once that hangs.
pub(super) struct Workers {
    timeout: Duration,
    command: fn() -> Command,
    kill: fn(&mut Child) -> bool,
    worker: Option<Worker>,
}

struct Worker {
    child: Child,
    requests: ChildStdin,
    lines: Receiver<String>,
}

impl Workers {
    /// Each part of a probe may take so long.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, command: this_command, kill, worker: None }
    }

    /// # Errors
    /// Why the rest of the answer is missing.
    fn ask(
        &mut self,
        worker: &mut Worker,
        device: &Device,
        task: Task,
        probed: &mut Probed,
    ) -> Result<(), Trouble> {
        let failed = |error: io::Error| Trouble::Failed(format!("it was not probed: {error}"));
        let request = serde_json::to_string(&Request::new(device, task, self.timeout))
            .map_err(io::Error::from);
        let request = request.map_err(failed)?;
        writeln!(worker.requests, "{request}").map_err(failed)?;
        // Time to start, and to wait for another probe. Nothing is done with the device in it.
        let within = 2 * self.timeout + GRACE;
        match self.next(worker, "preparing to probe it", within) {
            Ok(Line::Locked) => {}
            Ok(line) => return Err(trouble(line)),
            Err(Trouble::TimedOut { .. }) => return Err(Trouble::NotReady { within }),
            Err(trouble) => return Err(trouble),
        }
        if task.open {
            match self.next(worker, "opening it", self.timeout)? {
                Line::Opened(opened) => probed.opened = Some(opened),
                line => return Err(trouble(line)),
            }
        }
        if task.ports {
            match self.next(worker, "reading the state of its ports", self.timeout)? {
                Line::Ports(ports) => probed.ports = ports,
                line => return Err(trouble(line)),
            }
        }
        Ok(())
    }

    /// The next line of an answer.
    fn next(
        &self,
        worker: &mut Worker,
        doing: &'static str,
        timeout: Duration,
    ) -> Result<Line, Trouble> {
        match worker.lines.recv_timeout(timeout) {
            Ok(line) => serde_json::from_str(&line)
                .map_err(|error| Trouble::Failed(format!("the probe's answer is odd: {error}"))),
            Err(RecvTimeoutError::Timeout) => {
                let has_ended = (self.kill)(&mut worker.child);
                let left_behind = (!has_ended).then(|| worker.child.id());
                Err(Trouble::TimedOut { doing, timeout, left_behind })
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Trouble::Failed(format!("the probe ended while {doing}")))
            }
        }
    }
}

impl Probe for Workers {
    fn probe(&mut self, device: &Device, task: Task) -> Probed {
        let mut probed = Probed::default();
        let worker = self.worker.take().map_or_else(|| start((self.command)()), Ok);
        let mut worker = match worker {
            Ok(worker) => worker,
            Err(error) => {
                let why = format!("the probe was not started: {error}");
                return Probed { trouble: Some(Trouble::Failed(why)), ..probed };
            }
        };
        probed.trouble = self.ask(&mut worker, device, task, &mut probed).err();
        match &probed.trouble {
            None | Some(Trouble::Held(_) | Trouble::Gone) => self.worker = Some(worker),
            // It was killed, left behind and all.
            Some(Trouble::TimedOut { .. } | Trouble::NotReady { .. }) => {}
            Some(Trouble::Failed(_)) => end(worker, self.kill),
        }
        probed
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            end(worker, self.kill);
        }
    }
}

fn trouble(line: Line) -> Trouble {
    match line {
        Line::Held(holder) => Trouble::Held(holder),
        Line::Gone => Trouble::Gone,
        Line::Failed(why) => Trouble::Failed(why),
        line => Trouble::Failed(format!("the probe's answer is out of order: {line:?}")),
    }
}

/// This program as a worker, even if its file was replaced since it was started.
fn this_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("uverbs").args(["check", "--worker"]);
    command
}

/// Starts a worker. It shares nothing with the caller: not its stderr, which somebody may read to the end, nor its
/// directory, which somebody may want to unmount.
fn start(mut command: Command) -> io::Result<Worker> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).current_dir("/");
    let mut child = command.spawn()?;
    let gone = || io::Error::other("its pipes are missing");
    let requests = child.stdin.take().ok_or_else(gone)?;
    let stdout = BufReader::new(child.stdout.take().ok_or_else(gone)?);
    let (sender, lines) = mpsc::channel();
    // It ends with the worker, or with this process.
    thread::Builder::new().spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(Worker { child, requests, lines })
}

/// Ends a worker that waits for requests.
fn end(worker: Worker, kill: fn(&mut Child) -> bool) {
    let Worker { mut child, requests, .. } = worker;
    drop(requests);
    if !has_ended(&mut child, GRACE) {
        kill(&mut child);
    }
}

/// Kills a worker. Returns whether it has ended.
fn kill(child: &mut Child) -> bool {
    let _ = child.kill();
    has_ended(child, GRACE)
}

fn has_ended(child: &mut Child, within: Duration) -> bool {
    let end = Instant::now() + within;
    loop {
        match child.try_wait() {
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
            Ok(None) => return false,
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

#[cfg(all(test, feature = "demo"))]
mod tests;
