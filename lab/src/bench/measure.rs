//! Times, measured so that compared operations run under the same conditions.

use std::time::{Duration, Instant};

use anyhow::Result;

/// How long the calls of one kind took.
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// In microseconds, at that fraction of the way from the fastest to the slowest.
    fn quantile(&self, part: f64) -> f64 {
        let at = (part * self.0.len().saturating_sub(1) as f64).round() as usize;
        self.0.get(at).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }

    /// The median in microseconds.
    pub(super) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Prints them as one line. xtask reads it.
    pub(super) fn print(&self, devices: usize, name: &str) {
        let (low, median, high) = (self.quantile(0.1), self.median(), self.quantile(0.9));
        let rounds = self.0.len();
        println!("figure\t{devices}\t{name}\t{rounds}\t{low:.1}\t{median:.1}\t{high:.1}");
    }
}

/// Records a figure under a name.
pub(super) type Note<'a> = &'a mut dyn FnMut(&str, &Times);

/// An operation to be measured. It is given the number of the round, and returns how long the operation took.
pub(super) type Timed<'a> = &'a mut dyn FnMut(usize) -> Result<Duration>;

/// Measures operations in turns, so that other work of the host affects all of them alike. Each turn begins with
/// another operation.
pub(super) fn in_turns<const N: usize>(
    rounds: usize,
    things: [Timed<'_>; N],
) -> Result<[Times; N]> {
    let mut times = [const { Vec::new() }; N];
    for round in 0..rounds {
        for turn in 0..N {
            let which = (round + turn) % N;
            times[which].push(things[which](round)?);
        }
    }
    Ok(times.map(Times::new))
}

/// How long a closure takes. Its result is dropped after the measurement.
pub(super) fn time<T>(act: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let start = Instant::now();
    let done = act();
    let elapsed = start.elapsed();
    done.map(|_| elapsed)
}

/// The time of one call when that many threads make that many calls: each thread's average.
pub(super) fn on_threads(
    threads: usize,
    calls: usize,
    act: impl Fn(usize) -> Result<()> + Sync,
) -> Result<Duration> {
    let barrier = std::sync::Barrier::new(threads);
    let run = |thread: usize| -> Result<Duration> {
        barrier.wait();
        let start = Instant::now();
        for _ in 0..calls {
            act(thread)?;
        }
        Ok(start.elapsed() / calls as u32)
    };
    let run = &run;
    std::thread::scope(|scope| {
        let spawned: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(thread))).collect();
        let mut sum = Duration::ZERO;
        for thread in spawned {
            sum += thread.join().expect("no panic")?;
        }
        Ok(sum / threads as u32)
    })
}
