//! `uverbs check`: what is wrong with this host, for programs that open verbs devices.
//!
//! Only directories, the netlink socket and files in `/proc` and `/sys` are opened. A node is looked at without
//! opening it, unless `--open` is given.

mod host;
mod nodes;

use std::collections::BTreeSet;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Devices, Host, Registry};

use crate::absent::Absent;
use crate::output::{BAD, Failure, GOOD, JsonArgs, Out, WARN, up_to_five};
use crate::table::{Cell, Table};
use crate::verbose;

/// Check the host: kernel, netlink, limits, devices and their nodes.
///
/// Errors and warnings are printed, and then one line about the rest; -v prints the rest, too. Information, such as a
/// limit at its default or a device that was not given to this container, does not change the exit status.
/// Without --open no node is opened: a node that looks right may still lead to another device.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Open each device, and prove that it is the one that is listed
    ///
    /// This allocates a context on each device for a moment. A device whose driver does not disassociate cannot be
    /// removed during that moment.
    #[arg(long)]
    open: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Something cannot work.
    Error,
    /// Something is not as it should be.
    Warning,
}

/// Something that is wrong, and what to do about it.
#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    subject: String,
    message: String,
}

/// Something that is worth knowing, and not wrong.
#[derive(Debug, Serialize)]
struct Info {
    subject: String,
    message: String,
}

/// The result of opening a device.
#[derive(Debug, Serialize)]
struct OpenAttempt {
    device: String,
    proven: bool,
    /// Why it is not.
    error: Option<Failure>,
}

/// What was checked, and what was found.
#[derive(Debug, Default, Serialize)]
struct Audit {
    findings: Vec<Finding>,
    info: Vec<Info>,
    /// What was checked and is right.
    checked: Vec<String>,
    /// Null where no device was to be opened.
    opens: Option<Vec<OpenAttempt>>,
    /// Why there is no device to check.
    #[serde(skip)]
    no_devices: Option<String>,
}

impl Audit {
    fn fine(&mut self, what: impl Into<String>) {
        self.checked.push(what.into());
    }

    fn found(
        &mut self,
        severity: Severity,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) {
        let (subject, message) = (subject.into(), message.into());
        self.findings.push(Finding { severity, subject, message });
    }

    fn error(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.found(Severity::Error, subject, message);
    }

    fn warning(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.found(Severity::Warning, subject, message);
    }

    fn info(&mut self, subject: impl Into<String>, message: impl Into<String>) {
        self.info.push(Info { subject: subject.into(), message: message.into() });
    }

    fn is_good(&self) -> bool {
        self.findings.is_empty()
    }
}

pub(crate) fn run(args: &CheckArgs, out: &mut Out) -> Result<bool, Failure> {
    let audit = audit(args.open);
    if args.json.json {
        out.json(&audit)?;
    } else {
        out.text(&render(&audit, verbose::is_on()))?;
    }
    Ok(audit.is_good())
}

fn audit(open: bool) -> Audit {
    let mut audit = Audit { opens: open.then(Vec::new), ..Audit::default() };
    host::kernel(&mut audit);
    host::memlock(&mut audit);
    // A /sys that is not sysfs is a finding, and no reason not to check the rest.
    match Host::builder().allow_foreign_sys(true).build() {
        Err(error) => audit.error("host", Failure::from(error).to_string()),
        Ok(host) => {
            audit.fine("openat2 can be used");
            let is_sysfs = match Host::open() {
                Ok(_) => true,
                Err(error) => {
                    audit.error("sysfs", Failure::from(error).to_string());
                    false
                }
            };
            if is_sysfs {
                audit.fine("/sys is sysfs");
            }
            match Registry::new(host.clone()).devices() {
                // That there is nothing in it does not mean anything.
                Ok(devices) if devices.is_empty() && !is_sysfs => {}
                Ok(devices) => {
                    let unusable = look_at_devices(&mut audit, &host, &devices);
                    open_devices(&mut audit, &devices, &unusable);
                }
                Err(error) => audit.error("devices", Failure::from(error).to_string()),
            }
        }
    }
    audit
}

/// Checks the devices. Returns the numbers of those that are known not to open here, for which there is a finding
/// or information already.
fn look_at_devices(audit: &mut Audit, host: &Host, devices: &Devices) -> BTreeSet<u32> {
    let faults = devices.faults().count();
    for fault in devices.faults() {
        let subject = fault.device().unwrap_or("device").to_owned();
        audit.error(
            subject,
            format!("it cannot be listed: {}", Failure::from(fault).without_device()),
        );
    }
    nodes::orphans(audit, devices);
    let absent = Absent::look(devices);
    if devices.is_empty() && faults == 0 {
        report_no_devices(audit, &absent);
        return BTreeSet::new();
    }
    if let Some(words) = absent.in_words() {
        audit.info("devices", words);
    }
    let elsewhere = host::netlink(audit, host, devices);
    audit.fine(format!("{} of {} devices can be listed", devices.len(), devices.len() + faults));
    for device in devices {
        look_at_name(audit, device);
        look_at_provider(audit, device);
    }
    let here: Vec<_> =
        devices.iter().filter(|device| !elsewhere.contains(&device.uverbs_number())).collect();
    let mounts = nodes::mounts(audit);
    let not_given = nodes::look(audit, &here, &mounts);
    &elsewhere | &not_given
}

/// A host without RDMA devices is in order; one whose RDMA devices nobody can open lacks the module.
fn report_no_devices(audit: &mut Audit, absent: &Absent) {
    let words = absent.of_empty_list();
    match absent.is_loaded || absent.without_verbs.is_empty() {
        true => audit.info("devices", words.as_str()),
        false => audit.warning("devices", words.as_str()),
    }
    audit.no_devices = Some(words);
}

/// Opens each device, if that is wanted: nothing less shows where a node leads.
fn open_devices(audit: &mut Audit, devices: &Devices, unusable: &BTreeSet<u32>) {
    let Some(mut opens) = audit.opens.take() else { return };
    for device in devices {
        let name = device.to_string();
        let error = match device.open() {
            Ok(_) => {
                audit
                    .fine(format!("{name} was opened, and proved to be the device that is listed"));
                None
            }
            Err(error) => {
                let failure = Failure::from(error);
                if !unusable.contains(&device.uverbs_number()) {
                    let message = format!("it does not open: {}", failure.without_device());
                    audit.error(name.as_str(), message);
                }
                Some(failure)
            }
        };
        opens.push(OpenAttempt { device: name, proven: error.is_none(), error });
    }
    audit.opens = Some(opens);
}

fn look_at_name(audit: &mut Audit, device: &Device) {
    if is_hostile(device.name().as_bytes()) {
        // The name is not part of the hint, which somebody may paste into a shell.
        let message = "its name has characters that may mislead a script or a shell: rename it (rdma dev \
                       set OLD name NEW)";
        audit.warning(device.to_string(), message);
    }
}

fn look_at_provider(audit: &mut Audit, device: &Device) {
    match device.provider() {
        Ok(info) if !info.is_abi_known() => {
            let (found, known) = (info.abi_version, &info.abi_versions);
            let (from, to) = (known.start(), known.end());
            let message = format!(
                "the ABI version of its driver is {found}, and known is {from} to {to}, so that it does \
                 not open: upgrade uverbs"
            );
            audit.error(device.to_string(), message);
        }
        Ok(info) if info.provider.is_none() => {
            let message =
                "no provider knows its driver, which gets no data when a context is allocated";
            audit.info(device.to_string(), message);
        }
        // What netlink does not report has its own finding.
        _ => {}
    }
}

/// Whether a name is more than letters, digits and marks that mean nothing to a shell or a path.
fn is_hostile(name: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.:+@".contains(byte);
    name.is_empty() || matches!(name, b"." | b"..") || !name.iter().all(is_plain)
}

/// The findings, errors first, and a line about the rest; or, in full, the rest.
fn render(audit: &Audit, in_full: bool) -> String {
    let mut table = Table::plain(0);
    for severity in [Severity::Error, Severity::Warning] {
        let (word, style) = match severity {
            Severity::Error => ("error", BAD),
            Severity::Warning => ("warning", WARN),
        };
        for finding in audit.findings.iter().filter(|finding| finding.severity == severity) {
            let text = format!("{}: {}", finding.subject, finding.message);
            table.row([Cell::styled(word, style), text.into()]);
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
fn rest(audit: &Audit) -> String {
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
    fn hostile_names() {
        for name in [&b"mlx5_0"[..], b"rocep1s0f0", b"a-b.c"] {
            assert!(!is_hostile(name));
        }
        for name in [&b""[..], b".", b"..", b"a/b", b"a\nb", b"\x1b[31m", b"a b", b"\xff", b"%n$("]
        {
            assert!(is_hostile(name), "{}", name.escape_ascii());
        }
    }

    #[test]
    fn json_has_the_documented_keys() {
        let mut audit = Audit::default();
        audit.fine("something");
        audit.info("memlock", "little");
        assert!(audit.is_good());
        audit.warning("node", "odd");
        audit.error("host", "bad");
        assert!(!audit.is_good());
        let expected = serde_json::json!({
            "findings": [
                { "severity": "warning", "subject": "node", "message": "odd" },
                { "severity": "error", "subject": "host", "message": "bad" },
            ],
            "info": [{ "subject": "memlock", "message": "little" }],
            "checked": ["something"],
            "opens": null,
        });
        assert_eq!(serde_json::to_value(&audit).expect("JSON"), expected);
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
        audit.error("host", "bad");
        let findings = "error    host: bad\nwarning  node: odd\n";
        let rest = "ok       1000 checks passed, with information on memlock (-v prints all)\n";
        assert_eq!(text(&audit, false), format!("{findings}{rest}"));
        let full = text(&audit, true);
        let all = format!("{findings}info     memlock: little\nok       node 0\n");
        assert!(full.starts_with(&all) && full.lines().count() == 1003, "{full}");
    }

    #[test]
    fn without_devices_the_line_has_the_reason() {
        let absent = |is_loaded, names: &[&str]| Absent {
            is_loaded,
            without_verbs: names.iter().map(|&name| name.to_owned()).collect(),
        };
        for (absent, is_good) in [
            (absent(true, &[]), true),
            (absent(false, &[]), true),
            (absent(true, &["mlx5_0"]), true),
            (absent(false, &["mlx5_0"]), false),
        ] {
            let mut audit = Audit::default();
            report_no_devices(&mut audit, &absent);
            assert_eq!(audit.is_good(), is_good, "{absent:?}");
            assert!(rest(&audit).ends_with(&absent.of_empty_list()), "{absent:?}");
        }
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_node_that_looks_right_and_leads_elsewhere_is_found_by_opening() {
        use uverbs::sim::{DeviceSpec, Machine, NodeKind};

        let machine = Machine::new();
        let old = machine.add(DeviceSpec::new("siw0").disassociates(false)).expect("added");
        machine.set_node(0, NodeKind::Static);
        let theirs = machine.foreign_context(old).expect("opened");
        machine.remove(old);
        machine.add(DeviceSpec::new("siw1").disassociates(false)).expect("added");
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        let host = Host::simulated(&machine).expect("a host");
        let registry = Registry::new(host);
        let look = |open: bool| {
            let mut audit = Audit { opens: open.then(Vec::new), ..Audit::default() };
            open_devices(&mut audit, &registry.devices().expect("a list"), &BTreeSet::new());
            audit
        };

        let opened = look(true);
        assert!(!opened.is_good());
        let json = serde_json::to_value(&opened).expect("JSON");
        let (siw1, rxe0) = (&json["opens"][0], &json["opens"][1]);
        assert_eq!((&siw1["device"], &siw1["proven"]), (&"siw1 (uverbs0)".into(), &false.into()));
        assert_eq!(siw1["error"]["kind"], "node_mismatch");
        assert_eq!((&rxe0["proven"], &rxe0["error"]), (&true.into(), &serde_json::Value::Null));
        assert_eq!(json["findings"][0]["subject"], "siw1 (uverbs0)");
        assert_eq!(opened.findings.len(), 1);

        let before = machine.node_opens().len();
        let closed = look(false);
        assert!(closed.is_good() && closed.opens.is_none());
        assert_eq!(machine.node_opens().len(), before);

        machine.close_foreign(old, theirs);
        assert!(look(true).is_good());
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_device_that_is_known_not_to_open_is_no_second_finding() {
        use uverbs::sim::{DeviceSpec, Machine, NodeKind};

        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        machine.set_node(0, NodeKind::Missing);
        let host = Host::simulated(&machine).expect("a host");
        let devices = Registry::new(host).devices().expect("a list");
        let mut audit = Audit { opens: Some(Vec::new()), ..Audit::default() };
        open_devices(&mut audit, &devices, &BTreeSet::from([0]));
        assert!(audit.is_good());
        let opens = audit.opens.as_ref().expect("attempts");
        assert!(!opens[0].proven && opens[0].error.is_some());
        open_devices(&mut audit, &devices, &BTreeSet::new());
        assert!(!audit.is_good());
    }
}
