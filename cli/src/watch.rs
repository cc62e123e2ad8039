//! `uverbs watch`.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;
use uverbs::{Change, Device, Devices, Error, Host, Instance, Name, Registry, ResyncReason, Watch};

use crate::ending::{Ending, Next};
use crate::facts::{DeviceJson, Known, or_dash};
use crate::output::{Failure, Out, note};
use crate::verbose;

/// Print a line for each device that is added, becomes ready, is renamed, is replaced or is removed.
///
/// A line has the time (UTC), the name, the node, the PCI address, the node GUID and what happened. A device is `ready`
/// when this user can open it. Its GUID is known from then on; `-` stands for what is not known. A line `resynchronised` means
/// that a device that came and went may be missing. Errors are printed on stderr, and the watch goes on.
///
/// The command ends at SIGINT and SIGTERM, also where its parent ignores them, and when the reader of its output has
/// gone.
#[derive(Args)]
pub(crate) struct WatchArgs {
    /// Begin with the devices that are there
    #[arg(long)]
    present: bool,
    /// Print JSON, one object a line
    #[arg(short, long)]
    pub(crate) json: bool,
}

/// One line. Names are escaped.
#[derive(Serialize)]
struct Line {
    /// UTC, RFC 3339, with microseconds: when the line was made.
    time: String,
    change: &'static str,
    /// The device; null where it is about no single one.
    device: Option<DeviceJson>,
    /// With `renamed`: the previous name.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// With `replaced`: the device that was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    new: Option<DeviceJson>,
    /// With `resynchronised`: why.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
    /// What happened, in words.
    #[serde(skip)]
    words: String,
}

impl Line {
    fn new(change: &'static str, device: Option<DeviceJson>) -> Self {
        Self {
            time: humantime::format_rfc3339_micros(SystemTime::now()).to_string(),
            change,
            device,
            from: None,
            new: None,
            reason: None,
            error: None,
            words: change.to_owned(),
        }
    }

    fn resynchronised(reason: ResyncReason) -> Self {
        let words = format!("resynchronised: {reason}");
        Self { reason: Some(reason.name()), words, ..Self::new("resynchronised", None) }
    }

    fn text(&self) -> String {
        let device = self.device.as_ref();
        let name = or_dash(&device.map(|device| &device.name));
        let node = or_dash(&device.map(|device| &device.uverbs));
        let guid = or_dash(&device.and_then(|device| device.node_guid.as_ref()));
        let pci = or_dash(&device.and_then(DeviceJson::pci));
        format!("{} {name} {node} {pci} {guid} {}\n", self.time, self.words)
    }
}

/// The devices that there are, with what is known of them.
struct Follower {
    watch: Watch,
    /// By instance, until the device is removed. What netlink reports is there from when it may be queried.
    known: HashMap<Instance, Known>,
    /// The devices that were there at the beginning and are still to be printed as such.
    present: Vec<Device>,
}

impl Follower {
    fn begin(registry: &Registry, present: bool) -> Result<Self, Failure> {
        let watch = match present {
            true => registry.watch_since(&Devices::default()),
            false => registry.watch(),
        }?;
        let mut follower = Self { watch, known: HashMap::new(), present: Vec::new() };
        let devices = follower.watch.devices().clone();
        if let (Err(error), false) = (registry.host().check_netlink(), devices.is_empty()) {
            Failure::from(error).report_as("no device will be reported as ready: ");
        }
        let kept = registry.host().keep_netlink();
        for device in &devices {
            follower.query(device);
        }
        drop(kept);
        if present {
            follower.present = devices.into_iter().collect();
        }
        Ok(follower)
    }

    /// Remembers what netlink reports of a device. To be called when its registration is complete: before that, the
    /// kernel tries to load a module.
    fn query(&mut self, device: &Device) {
        let Ok((known, failed)) = Known::read(device) else { return };
        if verbose::is_on() {
            failed.iter().for_each(note);
        }
        self.known.insert(device.instance(), known);
    }

    /// Remembers what a device belongs to. That needs no netlink.
    fn meet(&mut self, device: &Device) {
        let known = self.known.entry(device.instance()).or_default();
        if known.parent.is_none() {
            known.parent = device.parent().ok();
        }
    }

    fn device(&self, device: &Device) -> Option<DeviceJson> {
        let known = self.known.get(&device.instance());
        Some(DeviceJson::new(device, known.unwrap_or(&Known::default())))
    }

    fn named(&self, device: &Device, name: &Name) -> Option<DeviceJson> {
        self.device(device).map(|device| device.named(name))
    }

    fn line(&mut self, change: &Change) -> Option<Line> {
        let line = match change {
            Change::Added { device, name, .. } => {
                self.meet(device);
                let known = self.present.iter().position(|present| present == device);
                let what = match known.map(|at| self.present.swap_remove(at)) {
                    Some(_) => "present",
                    None => "added",
                };
                Line::new(what, self.named(device, name))
            }
            Change::Ready { device, .. } => {
                self.query(device);
                Line::new("ready", self.device(device))
            }
            Change::Removed { device, .. } => {
                let line = Line::new("removed", self.device(device));
                self.known.remove(&device.instance());
                line
            }
            Change::Replaced { old, new, name, .. } => {
                self.meet(new);
                let (old_json, new) = (self.device(old), self.named(new, name));
                self.known.remove(&old.instance());
                let words = format!("replaced by {name}");
                Line { new, words, ..Line::new("replaced", old_json) }
            }
            Change::Renamed { device, from, to, .. } => {
                let words = format!("renamed from {from}");
                let line = Line::new("renamed", self.named(device, to));
                Line { from: Some(from.to_string()), words, ..line }
            }
            Change::Resynchronised { reason, .. } => Line::resynchronised(*reason),
            // A kind of change that is newer than this command.
            _ => return None,
        };
        Some(line)
    }
}

/// An error is printed on stderr; with `--json` it is a line, too.
fn report(error: Error) -> Line {
    let failure = Failure::from(error);
    failure.report();
    Line { error: Some(failure), ..Line::new("error", None) }
}

pub(crate) fn run(args: &WatchArgs, out: &mut Out) -> Result<bool, Failure> {
    let ending = Ending::new().map_err(|error| Failure::os("cannot handle signals", &error))?;
    let registry = Registry::new(Host::open()?);
    let mut follower = Follower::begin(&registry, args.present)?;
    let failed = |error| Failure::os("poll", &error);
    loop {
        while let Some(change) = follower.watch.try_next().transpose() {
            let line = match change {
                Ok(change) => follower.line(&change),
                Err(error) => Some(report(error)).filter(|_| args.json),
            };
            if ending.wait_for_stdout().map_err(failed)? == Next::End {
                return Ok(true);
            }
            if let Some(line) = line {
                print(&line, args, out)?;
            }
        }
        if out.is_closed() || ending.wait_for(follower.watch.as_fd()).map_err(failed)? == Next::End
        {
            return Ok(true);
        }
    }
}

fn print(line: &Line, args: &WatchArgs, out: &mut Out) -> Result<(), Failure> {
    match args.json {
        true => out.json(line),
        false => out.text(&line.text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_line_with_json() {
        let line = serde_json::to_value(report(Error::provider("not this one"))).expect("JSON");
        assert_eq!(line["change"], "error");
        assert_eq!(line["error"]["kind"], "provider");
        assert!(line["device"].is_null());
    }

    #[cfg(feature = "demo")]
    mod simulated {
        use super::*;
        use serde_json::{Value, to_value};
        use uverbs::sim::{DeviceSpec, Machine};

        fn machine() -> (Machine, Registry) {
            let machine = Machine::new();
            let registry = Registry::new(Host::simulated(&machine).expect("a host"));
            (machine, registry)
        }

        fn lines(follower: &mut Follower) -> Vec<Line> {
            let mut lines = Vec::new();
            while let Some(change) = follower.watch.try_next().expect("no error") {
                lines.extend(follower.line(&change));
            }
            lines
        }

        /// The lines without their times, which are checked.
        fn texts(follower: &mut Follower) -> Vec<String> {
            let texts = lines(follower).into_iter().map(|line| {
                let text = line.text();
                let (time, rest) = text.trim_end().split_once(' ').expect("columns");
                let shape = time.replace(|c: char| c.is_ascii_digit(), "0");
                assert_eq!(shape, "0000-00-00T00:00:00.000000Z");
                rest.to_owned()
            });
            texts.collect()
        }

        #[test]
        fn each_change_is_a_line() {
            let (machine, registry) = machine();
            let old = machine.add(DeviceSpec::new("old").guid(0xa0)).expect("added");
            let mut follower = Follower::begin(&registry, false).expect("a watch");
            assert_eq!(texts(&mut follower), [""; 0]);

            let id = machine.begin_add(DeviceSpec::new("a\x1b").guid(0xb0)).expect("added");
            machine.add_step(id);
            machine.record_calls(true);
            assert_eq!(texts(&mut follower), [r"a\x1b uverbs1 - - added"]);
            let log = machine.call_log();
            assert!(!log.iter().any(|call| call.starts_with("sendto")), "queried: {log:?}");
            while machine.add_step(id).is_some() {}
            // The least time between two lists.
            machine.advance(std::time::Duration::from_millis(10));
            assert_eq!(texts(&mut follower), [r"a\x1b uverbs1 - 0000:0000:0000:00b0 ready"]);

            machine.advance(std::time::Duration::from_secs(1));
            machine.rename(id, b"b").expect("renamed");
            machine.remove(old);
            assert_eq!(
                texts(&mut follower),
                [
                    "old uverbs0 - 0000:0000:0000:00a0 removed",
                    r"b uverbs1 - 0000:0000:0000:00b0 renamed from a\x1b",
                ]
            );
            machine.advance(std::time::Duration::from_secs(1));
            machine.remove(id);
            // Numbers are reused from the lowest on.
            machine.add(DeviceSpec::new("c").guid(0xc0)).expect("added");
            machine.add(DeviceSpec::new("b").guid(0xd0)).expect("added");
            assert_eq!(
                texts(&mut follower),
                [
                    "b uverbs1 - 0000:0000:0000:00b0 replaced by b",
                    "c uverbs0 - - added",
                    "b uverbs1 - 0000:0000:0000:00d0 ready",
                    "c uverbs0 - 0000:0000:0000:00c0 ready",
                ]
            );
            assert_eq!(follower.known.len(), 2, "what is gone is forgotten");
        }

        #[test]
        fn it_may_begin_with_what_is_there() {
            let (machine, registry) = machine();
            machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            let mut follower = Follower::begin(&registry, true).expect("a watch");
            assert_eq!(texts(&mut follower), ["rxe0 uverbs0 - 0000:0000:0000:00a0 present"]);
            machine.advance(std::time::Duration::from_secs(1));
            assert_eq!(texts(&mut follower), ["rxe0 uverbs0 - 0000:0000:0000:00a0 ready"]);
            machine.add(DeviceSpec::new("rxe1")).expect("added");
            assert_eq!(texts(&mut follower)[0], "rxe1 uverbs1 - - added");
        }

        #[test]
        fn missing_events_are_a_line() {
            let (machine, registry) = machine();
            machine.deny_uevents(Some(1));
            let mut follower = Follower::begin(&registry, false).expect("a watch");
            let lines = lines(&mut follower);
            let [line] = lines.as_slice() else { panic!("{}", lines.len()) };
            assert!(line.text().ends_with(" - - - - resynchronised: there is no uevent socket\n"));
            let json = to_value(line).expect("JSON");
            assert_eq!(
                (&json["change"], &json["reason"]),
                (&"resynchronised".into(), &"no_events".into())
            );
        }

        #[test]
        fn json_has_the_documented_keys() {
            let (machine, registry) = machine();
            let id = machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            let mut follower = Follower::begin(&registry, false).expect("a watch");
            machine.rename(id, b"rxe1").expect("renamed");
            let json = |follower: &mut Follower| -> Vec<Value> {
                lines(follower).iter().map(|line| to_value(line).expect("JSON")).collect()
            };
            let keys = |line: &Value| -> Vec<String> {
                line.as_object().expect("an object").keys().cloned().collect()
            };
            let renamed = &json(&mut follower)[0];
            assert_eq!(keys(renamed), ["change", "device", "from", "time"]);
            assert_eq!(
                (&renamed["from"], &renamed["device"]["name"]),
                (&"rxe0".into(), &"rxe1".into())
            );
            assert_eq!(renamed["device"]["node_guid"], "0000:0000:0000:00a0");

            machine.advance(std::time::Duration::from_secs(1));
            machine.remove(id);
            machine.add(DeviceSpec::new("rxe2").guid(0xb0)).expect("added");
            let replaced = &json(&mut follower)[0];
            assert_eq!(keys(replaced), ["change", "device", "new", "time"]);
            assert_eq!(
                (&replaced["device"]["name"], &replaced["new"]["name"]),
                (&"rxe1".into(), &"rxe2".into())
            );
            assert!(replaced["new"]["node_guid"].is_null());
        }
    }
}
