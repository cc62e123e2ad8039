//! The output of a run, line by line.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};

/// The times of one kind of call, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    pub(crate) rounds: usize,
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

/// A target and the figure that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) met: bool,
    pub(crate) what: String,
    pub(crate) limit: String,
    pub(crate) found: String,
}

/// All figures of one run, by name and number of devices.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) kernel: String,
    pub(crate) times: BTreeMap<(String, usize), Times>,
    pub(crate) counts: BTreeMap<(String, usize), u64>,
    pub(crate) targets: Vec<Target>,
}

impl Run {
    /// Parses the output of `uverbs-lab bench`. Other lines are skipped.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut run = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split('\t').collect();
            let number = |word: &str| word.parse::<f64>().with_context(|| line.to_owned());
            match words[..] {
                ["kernel", release] => run.kernel = release.to_owned(),
                ["figure", devices, name, rounds, low, median, high] => {
                    let times = Times {
                        rounds: rounds.parse().context("rounds")?,
                        low: number(low)?,
                        median: number(median)?,
                        high: number(high)?,
                    };
                    run.times.insert((name.to_owned(), devices.parse().context("devices")?), times);
                }
                ["count", devices, name, count] => {
                    let key = (name.to_owned(), devices.parse().context("devices")?);
                    run.counts.insert(key, count.parse().context("a count")?);
                }
                ["target", verdict, what, limit, found] => run.targets.push(Target {
                    met: verdict == "PASS",
                    what: what.to_owned(),
                    limit: limit.to_owned(),
                    found: found.to_owned(),
                }),
                _ => {}
            }
        }
        Ok(run)
    }

    /// The numbers of devices that were measured.
    pub(crate) fn sizes(&self) -> BTreeSet<usize> {
        self.times.keys().map(|(_, devices)| *devices).collect()
    }

    pub(crate) fn time(&self, name: &str, devices: usize) -> Option<Times> {
        self.times.get(&(name.to_owned(), devices)).copied()
    }

    pub(crate) fn count(&self, name: &str, devices: usize) -> Option<u64> {
        self.counts.get(&(name.to_owned(), devices)).copied()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const TEXT: &str = "kernel\t6.12.1\nnoise\n\
        figure\t1\tlist_ibverbs\t9\t90.0\t100.0\t120.5\nfigure\t1000\tlist_ibverbs\t9\t9e4\t1e5\t2e5\n\
        figure\t1\trescan\t9\t9.0\t10.0\t12.0\nfigure\t1000\trescan\t9\t900\t1000\t1200\n\
        count\t1000\tcalls_open\t39\n\
        target\tPASS\tit is quick\tat most 2\t1.50\ntarget\tFAIL\tit is small\tat most 1\t1.50\n";

    #[test]
    fn a_run_is_parsed() {
        let run = Run::parse(TEXT).expect("read");
        assert_eq!(run.kernel, "6.12.1");
        assert_eq!(run.time("rescan", 1000).map(|times| times.median), Some(1000.0));
        assert_eq!(run.count("calls_open", 1000), Some(39));
        assert_eq!(run.sizes().into_iter().collect::<Vec<_>>(), [1, 1000]);
        assert!(run.targets[0].met && !run.targets[1].met);
        assert!(Run::parse("figure\t1\tx\t1\ta\t2\t3\n").is_err());
    }
}
