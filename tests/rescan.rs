//! Lists after the first: what is as it was is not looked at again, what is not is found.

use uverbs::sim::{DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{Devices, Host, Policy, Registry};

struct Bench {
    machine: Machine,
    registry: Registry,
    ids: Vec<DeviceId>,
}

/// A host with so many devices, listed once.
fn listed(count: usize) -> Bench {
    let machine = Machine::new();
    let add = |number| machine.add(DeviceSpec::new(format!("m{number}"))).expect("added");
    let ids = (0..count).map(add).collect();
    machine.set_entries_a_page(10_000);
    let host = Host::simulated(&machine, Policy::new()).expect("a host");
    let bench = Bench { machine, registry: Registry::new(host), ids };
    assert_eq!(bench.devices().len(), count);
    bench
}

impl Bench {
    fn devices(&self) -> Devices {
        self.registry.devices().expect("a list")
    }

    /// How many calls a list takes.
    fn calls(&self) -> u64 {
        let before = self.machine.calls();
        self.devices();
        self.machine.calls() - before
    }

    fn names(&self) -> Vec<String> {
        self.devices().iter().map(|device| device.name().to_string()).collect()
    }
}

/// Two opens, and of each directory a page and its end.
const SWEEPS: u64 = 6;

#[test]
fn nothing_changed_costs_the_sweeps_alone() {
    for count in [0, 1, 300] {
        let bench = listed(count);
        assert_eq!(bench.calls(), SWEEPS, "{count} devices");
        let (one, other) = (bench.devices(), bench.devices());
        assert!(
            std::ptr::eq(one.iter().as_slice(), other.iter().as_slice()),
            "the list is made anew"
        );
    }
}

#[test]
fn what_changed_is_looked_at_and_nothing_else() {
    let bench = listed(300);
    let before = bench.devices();
    // Two opens, a link, an fstat of the directory and of `ibdev`, two attributes opened and read.
    const LOOK: u64 = 9;
    for at in [0, 150, 299] {
        bench.machine.rename(bench.ids[at], format!("r{at}").as_bytes()).expect("renamed");
    }
    assert_eq!(bench.calls(), SWEEPS + 3 * LOOK);
    assert_eq!(bench.calls(), SWEEPS);
    assert!(bench.devices().iter().eq(&before), "a rename makes another instance");
    bench.machine.remove(bench.ids[10]);
    bench.machine.add(DeviceSpec::new("m10")).expect("added");
    assert_eq!(bench.calls(), SWEEPS + LOOK);
    let replaced: Vec<_> = before.iter().filter(|device| device.is_known_gone()).collect();
    assert_eq!(replaced.len(), 1);
    assert_eq!(replaced[0].uverbs_number(), 10);
    assert_eq!(bench.devices().len(), 300);
}

#[test]
fn names_are_those_of_now() {
    let bench = listed(20);
    bench.machine.swap_names(bench.ids[3], bench.ids[4]).expect("swapped");
    assert_eq!(bench.names()[3..5], ["m4", "m3"]);
    // Away and back, seen meanwhile by an open only: the directories are as they were.
    let device = bench.devices().by_name("m7").expect("listed");
    bench.machine.rename(bench.ids[7], b"away").expect("renamed");
    drop(device.open().expect("opened"));
    assert_eq!(device.name(), "away");
    bench.machine.rename(bench.ids[7], b"m7").expect("renamed");
    assert_eq!(bench.names()[7], "m7");
    assert_eq!(bench.calls(), SWEEPS);
}

#[test]
fn a_name_with_a_slash_hides_no_change() {
    let bench = listed(5);
    bench.machine.rename(bench.ids[1], b"a/b").expect("renamed");
    assert_eq!(bench.names(), ["m0", "a/b", "m2", "m3", "m4"]);
    bench.machine.rename(bench.ids[2], b"x").expect("renamed");
    assert_eq!(bench.names(), ["m0", "a/b", "x", "m3", "m4"]);
}

/// What could not be read at one list is looked for at the next, though the directories are as they were.
#[test]
fn a_look_that_failed_is_made_again() {
    for errno in [2, 5] {
        let bench = listed(3);
        bench.machine.rename(bench.ids[1], b"other").expect("renamed");
        bench.machine.on_call(move |world, call| match call.detail(world).contains("ibdev") {
            true => Verdict::Fail(errno),
            false => Verdict::Continue,
        });
        let devices = bench.devices();
        assert_eq!((devices.len(), devices.faults().count()), (2, usize::from(errno == 5)));
        bench.machine.clear_hook();
        assert_eq!(bench.names(), ["m0", "other", "m2"]);
        assert_eq!(bench.calls(), SWEEPS);
    }
}

/// Threads that list while devices come: none marks as gone what another one has just found.
#[test]
fn lists_at_once_lose_nothing() {
    let bench = listed(10);
    let (registry, machine) = (&bench.registry, &bench.machine);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(move || {
                for _ in 0..300 {
                    let devices = registry.devices().expect("a list");
                    let gone = devices.iter().find(|device| device.is_known_gone());
                    assert!(gone.is_none(), "{gone:?} is there");
                }
            });
        }
        for number in 0..300 {
            machine.add(DeviceSpec::new(format!("new{number}"))).expect("added");
        }
    });
    assert_eq!(bench.devices().len(), 310);
}
