//! What a provider sees of its device.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use uverbs::sim::{CallKind, DeviceSpec, Machine, Verdict};
use uverbs::{
    Allocation, DeviceProvider, DriverId, ErrorKind, Match, PinnedView, Provider, Registry,
};

use crate::{MODALIAS, host, kind, listed};

type Attach = Box<dyn Fn(&PinnedView<'_>) + Send + Sync>;

/// A provider that runs the test's closure on its device.
struct Looking(Attach);

impl Looking {
    fn registry(
        machine: &Machine,
        look: impl Fn(&PinnedView<'_>) + Send + Sync + 'static,
    ) -> Registry {
        let provider = Arc::new(Self(Box::new(look))) as Arc<dyn Provider>;
        Registry::with_providers(host(machine), [provider])
    }
}

impl Provider for Looking {
    fn name(&self) -> &str {
        "looking"
    }

    fn matches(&self) -> &[Match] {
        const { &[Match::Driver(DriverId::from_raw(77))] }
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        0..=9
    }

    fn attach(&self, device: &PinnedView<'_>) -> uverbs::Result<Box<dyn DeviceProvider>> {
        self.0(device);
        Ok(Box::new(Allocation::new([7, 8], 0)))
    }
}

#[test]
fn a_view_is_of_its_device() {
    let machine = Machine::new();
    for name in ["other", "a"] {
        let spec = DeviceSpec::new(name).driver(if name == "a" { 77 } else { 99 }, 5);
        machine.add(spec.parent(format!("pci0000:00/{name}"), MODALIAS)).expect("added");
    }
    let without = machine.add(DeviceSpec::new("b").driver(77, 6)).expect("added");
    let plain = Registry::new(host(&machine));
    let (device, without_parent) = (listed(&plain, "a"), listed(&plain, "b"));
    let registry = Looking::registry(&machine, move |view| {
        let is_a = *view.name() == "a";
        let device = if is_a { &device } else { &without_parent };
        assert_eq!(view.uverbs_number(), device.uverbs_number());
        assert_eq!(view.device_number(), device.device_number());
        assert_eq!(view.instance(), device.instance());
        assert_eq!(view.driver_id(), Some(DriverId::from_raw(77)));
        assert_eq!(view.abi_version(), if is_a { 5 } else { 6 });
        let modalias = if is_a { Some(MODALIAS.as_bytes()) } else { None };
        assert_eq!(view.modalias().expect("read"), modalias);
        assert_eq!(view.modalias().expect("read before"), modalias);
        assert!(format!("{view:?}").contains(&device.to_string()));
    });
    listed(&registry, "a").open().expect("opened");
    listed(&registry, "b").open().expect("opened");
    assert_eq!(machine.driver_data_of(without), [7, 8]);
}

#[test]
fn a_gone_device_is_not_a_missing_modalias() {
    let machine = Machine::new();
    let spec = DeviceSpec::new("a").driver(77, 1).parent("pci0000:00/a", MODALIAS);
    let id = machine.add(spec).expect("added");
    let (again, looks) = (machine.clone(), Arc::new(AtomicUsize::new(0)));
    let looked = looks.clone();
    let registry = Looking::registry(&machine, move |view| {
        let denied =
            |world: &mut uverbs::sim::World, call: &uverbs::sim::Call<'_>| match call.kind() {
                CallKind::Pread if call.detail(world).ends_with("modalias") => Verdict::Fail(5),
                _ => Verdict::Continue,
            };
        again.on_call(denied);
        assert_eq!(view.modalias().expect_err("denied").raw_os_error(), Some(5));
        again.clear_hook();
        again.remove(id);
        assert!(view.modalias().is_err());
        looks.fetch_add(1, Relaxed);
    });
    registry.devices().expect("a list");
    assert_eq!(looked.load(Relaxed), 1);
}

/// The first two are attributes beneath the uverbs directory and beneath its parent.
const PATHS: [&str; 16] = [
    "abi_version",
    "infiniband/a/node_guid",
    "",
    ".",
    "..",
    "/abi_version",
    "./abi_version",
    "abi_version/",
    "abi_version/.",
    "infiniband/a/../a/node_guid",
    "infiniband//a/node_guid",
    "../uverbs0/abi_version",
    "infiniband_verbs/../infiniband/b/node_guid",
    "/",
    "abi_version\0",
    "\0",
];

#[test]
fn a_providers_path_stays_beneath_its_directory() {
    let machine = Machine::new();
    for (name, driver) in [("a", 77), ("b", 99)] {
        let spec = DeviceSpec::new(name).driver(driver, 1).guid(0xa0);
        machine.add(spec.parent("pci0000:00/a", MODALIAS)).expect("added");
    }
    let found = Arc::new(Mutex::new(Vec::new()));
    let reads = found.clone();
    let registry = Looking::registry(&machine, move |view| {
        for path in PATHS {
            let mut reads = reads.lock().expect("no panic");
            reads.push((path, view.attribute(path)));
            reads.push((path, view.parent_attribute(path)));
        }
    });
    machine.record_calls(true);
    registry.devices().expect("a list");
    let log = machine.call_log();
    let read = std::mem::take(&mut *found.lock().expect("no panic"));
    let [own, absent, other, beside] = &read[..4] else { panic!("{read:?}") };
    assert_eq!(own.1.as_ref().expect("read"), b"1");
    assert_eq!(beside.1.as_ref().expect("read"), b"0000:0000:0000:00a0");
    for (_, absent) in [absent, other] {
        assert_eq!(absent.as_ref().expect_err("none there").raw_os_error(), Some(2));
    }
    for (path, read) in &read[4..] {
        if let Ok(read) = read {
            panic!("{path:?} was read: {}", read.escape_ascii());
        }
    }
    for (path, read) in read.into_iter().skip(4) {
        assert_eq!(kind(read), ErrorKind::Malformed, "{path:?}");
        let opens = |call: &&String| call.ends_with(&format!(": {path})"));
        assert_eq!(log.iter().find(opens), None, "{path:?} was opened");
    }
}
