//! The indices of many devices while nothing pins them.

use super::{Answer, Indices, Neighbour};
use crate::error::Result;
use crate::netlink::Socket;
use crate::sysfs;

/// Up to this many devices are dumped. The time that the kernel takes for a dump grows with the square of their number.
const FEW: usize = 256;

/// Finds the indices of devices, in the order of their numbers. An answer counts for devices that turn out to have been
/// alive from before the first request until after the last one.
pub(crate) struct Finder<'a> {
    indices: &'a Indices,
    socket: &'a Socket,
    /// All devices, ordered by number, with the indices that were found.
    listed: Vec<Neighbour>,
    /// The indices of a dump that are not known and were not queried yet, the next one last.
    dumped: Option<Vec<u32>>,
}

impl<'a> Finder<'a> {
    /// `listed` are the numbers of all devices, in order, and an inode number of each.
    pub(crate) fn new(
        indices: &'a Indices,
        socket: &'a Socket,
        listed: impl Iterator<Item = (u32, u64)>,
    ) -> Self {
        let listed = listed.map(|(number, ino)| Neighbour { ino, number, index: None });
        Self { indices, socket, listed: listed.collect(), dumped: None }
    }

    /// The index of `uverbsN`; `None` if netlink lists no device with that node.
    ///
    /// This tries the index after that of the previous device first. If it is wrong, many devices are searched and few are
    /// dumped. A search that fails is followed by a dump, too. Each index of the dump is queried once.
    pub(crate) fn find(&mut self, number: u32) -> Result<Option<u32>> {
        let Ok(at) = self.place(number) else { return Ok(None) };
        if let Some(index) = self.listed[at].index {
            return Ok(Some(index));
        }
        if self.dumped.is_none() {
            let before = at.checked_sub(1).and_then(|before| self.listed[before].index);
            // Without gaps, the indices are as the places.
            let next = before.map_or(u32::try_from(at).ok(), |before| before.checked_add(1));
            if let Some(next) = next.filter(|next| !self.indices.is_nobody(*next))
                && self.query(next)? == Some(number)
            {
                return Ok(Some(next));
            }
            if self.listed.len() > FEW
                && let Some(index) = self.search(at)?
            {
                self.listed[at].index = Some(index);
                return Ok(Some(index));
            }
            self.dumped = Some(self.dump(at));
        }
        while let Some(index) = self.dumped.as_mut().and_then(Vec::pop) {
            if self.query(index)? == Some(number) {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    fn place(&self, number: u32) -> std::result::Result<usize, usize> {
        self.listed.binary_search_by_key(&number, |device| device.number)
    }

    /// Queries which `uverbsN` has that index, and notes it.
    fn query(&mut self, index: u32) -> Result<Option<u32>> {
        let Answer::Other(Some(number)) = self.indices.request(self.socket, index, |_| false)?
        else {
            return Ok(None);
        };
        if let Ok(at) = self.place(number) {
            self.listed[at].index = Some(index);
        }
        Ok(Some(number))
    }

    fn search(&self, at: usize) -> Result<Option<u32>> {
        let Neighbour { ino, number, .. } = self.listed[at];
        let query = |index| {
            self.indices.request(self.socket, index, |chardev| {
                sysfs::parse_uverbs(&chardev.name) == Some(number)
            })
        };
        Ok(self.indices.search(ino, &self.listed, query)?.map(|joined| joined.index))
    }

    /// The indices of all devices that are not known yet, from the one at that place on, and then the others. Without a
    /// dump there are none.
    fn dump(&self, at: usize) -> Vec<u32> {
        let all = self.socket.devices().unwrap_or_default();
        let mut all: Vec<_> = all.iter().map(|info| info.index).collect();
        all.sort_unstable();
        let first = at.min(all.len());
        all.rotate_left(first);
        let known: Vec<_> = self.listed.iter().filter_map(|device| device.index).collect();
        all.retain(|index| !known.contains(index));
        all.sort_by_key(|index| self.indices.is_nobody(*index));
        all.reverse();
        all
    }
}
