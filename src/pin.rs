//! Holds an instance in place while it is read, opened or proved: steps 1 and 2 of the open protocol.

use std::ops::Deref;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{CheckId, Evidence, Step, Value};
use crate::identity::Timestamp;
use crate::ids::{DeviceNumber, Name};
use crate::kernel::{Handle, Kernel};
use crate::record::Record;
use crate::sysfs::{self, Attribute};

/// Step 1: a device that is known to be gone is not looked up.
pub(crate) fn known(record: &Record) -> Result<()> {
    match record.known_gone() {
        Some(gone) => {
            Err(Error::new(gone.kind(), "an earlier call found that out").at(Step::Known))
        }
        None => Ok(()),
    }
}

/// An instance that is held in place. While this exists, its inode numbers cannot be evicted, and `dev` can be read
/// again.
#[derive(Debug)]
pub(crate) struct Held {
    directory: Arc<Handle>,
    dev: Attribute,
    kernel: Kernel,
}

impl Held {
    /// Reads `dev` through the pin. Success means that the device is alive at this moment.
    pub(crate) fn read_device_number(&self) -> Result<DeviceNumber> {
        self.dev.read(&self.kernel, sysfs::parse_device_number)
    }

    /// The uverbs directory.
    pub(crate) fn directory(&self) -> &Handle {
        &self.directory
    }
}

/// The same with the device's name and timestamp.
#[derive(Debug)]
pub(crate) struct Pin {
    held: Held,
    ibdev: Attribute,
    pub(crate) device_number: DeviceNumber,
    name: Name,
    pub(crate) timestamp: Timestamp,
}

impl Deref for Pin {
    type Target = Held;

    fn deref(&self) -> &Held {
        &self.held
    }
}

impl Pin {
    /// The name at the time of the pin.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Reads `ibdev` through the pin: the current name.
    pub(crate) fn read_name(&self) -> Result<Name> {
        self.ibdev.read(&self.held.kernel, sysfs::parse_name)
    }

    /// Checks, after reading, that the device is alive and still has that name.
    pub(crate) fn require_name(&self, name: &Name) -> Result<()> {
        self.read_device_number()?;
        let found = self.read_name()?;
        if found == *name {
            return Ok(());
        }
        let (expected, found) = (Value::Name(name.clone()), Value::Name(found));
        Err(Error::differs(ErrorKind::Unstable, "name (ibdev)", expected, found))
    }

    /// The current timestamp.
    pub(crate) fn read_timestamp(&self) -> Result<Timestamp> {
        Ok(self.ibdev.stat(&self.held.kernel)?.ctime)
    }
}

/// Opens the directory in /sys, and compares it with the record.
fn open_instance(record: &Record, evidence: &mut Evidence) -> Result<Arc<Handle>> {
    let (directory, stat) = record.directory()?;
    let same = |id, expected, found| (id, Value::Number(expected), Value::Number(found));
    for (id, expected, found) in [
        same(CheckId::SysfsMount, record.sys_dev, stat.dev),
        same(CheckId::UverbsInode, record.ino, stat.ino),
    ] {
        evidence.require(Step::Pin, id, ErrorKind::Replaced, expected, || Ok(found))?;
    }
    Ok(directory)
}

fn require_device_number(
    record: &Record,
    evidence: &mut Evidence,
    dev: &Attribute,
) -> Result<DeviceNumber> {
    let found = dev.read(record.host.kernel(), sysfs::parse_device_number)?;
    let expected = Value::Device(record.device_number);
    evidence.require(Step::Pin, CheckId::DeviceNumber, ErrorKind::Replaced, expected, || {
        Ok(Value::Device(found))
    })?;
    Ok(found)
}

/// Step 2: opens the directory in /sys, compares it with the record, holds it, and reads `dev` and `ibdev` through
/// it.
pub(crate) fn pin_instance(record: &Record, evidence: &mut Evidence) -> Result<Pin> {
    let kernel = record.host.kernel();
    let directory = open_instance(record, evidence)?;
    let ibdev = Attribute::open(kernel, &directory, c"ibdev")?;
    let timestamp = ibdev.stat(kernel)?.ctime;
    let dev = Attribute::open(kernel, &directory, c"dev")?;
    let device_number = require_device_number(record, evidence, &dev)?;
    let name = ibdev.read(kernel, sysfs::parse_name)?;
    let known = record.state().timestamp;
    if timestamp != known {
        // Where inode numbers are unique, this is an eviction. Where they may repeat, the timestamp distinguishes a
        // replacement.
        if !record.host.has_unique_inodes() {
            let (expected, found) = (time(known), time(timestamp));
            evidence.require(
                Step::Pin,
                CheckId::Timestamp,
                ErrorKind::Replaced,
                expected,
                || Ok(found),
            )?;
        }
        tracing::debug!(device = record.label(), "timestamp refreshed: the inode was evicted");
    }
    record.refresh_pinned(timestamp, &name);
    let held = Held { directory, dev, kernel: kernel.clone() };
    Ok(Pin { held, ibdev, device_number, name, timestamp })
}

/// What [`OpenOptions::strict_timestamps`](crate::OpenOptions::strict_timestamps) demands.
pub(crate) fn require_unmoved(record: &Record, pin: &Pin, evidence: &mut Evidence) -> Result<()> {
    let (expected, found) = (time(record.state().listed_timestamp), time(pin.timestamp));
    evidence
        .require(Step::Pin, CheckId::Timestamp, ErrorKind::Replaced, expected, || Ok(found))
        .map_err(|error| error.with_hint(MOVED))
}

const MOVED: &str =
    "the kernel also moves the timestamp when it drops the inode from its cache: list again";

pub(crate) fn time((seconds, nanoseconds): Timestamp) -> Value {
    Value::Time(seconds, nanoseconds)
}

/// Holds a device for reads that need neither its name nor its timestamp. The checks are those of a pin: the mount, the
/// inode and the device number, and the timestamp where inode numbers may repeat.
pub(crate) fn hold(record: &Record) -> Result<Held> {
    if !record.host.has_unique_inodes() {
        return pin_for_reading(record).map(|pin| pin.held);
    }
    known(record)?;
    hold_instance(record, &mut Evidence::default()).map_err(|error| error.at(Step::Pin))
}

fn hold_instance(record: &Record, evidence: &mut Evidence) -> Result<Held> {
    let kernel = record.host.kernel();
    let directory = open_instance(record, evidence)?;
    let dev = Attribute::open(kernel, &directory, c"dev")?;
    require_device_number(record, evidence, &dev)?;
    Ok(Held { directory, dev, kernel: kernel.clone() })
}

/// Pins a device for reading. Its index and its netlink answers are read between two signs of life.
pub(crate) fn pin_for_reading(record: &Record) -> Result<Pin> {
    known(record)?;
    pin_instance(record, &mut Evidence::default()).map_err(|error| error.at(Step::Pin))
}

/// Whether a device is still the one in its place.
pub(crate) fn is_present(record: &Record) -> Result<bool> {
    match pin_for_reading(record).map_err(|error| record.explain(error)) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced) => Ok(false),
        Err(error) => Err(error),
    }
}
