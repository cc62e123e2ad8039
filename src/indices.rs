//! Which RDMA netlink index a device has: learnt when somebody asks, and joined through the device
//! number, never through the name.

use std::sync::Mutex;

use crate::device::{Joined, Record};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;
use crate::netlink::Socket;
use crate::open::Pin;

/// The indices that the last dump named. A hint only: the join decides.
#[derive(Debug, Default)]
pub(crate) struct Indices(Mutex<Vec<(u32, Name)>>);

impl Indices {
    /// Finds the index of a pinned device and notes it in its record.
    pub(crate) fn join(&self, record: &Record, pin: &Pin) -> Result<Joined> {
        if let Some(joined) = record.state().joined {
            return Ok(joined);
        }
        let socket = record.host.netlink()?;
        let name = record.state().name.clone();
        let hint = self.lock().iter().find(|(_, known)| *known == name).map(|(index, _)| *index);
        let mut found = None;
        if let Some(index) = hint {
            found = try_index(record, pin, &socket, index)?;
        }
        if found.is_none() {
            found = self.search(record, pin, &socket, &name)?;
        }
        let joined = found.ok_or_else(|| {
            Error::new(ErrorKind::Unproven, "RDMA netlink lists no device with this device number")
        })?;
        record.state().joined = Some(joined);
        Ok(joined)
    }

    /// Asks for all devices, then for their device numbers: first of those with the right name.
    fn search(
        &self,
        record: &Record,
        pin: &Pin,
        socket: &Socket,
        name: &Name,
    ) -> Result<Option<Joined>> {
        let mut all: Vec<_> =
            socket.devices()?.iter().map(|info| (info.index, Name::new(&info.name))).collect();
        self.lock().clone_from(&all);
        all.sort_by_key(|(index, known)| (known != name, *index));
        for (index, _) in all {
            if let Some(joined) = try_index(record, pin, socket, index)? {
                return Ok(Some(joined));
            }
        }
        Ok(None)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u32, Name)>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

/// Asks for the device number of an index while the pinned device is alive. It was alive before (the
/// pin read its `dev`) and is alive after: in between nobody else had its device number, so an
/// index with that number is this device's (`audits/kernel-facts.md`).
fn try_index(record: &Record, pin: &Pin, socket: &Socket, index: u32) -> Result<Option<Joined>> {
    match socket.chardev(index)? {
        Some(chardev) if record.device_number == chardev.dev.into() => {
            pin.read_device_number()?;
            Ok(Some(Joined { index, driver_id: chardev.driver_id }))
        }
        _ => Ok(None),
    }
}
