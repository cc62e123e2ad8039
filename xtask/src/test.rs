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

/// A boot: a group of scenarios (`lab/src/scenarios.rs`), and what its guest needs.
type Boot = (&'static str, &'static [&'static str]);

const PLAIN: Boot = ("plain", &[]);
const SRIOV: Boot = ("sriov", &["--sriov"]);
/// On one processor. Each container makes the kernel patch its jumps, which goes wrong under emulation with several
/// (`lab::is_emulators`), and two are no faster.
const CONTAINERS: Boot =
    ("containers", &["--sriov", "--containers", "--memory", "2048", "--cpus", "1"]);

/// The boots of a kernel that is named.
const BOOTS: [Boot; 3] = [PLAIN, SRIOV, CONTAINERS];

/// The kernels if none is named, the boots of each, and options for `uverbs-lab scenarios`. The samples do not run on
/// the oldest kernel: they would take longer than everything else, and the tests that they are samples of run on the
/// others. For the other groups it is too old: its hosts do not run containers as those of today do.
const DEFAULT: [(&str, &[Boot], &[&str]); 3] =
    [("6.12", &BOOTS, &[]), ("6.1", &BOOTS, &[]), ("5.10", &[PLAIN], &["--without-samples"])];

/// Runs the workspace's tests, then the scenarios in each kernel. Continues after a failure and prints a summary.
pub(crate) fn run(kernels: &[KernelChoice], filter: &[OsString]) -> Result<u8> {
    let kernels: Vec<(KernelChoice, &[Boot], &[&str])> = match kernels {
        [] => DEFAULT
            .map(|(series, boots, options)| {
                (KernelChoice::Series(series.to_owned()), boots, options)
            })
            .to_vec(),
        named => named.iter().map(|kernel| (kernel.clone(), &BOOTS[..], [].as_slice())).collect(),
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
    for (kernel, boots, options) in &kernels {
        for (group, guest) in *boots {
            let words = ["uverbs-lab", "scenarios", "--group", group];
            let mut command: Vec<OsString> =
                words.iter().chain(*options).map(OsString::from).collect();
            command.extend_from_slice(filter);
            let name = format!("scenarios-{group}");
            in_guests.push(job::in_guest(&name, kernel, TIMEOUT, guest, command)?);
        }
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
