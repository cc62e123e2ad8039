//! `cargo xtask test`: every test there is.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kernel::KernelChoice;
use crate::lab::{self, LabRun};
use crate::{guest, prove};

/// Enough for all scenarios under emulation on a slow host.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// What runs in a kernel when none is named. The samples do not run on the oldest: they would take longer than all
/// else, and what they are samples of runs on the others.
const DEFAULT: [(&str, &[&str]); 3] =
    [("6.12", &[]), ("6.1", &[]), ("5.10", &["--without-samples"])];

/// Runs the workspace's tests, then the scenarios in each kernel; goes on after a failure and sums up.
pub(crate) fn run(kernels: &[KernelChoice], filter: &[OsString]) -> Result<u8> {
    let kernels: Vec<(KernelChoice, &[&str])> = match kernels {
        [] => DEFAULT
            .map(|(series, options)| (KernelChoice::Series(series.to_owned()), options))
            .to_vec(),
        named => named.iter().map(|kernel| (kernel.clone(), [].as_slice())).collect(),
    };
    let mut failed = false;
    let mut summary = Vec::new();
    let mut tests = prove::cargo();
    tests.args(["test", "--workspace"]);
    let mut left_out = prove::with_checks_left_out();
    left_out.args(["--", "--nocapture"]).args(prove::LEFT_OUT);
    let both = [("cargo test --workspace", tests), ("the tests with checks left out", left_out)];
    for (what, mut command) in both {
        let passed = command.status().with_context(|| format!("running {what}"))?.success();
        failed |= !passed;
        summary.push(format!("{what}: {}", verdict(passed)));
    }

    // Without what is to run in them there is no point in booting kernels: older programs would be tested.
    let built = guest::build();
    let kernels = match &built {
        Ok(()) => kernels,
        Err(error) => {
            failed = true;
            summary.push(format!("the guest's programs: FAILED: {error:#}"));
            Vec::new()
        }
    };
    for (kernel, options) in kernels {
        let mut command: Vec<OsString> = vec!["uverbs-lab".into(), "scenarios".into()];
        command.extend(options.iter().map(OsString::from));
        command.extend_from_slice(filter);
        let result = lab::run(&LabRun {
            kernel: kernel.clone(),
            add: Vec::new(),
            timeout: TIMEOUT,
            memory_mb: 1024,
            cpus: 2,
            command,
        });
        match result {
            Ok(outcome) => {
                if let Some(problem) = outcome.problem() {
                    eprintln!("xtask: {problem}");
                }
                failed |= !outcome.is_success();
                summary.push(format!(
                    "scenarios on {}: {} (exit code {}, {:.0} s)",
                    outcome.release,
                    verdict(outcome.is_success()),
                    outcome.exit_code(),
                    outcome.elapsed.as_secs_f64(),
                ));
            }
            Err(error) => {
                failed = true;
                summary.push(format!("scenarios on {kernel}: FAILED: {error:#}"));
            }
        }
    }
    for line in summary {
        println!("{line}");
    }
    Ok(u8::from(failed))
}

fn verdict(success: bool) -> &'static str {
    if success { "passed" } else { "FAILED" }
}
