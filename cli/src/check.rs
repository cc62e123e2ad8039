//! `uverbs check`: what is wrong with this host, for programs that open verbs devices.
//!
//! Nothing is opened but directories, `/proc/self/mountinfo` and the netlink socket; of a node only
//! what can be seen without opening it, unless `--open` is given.

mod host;
mod nodes;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, Devices, Host, Policy, Registry};

use crate::output::{BAD, Failure, GOOD, Out, WARN};
use crate::table::{Cell, Table};

/// Audits the host: kernel, netlink, limits, devices and their nodes.
///
/// It exits with 1 when it finds an error or a warning; what is only worth knowing does not count.
/// Without --open it only looks: a node that looks right may still lead to another device.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Open each device, and prove that it is the one that is listed
    ///
    /// This allocates a context on each device for a moment. A device whose driver does not disassociate cannot be
    /// removed during that moment.
    #[arg(long)]
    open: bool,
    /// Print JSON: {"findings": [{"severity", "subject", "message"}], "checked": [...],
    /// "opens": [{"device", "proven", "error"}] or null}
    #[arg(long)]
    pub(crate) json: bool,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Something cannot work.
    Error,
    /// Something is not as it should be.
    Warning,
    /// Worth knowing.
    Info,
}

/// Something that was found, and what to do about it.
#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    subject: String,
    message: String,
}

/// What became of opening a device.
#[derive(Debug, Serialize)]
struct OpenAttempt {
    device: String,
    proven: bool,
    /// Why it is not.
    error: Option<Failure>,
}

/// What was looked at, and what was found.
#[derive(Debug, Default, Serialize)]
struct Audit {
    findings: Vec<Finding>,
    /// What was seen and is not wrong.
    checked: Vec<String>,
    /// Null where no device was to be opened.
    opens: Option<Vec<OpenAttempt>>,
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
        self.found(Severity::Info, subject, message);
    }

    fn is_good(&self) -> bool {
        self.findings.iter().all(|finding| finding.severity == Severity::Info)
    }
}

pub(crate) fn run(args: &CheckArgs, out: &mut Out) -> Result<bool, Failure> {
    let audit = audit(args.open);
    if args.json {
        out.json(&audit)?;
    } else {
        out.text(&render(&audit))?;
    }
    Ok(audit.is_good())
}

fn audit(open: bool) -> Audit {
    let mut audit = Audit { opens: open.then(Vec::new), ..Audit::default() };
    host::kernel(&mut audit);
    host::memlock(&mut audit);
    // What is not sysfs is a finding, and no reason not to look at the rest.
    match Host::open_with(Policy::new().allow_foreign_sys(true)) {
        Err(error) => audit.error("host", error.to_string()),
        Ok(host) => {
            audit.fine("openat2 can be used");
            match Host::open() {
                Ok(_) => audit.fine("/sys is sysfs"),
                Err(error) => audit
                    .error("sysfs", format!("{error}: mount sysfs there, or nothing is opened")),
            }
            match Registry::new(host.clone()).devices() {
                Ok(devices) => {
                    look_at_devices(&mut audit, &host, &devices);
                    open_devices(&mut audit, &devices);
                }
                Err(error) => audit.error("devices", error.to_string()),
            }
        }
    }
    audit
}

fn look_at_devices(audit: &mut Audit, host: &Host, devices: &Devices) {
    let faults = devices.faults().count();
    for fault in devices.faults() {
        let subject = fault.device().unwrap_or("device").to_owned();
        audit.error(subject, format!("it cannot be listed: {fault}"));
    }
    host::netlink(audit, host, devices);
    nodes::orphans(audit, devices);
    if devices.is_empty() && faults == 0 {
        let message = "there are no RDMA verbs devices, or ib_uverbs is not loaded";
        return audit.info("devices", message);
    }
    audit.fine(format!("{} of {} devices can be listed", devices.len(), devices.len() + faults));
    let mounts = nodes::mounts(audit);
    for device in devices {
        look_at_name(audit, device);
        look_at_provider(audit, device);
        nodes::look_at_node(audit, device, &mounts);
    }
}

/// Opens each device, if that is wanted: nothing less shows where a node leads.
fn open_devices(audit: &mut Audit, devices: &Devices) {
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
                audit.error(name.as_str(), format!("it does not open: {error}"));
                Some(Failure::from(error))
            }
        };
        opens.push(OpenAttempt { device: name, proven: error.is_none(), error });
    }
    audit.opens = Some(opens);
}

fn look_at_name(audit: &mut Audit, device: &Device) {
    if is_hostile(device.name().as_bytes()) {
        // The name is not part of the hint, which somebody may paste into a shell.
        let message = "its name may lead scripts astray: rename it (rdma dev set OLD name NEW)";
        audit.warning(device.to_string(), message);
    }
}

fn look_at_provider(audit: &mut Audit, device: &Device) {
    match device.provider() {
        Ok(info) if !info.is_abi_known() => {
            let (found, known) = (info.abi_version, &info.abi_versions);
            let (from, to) = (known.start(), known.end());
            let message = format!(
                "the ABI of its driver is {found}, known is {from} to {to}: it does not open; upgrade uverbs"
            );
            audit.error(device.to_string(), message);
        }
        Ok(info) if info.provider.is_none() => {
            audit.info(device.to_string(), "no provider knows its driver, which is told nothing");
        }
        // What netlink does not tell has its own finding.
        _ => {}
    }
}

/// Whether a name is more than letters, digits and marks that mean nothing to a shell or a path.
fn is_hostile(name: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.:+@".contains(byte);
    name.is_empty() || matches!(name, b"." | b"..") || !name.iter().all(is_plain)
}

/// A line for each thing that is fine and each finding, the worst last, where it is seen.
fn render(audit: &Audit) -> String {
    let mut table = Table::plain(0);
    for what in &audit.checked {
        table.row([Cell::styled("ok", GOOD), what.into()]);
    }
    for severity in [Severity::Info, Severity::Warning, Severity::Error] {
        let (word, style) = match severity {
            Severity::Info => ("info", anstyle::Style::new()),
            Severity::Warning => ("warning", WARN),
            Severity::Error => ("error", BAD),
        };
        for finding in audit.findings.iter().filter(|finding| finding.severity == severity) {
            let text = format!("{}: {}", finding.subject, finding.message);
            table.row([Cell::styled(word, style), text.into()]);
        }
    }
    table.render()
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
        assert!(!audit.is_good());
        let json = serde_json::to_value(&audit).expect("JSON");
        let finding = |severity: &str, subject: &str, message: &str| serde_json::json!({ "severity": severity, "subject": subject, "message": message });
        let findings = [finding("info", "memlock", "little"), finding("warning", "node", "odd")];
        let expected =
            serde_json::json!({ "findings": findings, "checked": ["something"], "opens": null });
        assert_eq!(json, expected);
        let text = anstream::adapter::strip_str(&render(&audit)).to_string();
        let lines = ["ok       something\n", "info     memlock: little\n", "warning  node: odd\n"];
        assert_eq!(text, lines.concat());
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
        let host = Host::simulated(&machine, Policy::new()).expect("a host");
        let registry = Registry::new(host);
        let look = |open: bool| {
            let mut audit = Audit { opens: open.then(Vec::new), ..Audit::default() };
            open_devices(&mut audit, &registry.devices().expect("a list"));
            audit
        };

        let opened = look(true);
        assert!(!opened.is_good());
        let json = serde_json::to_value(&opened).expect("JSON");
        let (siw1, rxe0) = (&json["opens"][0], &json["opens"][1]);
        assert_eq!((&siw1["device"], &siw1["proven"]), (&"siw1 (uverbs0)".into(), &false.into()));
        assert_eq!(siw1["error"]["kind"], "NodeMismatch");
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
}
