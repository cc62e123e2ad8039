//! A provider's code that uses the library while the library calls it: nothing waits, nothing panics.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex, OnceLock, mpsc};
use std::time::Duration;

use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{
    Allocation, Device, DeviceProvider, DriverId, Error, ErrorKind, Match, PinnedView, Provider,
    Registry, Result,
};

use crate::{host, kind, listed};

type Script = Box<dyn Fn(&Own, &PinnedView<'_>) -> Result<()> + Send + Sync>;
type DropScript = Box<dyn Fn(&Own) + Send + Sync>;

/// A provider that runs the test's closures.
#[derive(Default)]
struct Own {
    registry: OnceLock<Registry>,
    attach: Option<Script>,
    allocation: Option<Script>,
    drop: Option<DropScript>,
    attached: AtomicUsize,
    dropped: AtomicUsize,
}

impl Own {
    fn registry(&self) -> &Registry {
        self.registry.get().expect("set")
    }

    fn device(&self, name: &str) -> Device {
        listed(self.registry(), name)
    }

    fn counts(&self) -> (usize, usize) {
        (self.attached.load(Relaxed), self.dropped.load(Relaxed))
    }
}

struct Shared(Arc<Own>, [Match; 1]);

impl Provider for Shared {
    fn name(&self) -> &str {
        "own"
    }

    fn matches(&self) -> &[Match] {
        &self.1
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        0..=9
    }

    fn attach(&self, device: &PinnedView<'_>) -> Result<Box<dyn DeviceProvider>> {
        self.0.attached.fetch_add(1, Relaxed);
        if let Some(attach) = &self.0.attach {
            attach(&self.0, device)?;
        }
        Ok(Box::new(Attached(self.0.clone())))
    }
}

struct Attached(Arc<Own>);

impl DeviceProvider for Attached {
    fn allocation(&self, device: &PinnedView<'_>) -> Result<Allocation> {
        if let Some(allocation) = &self.0.allocation {
            allocation(&self.0, device)?;
        }
        Ok(Allocation::default())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Relaxed);
        if let Some(drop) = &self.0.drop {
            drop(&self.0);
        }
    }
}

/// A machine with devices of that provider, and `r`, an rxe device.
fn machine(names: &[&str]) -> Machine {
    let machine = Machine::new();
    for name in names {
        machine.add(DeviceSpec::new(*name).driver(77, 1)).expect("added");
    }
    machine.add(DeviceSpec::new("r")).expect("added");
    machine
}

fn registry(machine: &Machine, own: Own) -> (Registry, Arc<Own>) {
    registry_for(machine, DriverId::from_raw(77), own)
}

fn registry_for(machine: &Machine, driver: DriverId, own: Own) -> (Registry, Arc<Own>) {
    let own = Arc::new(own);
    let provider = Arc::new(Shared(own.clone(), [Match::Driver(driver)])) as Arc<dyn Provider>;
    let registry = Registry::with_providers(host(machine), [provider]);
    assert!(own.registry.set(registry.clone()).is_ok());
    (registry, own)
}

/// Runs it on a separate thread. A thread that waits endlessly is detected, and ends with the process.
fn in_time(run: impl FnOnce() + Send + 'static) {
    let (done, is_done) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        run();
        let _ = done.send(());
    });
    if is_done.recv_timeout(Duration::from_secs(20)) == Err(mpsc::RecvTimeoutError::Timeout) {
        panic!("a thread waits endlessly");
    }
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn from_inside_attach_its_own_device_is_busy_and_others_open() {
    in_time(|| {
        let machine = machine(&["a"]);
        let elsewhere = Registry::new(host(&machine));
        let attach: Script = Box::new(move |own, view| {
            let devices = own.registry().devices()?;
            assert_eq!(devices.len(), 2);
            let device = devices.by_name(view.name().as_bytes())?;
            let error = device.open().expect_err("no provider yet");
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("inside"), "{error}");
            assert_eq!(kind(device.provider()), ErrorKind::Busy);
            assert_eq!(kind(device.open_allow_unproven()), ErrorKind::Busy);
            // Devices that need no provider work.
            assert_eq!(device.driver_id()?, Some(DriverId::from_raw(77)));
            device.query()?;
            own.device("r").open()?;
            // In another registry it is another record.
            listed(&elsewhere, "a").open()?;
            Ok(())
        });
        let (registry, own) = registry(&machine, Own { attach: Some(attach), ..Own::default() });
        let device = listed(&registry, "a");
        assert_eq!(own.counts(), (1, 0));
        device.open().expect("opened");
        assert_eq!(own.counts(), (1, 0));
    });
}

#[test]
fn another_thread_does_not_wait_for_attach() {
    in_time(|| {
        let machine = machine(&["a"]);
        let (begun, is_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let may_go_on = Mutex::new(may_go_on);
        let attach: Script = Box::new(move |_, _| {
            begun.send(()).expect("somebody listens");
            may_go_on.lock().expect("no panic").recv().expect("sent");
            Ok(())
        });
        let (registry, own) = registry(&machine, Own { attach: Some(attach), ..Own::default() });
        std::thread::scope(|scope| {
            let first = scope.spawn(|| listed(&registry, "a"));
            is_begun.recv().expect("begun");
            let device = listed(&registry, "a");
            for _ in 0..2 {
                let error = device.open().expect_err("no provider yet");
                assert_eq!(error.kind(), ErrorKind::Busy);
                assert!(error.to_string().contains("another thread"), "{error}");
            }
            assert!(!first.is_finished());
            go_on.send(()).expect("it waits");
            let first = first.join().expect("no panic");
            assert_eq!(first, device);
            device.open().expect("opened");
            assert_eq!(own.counts(), (1, 0));
        });
    });
}

#[test]
fn two_threads_that_attach_one_and_open_the_other_do_not_wait() {
    in_time(|| {
        let machine = machine(&["a", "b"]);
        let (both_in, both_tried) = (Barrier::new(2), Barrier::new(2));
        let attach: Script = Box::new(move |own, view| {
            let is_first = own.counts().0 <= 2;
            if is_first {
                both_in.wait();
            }
            let peer = if *view.name() == "a" { "b" } else { "a" };
            let opened = own.device(peer).open();
            if is_first {
                both_tried.wait();
            }
            assert!(!is_first || opened.is_err());
            opened.map(drop)
        });
        let (registry, own) = registry(&machine, Own { attach: Some(attach), ..Own::default() });
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| registry.devices().expect("a list"));
            }
        });
        // The error is temporary and not kept, so they are attached again. They still need each other, which is an
        // error again.
        let (before, dropped) = own.counts();
        assert!(before >= 2 && dropped == 0);
        let device = listed(&registry, "a");
        assert!(own.counts().0 > before);
        assert_eq!(kind(device.open()), ErrorKind::Busy);
    });
}

#[test]
fn from_inside_allocation_its_own_device_is_busy() {
    in_time(|| {
        let machine = machine(&["a", "b"]);
        let inside = AtomicUsize::new(0);
        let allocation: Script = Box::new(move |own, view| {
            let depth = inside.fetch_add(1, Relaxed);
            if depth == 0 && *view.name() == "a" {
                let device = own.device("a");
                assert_eq!(kind(device.open()), ErrorKind::Busy);
                assert_eq!(kind(device.open_allow_unproven()), ErrorKind::Busy);
                assert!(device.provider()?.is_abi_known());
                own.device("b").open()?;
                // Another thread is inside at the same time.
                let other = std::thread::spawn(move || device.open().map(drop));
                other.join().expect("no panic")?;
            }
            inside.fetch_sub(1, Relaxed);
            Ok(())
        });
        let own = Own { allocation: Some(allocation), ..Own::default() };
        let (registry, own) = registry(&machine, own);
        for _ in 0..2 {
            listed(&registry, "a").open().expect("opened");
        }
        assert_eq!(own.counts(), (2, 0));
    });
}

#[test]
fn a_drop_may_list_and_open() {
    in_time(|| {
        let machine = machine(&["a"]);
        let listed_by_drop = Arc::new(Mutex::new(Vec::new()));
        let lists = listed_by_drop.clone();
        let drop = move |own: &Own| {
            let attached = own.counts().0;
            let devices = own.registry().devices().expect("a list");
            assert_eq!(own.counts().0, attached, "the list attached one");
            devices.by_name("r").and_then(|device| device.open()).expect("opened");
            lists.lock().expect("no panic").push(devices.len());
        };
        let own = Own { drop: Some(Box::new(drop)), ..Own::default() };
        let (registry, own) = registry(&machine, own);
        assert_eq!(registry.devices().expect("a list").len(), 2);
        let gone = machine.add(DeviceSpec::new("d").driver(77, 1)).expect("added");
        assert_eq!(registry.devices().expect("a list").len(), 3);
        machine.remove(gone);
        // The drop lists the new device first, but attaches nothing.
        machine.add(DeviceSpec::new("e").driver(77, 1)).expect("added");
        assert_eq!(registry.devices().expect("a list").len(), 3);
        assert_eq!(*listed_by_drop.lock().expect("no panic"), [3]);
        assert_eq!(own.counts(), (3, 1));
    });
}

/// A device that was looked up by its index is kept before it is listed.
#[test]
fn the_drop_of_a_device_that_was_only_looked_up_may_list() {
    in_time(|| {
        let machine = machine(&["a"]);
        let drop = |own: &Own| drop(own.registry().devices().expect("a list"));
        let own = Own { drop: Some(Box::new(drop)), ..Own::default() };
        let (registry, own) = registry(&machine, own);
        registry.devices().expect("a list");
        let new = machine.add(DeviceSpec::new("d").driver(77, 1)).expect("added");
        registry.by_index(machine.index_of(new)).expect("found");
        assert_eq!(own.counts(), (2, 0), "it is kept");
        machine.remove(new);
        registry.devices().expect("a list");
        assert_eq!(own.counts(), (2, 1));
    });
}

/// A device that cannot be read for a while is kept without being listed.
#[test]
fn the_drop_of_a_device_that_was_not_listed_may_list() {
    in_time(|| {
        for is_replaced in [false, true] {
            let machine = machine(&[]);
            let drop = |own: &Own| drop(own.registry().devices().expect("a list"));
            let own = Own { drop: Some(Box::new(drop)), ..Own::default() };
            let (registry, own) = registry(&machine, own);
            let gone = machine.add(DeviceSpec::new("d").driver(77, 1)).expect("added");
            assert_eq!(registry.devices().expect("a list").len(), 2);
            machine.set_attribute(gone, "ibdev", b"no line feed").expect("set");
            // The timestamps of the directory have not moved: it is looked at again as it was renamed.
            machine.rename(gone, b"e").expect("renamed");
            assert_eq!(registry.devices().expect("a list").len(), 1);
            assert_eq!(own.counts(), (1, 0), "it is kept");
            machine.remove(gone);
            if is_replaced {
                machine.add(DeviceSpec::new("d").driver(77, 1)).expect("added");
            }
            registry.devices().expect("a list");
            assert_eq!(own.counts(), (1 + usize::from(is_replaced), 1));
        }
    });
}

#[test]
fn a_list_from_inside_attaches_nothing() {
    in_time(|| {
        let names: Vec<String> = (0..300).map(|number| format!("d{number}")).collect();
        let machine = machine(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let depth = AtomicUsize::new(0);
        let attach: Script = Box::new(move |own, _| {
            assert_eq!(depth.fetch_add(1, Relaxed), 0, "calls nest");
            assert_eq!(own.registry().devices()?.len(), 301);
            depth.fetch_sub(1, Relaxed);
            Ok(())
        });
        let (registry, own) = registry(&machine, Own { attach: Some(attach), ..Own::default() });
        registry.devices().expect("a list");
        assert_eq!(own.counts(), (300, 0));
        registry.devices().expect("a list");
        assert_eq!(own.counts(), (300, 0));
    });
}

#[test]
fn a_panic_leaves_nothing_behind() {
    in_time(|| {
        let machine = machine(&["a"]);
        let panics = Arc::new(AtomicUsize::new(0));
        let panic_once = |panics: &Arc<AtomicUsize>, at: usize| -> Option<Script> {
            let panics = panics.clone();
            Some(Box::new(move |_, _| {
                if panics.load(Relaxed) == at {
                    panics.store(at + 1, Relaxed);
                    panic!("of the program's own");
                }
                Ok(())
            }))
        };
        let (attach, allocation) = (panic_once(&panics, 0), panic_once(&panics, 1));
        let (registry, own) = registry(&machine, Own { attach, allocation, ..Own::default() });
        let idle = machine.open_handles();
        let panicked = catch_unwind(AssertUnwindSafe(|| registry.devices()));
        assert!(panicked.is_err());
        let device = listed(&registry, "a");
        assert_eq!(own.counts(), (2, 0));
        assert!(catch_unwind(AssertUnwindSafe(|| device.open())).is_err());
        assert_eq!(machine.open_handles(), idle, "left open");
        let context = device.open().expect("opened");
        assert_eq!(own.counts(), (2, 0));
        // A list from here attaches again: no thread counts as inside any more.
        machine.add(DeviceSpec::new("b").driver(77, 1)).expect("added");
        registry.devices().expect("a list");
        assert_eq!(own.counts(), (3, 0));
        drop(context);
    });
}

#[test]
fn errors_of_attach_are_kept_and_name_this_device() {
    in_time(|| {
        let machine = machine(&["a"]);
        let other = machine.add(DeviceSpec::new("b")).expect("added");
        let device = listed(&Registry::new(host(&machine)), "b");
        machine.remove(other);
        let removed = device.clone();
        let attach: Script = Box::new(move |_, _| removed.open().map(drop));
        let (registry, own) = registry(&machine, Own { attach: Some(attach), ..Own::default() });
        let device = listed(&registry, "a");
        for _ in 0..2 {
            let error = device.open().expect_err("refused");
            // The other device was removed.
            assert_eq!(error.kind(), ErrorKind::Provider, "{error}");
            assert_eq!(error.device(), Some("a (uverbs0)"));
            assert!(error.to_string().contains("b (uverbs2)"), "{error}");
        }
        assert!(device.provider().expect("found").is_abi_known());
        registry.devices().expect("a list");
        assert_eq!(own.counts(), (1, 0));
    });
}

#[test]
fn errors_of_allocation_are_not_kept() {
    in_time(|| {
        let machine = machine(&["a"]);
        let calls = AtomicUsize::new(0);
        let allocation: Script = Box::new(move |own, _| match calls.fetch_add(1, Relaxed) {
            0 => Err(Error::provider("no firmware")),
            1 => own.registry().devices()?.by_name("nobody").map(drop),
            2 => own.device("a").open().map(drop),
            _ => Ok(()),
        });
        let own = Own { allocation: Some(allocation), ..Own::default() };
        let (registry, own) = registry(&machine, own);
        let device = listed(&registry, "a");
        let error = device.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Provider);
        assert!(error.to_string().contains("own gave no allocation"), "{error}");
        assert_eq!(kind(device.open()), ErrorKind::Provider);
        let error = device.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("own gave no allocation"), "{error}");
        device.open().expect("opened");
        assert_eq!(own.counts(), (1, 0));
    });
}

#[test]
fn without_netlink_its_own_device_is_busy_too() {
    in_time(|| {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("a").driver(17, 1).driver_data(8, 0)).expect("added");
        machine.deny_netlink(Some(1));
        let attach: Script = Box::new(|own, _| {
            let opened = own.device("a").open_allow_unproven();
            assert_eq!(kind(opened), ErrorKind::Busy);
            Ok(())
        });
        let own = Own { attach: Some(attach), ..Own::default() };
        let (registry, own) = registry_for(&machine, DriverId::EFA, own);
        let device = listed(&registry, "a");
        let error = device.open_allow_unproven().expect_err("it requires an input");
        assert_eq!(error.raw_os_error(), Some(22), "{error}");
        assert_eq!(own.counts(), (1, 1));
    });
}
