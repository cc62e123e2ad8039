//! Evidence, as text and as JSON.

use serde::Serialize;
use uverbs::{Check, Evidence};

use crate::output::{BAD, GOOD};
use crate::table::{Cell, Table};

/// How wide a value may be, so that a line has 80 columns at most with an indent of 2. A longer one goes on in the
/// next line.
const VALUE_WIDTH: usize = 20;

/// A line for each check. Where one did not hold, the next line shows what it expected.
pub(crate) fn evidence_table(checks: &[Check], indent: usize) -> Table {
    let mut table = Table::new(indent, &["STEP", "CHECK", "FOUND", ""]);
    for check in checks {
        let (step, what) = (check.step.name(), check.what());
        let found = check.found.to_string();
        if check.held() {
            rows(&mut table, step, what, &found, Cell::styled("ok", GOOD));
        } else {
            rows(&mut table, step, what, &found, Cell::styled("NO", BAD));
            rows(&mut table, "", "  expected", &check.expected.to_string(), "".into());
        }
    }
    table
}

fn rows(table: &mut Table, step: &str, what: &str, value: &str, held: Cell) {
    let characters: Vec<_> = value.chars().collect();
    let mut parts = characters.chunks(VALUE_WIDTH).map(String::from_iter);
    table.row([step.into(), what.into(), parts.next().unwrap_or_default().into(), held]);
    for part in parts {
        table.row(["".into(), "".into(), part.into()]);
    }
}

/// One check, its values as text.
#[derive(Debug, Serialize)]
pub(crate) struct CheckJson {
    id: &'static str,
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
            id: check.id.name(),
            step: check.step.name(),
            step_number: check.step.number(),
            what: check.what(),
            expected: check.expected.to_string(),
            found: check.found.to_string(),
            held: check.held(),
        }
    }
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use uverbs::sim::{DeviceSpec, Machine};
    use uverbs::{Host, Registry};

    use super::*;

    fn checks() -> Vec<Check> {
        let machine = Machine::new();
        let name = [b'n'; 63];
        machine.add(DeviceSpec::new(name)).expect("added");
        let host = Host::simulated(&machine).expect("a host");
        let devices = Registry::new(host).devices().expect("a list");
        let context = devices.by_name(name).expect("listed").open().expect("opened");
        context.evidence().checks().to_vec()
    }

    fn text(checks: &[Check]) -> String {
        let text = evidence_table(checks, 2).render();
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn a_check_that_failed_is_marked() {
        let mut checks = checks()[..3].to_vec();
        checks[2].found = uverbs::Value::Number(7);
        let text = text(&checks);
        let lines: Vec<Vec<_>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        let ends: Vec<_> = lines.iter().map(|words| words.last().copied()).collect();
        assert_eq!(
            ends,
            [Some("FOUND"), Some("ok"), Some("ok"), Some("NO"), Some("231:192")],
            "{text}"
        );
        assert_eq!(lines[3][lines[3].len() - 2], "7", "{text}");
        assert_eq!(lines[4][0], "expected", "{text}");
        assert!(!CheckJson::from(&checks[2]).held && CheckJson::from(&checks[1]).held);
    }

    #[test]
    fn it_fits_a_terminal_of_80_columns() {
        let mut checks = checks();
        // The widest that there are beside these.
        let mut more = checks[0].clone();
        more.id = uverbs::CheckId::Context;
        more.found = uverbs::Value::Time(1_764_119_999, 123_456_789);
        more.step = uverbs::Step::Revalidate;
        checks.push(more);
        let text = text(&checks);
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let name: String = text
            .lines()
            .filter_map(|line| {
                line.split_whitespace().find(|word| word.bytes().all(|byte| byte == b'n'))
            })
            .collect();
        assert_eq!(name.len() % 63, 0, "{text}");
        assert!(!name.is_empty(), "{text}");
    }
}
