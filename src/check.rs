//! Where checks are made: looking, comparing, and noting what was found.

use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{Check, CheckId, Evidence, Step, Value};

impl Evidence {
    /// Compares something that proves if it is as expected, and proves nothing if it is not. Only what held is
    /// noted.
    pub(crate) fn confirm(
        &mut self,
        step: Step,
        id: CheckId,
        expected: Value,
        look: impl FnOnce() -> Result<Value>,
    ) -> Result<bool> {
        #[cfg(uverbs_leave_out)]
        if leave_out::is_left_out(step, id) {
            return Ok(true);
        }
        let found = look().map_err(|error| error.at(step))?;
        let check = Check { id, step, expected, found };
        let held = check.held();
        if held {
            self.note(check);
        }
        Ok(held)
    }

    /// The one place where something is compared: looks, writes down what was found, and is an error
    /// of the given kind when it differs. Looking is part of the check: it may find the device gone.
    pub(crate) fn require(
        &mut self,
        step: Step,
        id: CheckId,
        otherwise: ErrorKind,
        expected: Value,
        look: impl FnOnce() -> Result<Value>,
    ) -> Result<()> {
        #[cfg(uverbs_leave_out)]
        if leave_out::is_left_out(step, id) {
            return Ok(());
        }
        let found = look().map_err(|error| error.at(step))?;
        let check = Check { id, step, expected, found };
        let held = check.held();
        self.note(check.clone());
        if held { Ok(()) } else { Err(Error::check_failed(otherwise, check)) }
    }
}

/// Leaving checks out, to see what they are good for. There in builds with `--cfg uverbs_leave_out` alone,
/// which is no feature, so that it is not turned on by accident.
#[cfg(uverbs_leave_out)]
pub mod leave_out {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

    use crate::evidence::{CheckId, Step};

    static OLD_RULE: AtomicBool = AtomicBool::new(false);

    /// Proves by the rule that was broken once (`audits/open-protocol.md`), from now on or no longer.
    pub fn old_rule(on: bool) {
        OLD_RULE.store(on, Relaxed);
    }

    pub(crate) fn is_old_rule() -> bool {
        OLD_RULE.load(Relaxed)
    }

    /// A part of the watch that can be left out.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[non_exhaustive]
    #[repr(u8)]
    pub enum WatchPart {
        /// The sweep every two seconds.
        SafetySweep = 1,
        /// The sweep after events were lost with a sign.
        SweepAfterLoss = 2,
        /// The order at the start: subscribing, then listing.
        SubscribeFirst = 4,
        /// Another sweep for what is heard during a sweep.
        SweepAgain = 8,
    }

    static WATCH: AtomicU8 = AtomicU8::new(0);

    /// Leaves this part of the watch out from now on; `None` leaves nothing out.
    pub fn leave_out_of_watch(part: Option<WatchPart>) {
        WATCH.store(part.map_or(0, |part| part as u8), Relaxed);
    }

    pub(crate) fn watch_lacks(part: WatchPart) -> bool {
        WATCH.load(Relaxed) == part as u8
    }

    static LEFT_OUT: RwLock<Vec<(Step, CheckId)>> = RwLock::new(Vec::new());

    /// Leaves these checks, and no others, out of whatever this process does from now on.
    pub fn leave_out(checks: &[(Step, CheckId)]) {
        let mut left_out = LEFT_OUT.write().unwrap_or_else(|poison| poison.into_inner());
        *left_out = checks.to_vec();
    }

    pub(super) fn is_left_out(step: Step, id: CheckId) -> bool {
        let left_out = LEFT_OUT.read().unwrap_or_else(|poison| poison.into_inner());
        left_out.contains(&(step, id))
    }
}
