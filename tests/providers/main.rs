//! Providers, on the simulated kernel.

mod reentry;
mod view;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use uverbs::sim::{CallKind, DeviceSpec, Machine, Verdict};
use uverbs::{
    Allocation, Device, DeviceProvider, DriverId, Error, ErrorKind, Host, Match, MatchedBy, Name,
    PinnedView, Provider, Registry,
};

const MODALIAS: &str = "pci:v000015B3d00001017sv000015B3sd00000007bc02sc00i00";

fn host(machine: &Machine) -> Host {
    Host::simulated(machine).expect("a host")
}

fn listed(registry: &Registry, name: &str) -> Device {
    registry.devices().expect("a list").by_name(name).expect("listed")
}

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("an error").kind()
}

/// A provider that counts its calls.
struct Counting {
    matches: Vec<Match>,
    abi_versions: RangeInclusive<u32>,
    fails: bool,
    seen: Mutex<Vec<Name>>,
    allocations: Arc<AtomicUsize>,
    torn_down: Arc<Mutex<Vec<Name>>>,
}

impl Counting {
    fn new(matches: impl Into<Vec<Match>>) -> Self {
        Self {
            matches: matches.into(),
            abi_versions: 0..=9,
            fails: false,
            seen: Mutex::default(),
            allocations: Arc::default(),
            torn_down: Arc::default(),
        }
    }

    fn seen(&self) -> usize {
        self.seen.lock().expect("no panic").len()
    }

    fn torn_down(&self) -> usize {
        self.torn_down.lock().expect("no panic").len()
    }
}

impl Provider for Counting {
    fn name(&self) -> &str {
        "counting"
    }

    fn matches(&self) -> &[Match] {
        &self.matches
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        self.abi_versions.clone()
    }

    fn attach(&self, device: &PinnedView<'_>) -> uverbs::Result<Box<dyn DeviceProvider>> {
        let dev = device.attribute("dev")?;
        assert_eq!(dev, device.device_number().to_string().as_bytes());
        self.seen.lock().expect("no panic").push(device.name().clone());
        if self.fails {
            return Err(Error::provider("no firmware"));
        }
        let (allocations, torn_down) = (self.allocations.clone(), self.torn_down.clone());
        Ok(Box::new(Counted { name: device.name().clone(), allocations, torn_down }))
    }
}

/// The object that it attaches.
struct Counted {
    name: Name,
    allocations: Arc<AtomicUsize>,
    torn_down: Arc<Mutex<Vec<Name>>>,
}

impl DeviceProvider for Counted {
    fn allocation(&self, device: &PinnedView<'_>) -> uverbs::Result<Allocation> {
        assert_eq!(*device.name(), self.name);
        self.allocations.fetch_add(1, Relaxed);
        Ok(Allocation::new([1, 2, 3, 4, 5, 6, 7, 8, 9], 300))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.torn_down.lock().expect("no panic").push(self.name.clone());
    }
}

fn with(machine: &Machine, providers: &[Arc<Counting>]) -> Registry {
    let providers = providers.iter().map(|provider| provider.clone() as Arc<dyn Provider>);
    Registry::with_providers(host(machine), providers)
}

/// A list that does not show a device, or cannot read it, does not lose it.
#[test]
fn a_device_that_a_list_misses_is_set_up_once() {
    for fails in [false, true] {
        let machine = Machine::new();
        let ids = ["a", "b"].map(|name| machine.add(DeviceSpec::new(name)).expect("added"));
        let provider = Arc::new(Counting::new([Match::Driver(DriverId::RXE)]));
        let registry = with(&machine, std::slice::from_ref(&provider));
        drop(listed(&registry, "b"));
        if fails {
            machine.rename(ids[1], b"c").expect("renamed");
            machine.on_call(|world, call| match call.detail(world).ends_with("uverbs1/ibdev") {
                true => Verdict::Fail(5),
                false => Verdict::Continue,
            });
            assert_eq!(registry.devices().expect("a list").faults().count(), 1);
            machine.clear_hook();
        } else {
            machine.remove_while_listed(ids[0]);
        }
        for _ in 0..2 {
            registry.devices().expect("a list");
        }
        assert_eq!((provider.seen(), provider.torn_down()), (2, usize::from(!fails)));
        drop(listed(&registry, if fails { "c" } else { "b" }));
    }
}

#[test]
fn by_driver_then_by_name_then_by_modalias() {
    let machine = Machine::new();
    let add = |name: &str, driver, abi, modalias: Option<&str>| {
        let spec = DeviceSpec::new(name).driver(driver, abi);
        let spec = match modalias {
            Some(modalias) => spec.parent(format!("pci0000:00/{name}"), modalias),
            None => spec,
        };
        machine.add(spec).expect("added");
    };
    add("a", 1, 1, None); // mlx5, by the driver id
    add("rxe_b", 18, 1, None); // siw, whatever its name
    add("rxe_c", 99, 1, None); // unknown, with a name like rxe
    add("d", 99, 1, Some(MODALIAS)); // unknown, on a PCI function of mlx5
    add("e", 12, 1, Some("pci:v000019E5d0000A222sv0")); // hns, without a driver id from the kernel
    add("f", 99, 1, Some("vmbus:3daf2e8ca732094bab99bd1f1c86b501"));
    add("g", 99, 7, Some("pci:v0000FFFFd00001017sv"));
    let registry = Registry::new(host(&machine));
    let found = |name: &str| {
        let info = listed(&registry, name).provider().expect("provider");
        info.provider.as_ref().map(|(name, by)| (name.clone(), *by))
    };
    let some = |name: &str, by| Some((name.to_owned(), by));
    assert_eq!(found("a"), some("mlx5", MatchedBy::Driver));
    assert_eq!(found("rxe_b"), some("siw", MatchedBy::Driver));
    assert_eq!(found("rxe_c"), some("rxe", MatchedBy::Name));
    assert_eq!(found("d"), some("mlx5", MatchedBy::Modalias));
    assert_eq!(found("e"), some("hns", MatchedBy::Modalias));
    assert_eq!(found("f"), some("mlx4", MatchedBy::Modalias));
    assert_eq!(found("g"), None);

    let words = [MatchedBy::Driver, MatchedBy::Name, MatchedBy::Modalias].map(|by| by.to_string());
    assert_eq!(words, ["driver id", "name", "modalias"]);

    // Registered providers come first, in their order, but a modalias does not come before a driver id.
    let by_driver = Arc::new(Counting::new([Match::Driver(DriverId::MLX5)]));
    let by_modalias = Arc::new(Counting::new([
        Match::Pci(0x15b3, 0x1017),
        Match::Modalias("pci:v0000FFFFd*sv".into()),
        Match::Name("x*".into()),
    ]));
    add("x", 1, 1, Some(MODALIAS));
    let registry = with(&machine, &[by_modalias.clone(), by_driver.clone()]);
    registry.devices().expect("a list");
    assert_eq!((by_driver.seen(), by_modalias.seen()), (2, 2));
    assert_eq!(
        *by_modalias.seen.lock().expect("no panic"),
        ["d", "g"].map(|name| { listed(&registry, name).name() })
    );
}

#[test]
fn nothing_is_queried_until_it_is_needed() {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("rxe0")).expect("added");
    machine.record_calls(true);
    let registry = Registry::new(host(&machine));
    let device = listed(&registry, "rxe0");
    let log = machine.call_log();
    assert!(log.iter().all(|call| !call.contains("socket") && !call.contains("abi_version")));
    device.open().expect("opened");
    // Once known, it is not queried again.
    machine.record_calls(true);
    device.open().expect("opened");
    let log = machine.call_log();
    assert!(!log.is_empty() && log.iter().all(|call| !call.contains("abi_version")), "{log:#?}");
}

#[test]
fn an_abi_out_of_range_is_listed_but_not_opened() {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("q").driver(11, 7)).expect("added");
    let registry = Registry::new(host(&machine));
    let device = listed(&registry, "q");
    let info = device.provider().expect("provider");
    assert_eq!((info.abi_version, info.abi_versions.clone()), (7, 8..=8));
    assert!(!info.is_abi_known());
    let error = device.open().expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::AbiMismatch);
    let text = error.to_string();
    assert!(
        text.contains("q (uverbs0)") && text.contains("7") && text.contains("8 to 8"),
        "{text}"
    );
    assert!(machine.node_opens().is_empty(), "the node was opened");
    // Also if only the descriptor reports the driver.
    machine.deny_netlink(Some(1));
    let again = listed(&Registry::new(host(&machine)), "q");
    let unproven = again.open_allow_unproven();
    assert_eq!(kind(unproven), ErrorKind::AbiMismatch);
    drop((device, again, registry));
    assert_eq!(machine.open_handles(), 0);
}

#[test]
fn a_registered_provider_of_another_abi_is_not_attached() {
    let machine = Machine::new();
    let id = machine.add(DeviceSpec::new("a").driver(77, 10)).expect("added");
    let provider = Arc::new(Counting::new([Match::Driver(DriverId::from_raw(77))]));
    let registry = with(&machine, std::slice::from_ref(&provider));
    let device = listed(&registry, "a");
    let info = device.provider().expect("found");
    assert_eq!((info.abi_version, info.abi_versions.clone()), (10, 0..=9));
    assert_eq!(kind(device.open()), ErrorKind::AbiMismatch);
    assert_eq!(provider.seen(), 0);
    // The provider of a device stays known after the device is gone.
    machine.remove(id);
    assert_eq!(device.provider().expect("known"), info);
}

#[test]
fn the_driver_of_the_modalias_is_probed_first() {
    let machine = Machine::new();
    let spec = DeviceSpec::new("a").driver(12, 1).driver_data(8, 0);
    machine.add(spec.parent("pci0000:00/a", "pci:v000019E5d0000A222sv0")).expect("added");
    let device = listed(&Registry::new(host(&machine)), "a");
    device.index().expect("joined");
    machine.record_calls(true);
    assert_eq!(device.open().expect("opened").driver_id(), DriverId::HNS);
    let log = machine.call_log();
    let probes = log.iter().filter(|call| call.as_str() == "ioctl(0.4095)");
    assert_eq!(probes.count(), 1, "{log:#?}");
}

#[test]
fn an_unknown_driver_gets_no_data_and_the_error_reports_it() {
    let machine = Machine::new();
    let fine = machine.add(DeviceSpec::new("fine").driver(77, 1)).expect("added");
    machine.add(DeviceSpec::new("needy").driver(78, 1).driver_data(8, 0)).expect("added");
    let registry = Registry::new(host(&machine));
    let context = listed(&registry, "fine").open().expect("opened");
    assert_eq!(context.driver_id(), DriverId::from_raw(77));
    assert!(machine.driver_data_of(fine).is_empty());
    let error = listed(&registry, "needy").open().expect_err("refused");
    assert!(error.to_string().contains("given no data"), "{error}");
    assert_eq!(error.raw_os_error(), Some(22));
}

#[test]
fn built_in_providers_give_the_required_minimum() {
    // As each driver's `alloc_ucontext` requires.
    let demands = [
        (1, 1, 8, 0),
        (2, 4, 0, 16),
        (4, 9, 0, 16),
        (5, 1, 0, 8),
        (7, 2, 0, 80),
        (9, 5, 8, 17),
        (10, 3, 0, 8),
        (12, 1, 8, 0),
        (17, 1, 8, 0),
        (18, 1, 0, 8),
        (19, 1, 0, 40),
        (21, 1, 8, 40),
    ];
    let machine = Machine::new();
    for (driver, abi, input, output) in demands {
        let name = format!("d{driver}");
        let spec = DeviceSpec::new(name.as_str()).driver(driver, abi).driver_data(input, output);
        // Its whole response, however short the output is.
        let id = machine.add(spec.response([0xee; 256])).expect("added");
        let device = listed(&Registry::new(host(&machine)), &name);
        let context = device.open().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(machine.device_of(std::os::fd::AsFd::as_fd(&context)), Some(id));
    }
    assert_eq!(machine.overruns(), 0, "a driver wrote past its room");
}

#[test]
fn a_registered_provider_gives_the_allocation() {
    let machine = Machine::new();
    let spec = DeviceSpec::new("a").driver(77, 1).driver_data(9, 300).response([1; 300]);
    let id = machine.add(spec).expect("added");
    let provider = Arc::new(Counting::new([Match::Driver(DriverId::from_raw(77))]));
    let registry = with(&machine, std::slice::from_ref(&provider));
    let device = listed(&registry, "a");
    assert_eq!((provider.seen(), provider.allocations.load(Relaxed)), (1, 0));
    let first = device.open().expect("opened");
    device.open().expect("opened");
    assert_eq!((provider.seen(), provider.allocations.load(Relaxed)), (1, 2));
    assert_eq!(machine.driver_data_of(id), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(machine.overruns(), 0);
    // A replacement is another device.
    machine.remove(id);
    let spec = DeviceSpec::new("a").driver(77, 1).driver_data(9, 300);
    machine.add(spec).expect("added");
    let second = listed(&registry, "a");
    assert_ne!(device, second);
    assert_eq!((provider.seen(), provider.torn_down()), (2, 0));
    drop(device);
    assert_eq!(provider.torn_down(), 0, "a context holds it");
    drop(first);
    assert_eq!(provider.torn_down(), 1);
    drop((second, registry));
    assert_eq!(provider.torn_down(), 2);
}

#[test]
fn every_open_returns_the_error_of_attach() {
    let machine = Machine::new();
    machine.add(DeviceSpec::new("a")).expect("added");
    let failing = Counting { fails: true, ..Counting::new([Match::Name("a".into())]) };
    let failing = Arc::new(failing);
    let registry = with(&machine, std::slice::from_ref(&failing));
    // rxe's driver id takes precedence over the name.
    assert!(listed(&registry, "a").open().is_ok());
    machine.add(DeviceSpec::new("b").driver(77, 1)).expect("added");
    let failing =
        Counting { fails: true, ..Counting::new([Match::Driver(DriverId::from_raw(77))]) };
    let failing = Arc::new(failing);
    let registry = with(&machine, std::slice::from_ref(&failing));
    let device = listed(&registry, "b");
    for _ in 0..2 {
        let error = device.open().expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Provider);
        assert!(error.to_string().contains("no firmware"), "{error}");
    }
    drop((device, registry));
    assert_eq!((failing.seen(), failing.torn_down()), (1, 0));
}

#[test]
fn a_device_that_goes_during_attach_is_removed() {
    let machine = Machine::new();
    let id = machine.add(DeviceSpec::new("a").driver(77, 1)).expect("added");
    let provider = Arc::new(Counting::new([Match::Driver(DriverId::from_raw(77))]));
    let registry = Registry::new(host(&machine));
    let device = listed(&registry, "a");
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Pread && call.detail(world).ends_with("abi_version") {
            world.remove(id);
        }
        Verdict::Continue
    });
    assert_eq!(kind(device.open()), ErrorKind::Removed);
    assert_eq!((provider.seen(), provider.torn_down()), (0, 0));
}

#[test]
fn two_threads_open_a_built_in_device_for_the_first_time() {
    for _ in 0..200 {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        let device = listed(&Registry::new(host(&machine)), "rxe0");
        let both = std::sync::Barrier::new(2);
        let open = || {
            both.wait();
            device.open().expect("opened");
        };
        std::thread::scope(|scope| {
            scope.spawn(open);
            open();
        });
    }
}

#[test]
fn without_netlink_the_context_keeps_the_provider() {
    let machine = Machine::new();
    let spec = DeviceSpec::new("a").driver(17, 1).driver_data(9, 300);
    let id = machine.add(spec).expect("added");
    machine.deny_netlink(Some(1));
    let provider = Arc::new(Counting::new([Match::Driver(DriverId::EFA)]));
    let registry = with(&machine, std::slice::from_ref(&provider));
    let device = listed(&registry, "a");
    let open = || device.open_allow_unproven().expect("opened");
    assert_eq!(provider.seen(), 0, "its driver is not known yet");
    let first = open();
    assert_eq!((provider.seen(), provider.torn_down()), (1, 0));
    assert_eq!(machine.driver_data_of(id), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let second = open();
    assert_eq!((provider.seen(), provider.torn_down()), (2, 0));
    drop(first);
    assert_eq!(provider.torn_down(), 1);
    drop((device, registry));
    assert_eq!(provider.torn_down(), 1);
    drop(second);
    assert_eq!((provider.seen(), provider.torn_down()), (2, 2));
    assert_eq!(machine.open_handles(), 0);
}

/// A lookup by index attaches the provider of the device that it finds. Without providers it queries nothing for one.
#[test]
fn a_lookup_by_index_attaches_the_provider() {
    let calls = |providers: Vec<Arc<dyn Provider>>| {
        let machine = Machine::new();
        let id = machine.add(DeviceSpec::new("rxe0")).expect("added");
        let registry = Registry::with_providers(host(&machine), providers);
        let index = machine.index_of(id);
        registry.by_index(index).expect("it is there");
        let before = machine.calls();
        registry.by_index(index).expect("it is there");
        (before, machine.calls() - before)
    };
    let provider = Arc::new(Counting::new([Match::Driver(DriverId::RXE)]));
    let (with, again) = calls(vec![provider.clone()]);
    assert_eq!(provider.seen(), 1);
    let (without, known) = calls(Vec::new());
    assert!(with > without, "{with} calls, and {without} without providers");
    // Two are those of the host.
    assert_eq!(without, 17, "calls of a lookup alone");
    assert_eq!(again, known);
}

proptest! {
    #[test]
    fn torn_down_once_after_the_last_user(
        order in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        removed: bool,
    ) {
        let machine = Machine::new();
        let provider = Arc::new(Counting::new([Match::Driver(DriverId::from_raw(77))]));
        let registry = with(&machine, std::slice::from_ref(&provider));
        let ids: Vec<_> = ["a", "b"]
            .map(|name| machine.add(DeviceSpec::new(name).driver(77, 1)).expect("added"))
            .into();
        let list = registry.devices().expect("a list");
        // Two handles and two contexts of each device, two lists, two registries: dropped in any order.
        let mut held: Vec<Option<Box<dyn std::any::Any>>> = Vec::new();
        for device in &list {
            for _ in 0..2 {
                held.push(Some(Box::new(device.clone())));
                held.push(Some(Box::new(device.open().expect("opened"))));
            }
        }
        held.push(Some(Box::new(registry.devices().expect("a list"))));
        held.push(Some(Box::new(registry.clone())));
        held.push(Some(Box::new(list)));
        held.push(Some(Box::new(registry)));
        if removed {
            ids.into_iter().for_each(|id| machine.remove(id));
        }
        for at in order {
            prop_assert_eq!(provider.seen(), 2);
            prop_assert!(provider.torn_down() <= 2);
            held[at] = None;
        }
        let mut torn_down = provider.torn_down.lock().expect("no panic").clone();
        torn_down.sort();
        prop_assert!(torn_down.len() == 2 && torn_down[0] == "a" && torn_down[1] == "b");
        prop_assert_eq!(machine.open_handles(), 0);
    }
}
