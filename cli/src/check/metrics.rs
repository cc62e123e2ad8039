//! The metrics of `check --textfile`, in the text format of Prometheus.
//!
//! Nothing is kept from one run to the next. A replacement shows as a change of `uverbs_device_instance`.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::time::Duration;

use super::audit::{Audit, Severity};
use super::seen::Seen;

/// A metric, and its samples.
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Vec<String>,
    /// The labels of the samples: no two may have the same.
    labels: BTreeSet<String>,
}

impl Family {
    fn new(name: &'static str, help: &'static str) -> Self {
        Self { name, help, samples: Vec::new(), labels: BTreeSet::new() }
    }

    /// Adds a sample, unless there is one with these labels. A label without a value is left out: to Prometheus it is
    /// the same as an empty one.
    fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        let labels = labels.iter().filter(|(_, value)| !value.is_empty());
        let labels: Vec<_> =
            labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        if self.labels.insert(labels.clone()) {
            self.samples.push(format!("{}{labels} {value}\n", self.name));
        }
    }

    /// All are gauges: nothing is counted from one run to the next.
    fn write(&self, text: &mut String) {
        if !self.samples.is_empty() {
            let Self { name, help, .. } = self;
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n");
            text.extend(self.samples.iter().map(String::as_str));
        }
    }
}

/// A label's value, as the format escapes it.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

/// The metrics of what was checked. `now` is the time since 1970.
pub(super) fn render(audit: &Audit, now: Duration) -> String {
    let mut last_run = Family::new(
        "uverbs_check_last_run_timestamp_seconds",
        "When uverbs check made these metrics, in seconds since 1970.",
    );
    last_run.sample(&[], format_args!("{}.{:03}", now.as_secs(), now.subsec_millis()));
    let mut findings = Family::new(
        "uverbs_check_findings",
        "Findings of uverbs check by severity; unknown is what could not be looked at.",
    );
    for severity in Severity::ALL {
        findings.sample(&[("severity", severity.word())], audit.count(severity));
    }
    let mut families = vec![last_run, findings];
    if let Some(seen) = &audit.seen {
        families.extend(of_devices(seen));
    }
    let mut text = String::new();
    families.iter().for_each(|family| family.write(&mut text));
    text
}

fn of_devices(seen: &Seen) -> Vec<Family> {
    let mut listed = Family::new("uverbs_devices", "RDMA verbs devices that are listed.");
    listed.sample(&[], seen.listed);
    let mut faults =
        Family::new("uverbs_devices_unlisted", "RDMA verbs devices that could not be listed.");
    faults.sample(&[], seen.faults);
    let mut info = Family::new(
        "uverbs_device_info",
        "A device: its name as uverbs list prints it, and what RDMA netlink reports of it.",
    );
    let mut instance = Family::new(
        "uverbs_device_instance",
        "The instance behind a node: another number is another device. Numbers repeat after a reboot.",
    );
    let mut proven = Family::new(
        "uverbs_device_proven",
        "Whether the device was opened, and proved to be the one that is listed (--open).",
    );
    let mut state = Family::new(
        "uverbs_port_state",
        "State of a port: 0 no state, 1 down, 2 initialize, 3 armed, 4 active, 5 active deferred.",
    );
    let mut physical = Family::new(
        "uverbs_port_physical_state",
        "Physical state of a port: 1 sleep, 2 polling, 3 disabled, 4 training, 5 link up, 6 error recovery, \
         7 test.",
    );
    let mut rate = Family::new(
        "uverbs_port_rate_bytes_per_second",
        "Signalling rate of all lanes of a port, in bytes per second.",
    );
    for device in &seen.devices {
        let uverbs = format!("uverbs{}", device.number);
        let inode = device.inode.to_string();
        let of_device = [("uverbs", uverbs.as_str()), ("device", device.name.as_str())];
        // Without the name, which changes: a replacement under another name is a change of this series.
        instance.sample(&of_device[..1], &inode);
        if let Some(is_proven) = device.proven {
            proven.sample(&of_device, u8::from(is_proven));
        }
        let facts = device.facts.as_ref();
        let guid = facts.map(|facts| facts.node_guid.to_string()).unwrap_or_default();
        let driver = facts.and_then(|facts| facts.driver_id);
        let driver = driver.map(|driver| driver.to_string()).unwrap_or_default();
        let firmware = facts.map(|facts| facts.firmware_version.to_string()).unwrap_or_default();
        let [uverbs, name] = of_device;
        let labels = [
            uverbs,
            name,
            ("inode", inode.as_str()),
            ("node_guid", guid.as_str()),
            ("driver", driver.as_str()),
            ("firmware", firmware.as_str()),
        ];
        info.sample(&labels, 1);
        for port in &device.ports {
            let number = port.port.to_string();
            let labels = [uverbs, name, ("port", number.as_str())];
            for (family, value) in [
                (&mut state, port.state),
                (&mut physical, port.physical_state),
                (&mut rate, port.bytes_per_second),
            ] {
                if let Some(value) = value {
                    family.sample(&labels, value);
                }
            }
        }
    }
    vec![listed, faults, info, instance, proven, state, physical, rate]
}

#[cfg(test)]
mod tests;
