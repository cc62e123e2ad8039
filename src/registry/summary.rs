//! Summaries of many devices at once. Nothing is held meanwhile: one sweep at the end shows which devices have been
//! there throughout.

use super::{NO_LINK, Registry, by_parts};
use crate::device::Device;
use crate::error::Result;
use crate::listing::Sweeps;
use crate::netlink::Socket;
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
        let place = device.parent().map(|parent| Place::of(&parent));
        Self { place, ports: device.ports() }
    }
}

impl Registry {
    /// Reads place and ports of many devices, in that order, with about half of the system calls that
    /// [`Device::parent`] and [`Device::ports`] of each take.
    ///
    /// The devices are not held meanwhile. At the end one sweep of the class directory shows which of them have been
    /// there since they were listed: their links have unique inode numbers. What was read of these counts. All others
    /// are read again, one by one: those that are gone, that another call has found since the list, or of which
    /// something could not be read, and all where inode numbers may repeat.
    ///
    /// With dozens of devices, up to `threads` threads share the work, as in [`devices_by`](Self::devices_by). Each uses
    /// one netlink socket.
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
    /// Each part has its own: those of [`Device::parent`] and [`Device::ports`].
    pub fn summaries(&self, devices: &[Device], threads: usize) -> Vec<Summary> {
        by_parts(devices, threads, |part| self.summaries_if(part, |part| self.were_there(part)))
    }

    fn summaries_if(
        &self,
        devices: &[Device],
        were_there: impl FnOnce(&[Device]) -> Vec<bool>,
    ) -> Vec<Summary> {
        let host = self.host();
        // Without a socket, each device has the error.
        let _kept = host.keep_netlink();
        let socket = host.netlink().ok();
        let read = |device| read_unheld(device, socket.as_deref()?);
        let found: Vec<_> = devices.iter().map(read).collect();
        let were_there = were_there(devices);
        let confirmed = devices.iter().zip(found).zip(were_there);
        confirmed
            .map(|((device, found), was_there)| match found.filter(|_| was_there) {
                Some((place, ports)) => {
                    Summary { place: Ok(place), ports: Ok(ports.confirm(device)) }
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
            Ok(()) if self.host().has_unique_inodes() => sweeps.uverbs(),
            _ => Vec::new(),
        };
        let state = self.lock();
        let was_there = |device: &Device| {
            let number = device.uverbs_number();
            let entry = state.entries.binary_search_by_key(&number, |entry| entry.number).ok();
            let entry = entry.map(|at| &state.entries[at]);
            entry.and_then(|entry| Some((entry.link, entry.listed()?))).is_some_and(
                |(link, seen)| {
                    link != NO_LINK
                        && seen.device.is_same_record(device)
                        && !device.is_known_gone()
                        && links.binary_search(&(number, link)).is_ok()
                },
            )
        };
        devices.iter().map(was_there).collect()
    }
}

/// Reads a device that is not held; `None` if something could not be read.
fn read_unheld(device: &Device, socket: &Socket) -> Option<(Place, Unheld)> {
    let place = device.place_unheld().ok()?;
    let ports = device.ports_unheld(socket).ok()?;
    Some((place, ports))
}

#[cfg(all(test, feature = "sim"))]
mod tests;
