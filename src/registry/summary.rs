//! Summaries of all devices. Nothing is held meanwhile: one sweep at the end shows which devices have been there
//! throughout.

use super::{Registry, by_parts, is_gone, is_short_of_descriptors};
use crate::error::{Error, Result};
use crate::ids::Name;
use crate::index::Neighbour;
use crate::listing::Sweeps;
use crate::netlink::Socket;
use crate::parent::Place;
use crate::ports::{PortFacts, PortReader};
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

impl Registry {
    /// Reads name, place and ports of every device, ordered by uverbs number. This takes about a third of the system calls
    /// that [`devices`](Self::devices) takes with [`Device::parent`](crate::Device::parent) and
    /// [`Device::ports`](crate::Device::ports) of each device. It is for display: to use a device, list it.
    ///
    /// The devices are not held meanwhile. At the end one sweep of the class directory shows which of them have been
    /// there from the beginning, because the inode number of a class link is never used again. What was read of these
    /// counts. All others are read one by one, each held meanwhile: those that the sweep does not show, those of which
    /// a part could not be read, and all where inode numbers may repeat. A device that is gone by then is left out.
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
    /// As [`devices`](Self::devices). Instead of a device that could not be read, there is its error, as in
    /// [`Devices::faults`](crate::Devices::faults). Each part has its own: for the place `Malformed`, `Os` or
    /// `PermissionDenied` if an attribute is not as expected or cannot be read; those of
    /// [`Device::ports`](crate::Device::ports).
    pub fn summaries(&self, threads: usize) -> Result<Vec<Result<Summary>>> {
        let swept = Sweeps::twice(self.host())?;
        let is_there = |swept: &[Swept]| self.are_there(swept);
        let found = by_parts(&swept, threads, |part| self.summaries_of(part, &swept, is_there));
        // Each thread has three descriptors at a time, so where few are left, one of them may have had none.
        let again = |(number, summary)| match has_error(&summary, is_short_of_descriptors) {
            true => self.read_held(number),
            false => Some(summary),
        };
        Ok(found.into_iter().filter_map(again).collect())
    }

    /// Reads a part of the devices. `are_there` returns whether each has been there until now.
    fn summaries_of(
        &self,
        part: &[Swept],
        all: &[Swept],
        are_there: impl FnOnce(&[Swept]) -> Vec<bool>,
    ) -> Vec<(u32, Result<Summary>)> {
        // Without a socket, each device has the error.
        let _kept = self.host().keep_netlink();
        let socket = self.host().netlink().ok().filter(|_| self.host().has_unique_inodes());
        let mut reader = socket.as_deref().map(|socket| Reader::new(self, socket, all));
        let found =
            part.iter().map(|swept| match reader.as_mut().and_then(|reader| reader.read(*swept)) {
                Some(summary) => Found::Unheld(summary),
                None => Found::Held(self.read_held(swept.0)),
            });
        let found: Vec<_> = found.collect();
        // Where everything was held, there is nothing to confirm.
        let confirmed = match found.iter().any(|found| matches!(found, Found::Unheld(_))) {
            true => are_there(part),
            false => vec![false; part.len()],
        };
        let found = part.iter().zip(found).zip(confirmed);
        let found = found.filter_map(|((&(number, _), found), was_there)| {
            let summary = match found {
                Found::Unheld(summary) if was_there => Some(Ok(summary)),
                Found::Unheld(_) => self.read_held(number),
                Found::Held(summary) => summary,
            };
            Some((number, summary?))
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

    /// Reads `uverbsN` while it is held. `None` if there is no such device, or it goes meanwhile.
    fn read_held(&self, number: u32) -> Option<Result<Summary>> {
        let device = match self.look_at(number) {
            Ok(found) => found?.0,
            Err(error) => return Some(Err(error)),
        };
        let (place, ports) = (device.place(), device.ports());
        let summary = Ok(Summary { uverbs_number: number, name: device.name(), place, ports });
        (!has_error(&summary, is_gone)).then_some(summary)
    }
}

/// Whether an error of it or of one of its parts is such an error.
fn has_error(summary: &Result<Summary>, is_such: fn(&Error) -> bool) -> bool {
    let errors = match summary {
        Ok(Summary { place, ports, .. }) => [place.as_ref().err(), ports.as_ref().err()],
        Err(error) => [Some(error), None],
    };
    errors.into_iter().flatten().any(is_such)
}

/// How many searches for an index may fail in a part of a list. Each takes up to 128 requests in vain where devices are
/// in another network namespace.
const SEARCHES: usize = 4;

/// How a device was read.
enum Found {
    /// While nothing held it.
    Unheld(Summary),
    /// While it was held, if it was there.
    Held(Option<Result<Summary>>),
}

/// Reads devices one after the other while nothing holds them.
struct Reader<'a> {
    registry: &'a Registry,
    socket: &'a Socket,
    /// All devices, ordered by number, with the indices that were found.
    listed: Vec<Neighbour>,
    /// How many more searches may fail.
    searches: usize,
}

impl<'a> Reader<'a> {
    fn new(registry: &'a Registry, socket: &'a Socket, all: &[Swept]) -> Self {
        let neighbour = |&(number, ino): &Swept| Neighbour { ino, number, index: None };
        let listed = all.iter().map(neighbour).collect();
        Self { registry, socket, listed, searches: SEARCHES }
    }

    fn read(&mut self, swept: Swept) -> Option<Summary> {
        let (number, _) = swept;
        let host = self.registry.host();
        let path = sysfs::read_class_link(host.kernel(), host.sys(), number).ok()?;
        let index = self.find(swept)?;
        let reader = PortReader { host, path: &path, socket: self.socket, index };
        let (name, ports) = reader.read().ok()?;
        let place = Place::read(host, &path).ok()?;
        Some(Summary { uverbs_number: number, name, place: Ok(place), ports: Ok(ports) })
    }

    /// The netlink index.
    fn find(&mut self, swept: Swept) -> Option<u32> {
        let listed = if self.searches > 0 { &*self.listed } else { &[] };
        let indices = &self.registry.0.services.indices;
        match indices.find_unheld(swept, self.socket, listed).ok()? {
            Some(index) => {
                let at = self.listed.binary_search_by_key(&swept.0, |device| device.number);
                self.listed[at.ok()?].index = Some(index);
                Some(index)
            }
            None => {
                self.searches = self.searches.saturating_sub(1);
                None
            }
        }
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
