//! The outcome of each execution.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::plan::{Happens, Place};
use super::program::Program;
use super::trace::Point;

/// One execution.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) place: Place,
    pub(super) happens: Happens,
    /// The calls before which it happened.
    pub(super) at: Vec<Point>,
}

#[derive(Default)]
pub(super) struct Table {
    /// With the call that was the boundary.
    rows: BTreeMap<Row, (String, String)>,
    pub(super) took: Duration,
}

/// Whether the programs did something else than they should, or the program or the lab did not live to report.
fn is_wrong(outcome: &str) -> bool {
    outcome.starts_with("WRONG")
}

impl Table {
    /// Records the outcome of one execution and prints it at once, as one line of fields separated by tabs. Without
    /// `show`, prints only wrong outcomes.
    pub(super) fn add(&mut self, show: bool, row: Row, call: String, outcome: String) {
        let outcome = outcome.replace(['\n', '\t'], " ");
        if show || is_wrong(&outcome) {
            let Place { program, kind, scene } = &row.place;
            let (program, kind, scene) = (program.name(), kind.name(), scene.name());
            let at: Vec<String> = row.at.iter().map(Point::to_string).collect();
            let (at, happens) = (at.join(","), row.happens.name());
            println!("row\t{program}\t{at}\t{call}\t{kind}\t{scene}\t{happens}\t{outcome}");
        }
        self.rows.insert(row, (call, outcome));
    }

    fn wrong(&self) -> usize {
        self.rows.values().filter(|(_, outcome)| is_wrong(outcome)).count()
    }

    pub(super) fn all_right(&self) -> Result<()> {
        ensure!(!self.rows.is_empty(), "nothing was run");
        ensure!(self.wrong() == 0, "{} wrong", self.wrong());
        Ok(())
    }

    /// Checks a control: each of its programs must be wrong, and in no other way than this.
    pub(super) fn caught(&self, programs: &[Program]) -> Result<()> {
        let caught =
            self.rows.iter().filter(|(_, (_, outcome))| outcome == "WRONG: another device");
        let caught: Vec<_> = caught.map(|(row, _)| row.place.program).collect();
        for program in programs {
            let name = program.name();
            ensure!(
                caught.contains(program),
                "{name} was not caught: the boundaries prove nothing"
            );
        }
        let caught = caught.len();
        ensure!(caught == self.wrong(), "the control is wrong in other ways than the known one");
        Ok(())
    }

    /// One line for each program, device type and mutation, with the outcomes counted.
    pub(super) fn summary(&self) {
        let mut counts: BTreeMap<_, BTreeMap<&str, usize>> = BTreeMap::new();
        for (row, (_, outcome)) in &self.rows {
            let outcomes = counts.entry((row.place, row.happens)).or_default();
            *outcomes.entry(outcome).or_default() += 1;
        }
        for ((place, happens), outcomes) in counts {
            let outcomes: Vec<_> = outcomes.iter().map(|(what, n)| format!("{what} {n}")).collect();
            let (program, kind, scene) =
                (place.program.name(), place.kind.name(), place.scene.name());
            let (happens, outcomes) = (happens.name(), outcomes.join(", "));
            println!("summary\t{program}\t{kind}\t{scene}\t{happens}\t{outcomes}");
        }
        println!("    {}", self.count());
    }

    pub(super) fn count(&self) -> String {
        let reached = self.rows.values().filter(|(_, outcome)| outcome != "not reached").count();
        let (all, wrong) = (self.rows.len(), self.wrong());
        let seconds = self.took.as_secs_f64();
        format!(
            "{reached} executions, {wrong} wrong, {} not reached, {seconds:.0} s",
            all - reached
        )
    }
}
