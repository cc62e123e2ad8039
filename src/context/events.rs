//! Async events of a context's device, which the kernel reports on its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use super::numbered::numbered;
use super::{CmdFd, command};
use crate::attr::retry;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Attr, AttrData, Errno, Handle};

#[cfg(feature = "tokio")]
mod stream;
#[cfg(feature = "tokio")]
pub use stream::AsyncEventStream;

/// `UVERBS_OBJECT_ASYNC_EVENT`, its method ALLOC, and the attribute in which ALLOC returns the descriptor
/// (`rdma/ib_user_ioctl_cmds.h`).
pub(super) const ALLOC: (u16, u16) = (16, 0);
pub(super) const FD_HANDLE: u16 = 0;

numbered! {
    /// What kind of async event (`enum ib_event_type` of the kernel, `ibv_get_async_event(3)`).
    AsyncEventKind(u32):
    CqError = 0 "CQ error",
    QpFatal = 1 "QP fatal error",
    QpRequestError = 2 "QP request error",
    QpAccessError = 3 "QP access error",
    CommunicationEstablished = 4 "communication established",
    SqDrained = 5 "send queue drained",
    PathMigrated = 6 "path migrated",
    PathMigrationError = 7 "path migration error",
    DeviceFatal = 8 "device fatal error",
    PortActive = 9 "port active",
    PortError = 10 "port error",
    LidChange = 11 "LID changed",
    PkeyChange = 12 "partition key table changed",
    SmChange = 13 "subnet manager changed",
    SrqError = 14 "SRQ error",
    SrqLimitReached = 15 "SRQ limit reached",
    QpLastWqeReached = 16 "last work request of the QP reached",
    ClientReregister = 17 "client to register anew",
    GidChange = 18 "GID table changed",
    WqFatal = 19 "WQ fatal error",
}

impl AsyncEventKind {
    /// Whether its element is a port.
    fn is_of_port(self) -> bool {
        use AsyncEventKind::*;
        matches!(
            self,
            PortActive
                | PortError
                | LidChange
                | PkeyChange
                | SmChange
                | ClientReregister
                | GidChange
        )
    }
}

/// An async event (`struct ib_uverbs_async_event_desc`, `rdma/ib_user_verbs.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AsyncEvent {
    /// What happened.
    pub kind: AsyncEventKind,
    /// The object of the event: a port's number; the user handle with which a completion queue, queue pair, work
    /// queue or shared receive queue was made; 0 for the device.
    pub element: u64,
}

/// Length of `struct ib_uverbs_async_event_desc`.
const EVENT_LEN: usize = 16;

impl AsyncEvent {
    /// The port of the event, counted from 1. None if the event is not about a port.
    pub fn port(&self) -> Option<u8> {
        u8::try_from(self.element).ok().filter(|_| self.kind.is_of_port())
    }

    pub(super) fn parse(bytes: &[u8; EVENT_LEN]) -> Self {
        let [e0, e1, e2, e3, e4, e5, e6, e7, t0, t1, t2, t3, ..] = *bytes;
        Self {
            kind: AsyncEventKind::from_raw(u32::from_ne_bytes([t0, t1, t2, t3])),
            element: u64::from_ne_bytes([e0, e1, e2, e3, e4, e5, e6, e7]),
        }
    }
}

/// A stream of a context's async events, from when the stream was made.
///
/// Its descriptor is its own and non-blocking: it is readable when there is an event, for `poll(2)` and the
/// like. [`DeviceFatal`](AsyncEventKind::DeviceFatal) is the last event: nothing comes after it, and the
/// kernel gives no end of file (`uverbs_async_event_destroy_uobj`,
/// `drivers/infiniband/core/uverbs_std_types_async_fd.c`), so it ends the stream here.
///
/// That event is a hint, not a proof: the kernel drops it when it has no memory, and drivers raise it for
/// hardware that failed but is still there. Drivers that do not disassociate (efa, qedr, cxgb4, mthca, ocrdma,
/// usnic, vmw_pvrdma, siw, hfi1, qib, rxe up to Linux 7.2) never send it when the device is removed; call
/// [`Context::is_device_present`](crate::Context::is_device_present) instead. With such a driver the removal
/// waits until the context *and* this stream are dropped.
#[derive(Debug)]
pub struct AsyncEvents<'a> {
    cmd: &'a CmdFd,
    fd: Handle,
    ended: bool,
}

impl CmdFd {
    pub(super) fn async_events(&self) -> Result<AsyncEvents<'_>> {
        const NAME: &str = "ASYNC_EVENT_ALLOC";
        let mut made = None;
        let attrs = &mut [Attr { id: FD_HANDLE, data: AttrData::Descriptor(&mut made) }];
        command(self.kernel(), self.as_ref(), self.driver, ALLOC, NAME, attrs)
            .map_err(|error| self.explain(error))?;
        let fd = made.ok_or_else(|| {
            let error = Error::new(ErrorKind::Malformed, format!("{NAME}: no descriptor"));
            self.explain(error)
        })?;
        // The kernel makes it blocking.
        retry(|| self.kernel().set_nonblocking(&fd))
            .map_err(|errno| self.explain(Error::call("fcntl(F_SETFL, O_NONBLOCK)", errno)))?;
        Ok(AsyncEvents { cmd: self, fd, ended: false })
    }
}

impl AsyncEvents<'_> {
    /// Returns the next event, without waiting. None if there is no event yet, or if the stream has
    /// [ended](Self::has_ended).
    ///
    /// # Errors
    /// `Os`, `Malformed`.
    pub fn try_next(&mut self) -> Result<Option<AsyncEvent>> {
        if self.ended {
            return Ok(None);
        }
        let mut bytes = [0; EVENT_LEN];
        let read = loop {
            match self.cmd.kernel().read(&self.fd, &mut bytes) {
                Err(Errno::INTR) => {}
                read => break read,
            }
        };
        let event = match read {
            Ok(EVENT_LEN) => AsyncEvent::parse(&bytes),
            Err(Errno::AGAIN) => return Ok(None),
            // Linux before 5.10 ends the stream this way.
            Ok(0) | Err(Errno::IO) => {
                self.ended = true;
                return Ok(None);
            }
            Ok(len) => {
                let text = format!("an async event of {len} bytes, not {EVENT_LEN}");
                return Err(self.cmd.explain(Error::new(ErrorKind::Malformed, text)));
            }
            Err(errno) => return Err(self.cmd.explain(Error::call("read(async events)", errno))),
        };
        self.ended = event.kind == AsyncEventKind::DeviceFatal;
        Ok(Some(event))
    }

    /// Waits for the next event, for at most `timeout`, or without limit if that is None. Returns None if the time is
    /// over, or if the stream has [ended](Self::has_ended). An event that is there already is returned whatever the
    /// timeout.
    ///
    /// # Errors
    /// As [`try_next`](Self::try_next).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<AsyncEvent>> {
        // A deadline that the clock cannot hold counts as no deadline.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut is_polled = false;
        loop {
            let event = self.try_next()?;
            if event.is_some() || self.ended {
                return Ok(event);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // Another reader of the descriptor may take each event that poll reports.
            if is_polled && left == Some(Duration::ZERO) {
                return Ok(None);
            }
            is_polled = true;
            match self.cmd.kernel().poll(&self.fd, left) {
                Ok(true) | Err(Errno::INTR) => {}
                Ok(false) => return self.try_next(),
                Err(errno) => {
                    return Err(self.cmd.explain(Error::call("poll(async events)", errno)));
                }
            }
        }
    }

    /// Whether the stream has ended: the device is fatally broken or gone, and no more events come.
    pub fn has_ended(&self) -> bool {
        self.ended
    }
}

/// Waits for each event; ends after [`DeviceFatal`](AsyncEventKind::DeviceFatal) and after an error.
impl Iterator for AsyncEvents<'_> {
    type Item = Result<AsyncEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let event = self.wait(None);
        self.ended |= event.is_err();
        event.transpose()
    }
}

impl std::iter::FusedIterator for AsyncEvents<'_> {}

impl AsFd for AsyncEvents<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for AsyncEvents<'_> {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
