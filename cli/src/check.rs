//! `uverbs check`: what is wrong with this host, for programs that open verbs devices.
//!
//! This process opens only directories, the netlink socket and files in `/proc` and `/sys` that no driver has to answer
//! for. It looks at a node without opening it. Devices are opened, and their ports read, by a child (`worker`).

mod audit;
mod container;
mod host;
mod lock;
mod metrics;
mod nodes;
mod ports;
mod probe;
mod seen;
mod textfile;
mod worker;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use uverbs::{Device, Devices, Host, Registry};

use crate::absent::Absent;
use crate::open::seconds;
use crate::output::{Failure, JsonArgs, Out, UNKNOWN_STATUS, WARNING_STATUS, up_to_five};
use crate::select::Selector;
use crate::verbose;

use audit::{Audit, OpenAttempt, Severity, render};
use container::Signs;
use lock::Holder;
use probe::{Probe, Probed, Trouble, Workers};
use seen::{Seen, SeenDevice};
use worker::{Refusal, Task};

/// Check the host, or some devices: kernel, netlink, limits, devices and their nodes.
///
/// Errors, what could not be looked at, and warnings are printed, and then one line about the rest; -v prints the rest,
/// too. Information, such as a limit at its default or a device that was not given to this container, is no finding.
/// Warnings are printed, and fail the check only with --fail-on warning: a batch system takes a node out of service
/// for an exit status that is not 0. Without --open no node is opened: a node that looks right may still lead to another
/// device.
#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Check this device only, which has to be there and to have its node; may be given several times
    ///
    /// DEVICE is a device as `uverbs show` takes it. A script should use a form with a key, such as name=NAME.
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<OsString>,
    /// Require exactly this number of devices that have a node here and belong to this network namespace
    ///
    /// In a container /sys shows all devices of the host. Those that have no node here do not count.
    #[arg(long, value_name = "N", conflicts_with = "devices")]
    expect: Option<usize>,
    /// Open each device, and prove that it is the one that is listed
    ///
    /// This allocates a context on each device for a moment. A device whose driver does not disassociate cannot be
    /// removed during that moment. The devices are opened by a child process, one after another.
    #[arg(long)]
    open: bool,
    /// Give up on a device that does not open, or whose ports cannot be read, within this time
    ///
    /// It applies to each device, with --open and --textfile. The child that waits is killed. Where the kernel does not
    /// end it, because a driver waits for its hardware, the child is left behind. It ends when the driver returns. Until
    /// then a later check reports it, and does not start another one on that device. A check that finds another one
    /// at work on a device waits for it for the same time.
    #[arg(long, value_name = "SECONDS", value_parser = timeout, default_value = "10")]
    timeout: Duration,
    /// What makes the check fail
    #[arg(long, value_name = "SEVERITY", default_value = "error")]
    fail_on: FailOn,
    /// Write metrics for node_exporter's textfile collector to this file, or to stdout if it is -
    ///
    /// The file is replaced as a whole. Its name has to end in .prom for the collector to read it. The state of ports is
    /// read from /sys, and no device is opened unless --open is given. With - the metrics take the place of all other
    /// output. There are no counters of ports, which the collector `infiniband` of node_exporter has.
    #[arg(long, value_name = "FILE")]
    textfile: Option<PathBuf>,
    /// Probe devices for another `uverbs check`, which is on the other end of stdin and stdout
    #[arg(long, hide = true, exclusive = true)]
    worker: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// The least severity that makes a check fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Errors, and what could not be looked at
    Error,
    /// Also warnings
    Warning,
}

/// The time for a device: not so short that nothing can be done in it.
fn timeout(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(100);
    seconds(text)
        .ok()
        .filter(|timeout| *timeout >= LEAST)
        .ok_or_else(|| "a number of seconds from 0.1 to 86400".to_owned())
}

/// What to check.
#[derive(Default)]
struct Plan {
    /// The devices to check; all where there are none.
    selectors: Vec<Selector>,
    expect: Option<usize>,
    /// What to have a child do with each device.
    task: Option<Task>,
}

impl Plan {
    fn are_named(&self) -> bool {
        !self.selectors.is_empty()
    }

    fn opens(&self) -> bool {
        self.task.is_some_and(|task| task.open)
    }
}

pub(crate) fn run(args: &CheckArgs, out: &mut Out) -> Result<ExitCode, Failure> {
    if args.worker {
        return Ok(worker::run());
    }
    let is_stdout = args.textfile.as_deref() == Some(Path::new("-"));
    if is_stdout && args.json.json {
        return Err(Failure::usage("--json and --textfile - would both print to stdout: use one"));
    }
    let selectors = args.devices.iter().map(|device| Selector::parse(device));
    let selectors = selectors.collect::<Result<_, _>>().map_err(Failure::usage)?;
    let task = Task { open: args.open, ports: args.textfile.is_some() };
    let plan =
        Plan { selectors, expect: args.expect, task: (task.open || task.ports).then_some(task) };
    let mut audit = audit(&plan, &mut Workers::new(args.timeout));
    if let Some(path) = args.textfile.as_deref().filter(|_| !is_stdout)
        && let Err(failure) = textfile::replace(path, &metrics_of(&audit))
    {
        audit.could_not_look("textfile", failure);
    }
    let printed = match (is_stdout, args.json.json) {
        (true, _) => out.bytes(metrics_of(&audit).as_bytes()),
        (false, true) => out.json(&audit),
        (false, false) => out.text(&render(&audit, verbose::is_on())),
    };
    // Status 1 would mean that something is wrong with a device.
    printed.map_err(|failure| failure.with_status(UNKNOWN_STATUS))?;
    Ok(match audit.worst(args.fail_on == FailOn::Warning) {
        None => ExitCode::SUCCESS,
        Some(Severity::Error) => ExitCode::FAILURE,
        Some(Severity::Unknown) => UNKNOWN_STATUS.into(),
        Some(Severity::Warning) => WARNING_STATUS.into(),
    })
}

fn metrics_of(audit: &Audit) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    metrics::render(audit, now.unwrap_or_default())
}

fn audit(plan: &Plan, prober: &mut impl Probe) -> Audit {
    let mut audit = Audit { opens: plan.opens().then(Vec::new), ..Audit::default() };
    host::kernel(&mut audit);
    host::memlock(&mut audit);
    let mounts = nodes::mounts(&mut audit);
    let signs = Signs::look(&mounts);
    audit.container = signs.words();
    if !audit.container.is_empty() {
        audit.info("container", format!("signs of one were seen: {}", audit.container.join("; ")));
    }
    // A /sys that is not sysfs is a finding, and no reason not to check the rest.
    match Host::builder().allow_foreign_sys(true).build() {
        Err(error) => audit.could_not_look("host", error),
        Ok(host) => {
            audit.fine("openat2 can be used");
            let is_sysfs = match Host::open() {
                Ok(_) => true,
                Err(error) => {
                    audit.could_not_look("sysfs", error);
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
                    let selected = select(&mut audit, plan, &devices);
                    let unusable = look_at_devices(
                        &mut audit,
                        plan,
                        (&host, &devices),
                        &selected,
                        |audit, here| nodes::look(audit, here, &mounts, &signs, plan.are_named()),
                    );
                    probe_devices(&mut audit, plan, &devices, &selected, &unusable, prober);
                }
                Err(error) => audit.could_not_look("devices", error),
            }
        }
    }
    audit
}

/// The devices to check, each once.
fn select<'a>(audit: &mut Audit, plan: &Plan, devices: &'a Devices) -> Vec<&'a Device> {
    if !plan.are_named() {
        return devices.iter().collect();
    }
    let mut selected = BTreeSet::new();
    for selector in &plan.selectors {
        match selector.find(devices) {
            Ok(device) => {
                selected.insert(device.uverbs_number());
            }
            Err(failure) => {
                let severity = match failure.kind() {
                    // One of those may be it.
                    "not_found" if devices.faults().next().is_some() => Severity::Unknown,
                    "not_found" | "ambiguous" => Severity::Error,
                    _ => Severity::Unknown,
                };
                let mut message = failure.to_string();
                let faults: Vec<_> = devices.faults().map(|fault| fault.to_string()).collect();
                if !faults.is_empty() {
                    message = format!("{message}; not listed: {}", up_to_five(faults));
                }
                audit.found(severity, selector.to_string(), message);
            }
        }
    }
    devices.iter().filter(|device| selected.contains(&device.uverbs_number())).collect()
}

/// Checks devices. Returns the numbers of those that are known not to open here, for which there is a finding or
/// information already.
fn look_at_devices(
    audit: &mut Audit,
    plan: &Plan,
    (host, devices): (&Host, &Devices),
    selected: &[&Device],
    look_at_nodes: impl FnOnce(&mut Audit, &[&Device]) -> nodes::Missing,
) -> BTreeSet<u32> {
    let faults = devices.faults().count();
    if !plan.are_named() {
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
        } else if let Some(words) = absent.in_words() {
            audit.info("devices", words);
        }
    }
    let elsewhere = host::netlink(audit, host, selected, plan.are_named());
    if !devices.is_empty() {
        let all = devices.len() + faults;
        audit.fine(format!("{} of {all} devices can be listed", devices.len()));
    }
    for device in selected {
        look_at_name(audit, device);
        look_at_provider(audit, device);
    }
    let is_here = |device: &&&Device| !elsewhere.contains(&device.uverbs_number());
    let here: Vec<_> = selected.iter().filter(is_here).copied().collect();
    let missing = look_at_nodes(audit, &here);
    if let Some(expected) = plan.expect {
        let without_node = missing.not_given.len() + missing.lost.len();
        count(
            audit,
            expected,
            here.len() - without_node,
            [
                (devices.len(), "listed"),
                (elsewhere.len(), "of another network namespace"),
                (without_node, "without a node"),
                (faults, "cannot be listed"),
            ],
        );
    }
    &elsewhere | &missing.not_given
}

/// Compares the number of devices with the one that was expected.
fn count(audit: &mut Audit, expected: usize, usable: usize, others: [(usize, &str); 4]) {
    let others = others.into_iter().filter(|(count, _)| *count > 0);
    let others: Vec<_> = others.map(|(count, what)| format!("{count} {what}")).collect();
    let detail = if others.is_empty() { "none listed".to_owned() } else { others.join(", ") };
    let words = format!("{usable} with a node in this network namespace ({detail})");
    match usable == expected {
        true => audit.fine(format!("{expected} devices were expected, and there are {words}")),
        false => audit.error("devices", format!("{expected} were expected, and there are {words}")),
    }
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

/// Opens each device, if that is wanted: nothing less shows where a node leads. Reads the state of ports for metrics.
fn probe_devices(
    audit: &mut Audit,
    plan: &Plan,
    devices: &Devices,
    selected: &[&Device],
    unusable: &BTreeSet<u32>,
    prober: &mut (impl Probe + ?Sized),
) {
    let mut seen = Seen {
        listed: devices.len(),
        faults: devices.faults().count(),
        devices: Vec::with_capacity(selected.len()),
    };
    let is_for_metrics = plan.task.is_some_and(|task| task.ports);
    for &device in selected {
        let Some(task) = plan.task else { break };
        let Probed { opened, ports, trouble } = prober.probe(device, task);
        let trouble = trouble.map(|trouble| report(audit, plan, device, trouble));
        // Devices come and go, and nobody named this one.
        let may_go = |refusal: &Refusal| !plan.are_named() && refusal.is_gone();
        let (proven, error) = match opened {
            Some(Ok(())) => {
                audit.fine(format!(
                    "{device} was opened, and proved to be the device that is listed"
                ));
                (Some(true), None)
            }
            Some(Err(refusal)) if may_go(&refusal) => {
                if !unusable.contains(&device.uverbs_number()) {
                    audit.info(device.to_string(), GONE);
                }
                (None, Some(refusal.error))
            }
            Some(Err(refusal)) => {
                if !unusable.contains(&device.uverbs_number()) {
                    let message = format!("it does not open: {}", refusal.message);
                    audit.error(device.to_string(), message);
                }
                (Some(false), Some(refusal.error))
            }
            None => {
                let (severity, failure) = trouble.unzip();
                let error = failure.and_then(|failure| serde_json::to_value(failure).ok());
                ((severity.flatten() == Some(Severity::Error)).then_some(false), error)
            }
        };
        if let Some(opens) = &mut audit.opens {
            let proven = proven == Some(true);
            opens.push(OpenAttempt { device: device.to_string(), proven, error });
        }
        if is_for_metrics {
            // Where the device could not be looked at, it is not known whether it opens.
            let proven = proven.filter(|_| task.open);
            seen.devices.push(SeenDevice { proven, ports, ..SeenDevice::new(device) });
        }
    }
    audit.seen = is_for_metrics.then_some(seen);
}

/// What happened to a device that was listed and then not found.
const GONE: &str = "it was removed or replaced after it was listed: check again";

/// Reports why a device was not probed, and returns that as `--json` prints it. There is no severity where it is not
/// a finding.
fn report(
    audit: &mut Audit,
    plan: &Plan,
    device: &Device,
    trouble: Trouble,
) -> (Option<Severity>, Failure) {
    let (severity, kind, message) = match trouble {
        Trouble::TimedOut { doing, timeout, left_behind } => {
            let seconds = timeout.as_secs_f64();
            let end = match left_behind {
                None => "the process that waited was killed".to_owned(),
                Some(pid) => format!(
                    "process {pid} was killed and has not ended. It is left behind, and ends when the kernel \
                     returns from the call; until then the device is not probed again"
                ),
            };
            let message = format!("{doing} took longer than {seconds} s: {end}");
            (Some(Severity::Error), "timeout", message)
        }
        Trouble::NotReady { within } => {
            let seconds = within.as_secs_f64();
            let message = format!(
                "it was not probed: the process that probes was not ready after {seconds} s, and was killed. \
                 The host may be overloaded: check again"
            );
            (Some(Severity::Unknown), "timeout", message)
        }
        Trouble::Held(Holder { pid, was_killed: true }) => {
            let message = format!(
                "an earlier probe still hangs: process {pid} was killed and has not ended. The device was not \
                 probed again"
            );
            (Some(Severity::Error), "timeout", message)
        }
        Trouble::Held(Holder { pid, was_killed: false }) => {
            let message = format!("process {pid} is probing it, so it was not probed");
            (Some(Severity::Unknown), "busy", message)
        }
        Trouble::Gone => (plan.are_named().then_some(Severity::Error), "removed", GONE.to_owned()),
        Trouble::Failed(why) => (Some(Severity::Unknown), "os", why),
    };
    match severity {
        Some(severity) => audit.found(severity, device.to_string(), &*message),
        // Devices come and go, and nobody named this one.
        None => audit.info(device.to_string(), &*message),
    }
    (severity, Failure::new(kind, format!("{device}: {message}")).of(device))
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

#[cfg(test)]
mod tests;
