//! `uverbs hook`.

mod container;
mod state;
mod syslog;

use std::ffi::OsString;
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
use uverbs::{BootId, Devices, Expectation, Host, Registry};

use crate::boot;
use crate::output::{Failure, Out};
use container::Container;
use state::State;

/// Check, on the host, that a container about to start has the device that it was given, and refuse it otherwise.
///
/// What it promises: at the moment of the check, each device of EXPECTATION is where it is expected, has the uverbs
/// number and the device number under which it was given, and the container's own node has that number. With a GUID or
/// an instance in EXPECTATION, these are the device's, too. What it does not promise: it looks once, before the
/// container starts. Afterwards nothing watches. A device that is replaced while the container runs is noticed by the
/// program alone: by opening it with this library, or with `uverbs open --expect-env`. A device that was bound again,
/// with the same address and numbers, passes unless the instance is in EXPECTATION (`uverbs cdi --with-instance`). And
/// it does not protect the host: a runtime that runs no hooks starts the container unchecked.
///
/// `uverbs cdi` writes it into its file as a createRuntime hook of the OCI runtime specification. The runtime passes
/// the state of the container on stdin. The node is looked at, and never opened, in the container's root as the
/// container will see it, and in `linux.devices` of its config.json; it has to be in one of them, and right in both.
/// Links in the root cannot lead out of it. The hook takes five seconds at most, and refuses the container when they
/// are over. Each refusal is one line on stderr, which crun discards, and in syslog (daemon.err, uverbs-hook).
#[derive(Args)]
pub(crate) struct HookArgs {
    /// What the container was given, such as v1,pci=0000:3b:00.2,uverbs=19,dev_t=231:211
    #[arg(value_name = "EXPECTATION", required = true)]
    expectations: Vec<OsString>,
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
        .args(["hook", "--look", "--"])
        .args(&args.expectations)
        .stdin(Stdio::inherit())
        .stdout(Stdio::piped())
        // A runtime may read stderr to its end, which a process that hangs would keep from it.
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| refusal(None, &format!("the check cannot be started: {error}")))?;
    let printed = read_until(&mut child, end);
    let status = end_of(&mut child, end);
    match (printed, status) {
        (Ok(printed), Some(status)) if status.success() && printed == PASSED => Ok(()),
        (_, None) => {
            let text = format!("the check took more than {} s", LIMIT.as_secs());
            Err(refusal(None, &text))
        }
        (Ok(printed), Some(_)) if !printed.is_empty() && printed != PASSED => {
            // It is escaped already. One line, whatever it is.
            let plain =
                |byte: &u8| if matches!(byte, b' '..=b'~') { char::from(*byte) } else { '?' };
            Err(printed.trim_ascii_end().iter().map(plain).collect())
        }
        (Err(error), _) => {
            Err(refusal(None, &format!("the check's answer cannot be read: {error}")))
        }
        (Ok(_), Some(status)) => {
            Err(refusal(None, &format!("the check ended without a reason: {status}")))
        }
    }
}

/// What the child prints, to its end or that of the time.
fn read_until(child: &mut Child, end: Instant) -> io::Result<Vec<u8>> {
    let mut printed = Vec::new();
    let Some(mut stdout) = child.stdout.take() else { return Ok(printed) };
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN)], Some(&time)) {
            Ok(0) => return Ok(printed),
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
        }
        let mut buffer = [0; 1024];
        match stdout.read(&mut buffer)? {
            0 => return Ok(printed),
            len if (printed.len() + len) as u64 > REASON_MAX => return Ok(printed),
            len => printed.extend_from_slice(&buffer[..len]),
        }
    }
}

/// How the child ended; `None` if it did not in time. It is killed then, and not waited for any longer than a moment.
fn end_of(child: &mut Child, end: Instant) -> Option<ExitStatus> {
    let poll_until = |child: &mut Child, end: Instant| loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    };
    let ended = poll_until(child, end);
    if ended.is_none() {
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
    // Whoever waits for it may be killed first.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let (id, result) = check(&args.expectations);
    match result {
        Ok(()) => out.bytes(PASSED).map(|()| true),
        Err(why) => {
            out.bytes(format!("{}\n", refusal(id.as_deref(), &why)).as_bytes()).map(|()| false)
        }
    }
}

/// The id of the container, if it is known, and why the container must not start.
fn check(expectations: &[OsString]) -> (Option<String>, Result<(), String>) {
    let state = match State::read(io::stdin().lock()) {
        Ok(state) => state,
        Err(why) => return (None, Err(why)),
    };
    let result = parse(expectations).and_then(|expectations| {
        let boot = expectations.iter().any(Expectation::needs_boot_id).then(boot::id).transpose();
        let boot = boot.map_err(|failure| failure.to_string())?;
        let devices = Host::open().and_then(|host| Registry::new(host).devices());
        let devices = devices.map_err(|error| error.to_string())?;
        let container = Container::find(&state)?;
        expectations
            .iter()
            .try_for_each(|expectation| judge(expectation, &devices, boot, &container))
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

/// The host first, and then the container.
fn judge(
    expectation: &Expectation,
    devices: &Devices,
    boot: Option<BootId>,
    container: &Container,
) -> Result<(), String> {
    const ANEW: &str =
        "create the container again, so that it is given the device that is there now";
    let found = expectation.find(devices, boot);
    found.map_err(|error| format!("{error}: {ANEW}"))?;
    container.check_node(expectation.uverbs_number(), expectation.device_number())
}

#[cfg(test)]
mod tests;
