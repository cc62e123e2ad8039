//! A thread that waits for the changes of a watch.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, ensure};
use uverbs::{Registry, Watch};

use super::replay::Replay;
use crate::guest;

pub(super) struct Follower {
    thread: JoinHandle<Result<(Watch, Vec<String>)>>,
    replay: Arc<Mutex<Replay>>,
    stop: Arc<AtomicBool>,
}

impl Follower {
    pub(super) fn start(registry: &Registry) -> Result<Self> {
        let (mut watch, replay) = super::replay::watch(registry)?;
        let replay = Arc::new(Mutex::new(replay));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let (replay, stop) = (replay.clone(), stop.clone());
            move || {
                let mut errors = Vec::new();
                loop {
                    let is_last = stop.load(Relaxed);
                    let limit =
                        if is_last { super::replay::SETTLED } else { Duration::from_millis(100) };
                    match watch.wait(Some(limit)) {
                        Ok(Some(change)) => {
                            replay.lock().unwrap_or_else(PoisonError::into_inner).apply(&change)?;
                        }
                        Ok(None) if is_last => return Ok((watch, errors)),
                        Ok(None) => {}
                        Err(error) => errors.push(error.to_string()),
                    }
                }
            }
        });
        Ok(Self { thread, replay, stop })
    }

    /// Waits until what was reported fulfils a condition.
    pub(super) fn until(&self, what: &str, holds: impl Fn(&Replay) -> bool) -> Result<()> {
        guest::until(what, || {
            self.thread.is_finished()
                || holds(&self.replay.lock().unwrap_or_else(PoisonError::into_inner))
        })?;
        ensure!(!self.thread.is_finished(), "the thread has ended: a change did not fit");
        Ok(())
    }

    /// Waits until nothing more comes. Returns the errors that the watch returned, too.
    pub(super) fn stop(self) -> Result<(Watch, Replay, Vec<String>)> {
        self.stop.store(true, Relaxed);
        let (watch, errors) = self.thread.join().expect("no panic")?;
        let replay = Arc::into_inner(self.replay).expect("the thread has ended");
        Ok((watch, replay.into_inner().unwrap_or_else(PoisonError::into_inner), errors))
    }
}
