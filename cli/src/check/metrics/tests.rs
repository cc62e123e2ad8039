//! The exposition format, read by a small strict parser of its own.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::check::ports::Port;
use crate::check::seen::SeenDevice;

type Labels = BTreeMap<String, String>;

/// A sample: metric, labels, value.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: Labels,
    value: f64,
}

/// Parses the text format strictly: HELP, TYPE, and then the samples of each metric, which come once.
fn parse(text: &str) -> Result<Vec<Sample>, String> {
    if !text.ends_with('\n') {
        return Err("no newline at the end".to_owned());
    }
    let (mut samples, mut families): (Vec<Sample>, BTreeSet<String>) = Default::default();
    let (mut help, mut current) = (None, None);
    for line in text.lines() {
        let wrong = |what: &str| format!("{what}: {line:?}");
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
            if words.is_empty() || !families.insert(name.to_owned()) {
                return Err(wrong("a second family"));
            }
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
            if help.take().as_deref() != Some(name) || kind != "gauge" {
                return Err(wrong("a type without its help, or not a gauge"));
            }
            if name.ends_with("_total") {
                return Err(wrong("a gauge with the name of a counter"));
            }
            current = Some(name.to_owned());
        } else {
            let sample = sample(line).ok_or_else(|| wrong("no sample"))?;
            if current.as_ref() != Some(&sample.name) {
                return Err(wrong("a sample outside of its family"));
            }
            samples.push(sample);
        }
    }
    let mut series = BTreeSet::new();
    for sample in &samples {
        if !series.insert((&sample.name, &sample.labels)) {
            return Err(format!("a duplicate: {sample:?}"));
        }
    }
    Ok(samples)
}

fn sample(line: &str) -> Option<Sample> {
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Labels::new();
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            let (label, after) = inside.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                return None;
            }
            match after.strip_prefix(',') {
                Some(after) => inside = after,
                None => {
                    rest = after.strip_prefix('}')?;
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ')?;
    // A timestamp would be a second word.
    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let sample = Sample { name: name.to_owned(), labels, value: value.parse().ok()? };
    (is_name(name) && is_plain).then_some(sample)
}

/// A value up to its quotation mark, and what follows.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            }),
            c => value.push(c),
        }
    }
    None
}

fn device(name: &str, number: u32, inode: u64) -> SeenDevice {
    SeenDevice {
        name: name.to_owned(),
        number,
        inode,
        facts: None,
        proven: Some(true),
        ports: vec![port(1, Some(4))],
    }
}

fn port(port: u8, state: Option<u64>) -> Port {
    Port { port, state, physical_state: Some(5), bytes_per_second: Some(12_500_000_000) }
}

fn metrics(devices: Vec<SeenDevice>) -> String {
    let seen = Some(Seen { listed: devices.len(), faults: 0, devices });
    render(&Audit { seen, ..Audit::default() }, Duration::from_millis(1_700_000_000_250))
}

fn values(samples: &[Sample], name: &str) -> Vec<f64> {
    samples.iter().filter(|sample| sample.name == name).map(|sample| sample.value).collect()
}

#[test]
fn the_parser_of_this_test_refuses_what_the_format_does_not_allow() {
    let head = "# HELP a help\n# TYPE a gauge\n";
    parse(&format!("{head}a{{b=\"c\\\\\\\"\\n\"}} 1\na 2.5\n")).expect("right");
    for wrong in [
        "a 1",
        "a{b=\"\\x1b\"} 1\n",
        "a{b=\"c\"} 1\na{b=\"c\"} 2\n",
        "a{b=\"c\",d=\"e\"} 1\na{d=\"e\",b=\"c\"} 1\n",
        "a{b=\"c\",b=\"d\"} 1\n",
        "a{b=\"c} 1\n",
        "a 1 1700000000000\n",
        "b 1\n",
        "a\n",
        "\n",
        "# HELP a help\n# TYPE a gauge\n",
        "# HELP b help\n# TYPE b counter\n",
        "# TYPE b gauge\n",
    ] {
        parse(&format!("{head}{wrong}")).expect_err(wrong);
    }
}

#[test]
fn names_that_are_printed_the_same_and_one_odd_attribute() {
    let mut odd = device("rxe0", 1, 18);
    odd.ports = vec![port(1, None), port(2, Some(1))];
    odd.proven = Some(false);
    let text = metrics(vec![device("rxe0", 0, 17), odd]);
    let samples = parse(&text).expect(&text);
    assert_eq!(values(&samples, "uverbs_devices"), [2.0]);
    assert_eq!(values(&samples, "uverbs_device_instance"), [17.0, 18.0]);
    assert_eq!(values(&samples, "uverbs_device_proven"), [1.0, 0.0]);
    assert_eq!(values(&samples, "uverbs_port_state"), [4.0, 1.0]);
    assert_eq!(values(&samples, "uverbs_port_rate_bytes_per_second").len(), 3);
    assert_eq!(values(&samples, "uverbs_check_last_run_timestamp_seconds"), [1_700_000_000.25]);
}

#[test]
fn a_replacement_changes_a_value_and_no_label() {
    let instance = |name, inode| {
        let samples = parse(&metrics(vec![device(name, 0, inode)])).expect("metrics");
        let sample = samples.into_iter().find(|sample| sample.name == "uverbs_device_instance");
        sample.map(|sample| (sample.labels, sample.value)).expect("a sample")
    };
    let ((labels, before), (other_labels, after)) = (instance("mlx5_0", 17), instance("new", 18));
    assert_eq!(labels, other_labels);
    assert_ne!(before, after);
}

#[test]
fn what_was_not_seen_has_no_sample() {
    let mut audit = Audit::default();
    audit.unknown("sysfs", "not there");
    let text = render(&audit, Duration::ZERO);
    let samples = parse(&text).expect(&text);
    assert!(values(&samples, "uverbs_devices").is_empty(), "{text}");
    assert_eq!(values(&samples, "uverbs_check_findings"), [0.0, 1.0, 0.0]);
    let mut unopened = device("rxe0", 0, 17);
    (unopened.proven, unopened.ports) = (None, Vec::new());
    let text = metrics(vec![unopened]);
    assert!(!text.contains("uverbs_device_proven") && !text.contains("uverbs_port"), "{text}");
}

#[cfg(feature = "demo")]
#[test]
fn the_info_of_a_device_has_what_netlink_reports() {
    use uverbs::sim::{DeviceSpec, Machine};

    let machine = Machine::new();
    machine.add(DeviceSpec::new(b"a\x1b\"\\").guid(0xa0).fw_version("1.2\"3")).expect("added");
    let host = uverbs::Host::simulated(&machine).expect("a host");
    let devices = uverbs::Registry::new(host).devices().expect("a list");
    let device = devices.iter().next().expect("a device");
    let text = metrics(vec![SeenDevice::new(device)]);
    let samples = parse(&text).expect(&text);
    let info = samples.iter().find(|sample| sample.name == "uverbs_device_info").expect("one");
    let inode = device.instance().ino.to_string();
    for (label, value) in [
        ("uverbs", "uverbs0"),
        ("device", r#"a\x1b\"\\"#),
        ("inode", &inode),
        ("node_guid", "0000:0000:0000:00a0"),
        ("driver", "rxe"),
        ("firmware", r#"1.2\"3"#),
    ] {
        assert_eq!(info.labels.get(label).map(String::as_str), Some(value), "{label}: {text}");
    }
    assert_eq!(info.labels.len(), 6);
}

proptest! {
    /// Names of any text, equal ones among them, and even numbers that are equal: every sample can be read, each series
    /// comes once, and each name is found as it was.
    #[test]
    fn any_names_make_metrics_without_duplicates(
        devices in prop::collection::vec(
            (prop_oneof!["[\"\\\\\n,={} ab]{0,4}", "\\PC{0,8}", ".{0,8}"], 0..4_u32, 0..3_u64),
            0..6,
        ),
    ) {
        let seen = devices.iter().map(|(name, number, inode)| device(name, *number, *inode));
        let text = metrics(seen.collect());
        let samples = parse(&text);
        prop_assert!(samples.is_ok(), "{samples:?} in {text}");
        let samples = samples.expect("parsed");
        for (name, ..) in devices.iter().filter(|(name, ..)| !name.is_empty()) {
            prop_assert!(
                samples.iter().any(|sample| sample.labels.get("device") == Some(name)),
                "{name:?} in {text}"
            );
        }
    }
}
