//! The process that touches devices for `uverbs check`: it opens them and reads their ports.
//!
//! A call on a device with hung firmware may never return, and no signal ends it. So these calls are made in a child,
//! which can be left behind. It reads a request a line on stdin, answers in lines on stdout, and ends with its stdin.

use std::io::{self, BufRead as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uverbs::{Device, ErrorKind, Host, Registry};

use super::lock::{self, Holder, Lock, NotLocked};
use super::ports::{self, Port};
use crate::child::close_inherited;
use crate::output::Failure;

/// What to do with a device.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Task {
    /// Open it, and prove that it is the one that is listed.
    pub(super) open: bool,
    /// Read the state of its ports.
    pub(super) ports: bool,
}

/// A device, and what to do with it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    number: u32,
    sys_dev: u64,
    inode: u64,
    /// `None` where netlink does not report it.
    index: Option<u32>,
    task: Task,
    /// How long to wait for a probe of another run.
    wait: Duration,
}

impl Request {
    pub(super) fn new(device: &Device, task: Task, wait: Duration) -> Self {
        let instance = device.instance();
        Self {
            number: device.uverbs_number(),
            sys_dev: instance.sys_dev,
            inode: instance.ino,
            index: device.index().ok(),
            task,
            wait,
        }
    }
}

/// Why a device did not open.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Refusal {
    /// The message, without the device.
    pub(super) message: String,
    /// The error, as `--json` prints it.
    pub(super) error: Value,
}

impl Refusal {
    /// Whether the device is not there any more.
    pub(super) fn is_gone(&self) -> bool {
        ["removed", "replaced"].iter().any(|kind| self.error["kind"] == *kind)
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let message = failure.without_device().to_owned();
        Self { message, error: serde_json::to_value(failure).unwrap_or_default() }
    }
}

/// A line of an answer, in the order in which they come. `Locked` comes first, and then a line for each part of the task.
/// The others end an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Line {
    /// No other process probes the device.
    Locked,
    /// It was opened and proved, or not.
    Opened(Result<(), Refusal>),
    Ports(Vec<Port>),
    /// Another process probes it.
    Held(Holder),
    /// It is not there any more, or was replaced.
    Gone,
    /// It could not be probed.
    Failed(String),
}

/// Serves requests until stdin ends, or nobody reads the answers.
pub(super) fn run() -> ExitCode {
    close_inherited();
    // Whoever is to kill it may be killed first. stdin ends it only between two devices.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let registry = match Host::builder().allow_foreign_sys(true).build() {
        Ok(host) => Ok(Registry::new(host)),
        Err(error) => Err(Failure::from(error).to_string()),
    };
    for line in io::stdin().lock().lines() {
        let Ok(request) = line
            .map_err(drop)
            .and_then(|line| serde_json::from_str::<Request>(&line).map_err(drop))
        else {
            return ExitCode::FAILURE;
        };
        let served = match &registry {
            Ok(registry) => serve(registry, &request, &mut say),
            Err(why) => say(&Line::Failed(why.clone())),
        };
        if served.is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn say(line: &Line) -> io::Result<()> {
    let mut text = serde_json::to_vec(line)?;
    text.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&text)?;
    stdout.flush()
}

fn serve(
    registry: &Registry,
    request: &Request,
    say: &mut impl FnMut(&Line) -> io::Result<()>,
) -> io::Result<()> {
    let directory = format!("/sys/class/infiniband_verbs/uverbs{}", request.number);
    let instance = (request.sys_dev, request.inode);
    let lock = match lock::take(Path::new(&directory), instance, request.wait) {
        Ok(lock) => lock,
        Err(NotLocked::Held(holder)) => return say(&Line::Held(holder)),
        Err(NotLocked::Gone) => return say(&Line::Gone),
        Err(NotLocked::Failed(why)) => return say(&Line::Failed(why)),
    };
    answer(registry, request, &lock, say)
}

/// Answers, with the directory of the device locked.
fn answer(
    registry: &Registry,
    request: &Request,
    lock: &Lock,
    say: &mut impl FnMut(&Line) -> io::Result<()>,
) -> io::Result<()> {
    say(&Line::Locked)?;
    if request.task.open {
        let opened = find(registry, request)
            .and_then(|device| device.open().map(drop).map_err(Failure::from));
        say(&Line::Opened(opened.map_err(Refusal::from)))?;
    }
    if request.task.ports {
        say(&Line::Ports(ports::read(&lock.directory)))?;
    }
    Ok(())
}

/// The device of a request, by its index where it is known: a sweep for each of a thousand devices would take minutes.
pub(super) fn find(registry: &Registry, request: &Request) -> Result<Device, Failure> {
    let device = match request.index {
        Some(index) => registry.by_index(index),
        None => registry.devices()?.by_uverbs_number(request.number),
    };
    let device = device.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::new("removed", error.to_string()),
        _ => Failure::from(error),
    })?;
    let instance = device.instance();
    match (instance.sys_dev, instance.ino) == (request.sys_dev, request.inode) {
        true => Ok(device),
        false => {
            Err(Failure::new("replaced", "another device has its index and number").of(&device))
        }
    }
}
