//! The open protocol: one function for each step, in order.
//!
//! | step | function | what it establishes |
//! |---|---|---|
//! | 1 | [`known`] | the record is not already known to be gone |
//! | 2 | [`pin_instance`] | the directory in /sys is the recorded instance, alive, and stays pinned |
//! | 3 | [`look_at_node`] | the node in /dev is a character device with the pinned number |
//! | 4 | [`open_node`] | the descriptor is on the node that step 3 looked at |
//! | 5 | [`revalidate`] | with the node open, the instance is still alive and in its place |
//! | 6 | [`allocate`] | the context is allocated, by the ioctl ABI |
//! | 7 | [`proof`] | the kernel shows that the descriptor is on the pinned instance |
//! | 8 | | the pin is dropped; the [`Context`] keeps the evidence |
//!
//! The pin holds the attributes `dev` and `ibdev` open. Reading one of them again shows whether the device is alive
//! at that moment: once the device is removed, reads fail. The kernel removes the directory first, then the
//! character device, and then frees the device number. So as long as `dev` can be read, no other device has the
//! number.

#[cfg(uverbs_leave_out)]
mod old_rule;
mod options;
mod pd;
#[cfg(feature = "ibverbs")]
mod pinned;
mod proof;
mod ready;
mod sysfs_guid;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{CheckId, Evidence, Step, Value};
use crate::ids::DriverId;
use crate::kernel::{
    Errno, FileType, Handle, Kernel, OFlags, Resolve, Stat, Uncancelled, VerbsCall, retry,
};
use crate::pin::{Pin, known, pin_instance, require_unmoved, time};
use crate::provider::{Allocation, Provided};
use crate::record::{Joined, Record};
use crate::sysfs;
use crate::verbs::{self, CmdFd, DRIVER_FAILS};

pub use options::OpenOptions;
#[cfg(feature = "ibverbs")]
pub(crate) use pinned::Pinned;
pub use proof::Proven;
use proof::{Place, Proof, Target};
pub(crate) use sysfs_guid::read_sysfs_guid;

/// How many times an open or a proof is attempted if a timestamp or a name changes meanwhile.
const ATTEMPTS: usize = 3;

/// The result of an open that no check contradicted.
pub(crate) struct Outcome {
    pub(crate) cmd: CmdFd,
    /// A provider that was found for this descriptor only, and must live as long as the context.
    pub(crate) provided: Option<Arc<Provided>>,
    pub(crate) evidence: Evidence,
    /// The proof, or the reason why there is no proof.
    pub(crate) proof: Result<Proven>,
}

/// Opens a device. With `allow_unproven`, an open that cannot be proved is not an error. An open that a check
/// contradicts is an error either way.
pub(crate) fn open(device: &Device, options: &OpenOptions) -> Result<Outcome> {
    let _uncancelled = Uncancelled::begin();
    let record = device.record();
    let mut place = Place::Here;
    let mut attempts = 1;
    loop {
        match attempt(device, options, place) {
            Err(error) if error.kind() == ErrorKind::Unstable && attempts < ATTEMPTS => {
                tracing::debug!(device = record.label(), %error, "the open starts over");
            }
            Ok(Attempt::NeedsNewThread(reason)) if place == Place::Here => {
                tracing::debug!(device = record.label(), %reason, "the open starts over");
                place = Place::NewThread;
                continue;
            }
            Ok(Attempt::NeedsNewThread(reason)) => return Err(record.explain(reason)),
            Ok(Attempt::Opened(outcome)) => return Ok(outcome),
            Err(error) => return Err(record.explain(error)),
        }
        attempts += 1;
    }
}

fn attempt(device: &Device, options: &OpenOptions, place: Place) -> Result<Attempt> {
    let mut evidence = Evidence::default();
    let (cmd, provided, proof) = match steps(device, options, place, &mut evidence) {
        Ok(opened) => opened,
        Err(error) => return Err(error.with_evidence(&evidence)),
    };
    let proof = match proof {
        Proof::Proven(witness) => Ok(witness),
        Proof::Unproven(reason) => {
            Err(reason.at(Step::Prove).of(|| device.record().label()).with_evidence(&evidence))
        }
        Proof::NeedsNewThread(reason) => return Ok(Attempt::NeedsNewThread(reason)),
    };
    Ok(Attempt::Opened(Outcome { cmd, provided, evidence, proof }))
}

/// The result of an attempt that no check contradicted.
enum Attempt {
    Opened(Outcome),
    /// The driver allocates no protection domain: the context has to be allocated on a new thread.
    NeedsNewThread(Error),
}

fn steps(
    device: &Device,
    options: &OpenOptions,
    place: Place,
    evidence: &mut Evidence,
) -> Result<(CmdFd, Option<Arc<Provided>>, Proof)> {
    let record = device.record();
    known(record)?;
    let pin = pin_instance(record, evidence).map_err(|e| e.at(Step::Pin))?;
    if options.strict_timestamps {
        require_unmoved(record, &pin, evidence)?;
    }
    // Before anything is opened: if nothing can be proved, opening is of no use.
    let target = match Target::find(device, &pin) {
        Err(error) if !options.allow_unproven || !error.kind().is_unproven() => {
            return Err(error.at(Step::Prove));
        }
        target => target,
    };
    // Nor is a device opened that its provider cannot handle.
    let reported = record.joined.get().map(|joined| joined.driver_id.map(DriverId::from_raw));
    let provided = reported.map(|driver| device.find_provider(&pin, driver)).transpose();
    let provided = provided.map_err(|error| error.at(Step::Pin))?;
    if let Some(provided) = &provided {
        provided.require_usable().map_err(|error| error.at(Step::Pin))?;
    }
    let node = look_at_node(record, evidence).map_err(|e| e.at(Step::Node))?;
    let fd = open_node(record, &node, evidence).map_err(|e| e.at(Step::Open))?;
    drop(node);
    revalidate(record, &pin, evidence).map_err(|e| e.at(Step::Revalidate))?;
    let guess = provided.as_ref().and_then(|provided| provided.driver());
    let driver = driver_of(record, fd.as_fd(), guess).map_err(|e| e.at(Step::Allocate))?;
    // The last code of the program (a registered provider) that runs before the proof begins.
    let (prepared, own) =
        prepare(device, &pin, provided, driver).map_err(|e| e.at(Step::Allocate))?;
    let cmd = CmdFd::new(fd, driver, record.host.kernel().clone());
    let proof = proof::allocate_and_prove(record, &pin, &cmd, &prepared, target, place, evidence)
        .map_err(|e| e.at(Step::Prove))?;
    Ok((cmd, own, proof))
}

/// A node that was looked at but not opened. Holding it keeps its inode number from being reused.
#[derive(Debug)]
struct Node {
    _handle: Handle,
    stat: Stat,
}

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);
const CMD: OFlags =
    OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens the node by name beneath /dev. `/dev/infiniband` comes and goes with its nodes, so every open starts at
/// /dev.
fn open_dev(record: &Record, flags: OFlags) -> Result<Handle> {
    let path = sysfs::uverbs_path("infiniband/", record.number);
    let (kernel, dev) = (record.host.kernel(), record.host.dev()?);
    retry(|| kernel.openat2(dev, &path, flags, Resolve::Dev)).map_err(|errno| {
        let error = Error::call(sysfs::open_text("dev", &path, flags), errno);
        match errno {
            Errno::NOENT => error.with_hint(NODE_MISSING),
            Errno::ACCESS => error.with_hint(NODE_FORBIDDEN),
            Errno::PERM => error.with_hint(NODE_BARRED),
            _ => error,
        }
    })
}

const NODE_MISSING: &str = "there is no such node in /dev: udev or devtmpfs may not be set up, or the node was not \
                            given to this container";
const NODE_FORBIDDEN: &str =
    "this user may not open the node: see its mode and group, and those of its directory";
const NODE_BARRED: &str = "the kernel does not let this process open the node: a container's device cgroup may \
                           forbid it, or the device belongs to another network namespace";

/// Step 3: examines the node without opening it, because an open can have side effects.
fn look_at_node(record: &Record, evidence: &mut Evidence) -> Result<Node> {
    let handle = open_dev(record, LOOK)?;
    let stat = sysfs::stat(record.host.kernel(), &handle)?;
    require_node(record, &stat, Step::Node, evidence)?;
    Ok(Node { _handle: handle, stat })
}

/// Requires the node to be a character device with the record's number.
fn require_node(record: &Record, stat: &Stat, step: Step, evidence: &mut Evidence) -> Result<()> {
    let (expected, found) = (Value::Word(kind(FileType::CharacterDevice)), kind(stat.kind));
    evidence.require(step, CheckId::NodeKind, ErrorKind::NodeMismatch, expected, || {
        Ok(Value::Word(found))
    })?;
    let (expected, found) = (record.device_number, stat.rdev.into());
    evidence.require(
        step,
        CheckId::NodeDeviceNumber,
        ErrorKind::NodeMismatch,
        Value::Device(expected),
        || Ok(Value::Device(found)),
    )
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Directory => "directory",
        FileType::Fifo => "FIFO",
        FileType::RegularFile => "regular file",
        FileType::Socket => "socket",
        FileType::Symlink => "symbolic link",
        FileType::Unknown => "unknown",
    }
}

/// Step 4: opens the node by name and checks that it is the one that step 3 looked at.
fn open_node(record: &Record, node: &Node, evidence: &mut Evidence) -> Result<Handle> {
    let fd = open_dev(record, CMD).map_err(|error| match error.errno() {
        // The pinned device owns its number and is mapped. So a node that leads to nothing, or to a device that is
        // gone, is stale. (If the pinned device itself is gone, `explain` reports that.)
        Some(Errno::NXIO | Errno::NODEV | Errno::IO) => error
            .into_kind(ErrorKind::NodeMismatch)
            .with_hint("the node may be a static one that is still bound to a removed device"),
        // It was a character device in step 3.
        Some(Errno::LOOP | Errno::ISDIR) => error.into_kind(ErrorKind::NodeMismatch),
        // It was there in step 3. A removal deletes the node first, so the next attempt sees more of it.
        Some(Errno::NOENT) => error.into_kind(ErrorKind::Unstable),
        _ => error,
    })?;
    let stat = sysfs::stat(record.host.kernel(), &fd)?;
    require_node(record, &stat, Step::Open, evidence)?;
    let (expected, found) = (node.stat.ino, stat.ino);
    let (expected, found) = (Value::Number(expected), Value::Number(found));
    let id = CheckId::NodeInode;
    evidence.require(Step::Open, id, ErrorKind::NodeMismatch, expected, || Ok(found))?;
    Ok(fd)
}

/// Step 5: with the cmd fd open, the same directory is still in its place, and both attributes and the timestamp
/// are as they were when the directory was pinned.
fn revalidate(record: &Record, pin: &Pin, evidence: &mut Evidence) -> Result<()> {
    const STEP: Step = Step::Revalidate;
    let (kernel, sys) = (record.host.kernel(), record.host.sys());
    let expected = Value::Number(record.ino);
    evidence.require(STEP, CheckId::UverbsInode, ErrorKind::Replaced, expected, || {
        let directory = sysfs::open(kernel, sys, &record.path, sysfs::DIRECTORY)?;
        Ok(Value::Number(sysfs::stat(kernel, &directory)?.ino))
    })?;
    let expected = Value::Device(pin.device_number);
    evidence.require(STEP, CheckId::DeviceNumber, ErrorKind::Replaced, expected, || {
        pin.read_device_number().map(Value::Device)
    })?;
    let expected = Value::Name(pin.name().clone());
    evidence.require(STEP, CheckId::Name, ErrorKind::Unstable, expected, || {
        pin.read_name().map(Value::Name)
    })?;
    let expected = time(pin.timestamp);
    evidence.require(STEP, CheckId::Timestamp, ErrorKind::Unstable, expected, || {
        pin.read_timestamp().map(time)
    })
}

/// The driver, which the header of every command has to name. Netlink reports it for most drivers. For the others
/// the descriptor is probed, with the driver that the modalias suggests first.
fn driver_of(record: &Record, fd: BorrowedFd<'_>, guess: Option<DriverId>) -> Result<DriverId> {
    if let Some(Joined { driver_id: Some(raw), .. }) = record.joined.get() {
        return Ok(DriverId::from_raw(*raw));
    }
    probe_driver(record.host.kernel(), fd, guess)
}

/// Finds the driver of a cmd fd where netlink does not report it. A command that does not exist fails with EINVAL
/// for a wrong driver and with EPROTONOSUPPORT for the right one (`ib_uverbs_cmd_verbs`,
/// `drivers/infiniband/core/uverbs_ioctl.c`), and has no effect.
fn probe_driver(kernel: &Kernel, fd: BorrowedFd<'_>, guess: Option<DriverId>) -> Result<DriverId> {
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
    Err(Error::new(ErrorKind::Unsupported, "this version does not know the driver"))
}

/// A method that no object of the ioctl ABI has.
const NO_METHOD: u16 = 0xfff;

/// Prepares the driver's part of GET_CONTEXT. Where netlink did not report the driver, the provider is found only
/// now, by the driver that the probe found, and for this open only. It is then returned as well.
fn prepare(
    device: &Device,
    pin: &Pin,
    provided: Option<Arc<Provided>>,
    driver: DriverId,
) -> Result<(Prepared, Option<Arc<Provided>>)> {
    let (provided, own) = match provided {
        Some(provided) => (provided, None),
        None => {
            let found = device.find_provider_for_one_open(pin, driver)?;
            (found.clone(), Some(found))
        }
    };
    provided.require_usable()?;
    let allocation = device.allocation(&provided, pin, driver)?;
    Ok((Prepared { allocation, is_known: provided.info().provider.is_some() }, own))
}

/// The driver's part of GET_CONTEXT, and whether a provider supplied it.
pub(crate) struct Prepared {
    allocation: Allocation,
    is_known: bool,
}

/// Proves that a descriptor is bound to the device: steps 1, 2, 4 and 7. Somebody else has opened it and allocated
/// its context.
pub(crate) fn verify(device: &Device, fd: BorrowedFd<'_>) -> Result<Evidence> {
    let _uncancelled = Uncancelled::begin();
    let record = device.record();
    let mut attempts = 1;
    loop {
        match duplicate(record, fd).and_then(|fd| verify_owned(device, fd)) {
            Err(error) if error.kind() == ErrorKind::Unstable && attempts < ATTEMPTS => {
                tracing::debug!(device = record.label(), %error, "the proof starts over");
                attempts += 1;
            }
            Err(error) => return Err(record.explain(error)),
            Ok((evidence, _)) => return Ok(evidence),
        }
    }
}

/// A duplicate, so that nobody can close or reuse the number meanwhile.
fn duplicate(record: &Record, fd: BorrowedFd<'_>) -> Result<Handle> {
    retry(|| record.host.kernel().duplicate(fd))
        .map_err(|errno| Error::call("fcntl(F_DUPFD_CLOEXEC)", errno).at(Step::Open))
}

/// As [`verify`], for a descriptor that this library owns. Returns it with the evidence and the witness.
pub(crate) fn adopt(device: &Device, fd: Handle) -> Result<(CmdFd, Evidence, Proven)> {
    let _uncancelled = Uncancelled::begin();
    let (evidence, (cmd, witness)) =
        verify_owned(device, fd).map_err(|error| device.record().explain(error))?;
    Ok((cmd, evidence, witness))
}

fn verify_owned(device: &Device, fd: Handle) -> Result<(Evidence, (CmdFd, Proven))> {
    let mut evidence = Evidence::default();
    match verify_steps(device, fd, &mut evidence) {
        Ok(proved) => Ok((evidence, proved)),
        Err(error) => Err(error.with_evidence(&evidence)),
    }
}

fn verify_steps(device: &Device, fd: Handle, evidence: &mut Evidence) -> Result<(CmdFd, Proven)> {
    let record = device.record();
    known(record)?;
    let pin = pin_instance(record, evidence).map_err(|e| e.at(Step::Pin))?;
    verify_pinned(record, &pin, fd, || Target::find(device, &pin), evidence)
}

fn verify_pinned(
    record: &Record,
    pin: &Pin,
    fd: Handle,
    target: impl FnOnce() -> Result<Target>,
    evidence: &mut Evidence,
) -> Result<(CmdFd, Proven)> {
    let stat = retry(|| record.host.kernel().fstat_cmd(fd.as_fd()))
        .map_err(|errno| Error::call("fstat", errno).at(Step::Open))?;
    require_node(record, &stat, Step::Open, evidence)?;
    let target = target().map_err(|e| e.at(Step::Prove))?;
    let driver = driver_of(record, fd.as_fd(), None).map_err(|e| e.at(Step::Prove))?;
    let cmd = CmdFd::new(fd, driver, record.host.kernel().clone());
    match proof::prove(record, pin, &cmd, &target, evidence) {
        Ok(Proof::Proven(witness)) => Ok((cmd, witness)),
        Ok(Proof::Unproven(error) | Proof::NeedsNewThread(error)) | Err(error) => {
            Err(error.at(Step::Prove))
        }
    }
}

/// Step 6: allocates the kernel context. Before the proof, a wrong device may be given one for a moment.
fn allocate(cmd: &CmdFd, prepared: &Prepared) -> Result<()> {
    let Allocation { input, output_len } = &prepared.allocation;
    let mut room = verbs::output_room(*output_len);
    cmd.get_context(input, *output_len, &mut room).map_err(|errno| refused(errno, cmd, prepared))
}

/// Converts the errno of a failed GET_CONTEXT.
fn refused(errno: Errno, cmd: &CmdFd, prepared: &Prepared) -> Error {
    let error = verbs::error_of("GET_CONTEXT", errno);
    let error = match errno {
        Errno::IO => on_dead_device(error, cmd),
        _ if !prepared.is_known => error.with_hint(
            "no provider knows this device, so its driver was given no data: it may need a provider",
        ),
        _ => error,
    };
    error.at(Step::Allocate)
}

/// The pinned device is alive. So a descriptor of a removed device is on another device.
fn on_dead_device(error: Error, cmd: &CmdFd) -> Error {
    match error.errno() {
        Some(Errno::IO) if cmd.is_cut_off() => error
            .into_kind(ErrorKind::NodeMismatch)
            .with_hint("the node is still bound to a device that is gone"),
        Some(Errno::IO) => error.with_hint(DRIVER_FAILS),
        _ => error,
    }
}

impl Device {
    /// Proves that a cmd fd is bound to this device. Another library or another process may have opened it, at any
    /// time and on any thread. It must have a context. Nothing has to be done before the open.
    ///
    /// A protection domain is allocated through the descriptor, looked up under this device's netlink index, and
    /// freed. Some drivers send their device a command for that. On bnxt_re it takes a doorbell page of the
    /// context, and must not happen while the descriptor's owner may be allocating its first domain. The domain's
    /// handle may be one that the descriptor's owner has freed: an owner that still uses that handle then uses this
    /// domain for a moment, and an owner that frees it again may lose a domain that it has just allocated. `verify`
    /// works on a duplicate, so closing or reusing the descriptor's number meanwhile has no effect on it.
    ///
    /// What may block, and the thread that the proof starts, are as for [`open`](Self::open).
    ///
    /// # Errors
    /// `NodeMismatch` if the descriptor is on another device; `Removed` or `Replaced` if this device is gone;
    /// `Unproven` if the kernel cannot show it: the descriptor has no context, the driver allocates no protection
    /// domain (ocrdma never does), or Linux is older than 5.10; `NetlinkUnavailable`.
    pub fn verify(&self, fd: impl AsFd) -> Result<Evidence> {
        verify(self, fd.as_fd())
    }
}
