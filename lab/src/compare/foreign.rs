//! Another thread. To the kernel, its contexts are somebody else's.

use std::sync::mpsc::{Sender, channel};

use anyhow::{Context as _, Result};
use uverbs::sim::{As, Probe, Probed, Root};

type Task = Box<dyn FnOnce() + Send>;

/// A thread that lives as long as this does. Once it is gone, the kernel no longer names it.
pub(super) struct Foreign(Sender<Task>);

impl Foreign {
    pub(super) fn new() -> Self {
        let (sender, tasks) = channel::<Task>();
        // It ends when the sender is dropped.
        std::thread::spawn(move || tasks.into_iter().for_each(|task| task()));
        Self(sender)
    }

    /// Opens uverbs0 on that thread and allocates a context, without checks. Returns the errno if that fails.
    pub(super) fn open(&self, probe: &Probe) -> Result<std::result::Result<Probed, i32>> {
        let probe = probe.clone();
        self.run(move || open_unguarded(&probe))
    }

    /// Runs a closure on that thread.
    pub(super) fn run<T: Send + 'static>(
        &self,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (sender, result) = channel();
        let task = move || {
            // The receiver is gone only if this process gives up.
            let _ = sender.send(act());
        };
        self.0.send(Box::new(task)).ok().context("the other thread is gone")?;
        result.recv().context("the other thread is gone")
    }
}

/// Opens uverbs0 and allocates a context, without checks.
pub(super) fn open_unguarded(probe: &Probe) -> std::result::Result<Probed, i32> {
    open_node(probe, "infiniband/uverbs0")
}

/// The same for any node.
pub(super) fn open_node(probe: &Probe, node: &str) -> std::result::Result<Probed, i32> {
    let opened = probe.open(Root::Dev, node, As::Node)?;
    opened.get_context()?;
    Ok(opened)
}
