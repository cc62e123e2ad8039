//! A stale node, and a crowd of contexts. Some are closed between two pages of a list. This attack found a
//! wrong binding. It runs through the library and on both kernels.

use std::sync::mpsc::channel;

use anyhow::{Context as _, Result, ensure};
use uverbs::Registry;
use uverbs::sim::Probe;

use super::foreign::{Foreign, open_node, open_unguarded};
use super::play::describe;
use super::script::Node;
use super::side::{Side, settle_removal};

/// Leads to the new device, while uverbs0 leads to the old one.
const RIGHT: &str = "infiniband/uverbs5";

/// The result of one execution.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Came {
    /// Whether the context is on the old device.
    pub(super) is_wrong: bool,
    pub(super) text: String,
    /// Whether fewer calls were made, so that the event did not happen.
    pub(super) is_over: bool,
}

/// The program has a context of its own on the new device, after a crowd of `crowd` contexts, and opens that
/// device. Before its `at`-th `recvfrom` the first of the crowd are closed.
pub(super) fn play(
    side: &mut dyn Side,
    foreign: &Foreign,
    crowd: usize,
    at: usize,
) -> Result<Came> {
    ensure!(side.add("old", 0xa0, false)? == Ok(()));
    side.set_node(0, Node::Static)?;
    let host = side.host()?;
    let probe = Probe::new(&host);
    let holder = open_unguarded(&probe).ok().context("the old device")?;
    side.remove(0)?;
    ensure!(side.add("new", 0xa0, false)? == Ok(()));
    side.set_node(5, Node::FirstUverbs)?;
    let (through, mut contexts) = (probe.clone(), Vec::new());
    for _ in 0..crowd {
        let probe = through.clone();
        let opened = foreign.run(move || open_node(&probe, RIGHT))?;
        contexts.push(opened.ok().context("the crowd")?);
    }
    let device = Registry::new(host).devices()?.by_name("new")?;
    let (sender, result) = channel();
    let act = move || {
        let older = open_node(&through, RIGHT);
        let opened = device.open();
        // Both stay open until the kernels were queried.
        let _ = sender.send((older, opened));
    };
    let (gone, event) = channel();
    let mut first = contexts.into_iter();
    let going = first.next();
    let act_event = move || {
        drop(going);
        let _ = gone.send(());
    };
    side.interrupt(at, Box::new(act), Box::new(act_event))?;
    let (older, opened) = result.recv().context("the program has not ended")?;
    let older = older.ok().context("a context of its own")?;
    let is_over = event.try_recv().is_err();
    side.settle()?;
    let counted = [side.contexts(0)?, side.contexts(1)?];
    let text = match &opened {
        Ok(_) => format!("proved, {counted:?}"),
        Err(error) => format!("{}, {counted:?}", describe(error)),
    };
    // The other context is the holder's.
    let is_wrong = opened.is_ok() && counted[0] == Some(2);
    drop((older, opened, holder, first));
    settle_removal(side, 0)?;
    Ok(Came { is_wrong, text, is_over })
}
