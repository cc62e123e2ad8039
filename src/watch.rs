//! The watch: follows the devices of a registry.
//!
//! Uevents are hints, lists are the truth. A watch reads what the kernel has sent, lists once, and reports the
//! difference to its own last list. Nothing of a message is used, so one that is lost, forged, repeated or cut costs
//! a sweep at most. A sweep every two seconds finds what no message was about.

mod alarm;
mod pace;
#[cfg(feature = "tokio")]
mod stream;
mod unready;

use std::collections::VecDeque;
use std::fmt;
use std::iter::FusedIterator;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::kernel::{Errno, Handle, Kernel};
use crate::registry::{Attached, Change, Devices, Registry, ResyncReason};
use crate::uevents::{Lost, Uevents};

#[cfg(uverbs_leave_out)]
use crate::check::leave_out::{WatchPart, watch_lacks};

use alarm::Alarm;
use pace::Pace;
#[cfg(feature = "tokio")]
pub use stream::WatchStream;
use unready::Unready;

/// The size in bytes of a watch's receive buffer. Any user can cause events of other subsystems, hundreds in a
/// millisecond.
const ROOM: usize = 4 << 20;

/// Follows the devices of a [`Registry`]: reports each [`Change`] ([`Registry::watch`]).
///
/// The changes are exact: applied to the list that the watch began with, they give the list of the host. A device that
/// was there for less than some milliseconds may be missing from them. Where the kernel reports that events were lost,
/// so does the watch ([`Change::Resynchronised`]).
///
/// # Waiting
/// [`wait`](Self::wait) and the iterator block the calling thread. [`try_next`](Self::try_next) does not. The
/// descriptor ([`AsFd`]) becomes readable when a call of `try_next` may return something, for `poll(2)`, `epoll(7)` and
/// event loops. Read until `None` then. The descriptor needs no timer of the caller's. Under tokio, use `into_stream`.
///
/// All of these make the system calls of a list, which may wait in the kernel ([`Host`](crate::Host), "Blocking").
///
/// # Cost
/// The watch sleeps until the kernel sends an event, or for two seconds at most. Then it sweeps the class directories.
/// Events cause no more than a hundred sweeps a second, and ten a second after a buffer overflow. The watch has no
/// thread, and keeps nobody from unloading a module.
///
/// # Errors
/// An error of a list, such as one while ib_uverbs is being unloaded, is returned once. The watch goes on, and tries
/// again after 100 ms. A device that cannot be read is looked at again, too, less and less often; its error is in
/// [`devices().faults()`](Devices::faults).
///
/// # Fork
/// A forked child shares the descriptors with its parent. It must not use the watch.
///
/// ```no_run
/// use uverbs::{Change, Devices, Host, Registry};
///
/// # fn main() -> uverbs::Result<()> {
/// let registry = Registry::new(Host::open()?);
/// // All devices that are there, and then whatever changes.
/// for change in registry.watch_since(&Devices::default())? {
///     match change? {
///         Change::Ready { device, .. } => println!("{device}: {}", device.query()?.node_guid),
///         change => println!("{change}"),
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Watch {
    follower: Follower,
    epoll: Handle,
}

/// The part of a watch that does not wait.
struct Follower {
    attached: Attached,
    uevents: Option<Arc<Uevents>>,
    alarm: Alarm,
    pace: Pace,
    /// The list up to which changes are queued.
    seen: Devices,
    queue: VecDeque<Result<Change>>,
    unready: Unready,
    /// A registration was completed since the last list.
    has_registered: bool,
    /// The last list failed, and that was reported.
    has_failed: bool,
    /// Messages may be left in the socket.
    has_more: bool,
    /// Messages were lost, and the queue has not been read to its end since.
    losing: Option<Lost>,
}

impl Registry {
    /// Follows the devices from now on.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// let mut watch = registry.watch()?;
    /// while let Some(change) = watch.wait(Some(Duration::from_secs(60)))? {
    ///     println!("{change}");
    /// }
    /// println!("nothing for a minute");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`devices`](Self::devices); `Busy` if another watch uses the uevent socket that was passed in; `Os` if a
    /// descriptor cannot be made.
    pub fn watch(&self) -> Result<Watch> {
        self.watch_from(None)
    }

    /// As [`watch`](Self::watch), and reports first what has changed since that list, which has to be of this registry.
    /// Since `Devices::default()`, which is empty, every device has been added.
    ///
    /// `Ready` is reported of devices that are added after that list. One that was in it and not ready is never
    /// reported as ready.
    ///
    /// # Errors
    /// As [`watch`](Self::watch).
    pub fn watch_since(&self, older: &Devices) -> Result<Watch> {
        self.watch_from(Some(older))
    }

    fn watch_from(&self, older: Option<&Devices>) -> Result<Watch> {
        let kernel = self.host().kernel();
        #[cfg(uverbs_leave_out)]
        let too_early = watch_lacks(WatchPart::SubscribeFirst).then(|| self.sweep()).transpose()?;
        // Subscribed before the first list, so that no change falls in between.
        let mut refused = None;
        let uevents = match self.host().uevents(ROOM) {
            Ok(uevents) => uevents,
            Err(error) if error.kind() == crate::error::ErrorKind::Busy => return Err(error),
            Err(error) => {
                refused = Some(error);
                None
            }
        };
        let (epoll, alarm) = Alarm::new(kernel)?;
        if let Some(uevents) = &uevents {
            alarm::add(kernel, &epoll, uevents.handle())?;
        }
        let attached = Attached::to(self);
        let seen = self.sweep()?;
        #[cfg(uverbs_leave_out)]
        let seen = too_early.unwrap_or(seen);
        let mut follower = Follower {
            attached,
            pace: Pace::new(kernel.now(), uevents.is_some(), seen.faults().next().is_some()),
            uevents,
            alarm,
            seen: older.cloned().unwrap_or_else(|| seen.clone()),
            queue: VecDeque::new(),
            unready: Unready::default(),
            has_registered: false,
            has_failed: false,
            has_more: false,
            losing: None,
        };
        if follower.uevents.is_none() {
            if let Some(error) = refused {
                tracing::info!(%error, "no uevents: the watch sweeps from time to time");
            }
            follower.attached.set_deaf(true);
            follower.queue.push_back(Ok(Change::Resynchronised { reason: ResyncReason::NoEvents }));
        }
        follower.take(seen);
        follower.set_alarm()?;
        Ok(Watch { follower, epoll })
    }
}

impl Follower {
    fn kernel(&self) -> &Kernel {
        self.attached.registry().host().kernel()
    }

    /// `epoll` is the descriptor that waits for the socket.
    fn try_next(&mut self, epoll: &Handle) -> Result<Option<Change>> {
        if self.queue.is_empty() {
            self.look(epoll);
            if let Err(error) = self.set_alarm() {
                self.queue.push_back(Err(error));
            }
        }
        self.queue.pop_front().transpose()
    }

    /// Reads what is queued, lists if that is due, and queues what has changed.
    fn look(&mut self, epoll: &Handle) {
        self.listen(epoll);
        let now = self.kernel().now();
        if self.pace.is_due(now) {
            self.sweep(now);
            #[cfg(uverbs_leave_out)]
            if watch_lacks(WatchPart::SweepAgain)
                && let Some(uevents) = &self.uevents
            {
                let _ = uevents.drain();
            }
            if std::mem::take(&mut self.has_registered) {
                self.unready.hurry(now);
            }
        }
        if !self.queue.is_empty() {
            // A check may take a netlink dump of all devices. What was found is not made to wait for that.
            return;
        }
        let (unready, queue) = (&mut self.unready, &mut self.queue);
        unready.check(now, |device| queue.push_back(Ok(Change::Ready { device })));
    }

    fn listen(&mut self, epoll: &Handle) {
        self.has_more = false;
        let Some(uevents) = &self.uevents else { return };
        let heard = match uevents.drain() {
            Ok(heard) => heard,
            Err(error) => {
                // A socket that fails would be readable all the time. Closing it is not enough: one that was passed in
                // stays open.
                let _ = self.kernel().epoll_remove(epoll, uevents.handle());
                self.uevents = None;
                self.pace.is_deaf(self.kernel().now());
                self.attached.set_deaf(true);
                self.queue.push_back(Err(error));
                let reason = ResyncReason::NoEvents;
                self.queue.push_back(Ok(Change::Resynchronised { reason }));
                return;
            }
        };
        let now = self.kernel().now();
        if heard.change && self.pace.hear(now, heard.verbs) {
            self.attached.set_deaf(false);
        }
        self.has_registered |= heard.registered;
        // After a loss the kernel drops what comes until the queue is empty, and does not report that again
        // (`netlink_overrun`, `net/netlink/af_netlink.c`).
        let lost = heard.lost.or(self.losing);
        self.has_more = heard.more;
        self.losing = lost.filter(|_| heard.more);
        if let Some(lost) = lost
            && self.pace.lose(now)
        {
            let reason = match lost {
                Lost::Overflow => ResyncReason::Overflow,
                Lost::Cut => ResyncReason::Cut,
            };
            self.queue.push_back(Ok(Change::Resynchronised { reason }));
        }
    }

    fn sweep(&mut self, now: Duration) {
        match self.attached.registry().sweep() {
            Ok(found) => {
                self.has_failed = false;
                let has_faults = found.faults().next().is_some();
                let has_changed = self.take(found);
                if self.pace.swept(now, self.kernel().now(), has_changed, has_faults) {
                    self.attached.set_deaf(true);
                    let reason = ResyncReason::EventsMissing;
                    self.queue.push_back(Ok(Change::Resynchronised { reason }));
                }
            }
            Err(error) => {
                self.pace.failed(self.kernel().now());
                if !std::mem::replace(&mut self.has_failed, true) {
                    self.queue.push_back(Err(error));
                }
            }
        }
    }

    /// Queues the changes that lead to a list. Returns whether there are any.
    fn take(&mut self, found: Devices) -> bool {
        let changes = found.changes_since(&self.seen);
        let now = self.kernel().now();
        for change in &changes {
            match change {
                Change::Added { device, .. } => self.unready.add(device, now),
                Change::Removed { device } => self.unready.remove(device),
                Change::Replaced { old, new, .. } => {
                    self.unready.remove(old);
                    self.unready.add(new, now);
                }
                _ => {}
            }
        }
        let has_changed = !changes.is_empty();
        self.queue.extend(changes.into_iter().map(Ok));
        self.seen = found;
        has_changed
    }

    fn set_alarm(&mut self) -> Result<()> {
        let due = self.pace.due();
        let due = self.unready.due().map_or(due, |unready| unready.min(due));
        // At once, for a caller that waits before it reads what is queued. What is left in the socket causes no edge
        // of its own.
        let due = if self.has_more || !self.queue.is_empty() { Duration::ZERO } else { due };
        let kernel = self.attached.registry().host().kernel();
        self.alarm.set(kernel, due)
    }
}

impl Watch {
    /// Returns the next change, without waiting for one. Returns `None` if there is none yet.
    ///
    /// # Errors
    /// The error of a list or of a system call. The watch can still be used.
    pub fn try_next(&mut self) -> Result<Option<Change>> {
        self.follower.try_next(&self.epoll)
    }

    /// Waits for the next change, for at most `timeout`, or without a limit if that is `None`. Returns `None` if the
    /// time is over. It looks at least once, whatever the timeout.
    ///
    /// # Errors
    /// As [`try_next`](Self::try_next).
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<Option<Change>> {
        let kernel = self.follower.kernel().clone();
        // A deadline that the clock cannot represent counts as no deadline.
        let deadline = timeout.and_then(|timeout| kernel.now().checked_add(timeout));
        loop {
            let change = self.try_next()?;
            if change.is_some() {
                return Ok(change);
            }
            let left = deadline.map(|deadline| deadline.saturating_sub(kernel.now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            match kernel.poll(&self.epoll, left) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::call("ppoll(watch)", errno)),
            }
        }
    }

    /// The list that the changes returned so far, and those queued, lead to. Makes no system call.
    pub fn devices(&self) -> &Devices {
        &self.follower.seen
    }

    /// The registry whose devices this follows.
    pub fn registry(&self) -> &Registry {
        self.follower.attached.registry()
    }
}

impl Iterator for Watch {
    type Item = Result<Change>;

    /// Waits for the next change. It never returns `None`.
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(change) = self.wait(None).transpose() {
                return Some(change);
            }
        }
    }
}

impl FusedIterator for Watch {}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("devices", &self.follower.seen).finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "sim"))]
mod tests;
