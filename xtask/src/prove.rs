//! `cargo xtask prove`: the full versions of all proofs, each with a time limit and its own log.

use std::fs;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;

use crate::job::{self, Job, cargo};
use crate::kernel::KernelChoice;
use crate::progress::Left;
use crate::runner::Runner;
use crate::{guest, paths};

/// A proof. `cargo xtask test` runs a sample of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Proof {
    /// Every mutation before every kernel call, on the simulated kernel
    Explore,
    /// The same with each check left out in turn
    LeaveOut,
    /// Real mutations at each system call
    Boundary,
    /// Boundaries, soak and comparison with the library's first rule, which each of them has to find wrong
    OldRule,
    /// The simulated kernel compared with real ones
    Compare,
    /// Devices opened while they are replaced, 3,000 times
    Soak,
    /// Programs on other crates, which are built for it: it takes cmake, libclang and headers of libnl and libibverbs
    OtherCrates,
    /// The fuzz targets
    Fuzz,
}

/// Hours, under emulation.
const GUEST_LIMIT: Duration = Duration::from_secs(6 * 3600);
const EXPLORE_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// The time limit for a fuzz target without the fuzzing: mostly for the build.
const FUZZ_BUILD: Duration = Duration::from_secs(1800);

/// The proofs to run, and their settings.
pub(crate) struct Plan {
    /// If empty, all proofs.
    pub(crate) proofs: Vec<Proof>,
    pub(crate) kernels: Vec<KernelChoice>,
    pub(crate) fuzz_seconds: u64,
    /// How many guests run at the same time.
    pub(crate) guests: usize,
}

/// Runs the proofs. Continues after a failure and prints a summary. Guests run at the same time. A proof on the
/// host has all of the processors.
pub(crate) fn run(plan: &Plan) -> Result<u8> {
    let proofs = match &plan.proofs[..] {
        [] => Proof::value_variants(),
        named => named,
    };
    let kernels = match &plan.kernels[..] {
        [] => ["6.12", "6.1", "newest"].map(str::parse).into_iter().collect::<Result<Vec<_>>>()?,
        named => named.to_vec(),
    };
    let mut runner = Runner::new("prove", false)?;
    let (mut on_host, mut in_guests, mut unmade) = (Vec::new(), Vec::new(), Vec::new());
    let mut built = false;
    for proof in proofs {
        let jobs = match proof {
            Proof::Explore | Proof::LeaveOut => Ok(Vec::new()),
            Proof::Fuzz => fuzz(plan.fuzz_seconds),
            _ => build(&mut built).and_then(|()| proof.in_guests(&kernels)),
        };
        match (proof, jobs) {
            (Proof::Explore, _) => on_host.push(explore()),
            (Proof::LeaveOut, _) => on_host.push(leave_out()),
            (Proof::Fuzz, Ok(jobs)) => on_host.extend(jobs),
            (_, Ok(jobs)) => in_guests.extend(jobs),
            (_, Err(error)) => unmade.push(format!("{proof:?}: FAILED: {error:#}")),
        }
    }
    let width = plan.guests.min(thread::available_parallelism().map_or(1, usize::from));
    let later = runner.expect(&in_guests, width);
    let mut outcomes = runner.run(on_host, 1, later)?;
    outcomes.extend(runner.run(in_guests, width, Left::default())?);
    for outcome in &outcomes {
        println!("{}", outcome.line());
    }
    for line in &unmade {
        println!("{line}");
    }
    println!("the logs are in {}", runner.logs().display());
    Ok(u8::from(!unmade.is_empty() || outcomes.iter().any(|outcome| !outcome.passed())))
}

impl Proof {
    /// The jobs that run in each kernel.
    fn in_guests(self, kernels: &[KernelChoice]) -> Result<Vec<Job>> {
        // Each kernel runs another part of the repetitive executions at the boundaries.
        const PARTS: usize = 3;
        if self == Self::OldRule {
            guest::build_leaving_out()?;
        }
        let others = match self {
            Self::OtherCrates => guest::build_other_crates()?,
            _ => Vec::new(),
        };
        let others: Vec<&str> = others.iter().flat_map(|path| ["--add", path]).collect();
        let mut jobs = Vec::new();
        for (number, kernel) in kernels.iter().enumerate() {
            let spread = format!("{}/{PARTS}", number % PARTS + 1);
            let mut add = |name: &str, command: &[&str]| -> Result<()> {
                jobs.push(job::in_guest(name, kernel, GUEST_LIMIT, &others, command)?);
                Ok(())
            };
            match self {
                Self::Boundary => {
                    let options = ["--full", "--spread", &spread];
                    add("boundary", &[&[LAB, "boundary"], &options[..]].concat())?;
                    add("guarded", &[&[LAB, "boundary", "--guarded"], &options[..]].concat())?;
                }
                Self::Compare => add("compare", &[LAB, "compare", "--full"])?,
                Self::Soak => add("soak", &[LAB, "soak", "--replacements", "3000"])?,
                Self::OtherCrates => add("other-crates", &[LAB, "other-crates"])?,
                Self::OldRule => {
                    for search in ["boundary", "soak", "compare"] {
                        let name = format!("old-rule-{search}");
                        add(&name, &[guest::LEAVING_OUT, search, "--old-rule"])?;
                    }
                }
                Self::Explore | Self::LeaveOut | Self::Fuzz => {}
            }
        }
        Ok(jobs)
    }
}

/// Builds the programs for the guests, once.
fn build(built: &mut bool) -> Result<()> {
    if !*built {
        guest::build()?;
        *built = true;
    }
    Ok(())
}

fn explore() -> Job {
    let mut command = cargo();
    command.env("UVERBS_EXPLORE", "full").args(["test", "--release", "--package", "uverbs"]);
    command.args(["--features", "ibverbs,sim", "--test", "explore", "--test", "follow"]);
    command.args(["--", "--nocapture"]);
    Job { name: "explore".to_owned(), command, limit: EXPLORE_LIMIT }
}

fn leave_out() -> Job {
    let mut command = with_checks_left_out();
    command.env("UVERBS_EXPLORE", "full").arg("--release");
    command.args(["--", "--nocapture"]).args(LEFT_OUT);
    Job { name: "leave-out".to_owned(), command, limit: EXPLORE_LIMIT }
}

/// The tests that leave checks out.
pub(crate) const LEFT_OUT: [&str; 5] = [
    "each_needed_check_is_found_necessary",
    "each_part_of_the_guard_is_found_necessary",
    "each_part_earns_its_place",
    "the_old_rule_is_found_wrong",
    "the_model_sees_a_wrong_device",
];

/// `cargo test` of a library whose checks can be left out.
pub(crate) fn with_checks_left_out() -> Command {
    let mut command = cargo();
    command.env("RUSTFLAGS", "--cfg uverbs_leave_out").arg("test");
    // With other flags, everything would be rebuilt each time.
    command.arg("--target-dir").arg(paths::target().join("leave-out"));
    command.args(["--package", "uverbs", "--features", "ibverbs,sim", "--test", "explore"]);
    command.args(["--test", "follow", "--test", "fuzzed"]);
    command
}

fn fuzz(seconds: u64) -> Result<Vec<Job>> {
    // Through the PATH: `+nightly` belongs to rustup, which the cargo that runs this program does not know.
    let nightly = || {
        let mut command = Command::new("cargo");
        command.current_dir(paths::workspace()).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
        command.args(["+nightly", "fuzz"]);
        command
    };
    let output = nightly().arg("list").stderr(Stdio::inherit()).output()?;
    if !output.status.success() {
        bail!("cargo +nightly fuzz list: {}: is cargo-fuzz installed?", output.status);
    }
    let targets = String::from_utf8(output.stdout)?;
    let jobs: Vec<Job> = targets
        .lines()
        .map(|target| {
            let corpus = format!("fuzz/corpus/{target}");
            fs::create_dir_all(paths::workspace().join(&corpus))?;
            let mut command = nightly();
            command.args(["run", target, &corpus, &format!("fuzz/seeds/{target}"), "--"]);
            command.arg(format!("-max_total_time={seconds}"));
            command.args(["-verbosity=0", "-print_final_stats=1"]);
            let limit = FUZZ_BUILD + Duration::from_secs(seconds);
            Ok(Job { name: format!("fuzz-{target}"), command, limit })
        })
        .collect::<Result<_>>()?;
    if jobs.is_empty() {
        bail!("there are no fuzz targets");
    }
    Ok(jobs)
}

/// The lab's program, in the guest.
const LAB: &str = "uverbs-lab";

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// cargo runs nothing for a name that no test has, and reports success.
    #[test]
    fn the_tests_that_leave_checks_out_exist() {
        let files = ["explore/leave_out.rs", "follow/main.rs", "fuzzed/main.rs"];
        let read = |file| fs::read_to_string(paths::workspace().join("tests").join(file));
        let sources: String = files.map(|file| read(file).expect("a test")).concat();
        for name in LEFT_OUT {
            assert!(sources.contains(&format!("#[test]\nfn {name}()")), "{name} is no test");
        }
    }
}
