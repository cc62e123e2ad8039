//! `uverbs wait DEVICE`.

use std::collections::HashMap;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use uverbs::{Change, Device, ErrorKind, Host, Instance, Registry, Watch};

use crate::DeviceArg;
use crate::facts::{DeviceJson, Known};
use crate::open::seconds;
use crate::output::{Failure, JsonArgs, Out, note};
use crate::select::Selector;
use crate::verbose;

/// How often a device is looked at that is not ready: no uevent is sent when a node gets another mode.
const LOOK: Duration = Duration::from_secs(1);
/// How long after a device was added its registration counts as complete, unless it is known earlier. Netlink must not be
/// queried before: the kernel would try to load a module.
const SETTLE: Duration = Duration::from_millis(100);
/// The wait after a list that failed because ib_uverbs is being loaded or unloaded.
const UNSTABLE: Duration = Duration::from_millis(100);

/// Wait until a device can be opened, or until it has gone.
///
/// A device can be opened when its node is there, this user has access to it, and RDMA netlink reports the device. It may
/// be there already. While ib_uverbs is not loaded there are no devices, and the command waits.
///
/// `uverbs0`, `uverbs=N`, and device numbers are reused: the command waits for whatever device has that number.
/// Names change, too: udev may rename a device right after it was added. A GUID stays. With `--gone` it is the device
/// that matches first that has to go, even if another one replaces it.
#[derive(Args)]
pub(crate) struct WaitArgs {
    #[command(flatten)]
    device: DeviceArg,
    /// Give up after this time, a day at most; without it the command waits without a limit
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Wait until the device has gone; one that is not there has gone
    #[arg(long, visible_alias = "removed")]
    gone: bool,
    #[command(flatten)]
    pub(crate) json: JsonArgs,
}

#[derive(Serialize)]
struct WaitJson {
    /// The device that is ready; null with `--gone`.
    device: Option<DeviceJson>,
}

/// What was found at one look.
enum Found {
    /// The device is ready, or it has gone.
    Done(Option<Device>),
    /// Why not.
    NotYet(Failure),
}

/// Looks at the devices of a watch.
struct Looker<'a> {
    selector: &'a Selector,
    /// Devices that were added, and whose registration may not be complete, with the time when they were found.
    added: HashMap<Instance, Instant>,
    /// With `--gone`: the device, once it was found.
    target: Option<Device>,
}

pub(crate) fn run(args: &WaitArgs, out: &mut Out) -> Result<bool, Failure> {
    let selector = args.device.selector()?;
    let registry = Registry::new(Host::open()?);
    let device = wait(&registry, &selector, args.gone, args.timeout)?;
    if args.json.json {
        let device =
            device.as_ref().map(|device| DeviceJson::new(device, &Known::read_quietly(device)));
        out.json(&WaitJson { device })?;
    }
    Ok(true)
}

/// Waits until a device is ready and returns it, or until it has gone.
fn wait(
    registry: &Registry,
    selector: &Selector,
    gone: bool,
    timeout: Option<Duration>,
) -> Result<Option<Device>, Failure> {
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let left = || end.map(|end| end.saturating_duration_since(Instant::now()));
    let mut watch = None;
    let mut looker = Looker { selector, added: HashMap::new(), target: None };
    let mut noted = String::new();
    loop {
        // Taken before the look, so that there is one at the end of the time.
        let is_over = left().is_some_and(|left| left.is_zero());
        let (reason, pause) = match looker.follow(registry, &mut watch) {
            Ok(watch) => match looker.look(watch, gone)? {
                Found::Done(device) => return Ok(device),
                Found::NotYet(reason) => (reason, looker.next_look()),
            },
            Err(error) if error.kind() == ErrorKind::Unstable => (error.into(), UNSTABLE),
            Err(error) => return Err(error.into()),
        };
        if let (true, Some(timeout)) = (is_over, timeout) {
            let what = format_args!("timed out after {} s", timeout.as_secs_f64());
            return Err(reason.timed_out(what));
        }
        if verbose::is_on() && noted != reason.to_string() {
            noted = reason.to_string();
            note(format_args!("waiting: {noted}"));
        }
        let pause = left().map_or(pause, |left| left.min(pause));
        let Some(watch) = &mut watch else {
            thread::sleep(pause);
            continue;
        };
        match watch.wait(Some(pause)) {
            Ok(Some(change)) => looker.take(&change),
            Ok(None) => {}
            // The watch goes on, and lists again after a while.
            Err(error) if error.kind() == ErrorKind::Unstable => {}
            Err(error) => return Err(error.into()),
        }
    }
}

impl Looker<'_> {
    /// Begins the watch if there is none yet, and takes all changes that can be had at once.
    fn follow<'w>(
        &mut self,
        registry: &Registry,
        watch: &'w mut Option<Watch>,
    ) -> uverbs::Result<&'w Watch> {
        let watch = match watch {
            Some(watch) => watch,
            None => watch.insert(registry.watch()?),
        };
        while let Some(change) = watch.try_next()? {
            self.take(&change);
        }
        self.added.retain(|_, at| at.elapsed() < SETTLE);
        Ok(watch)
    }

    fn take(&mut self, change: &Change) {
        match change {
            Change::Added { device, .. } | Change::Replaced { new: device, .. } => {
                self.added.insert(device.instance(), Instant::now());
            }
            Change::Ready { device, .. } => {
                self.added.remove(&device.instance());
            }
            _ => {}
        }
    }

    /// How long to wait for a change before the next look.
    fn next_look(&self) -> Duration {
        let settled = self.added.values().map(|at| SETTLE.saturating_sub(at.elapsed()));
        settled.min().unwrap_or(LOOK)
    }

    fn is_settled(&self, device: &Device) -> bool {
        !self.added.contains_key(&device.instance())
    }

    /// # Errors
    /// What waiting does not mend.
    fn look(&mut self, watch: &Watch, gone: bool) -> Result<Found, Failure> {
        if let Some(target) = &self.target {
            return Ok(match target.is_known_gone() {
                true => Found::Done(None),
                false => Found::NotYet(still_there(target)),
            });
        }
        let devices = watch.devices();
        let found = self.selector.find_if(devices, |device| self.is_settled(device));
        let reason = match found {
            Ok(device) if gone => {
                let reason = still_there(&device);
                self.target = Some(device);
                return Ok(Found::NotYet(reason));
            }
            Ok(device) if !self.is_settled(&device) => {
                Failure::new("unstable", format!("{device}: it is being added")).of(&device)
            }
            Ok(device) => match device.check_ready() {
                Ok(()) => return Ok(Found::Done(Some(device))),
                Err(error) if error.kind() == ErrorKind::NetlinkUnavailable => {
                    return Err(error.into());
                }
                Err(error) => error.into(),
            },
            Err(failure) => match failure.kind() {
                "ambiguous" | "netlink_unavailable" => return Err(failure),
                // It may be the device, and cannot be opened here.
                "not_found" | "other_namespace" if gone => {
                    let is_adding = self.selector.needs_query()
                        && devices.iter().any(|device| !self.is_settled(device));
                    match (devices.faults().next(), is_adding) {
                        (Some(fault), _) => fault.into(),
                        (None, true) => failure,
                        (None, false) => return Ok(Found::Done(None)),
                    }
                }
                _ => failure,
            },
        };
        Ok(Found::NotYet(reason))
    }
}

fn still_there(device: &Device) -> Failure {
    Failure::new("os", format!("{device}: the device is still there")).of(device)
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use std::ffi::OsStr;

    use super::*;
    use uverbs::sim::{DeviceSpec, Machine, NodeKind};

    /// Far more than any of these waits takes.
    const LONG: Option<Duration> = Some(Duration::from_secs(60));
    const SHORT: Option<Duration> = Some(Duration::from_millis(50));

    fn machine() -> (Machine, Registry) {
        let machine = Machine::new();
        let registry = Registry::new(Host::simulated(&machine).expect("a host"));
        (machine, registry)
    }

    fn selector(text: &str) -> Selector {
        Selector::parse(OsStr::new(text)).expect("a selector")
    }

    /// Waits for a device while something is done to the machine.
    fn while_waiting(
        (machine, registry): &(Machine, Registry),
        text: &str,
        gone: bool,
        act: impl FnOnce(&Machine) + Send,
    ) -> Result<Option<Device>, Failure> {
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                act(machine);
            });
            wait(registry, &selector(text), gone, LONG)
        })
    }

    fn ready(
        registry: &Registry,
        text: &str,
        timeout: Option<Duration>,
    ) -> Result<Device, Failure> {
        let found = wait(registry, &selector(text), false, timeout);
        found.map(|device| device.expect("a device"))
    }

    fn gone(registry: &Registry, text: &str, timeout: Option<Duration>) -> Result<(), Failure> {
        wait(registry, &selector(text), true, timeout).map(|device| assert!(device.is_none()))
    }

    #[test]
    fn a_device_that_is_there_is_ready_at_once() {
        let (machine, registry) = machine();
        machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
        for text in ["rxe0", "uverbs0", "231:192", "guid=00000000000000a0", "name=rxe0"] {
            let device = ready(&registry, text, Some(Duration::ZERO));
            assert_eq!(device.expect(text).name(), "rxe0");
        }
    }

    #[test]
    fn a_device_that_is_added_later_is_waited_for() {
        for text in ["rxe1", "uverbs1", "guid=00000000000000b0"] {
            let scene = machine();
            scene.0.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            let found = while_waiting(&scene, text, false, |machine| {
                machine.add(DeviceSpec::new("rxe1").guid(0xb0)).expect("added");
            });
            assert_eq!(found.expect(text).expect("a device").name(), "rxe1");
        }
    }

    #[test]
    fn it_waits_for_ib_uverbs() {
        let scene = machine();
        scene.0.add(DeviceSpec::new("rxe0")).expect("added");
        scene.0.unload_ib_uverbs().expect("unloaded");
        let failure = ready(&scene.1, "rxe0", SHORT).expect_err("none there");
        assert_eq!(failure.kind(), "timeout");
        let found = while_waiting(&scene, "rxe0", false, Machine::load_ib_uverbs);
        assert_eq!(found.expect("found").expect("a device").name(), "rxe0");
    }

    #[test]
    fn a_node_is_waited_for_and_missed_at_the_end() {
        let scene = machine();
        scene.0.set_devtmpfs(false);
        scene.0.add(DeviceSpec::new("rxe0")).expect("added");
        let missing = ready(&scene.1, "rxe0", SHORT).expect_err("it has no node");
        assert_eq!(missing.kind(), "timeout");
        let text = missing.to_string();
        assert!(text.starts_with("timed out after 0.05 s: rxe0 (uverbs0): "), "{text}");
        assert!(text.contains("node"), "{text}");
        scene.0.set_node(0, NodeKind::Forbidden);
        let forbidden = ready(&scene.1, "rxe0", SHORT).expect_err("not for us").to_string();
        assert!(forbidden.starts_with("timed out after 0.05 s: rxe0 (uverbs0): "), "{forbidden}");
        assert_ne!(forbidden, text);
        let found = while_waiting(&scene, "rxe0", false, |machine| {
            machine.set_node(0, NodeKind::Static);
        });
        found.expect("ready");
    }

    #[test]
    fn a_device_that_is_being_added_is_not_queried() {
        for text in ["rxe0", "guid=00000000000000a0"] {
            let (machine, registry) = machine();
            let selector = selector(text);
            let mut looker = Looker { selector: &selector, added: HashMap::new(), target: None };
            let mut watch = None;
            looker.follow(&registry, &mut watch).expect("a watch");
            let id = machine.begin_add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            machine.add_step(id);
            machine.record_calls(true);
            let mut look = |gone| {
                let watch = looker.follow(&registry, &mut watch).expect("a watch");
                looker.look(watch, gone).expect("no error")
            };
            assert!(matches!(look(false), Found::NotYet(_)), "{text}");
            if text != "rxe0" {
                // It may turn out to be the device.
                assert!(matches!(look(true), Found::NotYet(_)), "{text}");
            }
            let log = machine.call_log();
            assert!(!log.iter().any(|call| call.starts_with("sendto")), "{text}: {log:?}");
            while machine.add_step(id).is_some() {}
            // The least time between two lists.
            machine.advance(Duration::from_millis(10));
            assert!(matches!(look(false), Found::Done(Some(_))), "{text}");
        }
    }

    #[test]
    fn what_waiting_does_not_mend_is_returned() {
        let (machine, registry) = machine();
        for name in ["rxe0", "rxe1"] {
            machine.add(DeviceSpec::new(name).guid(0xa0)).expect("added");
        }
        let failure = ready(&registry, "guid=00000000000000a0", LONG).expect_err("two");
        assert_eq!(failure.kind(), "ambiguous");
        assert!(failure.to_string().contains("rxe0 (uverbs0), rxe1 (uverbs1)"), "{failure}");
        machine.deny_netlink(Some(1));
        for text in ["rxe1", "guid=00000000000000b0"] {
            let failure = ready(&Registry::new(registry.host().clone()), text, LONG);
            assert_eq!(failure.expect_err("denied").kind(), "netlink_unavailable", "{text}");
        }
    }

    #[test]
    fn a_device_goes_also_when_it_is_replaced() {
        for text in ["rxe0", "uverbs0", "guid=00000000000000a0"] {
            let scene = machine();
            let id = scene.0.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            let failure = gone(&scene.1, text, SHORT).expect_err("it is there");
            assert_eq!(failure.kind(), "timeout");
            assert!(failure.to_string().contains("rxe0 (uverbs0): "), "{failure}");
            let found = while_waiting(&scene, text, true, |machine| {
                machine.remove(id);
                machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
            });
            assert!(found.expect(text).is_none());
        }
    }

    #[test]
    fn a_device_that_is_not_there_has_gone() {
        let (machine, registry) = machine();
        machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
        for text in ["rxe1", "uverbs1", "guid=00000000000000b0", "index=99"] {
            gone(&registry, text, Some(Duration::ZERO)).expect(text);
        }
    }
}
