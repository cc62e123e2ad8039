//! Summaries of all devices. Nothing is held meanwhile: one sweep at the end shows which devices have been there
//! throughout.

use std::collections::BTreeSet;

use super::{LOOKS, Registry, by_parts, is_gone, is_short_of_descriptors};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::host::Host;
use crate::ids::Name;
use crate::index::Finder;
use crate::kernel::Handle;
use crate::listing::{Sweeps, open_class};
use crate::netlink::Socket;
use crate::parent::Place;
use crate::ports::{PortFacts, PortReader};
use crate::record::{Record, Sighting};
use crate::sysfs;

/// What a list shows of a device: [`Registry::summaries`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The N of `uverbsN`.
    pub uverbs_number: u32,
    /// Its name.
    pub name: Name,
    /// Where it is.
    pub place: Result<Place>,
    /// Its ports, as [`Device::ports`](crate::Device::ports) reads them.
    pub ports: Result<Vec<PortFacts>>,
}

/// A device of a sweep: its number and the inode number of its class link.
type Swept = (u32, u64);
/// A summary, or why there is none, with the device's number.
type Numbered = (u32, Result<Summary>);

impl Registry {
    /// Reads name, place and ports of every device, ordered by uverbs number. It is for display: to use a device, list it.
    /// This takes a third to a half of the system calls of [`devices`](Self::devices) and then
    /// [`Device::parent`](crate::Device::parent) and [`Device::ports`](crate::Device::ports) of each.
    ///
    /// The devices are not held meanwhile. At the end one sweep of the class directory shows which of them have been
    /// there from the beginning, because the inode number of a class link is never used again. What was read of these
    /// counts. A device that the sweep does not show is read again while it is held. So is one with a part that could not
    /// be read, and every device where inode numbers may repeat. A device that is gone by then is left out.
    ///
    /// A device that is there throughout is returned, unless the class directory changes during each of eight sweeps. The
    /// devices are not noted in the registry: no list and no watch is different afterwards.
    ///
    /// Up to `threads` threads share the work, as in [`devices_by`](Self::devices_by). Each uses one netlink socket.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// for summary in registry.summaries(1)? {
    ///     let summary = summary?;
    ///     println!("{}: {:?}, {:?}", summary.name, summary.place?.pci, summary.ports?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`devices`](Self::devices). Instead of a device whose directory in sysfs could not be opened, there is its error,
    /// as in [`Devices::faults`](crate::Devices::faults). Each part has its own: for the place `Malformed`, `Os` or
    /// `PermissionDenied` if an attribute is not as expected or cannot be read; those of
    /// [`Device::ports`](crate::Device::ports).
    pub fn summaries(&self, threads: usize) -> Result<Vec<Result<Summary>>> {
        let swept = Sweeps::twice(self.host())?;
        let are_there = |swept: &[Swept]| self.are_there(swept);
        let mut found =
            by_parts(&swept, threads, |part| self.summaries_of(part, &swept, are_there));
        // Each thread has up to four descriptors at a time, so where few are left, one of them may have had none. The
        // calling thread reads these devices again.
        let is_short = |found: &&Numbered| has_error(&found.1, is_short_of_descriptors);
        let short: BTreeSet<_> = found.iter().filter(is_short).map(|found| found.0).collect();
        let again: Vec<_> =
            swept.iter().filter(|swept| short.contains(&swept.0)).copied().collect();
        if !again.is_empty() {
            found.retain(|found| !short.contains(&found.0));
            found.extend(self.summaries_of(&again, &swept, are_there));
            found.sort_unstable_by_key(|found| found.0);
        }
        Ok(found.into_iter().map(|(_, summary)| summary).collect())
    }

    /// Reads a part of the devices. `are_there` returns whether each has been there until now.
    fn summaries_of(
        &self,
        part: &[Swept],
        all: &[Swept],
        are_there: impl FnOnce(&[Swept]) -> Vec<bool>,
    ) -> Vec<Numbered> {
        let host = self.host();
        // Without a socket, each device has the error.
        let _kept = host.keep_netlink();
        let found = match (host.netlink(), open_class(host)) {
            (Ok(socket), Ok(class)) if host.has_unique_inodes() => {
                let mut finder =
                    Finder::new(&self.0.services.indices, &socket, all.iter().copied());
                let read =
                    |&(number, _): &Swept| read_unheld(host, &socket, &class, &mut finder, number);
                part.iter().map(read).collect()
            }
            _ => part.iter().map(|_| None).collect::<Vec<_>>(),
        };
        let found = part.iter().zip(found).zip(are_there(part));
        let found = found.filter_map(|((&(number, _), found), was_there)| {
            let summary = match found.filter(|_| was_there) {
                Some(summary) => Ok(summary),
                None => self.read_held(number)?,
            };
            Some((number, summary))
        });
        found.collect()
    }

    /// Whether each device is still there, as far as one sweep shows.
    ///
    /// The kernel makes and removes the class link with the device (`device_add`, `device_del`). A link that was swept
    /// before, and is there now, was there in between. Meanwhile no other device had the number, so what the path of the
    /// link and the index with that number led to was the device's.
    fn are_there(&self, part: &[Swept]) -> Vec<bool> {
        let now = Sweeps::once(self.host()).unwrap_or_default();
        part.iter().map(|swept| now.binary_search(swept).is_ok()).collect()
    }

    /// Reads `uverbsN` while it is held. `None` if there is no such device.
    fn read_held(&self, number: u32) -> Option<Result<Summary>> {
        let mut last = None;
        for _ in 0..LOOKS {
            let sighting = match Sighting::take(self.host(), number) {
                Ok(sighting) => sighting,
                Err(error) if sysfs::is_absent(&error) => return None,
                Err(error) => return Some(Err(error.of(|| format!("uverbs{number}")))),
            };
            let record = Record::new(self.host().clone(), sighting);
            let device = Device::new(record, self.0.services.clone());
            let (place, ports) = (device.place(), device.ports());
            let summary = Ok(Summary { uverbs_number: number, name: device.name(), place, ports });
            // It may be about to go, or another one may have its number by now.
            if !has_error(&summary, |error| is_gone(error) || sysfs::is_absent(error)) {
                return Some(summary);
            }
            last = Some(summary);
        }
        last.filter(|summary| !has_error(summary, is_gone))
    }
}

/// Reads `uverbsN` while nothing holds it. `None` if a part cannot be read.
fn read_unheld(
    host: &Host,
    socket: &Socket,
    class: &Handle,
    finder: &mut Finder<'_>,
    number: u32,
) -> Option<Summary> {
    let (kernel, sys) = (host.kernel(), host.sys());
    let path = sysfs::read_class_link_in(kernel, class, number).ok()?;
    // A device that could not be opened is not listed.
    sysfs::open(kernel, sys, &path, sysfs::DIRECTORY).ok()?;
    let index = finder.find(number).ok()??;
    let (name, ports) = PortReader { host, path: &path, socket, index }.read().ok()?;
    let place = Place::read(host, &path).ok()?;
    Some(Summary { uverbs_number: number, name, place: Ok(place), ports: Ok(ports) })
}

/// Whether an error of it or of one of its parts is such an error.
fn has_error(summary: &Result<Summary>, is_such: fn(&Error) -> bool) -> bool {
    let errors = match summary {
        Ok(Summary { place, ports, .. }) => [place.as_ref().err(), ports.as_ref().err()],
        Err(error) => [Some(error), None],
    };
    errors.into_iter().flatten().any(is_such)
}

#[cfg(all(test, feature = "sim"))]
mod tests;
