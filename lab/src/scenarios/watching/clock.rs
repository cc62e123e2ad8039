//! Time as the guest's programs can use it. On a busy host the clock of an emulated machine jumps by seconds, and its
//! processors stop. What is to happen within a time is measured by threads that sleep, one on each processor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// How many processors have a clock.
const PROCESSORS: usize = 2;
const TICK: Duration = Duration::from_millis(5);

#[derive(Default)]
struct Ticks {
    each: [AtomicU64; PROCESSORS],
    stop: AtomicBool,
}

pub(super) struct Clock {
    ticks: Arc<Ticks>,
    threads: Vec<JoinHandle<()>>,
}

/// A moment: by the clock, and in ticks of each processor.
#[derive(Clone, Copy)]
pub(super) struct Time {
    pub(super) at: Instant,
    ticks: [u64; PROCESSORS],
}

impl Time {
    /// How long every processor has certainly slept and run in turns since then. Never more than the clock shows.
    pub(super) fn usable_since(&self, from: &Self) -> Duration {
        let each = self.ticks.iter().zip(from.ticks).map(|(to, from)| to.saturating_sub(from));
        // The first tick may have been under way.
        TICK * each.min().unwrap_or(0).saturating_sub(1) as u32
    }
}

/// Reads the clock from any thread.
#[derive(Clone)]
pub(super) struct Reader(Arc<Ticks>);

impl Reader {
    pub(super) fn now(&self) -> Time {
        let ticks = std::array::from_fn(|processor| self.0.each[processor].load(Relaxed));
        Time { at: Instant::now(), ticks }
    }
}

impl Clock {
    pub(super) fn start() -> Self {
        let ticks = Arc::<Ticks>::default();
        let threads = (0..PROCESSORS).map(|processor| {
            let ticks = ticks.clone();
            std::thread::spawn(move || {
                let mut set = CpuSet::new();
                set.set(processor);
                // With one processor, the second clock runs on that, too.
                let _ = sched_setaffinity(None, &set);
                while !ticks.stop.load(Relaxed) {
                    std::thread::sleep(TICK);
                    ticks.each[processor].fetch_add(1, Relaxed);
                }
            })
        });
        Self { threads: threads.collect(), ticks }
    }

    pub(super) fn reader(&self) -> Reader {
        Reader(self.ticks.clone())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.ticks.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
