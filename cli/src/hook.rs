//! `uverbs hook`.

mod container;
mod nodes;
mod state;
mod syslog;

use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, set_parent_process_death_signal};
use uverbs::{BootId, Device, Devices, ErrorKind, Expectation, Host, Registry};

use crate::boot;
use crate::cdi::host;
use crate::child::close_inherited;
use crate::output::{Failure, Out};
use container::Container;
use state::State;

/// Check, on the host, that a container about to start has the device that it was given, and refuse it otherwise.
///
/// What it promises: at the moment of the check, each device of EXPECTATION is where it is expected, has the uverbs
/// number and the device number under which it was given, and the container's own node has that number. With a GUID or
/// an instance in EXPECTATION, these are the device's, too. Each node of --node has its number, on the host and in the
/// container, and a umadN or issmN belongs to the device. Other nodes of the container are not looked at.
///
/// What it does not promise: it looks once, before the container starts. Afterwards nothing watches. A device that is
/// replaced while the container runs is noticed by the program alone: by opening it with this library, or with `uverbs
/// open --expect-env`. A device that was bound again, with the same address and numbers, passes unless the instance is
/// in EXPECTATION (`uverbs cdi --with-instance`). And it does not protect the host: a runtime that runs no hooks starts
/// the container unchecked.
///
/// `uverbs cdi` writes it into its file as a createRuntime hook of the OCI runtime specification. The runtime passes
/// the state of the container on stdin. A node is looked at, and never opened, in the container's root as the container
/// will see it. If `linux.devices` of its config.json lists the node, the number there is compared, too; that list alone
/// is enough only where the root cannot be seen. Links in the root cannot lead out of it. The hook takes five seconds at
/// most, and refuses the container when they are over. A refusal is one line on stderr, which crun discards, and in
/// syslog (daemon.err, uverbs-hook). Wrong usage is reported on stderr alone.
#[derive(Args)]
pub(crate) struct HookArgs {
    /// What the container was given, such as v1,pci=0000:3b:00.2,uverbs=19,dev_t=231:211
    #[arg(value_name = "EXPECTATION", required = true)]
    expectations: Vec<OsString>,
    /// Another node that the container was given: umadN or issmN of the device, or rdma_cm, and the number it had, such
    /// as umad3=231:3
    ///
    /// It may be repeated.
    #[arg(long = "node", value_name = "NAME=MAJOR:MINOR")]
    nodes: Vec<OsString>,
    /// Make the check, and print the result for the process that waits for it
    #[arg(long, hide = true)]
    look: bool,
}

/// How long the check may take. The runtime's own limit, in the CDI file, is longer.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a check that was killed has to end.
const GRACE: Duration = Duration::from_millis(200);
/// What the checking process prints if the container may start.
const PASSED: &[u8] = b"passed\n";
/// The longest reason, in bytes.
const REASON_MAX: u64 = 4096;

pub(crate) fn run(args: &HookArgs, out: &mut Out) -> Result<bool, Failure> {
    if args.look {
        return look(args, out);
    }
    match supervise(args) {
        Ok(()) => Ok(true),
        Err(reason) => {
            syslog::send(&reason);
            Err(Failure::new("not_expected", reason))
        }
    }
}

/// Has another process make the check. A call may never return, such as one in a root that hangs, and no signal ends
/// it; a process can be left behind.
fn supervise(args: &HookArgs) -> Result<(), String> {
    let end = Instant::now() + LIMIT;
    let mut child = Command::new("/proc/self/exe")
        .args(["hook", "--look"])
        .args(args.nodes.iter().flat_map(|node| [OsStr::new("--node"), node]))
        .arg("--")
        .args(&args.expectations)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        // A runtime may read stderr to its end, which a process that hangs would keep from it.
        .stderr(Stdio::null())
        // Somebody may want to unmount the runtime's.
        .current_dir("/")
        .spawn()
        .map_err(|error| refusal(None, &format!("the check cannot be started: {error}")))?;
    let printed = read_until(&mut child, end);
    let ended = end_of(&mut child, end);
    judge(printed, ended)
}

/// How the process of the check ended.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    With(ExitStatus),
    /// Its status is lost: a runtime may start hooks with SIGCHLD ignored, and the kernel then keeps none.
    Unknown,
    /// It did not, in time.
    Late,
}

/// Whether the container may start: only after the whole answer that it may.
fn judge(printed: io::Result<Answer>, ended: Ended) -> Result<(), String> {
    let printed = match (printed, &ended) {
        (Ok(Answer { text, is_whole: true }), Ended::With(_) | Ended::Unknown) => text,
        (Err(error), _) => {
            return Err(refusal(None, &format!("the check's answer cannot be read: {error}")));
        }
        (Ok(_), _) => {
            let text = format!("the check took more than {} s", LIMIT.as_secs());
            return Err(refusal(None, &text));
        }
    };
    match ended {
        Ended::With(status) if printed == PASSED && status.success() => Ok(()),
        Ended::Unknown if printed == PASSED => Ok(()),
        _ if !printed.is_empty() && printed != PASSED => {
            // It is escaped already. One line, whatever it is.
            let plain =
                |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
            Err(printed.trim_ascii_end().iter().map(plain).collect())
        }
        Ended::With(status) => {
            Err(refusal(None, &format!("the check ended without a reason: {status}")))
        }
        _ => Err(refusal(None, "the check ended without a reason")),
    }
}

/// What the child printed.
struct Answer {
    text: Vec<u8>,
    /// Whether it is all, up to the end of the pipe or to the longest reason.
    is_whole: bool,
}

/// What the child prints, to its end or that of the time.
fn read_until(child: &mut Child, end: Instant) -> io::Result<Answer> {
    let mut text = Vec::new();
    let Some(mut stdout) = child.stdout.take() else {
        return Ok(Answer { text, is_whole: false });
    };
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)], Some(&time)) {
            Ok(0) => return Ok(Answer { text, is_whole: false }),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = [0; 1024];
        match stdout.read(&mut buffer)? {
            0 => return Ok(Answer { text, is_whole: true }),
            len if (text.len() + len) as u64 > REASON_MAX => {
                return Ok(Answer { text, is_whole: true });
            }
            len => text.extend_from_slice(&buffer[..len]),
        }
    }
}

/// How the child ended. One that does not in time is killed, and not waited for any longer than a moment.
fn end_of(child: &mut Child, end: Instant) -> Ended {
    let poll_until = |child: &mut Child, end: Instant| loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ended::With(status),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            Ok(None) => return Ended::Late,
            // ECHILD: it has ended, and its number may be another process's by now.
            Err(_) => return Ended::Unknown,
        }
    };
    let ended = poll_until(child, end);
    if ended == Ended::Late {
        let _ = child.kill();
        poll_until(child, Instant::now() + GRACE);
    }
    ended
}

/// A reason in words. All that is not ours in it is escaped.
fn refusal(id: Option<&str>, why: &str) -> String {
    match id {
        Some(id) => format!("container {} is refused: {why}", id.as_bytes().escape_ascii()),
        None => format!("the container is refused: {why}"),
    }
}

/// Makes the check, in the process for it.
fn look(args: &HookArgs, out: &mut Out) -> Result<bool, Failure> {
    close_inherited();
    // Whoever waits for it may be killed first.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let (id, result) = check(&args.expectations, &args.nodes);
    match result {
        Ok(()) => out.bytes(PASSED).map(|()| true),
        Err(why) => {
            out.bytes(format!("{}\n", refusal(id.as_deref(), &why)).as_bytes()).map(|()| false)
        }
    }
}

/// The id of the container, if it is known, and why the container must not start.
fn check(expectations: &[OsString], nodes: &[OsString]) -> (Option<String>, Result<(), String>) {
    let state = match State::read(io::stdin().lock()) {
        Ok(state) => state,
        Err(why) => return (None, Err(why)),
    };
    let result = parse(expectations).and_then(|expectations| {
        let nodes = nodes::parse(nodes)?;
        let boot = expectations.iter().any(Expectation::needs_boot_id).then(boot::id).transpose();
        let boot = boot.map_err(|failure| failure.to_string())?;
        let devices = Host::open().and_then(|host| Registry::new(host).devices());
        let devices = devices.map_err(|error| error.to_string())?;
        let container = Container::find(&state)?;
        let found = expectations
            .iter()
            .map(|expectation| compare(expectation, &devices, boot, &container))
            .collect::<Result<Vec<_>, _>>()?;
        if nodes.is_empty() {
            return Ok(());
        }
        let host = host::Host::open().map_err(|error| format!("cannot open /sys: {error}"))?;
        nodes::compare(&nodes, &host, &found, &container)
    });
    (state.id, result)
}

fn parse(expectations: &[OsString]) -> Result<Vec<Expectation>, String> {
    let parse = |text: &OsString| {
        let text = text.to_str().ok_or_else(|| {
            format!("\"{}\" is not an expectation", text.as_bytes().escape_ascii())
        })?;
        text.parse::<Expectation>().map_err(|error| error.to_string())
    };
    expectations.iter().map(parse).collect()
}

/// What to do about a container that was created for something else than is there now.
const AGAIN: &str = "create the container again once the device that it was given is there, so that it gets the numbers of now";

/// The host first, and then the container. Returns the device.
fn compare(
    expectation: &Expectation,
    devices: &Devices,
    boot: Option<BootId>,
    container: &Container,
) -> Result<Device, String> {
    let found = expectation.find(devices, boot).map_err(|error| match error.kind() {
        ErrorKind::NotExpected => format!("{error}: {AGAIN}"),
        _ => error.to_string(),
    })?;
    let path = format!("/dev/infiniband/uverbs{}", expectation.uverbs_number());
    container.check_node(&path, expectation.device_number())?;
    Ok(found)
}

#[cfg(test)]
mod tests;
