//! A device's provider, kept as long as the device's record.
//!
//! No lock is held while the program's code runs, and nothing here waits for that code: a call that would have to
//! wait returns [`ErrorKind::Busy`] at once.

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, ThreadId};

use super::matching::{Found, Providers};
use super::{Allocation, DeviceProvider, PinnedView, ProviderInfo, data_of};
use crate::error::{Error, ErrorKind, Result};
use crate::ids::DriverId;
use crate::pin::Pin;
use crate::record::Record;

/// A device's provider, and the object that a registered provider made for the device.
pub(crate) struct Provided {
    found: Option<Found>,
    info: ProviderInfo,
    /// The object of a registered provider that was attached, or the error of `attach`.
    attached: Option<std::result::Result<Box<dyn DeviceProvider>, String>>,
}

impl Provided {
    fn find(providers: &Providers, view: &PinnedView<'_>) -> Result<Self> {
        let found = providers.find(view)?;
        let info = ProviderInfo {
            provider: found.as_ref().map(|(found, by)| (found.name().to_owned(), *by)),
            abi_version: view.abi_version(),
            abi_versions: found.as_ref().map_or(0..=u32::MAX, |(found, _)| found.abi_versions()),
        };
        Ok(Self { found: found.map(|(found, _)| found), info, attached: None })
    }

    /// Whether the program's code has to run before the device can be opened.
    fn wants_attaching(&self) -> bool {
        matches!(self.found, Some(Found::Registered(_))) && self.info.is_abi_known()
    }

    /// Runs `attach`. Keeps an error, except `Busy`, which is temporary.
    fn attach(&mut self, record: &Record, view: &PinnedView<'_>) -> Result<()> {
        let Some(Found::Registered(registered)) = &self.found else { return Ok(()) };
        let attached = {
            let _inside = Inside::enter();
            registered.provider.attach(view)
        };
        self.attached = Some(match attached {
            Ok(object) => Ok(object),
            Err(error) => {
                let text = self.refusal("did not attach", &error);
                if error.kind() == ErrorKind::Busy {
                    return Err(Error::new(ErrorKind::Busy, text));
                }
                tracing::warn!(device = record.label(), "{text}: it does not open");
                Err(text)
            }
        });
        Ok(())
    }

    fn refusal(&self, what: &str, error: &Error) -> String {
        format!("{} {what}: {error}", self.found.as_ref().map_or("", Found::name))
    }

    pub(crate) fn info(&self) -> &ProviderInfo {
        &self.info
    }

    /// The driver of a device whose driver id the kernel does not report.
    pub(crate) fn driver(&self) -> Option<DriverId> {
        match &self.found {
            Some(Found::BuiltIn(provider)) => Some(provider.driver),
            _ => None,
        }
    }

    /// Whether the device can be opened.
    ///
    /// # Errors
    /// `AbiMismatch`; `Provider` with the error of `attach`.
    pub(crate) fn require_usable(&self) -> Result<()> {
        let ProviderInfo { provider, abi_version, abi_versions } = &self.info;
        let Some((name, _)) = provider else { return Ok(()) };
        if !self.info.is_abi_known() {
            let (from, to) = (abi_versions.start(), abi_versions.end());
            let text =
                format!("the driver's is {abi_version}, the provider {name} has {from} to {to}");
            return Err(Error::new(ErrorKind::AbiMismatch, text));
        }
        match &self.attached {
            Some(Err(text)) => Err(Error::new(ErrorKind::Provider, text.as_str())),
            _ => Ok(()),
        }
    }

    /// The driver's part of GET_CONTEXT. The program's code runs in here and not after: the result is a value.
    pub(crate) fn allocation(
        &self,
        slot: &Slot,
        record: &Record,
        pin: &Pin,
        driver: DriverId,
    ) -> Result<Allocation> {
        let Some(Ok(object)) = &self.attached else {
            let data = data_of(driver);
            return Ok(Allocation::new(data.input, data.output_len));
        };
        let view = PinnedView::new(record, pin, Some(driver))?;
        let _allocating = slot.enter_allocation()?;
        let _inside = Inside::enter();
        object.allocation(&view).map_err(|error| {
            // The provider's error may come from another device, so its kind must not describe this one.
            let kind = match error.kind() {
                ErrorKind::Busy => ErrorKind::Busy,
                _ => ErrorKind::Provider,
            };
            Error::new(kind, self.refusal("gave no allocation", &error))
        })
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        let _inside = Inside::enter();
        drop(self.attached.take());
    }
}

impl fmt::Debug for Provided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

/// A record's place for its provider.
#[derive(Default)]
pub(crate) struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    /// Found once: the properties it is found by do not change during the life of the instance, except the name.
    provided: Option<Arc<Provided>>,
    /// The thread that is in `attach` for this device.
    attaching: Option<ThreadId>,
    /// The threads that are in `allocation` for this device.
    allocating: Vec<ThreadId>,
}

impl State {
    /// The provider, if it is known already.
    ///
    /// # Errors
    /// `Busy` while it is being attached.
    fn known(&self) -> Result<Option<Arc<Provided>>> {
        let text = match self.attaching {
            None => return Ok(self.provided.clone()),
            Some(thread) if thread == thread::current().id() => {
                "this call comes from inside its provider's attach"
            }
            Some(_) => "its provider is being attached on another thread",
        };
        Err(Error::new(ErrorKind::Busy, text))
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// The provider, if it is known already.
    pub(crate) fn known(&self) -> Option<Arc<Provided>> {
        self.lock().provided.clone()
    }

    /// Returns the provider. Finds and attaches it first, unless it is known. `driver` is the one that netlink
    /// reports.
    pub(crate) fn find(
        &self,
        providers: &Providers,
        record: &Record,
        pin: &Pin,
        driver: Option<DriverId>,
    ) -> Result<Arc<Provided>> {
        self.find_and(providers, record, pin, driver, |state, provided| {
            state.provided.insert(provided).clone()
        })
    }

    /// The same for a single open, by a driver that only the descriptor reports. The descriptor may be another
    /// device's, so the record does not keep the provider.
    pub(crate) fn find_for_one_open(
        &self,
        providers: &Providers,
        record: &Record,
        pin: &Pin,
        driver: DriverId,
    ) -> Result<Arc<Provided>> {
        self.find_and(providers, record, pin, Some(driver), |_, provided| provided)
    }

    fn find_and(
        &self,
        providers: &Providers,
        record: &Record,
        pin: &Pin,
        driver: Option<DriverId>,
        keep: impl FnOnce(&mut State, Arc<Provided>) -> Arc<Provided>,
    ) -> Result<Arc<Provided>> {
        let known = self.lock().known()?;
        if let Some(known) = known {
            return Ok(known);
        }
        let view = PinnedView::new(record, pin, driver)?;
        let mut provided = Provided::find(providers, &view)?;
        // The device is alive after everything was read, so it was this device's.
        pin.read_device_number()?;
        let mut state = self.lock();
        if let Some(known) = state.known()? {
            return Ok(known);
        }
        if provided.wants_attaching() {
            state.attaching = Some(thread::current().id());
            drop(state);
            let attaching = Attaching(self);
            provided.attach(record, &view)?;
            state = attaching.end();
        }
        Ok(keep(&mut state, Arc::new(provided)))
    }

    /// Records that this thread is in `allocation`.
    fn enter_allocation(&self) -> Result<Allocating<'_>> {
        let (mut state, thread) = (self.lock(), thread::current().id());
        if state.allocating.contains(&thread) {
            let text = "this call comes from inside its provider's allocation";
            return Err(Error::new(ErrorKind::Busy, text));
        }
        state.allocating.push(thread);
        Ok(Allocating { slot: self, thread })
    }
}

/// Exists while a thread is in `attach`. If `attach` fails or panics, the next call that needs the provider runs it
/// again.
struct Attaching<'a>(&'a Slot);

impl<'a> Attaching<'a> {
    /// Ends it, and returns the lock, so that the caller can keep the provider before another thread attaches.
    fn end(self) -> MutexGuard<'a, State> {
        let slot = self.0;
        std::mem::forget(self);
        let mut state = slot.lock();
        state.attaching = None;
        state
    }
}

impl Drop for Attaching<'_> {
    fn drop(&mut self) {
        self.0.lock().attaching = None;
    }
}

/// Exists while a thread is in `allocation`. Dropping it ends that, after a panic, too.
struct Allocating<'a> {
    slot: &'a Slot,
    thread: ThreadId,
}

impl Drop for Allocating<'_> {
    fn drop(&mut self) {
        self.slot.lock().allocating.retain(|thread| *thread != self.thread);
    }
}

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Exists while the program's code runs on this thread, called from this module.
struct Inside(());

impl Inside {
    fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Whether this call comes from inside a provider. A list attaches nothing then, because each device whose `attach`
/// lists would nest one level deeper.
pub(crate) fn is_inside() -> bool {
    DEPTH.get() > 0
}
