//! Sweeps of the class directories: the names in them, the inodes that they refer to, and whether anything has
//! changed since the last sweep.

use std::ffi::CStr;

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::kernel::{DirEntry, Handle};
use crate::sysfs;

/// The entries of one sweep of a directory, in the kernel's order. That order is the same each time, as long as the
/// directory does not change (`kernfs_fop_readdir` goes by the hashes of the names), so two sweeps can be compared
/// directly. No entry takes an allocation of its own.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sweep {
    /// The names, one after the other.
    names: Vec<u8>,
    /// Where each name ends in `names`, and the inode that it refers to.
    entries: Vec<(usize, u64)>,
}

impl Sweep {
    fn clear(&mut self) {
        self.names.clear();
        self.entries.clear();
    }

    fn push(&mut self, entry: DirEntry<'_>) {
        self.names.extend_from_slice(entry.name);
        self.entries.push((self.names.len(), entry.ino));
    }

    /// The entry at that position.
    fn get(&self, at: usize) -> Option<(&[u8], u64)> {
        let (to, ino) = *self.entries.get(at)?;
        let from = at.checked_sub(1).map_or(0, |before| self.entries[before].0);
        Some((&self.names[from..to], ino))
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.entries.len()).filter_map(|at| self.get(at))
    }
}

/// Opens `class/infiniband_verbs`.
pub(crate) fn open_class(host: &Host) -> Result<Handle> {
    sysfs::open(host.kernel(), host.sys(), c"class/infiniband_verbs", sysfs::SWEEP)
}

/// How many pairs of sweeps are made until the two of one pair agree.
const PAIRS: usize = 4;

/// Sweeps of both class directories. Two that are equal show the same devices under the same names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sweeps {
    uverbs: Sweep,
    names: Sweep,
    /// Whether `class/infiniband` could be swept. It cannot be if a name contains a slash.
    has_names: bool,
}

impl Sweeps {
    /// Sweeps both directories, and replaces what was here.
    ///
    /// # Errors
    /// `Unstable` if ib_uverbs is being loaded or unloaded; the errors of the calls.
    pub(crate) fn take(&mut self, host: &Host) -> Result<()> {
        self.sweep_until_it_stays(host)?;
        const CLASS: &CStr = c"class/infiniband";
        self.names.clear();
        self.has_names = sysfs::open(host.kernel(), host.sys(), CLASS, sysfs::SWEEP)
            .and_then(|directory| {
                let each = &mut |entry: DirEntry<'_>| self.names.push(entry);
                sysfs::sweep(host.kernel(), &directory, "class/infiniband", each)
            })
            .is_ok();
        Ok(())
    }

    /// Number and class link of every uverbs device, as one sweep shows them, ordered by number. A device that is there
    /// throughout may be missing.
    pub(crate) fn once(host: &Host) -> Result<Vec<(u32, u64)>> {
        let mut sweeps = Self::default();
        sweeps.sweep_uverbs(host, Sweep::push)?;
        Ok(sweeps.uverbs())
    }

    /// The same as two sweeps show them that agree, or the last ones.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub(crate) fn twice(host: &Host) -> Result<Vec<(u32, u64)>> {
        let mut sweeps = Self::default();
        sweeps.sweep_until_it_stays(host)?;
        Ok(sweeps.uverbs())
    }

    /// Sweeps `class/infiniband_verbs` until two sweeps in a row show the same.
    ///
    /// One sweep may lack a device that is there throughout: up to Linux 6.12 at least, `kernfs_fop_readdir`
    /// (`fs/kernfs/dir.c`) skips the entry after one that is removed at that moment. The removed entry was shown,
    /// and the next sweep does not show it. So two equal sweeps have skipped nothing that was there during both.
    fn sweep_until_it_stays(&mut self, host: &Host) -> Result<()> {
        let (mut is_class, mut stays) = (false, false);
        for _ in 0..PAIRS {
            self.uverbs.clear();
            is_class = false;
            self.sweep_uverbs(host, |sweep, entry| {
                is_class |= entry.name == b"abi_version";
                sweep.push(entry);
            })?;
            if self.uverbs.entries.is_empty() {
                return Ok(());
            }
            let mut shown = 0;
            stays = true;
            self.sweep_uverbs(host, |sweep, entry| {
                stays &= sweep.get(shown) == Some((entry.name, entry.ino));
                shown += 1;
            })?;
            stays &= shown == self.uverbs.entries.len();
            if stays {
                break;
            }
        }
        if !stays {
            tracing::debug!("class/infiniband_verbs changed during every sweep");
        }
        // A directory that was opened just before ib_uverbs was unloaded is dead and shows nothing.
        match is_class {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unstable,
                "class/infiniband_verbs has no abi_version: ib_uverbs is being loaded or unloaded",
            )),
        }
    }

    /// Passes each entry of `class/infiniband_verbs` to `each`, or no entry if there is no such directory.
    fn sweep_uverbs(
        &mut self,
        host: &Host,
        mut each: impl FnMut(&mut Sweep, DirEntry<'_>),
    ) -> Result<()> {
        // Opened for each sweep: a descriptor that is kept dies with the module, and its offset is shared.
        match open_class(host) {
            Err(error) if sysfs::is_absent(&error) => Ok(()),
            directory => {
                let each = &mut |entry: DirEntry<'_>| each(&mut self.uverbs, entry);
                sysfs::sweep(host.kernel(), &directory?, "class/infiniband_verbs", each)
            }
        }
    }

    /// Number and class link of every uverbs device, ordered by number.
    pub(crate) fn uverbs(&self) -> Vec<(u32, u64)> {
        let mut found = Vec::with_capacity(self.uverbs.entries.len());
        found.extend(self.uverbs.iter().filter_map(|(name, ino)| {
            let number = sysfs::parse_uverbs(name)?;
            Some((number, ino))
        }));
        found.sort_unstable();
        found.dedup_by_key(|(number, _)| *number);
        found
    }

    /// Every name in `class/infiniband` with its link. Empty if they are not known.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&[u8], NameLink)> {
        let names = self.names.iter().enumerate().filter(|_| self.has_names);
        // A device may be called `..`, but the entry of that name is not a device.
        let names = names.filter(|(_, (name, _))| !matches!(*name, b"." | b".."));
        names.map(|(at, (name, ino))| (name, NameLink { ino, at }))
    }

    /// The name of a link in this sweep, and its position.
    pub(crate) fn name_of(&self, link: NameLink) -> Option<(&[u8], NameLink)> {
        let entries = self.names.entries.as_slice();
        // Not far from its last position, because the names keep their order.
        let places =
            (0..entries.len()).flat_map(|far| [link.at.checked_sub(far), Some(link.at + far)]);
        let is_there = |at: &usize| entries.get(*at).is_some_and(|(_, ino)| *ino == link.ino);
        let at = places.flatten().find(is_there).filter(|_| self.has_names)?;
        let (name, _) = self.names.get(at)?;
        Some((name, NameLink { at, ..link }))
    }
}

/// A link in `class/infiniband`. It belongs to its device under any name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameLink {
    ino: u64,
    /// Its position in the sweep.
    at: usize,
}
