//! Async events under tokio.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_core::stream::FusedStream;
use tokio::io::unix::AsyncFd;
use tokio::runtime;

use super::{AsyncEvent, AsyncEvents, Reader};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Errno, Handle, abi};

/// [`AsyncEvents`] as a [`Stream`] of tokio; it ends after [`DEVICE_FATAL`](super::AsyncEventKind::DEVICE_FATAL)
/// and after an error.
///
/// ```no_run
/// use std::future::poll_fn;
/// use std::pin::Pin;
///
/// use futures_core::Stream as _;
///
/// # async fn follow(context: &uverbs::Context) -> uverbs::Result<()> {
/// let mut events = context.async_events()?.into_stream()?;
/// while let Some(event) = poll_fn(|cx| Pin::new(&mut events).poll_next(cx)).await {
///     println!("{}", event?.kind);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AsyncEventStream {
    reader: Reader,
    fd: AsyncFd<Handle>,
}

impl AsyncEvents {
    /// Registers the descriptor with the tokio runtime of this thread.
    ///
    /// # Errors
    /// `Unsupported` outside a runtime; `Os` if the descriptor cannot be registered.
    ///
    /// # Panics
    /// If the runtime was built without I/O (`tokio::runtime::Builder::enable_io`).
    pub fn into_stream(self) -> Result<AsyncEventStream> {
        let Self { reader, fd } = self;
        if runtime::Handle::try_current().is_err() {
            let error = Error::new(ErrorKind::Unsupported, "there is no tokio runtime here");
            return Err(reader.error(error));
        }
        match abi::register(fd) {
            Ok(fd) => Ok(AsyncEventStream { reader, fd }),
            Err(errno) => Err(reader.error(Error::call("epoll_ctl(async events)", errno))),
        }
    }
}

impl Stream for AsyncEventStream {
    type Item = Result<AsyncEvent>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { reader, fd } = &mut *self;
        loop {
            let event = reader.try_next(fd.get_ref());
            reader.ended |= event.is_err();
            if let Some(event) = event.transpose() {
                return Poll::Ready(Some(event));
            }
            if reader.ended {
                return Poll::Ready(None);
            }
            match ready!(fd.poll_read_ready_mut(context)) {
                // An event that comes from here on makes it ready again.
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => {
                    reader.ended = true;
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    let error = Error::call("epoll_wait(async events)", errno);
                    return Poll::Ready(Some(Err(reader.error(error))));
                }
            }
        }
    }
}

impl FusedStream for AsyncEventStream {
    fn is_terminated(&self) -> bool {
        self.reader.ended
    }
}
