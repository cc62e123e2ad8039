//! The minimum cost of a list: reading the names of both class directories.

use std::mem::MaybeUninit;

use anyhow::Result;
use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};

const CLASSES: [&str; 2] = ["/sys/class/infiniband_verbs", "/sys/class/infiniband"];

/// The size that glibc's `readdir` uses.
const PAGE: usize = 32 * 1024;

pub(super) fn both() -> Result<()> {
    let mut page = [MaybeUninit::uninit(); PAGE];
    for class in CLASSES {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, class, flags, Mode::empty())?;
        let mut names = RawDir::new(&directory, &mut page);
        while let Some(name) = names.next() {
            std::hint::black_box(name?);
        }
    }
    Ok(())
}
