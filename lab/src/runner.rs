//! Runs scenarios: each in its own process, with a time limit, on a clean host.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::guest;
use crate::scenarios::{ALL, SAMPLES};

/// The maximum time of a scenario. Emulated kernels are slow.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs the scenarios whose names contain one of the filters, or all.
pub(crate) fn run_all(filters: &[&str]) -> ExitCode {
    let (filters, without_samples) = match filters {
        ["--without-samples", rest @ ..] => (rest, true),
        filters => (filters, false),
    };
    let chosen: Vec<_> = ALL
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !without_samples || !SAMPLES.contains(name))
        .filter(|name| filters.is_empty() || filters.iter().any(|filter| name.contains(filter)))
        .collect();
    let kernel = guest::release();
    println!("running {} scenarios on Linux {kernel}", chosen.len());
    let (mut passed, mut failed) = (0, Vec::new());
    for name in chosen {
        let started = Instant::now();
        let outcome = guest::clean().context("cleaning the host").and_then(|()| run_child(name));
        let seconds = started.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => {
                println!("scenario {name} ... ok ({seconds:.1} s)");
                passed += 1;
            }
            Err(error) => {
                println!("scenario {name} ... FAILED ({seconds:.1} s)\n{error:?}");
                failed.push(name);
            }
        }
    }
    for name in &failed {
        println!("failed on {kernel}: {name}");
    }
    println!("{passed} passed, {} failed", failed.len());
    ExitCode::from(u8::from(!failed.is_empty() || passed == 0))
}

fn run_child(name: &str) -> Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .args(["scenario", name])
        .stdin(Stdio::null())
        .spawn()
        .context("starting the scenario")?;
    let status = guest::wait(&mut child, LIMIT)?;
    if status.success() { Ok(()) } else { bail!("the scenario ended with {status}") }
}

pub(crate) fn run_one(name: &str) -> Result<()> {
    let (_, scenario) = ALL.iter().find(|(known, _)| *known == name).context("no such scenario")?;
    scenario()
}
