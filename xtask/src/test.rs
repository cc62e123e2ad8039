//! `cargo xtask test`: runs all tests.

use std::ffi::OsString;
use std::time::Duration;

use anyhow::Result;

use crate::job::{self, Job};
use crate::kernel::KernelChoice;
use crate::progress::Left;
use crate::runner::Runner;
use crate::{guest, prove};

/// Enough for all scenarios under emulation on a slow host.
const TIMEOUT: Duration = Duration::from_secs(1800);

/// The time limit for the workspace's own tests: mostly for the build.
const HOST_LIMIT: Duration = Duration::from_secs(3600);

/// The kernels if none is named, and what runs in each. The samples do not run on the oldest kernel: they would
/// take longer than everything else, and the tests that they are samples of run on the others.
const DEFAULT: [(&str, &[&str]); 3] =
    [("6.12", &[]), ("6.1", &[]), ("5.10", &["--without-samples"])];

/// Runs the workspace's tests, then the scenarios in each kernel. Continues after a failure and prints a summary.
pub(crate) fn run(kernels: &[KernelChoice], filter: &[OsString]) -> Result<u8> {
    let kernels: Vec<(KernelChoice, &[&str])> = match kernels {
        [] => DEFAULT
            .map(|(series, options)| (KernelChoice::Series(series.to_owned()), options))
            .to_vec(),
        named => named.iter().map(|kernel| (kernel.clone(), [].as_slice())).collect(),
    };
    let mut runner = Runner::new("test", true)?;
    let mut tests = job::cargo();
    tests.args(["test", "--workspace"]);
    let mut left_out = prove::with_checks_left_out();
    left_out.args(["--", "--nocapture"]).args(prove::LEFT_OUT);
    let on_host = [("workspace", tests), ("checks-left-out", left_out)];
    let on_host =
        on_host.map(|(name, command)| Job { name: name.to_owned(), command, limit: HOST_LIMIT });
    let mut in_guests = Vec::new();
    for (kernel, options) in &kernels {
        let mut command: Vec<OsString> = vec!["uverbs-lab".into(), "scenarios".into()];
        command.extend(options.iter().map(OsString::from));
        command.extend_from_slice(filter);
        in_guests.push(job::in_guest("scenarios", kernel, TIMEOUT, &[], command)?);
    }
    let later = runner.expect(&in_guests, 1);
    let mut outcomes = runner.run(on_host.into(), 1, later)?;
    // If the programs for the guests cannot be built, no kernel is booted: older programs would be tested.
    let built = guest::build();
    if built.is_ok() {
        outcomes.extend(runner.run(in_guests, 1, Left::default())?);
    }
    // Once more at the end: a long run's output may be kept in part only.
    for outcome in outcomes.iter().filter(|outcome| !outcome.passed()) {
        println!("{}:\n{}", outcome.name, runner.excerpt(&outcome.name));
    }
    for outcome in &outcomes {
        println!("{}", outcome.line());
    }
    if let Err(error) = &built {
        println!("the guest's programs: FAILED: {error:#}");
    }
    Ok(u8::from(built.is_err() || outcomes.iter().any(|outcome| !outcome.passed())))
}
