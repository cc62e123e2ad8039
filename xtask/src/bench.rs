//! `cargo xtask bench`: what listing and opening cost, beside libibverbs; judged by targets, and written down
//! when asked.

mod figures;
mod plot;
mod report;

use std::env;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kernel::KernelChoice;
use crate::prove::{self, Job};
use crate::{guest, lab, paths};
use figures::Run;

/// Enough for 8,000 devices, of which one list of libibverbs takes many seconds.
const LIMIT: Duration = Duration::from_secs(1800);
/// What 8,000 devices need.
const MEMORY_MB: &str = "3072";

/// What to measure, and where.
pub(crate) struct Plan {
    pub(crate) kernel: KernelChoice,
    pub(crate) runs: usize,
    /// More devices than these are not measured.
    pub(crate) most: usize,
    /// Write `benches/RESULTS.md` and the plot anew.
    pub(crate) write: bool,
}

/// Measures, and tells whether every target was met in every run.
pub(crate) fn run(plan: &Plan) -> Result<u8> {
    let mut hermetic = prove::cargo();
    hermetic.args(["bench", "--package", "uverbs", "--features", "sim", "--bench", "hermetic"]);
    let simulated = hermetic.status().context("running cargo bench")?.success();
    guest::build()?;
    let logs = paths::target().join("bench");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let mut runs = Vec::new();
    for number in 1..=plan.runs {
        let log = logs.join(format!("{number}.log"));
        // It fails when a target is missed, which the log says, too.
        let ended = prove::run_logged(in_guest(plan)?, &log);
        let text =
            fs::read_to_string(&log).with_context(|| format!("reading {}", log.display()))?;
        let run = Run::parse(&text)?;
        // Of a run that ended before its end the targets are missing.
        if run.targets.is_empty() {
            ended?;
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

/// The measuring program in its guest, through this program, whose output is then the log.
fn in_guest(plan: &Plan) -> Result<Job> {
    let mut command = std::process::Command::new(env::current_exe().context("this program")?);
    command.args(["lab", "run", "--no-build", "--memory", MEMORY_MB, "--kernel"]);
    command.arg(plan.kernel.to_string()).arg("--timeout").arg(LIMIT.as_secs().to_string());
    command.args(["--", "uverbs-lab", "bench", "--most"]).arg(plan.most.to_string());
    Ok(Job { name: "bench".to_owned(), command, limit: LIMIT + lab::PREPARATION })
}
