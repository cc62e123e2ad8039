//! The watch under tokio.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use futures_core::stream::FusedStream;
use tokio::io::unix::AsyncFd;
use tokio::runtime;

use super::{Follower, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::{Errno, Handle, abi};
use crate::registry::{Change, Devices};

/// A [`Watch`] as a [`Stream`] of tokio. It ends only if tokio can no longer wait for it, which it returns as an
/// error first. Each poll may make the system calls of a list on the polling thread.
///
/// ```no_run
/// use std::future::poll_fn;
/// use std::pin::Pin;
///
/// use futures_core::Stream as _;
///
/// # async fn follow(registry: &uverbs::Registry) -> uverbs::Result<()> {
/// let mut changes = registry.watch()?.into_stream()?;
/// while let Some(change) = poll_fn(|cx| Pin::new(&mut changes).poll_next(cx)).await {
///     println!("{}", change?);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct WatchStream {
    follower: Follower,
    epoll: AsyncFd<Handle>,
    has_ended: bool,
}

impl Watch {
    /// Registers the descriptor with the tokio runtime of this thread.
    ///
    /// # Errors
    /// `Unsupported` outside a runtime; `Os` if the descriptor cannot be registered.
    ///
    /// # Panics
    /// If the runtime was built without I/O (`tokio::runtime::Builder::enable_io`).
    pub fn into_stream(self) -> Result<WatchStream> {
        let Self { follower, epoll } = self;
        if runtime::Handle::try_current().is_err() {
            return Err(Error::new(ErrorKind::Unsupported, "there is no tokio runtime here"));
        }
        match abi::register(epoll) {
            Ok(epoll) => Ok(WatchStream { follower, epoll, has_ended: false }),
            Err(errno) => Err(Error::call("epoll_ctl(watch)", errno)),
        }
    }
}

impl WatchStream {
    /// The list that the changes returned so far, and those queued, lead to.
    pub fn devices(&self) -> &Devices {
        &self.follower.seen
    }
}

impl Stream for WatchStream {
    type Item = Result<Change>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { follower, epoll, has_ended } = &mut *self;
        loop {
            if *has_ended {
                return Poll::Ready(None);
            }
            if let Some(change) = follower.try_next(epoll.get_ref()).transpose() {
                return Poll::Ready(Some(change));
            }
            match ready!(epoll.poll_read_ready_mut(context)) {
                // Whatever comes from here on makes it ready again.
                Ok(mut guard) => guard.clear_ready(),
                Err(error) => {
                    *has_ended = true;
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    return Poll::Ready(Some(Err(Error::call("epoll_wait(watch)", errno))));
                }
            }
        }
    }
}

impl FusedStream for WatchStream {
    fn is_terminated(&self) -> bool {
        self.has_ended
    }
}

impl fmt::Debug for WatchStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchStream").field("devices", &self.follower.seen).finish_non_exhaustive()
    }
}
