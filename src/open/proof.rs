//! Step 7: the proof, made through the descriptor itself.
//!
//! Nothing in /sys or at the node shows which device a cmd fd is bound to: a node that was made by hand keeps the
//! device that it was first opened on. The kernel does show it. Under each device's netlink index it tracks the
//! protection domains (PDs) and the contexts on that device, each with the thread that allocated it. So a new
//! thread, which has never run anything else, allocates a PD through the descriptor. If a PD of that thread is
//! listed under the pinned device's index, the descriptor is on that device.
//!
//! That works on any descriptor that has a context, whoever opened it ([`verify`](super::verify)). Where no PD can
//! be allocated, the open starts over, and the new thread allocates the context itself.
//!
//! The thread has to be new. On a thread that runs the program's code, other things may be allocated meanwhile: by
//! a signal handler, or by io_uring, which runs requests as the thread that submitted them. The proof relies on no
//! number that was free, no list, no GUID, and on nothing that is *not* shown. What other threads allocate, free or
//! hide costs time but proves nothing.

use std::sync::Arc;

use super::pd::Pd;
use super::{Prepared, allocate, on_dead_device, refused, sysfs_guid};
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{CheckId, Evidence, Step, Value};
use crate::ids::DriverId;
use crate::ids::Guid;
use crate::index::MOVE_IT;
use crate::kernel::nldev::{Resource, ResourceEntry};
use crate::kernel::retry;
use crate::kernel::{Errno, Undisturbed};
use crate::netlink::{Fault, Listing, Socket};
use crate::pin::Pin;
use crate::provider::Allocation;
use crate::record::Record;
use crate::verbs::{self, CmdFd};

/// Witness that a context was proved to be on the device. Only the proof makes one, and every
/// [`Context`](crate::Context) needs one.
#[derive(Debug)]
pub struct Proven(());

#[cfg(uverbs_leave_out)]
impl Proven {
    pub(super) fn by_old_rule() -> Self {
        Self(())
    }
}

/// The result of the proof, unless a check contradicted it.
pub(super) enum Proof {
    Proven(Proven),
    Unproven(Error),
    /// No PD can be allocated, so the context itself has to be allocated on a new thread.
    NeedsNewThread(Error),
}

/// What the kernel shows of the descriptor. With a last sign of life of the pinned device it becomes a [`Proof`].
enum Shown {
    Here,
    Unproven(Error),
    NeedsNewThread(Error),
}

impl Shown {
    /// Converts it, once the pinned device is known to have been alive throughout, so that netlink's answers were
    /// about that device.
    fn of_live_device(self, record: &Record, target: &Target) -> Proof {
        match self {
            Self::Here => {
                let _ = record.node_guid.set(target.node_guid);
                Proof::Proven(Proven(()))
            }
            Self::Unproven(reason) => Proof::Unproven(reason),
            Self::NeedsNewThread(reason) => Proof::NeedsNewThread(reason),
        }
    }
}

/// The thread on which the context is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The calling thread.
    Here,
    /// A thread that was started for it and has no other contexts.
    NewThread,
}

/// The index under which the proof looks.
pub(super) struct Target {
    pub(super) socket: Arc<Socket>,
    pub(super) index: u32,
    node_guid: Guid,
    #[cfg(uverbs_leave_out)]
    pub(super) before: Option<super::old_rule::List>,
}

impl Target {
    /// The index of a pinned device and its node GUID, where they are known.
    pub(super) fn of(socket: Arc<Socket>, index: u32, node_guid: Guid) -> Self {
        Self {
            #[cfg(uverbs_leave_out)]
            before: None,
            socket,
            index,
            node_guid,
        }
    }

    /// Joins the pinned device with its netlink index.
    ///
    /// # Errors
    /// `Unproven` where the kernel does not report the index, `NetlinkUnavailable` where it cannot be queried.
    pub(super) fn find(device: &Device, pin: &Pin) -> Result<Self> {
        Self::query(device, pin).map_err(|error| match (error.kind(), error.errno()) {
            // This process or the kernel is short of a resource, which another attempt may find.
            (_, Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => error,
            (ErrorKind::Os | ErrorKind::PermissionDenied, _) => {
                error.into_kind(ErrorKind::Unproven)
            }
            _ => error,
        })
    }

    fn query(device: &Device, pin: &Pin) -> Result<Self> {
        let record = device.record();
        if !record.host.is_sysfs() {
            let text = "/sys is not sysfs, so nothing in it proves anything";
            return Err(Error::new(ErrorKind::Unproven, text));
        }
        let socket = record.host.netlink()?;
        let index = device.join(pin, &socket)?.index;
        let node_guid = match record.node_guid.get() {
            Some(known) => *known,
            None => node_guid(&socket, index)?,
        };
        #[cfg(uverbs_leave_out)]
        let before = super::old_rule::list_before(record, &socket, index)?;
        Ok(Self {
            #[cfg(uverbs_leave_out)]
            before,
            ..Self::of(socket, index, node_guid)
        })
    }

    /// Looks up an object that a thread has allocated, by its number.
    fn by_number(&self, kind: Resource, thread: u32, number: u32) -> Seen {
        match self.socket.resource(kind, self.index, number) {
            Ok(Some(entry)) if entry.thread == Some(thread) => Seen::Entry(entry),
            Ok(_) => Seen::Nothing,
            Err(fault) => Seen::Unclear(Unclear::Fault(fault)),
        }
    }

    /// Searches lists for an object that a thread has allocated.
    fn in_lists(&self, kind: Resource, thread: u32) -> Seen {
        for _ in 0..REPEATS {
            let is_ours = |entry: &ResourceEntry| entry.thread == Some(thread);
            match self.socket.list(kind, self.index, is_ours) {
                Ok(Some(Listing { found: Some(entry), .. })) => return Seen::Entry(entry),
                Ok(Some(listing)) if listing.is_whole => return Seen::Nothing,
                Ok(Some(_)) => {}
                Ok(None) => return Seen::Unclear(Unclear::NoList),
                Err(fault) => return Seen::Unclear(Unclear::Fault(fault)),
            }
        }
        Seen::Unclear(Unclear::LongList)
    }

    /// Why a search that did not find the object leaves open where it is.
    ///
    /// # Errors
    /// The exchange failed.
    fn reason(&self, kind: Resource, unclear: Unclear) -> Result<Error> {
        let index = self.index;
        let unproven = |text| Error::new(ErrorKind::Unproven, text);
        Ok(match unclear {
            Unclear::Fault(fault @ Fault::TooLong) => fault.error(kind.command()),
            Unclear::Fault(fault) => return Err(fault.error(kind.command())),
            Unclear::NoList => {
                let (what, since) = match kind {
                    Resource::Context => ("contexts", "5.13"),
                    Resource::Pd => ("protection domains", "5.10"),
                };
                unproven(format!(
                    "RDMA netlink lists no {what} of index {index}: the device is gone, or Linux is older than {since}"
                ))
            }
            Unclear::LongList => unproven(format!(
                "the list under index {index} does not show the PD, and is too long to show that it is absent"
            ))
            .with_hint("the descriptor is probably on another device"),
            Unclear::NotFreed(errno) => {
                verbs::error_of("DEALLOC_PD", errno).into_kind(ErrorKind::Unproven)
            }
        })
    }
}

fn node_guid(socket: &Socket, index: u32) -> Result<Guid> {
    let info = socket.device(index)?.ok_or_else(|| {
        let text = format!("RDMA netlink has no device of index {index}");
        Error::new(ErrorKind::OtherNamespace, text).with_hint(MOVE_IT)
    })?;
    Ok(Guid(info.node_guid))
}

/// How many times a list is requested until the entry is in it, or it is complete.
const REPEATS: usize = 8;

/// The result of a search under the index.
#[derive(Clone, Copy)]
enum Seen {
    Entry(ResourceEntry),
    /// A complete list, or the lookup by number, has no object of that thread.
    Nothing,
    Unclear(Unclear),
}

/// Why a search finds nothing. It holds no heap memory: a thread that may not allocate returns it.
#[derive(Clone, Copy)]
enum Unclear {
    /// The kernel does not provide such a list.
    NoList,
    /// No list was complete.
    LongList,
    Fault(Fault),
    /// The PD that was not listed could not be freed.
    NotFreed(Errno),
}

/// The proof's checks.
const GUID: CheckId = CheckId::NodeGuid;
const CONTEXT: CheckId = CheckId::Context;
const PD: CheckId = CheckId::ProtectionDomain;

/// Steps 6 and 7: allocates the context and proves which device it is on.
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
    // The new thread inherits the signal mask. From here to the end no provider and no subscriber of log events
    // runs.
    let shown = match undisturbed(record) {
        Ok(undisturbed) => match place {
            Place::Here => {
                allocate(cmd, prepared)?;
                compare_guid(cmd, &target, evidence)?;
                by_pd(record, cmd, &target, &undisturbed, evidence)
            }
            Place::NewThread => by_context(record, cmd, prepared, &target, &undisturbed, evidence),
        }?,
        Err(reason) => {
            allocate(cmd, prepared)?;
            compare_guid(cmd, &target, evidence)?;
            Shown::Unproven(reason)
        }
    };
    alive(record, pin, evidence)?;
    Ok(shown.of_live_device(record, &target))
}

/// Allocates the context on a thread that has no others, for drivers that allocate no PD.
fn by_context(
    record: &Record,
    cmd: &CmdFd,
    prepared: &Prepared,
    target: &Target,
    undisturbed: &Undisturbed,
    evidence: &mut Evidence,
) -> Result<Shown> {
    let kernel = record.host.kernel();
    target.socket.make_room();
    let mut room = verbs::output_room(prepared.allocation.output_len);
    let mut allocate_and_look = |thread| {
        let Allocation { input, output_len } = &prepared.allocation;
        cmd.get_context(input, *output_len, &mut room)?;
        Ok(target.in_lists(Resource::Context, thread))
    };
    let seen = match retry(|| kernel.on_new_thread(&mut allocate_and_look, undisturbed)) {
        Ok(seen) => Ok(seen.map_err(|errno| refused(errno, cmd, prepared))?),
        Err(errno) => {
            allocate(cmd, prepared)?;
            Err(no_thread(errno))
        }
    };
    compare_guid(cmd, target, evidence)?;
    let unproven = match seen {
        Ok(Seen::Entry(entry)) => {
            note(target, entry, evidence);
            None
        }
        Ok(Seen::Nothing) => {
            let text = format!("the context is not listed under index {}", target.index);
            Some(Error::new(ErrorKind::Unproven, text))
        }
        Ok(Seen::Unclear(unclear)) => Some(target.reason(Resource::Context, unclear)?),
        Err(error) => Some(error),
    };
    let word = if unproven.is_none() { "listed" } else { "not listed" };
    let (expected, found) = (Value::Word("listed"), Value::Word(word));
    let held = evidence.confirm(Step::Prove, CONTEXT, expected, || Ok(found))?;
    Ok(match unproven {
        Some(error) if !held => Shown::Unproven(error),
        _ => Shown::Here,
    })
}

/// Requires the node GUID that the descriptor reports to be the one that netlink reports for the index.
pub(super) fn compare_guid(cmd: &CmdFd, target: &Target, evidence: &mut Evidence) -> Result<()> {
    let found = cmd.node_guid().map_err(|error| on_dead_device(error, cmd))?;
    let mut expected = target.node_guid;
    if found != expected {
        // Some drivers allow the GUID to be changed.
        expected = node_guid(&target.socket, target.index)?;
    }
    let (expected, found) = (Value::Guid(expected), Value::Guid(found));
    evidence.require(Step::Prove, GUID, ErrorKind::NodeMismatch, expected, || Ok(found))
}

/// Step 7 on a descriptor that has its context, whoever opened it and whenever.
pub(super) fn prove(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    target: &Target,
    evidence: &mut Evidence,
) -> Result<Proof> {
    let undisturbed = undisturbed(record)?;
    compare_guid(cmd, target, evidence).map_err(|error| match error.errno() {
        Some(Errno::INVAL) => error
            .into_kind(ErrorKind::Unproven)
            .with_hint("the descriptor may have no context: allocate one before"),
        _ => error,
    })?;
    let shown = by_pd(record, cmd, target, &undisturbed, evidence)?;
    alive(record, pin, evidence)?;
    Ok(shown.of_live_device(record, target))
}

/// The result of allocating PDs on a thread. It holds no heap memory, like [`Unclear`].
#[derive(Clone, Copy)]
enum Found {
    Shown {
        entry: ResourceEntry,
        /// The PD could not be freed.
        is_leaked: bool,
    },
    /// Two PDs were not listed, and both existed throughout.
    Elsewhere,
    Unclear(Unclear),
    NoPd(Errno),
}

/// Allocates a PD through the descriptor and looks for it under the index: by its number, if the guess is right,
/// otherwise in lists.
fn by_pd(
    record: &Record,
    cmd: &CmdFd,
    target: &Target,
    undisturbed: &Undisturbed,
    evidence: &mut Evidence,
) -> Result<Shown> {
    // Freeing a PD there frees PD 0, which belongs to somebody else (`ocrdma_dealloc_pd`).
    if cmd.driver() == DriverId::OCRDMA {
        let text = "ocrdma frees the wrong PD, so no PD is allocated";
        return Ok(Shown::NeedsNewThread(Error::new(ErrorKind::Unproven, text)));
    }
    let kernel = record.host.kernel();
    let guessed = record.next_pd.get().map(|number| {
        let mut pd = |thread| pd_by_number(cmd, target, thread, number);
        retry(|| kernel.on_new_thread(&mut pd, undisturbed))
    });
    let found = match guessed {
        Some(Ok(Some(found))) => Ok(found),
        Some(Err(errno)) => Err(errno),
        Some(Ok(None)) | None => {
            target.socket.make_room();
            let mut pds = |thread| pds_in_lists(cmd, target, thread);
            retry(|| kernel.on_new_thread(&mut pds, undisturbed))
        }
    };
    let expected = Value::Word("listed");
    let (word, unproven) = match found {
        Ok(Found::Shown { entry, is_leaked }) => {
            record.next_pd.set_after(entry.number);
            note(target, entry, evidence);
            evidence.leaked_pd = is_leaked;
            ("listed", None)
        }
        Ok(Found::Elsewhere) => ("not listed", None),
        Ok(Found::Unclear(unclear)) => {
            ("not listed", Some(Shown::Unproven(target.reason(Resource::Pd, unclear)?)))
        }
        Ok(Found::NoPd(errno)) => {
            let error = verbs::error_of("ALLOC_PD", errno).into_kind(ErrorKind::Unproven);
            ("not listed", Some(Shown::NeedsNewThread(error)))
        }
        Err(errno) => ("not listed", Some(Shown::Unproven(no_thread(errno)))),
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

/// Records the numbers under which the object was found.
fn note(target: &Target, entry: ResourceEntry, evidence: &mut Evidence) {
    evidence.index = Some(target.index);
    evidence.context_number = entry.context;
}

/// Allocates a PD on a thread that has no others, and looks it up by the number that it has if nobody else
/// allocated a PD meanwhile. Returns `None` if no PD, or a PD of another thread, has that number.
fn pd_by_number(cmd: &CmdFd, target: &Target, thread: u32, number: u32) -> Option<Found> {
    let pd = match Pd::allocate(cmd) {
        Ok(pd) => pd,
        Err(errno) => return Some(Found::NoPd(errno)),
    };
    let seen = target.by_number(Resource::Pd, thread, number);
    let is_leaked = pd.free().is_err();
    match seen {
        Seen::Entry(entry) => Some(Found::Shown { entry, is_leaked }),
        // A PD that lives on belongs to a thread that has exited: it proves nothing any more.
        Seen::Nothing => None,
        Seen::Unclear(unclear) => Some(Found::Unclear(unclear)),
    }
}

/// Allocates PDs on a thread that has no others. A PD that is listed under that thread is one of these.
fn pds_in_lists(cmd: &CmdFd, target: &Target, thread: u32) -> Found {
    // The kernel never lists a PD that it could not track, and it lists a device that is being removed for a while
    // after its PDs have gone. So "not listed" has to hold twice, for two PDs. That the second PD can be allocated
    // shows that the descriptor's device was there until after the first list. That the first PD can be freed does
    // not.
    for _ in 0..2 {
        let pd = match Pd::allocate(cmd) {
            Ok(pd) => pd,
            Err(errno) => return Found::NoPd(errno),
        };
        let seen = target.in_lists(Resource::Pd, thread);
        let freed = pd.free();
        match (seen, freed) {
            (Seen::Entry(entry), freed) => {
                return Found::Shown { entry, is_leaked: freed.is_err() };
            }
            (Seen::Unclear(unclear), _) => return Found::Unclear(unclear),
            (Seen::Nothing, Err(errno)) => return Found::Unclear(Unclear::NotFreed(errno)),
            (Seen::Nothing, Ok(())) => {}
        }
    }
    Found::Elsewhere
}

/// Blocks signals on this thread, and on the one that it starts.
fn undisturbed(record: &Record) -> Result<Undisturbed> {
    retry(|| record.host.kernel().undisturbed()).map_err(|errno| {
        let error = Error::call("rt_sigprocmask", errno).into_kind(ErrorKind::Unproven);
        error.with_hint("the proof blocks signals, and a filter forbids that")
    })
}

fn no_thread(errno: Errno) -> Error {
    Error::call("clone (a thread to prove on)", errno)
        .into_kind(ErrorKind::Unproven)
        .with_hint("the proof starts a thread, and a limit or a filter forbids that")
}

/// The last check: the pinned device was alive throughout, so the index and the device number were its own.
pub(super) fn alive(record: &Record, pin: &Pin, evidence: &mut Evidence) -> Result<()> {
    let expected = Value::Device(record.device_number);
    evidence.require(Step::Prove, CheckId::DeviceNumber, ErrorKind::Replaced, expected, || {
        pin.read_device_number().map(Value::Device)
    })
}
