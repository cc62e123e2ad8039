//! What was checked while a device was opened, and what each check found.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DeviceNumber, Guid, Name};

/// A step of the open protocol (see the crate's `open` module for what each does).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Step {
    /// 1: is the record already known to be gone?
    Known,
    /// 2: pin the instance in /sys.
    Pin,
    /// 3: look at the node in /dev without opening it.
    Node,
    /// 4: open the node.
    Open,
    /// 5: look at the instance again, now that the node is open.
    Revalidate,
    /// 6: allocate the kernel context.
    Allocate,
    /// 7: prove through the descriptor what it is bound to.
    Prove,
}

impl Step {
    /// Its number, as the documentation counts them.
    pub fn number(self) -> u8 {
        self as u8 + 1
    }

    /// Its name, in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Pin => "pin",
            Self::Node => "node",
            Self::Open => "open",
            Self::Revalidate => "revalidate",
            Self::Allocate => "allocate",
            Self::Prove => "prove",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} ({})", self.number(), self.name())
    }
}

/// A value that a check compared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Value {
    /// A word: what kind of thing, or that something is so.
    Word(&'static str),
    /// A number: an inode, an index, a count.
    Number(u64),
    /// A device number.
    #[cfg_attr(feature = "serde", serde(rename = "device_number"))]
    Device(DeviceNumber),
    /// A GUID.
    Guid(Guid),
    /// A timestamp: seconds and nanoseconds.
    Time(i64, u32),
    /// A name.
    Name(Name),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => f.pad(word),
            Self::Number(number) => number.fmt(f),
            Self::Device(device) => device.fmt(f),
            Self::Guid(guid) => guid.fmt(f),
            Self::Time(seconds, nanoseconds) => f.pad(&format!("{seconds}.{nanoseconds:09}")),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// One check: what was compared and whether it held.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Check {
    /// The step it belongs to.
    pub step: Step,
    /// What was looked at.
    pub what: &'static str,
    /// What it had to be.
    pub expected: Value,
    /// What it was.
    pub found: Value,
}

impl Check {
    /// Whether it was as expected.
    pub fn held(&self) -> bool {
        self.expected == self.found
    }
}

/// Everything that was checked on the way to a context, in order.
///
/// Of a [`Context`](crate::Context) and of an [`UnprovenContext`](crate::UnprovenContext) every check held.
/// Of an error ([`Error::evidence`]) the last one may be the one that did not.
///
/// ```no_run
/// # fn main() -> uverbs::Result<()> {
/// # let device: uverbs::Device = unimplemented!();
/// let context = device.open()?;
/// for check in context.evidence().checks() {
///     println!("{}: {} is {}", check.step, check.what, check.found);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Evidence {
    checks: Vec<Check>,
    pub(crate) index: Option<u32>,
    pub(crate) context_number: Option<u32>,
    pub(crate) leaked_pd: bool,
}

impl Evidence {
    /// The checks, in the order in which they were made.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The netlink index under which the kernel lists the context.
    pub fn index(&self) -> Option<u32> {
        self.index
    }

    /// The number (`RDMA_NLDEV_ATTR_RES_CTXN`) under which the kernel lists the context.
    pub fn context_number(&self) -> Option<u32> {
        self.context_number
    }

    /// Whether a protection domain that the proof allocated could not be freed. It lives until the context
    /// is closed.
    pub fn leaked_pd(&self) -> bool {
        self.leaked_pd
    }

    /// Compares something that proves if it is as expected, and proves nothing if it is not. Only what held is
    /// noted.
    pub(crate) fn confirm(
        &mut self,
        step: Step,
        what: &'static str,
        expected: Value,
        look: impl FnOnce() -> Result<Value>,
    ) -> Result<bool> {
        #[cfg(uverbs_leave_out)]
        if leave_out::is_left_out(step, what) {
            return Ok(true);
        }
        let found = look().map_err(|error| error.at(step))?;
        let check = Check { step, what, expected, found };
        let held = check.held();
        if held {
            self.checks.push(check);
        }
        Ok(held)
    }

    /// The one place where something is compared: looks, writes down what was found, and is an error
    /// of the given kind when it differs. Looking is part of the check: it may find the device gone.
    pub(crate) fn require(
        &mut self,
        step: Step,
        what: &'static str,
        otherwise: ErrorKind,
        expected: Value,
        look: impl FnOnce() -> Result<Value>,
    ) -> Result<()> {
        #[cfg(uverbs_leave_out)]
        if leave_out::is_left_out(step, what) {
            return Ok(());
        }
        let found = look().map_err(|error| error.at(step))?;
        let check = Check { step, what, expected, found };
        let held = check.held();
        self.checks.push(check.clone());
        if held {
            Ok(())
        } else {
            Err(Error::differs(otherwise, what, check.expected, check.found).at(step))
        }
    }
}

/// Leaving checks out, to see what they are good for. There in builds with `--cfg uverbs_leave_out` alone,
/// which is no feature, so that it is not turned on by accident.
#[cfg(uverbs_leave_out)]
pub mod leave_out {
    use std::sync::RwLock;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::Step;

    static OLD_RULE: AtomicBool = AtomicBool::new(false);

    /// Proves by the rule that was broken once (`audits/open-protocol.md`), from now on or no longer.
    pub fn old_rule(on: bool) {
        OLD_RULE.store(on, Relaxed);
    }

    pub(crate) fn is_old_rule() -> bool {
        OLD_RULE.load(Relaxed)
    }

    static LEFT_OUT: RwLock<Vec<(Step, &'static str)>> = RwLock::new(Vec::new());

    /// Leaves these checks, and no others, out of whatever this process does from now on.
    pub fn leave_out(checks: &[(Step, &'static str)]) {
        let mut left_out = LEFT_OUT.write().unwrap_or_else(|poison| poison.into_inner());
        *left_out = checks.to_vec();
    }

    pub(super) fn is_left_out(step: Step, what: &str) -> bool {
        let left_out = LEFT_OUT.read().unwrap_or_else(|poison| poison.into_inner());
        left_out.iter().any(|(left, check)| (*left, *check) == (step, what))
    }
}
