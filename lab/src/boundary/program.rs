//! The programs that are stopped. Each makes itself ready, does between two marks what is tested, and
//! says what it opened.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use anyhow::{Context as _, Result, bail, ensure};
use uverbs::{Host, Registry};

use super::process::Process;
use super::trace::{mark, stop, trace_me};
use super::world::NODE;
use crate::guest;
use crate::ibverbs::Ibverbs;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Stopped while it lists; opens undisturbed.
    Devices,
    Open,
    /// Opens where another process has so many contexts that the proof needs a thread of its own.
    OpenCrowded,
    /// Pins, opens the node by its own means, verifies.
    Verify,
    /// Pins undisturbed; libibverbs opens, the library verifies.
    VerifyIbverbs,
    /// The control: libibverbs alone.
    IbvOpenDevice,
}

pub(super) const OURS: [Program; 5] = [
    Program::Devices,
    Program::Open,
    Program::OpenCrowded,
    Program::Verify,
    Program::VerifyIbverbs,
];
pub(super) const CONTROL: [Program; 1] = [Program::IbvOpenDevice];

impl Program {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Devices => "devices",
            Self::Open => "open",
            Self::OpenCrowded => "open crowded",
            Self::Verify => "verify",
            Self::VerifyIbverbs => "verify ibv_open_device",
            Self::IbvOpenDevice => "ibv_open_device",
        }
    }

    /// Whether the context is made by the library, which then also takes it back.
    pub(super) fn allocates(self) -> bool {
        !matches!(self, Self::Verify | Self::VerifyIbverbs)
    }

    /// Starts it; it stops when it is ready.
    pub(super) fn start(self) -> Result<Process> {
        start(|say| self.run(say))
    }

    fn run(self, say: &File) -> Result<()> {
        // Said while everything is still open, and then it is stopped.
        let say = |line: &str| -> Result<()> {
            writeln!(&mut &*say, "{line}")?;
            stop();
            Ok(())
        };
        let refused = |error: &uverbs::Error| format!("refused {:?}", error.kind());
        if self == Self::IbvOpenDevice {
            let ibverbs = Ibverbs::load()?;
            let list = ibverbs.list()?;
            trace_me()?;
            mark();
            let opened = list.open_and_keep("tst");
            mark();
            return say(if opened.is_ok() { "opened - - -" } else { "refused failed" });
        }
        let registry = Registry::new(Host::open()?);
        let listed = || registry.devices().and_then(|devices| devices.by_name("tst"));
        match self {
            Self::Devices => {
                trace_me()?;
                mark();
                let device = listed();
                mark();
                match device.and_then(|device| device.open().map(|context| (device, context))) {
                    Err(error) => say(&refused(&error)),
                    Ok((device, context)) => say(&opened(&device, &context)?),
                }
            }
            Self::Open | Self::OpenCrowded => {
                let device = listed()?;
                trace_me()?;
                mark();
                let context = device.open();
                mark();
                match context {
                    Err(error) => say(&refused(&error)),
                    Ok(context) => say(&opened(&device, &context)?),
                }
            }
            Self::Verify => {
                let device = listed()?;
                trace_me()?;
                mark();
                let verified = match open_by_hand() {
                    Err(_) => Err("refused not-opened".to_owned()),
                    Ok(node) => verify(&device, &node).map(|index| (node, index)),
                };
                mark();
                match verified {
                    Ok((_node, index)) => {
                        say(&format!("opened {} - {index}", device.instance().ino))
                    }
                    Err(line) => say(&line),
                }
            }
            Self::VerifyIbverbs => {
                let ibverbs = Ibverbs::load()?;
                let list = ibverbs.list()?;
                let device = listed()?;
                trace_me()?;
                mark();
                let verified = match list.open_and_keep("tst") {
                    Err(_) => Err("refused not-opened".to_owned()),
                    Ok(()) => verify(&device, &cmd_fd()?),
                };
                mark();
                match verified {
                    Ok(index) => say(&format!("opened {} - {index}", device.instance().ino)),
                    Err(line) => say(&line),
                }
            }
            Self::IbvOpenDevice => unreachable!("it was run above"),
        }
    }
}

/// Starts what is to be traced. When it fails or panics it says so and ends.
pub(super) fn start(work: impl FnOnce(&File) -> Result<()>) -> Result<Process> {
    Process::fork(|say| {
        let what = match catch_unwind(AssertUnwindSafe(|| work(&say))) {
            Ok(Ok(())) => return 0,
            Ok(Err(error)) => format!("failed {error:#}"),
            Err(_) => "panicked".to_owned(),
        };
        let _ = writeln!(&say, "{what}");
        1
    })
}

/// What it asked for, and what it has.
fn opened(device: &uverbs::Device, context: &uverbs::Context) -> Result<String> {
    let guid = context.query_device().map_or("-".into(), |found| found.node_guid.0.to_string());
    let index = context.evidence().index().context("no index")?;
    Ok(format!("opened {} {guid} {index}", device.instance().ino))
}

/// Verifies a descriptor that somebody else has opened.
fn verify(device: &uverbs::Device, fd: &OwnedFd) -> std::result::Result<u32, String> {
    let evidence = device.verify(fd);
    let evidence = evidence.map_err(|error| format!("refused {:?}", error.kind()))?;
    evidence.index().ok_or_else(|| "failed no index".to_owned())
}

/// The node, with a context, and no check at all. (libibverbs waits five seconds for a node that is
/// not there.)
fn open_by_hand() -> Result<OwnedFd> {
    let node = File::options().read(true).write(true).open(NODE)?;
    get_context(node.as_fd())?;
    Ok(node.into())
}

/// Another process that holds that many contexts on uverbs0.
pub(super) fn crowd(count: usize) -> Result<Process> {
    let process = Process::fork(|say| {
        let limit = Some(count as u64 + 64);
        let limit = rustix::process::Rlimit { current: limit, maximum: limit };
        let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, limit);
        let crowd: Result<Vec<_>> = (0..count).map(|_| open_by_hand()).collect();
        let what = crowd.as_ref().map_or_else(|error| format!("{error:#}"), |_| "ready".to_owned());
        let _ = writeln!(&say, "{what}");
        stop();
        0
    })?;
    let mut said = String::new();
    guest::until("the crowd", || {
        said = process.said();
        !said.is_empty()
    })?;
    ensure!(said == "ready", "the crowd: {said}");
    Ok(process)
}

/// `UVERBS_METHOD_GET_CONTEXT`, which needs nothing for soft-RoCE and the test HCA that passes for it.
#[allow(unsafe_code)]
fn get_context(fd: BorrowedFd<'_>) -> Result<()> {
    const RDMA_VERBS_IOCTL: libc::Ioctl = 0xc018_1b01;
    const RXE: u32 = 14;
    /// `struct ib_uverbs_ioctl_hdr`.
    #[repr(C)]
    struct Header {
        length: u16,
        object: u16,
        method: u16,
        attributes: u16,
        reserved1: u64,
        driver: u32,
        reserved2: u32,
    }
    let mut header = Header {
        length: size_of::<Header>() as u16,
        object: 0,
        method: 3,
        attributes: 0,
        reserved1: 0,
        driver: RXE,
        reserved2: 0,
    };
    // SAFETY: the header is of the length that it says and has nothing behind it.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), RDMA_VERBS_IOCTL, &raw mut header) };
    ensure!(done == 0, "GET_CONTEXT: {}", std::io::Error::last_os_error());
    Ok(())
}

/// The one descriptor of this process that is a uverbs node.
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
