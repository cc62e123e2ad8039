//! `cargo xtask bench`: the cost of listing and opening, compared with libibverbs. It is judged by targets, and
//! recorded on request.

mod figures;
mod plot;
mod report;

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::job::{self, Job};
use crate::kernel::KernelChoice;
use crate::progress::Left;
use crate::runner::{Outcome, Runner};
use crate::{guest, paths};
use figures::Run;

/// Enough for 8,000 devices. One list of libibverbs takes many seconds then.
const LIMIT: Duration = Duration::from_secs(1800);
/// What 8,000 devices need.
const MEMORY_MB: &str = "3072";

/// The settings of a measurement.
pub(crate) struct Plan {
    pub(crate) kernel: KernelChoice,
    pub(crate) runs: usize,
    /// The maximum number of devices.
    pub(crate) most: usize,
    /// Whether to rewrite `benches/RESULTS.md` and the plot.
    pub(crate) write: bool,
}

/// Measures. Returns 0 if every target was met in every run.
pub(crate) fn run(plan: &Plan) -> Result<u8> {
    let mut runner = Runner::new("bench", true)?;
    let mut command = job::cargo();
    command.args(["bench", "--package", "uverbs", "--features", "sim", "--bench", "hermetic"]);
    let hermetic = Job { name: "hermetic".to_owned(), command, limit: LIMIT };
    let in_guests = (1..=plan.runs).map(|number| in_guest(plan, number));
    let in_guests = in_guests.collect::<Result<Vec<_>>>()?;
    let later = runner.expect(&in_guests, 1);
    let simulated = runner.run(vec![hermetic], 1, later)?.iter().all(Outcome::passed);
    guest::build()?;
    let mut runs = Vec::new();
    for outcome in runner.run(in_guests, 1, Left::default())? {
        // It fails if a target is missed, but the log shows that, too.
        let log = runner.log(&outcome.name);
        let text =
            fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        let run = Run::parse(&text)?;
        // A run that ended early lacks some targets.
        if run.targets.is_empty() {
            outcome.result?;
        }
        runs.push(run);
    }
    for (number, run) in runs.iter().enumerate() {
        let met = run.targets.iter().filter(|target| target.met).count();
        println!("run {}: {met} of {} targets met", number + 1, run.targets.len());
        for target in run.targets.iter().filter(|target| !target.met) {
            println!("  missed: {}: {}, not {}", target.what, target.found, target.limit);
        }
    }
    if plan.write {
        let benches = paths::workspace().join("benches");
        let write = |name: &str, text: String| {
            let path = benches.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write("RESULTS.md", report::results(&runs))?;
        write("devices.svg", plot::svg(&runs))?;
    }
    let met = runs.iter().all(|run| run.targets.iter().all(|target| target.met));
    Ok(u8::from(!(simulated && met)))
}

/// The measuring program in its guest.
fn in_guest(plan: &Plan, number: usize) -> Result<Job> {
    let most = plan.most.to_string();
    let command = ["uverbs-lab", "bench", "--most", &most];
    let options = ["--memory", MEMORY_MB];
    job::in_guest(&format!("run-{number}"), &plan.kernel, LIMIT, &options, command)
}
