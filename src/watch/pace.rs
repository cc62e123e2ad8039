//! When the next list is due, and whether uevents arrive at all.

use std::time::Duration;

#[cfg(uverbs_leave_out)]
use crate::check::leave_out::{WatchPart, watch_lacks};

/// A list is due this long after the last one, whatever was heard.
const SAFETY: Duration = Duration::from_secs(2);
/// The same where events do not arrive.
const DEAF: Duration = Duration::from_millis(500);
/// The least time from one list to the next that an event causes.
const GAP: Duration = Duration::from_millis(10);
/// The same after events were lost, and after a list that failed.
const LOST_GAP: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Pace {
    /// When the last list ended.
    last: Duration,
    /// When one is due because of what was heard.
    hinted: Option<Duration>,
    /// When one is due anyway.
    timed: Duration,
    /// A loss was reported since the last list.
    has_reported_loss: bool,
    /// The wait after a list that lacks a device which could not be read.
    retry: Option<Duration>,
    /// A timed list has found a change, and no event has come since.
    is_untold: bool,
    is_deaf: bool,
    has_socket: bool,
}

impl Pace {
    /// After a first list. If that has faults, it is repeated soon.
    pub(super) fn new(now: Duration, has_socket: bool, has_faults: bool) -> Self {
        let is_deaf = !has_socket;
        let mut pace = Self {
            // The first event is not made to wait.
            last: now.saturating_sub(LOST_GAP),
            hinted: None,
            timed: now,
            has_reported_loss: false,
            retry: None,
            is_untold: false,
            is_deaf,
            has_socket,
        };
        pace.timed = now + pace.interval();
        pace.repeat(now, has_faults);
        pace
    }

    fn interval(&self) -> Duration {
        #[cfg(uverbs_leave_out)]
        if watch_lacks(WatchPart::SafetySweep) {
            return Duration::from_secs(1 << 20);
        }
        if self.is_deaf { DEAF } else { SAFETY }
    }

    pub(super) fn due(&self) -> Duration {
        self.hinted.map_or(self.timed, |hinted| hinted.min(self.timed))
    }

    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due() <= now
    }

    /// An event was heard. Returns whether events had been missing, and are no longer. Where only the events of
    /// RDMA devices arrive, those of uverbs devices are still missing.
    pub(super) fn hear(&mut self, now: Duration, of_verbs: bool) -> bool {
        self.is_untold = false;
        self.hint((self.last + GAP).max(now));
        let was_deaf = self.is_deaf;
        self.is_deaf &= !of_verbs;
        was_deaf && !self.is_deaf
    }

    /// Events were lost. Returns whether that is to be reported: once between two lists.
    pub(super) fn lose(&mut self, now: Duration) -> bool {
        // What the next list finds may have been among them.
        self.is_untold = false;
        #[cfg(uverbs_leave_out)]
        if watch_lacks(WatchPart::SweepAfterLoss) {
            return false;
        }
        self.hint((self.last + LOST_GAP).max(now));
        !std::mem::replace(&mut self.has_reported_loss, true)
    }

    fn hint(&mut self, at: Duration) {
        self.hinted = Some(self.hinted.map_or(at, |hinted| hinted.min(at)));
    }

    /// There is no socket any more.
    pub(super) fn is_deaf(&mut self, now: Duration) {
        (self.has_socket, self.is_deaf) = (false, true);
        self.hint(now);
    }

    /// A list is complete. Returns whether that shows that events are missing.
    ///
    /// A list may be ahead of the event, so a change that was found without an event counts only if there is none
    /// by the next timed list, either.
    pub(super) fn swept(
        &mut self,
        began: Duration,
        now: Duration,
        has_changed: bool,
        has_faults: bool,
    ) -> bool {
        let is_timed = self.hinted.is_none_or(|hinted| began < hinted);
        let mut is_missing = false;
        if is_timed && !self.is_deaf {
            is_missing = self.is_untold;
            // A device that could not be read last time is no change that an event is sent for.
            self.is_untold = has_changed && !is_missing && self.retry.is_none();
            self.is_deaf = is_missing;
        }
        if !is_timed {
            self.hinted = None;
        }
        self.has_reported_loss = false;
        self.last = now;
        self.timed = now + self.interval();
        self.repeat(now, has_faults);
        is_missing
    }

    /// Has a list with faults repeated, less and less often.
    fn repeat(&mut self, now: Duration, has_faults: bool) {
        self.retry =
            has_faults.then(|| self.retry.map_or(LOST_GAP, |before| SAFETY.min(before * 2)));
        if let Some(wait) = self.retry.filter(|wait| *wait < SAFETY) {
            self.hint(now + wait);
        }
    }

    /// A list has failed. What was heard still counts as heard when it is repeated.
    pub(super) fn failed(&mut self, now: Duration) {
        self.last = now;
        self.timed = now + LOST_GAP;
        self.hinted = self.hinted.map(|_| self.timed);
    }
}
