//! A netlink socket of a host, call by call. The caller encodes the requests and decodes the answers: a judge must
//! not decode answers with the code that it judges.

use super::Probe;
use crate::kernel::{Errno, Handle, Kernel};

/// An RDMA netlink socket on the kernel of a [`Probe`].
#[derive(Debug)]
pub struct Wire {
    kernel: Kernel,
    socket: Handle,
}

impl Probe {
    /// Opens a new netlink socket.
    ///
    /// # Errors
    /// The errno of `socket`.
    pub fn wire(&self) -> Result<Wire, i32> {
        let kernel = self.0.kernel().clone();
        let socket = kernel.rdma_socket().map_err(Errno::raw_os_error)?;
        Ok(Wire { kernel, socket })
    }
}

impl Wire {
    /// `sendto`. The kernel makes the first page of a dump within this call.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn send(&self, message: &[u8]) -> Result<(), i32> {
        self.kernel.send(&self.socket, message).map(drop).map_err(Errno::raw_os_error)
    }

    /// `recvfrom` with `room` bytes of room. Returns the bytes that were received, and the full length of the
    /// datagram. If the room did not suffice, that is more.
    ///
    /// # Errors
    /// The errno of the call.
    pub fn receive(&self, room: usize) -> Result<(Vec<u8>, usize), i32> {
        let mut buffer = vec![0; room];
        let datagram = self.kernel.recv(&self.socket, &mut buffer).map_err(Errno::raw_os_error)?;
        buffer.truncate(datagram.len);
        Ok((buffer, datagram.len))
    }
}
