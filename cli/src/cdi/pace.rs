//! When `uverbs cdi --watch` writes: once for a burst of changes, and after a bounded time while they never end.

use std::time::{Duration, Instant};

/// After the last change nothing has to happen for so long. A function takes some tenths of a second to appear.
const QUIET: Duration = Duration::from_millis(500);
/// A change is written after this time at the latest.
const LATEST: Duration = Duration::from_secs(5);
/// The file, and the nodes that no change reports, are looked at this often.
const LOOK: Duration = Duration::from_secs(10);
/// The first wait after a failure. Each further one doubles it, up to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Pace {
    /// The first and the last change that are not written yet.
    changes: Option<(Instant, Instant)>,
    looked: Instant,
    /// The wait after the failure before, while it lasts.
    retry: Option<Duration>,
}

impl Pace {
    /// The devices were looked at now.
    pub(super) fn new(now: Instant) -> Self {
        Self { changes: None, looked: now, retry: None }
    }

    pub(super) fn changed(&mut self, now: Instant) {
        let first = self.changes.map_or(now, |(first, _)| first);
        self.changes = Some((first, now));
    }

    /// When to look at the devices next.
    fn next(&self) -> Instant {
        match (self.retry, self.changes) {
            // A change does not make a full disk any better.
            (Some(retry), _) => self.looked + retry,
            (None, Some((first, last))) => (last + QUIET).min(first + LATEST),
            (None, None) => self.looked + LOOK,
        }
    }

    /// How long to wait; nothing if it is time to look.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.next().saturating_duration_since(now)
    }

    /// The devices were looked at, and the file is right.
    pub(super) fn done(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// The same, but it could not be written. Returns how long the next attempt waits.
    pub(super) fn failed(&mut self, now: Instant) -> Duration {
        let retry = self.retry.map_or(FIRST_RETRY, |retry| (retry * 2).min(LAST_RETRY));
        (self.looked, self.retry) = (now, Some(retry));
        retry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often is looked while changes come at these times, in milliseconds, and when.
    fn looks(changes: &[u64], until: u64) -> Vec<u64> {
        let start = Instant::now();
        let at = |time| start + Duration::from_millis(time);
        let mut pace = Pace::new(start);
        let mut looks = Vec::new();
        for time in 0..until {
            if changes.contains(&time) {
                pace.changed(at(time));
            }
            if pace.left(at(time)).is_zero() {
                looks.push(time);
                pace.done(at(time));
            }
        }
        looks
    }

    #[test]
    fn a_burst_is_one_look() {
        let burst: Vec<_> = (0..64).map(|number| 1000 + number * 50).collect();
        assert_eq!(looks(&burst, 9000), [1000 + 63 * 50 + 500]);
        assert_eq!(looks(&[1000], 5000), [1500]);
    }

    #[test]
    fn constant_change_is_written_in_time() {
        let always: Vec<_> = (0..20_000).step_by(100).collect();
        assert_eq!(looks(&always, 20_000)[..3], [5000, 10_100, 15_200]);
    }

    #[test]
    fn it_looks_now_and_then_without_a_change() {
        assert_eq!(looks(&[], 25_000), [10_000, 20_000]);
    }

    #[test]
    fn failures_are_retried_ever_more_slowly_and_never_given_up() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.changed(now);
        let mut waits = Vec::new();
        for _ in 0..9 {
            let retry = pace.failed(now);
            assert_eq!(pace.left(now), retry);
            // Changes meanwhile do not hurry it.
            pace.changed(now);
            assert_eq!(pace.left(now), retry);
            waits.push(retry.as_secs());
            now += retry;
            assert!(pace.left(now).is_zero());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        pace.done(now);
        assert_eq!(pace.failed(now), FIRST_RETRY);
    }
}
