//! The RDMA netlink index of a device. It is looked up when it is needed, and joined through the device number,
//! never through the name.
//!
//! No request returns it directly. A dump of all devices contains it, but takes a time that grows with the square
//! of their number (the kernel counts from the first device for each message): 110 ms with 1,000 devices. So where
//! there are many devices, single indices are tried first, by a request for the device number of each. The kernel
//! assigns indices and inode numbers in order of registration, so each answer shows in which direction to continue
//! and by how much at least. All this only provides hints. The join decides ([`query`](Indices::query)).

mod finder;

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::Name;
use crate::kernel::nldev::Chardev;
use crate::netlink::Socket;
use crate::pin::Held;
use crate::record::{Joined, Record};
use crate::sysfs;

pub(crate) use finder::Finder;

/// Up to this many devices, a dump takes no longer than a search may.
const FEW: usize = 16;
/// How many indices a search tries, 14 us each, before it gives up. It needs one where no device has gone, and 16
/// where every second device has gone.
const PROBES: usize = 128;
/// Indices are less than this (`xa_limit_31b`).
const LIMIT: u32 = 1 << 31;
/// How many dumps are made until two in a row agree.
const DUMPS: usize = 4;
/// How many runs are remembered.
const RUNS: usize = 8;
/// At most this many indices without a uverbs node are remembered.
const NOBODIES: usize = 1024;

/// What to do about a device that netlink does not list.
pub(crate) const MOVE_IT: &str =
    "to move it here, run this in its namespace: rdma dev set DEV netns NAME";

/// The error where netlink has no answer for a device's index, though it is alive.
pub(crate) fn not_in_netlink(index: u32) -> Error {
    let text = format!("RDMA netlink has no device of index {index}");
    Error::new(ErrorKind::OtherNamespace, text).with_hint(MOVE_IT)
}

/// What is known of the indices. Hints only: the join decides.
#[derive(Debug, Default)]
pub(crate) struct Indices(Mutex<Hints>);

#[derive(Debug, Default)]
struct Hints {
    /// The names in the last dump.
    named: Vec<(u32, Name)>,
    /// Indices that had no uverbs node when they were queried. If such an index is in use, for example by a device
    /// whose removal waits, the kernel takes a thousand times as long as for others, because it tries to load a
    /// module that might make the node. So these are queried last.
    nobodies: BTreeSet<u32>,
    /// The devices that were joined last, each the end of a run: threads may query parts of a list at once.
    ends: Vec<End>,
}

/// The last device of a run that is joined in order.
#[derive(Clone, Copy, Debug)]
struct End {
    number: u32,
    ino: u64,
    index: u32,
}

impl Hints {
    fn note(&mut self, record: &Record, joined: Joined) {
        let (number, ino, index) = (record.number, record.ino, joined.index);
        self.ends.retain(|end| end.number.checked_add(1) != Some(number));
        if self.ends.len() >= RUNS {
            self.ends.remove(0);
        }
        self.ends.push(End { number, ino, index });
    }
}

/// Another listed device, as a hint for finding an index.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbour {
    /// An inode number that it got when it was added: that of its directory, or of its class link.
    pub(crate) ino: u64,
    /// The N of `uverbsN`.
    pub(crate) number: u32,
    /// Its index, if it is known.
    pub(crate) index: Option<u32>,
}

impl Indices {
    /// Finds the index of a pinned device and notes it in its record. `listed` returns the listed devices.
    pub(crate) fn join(
        &self,
        record: &Record,
        pin: &Held,
        socket: &Socket,
        listed: impl FnOnce() -> Vec<Neighbour>,
    ) -> Result<Joined> {
        if let Some(joined) = record.joined.get() {
            return Ok(*joined);
        }
        if let Some(joined) = self.try_next(record, pin, socket)? {
            return Ok(*record.joined.get_or_init(|| joined));
        }
        let name = record.state().name.clone();
        let hint = {
            let hints = self.lock();
            hints.named.iter().find(|(_, known)| *known == name).map(|(index, _)| *index)
        };
        let mut found = None;
        if let Some(index) = hint {
            found = self.try_index(record, pin, socket, index)?;
            if found.is_none() {
                // If the device is gone, other indices are not queried in vain: a query about a device that is
                // being removed makes the kernel try to load a module.
                pin.read_device_number()?;
            }
        }
        if found.is_none() {
            let listed = listed();
            if listed.len() > FEW {
                let query = |index| self.query(record, pin, socket, index);
                found = self.search(record.ino, &listed, query)?;
            }
        }
        if found.is_none() {
            found = self.dump(record, pin, socket, &name)?;
        }
        let joined = found.ok_or_else(|| {
            let text = "RDMA netlink lists no device with this device number";
            Error::new(ErrorKind::OtherNamespace, text).with_hint(MOVE_IT)
        })?;
        self.lock().note(record, joined);
        Ok(*record.joined.get_or_init(|| joined))
    }

    /// Tries the index after that of a device that was joined, if this is the next one. Programs that query all devices
    /// join them in this order, and the search below looks at all of them each time.
    fn try_next(&self, record: &Record, pin: &Held, socket: &Socket) -> Result<Option<Joined>> {
        let index = {
            let hints = self.lock();
            let mut ends = hints.ends.iter();
            let is_before = |end: &&End| {
                end.number.checked_add(1) == Some(record.number) && end.ino < record.ino
            };
            let next = ends.find(is_before).and_then(|before| before.index.checked_add(1));
            next.filter(|index| *index < LIMIT && !hints.nobodies.contains(index))
        };
        let Some(index) = index else { return Ok(None) };
        let found = self.try_index(record, pin, socket, index)?;
        if let Some(joined) = found {
            self.lock().note(record, joined);
        }
        Ok(found)
    }

    /// Whether that index is the pinned device's. If so, its record notes it.
    pub(crate) fn join_at(
        &self,
        record: &Record,
        pin: &Held,
        socket: &Socket,
        index: u32,
    ) -> Result<bool> {
        if record.joined.get().is_none()
            && let Some(joined) = self.try_index(record, pin, socket, index)?
        {
            let _ = record.joined.set(joined);
        }
        Ok(record.joined.get().is_some_and(|joined| joined.index == index))
    }

    /// Requests all devices, then their device numbers, starting with those of the right name.
    ///
    /// A dump goes by position, so it lacks a device if an earlier one is removed meanwhile. The removed device is
    /// then in this dump and not in the next. So two equal dumps lack nothing.
    fn dump(
        &self,
        record: &Record,
        pin: &Held,
        socket: &Socket,
        name: &Name,
    ) -> Result<Option<Joined>> {
        let mut before = None;
        for _ in 0..DUMPS {
            let all = socket.devices()?;
            let all: Vec<_> = all.iter().map(|info| (info.index, Name::new(&info.name))).collect();
            if before.as_ref() == Some(&all) {
                return Ok(None);
            }
            let mut candidates: Vec<_> = {
                let mut hints = self.lock();
                hints.named.clone_from(&all);
                let last = |index| hints.nobodies.contains(index);
                all.iter().map(|(index, known)| (known != name, last(index), *index)).collect()
            };
            candidates.sort_unstable();
            for (has_other_name, _, index) in candidates {
                if let Some(joined) = self.try_index(record, pin, socket, index)? {
                    return Ok(Some(joined));
                }
                if !has_other_name {
                    pin.read_device_number()?;
                }
            }
            // A device that is gone is in no dump.
            pin.read_device_number()?;
            before = Some(all);
        }
        let text = format!("devices came and went during each of {DUMPS} dumps over RDMA netlink");
        Err(Error::new(ErrorKind::Unproven, text))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Hints> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Whether the index had no uverbs node when it was queried.
    fn is_nobody(&self, index: u32) -> bool {
        self.lock().nobodies.contains(&index)
    }

    /// Searches for the index near those of the listed devices, to which each answer adds one. Returns `None` if
    /// that fails: too few of the indices in between are in use, or the order does not hold, as for a device that
    /// moved to another network namespace.
    fn search(
        &self,
        ino: u64,
        listed: &[Neighbour],
        query: impl Fn(u32) -> Result<Answer>,
    ) -> Result<Option<Joined>> {
        // How many devices, from the one of inode `from` up to the one of `to`, are still there. Their indices are
        // at least that far apart.
        let between = |from: u64, to: u64| {
            let listed = listed.iter().filter(|device| (from..to).contains(&device.ino));
            listed.count() as u32
        };
        // Bounds that another device's inode and index set: the lowest index that is possible, and the lowest that
        // is too high.
        let first_after = |other, index: u32| index.saturating_add(between(other, ino));
        let end_before =
            |other, index: u32| index.saturating_add(1).saturating_sub(between(ino, other));
        // The nearest devices whose indices are known already.
        let joined = listed.iter().filter_map(|device| Some((device.ino, device.index?)));
        let before = joined.clone().filter(|(other, _)| *other < ino).max();
        let after = joined.filter(|(other, _)| *other > ino).min();
        let (other, index) = before.unwrap_or_default();
        let mut from = first_after(other, index);
        let mut to = after.map_or(LIMIT, |(other, index)| end_before(other, index).min(LIMIT));
        // Starts at the bound that was moved last: without gaps, the index is right there. Across indices that are
        // not in use it moves away from both bounds by turns. The steps grow, but slowly, because gaps may be
        // regular.
        let (mut at_end, mut step) = (before.is_none() && after.is_some(), 0u32);
        let mut turned = false;
        for _ in 0..PROBES.min(listed.len()) {
            let index =
                if at_end { to.saturating_sub(1 + step) } else { from.saturating_add(step) };
            let other = if !(from..to).contains(&index) || self.is_nobody(index) {
                None
            } else {
                match query(index)? {
                    Answer::Joined(joined) => return Ok(Some(joined)),
                    Answer::Other(number) => {
                        listed.iter().find(|other| Some(other.number) == number)
                    }
                    Answer::Nobody => None,
                }
            };
            match other.map(|other| other.ino) {
                Some(other) => {
                    at_end = other > ino;
                    (step, turned) = (0, false);
                    if at_end {
                        to = end_before(other, index);
                    } else {
                        from = first_after(other, index);
                    }
                }
                None if to < LIMIT && !turned => (at_end, turned) = (!at_end, true),
                None => {
                    at_end ^= turned;
                    (step, turned) = (step + step / 8 + 1, false);
                }
            }
        }
        Ok(None)
    }

    /// Queries the device number of an index while the pinned device is alive. It was alive before (the pin read
    /// its `dev`) and is alive after. In between no other device had its device number, so an index with that
    /// number is this device's (`audits/kernel-facts.md`).
    fn query(&self, record: &Record, pin: &Held, socket: &Socket, index: u32) -> Result<Answer> {
        let is_it = |chardev: &Chardev| record.device_number == chardev.dev.into();
        let answer = self.request(socket, index, is_it)?;
        if let Answer::Joined(_) = answer {
            pin.read_device_number()?;
        }
        Ok(answer)
    }

    fn request(
        &self,
        socket: &Socket,
        index: u32,
        is_it: impl FnOnce(&Chardev) -> bool,
    ) -> Result<Answer> {
        let chardev = socket.chardev(index)?;
        let mut hints = self.lock();
        let Some(chardev) = chardev else {
            if hints.nobodies.len() >= NOBODIES {
                hints.nobodies.clear();
            }
            hints.nobodies.insert(index);
            return Ok(Answer::Nobody);
        };
        hints.nobodies.remove(&index);
        Ok(match is_it(&chardev) {
            true => Answer::Joined(Joined { index, driver_id: chardev.driver_id }),
            false => Answer::Other(sysfs::parse_uverbs(&chardev.name)),
        })
    }

    /// The join: returns the index if it is the device's.
    fn try_index(
        &self,
        record: &Record,
        pin: &Held,
        socket: &Socket,
        index: u32,
    ) -> Result<Option<Joined>> {
        match self.query(record, pin, socket, index)? {
            Answer::Joined(joined) => Ok(Some(joined)),
            Answer::Other(_) | Answer::Nobody => Ok(None),
        }
    }
}

/// What netlink reports for an index.
enum Answer {
    /// It is the device's.
    Joined(Joined),
    /// It belongs to another device, or does so by now. This is the N of its `uverbsN`.
    Other(Option<u32>),
    /// No device has it, or its device has no uverbs node.
    Nobody,
}
