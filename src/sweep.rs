//! Sweeps of the class directories: the names in them and the inodes these are of, and whether
//! anything is other than at the last look.

use std::ffi::CStr;

use crate::attr;
use crate::error::{Error, ErrorKind, Result};
use crate::host::Host;
use crate::kernel::DirEntry;

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

    fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        let mut from = 0;
        self.entries.iter().map(move |&(to, ino)| {
            let name = &self.names[from..to];
            from = to;
            (name, ino)
        })
    }
}

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
        self.sweep_uverbs(host)?;
        const CLASS: &CStr = c"class/infiniband";
        self.names.clear();
        self.has_names = attr::open(host.kernel(), host.sys(), CLASS, attr::SWEEP)
            .and_then(|directory| {
                let each = &mut |entry: DirEntry<'_>| self.names.push(entry);
                attr::sweep(host.kernel(), &directory, "class/infiniband", each)
            })
            .is_ok();
        Ok(())
    }

    fn sweep_uverbs(&mut self, host: &Host) -> Result<()> {
        const CLASS: &CStr = c"class/infiniband_verbs";
        let (kernel, sys) = (host.kernel(), host.sys());
        // Twice: a directory that was opened just before ib_uverbs went is dead and shows nothing.
        for _ in 0..2 {
            self.uverbs.clear();
            // Opened for each sweep: one that is held dies with the module, and its offset is shared.
            let directory = match attr::open(kernel, sys, CLASS, attr::SWEEP) {
                Err(error) if attr::is_absent(&error) => return Ok(()),
                directory => directory?,
            };
            let mut is_class = false;
            let each = &mut |entry: DirEntry<'_>| {
                is_class |= entry.name == b"abi_version";
                self.uverbs.push(entry);
            };
            attr::sweep(kernel, &directory, "class/infiniband_verbs", each)?;
            if is_class {
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Unstable,
            "class/infiniband_verbs has no abi_version: ib_uverbs is being loaded or unloaded",
        ))
    }

    /// Number and class link of every uverbs device, by number.
    pub(crate) fn uverbs(&self) -> Vec<(u32, u64)> {
        let numbers = self.uverbs.iter();
        let mut found: Vec<_> = numbers
            .filter_map(|(name, ino)| attr::parse_uverbs(name).map(|number| (number, ino)))
            .collect();
        found.sort_unstable();
        found.dedup_by_key(|(number, _)| *number);
        found
    }

    /// The names of the devices.
    pub(crate) fn names(&self) -> Names<'_> {
        let mut names: Vec<_> = self.names.iter().filter(|_| self.has_names).collect();
        names.sort_unstable();
        Names(names)
    }

    /// Whether the names are known at all.
    pub(crate) fn has_names(&self) -> bool {
        self.has_names
    }
}

/// The names in `class/infiniband`, to be looked up; none where they are not known.
pub(crate) struct Names<'a>(Vec<(&'a [u8], u64)>);

impl Names<'_> {
    /// The inode of the link of that name. It stays when the device is renamed.
    pub(crate) fn link(&self, name: &[u8]) -> Option<u64> {
        // A directory about these names is none of a device.
        if matches!(name, b"." | b"..") {
            return None;
        }
        let at = self.0.binary_search_by_key(&name, |(known, _)| known).ok()?;
        Some(self.0[at].1)
    }
}
