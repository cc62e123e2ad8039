//! The rule that proved opens until it was broken. It compared a list of this thread's contexts before GET_CONTEXT
//! with one after it. Each list counted as complete if it came in one message. A list of one full page and an empty
//! second page comes in one message, too, but leaves out contexts that existed throughout
//! (`audits/open-protocol.md`).
//!
//! The rule is kept to show that every search for wrong bindings finds it. It exists only in builds with `--cfg
//! uverbs_leave_out`.

use super::proof::{Proof, Proven, Target, alive, compare_guid};
use super::{Prepared, allocate};
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::{CheckId, Evidence, Step, Value};
use crate::kernel::nldev::Resource;
use crate::leave_out;
use crate::netlink::Socket;
use crate::pin::Pin;
use crate::record::Record;
use crate::verbs::CmdFd;

/// The contexts of one thread in a list.
pub(super) struct List {
    numbers: Vec<u32>,
    in_one_message: bool,
}

/// The list before anything is opened, where this rule applies.
pub(super) fn list_before(record: &Record, socket: &Socket, index: u32) -> Result<Option<List>> {
    let thread = record.host.kernel().gettid();
    leave_out::is_old_rule().then(|| list(socket, index, thread)).transpose()
}

/// Steps 6 and 7 by this rule.
pub(super) fn allocate_and_prove(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    prepared: &Prepared,
    target: &Target,
    before: &List,
    evidence: &mut Evidence,
) -> Result<Proof> {
    if before.in_one_message {
        allocate(cmd, prepared)?;
        return prove(record, pin, cmd, target, &before.numbers, evidence);
    }
    let kernel = record.host.kernel();
    let undisturbed = kernel.undisturbed().map_err(|errno| Error::call("rt_sigprocmask", errno))?;
    // This allocates on the new thread. The allocators of the lab and of the tests allow that.
    let mut run = |_| {
        allocate(cmd, prepared)?;
        prove(record, pin, cmd, target, &[], evidence)
    };
    kernel.on_new_thread(&mut run, &undisturbed).map_err(|errno| Error::call("clone", errno))?
}

fn prove(
    record: &Record,
    pin: &Pin,
    cmd: &CmdFd,
    target: &Target,
    before: &[u32],
    evidence: &mut Evidence,
) -> Result<Proof> {
    compare_guid(cmd, target, evidence)?;
    let thread = record.host.kernel().gettid();
    let (mut new, mut empty) = (Vec::new(), 0);
    for _ in 0..8 {
        let now = list(&target.socket, target.index, thread)?;
        new = now.numbers;
        new.retain(|number| !before.contains(number));
        empty += usize::from(new.is_empty() && now.in_one_message);
        if !new.is_empty() || empty == 2 {
            break;
        }
    }
    let (id, found) = (CheckId::NewContexts, Value::Number(new.len() as u64));
    evidence.require(Step::Prove, id, ErrorKind::NodeMismatch, Value::Number(1), || Ok(found))?;
    evidence.index = Some(target.index);
    evidence.context_number = new.first().copied();
    alive(record, pin, evidence)?;
    Ok(Proof::Proven(Proven::by_old_rule()))
}

fn list(socket: &Socket, index: u32, thread: u32) -> Result<List> {
    let list = || {
        let mut numbers = Vec::new();
        let listing = socket.list(Resource::Context, index, |entry| {
            if entry.thread == Some(thread) {
                numbers.push(entry.number);
            }
            false
        });
        let listing = listing.map_err(|fault| fault.error(Resource::Context.command()))?;
        let none = || Error::new(ErrorKind::Unproven, "no list of contexts");
        Ok(List { numbers, in_one_message: listing.ok_or_else(none)?.in_one_message })
    };
    let first: List = list()?;
    // The first list has made the buffer longer, and with it the messages of the next one.
    if first.in_one_message { Ok(first) } else { list() }
}
