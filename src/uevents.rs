//! The socket on which the kernel sends its uevents, and what is heard on it.

use crate::error::{Error, Result};
use crate::kernel::uevent::{Hint, KERNEL_GROUP};
use crate::kernel::{Errno, Handle, Kernel, retry};

/// The kernel's own messages have at most 2 KiB and a header (`UEVENT_BUFFER_SIZE`, `linux/kobject.h`).
const BUFFER: usize = 8 * 1024;
/// How many messages are read at once. A flood of messages that are not about RDMA may go on without end.
const MESSAGES: usize = 1024;

/// A uevent socket, subscribed to the kernel's group.
#[derive(Debug)]
pub(crate) struct Uevents {
    kernel: Kernel,
    handle: Handle,
}

/// What was heard since the last time.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Something happened to a uverbs device or an RDMA device.
    pub(crate) change: bool,
    /// Something happened to a uverbs device.
    pub(crate) verbs: bool,
    /// The registration of an RDMA device is complete.
    pub(crate) registered: bool,
    /// Messages are missing.
    pub(crate) lost: Option<Lost>,
    /// More may be queued.
    pub(crate) more: bool,
}

/// Why messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The socket's buffer was full (`ENOBUFS`).
    Overflow,
    /// A message was longer than any that the kernel makes.
    Cut,
}

impl Uevents {
    /// Opens a socket. Its receive buffer has `room` bytes where this process may set that, and otherwise as much
    /// as `net.core.rmem_max` allows.
    ///
    /// # Errors
    /// `Os` or `PermissionDenied`.
    pub(crate) fn open(kernel: &Kernel, room: usize) -> Result<Self> {
        let call = |text: &str, errno| Error::call(text, errno);
        let handle = retry(|| kernel.uevent_socket())
            .map_err(|errno| call("socket(AF_NETLINK, SOCK_RAW, NETLINK_KOBJECT_UEVENT)", errno))?;
        let socket = Self::with_credentials(kernel.clone(), handle)?;
        let set = |force| socket.kernel.set_receive_buffer(&socket.handle, room, force);
        if let Err(errno) = set(true).or_else(|_| set(false)) {
            tracing::debug!(%errno, "the receive buffer of the uevent socket has its default size");
        }
        retry(|| kernel.subscribe(&socket.handle))
            .map_err(|errno| call("bind(uevent socket, nl_groups=1)", errno))?;
        Ok(socket)
    }

    /// A socket that the program passed in.
    ///
    /// # Errors
    /// `Unsupported` if it is not subscribed to the kernel's group.
    pub(crate) fn given(kernel: Kernel, handle: Handle) -> Result<Self> {
        use crate::error::ErrorKind::Unsupported;
        let groups = retry(|| kernel.netlink_groups(&handle))
            .map_err(|errno| Error::call("getsockname(uevent socket)", errno))?;
        if groups & KERNEL_GROUP == 0 {
            let text = format!("the uevent socket is not subscribed to group 1 ({groups:#x})");
            return Err(Error::new(Unsupported, text).with_hint("bind it with nl_groups = 1"));
        }
        retry(|| kernel.set_nonblocking(&handle))
            .map_err(|errno| Error::call("fcntl(uevent socket, F_SETFL, O_NONBLOCK)", errno))?;
        Self::with_credentials(kernel, handle)
    }

    fn with_credentials(kernel: Kernel, handle: Handle) -> Result<Self> {
        retry(|| kernel.pass_credentials(&handle))
            .map_err(|errno| Error::call("setsockopt(uevent socket, SO_PASSCRED)", errno))?;
        Ok(Self { kernel, handle })
    }

    /// The descriptor, which is readable while messages are queued or lost.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Reads what is queued, without waiting.
    ///
    /// # Errors
    /// `Os`: nothing more will be heard.
    pub(crate) fn drain(&self) -> Result<Heard> {
        let mut heard = Heard::default();
        let mut buffer = [0; BUFFER];
        for _ in 0..MESSAGES {
            let packet = match self.kernel.recv_uevent(&self.handle, &mut buffer) {
                Ok(packet) => packet,
                Err(Errno::AGAIN) => return Ok(heard),
                Err(Errno::INTR) => continue,
                // Reported once for all messages that did not fit.
                Err(Errno::NOBUFS) => {
                    heard.lost = Some(Lost::Overflow);
                    continue;
                }
                Err(errno) => return Err(Error::call("recvmsg(uevent socket)", errno)),
            };
            if !packet.is_genuine() {
                continue;
            }
            if packet.is_cut {
                heard.lost = heard.lost.or(Some(Lost::Cut));
                continue;
            }
            match Hint::of(&buffer[..packet.len]) {
                Hint::Foreign => {}
                Hint::Verbs => (heard.change, heard.verbs) = (true, true),
                Hint::Registered => (heard.change, heard.registered) = (true, true),
                // A message that cannot be read may be about anything.
                Hint::Rdma | Hint::Malformed => heard.change = true,
            }
        }
        heard.more = true;
        Ok(heard)
    }
}
