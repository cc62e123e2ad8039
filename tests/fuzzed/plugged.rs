//! A provider of the program's own. The library calls its code, which uses the library meanwhile.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use uverbs::sim::Machine;
use uverbs::{
    Allocation, DeviceProvider, DriverId, Error, Host, Match, PinnedView, Provider, Registry,
    Result,
};

use crate::sanity::sane;

/// Everything that has been attached.
pub(crate) struct Plugged {
    machine: Machine,
    registry: Mutex<Option<Registry>>,
    /// How many objects there are of each directory: at most one.
    attached: Mutex<BTreeMap<u64, usize>>,
    /// How many of its own calls it is inside of.
    depth: AtomicUsize,
}

/// With `n` devices that open all others from inside, the calls without a limit would grow as `n!`.
const DEEPEST: usize = 2;

impl Plugged {
    /// A registry with such a provider for the foreign driver.
    pub(crate) fn registry(machine: &Machine, host: Host) -> (Registry, Arc<Self>) {
        let (registry, attached, depth) = Default::default();
        let machine = machine.clone();
        let plugged = Arc::new(Self { machine, registry, attached, depth });
        let provider = Arc::new(ForMlx4(plugged.clone())) as Arc<dyn Provider>;
        let registry = Registry::with_providers(host, [provider]);
        *plugged.registry.lock().expect("no panic") = Some(registry.clone());
        (registry, plugged)
    }

    /// Lists the devices, and opens each.
    fn use_all(&self) {
        if self.depth.fetch_add(1, Relaxed) < DEEPEST {
            self.list_and_open();
        }
        self.depth.fetch_sub(1, Relaxed);
    }

    fn list_and_open(&self) {
        // The lock is released meanwhile, because this may be called again from inside.
        let registry = self.registry.lock().expect("no panic").clone();
        let Some(devices) = registry.and_then(|registry| sane(registry.devices())) else { return };
        for device in &devices {
            if let Some(context) = sane(device.open()) {
                let bound = self.machine.directory_of(context.as_fd());
                assert_eq!(bound, Some(device.instance().ino), "WRONG DEVICE from inside");
            }
        }
    }

    /// From here on the provider's code uses no registry, so that the registry can be dropped.
    pub(crate) fn unplug(&self) {
        let registry = self.registry.lock().expect("no panic").take();
        drop(registry);
    }

    /// Requires that everything was dropped.
    pub(crate) fn check_gone(&self) {
        let attached = self.attached.lock().expect("no panic");
        assert!(attached.values().all(|left| *left == 0), "not dropped: {attached:?}");
    }
}

struct ForMlx4(Arc<Plugged>);

impl Provider for ForMlx4 {
    fn name(&self) -> &str {
        "plugged"
    }

    fn matches(&self) -> &[Match] {
        const { &[Match::Driver(DriverId::MLX4)] }
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        0..=9
    }

    fn attach(&self, device: &PinnedView<'_>) -> Result<Box<dyn DeviceProvider>> {
        let ino = device.instance().ino;
        if device.attribute("ibdev")?.is_empty() {
            return Err(Error::provider("no name"));
        }
        self.0.use_all();
        let count = {
            let mut attached = self.0.attached.lock().expect("no panic");
            let count = attached.entry(ino).or_default();
            *count += 1;
            *count
        };
        assert!(count == 1, "{count} objects of {device:?}");
        Ok(Box::new(Attached { plugged: self.0.clone(), ino }))
    }
}

struct Attached {
    plugged: Arc<Plugged>,
    ino: u64,
}

impl DeviceProvider for Attached {
    fn allocation(&self, device: &PinnedView<'_>) -> Result<Allocation> {
        assert_eq!(device.instance().ino, self.ino);
        if device.uverbs_number() % 2 == 1 {
            self.plugged.use_all();
        }
        Ok(Allocation::new([], 16))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.plugged.use_all();
        let mut attached = self.plugged.attached.lock().expect("no panic");
        let left = attached.get_mut(&self.ino).expect("it was attached");
        *left = left.checked_sub(1).expect("dropped more often than attached");
    }
}
