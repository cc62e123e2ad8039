//! The open protocol, one function a step, in order.
//!
//! | step | function | what it makes sure of |
//! |---|---|---|
//! | 1 | [`known`] | the record is not already known to be gone |
//! | 2 | [`pin_instance`] | the directory in /sys is the recorded instance, alive, and stays pinned |
//! | 3 | [`look_at_node`] | the node in /dev is a character device with the pinned number |
//! | 4 | [`open_node`] | what was opened is what was looked at |
//! | 5 | [`revalidate`] | with the node open, the instance is still alive and in its place |
//! | 6 | [`allocate`] | the kernel context, by the ioctl ABI |
//! | 7 | [`proof::prove`] | asked through the descriptor, it is on the pinned instance |
//! | 8 | | the pin is let go; the [`Context`] keeps the evidence |
//!
//! The pin holds the attributes `dev` and `ibdev` open, so that reading one again tells at that
//! moment whether the device is alive: once removed, it never answers again. The directory goes
//! before the character device, and that before the device number is free for another
//! device: as long as `dev` answers, nobody else has the number.

mod proof;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use crate::attr::{self, Attribute, retry};
use crate::context::{CmdFd, Context, ContextClaim, Opened, UnprovenContext};
use crate::device::{Device, Joined, Record};
use crate::driver::DriverId;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Evidence, Step, Value};
use crate::identity::Timestamp;
use crate::kernel::{Errno, FileType, Handle, OFlags, Resolve, Stat};
use crate::name::{DeviceNumber, Name};
use crate::provider::{Allocation, Provided};

pub(crate) use proof::Proven;
use proof::{Baseline, Proof};

/// How often an open starts over because a timestamp or a name moved under it.
const ATTEMPTS: usize = 3;

/// Opens a device. With `allow_unproven` what cannot be proved comes back as such; what is
/// contradicted is an error either way.
pub(crate) fn open(device: &Device, allow_unproven: bool) -> Result<Opened> {
    let record = &device.0;
    for _ in 1..ATTEMPTS {
        match attempt(device, allow_unproven) {
            Err(error) if error.kind() == ErrorKind::Unstable => {
                tracing::debug!(device = record.label(), %error, "opening starts over");
            }
            done => return done.map_err(|error| record.explain(error)),
        }
    }
    attempt(device, allow_unproven).map_err(|error| record.explain(error))
}

fn attempt(device: &Device, allow_unproven: bool) -> Result<Opened> {
    let record = &device.0;
    let mut evidence = Evidence::default();
    known(record)?;
    let pin = pin_instance(record, &mut evidence).map_err(|e| e.at(Step::Pin))?;
    // Asked before anything is opened: where nothing can be proved there is no use in opening.
    let baseline = match Baseline::take(record, &pin, true) {
        Err(error) if error.kind() != ErrorKind::Unproven || !allow_unproven => {
            return Err(error.at(Step::Prove));
        }
        baseline => baseline,
    };
    // A device that its provider cannot handle is not opened either.
    let told = record.joined.get().map(|joined| joined.driver_id.map(DriverId::from_raw));
    let provided = told.map(|driver| record.provided(&pin, driver)).transpose();
    let provided = provided.map_err(|error| error.at(Step::Pin))?;
    if let Some(provided) = &provided {
        provided.require_usable().map_err(|error| error.at(Step::Pin))?;
    }
    let node = look_at_node(record, &mut evidence).map_err(|e| e.at(Step::Node))?;
    let fd = open_node(record, &node, &mut evidence).map_err(|e| e.at(Step::Open))?;
    drop(node);
    revalidate(record, &pin, &mut evidence).map_err(|e| e.at(Step::Revalidate))?;
    let guess = provided.as_ref().and_then(|provided| provided.driver());
    let driver = driver_of(record, fd.as_fd(), guess).map_err(|e| e.at(Step::Allocate))?;
    let allocation = prepare(record, &pin, provided, driver).map_err(|e| e.at(Step::Allocate))?;
    let cmd = CmdFd::new(fd, driver, device.clone());
    let proof = proof::allocate_and_prove(record, &pin, &cmd, &allocation, baseline, &mut evidence)
        .map_err(|e| e.at(Step::Prove))?;
    Ok(match proof {
        Proof::Proven(witness) => Opened::Proven(Context::new(cmd, evidence, witness)),
        Proof::Unproven(reason) => {
            let reason = reason.at(Step::Prove).of(|| record.label());
            Opened::Unproven(UnprovenContext::new(cmd, evidence, reason))
        }
    })
}

/// Step 1: a device that is known to be gone is not looked for.
fn known(record: &Record) -> Result<()> {
    match record.known_gone() {
        Some(gone) => {
            Err(Error::new(gone.kind(), "it is known since the last look").at(Step::Known))
        }
        None => Ok(()),
    }
}

/// An instance that is held in place: while this exists, its inode numbers cannot be evicted, and
/// its two attributes can be asked again.
#[derive(Debug)]
pub(crate) struct Pin {
    directory: Arc<Handle>,
    dev: Attribute,
    ibdev: Attribute,
    kernel: crate::kernel::Kernel,
    device_number: DeviceNumber,
    name: Name,
    timestamp: Timestamp,
}

impl Pin {
    /// Reads `dev` through the pin: an answer means that the device is alive at this moment.
    pub(crate) fn read_device_number(&self) -> Result<DeviceNumber> {
        self.dev.read(&self.kernel, attr::parse_device_number)
    }

    /// The uverbs directory.
    pub(crate) fn directory(&self) -> &Handle {
        &self.directory
    }

    /// The name when it was pinned.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Reads `ibdev` through the pin: the name at this moment.
    pub(crate) fn read_name(&self) -> Result<Name> {
        self.ibdev.read(&self.kernel, attr::parse_name)
    }

    fn read_timestamp(&self) -> Result<Timestamp> {
        Ok(self.ibdev.stat(&self.kernel)?.ctime)
    }
}

/// Step 2: the directory in /sys, compared with the record and held; `dev` and `ibdev` read through it.
fn pin_instance(record: &Record, evidence: &mut Evidence) -> Result<Pin> {
    let kernel = record.host.kernel();
    let (directory, stat) = record.directory()?;
    let same = |what, expected, found| (what, Value::Number(expected), Value::Number(found));
    for (what, expected, found) in [
        same("sysfs mount (st_dev)", record.sys_dev, stat.dev),
        same("uverbs directory (inode)", record.ino, stat.ino),
    ] {
        evidence.require(Step::Pin, what, ErrorKind::Replaced, expected, || Ok(found))?;
    }
    let ibdev = Attribute::open(kernel, &directory, c"ibdev")?;
    let timestamp = ibdev.stat(kernel)?.ctime;
    let dev = Attribute::open(kernel, &directory, c"dev")?;
    let device_number = dev.read(kernel, attr::parse_device_number)?;
    evidence.require(
        Step::Pin,
        "device number (dev)",
        ErrorKind::Replaced,
        Value::Device(record.device_number),
        || Ok(Value::Device(device_number)),
    )?;
    let name = ibdev.read(kernel, attr::parse_name)?;
    let known = record.state().timestamp;
    if timestamp != known {
        // Where inode numbers are unique this is an eviction. Where they may repeat it is what tells a
        // replacement.
        if record.host.policy().strict_timestamps || !record.host.has_unique_inodes() {
            let (expected, found) = (time(known), time(timestamp));
            evidence.require(Step::Pin, TIMESTAMP, ErrorKind::Replaced, expected, || Ok(found))?;
        }
        tracing::debug!(device = record.label(), "timestamp refreshed: the inode was evicted");
    }
    record.refresh_pinned(timestamp, &name);
    let kernel = kernel.clone();
    Ok(Pin { directory, dev, ibdev, kernel, device_number, name, timestamp })
}

const TIMESTAMP: &str = "timestamp (ibdev)";

fn time((seconds, nanoseconds): Timestamp) -> Value {
    Value::Time(seconds, nanoseconds)
}

/// A node that was looked at and not opened; holding it keeps its inode number from being reused.
#[derive(Debug)]
struct Node {
    _handle: Handle,
    stat: Stat,
}

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);
const CMD: OFlags =
    OFlags::RDWR.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens the node's name beneath /dev. `/dev/infiniband` comes and goes with its nodes, so every look
/// starts at /dev.
fn open_dev(record: &Record, flags: OFlags) -> Result<Handle> {
    let path = attr::uverbs_path("infiniband/", record.number);
    let kernel = record.host.kernel();
    retry(|| kernel.openat2(record.host.dev(), &path, flags, Resolve::Dev))
        .map_err(|errno| Error::call(attr::open_text("dev", &path, flags), errno))
}

/// Step 3: what the node is, without opening it, for the side effects an open may have.
fn look_at_node(record: &Record, evidence: &mut Evidence) -> Result<Node> {
    let handle = open_dev(record, LOOK)?;
    let stat = attr::stat(record.host.kernel(), &handle)?;
    require_node(record, &stat, Step::Node, evidence)?;
    Ok(Node { _handle: handle, stat })
}

/// A node has to be a character device with the record's number.
fn require_node(record: &Record, stat: &Stat, step: Step, evidence: &mut Evidence) -> Result<()> {
    let (expected, found) = (Value::Word(kind(FileType::CharacterDevice)), kind(stat.kind));
    evidence.require(step, "kind of node", ErrorKind::NodeMismatch, expected, || {
        Ok(Value::Word(found))
    })?;
    let (expected, found) = (record.device_number, stat.rdev.into());
    evidence.require(
        step,
        "device number of the node",
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

/// Step 4: open it by name and make sure that it is what was looked at.
fn open_node(record: &Record, node: &Node, evidence: &mut Evidence) -> Result<Handle> {
    let fd = open_dev(record, CMD).map_err(|error| match error.errno() {
        // The pinned device owns its number and is mapped: a node that leads to nothing, or to a
        // device that is gone, is a stale one. (If the pinned device itself went, `explain` says so.)
        Some(Errno::NXIO | Errno::NODEV | Errno::IO) => error
            .into_kind(ErrorKind::NodeMismatch)
            .hint("the node may be a static one that is still bound to a removed device"),
        // It was a character device when it was looked at.
        Some(Errno::LOOP | Errno::ISDIR) => error.into_kind(ErrorKind::NodeMismatch),
        // It was there. Of a removal the node is the first to go: the next attempt sees more.
        Some(Errno::NOENT) => error.into_kind(ErrorKind::Unstable),
        _ => error,
    })?;
    let stat = attr::stat(record.host.kernel(), &fd)?;
    require_node(record, &stat, Step::Open, evidence)?;
    let (expected, found) = (node.stat.ino, stat.ino);
    let (expected, found) = (Value::Number(expected), Value::Number(found));
    let what = "inode of the node";
    evidence.require(Step::Open, what, ErrorKind::NodeMismatch, expected, || Ok(found))?;
    Ok(fd)
}

/// Step 5: with the cmd fd open, the class link leads to the same directory, and both attributes
/// and the timestamp are as they were when it was pinned.
fn revalidate(record: &Record, pin: &Pin, evidence: &mut Evidence) -> Result<()> {
    const STEP: Step = Step::Revalidate;
    let (kernel, sys) = (record.host.kernel(), record.host.sys());
    let expected = Value::Number(record.ino);
    evidence.require(STEP, "class link (inode)", ErrorKind::Replaced, expected, || {
        let path = attr::read_class_link(kernel, sys, record.number)?;
        let directory = attr::open(kernel, sys, &path, attr::DIRECTORY)?;
        Ok(Value::Number(attr::stat(kernel, &directory)?.ino))
    })?;
    let expected = Value::Device(pin.device_number);
    evidence.require(STEP, "device number (dev)", ErrorKind::Replaced, expected, || {
        pin.read_device_number().map(Value::Device)
    })?;
    let expected = Value::Name(pin.name.clone());
    evidence.require(STEP, "name (ibdev)", ErrorKind::Unstable, expected, || {
        pin.read_name().map(Value::Name)
    })?;
    let expected = time(pin.timestamp);
    evidence
        .require(STEP, TIMESTAMP, ErrorKind::Unstable, expected, || pin.read_timestamp().map(time))
}

/// The driver that the header of every command has to name: from netlink, or, where that does not
/// tell, by asking the descriptor, first for the one that the modalias speaks for.
fn driver_of(record: &Record, fd: BorrowedFd<'_>, guess: Option<DriverId>) -> Result<DriverId> {
    if let Some(Joined { driver_id: Some(raw), .. }) = record.joined.get() {
        return Ok(DriverId::from_raw(*raw));
    }
    proof::probe_driver(record.host.kernel(), fd, guess)
}

/// What the provider wants the driver to be told. Where netlink did not tell the driver, the provider is
/// found only now, by what the descriptor answers to, and for this open alone.
fn prepare(
    record: &Record,
    pin: &Pin,
    provided: Option<Arc<Provided>>,
    driver: DriverId,
) -> Result<Prepared> {
    let provided = match provided {
        Some(provided) => provided,
        None => {
            let provided = Provided::find(record, pin, Some(driver))?;
            provided.require_usable()?;
            Arc::new(provided)
        }
    };
    let allocation = provided.prepare(record, pin, driver)?;
    Ok(Prepared { allocation, is_known: provided.info().provider.is_some() })
}

/// What GET_CONTEXT is given, and whether there is a provider that wanted it so.
pub(crate) struct Prepared {
    allocation: Allocation,
    is_known: bool,
}

/// Pins a device for reading: its index is learnt, its netlink answers are read, between two signs of
/// life.
pub(crate) fn pin_for_reading(record: &Record) -> Result<Pin> {
    known(record)?;
    pin_instance(record, &mut Evidence::default()).map_err(|error| error.at(Step::Pin))
}

/// Whether a device is still the one in its place.
pub(crate) fn is_present(device: &Device) -> Result<bool> {
    match pin_for_reading(&device.0).map_err(|error| device.0.explain(error)) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Steps 1 and 2, and the half of step 7 that comes before the context exists, for a node that
/// somebody else opens.
pub(crate) fn pin(device: &Device) -> Result<PinnedDevice> {
    let record = &device.0;
    let pinned = || {
        known(record)?;
        let mut evidence = Evidence::default();
        let pin = pin_instance(record, &mut evidence).map_err(|error| error.at(Step::Pin))?;
        let baseline =
            Baseline::take(record, &pin, false).map_err(|error| error.at(Step::Prove))?;
        Ok(PinnedDevice { device: device.clone(), pin, baseline, evidence })
    };
    pinned().map_err(|error: Error| record.explain(error))
}

/// A device that is held in place while another library opens its node and allocates a context.
///
/// Made by [`Device::pin`]. Open the node, by `ibv_open_device` for instance, on the *same thread*
/// after the pin, and give the cmd fd to [`verify`](Self::verify). Another thread in between, or a
/// context that was allocated before the pin, cannot be told from somebody else's, and is `Unproven`.
///
/// The kernel lists contexts, not descriptors: between the two this thread must allocate no *other*
/// context on the device, or that one may be taken for the descriptor's. What
/// [`Device::open`] gives needs no such care.
#[derive(Debug)]
pub struct PinnedDevice {
    device: Device,
    pin: Pin,
    baseline: Baseline,
    evidence: Evidence,
}

impl PinnedDevice {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Proves that a cmd fd with a context is on this device: steps 4, 5 and 7 for a descriptor that
    /// came by other means.
    ///
    /// # Errors
    /// `NodeMismatch` when it is on another device, `Removed` or `Replaced` when the device is gone,
    /// `Unproven` when the kernel cannot tell, `Unstable` when it moved meanwhile: pin and open anew.
    pub fn verify(&self, fd: BorrowedFd<'_>) -> Result<Evidence> {
        let record = &self.device.0;
        let verified = || {
            let mut evidence = self.evidence.clone();
            let kernel = record.host.kernel();
            let stat = retry(|| kernel.fstat_cmd(fd))
                .map_err(|errno| Error::call("fstat", errno).at(Step::Open))?;
            require_node(record, &stat, Step::Open, &mut evidence)?;
            revalidate(record, &self.pin, &mut evidence).map_err(|e| e.at(Step::Revalidate))?;
            let driver = driver_of(record, fd, None).map_err(|e| e.at(Step::Prove))?;
            let (pin, baseline) = (&self.pin, &self.baseline);
            match proof::prove(record, pin, fd, driver, baseline, &mut evidence) {
                Ok(Proof::Proven(_)) => Ok(evidence),
                Ok(Proof::Unproven(error)) | Err(error) => Err(error.at(Step::Prove)),
            }
        };
        verified().map_err(|error| record.explain(error))
    }
}

/// What can be checked, without /sys and /dev, of a descriptor whose sender claims to have proved it.
pub(crate) fn adopt(cmd: &CmdFd, claim: &ContextClaim) -> Result<(Evidence, Proven)> {
    let record = &cmd.device().0;
    let mut evidence = Evidence::default();
    let mut adopted = || {
        known(record)?;
        for (what, expected, found) in [
            ("uverbs directory (inode)", Value::Number(record.ino), Value::Number(claim.ino)),
            (
                "device number (dev)",
                Value::Device(record.device_number),
                Value::Device(claim.device_number),
            ),
        ] {
            evidence.require(Step::Pin, what, ErrorKind::Replaced, expected, || Ok(found))?;
        }
        let stat = retry(|| record.host.kernel().fstat_cmd(cmd.as_ref()))
            .map_err(|errno| Error::call("fstat", errno).at(Step::Open))?;
        require_node(record, &stat, Step::Open, &mut evidence)?;
        proof::adopt(record, cmd, claim, &mut evidence).map_err(|error| error.at(Step::Prove))
    };
    let witness = adopted().map_err(|error: Error| error.of(|| record.label()))?;
    Ok((evidence, witness))
}

/// Step 6: the kernel context. Before the proof a wrong device may be given one, for a moment.
fn allocate(cmd: &CmdFd, prepared: &Prepared) -> Result<()> {
    let allocated = cmd.allocate(&prepared.allocation).map_err(|error| match error.errno() {
        Some(Errno::IO) => proof::on_dead_device(error),
        _ if !prepared.is_known => error.hint(
            "no provider knows this device, so its driver was told nothing: it may need a provider",
        ),
        _ => error,
    });
    allocated.map_err(|error| error.at(Step::Allocate))
}
