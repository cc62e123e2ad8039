//! Opens a device with the crate `ibverbs`, and has it proved.
//!
//! The crate's context does not lend its descriptor. It is found in /proc: the only uverbs descriptor that the open
//! added. Another thread must not open a device meanwhile.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use other_crates_common::{listed, name, pause, report};

/// The descriptors of this process that are uverbs nodes, as paths in /proc.
fn uverbs_descriptors() -> Result<Vec<PathBuf>> {
    let paths = fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.path()));
    let paths = paths.collect::<Result<Vec<_>>>()?;
    let is_uverbs =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.starts_with("/dev/infiniband/"));
    Ok(paths.into_iter().filter(is_uverbs).collect())
}

fn main() -> Result<()> {
    let name = name()?;
    let device = listed(&name)?;
    let theirs = ibverbs::devices()?;
    let theirs =
        theirs.iter().find(|theirs| theirs.name().is_some_and(|n| n.to_bytes() == name.as_bytes()));
    let theirs = theirs.context("their list lacks it")?;
    // Both lists are of the same device: the index is the kernel's.
    anyhow::ensure!(theirs.index()?.cast_unsigned() == device.index()?, "another device");
    pause()?;
    let before = uverbs_descriptors()?;
    let context = theirs.open()?;
    let added = uverbs_descriptors()?.into_iter().find(|path| !before.contains(path));
    let number = added.context("no descriptor was added")?;
    let number = number.file_name().and_then(|name| name.to_str()).context("a number")?.parse()?;
    report(device.verify(borrow(number)));
    drop(context);
    Ok(())
}

/// Their descriptor, until the context is dropped.
fn borrow(number: i32) -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the context keeps it open, and is dropped after the last use.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(number) }
}
