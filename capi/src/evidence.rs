//! Evidence: what was checked, and what each check found.

use std::ffi::{CString, c_char, c_int};
use std::sync::Arc;

use uverbs::Evidence;

use crate::fault::{Fault, c_text};
use crate::guarded::run_plain;
use crate::handle;
use crate::sized::{self, Plain};

/// The checks on the way to a context, in the order in which they were made. Reference-counted.
pub struct uverbs_evidence {
    checks: Vec<Texts>,
    index: Option<u32>,
    context_number: Option<u32>,
    leaked_pd: bool,
}

/// A check, with its texts as C strings.
struct Texts {
    id: CString,
    what: CString,
    step_name: CString,
    expected: CString,
    found: CString,
    step: u32,
    held: bool,
}

/// A check. Its texts are escaped, and live as long as the evidence.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct uverbs_check {
    /// What was looked at, for programs, such as "uverbs_inode". Stable.
    pub id: *const c_char,
    /// The same for people. The text may change in any version.
    pub what: *const c_char,
    /// The name of the step of the open protocol, such as "pin".
    pub step_name: *const c_char,
    /// What it had to be.
    pub expected: *const c_char,
    /// What it was.
    pub found: *const c_char,
    /// The number of the step, 0 to 7.
    pub step: u32,
    /// 1 if it was as expected, otherwise 0.
    pub held: u32,
}

// SAFETY: pointers and numbers, in the order of their size.
unsafe impl Plain for uverbs_check {}

impl uverbs_evidence {
    pub(crate) fn shared(evidence: Evidence) -> Arc<Self> {
        let texts = |check: &uverbs::Check| Texts {
            id: c_text(check.id.name()),
            what: c_text(check.what()),
            step_name: c_text(check.step.name()),
            expected: c_text(check.expected.to_string()),
            found: c_text(check.found.to_string()),
            step: u32::from(check.step.number()),
            held: check.held(),
        };
        Arc::new(Self {
            checks: evidence.checks().iter().map(texts).collect(),
            index: evidence.index(),
            context_number: evidence.context_number(),
            leaked_pd: evidence.leaked_pd(),
        })
    }
}

/// Adds a reference. Returns the evidence.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_evidence_ref(
    evidence: *const uverbs_evidence,
) -> *mut uverbs_evidence {
    // SAFETY: as the caller promises.
    unsafe { handle::add(evidence) }
}

/// Drops a reference. Returns null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_evidence_unref(
    evidence: *mut uverbs_evidence,
) -> *mut uverbs_evidence {
    // SAFETY: as the caller promises.
    unsafe { handle::release(evidence) }
}

/// The number of checks.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_evidence_count(evidence: Option<&uverbs_evidence>) -> usize {
    evidence.map_or(0, |evidence| evidence.checks.len())
}

/// Fills `check` with the check at that place, counted from 0. `size` is sizeof(struct uverbs_check). Returns 0, or
/// -EINVAL if there is none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn uverbs_evidence_get(
    evidence: Option<&uverbs_evidence>,
    place: usize,
    check: *mut uverbs_check,
    size: usize,
) -> c_int {
    run_plain(|| {
        let evidence = evidence.ok_or(Fault::Null("evidence"))?;
        let texts = evidence.checks.get(place).ok_or(Fault::Argument("no check at that place"))?;
        let found = uverbs_check {
            id: texts.id.as_ptr(),
            what: texts.what.as_ptr(),
            step_name: texts.step_name.as_ptr(),
            expected: texts.expected.as_ptr(),
            found: texts.found.as_ptr(),
            step: texts.step,
            held: u32::from(texts.held),
        };
        // SAFETY: the caller has that much room.
        unsafe { sized::put(&found, check, size) }?;
        Ok(0)
    })
}

/// The netlink index under which the kernel lists the context; -1 if it is not known.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_evidence_index(evidence: Option<&uverbs_evidence>) -> i64 {
    evidence.and_then(|evidence| evidence.index).map_or(-1, i64::from)
}

/// The number under which the kernel lists the context (RDMA_NLDEV_ATTR_RES_CTXN); -1 if it is not known.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_evidence_context_number(evidence: Option<&uverbs_evidence>) -> i64 {
    evidence.and_then(|evidence| evidence.context_number).map_or(-1, i64::from)
}

/// Whether a protection domain that the proof allocated could not be freed. It lives until the context is closed.
#[unsafe(no_mangle)]
pub extern "C" fn uverbs_evidence_leaked_pd(evidence: Option<&uverbs_evidence>) -> bool {
    evidence.is_some_and(|evidence| evidence.leaked_pd)
}
