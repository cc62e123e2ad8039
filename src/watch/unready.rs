//! Devices that were added and cannot be used yet.

use std::time::Duration;

use crate::device::Device;
use crate::error::ErrorKind;

/// How long after a device was found it is checked first, unless the end of a registration is heard before. Netlink
/// must not be queried earlier: the kernel would try to load a module.
const FIRST: Duration = Duration::from_millis(50);
/// How long after the first check the second one is. Each further wait is twice as long, up to a limit.
const SECOND: Duration = Duration::from_millis(100);
/// A device that has waited for as long as this is not checked out of turn any more.
const NEW: Duration = Duration::from_secs(2);
/// The longest wait. Where the node is missing, a check takes a few system calls.
const LONGEST: Duration = Duration::from_secs(8);
/// The longest wait for a device of another network namespace. It cannot become ready without becoming another
/// instance, and each check takes a netlink dump.
const OTHER_NAMESPACE: Duration = Duration::from_secs(3600);

/// How many devices are checked at once. A check may take a netlink dump of all devices; the others stay due.
const AT_ONCE: usize = 16;

#[derive(Default)]
pub(super) struct Unready(Vec<Waiting>);

struct Waiting {
    device: Device,
    due: Duration,
    /// The wait after the next check; zero before the first one.
    wait: Duration,
}

impl Unready {
    pub(super) fn add(&mut self, device: &Device, now: Duration) {
        let device = device.clone();
        self.0.push(Waiting { device, due: now + FIRST, wait: Duration::ZERO });
    }

    pub(super) fn remove(&mut self, device: &Device) {
        self.0.retain(|waiting| waiting.device != *device);
    }

    /// The registration of some device is complete: those that are new are checked now.
    pub(super) fn hurry(&mut self, now: Duration) {
        for waiting in self.0.iter_mut().filter(|waiting| waiting.wait < NEW) {
            waiting.due = waiting.due.min(now);
        }
    }

    /// Checks those that are due, and passes on those that are ready.
    pub(super) fn check(&mut self, now: Duration, mut ready: impl FnMut(Device)) {
        let mut left = AT_ONCE;
        self.0.retain_mut(|waiting| {
            if waiting.due > now || left == 0 {
                return true;
            }
            left -= 1;
            let error = match waiting.device.check_ready() {
                Ok(()) => {
                    ready(waiting.device.clone());
                    return false;
                }
                Err(error) => error,
            };
            if waiting.wait.is_zero() {
                tracing::debug!(%error, "not ready");
            }
            let longest = match error.kind() {
                ErrorKind::OtherNamespace => OTHER_NAMESPACE,
                _ => LONGEST,
            };
            waiting.wait = (waiting.wait * 2).clamp(SECOND, longest);
            waiting.due = now + waiting.wait;
            true
        });
    }

    pub(super) fn due(&self) -> Option<Duration> {
        self.0.iter().map(|waiting| waiting.due).min()
    }
}
