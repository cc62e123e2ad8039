//! `uverbs open DEVICE`.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use uverbs::{Device, DeviceAttributes, Error, Evidence, Host, OpenOptions, Opened, Registry};

use crate::evidence::{CheckJson, evidence_table};
use crate::expected;
use crate::facts::{DeviceJson, Known, firmware_number, or_dash};
use crate::hold::hold;
use crate::output::{BAD, Failure, GOOD, JsonArgs, Out, WARN, note};
use crate::select::Selector;
use crate::table::Table;

/// Open a device, prove that it is the one that was listed, and print the evidence.
#[derive(Args)]
pub(crate) struct OpenArgs {
    /// The device, in each form that `uverbs show --help` lists; with --expect-env it may be left out
    #[arg(value_name = "DEVICE", required_unless_present = "expect_env")]
    device: Option<OsString>,
    /// Check first that the device is the one that this container was given, by the variable VAR
    ///
    /// The variable is one that `uverbs cdi` has the container engine set. Without VAR it is the one that begins with
    /// UVERBS_EXPECT_ and is about DEVICE. Without DEVICE too, there has to be one such variable, and its device is
    /// opened. If the device was replaced, or has another number now, the command prints what was expected and what it
    /// found, and opens nothing.
    #[arg(long, value_name = "VAR", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    expect_env: Option<OsString>,
    /// Keep the device open for this time, a day at most
    ///
    /// Async events are printed on stderr. If the device is removed or reports a fatal error, the hold ends at once and
    /// the exit status is 1; with --json the error is printed as a second document.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    hold: Option<Duration>,
    /// Wait for Enter between the list and the open, to try what happens when the device is replaced
    #[arg(long)]
    wait_for_enter: bool,
    /// Open the device even if it cannot be proved to be the right one
    #[arg(long)]
    allow_unproven: bool,
    /// Refuse the device if its timestamp has moved since it was listed
    #[arg(long)]
    strict_timestamps: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

/// What is printed of an open that succeeded.
#[derive(Serialize)]
struct OpenJson {
    device: DeviceJson,
    proven: bool,
    /// Why it is not proven.
    unproven_reason: Option<Failure>,
    /// The number under which the kernel lists the context.
    context: Option<u32>,
    /// The netlink index of the device under which it lists the context.
    index: Option<u32>,
    evidence: Box<[CheckJson]>,
    attributes: AttributesJson,
}

#[derive(Serialize)]
struct AttributesJson {
    firmware_version: u64,
    node_guid: String,
    sys_image_guid: String,
    max_mr_size: u64,
    vendor_id: u32,
    vendor_part_id: u32,
    hardware_version: u32,
    max_qp: u32,
    max_cq: u32,
    max_mr: u32,
    max_pd: u32,
    phys_port_count: u8,
}

pub(crate) fn run(args: &OpenArgs, out: &mut Out) -> Result<bool, Failure> {
    let selector =
        args.device.as_deref().map(Selector::parse).transpose().map_err(Failure::usage)?;
    let registry = Registry::new(Host::open()?);
    let devices = registry.devices()?;
    let device = match (&args.expect_env, &selector) {
        (Some(variable), selector) => {
            let variable = Some(variable.as_os_str()).filter(|variable| !variable.is_empty());
            expected::find(&devices, selector.as_ref(), variable)?
        }
        (None, Some(selector)) => selector.find(&devices)?,
        (None, None) => return Err(Failure::usage("DEVICE is missing")),
    };
    if args.wait_for_enter {
        let prompt = format!("listed {device}; press Enter to open\n");
        // Where stdout is JSON it stays JSON.
        if args.json.json {
            note(prompt.trim_end())
        } else {
            out.text(&prompt)?
        }
        let read = io::stdin().read_line(&mut String::new());
        read.map_err(|error| Failure::os("cannot read stdin", &error))?;
    }
    let opened = match args.options().open(&device) {
        Ok(opened) => opened,
        Err(error) => {
            // With --json it is part of the error.
            if let (Some(evidence), false) = (error.evidence(), args.json.json) {
                out.text(&evidence_table(evidence.checks(), 0).render())?;
            }
            return Err(error.into());
        }
    };
    let attributes = match &opened {
        Opened::Proven(context) => context.query_device(),
        Opened::Unproven(context) => context.query_device(),
    }?;
    let (evidence, reason) = match &opened {
        Opened::Proven(context) => (context.evidence(), None),
        Opened::Unproven(context) => (context.evidence(), Some(context.reason())),
    };
    if args.json.json {
        out.json(&json(&device, evidence, reason, &attributes))?;
    } else {
        let mut text = evidence_table(evidence.checks(), 0).render();
        text.push('\n');
        text.push_str(&attributes_table(&attributes, &firmware(&device, &attributes)).render());
        text.push_str(&format!("\n{}\n", verdict(&device, evidence, reason)));
        out.text(&text)?;
    }
    if let Some(reason) = reason {
        let warning = format!("{WARN}WARNING{WARN:#}: this may be another device: ");
        Failure::from(reason).report_as(&warning);
    }
    if let Some(time) = args.hold {
        note(format_args!("holding {device} open for {} s", time.as_secs_f64()));
        hold(&opened, time)?;
    }
    Ok(true)
}

impl OpenArgs {
    fn options(&self) -> OpenOptions {
        OpenOptions::new()
            .strict_timestamps(self.strict_timestamps)
            .allow_unproven(self.allow_unproven)
    }
}

fn json(
    device: &Device,
    evidence: &Evidence,
    reason: Option<&Error>,
    attributes: &DeviceAttributes,
) -> OpenJson {
    // The open holds even if netlink no longer answers.
    OpenJson {
        device: DeviceJson::new(device, &Known::read_quietly(device)),
        proven: reason.is_none(),
        unproven_reason: reason.map(Failure::from),
        context: evidence.context_number(),
        index: evidence.index(),
        evidence: CheckJson::all(evidence),
        attributes: AttributesJson {
            firmware_version: attributes.firmware_version,
            node_guid: attributes.node_guid.to_string(),
            sys_image_guid: attributes.sys_image_guid.to_string(),
            max_mr_size: attributes.max_mr_size,
            vendor_id: attributes.vendor_id,
            vendor_part_id: attributes.vendor_part_id,
            hardware_version: attributes.hardware_version,
            max_qp: attributes.max_qp,
            max_cq: attributes.max_cq,
            max_mr: attributes.max_mr,
            max_pd: attributes.max_pd,
            phys_port_count: attributes.phys_port_count,
        },
    }
}

/// The firmware's version as the driver words it; its number where the driver has no words for it.
fn firmware(device: &Device, attributes: &DeviceAttributes) -> String {
    let words = device.query().map(|facts| facts.firmware_version.to_string()).unwrap_or_default();
    if words.is_empty() { or_dash(&firmware_number(attributes)) } else { words }
}

fn attributes_table(attributes: &DeviceAttributes, firmware: &str) -> Table {
    let mut table = Table::plain(0);
    for (what, value) in [
        ("node GUID", attributes.node_guid.to_string()),
        ("system image GUID", attributes.sys_image_guid.to_string()),
        ("vendor id", format!("{:#06x}", attributes.vendor_id)),
        ("vendor part id", attributes.vendor_part_id.to_string()),
        ("hardware version", format!("{:#x}", attributes.hardware_version)),
        ("firmware", firmware.to_owned()),
        ("ports", attributes.phys_port_count.to_string()),
        ("queue pairs, at most", attributes.max_qp.to_string()),
        ("completion queues, at most", attributes.max_cq.to_string()),
        ("protection domains, at most", attributes.max_pd.to_string()),
        ("memory regions, at most", attributes.max_mr.to_string()),
        ("memory region, at most", format!("{} bytes", attributes.max_mr_size)),
    ] {
        table.row([what.into(), value.into()]);
    }
    table
}

/// The result of the open, in one line.
pub(crate) fn verdict(device: &Device, evidence: &Evidence, reason: Option<&Error>) -> String {
    let (node, name) = (device.uverbs_number(), device.name());
    match (reason, evidence.context_number(), evidence.index()) {
        (None, Some(context), Some(index)) => format!(
            "{GOOD}proved{GOOD:#}: /dev/infiniband/uverbs{node} is {name}, \
             context {context} under index {index}"
        ),
        (None, ..) => format!("{GOOD}proved{GOOD:#}: /dev/infiniband/uverbs{node} is {name}"),
        (Some(_), ..) => format!(
            "{BAD}UNPROVEN{BAD:#}: nothing contradicts that /dev/infiniband/uverbs{node} is {name}, \
             but nothing proves it"
        ),
    }
}

/// A time in seconds, a day at most.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    const DAY: f64 = 86_400.0;
    text.parse::<f64>()
        .ok()
        .filter(|seconds| (0.0..=DAY).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "a number of seconds from 0 to 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hold_is_a_day_at_most() {
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        assert_eq!(seconds("1.5"), Ok(Duration::from_millis(1500)));
        assert_eq!(seconds("86400"), Ok(Duration::from_secs(86_400)));
        for text in ["-1", "86401", "inf", "NaN", "", "1s"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[cfg(feature = "demo")]
    mod simulated {
        use super::*;
        use uverbs::sim::{DeviceSpec, Machine};

        fn listed(machine: &Machine) -> Device {
            machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            let host = Host::simulated(machine).expect("a host");
            Registry::new(host).devices().expect("a list").by_name("rxe0").expect("listed")
        }

        #[test]
        fn json_has_the_documented_keys() {
            let device = listed(&Machine::new());
            let context = device.open().expect("opened");
            let attributes = context.query_device().expect("attributes");
            let json = json(&device, context.evidence(), None, &attributes);
            let json = serde_json::to_value(json).expect("JSON");
            assert_eq!(json["proven"], true);
            assert!(json["unproven_reason"].is_null());
            assert_eq!(json["device"]["name"], "rxe0");
            assert_eq!(json["attributes"]["node_guid"], "0000:0000:0000:00a0");
            assert!(json["context"].is_u64() && json["index"].is_u64());
            let check = &json["evidence"][0];
            let keys: Vec<_> = check.as_object().expect("an object").keys().cloned().collect();
            assert_eq!(keys, ["expected", "found", "held", "id", "step", "step_number", "what"]);
            assert_eq!((&check["step"], &check["step_number"]), (&"pin".into(), &2.into()));
        }

        #[test]
        fn unproven_is_said_and_never_called_proved() {
            let machine = Machine::new();
            let device = listed(&machine);
            machine.deny_netlink(Some(1));
            let opened = device.open_allow_unproven().expect("opened");
            let Opened::Unproven(context) = opened else { panic!("cannot be proved") };
            let text = verdict(&device, context.evidence(), Some(context.reason()));
            assert!(text.contains("UNPROVEN") && !text.contains("proved"), "{text}");
            device.open().expect_err("refused");
        }
    }
}
