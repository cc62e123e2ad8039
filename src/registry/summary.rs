//! Summaries of many devices at once. Nothing is held meanwhile: one sweep at the end shows which devices have been
//! there throughout.

use super::{NO_LINK, Registry, by_parts};
use crate::device::Device;
use crate::error::Result;
use crate::listing::Sweeps;
use crate::parent::Place;
use crate::ports::{PortFacts, Unheld};

/// What a list shows of a device: [`Registry::summaries`].
#[derive(Debug)]
#[non_exhaustive]
pub struct Summary {
    /// Where it is.
    pub place: Result<Place>,
    /// Its ports, as [`Device::ports`] reads them.
    pub ports: Result<Vec<PortFacts>>,
}

impl Summary {
    /// Reads it while the device is held.
    fn read(device: &Device) -> Self {
        Self { place: device.place(), ports: device.ports() }
    }

    /// Reads it while nothing holds the device.
    fn read_unheld(device: &Device) -> (Result<Place>, Result<Unheld>) {
        (device.place_unheld(), device.ports_unheld())
    }
}

impl Registry {
    /// Reads place and ports of many devices, in that order. Where nothing happens meanwhile, this takes a third to a half of
    /// the system calls that [`Device::parent`] and [`Device::ports`] of each take.
    ///
    /// The devices are not held meanwhile. At the end one sweep of the class directory shows which of them have been
    /// there since they were listed, because the inode number of a class link is never used again. What was read of
    /// these counts. All others are read one by one: those that the sweep does not show, of another registry, or looked
    /// up by index and not listed since, and all where inode numbers may repeat.
    ///
    /// Up to `threads` threads share the work, as in [`devices_by`](Self::devices_by). Each uses one netlink socket.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// let devices = registry.devices()?;
    /// for (device, summary) in devices.iter().zip(registry.summaries(devices.as_slice(), 1)) {
    ///     println!("{device}: {:?}, {:?}", summary.place?.pci, summary.ports?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Each part has its own: for the place `Malformed`, `Os` or `PermissionDenied` if an attribute is not as expected or
    /// cannot be read, and `Removed` or `Replaced` if the device is gone; those of [`Device::ports`].
    pub fn summaries(&self, devices: &[Device], threads: usize) -> Vec<Summary> {
        by_parts(devices, threads, |part| self.summaries_if(part, |part| self.were_there(part)))
    }

    fn summaries_if(
        &self,
        devices: &[Device],
        were_there: impl FnOnce(&[Device]) -> Vec<bool>,
    ) -> Vec<Summary> {
        // Without a socket, each device has the error.
        let _kept = self.host().keep_netlink();
        // What the sweep cannot confirm is not read in vain.
        let read =
            |(device, link): (&Device, Option<u64>)| link.map(|_| Summary::read_unheld(device));
        let found: Vec<_> = devices.iter().zip(self.links_of(devices)).map(read).collect();
        let confirmed = devices.iter().zip(found).zip(were_there(devices));
        confirmed
            .map(|((device, found), was_there)| match found.filter(|_| was_there) {
                Some((place, ports)) => {
                    let explain = |error| device.record().explain(error);
                    Summary {
                        place: place.map_err(explain),
                        ports: ports.map(|ports| ports.confirm(device)).map_err(explain),
                    }
                }
                None => Summary::read(device),
            })
            .collect()
    }

    /// Whether each device has been there from the list until now, as far as one sweep shows.
    ///
    /// The kernel makes and removes the class link with the device (`device_add`, `device_del`). A link that was swept
    /// before the device was looked at, and is there now, was there in between, and so it was the device's.
    fn were_there(&self, devices: &[Device]) -> Vec<bool> {
        let mut sweeps = Sweeps::default();
        let links = match sweeps.take_uverbs(self.host()) {
            Ok(()) => sweeps.uverbs(),
            Err(_) => Vec::new(),
        };
        let is_there = |(device, link): (&Device, Option<u64>)| {
            link.is_some_and(|link| links.binary_search(&(device.uverbs_number(), link)).is_ok())
        };
        devices.iter().zip(self.links_of(devices)).map(is_there).collect()
    }

    /// The class link of each device, by its inode number, as the list saw it that found the device.
    fn links_of(&self, devices: &[Device]) -> Vec<Option<u64>> {
        let has_unique_inodes = self.host().has_unique_inodes();
        let state = self.lock();
        let link = |device: &Device| {
            let number = device.uverbs_number();
            let at = state.entries.binary_search_by_key(&number, |entry| entry.number).ok()?;
            let entry = &state.entries[at];
            let is_listed = entry.listed().is_some_and(|seen| seen.device.is_same_record(device));
            let is_known = is_listed && entry.link != NO_LINK && !device.is_known_gone();
            (has_unique_inodes && is_known).then_some(entry.link)
        };
        devices.iter().map(link).collect()
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
