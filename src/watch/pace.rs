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
    /// When events were last lost.
    lost: Option<Duration>,
    /// A timed list has found a change of which nothing has been heard since.
    is_untold: bool,
    is_deaf: bool,
    has_socket: bool,
}

impl Pace {
    pub(super) fn new(now: Duration, has_socket: bool) -> Self {
        let is_deaf = !has_socket;
        let mut pace = Self {
            // The first event is not made to wait.
            last: now.saturating_sub(LOST_GAP),
            hinted: None,
            timed: now,
            lost: None,
            is_untold: false,
            is_deaf,
            has_socket,
        };
        pace.timed = now + pace.interval();
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

    /// An event was heard. Returns whether events had been missing, and are no longer.
    pub(super) fn hear(&mut self, now: Duration) -> bool {
        self.is_untold = false;
        self.hint((self.last + GAP).max(now));
        std::mem::replace(&mut self.is_deaf, false)
    }

    /// Events were lost. Returns whether that is to be reported: only the first of a series is.
    pub(super) fn lose(&mut self, now: Duration) -> bool {
        // What the next list finds may have been among them.
        self.is_untold = false;
        #[cfg(uverbs_leave_out)]
        if watch_lacks(WatchPart::SweepAfterLoss) {
            return false;
        }
        self.hint((self.last + LOST_GAP).max(now));
        let before = self.lost.replace(now);
        before.is_none_or(|before| now.saturating_sub(before) >= SAFETY)
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
    pub(super) fn swept(&mut self, began: Duration, now: Duration, has_changed: bool) -> bool {
        let is_timed = self.hinted.is_none_or(|hinted| began < hinted);
        let mut is_missing = false;
        if is_timed && !self.is_deaf {
            is_missing = self.is_untold;
            self.is_untold = has_changed && !is_missing;
            self.is_deaf = is_missing;
        }
        if !is_timed {
            self.hinted = None;
        }
        self.last = now;
        self.timed = now + self.interval();
        is_missing
    }

    /// A list has failed.
    pub(super) fn failed(&mut self, now: Duration) {
        self.last = now;
        self.hinted = None;
        self.timed = now + LOST_GAP;
    }
}
