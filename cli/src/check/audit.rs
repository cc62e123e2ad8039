//! What was checked and what was found, as text, as JSON and as an exit status.

use serde::Serialize;
use serde_json::Value;

use crate::output::{BAD, Failure, GOOD, WARN, up_to_five};
use crate::table::{Cell, Table};

use super::seen::Seen;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    /// Something cannot work.
    Error,
    /// Something could not be looked at.
    Unknown,
    /// Something is not as it should be.
    Warning,
}

impl Severity {
    /// All, the most important first.
    pub(super) const ALL: [Self; 3] = [Self::Error, Self::Unknown, Self::Warning];

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Unknown => "unknown",
            Self::Warning => "warning",
        }
    }
}

/// Something that is wrong, and what to do about it.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) subject: String,
    pub(super) message: String,
}

/// Something that is worth knowing, and not wrong.
#[derive(Debug, Serialize)]
pub(super) struct Info {
    pub(super) subject: String,
    pub(super) message: String,
}

/// The result of opening a device.
#[derive(Debug, Serialize)]
pub(super) struct OpenAttempt {
    pub(super) device: String,
    pub(super) proven: bool,
    /// Why it is not, as `--json` prints an error.
    pub(super) error: Option<Value>,
}

/// What was checked, and what was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Audit {
    pub(super) findings: Vec<Finding>,
    pub(super) info: Vec<Info>,
    /// What was checked and is right.
    pub(super) checked: Vec<String>,
    /// Null where no device was to be opened.
    pub(super) opens: Option<Vec<OpenAttempt>>,
    /// What was seen that a container has and a host does not.
    pub(super) container: Vec<String>,
    /// Why there is no device to check.
    #[serde(skip)]
    pub(super) no_devices: Option<String>,
    /// The devices, for the metrics; `None` where they could not be listed.
    #[serde(skip)]
    pub(super) seen: Option<Seen>,
}

impl Audit {
    pub(super) fn fine(&mut self, what: impl Into<String>) {
        self.checked.push(what.into());
    }

    pub(super) fn found(
        &mut self,
        severity: Severity,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) {
        let (subject, message) = (subject.into(), message.into());
        self.findings.push(Finding { severity, subject, message });
    }

    pub(super) fn error(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.found(Severity::Error, subject, message);
    }

    /// Something could not be looked at, so that nothing is known about it.
    pub(super) fn unknown(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.found(Severity::Unknown, subject, message);
    }

    /// The same, of a failure.
    pub(super) fn could_not_look(&mut self, subject: impl Into<String>, why: impl Into<Failure>) {
        self.unknown(subject, why.into().to_string());
    }

    pub(super) fn warning(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.found(Severity::Warning, subject, message);
    }

    pub(super) fn info(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.info.push(Info { subject: subject.into(), message: message.into() });
    }

    /// How many findings have that severity.
    pub(super) fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// The severity that decides the exit status; warnings do so only where they are to fail.
    pub(super) fn worst(&self, do_warnings_fail: bool) -> Option<Severity> {
        let fails = |severity: &Severity| do_warnings_fail || *severity != Severity::Warning;
        Severity::ALL.into_iter().filter(fails).find(|severity| self.count(*severity) > 0)
    }

    #[cfg(test)]
    pub(super) fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

/// The findings, errors first, and a line about the rest; or, in full, the rest.
pub(super) fn render(audit: &Audit, in_full: bool) -> String {
    let mut table = Table::plain(0);
    for severity in Severity::ALL {
        let style = if severity == Severity::Warning { WARN } else { BAD };
        for finding in audit.findings.iter().filter(|finding| finding.severity == severity) {
            let text = format!("{}: {}", finding.subject, finding.message);
            table.row([Cell::styled(severity.word(), style), text.into()]);
        }
    }
    if in_full {
        for info in &audit.info {
            table.row(["info".into(), format!("{}: {}", info.subject, info.message).into()]);
        }
        for what in &audit.checked {
            table.row([Cell::styled("ok", GOOD), what.into()]);
        }
    } else {
        table.row([Cell::styled("ok", GOOD), rest(audit).into()]);
    }
    table.render()
}

/// What is not wrong, in a line.
pub(super) fn rest(audit: &Audit) -> String {
    let passed = match audit.checked.len() {
        1 => "1 check passed".to_owned(),
        count => format!("{count} checks passed"),
    };
    if let Some(words) = &audit.no_devices {
        return format!("{passed} (-v prints them); {words}");
    }
    let subjects: Vec<_> = audit.info.iter().map(|info| &info.subject).collect();
    match subjects.is_empty() {
        true => format!("{passed} (-v prints them)"),
        false => format!("{passed}, with information on {} (-v prints all)", up_to_five(subjects)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_documented_keys() {
        let mut audit = Audit::default();
        audit.fine("something");
        audit.info("memlock", "little");
        assert!(audit.is_good());
        audit.warning("node", "odd");
        audit.error("host", "bad");
        audit.unknown("sysfs", "not there");
        audit.container.push("/dev is tmpfs".to_owned());
        let expected = serde_json::json!({
            "findings": [
                { "severity": "warning", "subject": "node", "message": "odd" },
                { "severity": "error", "subject": "host", "message": "bad" },
                { "severity": "unknown", "subject": "sysfs", "message": "not there" },
            ],
            "info": [{ "subject": "memlock", "message": "little" }],
            "checked": ["something"],
            "opens": null,
            "container": ["/dev is tmpfs"],
        });
        assert_eq!(serde_json::to_value(&audit).expect("JSON"), expected);
    }

    #[test]
    fn what_was_seen_to_be_wrong_decides_before_what_was_not_seen() {
        let mut audit = Audit::default();
        assert_eq!((audit.worst(false), audit.worst(true)), (None, None));
        audit.warning("node", "odd");
        assert_eq!((audit.worst(false), audit.worst(true)), (None, Some(Severity::Warning)));
        audit.unknown("sysfs", "not there");
        let unknown = Some(Severity::Unknown);
        assert_eq!((audit.worst(false), audit.worst(true)), (unknown, unknown));
        audit.error("host", "bad");
        let error = Some(Severity::Error);
        assert_eq!((audit.worst(false), audit.worst(true)), (error, error));
    }

    #[test]
    fn findings_come_first_and_the_rest_is_a_line() {
        let mut audit = Audit::default();
        let text = |audit: &Audit, in_full| {
            anstream::adapter::strip_str(&render(audit, in_full)).to_string()
        };
        for number in 0..1000 {
            audit.fine(format!("node {number}"));
        }
        assert_eq!(text(&audit, false), "ok  1000 checks passed (-v prints them)\n");
        audit.info("memlock", "little");
        audit.warning("node", "odd");
        audit.unknown("sysfs", "not there");
        audit.error("host", "bad");
        let findings = "error    host: bad\nunknown  sysfs: not there\nwarning  node: odd\n";
        let rest = "ok       1000 checks passed, with information on memlock (-v prints all)\n";
        assert_eq!(text(&audit, false), format!("{findings}{rest}"));
        let full = text(&audit, true);
        let all = format!("{findings}info     memlock: little\nok       node 0\n");
        assert!(full.starts_with(&all) && full.lines().count() == 1004, "{full}");
    }
}
