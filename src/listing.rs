//! Sweeps of the class directories: the names in them and the inodes these are of, and whether
//! anything is other than at the last look.

use std::ffi::CStr;

use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::kernel::DirEntry;
use crate::sysfs;

/// What one sweep of a directory showed, in the order in which the kernel gave it. Of a directory
/// that has not changed that order is the same each time (`kernfs_fop_readdir` goes by the hashes of the
/// names), so that two sweeps compare as they are; and nothing here is made anew for an entry.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sweep {
    /// The names, one behind the other.
    names: Vec<u8>,
    /// Where in `names` each one ends, and the inode that it is of.
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

    /// The entry in that place.
    fn get(&self, at: usize) -> Option<(&[u8], u64)> {
        let (to, ino) = *self.entries.get(at)?;
        let from = at.checked_sub(1).map_or(0, |before| self.entries[before].0);
        Some((&self.names[from..to], ino))
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.entries.len()).filter_map(|at| self.get(at))
    }
}

/// How many pairs of sweeps are made until the two of one agree.
const PAIRS: usize = 4;

/// Sweeps of both class directories. Two that are equal show the same devices under the same names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sweeps {
    uverbs: Sweep,
    names: Sweep,
    /// `class/infiniband` could be swept: it cannot under a name with a slash in it.
    has_names: bool,
}

impl Sweeps {
    /// Looks, in place of what was there.
    ///
    /// # Errors
    /// `Unstable` when ib_uverbs is being loaded or unloaded; what the calls say.
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

    /// Sweeps `class/infiniband_verbs` until two sweeps in a row show the same.
    ///
    /// One sweep may lack a device that is there all the while: up to Linux 6.12 at least,
    /// `kernfs_fop_readdir` (`fs/kernfs/dir.c`) steps over the entry behind one that is removed just then.
    /// That one was shown, and the next sweep does not show it. So two sweeps that are equal have
    /// stepped over nothing that was there during both.
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
            tracing::debug!("class/infiniband_verbs changes under every sweep");
        }
        // A directory that was opened just before ib_uverbs went is dead and shows nothing.
        match is_class {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unstable,
                "class/infiniband_verbs has no abi_version: ib_uverbs is being loaded or unloaded",
            )),
        }
    }

    /// Shows each entry of `class/infiniband_verbs` to `each`; none where there is no such directory.
    fn sweep_uverbs(
        &mut self,
        host: &Host,
        mut each: impl FnMut(&mut Sweep, DirEntry<'_>),
    ) -> Result<()> {
        const CLASS: &CStr = c"class/infiniband_verbs";
        let (kernel, sys) = (host.kernel(), host.sys());
        // Opened for each sweep: one that is held dies with the module, and its offset is shared.
        match sysfs::open(kernel, sys, CLASS, sysfs::SWEEP) {
            Err(error) if sysfs::is_absent(&error) => Ok(()),
            directory => {
                let each = &mut |entry: DirEntry<'_>| each(&mut self.uverbs, entry);
                sysfs::sweep(kernel, &directory?, "class/infiniband_verbs", each)
            }
        }
    }

    /// Number and class link of every uverbs device, by number.
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

    /// Every name in `class/infiniband` and its link; none where they are not known.
    pub(crate) fn names(&self) -> impl Iterator<Item = (&[u8], NameLink)> {
        let names = self.names.iter().enumerate().filter(|_| self.has_names);
        // A device may be called `..`, but what is shown under that name is none.
        let names = names.filter(|(_, (name, _))| !matches!(*name, b"." | b".."));
        names.map(|(at, (name, ino))| (name, NameLink { ino, at }))
    }

    /// Whether the names are known at all.
    pub(crate) fn has_names(&self) -> bool {
        self.has_names
    }

    /// The name that a link has in this sweep, and its place.
    pub(crate) fn name_of(&self, link: NameLink) -> Option<(&[u8], NameLink)> {
        let entries = self.names.entries.as_slice();
        // Not far from its last place, as the names keep their order.
        let places =
            (0..entries.len()).flat_map(|far| [link.at.checked_sub(far), Some(link.at + far)]);
        let is_there = |at: &usize| entries.get(*at).is_some_and(|(_, ino)| *ino == link.ino);
        let at = places.flatten().find(is_there).filter(|_| self.has_names)?;
        let (name, _) = self.names.get(at)?;
        Some((name, NameLink { at, ..link }))
    }
}

/// A link in `class/infiniband`, which is that of a device whatever its name is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameLink {
    ino: u64,
    /// Which entry of the sweep it is.
    at: usize,
}
