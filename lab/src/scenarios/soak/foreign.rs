//! Opening a device the way other libraries do it: the node by its number, and a context by `write(2)`.
//! The soak gives such descriptors to `verify`, and keeps some unverified as its control.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

/// `IB_USER_VERBS_CMD_GET_CONTEXT` and `_QUERY_DEVICE`.
const GET_CONTEXT: u32 = 0;
const QUERY_DEVICE: u32 = 1;

/// A node that was opened without any check, with its context.
pub(super) struct Foreign {
    node: File,
    _events: OwnedFd,
}

impl Foreign {
    /// Opens the node of that number and allocates a context on whatever it leads to.
    pub(super) fn open(number: u32) -> Result<Self> {
        let path = format!("/dev/infiniband/uverbs{number}");
        let node = File::options().read(true).write(true).open(&path).context(path)?;
        let [events, ..] = command::<2>(node.as_fd(), GET_CONTEXT)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
        let events = unsafe { OwnedFd::from_raw_fd(events.cast_signed()) };
        Ok(Self { node, _events: events })
    }

    /// The node GUID of the device that the context is on.
    pub(super) fn node_guid(&self) -> Result<u64> {
        // Behind the firmware's version; in network order.
        let [_, _, high, low, ..] = command::<44>(self.node.as_fd(), QUERY_DEVICE)?;
        let bytes = [high.to_ne_bytes(), low.to_ne_bytes()].concat();
        Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }
}

/// One command without arguments; its answer is `WORDS` words of four bytes.
fn command<const WORDS: usize>(fd: BorrowedFd<'_>, number: u32) -> Result<[u32; WORDS]> {
    /// `struct ib_uverbs_cmd_hdr`, and where the answer is to go.
    #[repr(C)]
    struct Command {
        number: u32,
        in_words: u16,
        out_words: u16,
        response: u64,
    }
    let mut answer = [0u32; WORDS];
    let words = u16::try_from(WORDS)?;
    let response = answer.as_mut_ptr().expose_provenance() as u64;
    // QUERY_DEVICE's arguments are the address alone, as are those of GET_CONTEXT.
    let command = Command { number, in_words: 4, out_words: words, response };
    let len = size_of::<Command>();
    // SAFETY: the command is as long as it says, and `answer` has room for the `out_words` words that
    // the kernel writes at most; it lives, and is not looked at, until the call has returned.
    let written = unsafe {
        libc::write(std::os::fd::AsRawFd::as_raw_fd(&fd), (&raw const command).cast(), len)
    };
    ensure!(usize::try_from(written) == Ok(len), "{}", std::io::Error::last_os_error());
    Ok(answer)
}
