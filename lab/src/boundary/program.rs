//! The programs that are stopped. Each prepares itself, does the tested operation between two marks, and reports
//! what it opened.

use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, bail};
use uverbs::{Device, Host, Registry};

use super::crowd::RIGHT;
use super::link::Resource;
use super::mutation::ASIDE;
use super::process::Process;
use super::trace::{mark, stop, trace_me};
use super::verbs;
use super::world::NODE;
use crate::guest;
use crate::ibverbs::{Ibverbs, Lookup};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Stopped while it lists; opens undisturbed.
    Devices,
    Open,
    /// Has opened the device once and keeps it open, so that the next open is proved by its number, if nobody else
    /// has that.
    OpenAgain,
    /// Opens the node by its own means and verifies it.
    Verify,
    /// Opens with libibverbs and verifies with the library.
    VerifyIbverbs,
    /// Opens the right node and keeps it; verifies a descriptor of an older device.
    KeepRight,
    /// The reverse.
    KeepWrong,
    /// The control: only libibverbs.
    IbvOpenDevice,
    /// The same under the guard, with a list that the guard sees; with one that it does not see.
    Guarded,
    GuardedUnseen,
    /// Under the guard, stopped while it lists for the second time; opens undisturbed, by the name.
    GuardedList,
}

pub(super) const OURS: [Program; 7] = [
    Program::Devices,
    Program::Open,
    Program::OpenAgain,
    Program::Verify,
    Program::VerifyIbverbs,
    Program::KeepRight,
    Program::KeepWrong,
];
/// The program that is wrong under the library's first rule. (`verify` has only its own rule.)
pub(super) const OLD_RULE: [Program; 1] = [Program::Open];
pub(super) const CONTROL: [Program; 1] = [Program::IbvOpenDevice];
pub(super) const GUARDED: [Program; 3] =
    [Program::Guarded, Program::GuardedUnseen, Program::GuardedList];

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Open => "open",
            Self::OpenAgain => "open again",
            Self::Verify => "verify",
            Self::VerifyIbverbs => "verify ibv_open_device",
            Self::KeepRight => "verify wrong, keep right",
            Self::KeepWrong => "verify right, keep wrong",
            Self::IbvOpenDevice => "ibv_open_device",
            Self::Guarded => "guarded ibv_open_device",
            Self::GuardedUnseen => "guarded ibv_open_device, list not seen",
            Self::GuardedList => "guarded ibv_get_device_list",
        }
    }

    /// Whether the library allocates the context, and then also frees it.
    pub(super) fn allocates(self) -> bool {
        matches!(self, Self::Devices | Self::Open | Self::OpenAgain | Self::IbvOpenDevice)
            || self.is_guarded()
    }

    /// Whether it runs under the guard.
    pub(super) fn is_guarded(self) -> bool {
        GUARDED.contains(&self)
    }

    /// Whether `Device::open` is disturbed.
    pub(super) fn is_open(self) -> bool {
        matches!(self, Self::Open | Self::OpenAgain)
    }

    pub(super) fn is_ours(self) -> bool {
        self != Self::IbvOpenDevice
    }

    /// Whether it needs a node that is bound to an older device.
    pub(super) fn needs_old(self) -> bool {
        matches!(self, Self::KeepRight | Self::KeepWrong)
    }

    /// How many contexts it has on the right device, not counting the one in question.
    pub(super) fn keeps_right(self) -> usize {
        usize::from(matches!(self, Self::KeepRight | Self::OpenAgain))
    }

    /// How many of these it has before the scene begins.
    pub(super) fn opened_before(self) -> usize {
        usize::from(self == Self::OpenAgain)
    }

    /// How many protection domains it has there.
    pub(super) fn keeps_right_domains(self) -> usize {
        usize::from(self == Self::KeepRight)
    }

    /// How many it has on an older device.
    pub(super) fn keeps_wrong(self) -> usize {
        usize::from(self == Self::KeepWrong)
    }

    /// Whether it must be refused if nothing happens to it.
    pub(super) fn is_refused(self) -> bool {
        self == Self::KeepRight
    }

    /// Starts it. It stops before it allocates each of its own `count` entries, before it begins, and once more
    /// when it is ready.
    pub(super) fn start(self, resource: Resource, count: usize) -> Result<Process> {
        start(move |output| {
            let registry = Registry::new(Host::open()?);
            // First of all: what the scene adds then has the next numbers.
            let first = match self {
                Self::OpenAgain => Some(registry.devices()?.by_name("tst")?.open()?),
                _ => None,
            };
            stop();
            let mut own = Vec::new();
            for _ in 0..count {
                let node = verbs::open(RIGHT)?;
                if resource == Resource::Domain {
                    verbs::allocate_domain(&node)?;
                }
                own.push(node);
                stop();
            }
            let done = self.run(output, &registry);
            drop(first);
            done
        })
    }

    fn run(self, output: &File, registry: &Registry) -> Result<()> {
        // Reported while everything is still open. Then the program is stopped.
        let report = |line: &str| -> Result<()> {
            writeln!(&mut &*output, "{line}")?;
            stop();
            Ok(())
        };
        if self == Self::IbvOpenDevice || self.is_guarded() {
            let is_seen = matches!(self, Self::Guarded | Self::GuardedList);
            let lookup = if is_seen { Lookup::Program } else { Lookup::Library };
            let ibverbs = Ibverbs::load_as(lookup)?;
            let list = ibverbs.list()?;
            trace_me()?;
            mark();
            if self == Self::GuardedList {
                let list = ibverbs.list();
                mark();
                let opened = list.and_then(|list| {
                    let index = list.index("tst")?;
                    list.open_and_keep("tst").map(|()| index)
                });
                return match opened {
                    Ok(index) => report(&format!("opened #{index} - -")),
                    Err(_) => report("refused failed"),
                };
            }
            let opened = list.open_and_keep("tst");
            mark();
            return report(if opened.is_ok() { "opened - - -" } else { "refused failed" });
        }
        let listed = || registry.devices().and_then(|devices| devices.by_name("tst"));
        if self == Self::Devices {
            trace_me()?;
            mark();
            let device = listed();
            mark();
            return match device.and_then(|device| device.open().map(|context| (device, context))) {
                Err(error) => report(&refused(&error)),
                Ok((device, context)) => report(&opened(&device, &context)?),
            };
        }
        let device = listed()?;
        if self.is_open() {
            trace_me()?;
            mark();
            let context = device.open();
            mark();
            return match context {
                Err(error) => report(&refused(&error)),
                Ok(context) => report(&opened(&device, &context)?),
            };
        }
        let ibverbs = if self == Self::VerifyIbverbs { Some(Ibverbs::load()?) } else { None };
        let list = ibverbs.as_ref().map(Ibverbs::list).transpose()?;
        trace_me()?;
        mark();
        let mut kept = Vec::new();
        let verified = verify(&device, || match self {
            Self::KeepRight => {
                kept.push(open_with_domain(RIGHT)?);
                open_stale()
            }
            Self::KeepWrong => {
                kept.push(open_with_domain(ASIDE)?);
                Ok(verbs::open(RIGHT)?)
            }
            _ => match &list {
                Some(list) => list.open_and_keep("tst").and_then(|()| cmd_fd()),
                // libibverbs waits five seconds for a missing node.
                None => Ok(verbs::open(NODE)?),
            },
        });
        mark();
        match &verified {
            Ok((_, index)) => report(&format!("opened {} - {index}", device.instance().ino)),
            Err(line) => report(line),
        }
    }
}

/// Verifies a descriptor that was opened by other means. Returns it with the index under which it was found.
fn verify(
    device: &Device,
    open: impl FnOnce() -> Result<OwnedFd>,
) -> std::result::Result<(OwnedFd, u32), String> {
    let fd = open().map_err(|_| "refused not-opened".to_owned())?;
    let evidence = device.verify(&fd).map_err(|error| refused(&error))?;
    let index = evidence.index().ok_or_else(|| "failed no index".to_owned())?;
    Ok((fd, index))
}

fn refused(error: &uverbs::Error) -> String {
    format!("refused {:?}", error.kind())
}

fn open_with_domain(path: &str) -> Result<OwnedFd> {
    let node = verbs::open(path)?;
    verbs::allocate_domain(&node)?;
    Ok(node)
}

/// The node that is bound to an older device, wherever it is by now.
fn open_stale() -> Result<OwnedFd> {
    match verbs::open(ASIDE) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(verbs::open(NODE)?),
        opened => Ok(opened?),
    }
}

/// Starts the program that is to be traced. If it fails or panics, it reports that and ends.
pub(super) fn start(work: impl FnOnce(&File) -> Result<()>) -> Result<Process> {
    Process::fork(|output| {
        let what = match catch_unwind(AssertUnwindSafe(|| work(&output))) {
            Ok(Ok(())) => return 0,
            Ok(Err(error)) => format!("failed {error:#}"),
            Err(_) => "panicked".to_owned(),
        };
        let _ = writeln!(&output, "{what}");
        1
    })
}

/// The listed device, and what the program has opened.
fn opened(device: &uverbs::Device, context: &uverbs::Context) -> Result<String> {
    let guid = context.query_device().map_or("-".into(), |found| found.node_guid.0.to_string());
    let index = context.evidence().index().context("no index")?;
    Ok(format!("opened {} {guid} {index}", device.instance().ino))
}

/// The only descriptor of this process that is a uverbs node.
fn cmd_fd() -> Result<OwnedFd> {
    for name in guest::names("/proc/self/fd") {
        let Ok(path) = std::fs::read_link(format!("/proc/self/fd/{name}")) else { continue };
        if path.starts_with("/dev/infiniband") {
            return borrowed(name.parse()?);
        }
    }
    bail!("libibverbs has no uverbs node open")
}

#[allow(unsafe_code)]
fn borrowed(fd: i32) -> Result<OwnedFd> {
    // SAFETY: libibverbs keeps it open for as long as the process lives.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(fd.try_clone_to_owned()?)
}
