//! Opens a device with the crate `sideway`, and has it proved. The crate has no index, so it is chosen by its name. A wrong
//! choice is refused.

use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result};
use other_crates_common::{listed, name, pause, report};
use sideway::ibverbs::device::{DeviceInfo as _, DeviceList};

fn main() -> Result<()> {
    let name = name()?;
    let device = listed(&name)?;
    let theirs = DeviceList::new()?;
    let theirs =
        theirs.iter().find(|theirs| theirs.name() == name).context("their list lacks it")?;
    pause()?;
    let context = theirs.open()?;
    // SAFETY: the pointer is used while the context is alive.
    let cmd_fd = unsafe { context.context().as_ref() }.cmd_fd;
    // SAFETY: the context keeps the descriptor open, and is dropped after its last use.
    report(device.verify(unsafe { BorrowedFd::borrow_raw(cmd_fd) }));
    drop(context);
    Ok(())
}
