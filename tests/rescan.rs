//! Lists after the first: unchanged devices are not looked at again, and changed ones are found.

use std::collections::HashSet;

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict, World};
use uverbs::{Devices, ErrorKind, Host, OpenOptions, Registry};

struct Bench {
    machine: Machine,
    registry: Registry,
    ids: Vec<DeviceId>,
}

/// A host with that many devices. The second list confirms their names, so a third one does not look at them.
fn listed(count: usize) -> Bench {
    let machine = Machine::new();
    let add = |number| machine.add(DeviceSpec::new(format!("m{number}"))).expect("added");
    let ids = (0..count).map(add).collect();
    machine.set_entries_a_page(10_000);
    let host = Host::simulated(&machine).expect("a host");
    let bench = Bench { machine, registry: Registry::new(host), ids };
    bench.devices();
    assert_eq!(bench.devices().len(), count);
    bench
}

impl Bench {
    fn devices(&self) -> Devices {
        self.registry.devices().expect("a list")
    }

    /// The number of calls that a list makes.
    fn calls(&self) -> u64 {
        let before = self.machine.calls();
        self.devices();
        self.machine.calls() - before
    }

    fn names(&self) -> Vec<String> {
        self.devices().iter().map(|device| device.name().to_string()).collect()
    }
}

/// Two sweeps of `class/infiniband_verbs` and one of `class/infiniband`: for each an open, a page, and its end.
const SWEEPS: u64 = 9;
/// A look at one device: two opens, a link, an fstat of the directory and of `ibdev`, two attributes opened and read.
const LOOK: u64 = 9;

#[test]
fn an_unchanged_host_costs_only_the_sweeps() {
    for count in [0, 1, 300] {
        let bench = listed(count);
        assert_eq!(bench.calls(), SWEEPS, "{count} devices");
        let (one, other) = (bench.devices(), bench.devices());
        assert!(
            std::ptr::eq(one.iter().as_slice(), other.iter().as_slice()),
            "the list is rebuilt"
        );
    }
}

#[test]
fn only_changed_devices_are_looked_at() {
    let bench = listed(300);
    let before = bench.devices();
    for at in [0, 150, 299] {
        bench.machine.rename(bench.ids[at], format!("r{at}").as_bytes()).expect("renamed");
    }
    assert_eq!(bench.calls(), SWEEPS + 3 * LOOK);
    // A new name is confirmed once: it may have changed hands between the sweep and the look.
    assert_eq!(bench.calls(), SWEEPS + 3 * LOOK);
    assert_eq!(bench.calls(), SWEEPS);
    assert!(bench.devices().iter().eq(&before), "a rename makes another instance");
    bench.machine.remove(bench.ids[10]);
    bench.machine.add(DeviceSpec::new("m10")).expect("added");
    assert_eq!(bench.calls(), SWEEPS + LOOK);
    assert_eq!(bench.calls(), SWEEPS + LOOK);
    assert_eq!(bench.calls(), SWEEPS);
    let replaced: Vec<_> = before.iter().filter(|device| device.is_known_gone()).collect();
    assert_eq!(replaced.len(), 1);
    assert_eq!(replaced[0].uverbs_number(), 10);
    assert_eq!(bench.devices().len(), 300);
}

#[test]
fn names_are_current() {
    let bench = listed(20);
    bench.machine.swap_names(bench.ids[3], bench.ids[4]).expect("swapped");
    assert_eq!(bench.names()[3..5], ["m4", "m3"]);
    // Renamed and renamed back, noticed only by an open in between: the directories are unchanged.
    let device = bench.devices().by_name("m7").expect("listed");
    bench.machine.rename(bench.ids[7], b"away").expect("renamed");
    drop(device.open().expect("opened"));
    assert_eq!(device.name(), "away");
    bench.machine.rename(bench.ids[7], b"m7").expect("renamed");
    assert_eq!(bench.names()[7], "m7");
    assert_eq!(bench.calls(), SWEEPS);
}

/// A list finds its devices by the names that they had in it, whatever their names are now.
#[test]
fn a_list_keeps_its_names() {
    let bench = listed(3);
    let old = bench.devices();
    let number = |devices: &Devices, name: &str| {
        devices.by_name(name).map(|device| device.uverbs_number()).map_err(|error| error.kind())
    };
    bench.machine.swap_names(bench.ids[0], bench.ids[1]).expect("swapped");
    bench.machine.rename(bench.ids[2], b"new").expect("renamed");
    let new = bench.devices();
    for (list, name, expected) in [
        (&old, "m0", Ok(0)),
        (&old, "m1", Ok(1)),
        (&old, "m2", Ok(2)),
        (&old, "new", Err(ErrorKind::NotFound)),
        (&new, "m0", Ok(1)),
        (&new, "m1", Ok(0)),
        (&new, "m2", Err(ErrorKind::NotFound)),
        (&new, "new", Ok(2)),
    ] {
        assert_eq!(number(list, name), expected, "{name}");
    }
    // The handles are the same, with the current name.
    assert_eq!(old.by_name("m2").expect("listed").name(), "new");
    // A name that an open finds is in no list yet.
    bench.machine.rename(bench.ids[2], b"newer").expect("renamed");
    drop(new.by_name("new").expect("listed").open().expect("opened"));
    assert_eq!(new.by_name("new").expect("listed").name(), "newer");
    assert_eq!(number(&new, "newer"), Err(ErrorKind::NotFound));
    assert_eq!(number(&bench.devices(), "newer"), Ok(2));
}

#[test]
fn a_name_with_a_slash_hides_no_change() {
    let bench = listed(5);
    bench.machine.rename(bench.ids[1], b"a/b").expect("renamed");
    assert_eq!(bench.names(), ["m0", "a/b", "m2", "m3", "m4"]);
    bench.machine.rename(bench.ids[2], b"x").expect("renamed");
    assert_eq!(bench.names(), ["m0", "a/b", "x", "m3", "m4"]);
}

/// Where inode numbers may repeat, a moved timestamp counts as another device, also for a handle.
#[test]
fn a_handle_with_a_moved_timestamp_is_replaced_in_a_foreign_sys() {
    for is_foreign in [false, true] {
        let machine = Machine::new();
        machine.add(DeviceSpec::new("m0")).expect("added");
        if is_foreign {
            machine.set_sys_type(0x0102_1994);
        }
        let host = Host::builder().allow_foreign_sys(true).simulated(&machine).build();
        let devices = Registry::new(host.expect("a host")).devices().expect("a list");
        let device = devices.by_name("m0").expect("listed");
        device.query().expect("it is there");
        machine.listxattr(0);
        match device.query() {
            Ok(_) => assert!(!is_foreign),
            Err(error) => assert_eq!((error.kind(), is_foreign), (ErrorKind::Replaced, true)),
        }
    }
}

/// A directory that was opened before ib_uverbs was unloaded is dead, and shows no device.
#[test]
fn a_dead_class_directory_is_no_empty_list() {
    let bench = listed(2);
    bench.machine.on_call(|world, call| {
        let is_class = call.detail(world).ends_with("class/infiniband_verbs");
        if is_class && call.kind() == CallKind::Getdents {
            world.reload_ib_uverbs().expect("nobody has a device open");
        }
        Verdict::Continue
    });
    let error = bench.registry.devices().expect_err("each directory is dead");
    assert_eq!(error.kind(), ErrorKind::Unstable);
    bench.machine.clear_hook();
    assert_eq!(bench.devices().len(), 2);
    // Without the directory there are no devices.
    bench.machine.unload_ib_uverbs().expect("nobody has a device open");
    assert!(bench.devices().is_empty());
}

/// Only an absent directory means that there are no devices.
#[test]
fn an_unreadable_class_directory_is_an_error() {
    let bench = listed(2);
    for errno in [5, 13, 24] {
        bench.machine.on_call(move |world, call| {
            match call.detail(world).ends_with("class/infiniband_verbs") {
                true => Verdict::Fail(errno),
                false => Verdict::Continue,
            }
        });
        let error = bench.registry.devices().expect_err("unreadable");
        assert_eq!(error.raw_os_error(), Some(errno));
    }
}

/// A device that could not be read at one list is read at the next, even if the directories are unchanged.
#[test]
fn a_failed_look_is_repeated() {
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
        assert_eq!(bench.calls(), SWEEPS + LOOK);
        assert_eq!(bench.calls(), SWEEPS);
    }
}

/// A device that cannot be read is not the same as one that is gone: it keeps its record as long as it is there.
#[test]
fn an_unreadable_device_is_not_lost() {
    for goes in [false, true] {
        let bench = listed(3);
        let before = bench.devices().by_name("m1").expect("listed");
        bench.machine.rename(bench.ids[1], b"other").expect("renamed");
        bench.machine.on_call(|world, call| match call.detail(world).ends_with("uverbs1/ibdev") {
            true => Verdict::Fail(5),
            false => Verdict::Continue,
        });
        for _ in 0..2 {
            let devices = bench.devices();
            assert_eq!((devices.len(), devices.faults().count()), (2, 1));
            assert!(!before.is_known_gone());
        }
        if goes {
            bench.machine.remove(bench.ids[1]);
            bench.machine.add(DeviceSpec::new("new")).expect("added");
            assert_eq!(bench.devices().faults().count(), 1);
            assert!(before.is_known_gone());
        }
        bench.machine.clear_hook();
        assert_eq!(bench.names()[1], if goes { "new" } else { "other" });
        assert_eq!(before.name(), if goes { "m1" } else { "other" });
        assert_eq!(bench.devices().faults().count(), 0);
        assert_eq!(bench.calls(), SWEEPS);
    }
}

/// A moved timestamp is another instance where inode numbers may repeat, and only there.
#[test]
fn a_moved_timestamp() {
    for foreign in [false, true] {
        let machine = Machine::new();
        let id = machine.add(DeviceSpec::new("a")).expect("added");
        if foreign {
            machine.set_sys_type(0x0102_1994);
        }
        let host = Host::builder().simulated(&machine).allow_foreign_sys(true).build();
        let registry = Registry::new(host.expect("a host"));
        let listed = |name: &str| registry.devices().expect("a list").by_name(name).expect("it");
        let before = listed("a");
        // Under another name it is looked at.
        machine.rename(id, b"b").expect("renamed");
        assert_eq!(listed("b"), before);
        assert!(!before.is_known_gone());
        machine.evict();
        machine.rename(id, b"c").expect("renamed");
        let after = listed("c");
        assert_eq!(before.is_known_gone(), foreign);
        assert_eq!(before == after, !foreign);
        assert_eq!(HashSet::from([before, after]).len(), if foreign { 2 } else { 1 });
    }
}

/// What a refused strict open has found, the next list looks at; without a change it costs nothing more.
#[test]
fn a_timestamp_that_was_found_moved_is_looked_at() {
    let bench = listed(20);
    let device = bench.devices().by_name("m7").expect("listed");
    bench.machine.evict();
    assert_eq!(bench.calls(), SWEEPS);
    let strict = OpenOptions::new().strict_timestamps(true);
    assert_eq!(strict.open(&device).expect_err("moved").kind(), ErrorKind::Replaced);
    assert_eq!(bench.calls(), SWEEPS + LOOK);
    strict.open(&device).expect("taken over");
    assert_eq!(bench.calls(), SWEEPS);
}

/// Threads that list while devices come: none marks as gone what another one has just found.
#[test]
fn concurrent_lists_lose_nothing() {
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

/// Up to Linux 6.12 at least, a `getdents` skips the entry after one that is removed while it is shown.
#[test]
fn a_device_that_a_page_skips_stays_listed() {
    let bench = listed(3);
    let before = bench.devices();
    bench.machine.remove_while_listed(bench.ids[0]);
    for _ in 0..2 {
        assert_eq!(bench.names(), ["m1", "m2"]);
        assert!(bench.devices().iter().eq(before.iter().skip(1)), "listed as other instances");
    }
    let gone: Vec<_> = before.iter().map(|device| device.is_known_gone()).collect();
    assert_eq!(gone, [true, false, false]);
    // It is the same record: what one handle finds out about the device, the others know.
    bench.machine.rename(bench.ids[1], b"other").expect("renamed");
    drop(bench.devices().by_name("other").expect("listed").open().expect("opened"));
    assert_eq!(before.iter().nth(1).expect("three").name(), "other");
}

/// The first sweep shows exactly what the last list saw.
#[test]
fn a_new_device_is_listed_although_it_was_skipped() {
    let bench = listed(1);
    bench.machine.add(DeviceSpec::new("new")).expect("added");
    bench.machine.remove_while_listed(bench.ids[0]);
    assert_eq!(bench.names(), ["new"]);
    // And at a first list.
    bench.machine.add(DeviceSpec::new("another")).expect("added");
    bench.machine.remove_while_listed(bench.machine.instance_of(0).expect("another"));
    let host = Host::simulated(&bench.machine).expect("a host");
    let first = Registry::new(host).devices().expect("a list");
    assert_eq!(first.iter().map(|device| device.name().to_string()).collect::<Vec<_>>(), ["new"]);
}

/// Before each sweep of `class/infiniband_verbs`.
fn before_each_sweep(machine: &Machine, mut act: impl FnMut(&mut World) + Send + 'static) {
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Openat2 && call.detail(world) == "/sys: class/infiniband_verbs"
        {
            act(world);
        }
        Verdict::Continue
    });
}

/// Every single sweep skips the same device, which stays.
#[test]
fn a_device_that_no_sweep_shows_is_looked_up() {
    let bench = listed(60);
    let before = bench.devices();
    // The simulated kernel returns names in order: the entry before uverbs5 is uverbs49, then uverbs48, and so on.
    let mut victims = bench.ids[20..50].to_vec();
    before_each_sweep(&bench.machine, move |world| {
        if let Some(victim) = victims.pop() {
            world.remove_while_listed(victim);
        }
    });
    let (devices, stays) = (bench.devices(), before.by_name("m5").expect("listed"));
    assert!(!stays.is_known_gone());
    assert_eq!(devices.by_name("m5").expect("listed"), stays);
    bench.machine.clear_hook();
    let devices = bench.devices();
    assert_eq!(devices.by_name("m5").expect("listed"), stays);
    let gone = before.iter().filter(|device| device.is_known_gone()).count();
    assert_eq!(devices.len() + gone, 60);
    assert_eq!(bench.calls(), SWEEPS);
}

/// A sweep of `class/infiniband` that skips a name does not change any other name or device.
#[test]
fn a_skipped_name_stays() {
    for rename in [false, true] {
        let bench = listed(4);
        let before = bench.devices();
        let id = bench.ids[1];
        bench.machine.on_call(move |world, call| {
            if call.kind() == CallKind::Openat2 && call.detail(world) == "/sys: class/infiniband" {
                match rename {
                    true => world.rename_while_listed(id, b"z"),
                    false => world.remove_while_listed(id),
                }
            }
            Verdict::Continue
        });
        let names = bench.names();
        bench.machine.clear_hook();
        assert_eq!((&*names[0], &*names[names.len() - 2..].concat()), ("m0", "m2m3"));
        let now = if rename { vec!["m0", "z", "m2", "m3"] } else { vec!["m0", "m2", "m3"] };
        assert_eq!(bench.names(), now);
        assert_eq!(bench.devices().by_name("m2").expect("listed"), before.by_name("m2").unwrap());
        let gone = before.iter().filter(|device| device.is_known_gone()).count();
        assert_eq!(gone, usize::from(!rename));
    }
}
