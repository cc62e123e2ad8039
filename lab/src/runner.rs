//! Runs scenarios: each in its own process, with a time limit, on a clean host.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::scenarios::{GROUPS, Group, PLAIN, SAMPLES, Scenario};
use crate::{functions, guest};

/// The maximum time of a scenario. Emulated kernels are slow.
const LIMIT: Duration = Duration::from_secs(240);

/// `[--group GROUP] [--without-samples] [FILTER…]`: the scenarios whose names contain one of the filters, or all.
/// Without a group, they are from every group that this guest can run, or, if there is no filter, of the plain one.
struct Selection<'a> {
    group: Option<&'a str>,
    without_samples: bool,
    filters: &'a [&'a str],
}

impl<'a> Selection<'a> {
    fn parse(mut words: &'a [&'a str]) -> Self {
        let mut group = None;
        if let ["--group", name, rest @ ..] = words {
            (group, words) = (Some(*name), rest);
        }
        let (without_samples, filters) = match words {
            ["--without-samples", rest @ ..] => (true, rest),
            filters => (false, filters),
        };
        Self { group: group.or(filters.is_empty().then_some(PLAIN)), without_samples, filters }
    }

    fn has_group(&self, group: &Group) -> bool {
        self.group.is_none_or(|name| name == group.name)
    }

    fn matching(&self, group: &Group) -> Vec<&'static str> {
        let names = group.scenarios.iter().map(|(name, _)| *name);
        names
            .filter(|name| !self.without_samples || !SAMPLES.contains(name))
            .filter(|name| self.filters.is_empty() || self.filters.iter().any(|f| name.contains(f)))
            .collect()
    }
}

/// Runs the selected scenarios.
pub(crate) fn run_all(words: &[&str]) -> ExitCode {
    let selection = Selection::parse(words);
    let mut chosen = Vec::new();
    for group in GROUPS.iter().filter(|group| selection.has_group(group)) {
        let names = selection.matching(group);
        // A group that is named has to run. Otherwise its scenarios fail, and that is right.
        if selection.group.is_some() || (group.is_possible)() {
            chosen.extend(names);
        } else if !names.is_empty() {
            println!("scenarios that need a guest with {1}: {0}", names.len(), group.option);
        }
    }
    let is_elsewhere = GROUPS.iter().any(|group| !selection.matching(group).is_empty());
    if chosen.is_empty() && selection.group.is_some() && is_elsewhere {
        println!("no scenario of this group is selected");
        return ExitCode::SUCCESS;
    }
    let kernel = guest::release();
    println!("running {} scenarios on Linux {kernel}", chosen.len());
    let (mut passed, mut failed) = (0, Vec::new());
    for name in chosen {
        let started = Instant::now();
        let outcome = clean().context("cleaning the host").and_then(|()| run_child(name));
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

fn clean() -> Result<()> {
    functions::release_all()?;
    guest::clean()
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
    let (_, scenario) = all().find(|(known, _)| *known == name).context("no such scenario")?;
    scenario()
}

/// The scenarios of every group.
pub(crate) fn all() -> impl Iterator<Item = &'static (&'static str, Scenario)> {
    GROUPS.iter().flat_map(|group| group.scenarios)
}
