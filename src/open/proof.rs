//! Step 7: the proof, asked through the descriptor itself.
//!
//! No look at /sys or at the node tells which device a cmd fd is bound to: a node that was made by
//! hand keeps the device it was first opened on. What tells is the context. The kernel lists under
//! each device's netlink index the contexts on it, each with the thread that allocated it. A context
//! of this thread that is listed under the pinned device's index now, and was not before this
//! thread allocated one, is the one that it has just allocated. That holds also where GUIDs are
//! equal or zero.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{Pin, Prepared, allocate};
use crate::attr::retry;
use crate::context::{CmdFd, ContextClaim, query_device};
use crate::device::Record;
use crate::driver::DriverId;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Evidence, Step, Value};
use crate::kernel::rdma::ContextEntry;
use crate::kernel::{Errno, Kernel, VerbsCall};
use crate::name::Guid;
use crate::netlink::{Contexts, Socket};

/// That a context was proved to be on the device. Made here, by [`prove`], and nowhere else; a
/// [`Context`](crate::Context) is made of nothing less.
#[derive(Debug)]
pub(crate) struct Proven(());

/// What the proof came to, if nothing contradicted.
pub(super) enum Proof {
    Proven(Proven),
    Unproven(Error),
}

/// What the kernel listed before the context was allocated.
#[derive(Debug)]
pub(super) struct Baseline {
    socket: Arc<Socket>,
    index: u32,
    node_guid: Guid,
    thread: u32,
    /// The context is allocated here, on this thread, and not by somebody else.
    allocates: bool,
    /// This thread's contexts on the device; none where the list took more than one message.
    contexts: Option<Vec<u32>>,
}

impl Baseline {
    /// Joins the device with its netlink index, and asks what is known under it.
    ///
    /// # Errors
    /// Unproven where the kernel does not tell.
    pub(super) fn take(record: &Record, pin: &Pin, allocates: bool) -> Result<Self> {
        Self::ask(record, pin, allocates).map_err(|error| match error.kind() {
            ErrorKind::Os | ErrorKind::PermissionDenied => error.into_kind(ErrorKind::Unproven),
            _ => error,
        })
    }

    fn ask(record: &Record, pin: &Pin, allocates: bool) -> Result<Self> {
        if !record.host.is_sysfs() {
            return Err(Error::new(
                ErrorKind::Unproven,
                "/sys is not sysfs, so what is there proves nothing",
            ));
        }
        let socket = record.host.netlink()?;
        let index = record.indices.join(record, pin, &socket)?.index;
        let info = socket.device(index)?.ok_or_else(|| unknown(index))?;
        let thread = record.host.kernel().gettid();
        let contexts = socket.contexts(index, of(thread))?.ok_or_else(|| cannot_list(index))?;
        let contexts = contexts.in_one_message.then_some(contexts.numbers);
        Ok(Self { socket, index, node_guid: Guid(info.node_guid), thread, allocates, contexts })
    }

    /// The contexts of `thread` on the device now.
    fn now(&self, thread: u32) -> Result<Contexts> {
        self.socket.contexts(self.index, of(thread))?.ok_or_else(|| cannot_list(self.index))
    }
}

/// The contexts that a thread allocated.
fn of(thread: u32) -> impl Fn(&ContextEntry) -> bool {
    move |entry| entry.thread == Some(thread)
}

fn unknown(index: u32) -> Error {
    Error::new(ErrorKind::Unproven, format!("RDMA netlink knows no device of index {index}"))
}

fn cannot_list(index: u32) -> Error {
    Error::new(
        ErrorKind::Unproven,
        format!(
            "RDMA netlink lists no contexts of index {index}: it is gone, or Linux is older than 5.13"
        ),
    )
}

/// Steps 6 and 7: allocates the context and proves where it is. Where the list of contexts is too
/// long for one message, on a thread of its own: that one has no other contexts.
pub(super) fn allocate_and_prove(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    prepared: &Prepared,
    baseline: Result<Baseline>,
    evidence: &mut Evidence,
) -> Result<Proof> {
    let baseline = match baseline {
        Ok(baseline) => baseline,
        Err(reason) => {
            allocate(cmd, prepared)?;
            alive(record, pin, evidence)?;
            return Ok(Proof::Unproven(reason));
        }
    };
    if baseline.contexts.is_some() {
        allocate(cmd, prepared)?;
        return prove(record, pin, cmd.as_ref(), cmd.driver(), &baseline, evidence);
    }
    std::thread::scope(|scope| {
        let proving = || {
            allocate(cmd, prepared)?;
            let thread = record.host.kernel().gettid();
            let baseline = Baseline { thread, contexts: Some(Vec::new()), ..baseline };
            prove(record, pin, cmd.as_ref(), cmd.driver(), &baseline, evidence)
        };
        let spawned = std::thread::Builder::new().spawn_scoped(scope, proving);
        let joined = spawned.map_err(|error| {
            Error::new(ErrorKind::Unproven, format!("no thread to prove on: {error}"))
        })?;
        joined.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Step 7 on a descriptor that has its context.
pub(super) fn prove(
    record: &Record,
    pin: &Pin,
    fd: BorrowedFd<'_>,
    driver: DriverId,
    baseline: &Baseline,
    evidence: &mut Evidence,
) -> Result<Proof> {
    let (what, expected) = ("node GUID, through the descriptor", Value::Guid(baseline.node_guid));
    evidence.require(Step::Prove, what, ErrorKind::NodeMismatch, expected, || {
        let attributes = query_device(record.host.kernel(), fd, driver).map_err(on_dead_device)?;
        Ok(Value::Guid(attributes.node_guid))
    })?;

    let listed = listed(record, baseline)?;
    if let Ok(new) = &listed {
        // None is a contradiction where this thread has just allocated one for certain.
        let otherwise = match new.len() {
            0 if baseline.allocates => ErrorKind::NodeMismatch,
            _ => ErrorKind::Unproven,
        };
        let what = "new contexts of this thread under the index";
        let found = Value::Number(new.len() as u64);
        evidence.require(Step::Prove, what, otherwise, Value::Number(1), || Ok(found))?;
        evidence.index = Some(baseline.index);
        evidence.context_number = new.first().copied();
    }
    alive(record, pin, evidence)?;
    Ok(match listed {
        Ok(_) => Proof::Proven(Proven(())),
        Err(reason) => Proof::Unproven(Error::new(ErrorKind::Unproven, reason)),
    })
}

/// The half of step 7 that is left when somebody else has allocated the context, and proved it.
pub(super) fn adopt(
    record: &Record,
    cmd: &CmdFd,
    claim: &ContextClaim,
    evidence: &mut Evidence,
) -> Result<Proven> {
    let guid = |guid| Ok(Value::Guid(guid));
    let expected = || Value::Guid(claim.node_guid);
    let what = "node GUID, through the descriptor";
    evidence.require(Step::Prove, what, ErrorKind::NodeMismatch, expected(), || {
        let attributes = query_device(record.host.kernel(), cmd.as_ref(), claim.driver);
        guid(attributes.map_err(on_removed)?.node_guid)
    })?;
    let socket = record.host.netlink()?;
    let what = "node GUID, of the index";
    evidence.require(Step::Prove, what, ErrorKind::Removed, expected(), || {
        guid(Guid(socket.device(claim.index)?.ok_or_else(|| removed(claim.index))?.node_guid))
    })?;
    let what = "contexts of that number under the index";
    evidence.require(Step::Prove, what, ErrorKind::Unproven, Value::Number(1), || {
        let mut found = 0;
        for _ in 0..REPEATS {
            let listed =
                socket.contexts(claim.index, |entry| entry.ctxn == claim.context_number)?;
            let listed = listed.ok_or_else(|| cannot_list(claim.index))?;
            found = listed.numbers.len();
            if found > 0 || listed.in_one_message {
                break;
            }
        }
        Ok(Value::Number(found as u64))
    })?;
    evidence.index = Some(claim.index);
    evidence.context_number = Some(claim.context_number);
    Ok(Proven(()))
}

fn removed(index: u32) -> Error {
    Error::new(ErrorKind::Removed, format!("RDMA netlink knows no device of index {index}"))
}

/// There is no pinned device here that is known to be alive.
fn on_removed(error: Error) -> Error {
    match error.errno() {
        Some(Errno::IO) => error.into_kind(ErrorKind::Removed),
        _ => on_dead_device(error),
    }
}

/// The pinned device answers its commands: a descriptor that says EIO is on one that is gone.
pub(super) fn on_dead_device(error: Error) -> Error {
    match error.errno() {
        Some(Errno::IO) => error
            .into_kind(ErrorKind::NodeMismatch)
            .hint("the node is still bound to a device that is gone"),
        Some(Errno::INVAL) => error.into_kind(ErrorKind::Unproven).hint("has it a context?"),
        _ => error,
    }
}

/// The contexts that this thread has on the device and had not before, or why that cannot be told.
fn listed(
    record: &Record,
    baseline: &Baseline,
) -> Result<std::result::Result<Vec<u32>, &'static str>> {
    if baseline.thread != record.host.kernel().gettid() {
        return Ok(Err("this is another thread than the one that pinned the device"));
    }
    let Some(before) = &baseline.contexts else {
        return Ok(Err("the list of contexts before took more than one message"));
    };
    // A list in one message is believed when it says twice that there is none. One in several may
    // leave an entry out whenever a context before it goes away meanwhile.
    let mut empty = 0;
    for _ in 0..REPEATS {
        let mut now = baseline.now(baseline.thread)?;
        now.numbers.retain(|number| !before.contains(number));
        empty += usize::from(now.numbers.is_empty() && now.in_one_message);
        if !now.numbers.is_empty() || empty == 2 {
            return Ok(Ok(now.numbers));
        }
    }
    Ok(Err("the list of contexts takes more than one message"))
}

/// How often the contexts are listed until the new one is among them.
const REPEATS: usize = 8;

/// The last look: the pinned device was alive all the while, so its index and its device number
/// were its own.
pub(super) fn alive(record: &Record, pin: &Pin, evidence: &mut Evidence) -> Result<()> {
    let what = "device number (dev), at the end";
    let expected = Value::Device(record.device_number);
    evidence.require(Step::Prove, what, ErrorKind::Replaced, expected, || {
        pin.read_device_number().map(Value::Device)
    })
}

/// Asks a cmd fd for its driver, where netlink does not tell: a command that does not exist is EINVAL
/// for the wrong driver and EPROTONOSUPPORT for the right one (`ib_uverbs_cmd_verbs`,
/// `drivers/infiniband/core/uverbs_ioctl.c`), and does nothing.
pub(super) fn probe_driver(
    kernel: &Kernel,
    fd: BorrowedFd<'_>,
    guess: Option<DriverId>,
) -> Result<DriverId> {
    for driver in guess.into_iter().chain(DriverId::all()) {
        let mut call =
            VerbsCall { object: 0, method: NO_METHOD, driver_id: driver.to_raw(), attrs: &mut [] };
        match retry(|| kernel.verbs_ioctl(fd, &mut call)) {
            Err(Errno::PROTONOSUPPORT) => return Ok(driver),
            Err(Errno::INVAL) => {}
            Err(errno) => return Err(Error::call("ioctl(RDMA_VERBS_IOCTL)", errno)),
            Ok(()) => break,
        }
    }
    Err(Error::new(ErrorKind::Unsupported, "no driver that this version knows answers"))
}

/// A method that no object of the ioctl ABI has.
const NO_METHOD: u16 = 0xfff;
