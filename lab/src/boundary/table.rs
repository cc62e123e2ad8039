//! What came of each execution.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::mutation::Mutation;
use super::program::Program;
use super::world::Kind;

/// One execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Row {
    pub(super) program: Program,
    pub(super) kind: Kind,
    pub(super) mutation: Mutation,
    pub(super) at: usize,
}

#[derive(Default)]
pub(super) struct Table {
    /// With the call that was the boundary.
    rows: BTreeMap<Row, (String, String)>,
    pub(super) took: Duration,
}

/// What its programs did is not what was asked for, or the program or the lab did not live to tell.
fn is_wrong(outcome: &str) -> bool {
    outcome.starts_with("WRONG")
}

impl Table {
    /// Notes what came of one execution, and shows it at once: one line of fields between tabs. Without
    /// `show` only what is wrong.
    pub(super) fn add(&mut self, show: bool, row: Row, call: String, outcome: String) {
        let outcome = outcome.replace(['\n', '\t'], " ");
        if show || is_wrong(&outcome) {
            let (program, kind) = (row.program.name(), row.kind.name());
            println!("row\t{program}\t{}\t{call}\t{kind}\t{:?}\t{outcome}", row.at, row.mutation);
        }
        self.rows.insert(row, (call, outcome));
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    fn wrong(&self) -> usize {
        self.rows.values().filter(|(_, outcome)| is_wrong(outcome)).count()
    }

    pub(super) fn all_right(&self) -> Result<()> {
        ensure!(!self.rows.is_empty(), "nothing was run");
        ensure!(self.wrong() == 0, "{} wrong", self.wrong());
        Ok(())
    }

    /// The control is there to be wrong, but in no other way than this.
    pub(super) fn caught(&self) -> Result<()> {
        let caught = self.rows.values().filter(|(_, outcome)| outcome == "WRONG: another device");
        let caught = caught.count();
        ensure!(caught > 0, "libibverbs was not caught: the boundaries prove nothing");
        ensure!(caught == self.wrong(), "the control is wrong in other ways than the known one");
        Ok(())
    }

    /// One line for each program, device type and mutation, with the outcomes counted.
    pub(super) fn summary(&self) {
        let mut counts: BTreeMap<_, BTreeMap<&str, usize>> = BTreeMap::new();
        for (row, (_, outcome)) in &self.rows {
            let outcomes = counts.entry((row.program, row.kind, row.mutation)).or_default();
            *outcomes.entry(outcome).or_default() += 1;
        }
        for ((program, kind, mutation), outcomes) in counts {
            let outcomes: Vec<_> = outcomes.iter().map(|(what, n)| format!("{what} {n}")).collect();
            let (program, kind) = (program.name(), kind.name());
            println!("summary\t{program}\t{kind}\t{mutation:?}\t{}", outcomes.join(", "));
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
