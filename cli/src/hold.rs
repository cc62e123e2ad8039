//! Holding a device open: its async events and its removal are reported meanwhile.

use std::thread;
use std::time::{Duration, Instant};

use uverbs::{AsyncEvent, AsyncEvents, Device, Opened};

use crate::output::{Failure, note};
use crate::select::is_gone;

/// How often it is looked whether the device is still there. Drivers that do not disassociate report no
/// removal, and the removal waits until the context is closed.
const LOOK: Duration = Duration::from_millis(500);

/// Holds an open device for a time.
///
/// # Errors
/// `Removed` when the device is removed meanwhile, `DeviceFatal` when it reports a fatal error and stays.
/// Both end the hold at once.
pub(crate) fn hold(opened: &Opened, time: Duration) -> Result<(), Failure> {
    let device = device(opened);
    let mut events = match events(opened) {
        Ok(events) => Some(events),
        Err(error) if is_gone(&error) => return Err(removed(device)),
        Err(error) => {
            Failure::from(error).report_as("no async events: ");
            None
        }
    };
    let mut looks = true;
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let event = next(&mut events, left.min(LOOK));
        if looks {
            match is_present(opened) {
                Ok(true) => {}
                Ok(false) => return Err(removed(device)),
                Err(error) => {
                    Failure::from(error).report_as("whether the device is still there: ");
                    looks = false;
                }
            }
        }
        match event {
            // A fatal error of the device is the last event.
            Some(_) if events.as_ref().is_some_and(AsyncEvents::has_ended) => {
                return Err(fatal(device));
            }
            Some(event) => note(in_words(device, &event)),
            None if left.is_zero() => return Ok(()),
            None => {}
        }
    }
}

/// The next event within a time, which passes where there are no events to be had.
fn next(events: &mut Option<AsyncEvents>, time: Duration) -> Option<AsyncEvent> {
    let Some(stream) = events.as_mut().filter(|events| !events.has_ended()) else {
        thread::sleep(time);
        return None;
    };
    match stream.wait(Some(time)) {
        Ok(event) => event,
        Err(error) => {
            // A removal is noticed by looking.
            if !is_gone(&error) {
                Failure::from(error).report_as("no more async events: ");
            }
            *events = None;
            None
        }
    }
}

fn device(opened: &Opened) -> &Device {
    match opened {
        Opened::Proven(context) => context.device(),
        Opened::Unproven(context) => context.device(),
    }
}

fn events(opened: &Opened) -> uverbs::Result<AsyncEvents> {
    match opened {
        Opened::Proven(context) => context.async_events(),
        Opened::Unproven(context) => context.async_events(),
    }
}

fn is_present(opened: &Opened) -> uverbs::Result<bool> {
    match opened {
        Opened::Proven(context) => context.is_device_present(),
        Opened::Unproven(context) => context.is_device_present(),
    }
}

fn removed(device: &Device) -> Failure {
    let message = format!("{device}: the device was removed while it was held open");
    Failure::new("removed", message).of(device)
}

fn fatal(device: &Device) -> Failure {
    let message = format!("{device}: the device reported a fatal error while it was held open");
    Failure::new("device_fatal", message).of(device)
}

fn in_words(device: &Device, event: &AsyncEvent) -> String {
    match event.port() {
        Some(port) => format!("{device}: async event: {}, port {port}", event.kind),
        None => format!("{device}: async event: {}", event.kind),
    }
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use super::*;
    use uverbs::sim::{DeviceId, DeviceSpec, Machine};
    use uverbs::{Host, Registry};

    fn opened(disassociates: bool) -> (Machine, DeviceId, Opened) {
        let machine = Machine::new();
        let spec = DeviceSpec::new("rxe0").disassociates(disassociates);
        let id = machine.add(spec).expect("added");
        let host = Host::simulated(&machine).expect("a host");
        let devices = Registry::new(host).devices().expect("a list");
        let context = devices.by_name("rxe0").expect("listed").open().expect("opened");
        (machine, id, Opened::Proven(context))
    }

    /// Holds the device while something is done to it, and returns the kind of failure.
    fn while_held(disassociates: bool, act: impl FnOnce(&Machine, DeviceId) + Send) -> String {
        let (machine, id, opened) = opened(disassociates);
        let held = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(100));
                act(&machine, id);
            });
            hold(&opened, Duration::from_secs(60))
        });
        let failure = held.expect_err("it ends before the time is over");
        let json = serde_json::to_value(&failure).expect("JSON");
        assert_eq!(json["device"], "rxe0 (uverbs0)");
        json["kind"].as_str().expect("a kind").to_owned()
    }

    #[test]
    fn a_device_that_stays_is_held_to_the_end() {
        let (machine, id, opened) = opened(true);
        hold(&opened, Duration::ZERO).expect("held");
        machine.event(id, 9, 1);
        let start = Instant::now();
        hold(&opened, Duration::from_millis(20)).expect("held");
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn a_removal_ends_it() {
        for disassociates in [true, false] {
            assert_eq!(while_held(disassociates, |machine, id| machine.remove(id)), "removed");
        }
    }

    #[test]
    fn a_fatal_error_of_a_device_that_stays_ends_it() {
        assert_eq!(while_held(true, |machine, id| machine.event(id, 8, 0)), "device_fatal");
    }

    #[test]
    fn an_event_is_in_words() {
        let (machine, id, opened) = opened(true);
        let mut events = events(&opened).expect("events");
        machine.event(id, 10, 1);
        let event = events.try_next().expect("asked").expect("an event");
        assert_eq!(
            in_words(device(&opened), &event),
            "rxe0 (uverbs0): async event: port error, port 1"
        );
    }
}
