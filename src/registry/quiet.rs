//! While a registry is watched, its lists need no sweep as long as no uevent has come.

use std::sync::Arc;
use std::time::Duration;

use super::{Devices, Inner, Registry};
use crate::kernel::Kernel;
use crate::uevents::Uevents;

/// For how long a list is current without a sweep. Uevents can be lost without a sign.
const CURRENT: Duration = Duration::from_secs(1);
/// The size in bytes of the receive buffer. An overflow costs a sweep and nothing else.
const ROOM: usize = 64 * 1024;

/// The registry's own ear for uevents.
pub(super) struct Quiet {
    uevents: Arc<Uevents>,
    /// How many watches there are.
    watches: usize,
    /// How many times something was heard.
    heard: u64,
    /// The number of things heard when the last complete sweep began, and when that was.
    swept: Option<(u64, Duration)>,
    /// A watch has found that events do not arrive.
    is_deaf: bool,
}

/// The moment at which a sweep begins.
pub(super) struct Begin {
    /// The counts of two sockets cannot be compared.
    of: Arc<Uevents>,
    heard: u64,
    at: Duration,
}

impl Quiet {
    /// To be called before a sweep.
    pub(super) fn begin(&self, kernel: &Kernel) -> Begin {
        Begin { of: self.uevents.clone(), heard: self.heard, at: kernel.now() }
    }

    /// To be called when the list has what the sweep found. It counts only if it began under the same socket: the last
    /// watch may have been dropped meanwhile, and another one begun.
    pub(super) fn end(&mut self, begin: &Begin) {
        if Arc::ptr_eq(&begin.of, &self.uevents) {
            self.swept = self.swept.max(Some((begin.heard, begin.at)));
        }
    }

    /// Whether nothing was heard since the last sweep began, which was less than a second ago. Takes one system
    /// call if nothing is queued.
    pub(super) fn is_quiet(&mut self, kernel: &Kernel) -> bool {
        if self.is_deaf {
            return false;
        }
        let Some((heard, at)) = self.swept else { return false };
        if kernel.now().saturating_sub(at) >= CURRENT {
            return false;
        }
        match self.uevents.drain() {
            Ok(now) if !now.change && now.lost.is_none() && !now.more => {}
            Ok(_) => self.heard += 1,
            Err(error) => {
                tracing::debug!(%error, "lists are swept from here on");
                self.heard += 1;
                self.is_deaf = true;
            }
        }
        self.heard == heard
    }
}

/// While this exists, lists of the registry need no sweep where nothing has happened.
#[derive(Debug)]
pub(crate) struct Attached(Registry);

impl Attached {
    pub(crate) fn to(registry: &Registry) -> Self {
        let Inner { host, .. } = &*registry.0;
        let is_first = registry.lock().quiet.is_none();
        // A socket that was passed in is the watch's.
        let uevents = match is_first && host.has_own_uevents() {
            true => host.uevents(ROOM).unwrap_or_else(|error| {
                tracing::debug!(%error, "lists are swept each time");
                None
            }),
            false => None,
        };
        let mut state = registry.lock();
        match (&mut state.quiet, uevents) {
            (Some(quiet), _) => quiet.watches += 1,
            (quiet @ None, Some(uevents)) => {
                *quiet = Some(Quiet { uevents, watches: 1, heard: 0, swept: None, is_deaf: false });
            }
            (None, None) => {}
        }
        drop(state);
        Self(registry.clone())
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0
    }

    /// Notes whether events were found missing.
    pub(crate) fn set_deaf(&self, is_deaf: bool) {
        if let Some(quiet) = &mut self.0.lock().quiet {
            quiet.is_deaf = is_deaf;
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let gone = match &mut state.quiet {
            Some(quiet) if quiet.watches > 1 => {
                quiet.watches -= 1;
                None
            }
            quiet => quiet.take(),
        };
        drop(state);
        drop(gone);
    }
}

impl Registry {
    /// The last list, if it is known to be current.
    pub(super) fn current(&self) -> Option<Devices> {
        let mut state = self.lock();
        let state = &mut *state;
        let quiet = state.quiet.as_mut()?;
        if !quiet.is_quiet(self.0.host.kernel()) {
            return None;
        }
        state.is_settled(&self.0.host).then(|| state.devices.clone())
    }

    /// Lists the devices by a sweep, without attaching providers.
    pub(crate) fn sweep(&self) -> crate::error::Result<Devices> {
        self.list(1)
    }
}
