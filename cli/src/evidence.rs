//! Evidence, as text and as JSON.

use serde::Serialize;
use uverbs::{Check, Evidence};

use crate::output::{BAD, GOOD};
use crate::table::{Cell, Table};

/// A line for each check; those that did not hold are marked.
pub(crate) fn evidence_table(checks: &[Check], indent: usize) -> Table {
    let mut table = Table::new(indent, &["STEP", "", "CHECK", "EXPECTED", "FOUND", ""]);
    for check in checks {
        let (found, held) = if check.held() {
            ((&check.found).into(), Cell::styled("ok", GOOD))
        } else {
            (Cell::styled(check.found.to_string(), BAD), Cell::styled("FAILED", BAD))
        };
        table.row([
            check.step.number().into(),
            check.step.name().into(),
            check.what.into(),
            (&check.expected).into(),
            found,
            held,
        ]);
    }
    table
}

/// One check. What was compared is text.
#[derive(Debug, Serialize)]
pub(crate) struct CheckJson {
    step: &'static str,
    step_number: u8,
    what: &'static str,
    expected: String,
    found: String,
    held: bool,
}

impl CheckJson {
    pub(crate) fn all(evidence: &Evidence) -> Box<[Self]> {
        evidence.checks().iter().map(Self::from).collect()
    }
}

impl From<&Check> for CheckJson {
    fn from(check: &Check) -> Self {
        Self {
            step: check.step.name(),
            step_number: check.step.number(),
            what: check.what,
            expected: check.expected.to_string(),
            found: check.found.to_string(),
            held: check.held(),
        }
    }
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use uverbs::sim::{DeviceSpec, Machine};
    use uverbs::{Host, Policy, Registry};

    use super::*;

    #[test]
    fn a_check_that_failed_is_marked() {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        let host = Host::simulated(&machine, Policy::new()).expect("a host");
        let devices = Registry::new(host).devices().expect("a list");
        let context = devices.by_name("rxe0").expect("listed").open().expect("opened");
        let mut checks = context.evidence().checks()[..3].to_vec();
        checks[2].found = uverbs::Value::Number(7);
        let text = evidence_table(&checks, 0).render();
        let text = anstream::adapter::strip_str(&text).to_string();
        let ends: Vec<_> = text.lines().map(|line| line.split_whitespace().last()).collect();
        assert_eq!(ends, [Some("FOUND"), Some("ok"), Some("ok"), Some("FAILED")], "{text}");
        assert!(text.lines().last().is_some_and(|line| line.contains(" 7 ")), "{text}");
        assert!(!CheckJson::from(&checks[2]).held && CheckJson::from(&checks[1]).held);
    }
}
