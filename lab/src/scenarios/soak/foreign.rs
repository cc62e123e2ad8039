//! Opening a device as other libraries do: the node by its number, and the context by `write(2)`. The soak passes
//! such descriptors to `verify`, and keeps some unverified as its control.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

/// `IB_USER_VERBS_CMD_*`.
const GET_CONTEXT: u32 = 0;
const QUERY_DEVICE: u32 = 1;
const ALLOC_PD: u32 = 3;
const DEALLOC_PD: u32 = 4;

/// A node that was opened without any check, with its context.
pub(super) struct Foreign {
    node: File,
    _events: OwnedFd,
}

impl Foreign {
    /// Opens the node with that number and allocates a context on the device that it leads to.
    pub(super) fn open(number: u32) -> Result<Self> {
        Self::open_at(Path::new(&format!("/dev/infiniband/uverbs{number}")))
    }

    /// The same for any node.
    pub(super) fn open_at(path: &Path) -> Result<Self> {
        let node = File::options().read(true).write(true).open(path);
        let node = node.with_context(|| path.display().to_string())?;
        let [events, ..] = command::<2>(node.as_fd(), GET_CONTEXT, None)?;
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        let events = unsafe { OwnedFd::from_raw_fd(events.cast_signed()) };
        Ok(Self { node, _events: events })
    }

    /// The node GUID of the device that the context is on.
    pub(super) fn node_guid(&self) -> Result<u64> {
        // After the firmware's version, in network order.
        let [_, _, high, low, ..] = command::<44>(self.node.as_fd(), QUERY_DEVICE, None)?;
        Ok(guid(high, low))
    }

    /// The system image GUID, by which the soak marks each device. The library does not look at it.
    pub(super) fn mark(&self) -> Result<u64> {
        let [_, _, _, _, high, low, ..] = command::<44>(self.node.as_fd(), QUERY_DEVICE, None)?;
        Ok(guid(high, low))
    }

    /// Allocates a protection domain and returns its handle.
    pub(super) fn allocate_pd(&self) -> Result<u32> {
        let [handle] = command::<1>(self.node.as_fd(), ALLOC_PD, None)?;
        Ok(handle)
    }

    /// Frees a protection domain.
    pub(super) fn free_pd(&self, handle: u32) -> Result<()> {
        command::<0>(self.node.as_fd(), DEALLOC_PD, Some(handle)).map(drop)
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.node.as_fd()
    }
}

/// Of two words in network order.
fn guid(high: u32, low: u32) -> u64 {
    let bytes = [high.to_ne_bytes(), low.to_ne_bytes()].concat();
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

/// Sends a command, with a response of `WORDS` words of four bytes. A command has either a response or an argument.
fn command<const WORDS: usize>(
    fd: BorrowedFd<'_>,
    number: u32,
    argument: Option<u32>,
) -> Result<[u32; WORDS]> {
    let mut answer = [0u32; WORDS];
    let words = u16::try_from(WORDS)?;
    // `struct ib_uverbs_cmd_hdr`, followed by the address of the response, or by the argument.
    let mut bytes = number.to_ne_bytes().to_vec();
    let in_words = if argument.is_some() { 3u16 } else { 4 };
    bytes.extend_from_slice(&in_words.to_ne_bytes());
    bytes.extend_from_slice(&words.to_ne_bytes());
    match argument {
        Some(argument) => bytes.extend_from_slice(&argument.to_ne_bytes()),
        None => {
            let response = answer.as_mut_ptr().expose_provenance() as u64;
            bytes.extend_from_slice(&response.to_ne_bytes());
        }
    }
    // SAFETY: the command is as long as it states, and `answer` has room for the at most `out_words` words that the
    // kernel writes. It lives, and is not read, until the call has returned.
    let written = unsafe {
        libc::write(std::os::fd::AsRawFd::as_raw_fd(&fd), bytes.as_ptr().cast(), bytes.len())
    };
    ensure!(usize::try_from(written) == Ok(bytes.len()), "{}", std::io::Error::last_os_error());
    Ok(answer)
}
