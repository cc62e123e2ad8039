//! Step 7: the proof, made through the descriptor itself.
//!
//! No look at /sys or at the node shows which device a cmd fd is bound to: a node that was made by hand
//! keeps the device it was first opened on. The kernel shows it: under each device's netlink index it
//! tracks the protection domains (PDs) and the contexts on that device, each with the thread that allocated
//! it. So a new thread, on which nothing else has ever run, allocates a PD through the descriptor. A PD of that
//! thread is under the pinned device's index: then the descriptor is on that device.
//!
//! That works on any descriptor that has a context, whoever opened it ([`verify`](super::verify)). Where no PD
//! can be had, an open starts over, and the new thread allocates the context itself.
//!
//! The thread has to be a new one. What a thread that runs the program's code allocates cannot be told from
//! what is allocated for it meanwhile, by a signal handler, or by io_uring, which runs requests as the thread
//! that submitted them. Nothing rests on numbers that were free, on lists, on GUIDs, or on what is *not* shown:
//! what other threads allocate, free or hide costs time and proves nothing.

use std::sync::Arc;

use super::pd::Pd;
use super::{Pin, Prepared, allocate, sysfs_guid};
use crate::attr::retry;
use crate::context::{CmdFd, query_device};
use crate::device::Record;
use crate::driver::DriverId;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Evidence, Step, Value};
use crate::kernel::rdma::{Resource, ResourceEntry};
use crate::kernel::{Errno, Undisturbed};
use crate::name::Guid;
use crate::netlink::Socket;

/// That a context was proved to be on the device. Made here and nowhere else; a
/// [`Context`](crate::Context) is made of nothing less.
#[derive(Debug)]
pub(crate) struct Proven(());

#[cfg(uverbs_leave_out)]
impl Proven {
    pub(super) fn by_old_rule() -> Self {
        Self(())
    }
}

/// The result of the proof, if nothing contradicted it.
pub(super) enum Proof {
    Proven(Proven),
    Unproven(Error),
    /// No PD can be had, so that the context itself has to be allocated on a new thread.
    NeedsNewThread(Error),
}

/// What the kernel shows of it. With a last sign of life of the pinned device this becomes a [`Proof`].
enum Shown {
    Here,
    Unproven(Error),
    NeedsNewThread(Error),
}

impl Shown {
    /// The pinned device was alive all the while.
    fn of_live_device(self) -> Proof {
        match self {
            Self::Here => Proof::Proven(Proven(())),
            Self::Unproven(reason) => Proof::Unproven(reason),
            Self::NeedsNewThread(reason) => Proof::NeedsNewThread(reason),
        }
    }
}

/// On which thread the context is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The one that called.
    Here,
    /// One that was made for it, and has no other contexts.
    NewThread,
}

/// Where the proof looks.
pub(super) struct Target {
    pub(super) socket: Arc<Socket>,
    pub(super) index: u32,
    node_guid: Guid,
    #[cfg(uverbs_leave_out)]
    pub(super) before: Option<crate::netlink::Listing>,
}

impl Target {
    /// Joins the pinned device with its netlink index.
    ///
    /// # Errors
    /// `Unproven` where the kernel does not give it, `NetlinkUnavailable` where it cannot be asked.
    pub(super) fn find(record: &Record, pin: &Pin) -> Result<Self> {
        Self::ask(record, pin).map_err(|error| match (error.kind(), error.errno()) {
            // This process or the kernel lacks room, which another try may find.
            (_, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => error,
            (ErrorKind::Os | ErrorKind::PermissionDenied, _) => {
                error.into_kind(ErrorKind::Unproven)
            }
            _ => error,
        })
    }

    fn ask(record: &Record, pin: &Pin) -> Result<Self> {
        if !record.host.is_sysfs() {
            let text = "/sys is not sysfs, so that nothing in it proves anything";
            return Err(Error::new(ErrorKind::Unproven, text));
        }
        let socket = record.host.netlink()?;
        let index = record.indices.join(record, pin, &socket)?.index;
        let info = socket.device(index)?.ok_or_else(|| unknown(index))?;
        Ok(Self {
            #[cfg(uverbs_leave_out)]
            before: super::old_rule::list_before(record, &socket, index)?,
            socket,
            index,
            node_guid: Guid(info.node_guid),
        })
    }

    /// Looks for something that a new thread has allocated: by its number, if the guess is right, else in
    /// lists.
    fn look_for(&self, kind: Resource, thread: u32, guess: Option<u32>) -> Result<Seen> {
        let is_ours = |entry: &ResourceEntry| entry.thread == Some(thread);
        if let Some(number) = guess
            && let Some(entry) = self.socket.resource(kind, self.index, number)?
            && is_ours(&entry)
        {
            return Ok(Seen::Entry(entry));
        }
        for _ in 0..REPEATS {
            let listing = match self.socket.resources(kind, self.index, is_ours) {
                // It takes more pages than are read.
                Err(error) if error.kind() == ErrorKind::Unproven => {
                    return Ok(Seen::Unclear(error));
                }
                listing => listing?,
            };
            let Some(listing) = listing else {
                return Ok(Seen::Unclear(cannot_list(kind, self.index)));
            };
            match listing.entries.first() {
                Some(entry) => return Ok(Seen::Entry(*entry)),
                None if listing.is_whole => return Ok(Seen::Nothing),
                None => {}
            }
        }
        let text = format!(
            "the list under index {} does not show it, and is too long to show that it is not there",
            self.index
        );
        let error = Error::new(ErrorKind::Unproven, text);
        Ok(Seen::Unclear(error.hint("the descriptor is probably on another device")))
    }
}

/// How often a list is requested until the entry is in it, or it is whole.
const REPEATS: usize = 8;

/// What a look under the index shows.
enum Seen {
    Entry(ResourceEntry),
    /// Nothing of that thread, in a whole list.
    Nothing,
    Unclear(Error),
}

fn unknown(index: u32) -> Error {
    Error::new(ErrorKind::Unproven, format!("RDMA netlink has no device of index {index}"))
}

fn cannot_list(kind: Resource, index: u32) -> Error {
    let (what, since) = match kind {
        Resource::Context => ("contexts", "5.13"),
        Resource::Pd => ("protection domains", "5.10"),
    };
    let text = format!(
        "RDMA netlink lists no {what} of index {index}: it is gone, or Linux is older than {since}"
    );
    Error::new(ErrorKind::Unproven, text)
}

/// Checks of the proof, by name.
const GUID: &str = "node GUID, through the descriptor";
const CONTEXT: &str = "context of a new thread, under the index";
const PD: &str = "PD of a new thread, under the index";

/// Steps 6 and 7: allocates the context and proves where it is.
pub(super) fn allocate_and_prove(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    prepared: &Prepared,
    target: Result<Target>,
    place: Place,
    evidence: &mut Evidence,
) -> Result<Proof> {
    let target = match target {
        Ok(target) => target,
        Err(reason) => {
            allocate(cmd, prepared)?;
            sysfs_guid::compare(record, pin, cmd, evidence)?;
            alive(record, pin, evidence)?;
            return Ok(Proof::Unproven(reason));
        }
    };
    #[cfg(uverbs_leave_out)]
    if let Some(before) = &target.before {
        let old_rule = super::old_rule::allocate_and_prove;
        return old_rule(record, pin, cmd, prepared, &target, before, evidence);
    }
    // The new thread inherits it. From here to the end no provider and no subscriber of log events runs.
    let shown = match undisturbed(record) {
        Ok(_undisturbed) => match place {
            Place::Here => on_this_thread(record, cmd, prepared, &target, evidence),
            Place::NewThread => on_new_thread(record, cmd, prepared, &target, evidence),
        }?,
        Err(reason) => {
            allocate(cmd, prepared)?;
            compare_guid(cmd, &target, evidence)?;
            Shown::Unproven(reason)
        }
    };
    alive(record, pin, evidence)?;
    Ok(shown.of_live_device())
}

/// Allocates the context on this thread.
fn on_this_thread(
    record: &Record,
    cmd: &CmdFd,
    prepared: &Prepared,
    target: &Target,
    evidence: &mut Evidence,
) -> Result<Shown> {
    allocate(cmd, prepared)?;
    compare_guid(cmd, target, evidence)?;
    by_pd(record, cmd, target, evidence)
}

/// Allocates the context on a thread that has no others, for drivers from which no PD can be had.
fn on_new_thread(
    record: &Record,
    cmd: &CmdFd,
    prepared: &Prepared,
    target: &Target,
    evidence: &mut Evidence,
) -> Result<Shown> {
    let kernel = record.host.kernel();
    let mut allocate_and_look = || {
        allocate(cmd, prepared)?;
        target.look_for(Resource::Context, kernel.gettid(), None)
    };
    let seen = match retry(|| kernel.on_new_thread(&mut allocate_and_look)) {
        Ok(seen) => seen?,
        Err(errno) => {
            allocate(cmd, prepared)?;
            Seen::Unclear(no_thread(errno))
        }
    };
    compare_guid(cmd, target, evidence)?;
    let (word, shown) = match seen {
        Seen::Entry(entry) => {
            note(target, entry, evidence);
            ("listed", Shown::Here)
        }
        Seen::Nothing => {
            let text = format!("the context is not listed under index {}", target.index);
            ("not listed", Shown::Unproven(Error::new(ErrorKind::Unproven, text)))
        }
        Seen::Unclear(error) => ("not listed", Shown::Unproven(error)),
    };
    let (expected, found) = (Value::Word("listed"), Value::Word(word));
    let held = evidence.confirm(Step::Prove, CONTEXT, expected, || Ok(found))?;
    Ok(if held { Shown::Here } else { shown })
}

/// The node GUID that the descriptor reports has to be the one that netlink has for the index.
pub(super) fn compare_guid(cmd: &CmdFd, target: &Target, evidence: &mut Evidence) -> Result<()> {
    let expected = Value::Guid(target.node_guid);
    evidence.require(Step::Prove, GUID, ErrorKind::NodeMismatch, expected, || {
        let attributes =
            query_device(cmd.kernel(), cmd.as_ref(), cmd.driver()).map_err(on_dead_device)?;
        Ok(Value::Guid(attributes.node_guid))
    })
}

/// Step 7 on a descriptor that has its context, whoever opened it, and whenever.
pub(super) fn prove(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    target: &Target,
    evidence: &mut Evidence,
) -> Result<Proof> {
    let _undisturbed = undisturbed(record)?;
    compare_guid(cmd, target, evidence).map_err(|error| match error.errno() {
        Some(Errno::INVAL) => error
            .into_kind(ErrorKind::Unproven)
            .hint("the descriptor may have no context: allocate one before"),
        _ => error,
    })?;
    let shown = by_pd(record, cmd, target, evidence)?;
    alive(record, pin, evidence)?;
    Ok(shown.of_live_device())
}

/// What came of the PDs that were allocated.
enum Found {
    Shown {
        entry: ResourceEntry,
        /// It could not be freed.
        is_leaked: bool,
    },
    /// Two PDs were not listed, and both existed all the while.
    Elsewhere,
    Unproven(Error),
    NoPd(Error),
}

/// Allocates a PD through the descriptor and looks for it under the index.
fn by_pd(record: &Record, cmd: &CmdFd, target: &Target, evidence: &mut Evidence) -> Result<Shown> {
    // Freeing a PD there frees PD 0, which is another one (`ocrdma_dealloc_pd`).
    if cmd.driver() == DriverId::OCRDMA {
        let text = "ocrdma frees the wrong PD, so that none is allocated";
        return Ok(Shown::NeedsNewThread(Error::new(ErrorKind::Unproven, text)));
    }
    let kernel = record.host.kernel();
    let mut pds = || pds_of_new_thread(record, cmd, target);
    let found = match retry(|| kernel.on_new_thread(&mut pds)) {
        Ok(found) => found?,
        Err(errno) => Found::Unproven(no_thread(errno)),
    };
    let expected = Value::Word("listed");
    let (word, unproven) = match found {
        Found::Shown { entry, is_leaked } => {
            note(target, entry, evidence);
            evidence.leaked_pd = is_leaked;
            ("listed", None)
        }
        Found::Elsewhere => ("not listed", None),
        Found::Unproven(error) => ("not listed", Some(Shown::Unproven(error))),
        Found::NoPd(error) => ("not listed", Some(Shown::NeedsNewThread(error))),
    };
    let look = || Ok(Value::Word(word));
    match unproven {
        Some(unproven) => {
            let held = evidence.confirm(Step::Prove, PD, expected, look)?;
            Ok(if held { Shown::Here } else { unproven })
        }
        None => {
            evidence.require(Step::Prove, PD, ErrorKind::NodeMismatch, expected, look)?;
            Ok(Shown::Here)
        }
    }
}

/// Notes under which numbers it was found.
fn note(target: &Target, entry: ResourceEntry, evidence: &mut Evidence) {
    evidence.index = Some(target.index);
    evidence.context_number = entry.context;
}

/// Allocates PDs on a thread that has no others. One that is listed under that thread is one of these.
fn pds_of_new_thread(record: &Record, cmd: &CmdFd, target: &Target) -> Result<Found> {
    let thread = record.host.kernel().gettid();
    // A PD that the kernel could not track is never listed, and a device that leaves is listed for a while
    // after its PDs have gone. So "not listed" counts twice, of two PDs. That the second can be allocated shows
    // that the descriptor's device was there until after the first list; that the first can be freed does not.
    for _ in 0..2 {
        let pd = match Pd::allocate(cmd) {
            Ok(pd) => pd,
            Err(error) => return Ok(Found::NoPd(error.into_kind(ErrorKind::Unproven))),
        };
        let guess = record.next_pd.get();
        let seen = target.look_for(Resource::Pd, thread, guess);
        let freed = pd.free();
        match seen? {
            Seen::Entry(entry) => {
                record.next_pd.set_after(entry.number);
                let is_leaked = freed.is_err();
                return Ok(Found::Shown { entry, is_leaked });
            }
            Seen::Unclear(error) => return Ok(Found::Unproven(error)),
            Seen::Nothing => {
                if let Err(error) = freed {
                    return Ok(Found::Unproven(error.into_kind(ErrorKind::Unproven)));
                }
            }
        }
    }
    Ok(Found::Elsewhere)
}

/// Keeps signal handlers off this thread, and off the one that it starts.
fn undisturbed(record: &Record) -> Result<Undisturbed> {
    retry(|| record.host.kernel().undisturbed()).map_err(|errno| {
        let error = Error::call("rt_sigprocmask", errno).into_kind(ErrorKind::Unproven);
        error.hint("the proof holds signals back: a filter forbids it")
    })
}

fn no_thread(errno: Errno) -> Error {
    Error::call("clone (a thread to prove on)", errno)
        .into_kind(ErrorKind::Unproven)
        .hint("the proof starts a thread: a limit or a filter forbids it")
}

/// The pinned device answers its commands: a descriptor that answers EIO is on one that is gone.
pub(super) fn on_dead_device(error: Error) -> Error {
    match error.errno() {
        Some(Errno::IO) => error
            .into_kind(ErrorKind::NodeMismatch)
            .hint("the node is still bound to a device that is gone"),
        _ => error,
    }
}

/// The last look: the pinned device was alive all the while, so its index and its device number
/// were its own.
pub(super) fn alive(record: &Record, pin: &Pin, evidence: &mut Evidence) -> Result<()> {
    let what = "device number (dev), at the end";
    let expected = Value::Device(record.device_number);
    evidence.require(Step::Prove, what, ErrorKind::Replaced, expected, || {
        pin.read_device_number().map(Value::Device)
    })
}
