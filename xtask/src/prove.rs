//! `cargo xtask prove`: the full versions of all proofs, each bounded in time, each with its own log.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal};

use crate::kernel::KernelChoice;
use crate::{guest, lab, paths};

/// A proof, of which `cargo xtask test` runs a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Proof {
    /// Every mutation before every kernel call, on the simulated kernel
    Explore,
    /// The same with each check left out in turn
    LeaveOut,
    /// Real mutations at each system call
    Boundary,
    /// Boundaries, soak and comparison against the library's first rule, which each has to find wrong
    OldRule,
    /// The simulated kernel held against real ones
    Compare,
    /// Devices opened while they are replaced, 3,000 times
    Soak,
    /// The fuzz targets
    Fuzz,
}

/// Hours, under emulation.
const GUEST_LIMIT: Duration = Duration::from_secs(6 * 3600);
const EXPLORE_LIMIT: Duration = Duration::from_secs(4 * 3600);
/// What a fuzz target may take besides fuzzing, which is mostly being built.
const FUZZ_BUILD: Duration = Duration::from_secs(1800);

/// One command with its log.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) command: Command,
    pub(crate) limit: Duration,
}

/// Runs the proofs; goes on after a failure and sums up.
pub(crate) fn run(proofs: &[Proof], kernels: &[KernelChoice], fuzz_seconds: u64) -> Result<u8> {
    let proofs = match proofs {
        [] => Proof::value_variants(),
        named => named,
    };
    let kernels = match kernels {
        [] => ["6.12", "6.1", "newest"].map(str::parse).into_iter().collect::<Result<Vec<_>>>()?,
        named => named.to_vec(),
    };
    let logs = paths::target().join("prove");
    fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
    let mut summary = Vec::new();
    let mut built = false;
    for proof in proofs {
        let jobs = match proof {
            Proof::Explore => Ok(vec![explore()]),
            Proof::LeaveOut => Ok(vec![leave_out()]),
            Proof::Fuzz => fuzz(fuzz_seconds),
            Proof::Boundary => boundary(&kernels, &mut built),
            Proof::OldRule => guest::build_leaving_out().and_then(|()| {
                let mut jobs = Vec::new();
                for search in ["boundary", "soak", "compare"] {
                    let command = [guest::LEAVING_OUT, search, "--old-rule"];
                    jobs.extend(in_guests(
                        &format!("old-rule-{search}"),
                        &command,
                        &kernels,
                        &mut built,
                    )?);
                }
                Ok(jobs)
            }),
            Proof::Compare => {
                in_guests("compare", &[LAB, "compare", "--full"], &kernels, &mut built)
            }
            Proof::Soak => {
                let command = [LAB, "soak", "--replacements", "3000"];
                in_guests("soak", &command, &kernels, &mut built)
            }
        };
        match jobs {
            Ok(jobs) => summary.extend(jobs.into_iter().map(|job| outcome(job, &logs))),
            Err(error) => summary.push((false, format!("{proof:?}: FAILED: {error:#}"))),
        }
    }
    for (_, line) in &summary {
        println!("{line}");
    }
    println!("the logs are in {}", logs.display());
    Ok(u8::from(summary.iter().any(|(passed, _)| !passed)))
}

/// The cargo that started this program, or the one of the PATH.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(paths::workspace());
    command
}

fn explore() -> Job {
    let mut command = cargo();
    command.env("UVERBS_EXPLORE", "full").args(["test", "--release", "--package", "uverbs"]);
    command.args(["--features", "sim", "--test", "explore", "--", "--nocapture"]);
    Job { name: "explore".to_owned(), command, limit: EXPLORE_LIMIT }
}

fn leave_out() -> Job {
    let mut command = with_checks_left_out();
    command.env("UVERBS_EXPLORE", "full").arg("--release");
    command.args(["--", "--nocapture"]).args(LEFT_OUT);
    Job { name: "leave-out".to_owned(), command, limit: EXPLORE_LIMIT }
}

/// The tests that leave checks out.
pub(crate) const LEFT_OUT: [&str; 3] =
    ["each_check_earns_its_place", "the_old_rule_is_found_wrong", "the_model_sees_a_wrong_device"];

/// `cargo test` of a library whose checks can be left out.
pub(crate) fn with_checks_left_out() -> Command {
    let mut command = cargo();
    command.env("RUSTFLAGS", "--cfg uverbs_leave_out").arg("test");
    // Other flags would have everything built anew each time.
    command.arg("--target-dir").arg(paths::target().join("leave-out"));
    command.args(["--package", "uverbs", "--features", "sim", "--test", "explore"]);
    command.args(["--test", "fuzzed"]);
    command
}

fn fuzz(seconds: u64) -> Result<Vec<Job>> {
    // Through the PATH: `+nightly` is rustup's, which the cargo that runs this program does not know.
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

/// A command in each kernel, through this program, whose output is then the log.
fn in_guests(
    name: &str,
    in_guest: &[&str],
    kernels: &[KernelChoice],
    built: &mut bool,
) -> Result<Vec<Job>> {
    if !*built {
        guest::build()?;
        *built = true;
    }
    let this = env::current_exe().context("finding this program")?;
    let jobs = kernels.iter().map(|kernel| {
        let mut command = Command::new(&this);
        command.args(["lab", "run", "--no-build", "--kernel"]).arg(kernel.to_string());
        command.arg("--timeout").arg(GUEST_LIMIT.as_secs().to_string());
        command.arg("--").args(in_guest);
        let kernel = kernel.to_string().replace('/', "_");
        // The guest ends first, and says so.
        let limit = GUEST_LIMIT + lab::PREPARATION;
        Job { name: format!("{name}-{kernel}"), command, limit }
    });
    Ok(jobs.collect())
}

/// Each kernel with another part of what is repetitive.
fn boundary(kernels: &[KernelChoice], built: &mut bool) -> Result<Vec<Job>> {
    const PARTS: usize = 3;
    let mut jobs = Vec::new();
    for (number, kernel) in kernels.iter().enumerate() {
        let spread = format!("{}/{PARTS}", number % PARTS + 1);
        let command = [LAB, "boundary", "--full", "--spread", &spread];
        jobs.extend(in_guests("boundary", &command, std::slice::from_ref(kernel), built)?);
    }
    Ok(jobs)
}

/// Whether a job passed, and the line that says so.
fn outcome(job: Job, logs: &Path) -> (bool, String) {
    let name = job.name.clone();
    eprintln!("xtask: {name}");
    let started = Instant::now();
    let result = run_logged(job, &logs.join(format!("{name}.log")));
    let seconds = started.elapsed().as_secs();
    match result {
        Ok(()) => (true, format!("{name}: passed ({seconds} s)")),
        Err(error) => (false, format!("{name}: FAILED ({seconds} s): {error:#}")),
    }
}

/// Runs a command within bounds; what it prints goes to our output and to the log.
pub(crate) fn run_logged(job: Job, log: &Path) -> Result<()> {
    let Job { mut command, limit, .. } = job;
    let log = File::create(log).with_context(|| format!("making {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A group, so that with cargo ends what it has started.
    let mut child = command.process_group(0).spawn()?;
    let copiers = [
        child.stdout.take().map(|pipe| copy(pipe, io::stdout(), &log)),
        child.stderr.take().map(|pipe| copy(pipe, io::stderr(), &log)),
    ];
    let status = wait(&mut child, limit)?;
    for copier in copiers.into_iter().flatten() {
        copier?.join().map_err(|_| anyhow!("copying the output failed"))?;
    }
    if !status.success() {
        bail!("{status}");
    }
    Ok(())
}

fn wait(child: &mut Child, limit: Duration) -> Result<std::process::ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            if let Some(group) = Pid::from_raw(i32::try_from(child.id())?) {
                rustix::process::kill_process_group(group, Signal::KILL)?;
            }
            child.wait()?;
            bail!("killed after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn copy(
    mut from: impl Read + Send + 'static,
    mut to: impl Write + Send + 'static,
    log: &File,
) -> Result<JoinHandle<()>> {
    let mut log = log.try_clone()?;
    Ok(thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            // When nobody reads ours any more, the log is still written.
            let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
            let _ = log.write_all(&buffer[..length]);
        }
    }))
}
