//! Async events of a context's device, which the kernel reports on its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use super::Body;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::numbered;
use crate::kernel::retry;
use crate::kernel::{Attr, AttrData, Errno, Handle, Kernel};

#[cfg(feature = "tokio")]
mod stream;
#[cfg(feature = "tokio")]
pub use stream::AsyncEventStream;

/// `UVERBS_OBJECT_ASYNC_EVENT`, its method ALLOC, and the attribute in which ALLOC returns the descriptor
/// (`rdma/ib_user_ioctl_cmds.h`).
pub(super) const ALLOC: (u16, u16) = (16, 0);
pub(super) const FD_HANDLE: u16 = 0;

numbered! {
    /// The kind of an async event (`enum ib_event_type` of the kernel, `ibv_get_async_event(3)`).
    #[doc(alias = "ibv_event_type")]
    #[doc(alias = "ibv_event_type_str")]
    AsyncEventKind(u32):
    CQ_ERROR = 0 "CQ error" "IBV_EVENT_CQ_ERR",
    QP_FATAL = 1 "QP fatal error" "IBV_EVENT_QP_FATAL",
    QP_REQUEST_ERROR = 2 "QP request error" "IBV_EVENT_QP_REQ_ERR",
    QP_ACCESS_ERROR = 3 "QP access error" "IBV_EVENT_QP_ACCESS_ERR",
    COMMUNICATION_ESTABLISHED = 4 "communication established" "IBV_EVENT_COMM_EST",
    SQ_DRAINED = 5 "send queue drained" "IBV_EVENT_SQ_DRAINED",
    PATH_MIGRATED = 6 "path migrated" "IBV_EVENT_PATH_MIG",
    PATH_MIGRATION_ERROR = 7 "path migration error" "IBV_EVENT_PATH_MIG_ERR",
    DEVICE_FATAL = 8 "device fatal error" "IBV_EVENT_DEVICE_FATAL",
    PORT_ACTIVE = 9 "port active" "IBV_EVENT_PORT_ACTIVE",
    PORT_ERROR = 10 "port error" "IBV_EVENT_PORT_ERR",
    LID_CHANGE = 11 "LID changed" "IBV_EVENT_LID_CHANGE",
    PKEY_CHANGE = 12 "partition key table changed" "IBV_EVENT_PKEY_CHANGE",
    SM_CHANGE = 13 "subnet manager changed" "IBV_EVENT_SM_CHANGE",
    SRQ_ERROR = 14 "SRQ error" "IBV_EVENT_SRQ_ERR",
    SRQ_LIMIT_REACHED = 15 "SRQ limit reached" "IBV_EVENT_SRQ_LIMIT_REACHED",
    QP_LAST_WQE_REACHED = 16 "last work request of the QP reached" "IBV_EVENT_QP_LAST_WQE_REACHED",
    CLIENT_REREGISTER = 17 "client reregistration requested" "IBV_EVENT_CLIENT_REREGISTER",
    GID_CHANGE = 18 "GID table changed" "IBV_EVENT_GID_CHANGE",
    WQ_FATAL = 19 "WQ fatal error" "IBV_EVENT_WQ_FATAL",
}

impl AsyncEventKind {
    /// Whether its element is a port.
    const fn is_of_port(self) -> bool {
        matches!(
            self,
            Self::PORT_ACTIVE
                | Self::PORT_ERROR
                | Self::LID_CHANGE
                | Self::PKEY_CHANGE
                | Self::SM_CHANGE
                | Self::CLIENT_REREGISTER
                | Self::GID_CHANGE
        )
    }
}

/// An async event (`struct ib_uverbs_async_event_desc`, `rdma/ib_user_verbs.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[doc(alias = "ibv_async_event")]
#[non_exhaustive]
pub struct AsyncEvent {
    /// The kind of event.
    pub kind: AsyncEventKind,
    /// The object of the event: a port's number; the user handle with which a completion queue, queue pair, work
    /// queue or shared receive queue was created; 0 for the device.
    pub element: u64,
}

/// Length of `struct ib_uverbs_async_event_desc`.
const EVENT_LEN: usize = 16;

impl AsyncEvent {
    /// The port of the event, counted from 1. `None` if the event is not about a port.
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

/// A context's async events, from the moment when the stream was created.
///
/// It has its own, non-blocking descriptor, which becomes readable for `poll(2)` and the like when there is an
/// event. [`DEVICE_FATAL`](AsyncEventKind::DEVICE_FATAL) is the last event and ends the stream. The kernel sends
/// nothing after it, and reports no end of file (`uverbs_async_event_destroy_uobj`,
/// `drivers/infiniband/core/uverbs_std_types_async_fd.c`).
///
/// That event is a hint, not a proof: the kernel drops it when it has no memory, and drivers raise it for hardware
/// that failed but is still there. Drivers that do not disassociate (efa, qedr, cxgb4, mthca, ocrdma, usnic,
/// vmw_pvrdma, siw, hfi1, qib, rxe up to Linux 7.2) never send it when the device is removed. Call
/// [`Context::is_device_present`](crate::Context::is_device_present) instead. With such a driver the removal waits
/// until the context *and* this stream are dropped.
///
/// [`wait`](Self::wait) and the iterator block the calling thread, in `poll(2)`; [`try_next`](Self::try_next) does not.
/// A forked child shares the descriptor's queue with its parent: each event is read by one of the two.
///
/// ```no_run
/// use std::time::Duration;
///
/// use uverbs::AsyncEventKind;
///
/// # fn main() -> uverbs::Result<()> {
/// # let context: uverbs::Context = unimplemented!();
/// let mut events = context.async_events()?;
/// while let Some(event) = events.wait(Some(Duration::from_secs(10)))? {
///     match event.kind {
///         AsyncEventKind::PORT_ERROR => println!("port {:?} is down", event.port()),
///         AsyncEventKind::DEVICE_FATAL => println!("the device failed, or is gone"),
///         kind => println!("{kind}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncEvents {
    reader: Reader,
    fd: Handle,
}

/// Reads events from a descriptor that is stored with it.
#[derive(Debug)]
struct Reader {
    device: Device,
    ended: bool,
}

impl Body {
    pub(super) fn async_events(&self) -> Result<AsyncEvents> {
        const NAME: &str = "ASYNC_EVENT_ALLOC";
        let mut made = None;
        let attrs = &mut [Attr { id: FD_HANDLE, data: AttrData::Descriptor(&mut made) }];
        self.cmd.command(ALLOC, NAME, attrs).map_err(|error| self.explain(error))?;
        let fd = made.ok_or_else(|| {
            let error = Error::new(ErrorKind::Malformed, format!("{NAME}: no descriptor"));
            self.explain(error)
        })?;
        // The kernel creates it in blocking mode.
        retry(|| self.kernel().set_nonblocking(&fd))
            .map_err(|errno| self.explain(Error::call("fcntl(F_SETFL, O_NONBLOCK)", errno)))?;
        Ok(AsyncEvents { reader: Reader { device: self.device.clone(), ended: false }, fd })
    }
}

impl Reader {
    fn kernel(&self) -> &Kernel {
        self.device.record().host.kernel()
    }

    fn error(&self, error: Error) -> Error {
        error.of(|| self.device.to_string())
    }

    fn try_next(&mut self, fd: &Handle) -> Result<Option<AsyncEvent>> {
        if self.ended {
            return Ok(None);
        }
        let mut bytes = [0; EVENT_LEN];
        let read = loop {
            match self.kernel().read(fd, &mut bytes) {
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
                return Err(self.error(Error::new(ErrorKind::Malformed, text)));
            }
            Err(errno) => return Err(self.error(Error::call("read(async events)", errno))),
        };
        self.ended = event.kind == AsyncEventKind::DEVICE_FATAL;
        Ok(Some(event))
    }
}

impl AsyncEvents {
    /// Returns the next event, without waiting. Returns `None` if there is no event yet, or if the stream has
    /// [ended](Self::has_ended).
    ///
    /// # Errors
    /// `Os`, `Malformed`.
    #[doc(alias = "ibv_get_async_event")]
    #[doc(alias = "ibv_ack_async_event")]
    pub fn try_next(&mut self) -> Result<Option<AsyncEvent>> {
        self.reader.try_next(&self.fd)
    }

    /// Waits for the next event, for at most `timeout`, or without a limit if that is `None`. Returns `None` if the
    /// time is over, or if the stream has [ended](Self::has_ended). An event that has already arrived is returned
    /// whatever the timeout.
    ///
    /// # Errors
    /// As [`try_next`](Self::try_next).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<AsyncEvent>> {
        // A deadline that the clock cannot represent counts as no deadline.
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut is_polled = false;
        loop {
            let event = self.try_next()?;
            if event.is_some() || self.reader.ended {
                return Ok(event);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // Another reader of the descriptor may take the events that poll reports.
            if is_polled && left == Some(Duration::ZERO) {
                return Ok(None);
            }
            is_polled = true;
            match self.reader.kernel().poll(&self.fd, left) {
                Ok(true) | Err(Errno::INTR) => {}
                Ok(false) => return self.try_next(),
                Err(errno) => {
                    return Err(self.reader.error(Error::call("poll(async events)", errno)));
                }
            }
        }
    }

    /// Whether the stream has ended: the device is fatally broken or gone, and no more events come.
    pub fn has_ended(&self) -> bool {
        self.reader.ended
    }
}

/// Waits for each event; ends after [`DEVICE_FATAL`](AsyncEventKind::DEVICE_FATAL) and after an error.
impl Iterator for AsyncEvents {
    type Item = Result<AsyncEvent>;

    fn next(&mut self) -> Option<Self::Item> {
        let event = self.wait(None);
        self.reader.ended |= event.is_err();
        event.transpose()
    }
}

impl std::iter::FusedIterator for AsyncEvents {}

impl AsFd for AsyncEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for AsyncEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
