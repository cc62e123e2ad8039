//! Searching for the netlink index of a device: whatever was added, removed and renamed before, the search finds
//! the same as a dump, with few requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use proptest::prelude::*;
use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{Host, Registry};

fn registry(machine: &Machine) -> Registry {
    Registry::new(Host::simulated(machine).expect("a host"))
}

/// Counts single requests and dumps from now on.
#[derive(Clone, Default)]
struct Requests(Arc<(AtomicUsize, AtomicUsize)>);

impl Requests {
    fn count(machine: &Machine) -> Self {
        let requests = Self::default();
        let shared = requests.clone();
        machine.on_call(move |world, call| {
            if call.kind() == CallKind::Send {
                let is_dump = call.detail(world).contains("dump");
                let counter = if is_dump { &shared.0.1 } else { &shared.0.0 };
                counter.fetch_add(1, Relaxed);
            }
            Verdict::Continue
        });
        requests
    }

    /// How many there were since the last call.
    fn take(&self) -> (usize, usize) {
        (self.0.0.swap(0, Relaxed), self.0.1.swap(0, Relaxed))
    }
}

fn add_many(machine: &Machine, from: usize, count: usize) -> Vec<DeviceId> {
    let add = |number| machine.add(DeviceSpec::new(format!("m{number}"))).expect("added");
    (from..from + count).map(add).collect()
}

#[test]
fn without_gaps_one_request_finds_it() {
    let machine = Machine::new();
    let ids = add_many(&machine, 0, 300);
    let devices = registry(&machine).devices().expect("a list");
    let requests = Requests::count(&machine);
    for number in [150, 0, 299, 151, 7] {
        let device = devices.by_name(format!("m{number}")).expect("listed");
        assert_eq!(device.index().expect("found"), machine.index_of(ids[number]));
        assert_eq!(requests.take(), (1, 0), "m{number}");
    }
}

#[test]
fn few_devices_are_dumped() {
    let machine = Machine::new();
    add_many(&machine, 0, 16);
    let devices = registry(&machine).devices().expect("a list");
    let requests = Requests::count(&machine);
    devices.by_name("m9").expect("listed").index().expect("found");
    assert_eq!(requests.take(), (1, 1));
}

#[test]
fn out_of_reach_a_dump_finds_it() {
    let machine = Machine::new();
    // One device far behind all others, which no step reaches.
    for number in 0..500 {
        let id = machine.add(DeviceSpec::new(format!("gone{number}"))).expect("added");
        machine.remove(id);
    }
    let ids = add_many(&machine, 0, 20);
    let registry = registry(&machine);
    let devices = registry.devices().expect("a list");
    let requests = Requests::count(&machine);
    let index = |name: &str| devices.by_name(name).expect("listed").index().expect("found");
    assert_eq!(index("m5"), machine.index_of(ids[5]));
    let (single, dumps) = requests.take();
    assert!(single <= 21 && dumps == 1, "{single} requests, {dumps} dumps");
    // From then on the other devices are known, or next to a known one.
    assert_eq!(index("m19"), machine.index_of(ids[19]));
    assert_eq!(requests.take(), (1, 0));
    let more = add_many(&machine, 20, 3);
    let devices = registry.devices().expect("a list");
    let device = devices.by_name("m21").expect("listed");
    assert_eq!(device.index().expect("found"), machine.index_of(more[1]));
    assert_eq!(requests.take(), (1, 0));
}

/// Indices near their limit and near the limit of the integer type, in another order than the devices.
#[test]
fn no_index_is_too_large() {
    for end in [1 << 31, u32::MAX] {
        let machine = Machine::new();
        machine.set_next_index(end - 10);
        let ids = add_many(&machine, 0, 40);
        assert_eq!(machine.index_of(ids[10]), end);
        machine.recreate_uverbs(ids[10]).expect("made again");
        let devices = registry(&machine).devices().expect("a list");
        let order = [10, 35].into_iter().chain(0..40);
        for number in order {
            let device = devices.by_name(format!("m{number}")).expect("listed");
            // With a name that no dump has reported.
            machine.rename(ids[number], format!("r{number}").as_bytes()).expect("renamed");
            assert_eq!(device.index().expect("found"), machine.index_of(ids[number]), "m{number}");
        }
    }
}

/// A dump goes by position: the removal of one device during the dump hides another one.
#[test]
fn a_device_that_a_dump_skips_is_found() {
    for (gone, wanted) in [(0, 4), (0, 1), (3, 5)] {
        for at in 1..16 {
            let machine = Machine::new();
            let ids = add_many(&machine, 0, 6);
            let devices = registry(&machine).devices().expect("a list");
            let device = devices.by_name(format!("m{wanted}")).expect("listed");
            let (victim, mut received) = (ids[gone], 0);
            machine.on_call(move |world, call| {
                received += u32::from(call.kind() == CallKind::Recv);
                if received == at {
                    world.remove(victim);
                }
                Verdict::Continue
            });
            let index = device.index();
            assert_eq!(index.expect("found"), machine.index_of(ids[wanted]), "{gone} goes at {at}");
        }
    }
}

/// A device whose removal waits has an index but no node. A request for that node takes the kernel long.
#[test]
fn an_index_without_a_node_is_not_queried_again() {
    let machine = Machine::new();
    let waiting = |name: &str| {
        let id = machine.add(DeviceSpec::new(name).disassociates(false)).expect("added");
        machine.foreign_context(id).expect("held");
        id
    };
    let mut ids = add_many(&machine, 0, 20);
    let slow = [waiting("w0"), waiting("w1")];
    ids.extend(add_many(&machine, 20, 20));
    slow.iter().for_each(|id| machine.remove(*id));
    let queried = Arc::new(AtomicUsize::new(0));
    let (count, slow) =
        (queried.clone(), slow.map(|id| format!("GET_CHARDEV {}", machine.index_of(id))));
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Send && slow.contains(&call.detail(world)) {
            count.fetch_add(1, Relaxed);
        }
        Verdict::Continue
    });
    // Each time the first of the devices after those two is replaced, the next one is searched for at their
    // indices.
    let registry = registry(&machine);
    for round in 0..10 {
        let devices = registry.devices().expect("a list");
        let device = devices.by_name(format!("m{}", 20 + round)).expect("listed");
        assert_eq!(device.index().expect("found"), machine.index_of(ids[20 + round]));
        machine.remove(ids[20 + round]);
    }
    assert!((1..=2).contains(&queried.load(Relaxed)), "{queried:?} requests");
}

/// What happened on a host before the search.
#[derive(Debug, Clone)]
enum Past {
    Add(usize),
    /// Every `n`th of the existing devices.
    RemoveEach(usize, usize),
    /// A consecutive run of them.
    RemoveRun(usize, usize),
    Rename(usize),
    SwapNames(usize, usize),
    /// Its uverbs instance is recreated: a late inode with an early index.
    Recreate(usize),
    ReloadUverbs,
    /// The next index is this one: near the end of the existing ones, or near the limit of the type.
    NextIndex(u32),
}

fn past() -> impl Strategy<Value = Past> {
    prop_oneof![
        4 => (1usize..80).prop_map(Past::Add),
        2 => (2usize..6, 0usize..6).prop_map(|(each, from)| Past::RemoveEach(each, from)),
        2 => (0usize..200, 1usize..60).prop_map(|(from, count)| Past::RemoveRun(from, count)),
        1 => (0usize..200).prop_map(Past::Rename),
        1 => (0usize..200, 0usize..200).prop_map(|(a, b)| Past::SwapNames(a, b)),
        1 => (0usize..200).prop_map(Past::Recreate),
        1 => Just(Past::ReloadUverbs),
        1 => prop_oneof![Just(1 << 31), Just(u32::MAX), Just(0)]
            .prop_flat_map(|end: u32| (0u32..100).prop_map(move |less| end.wrapping_sub(less)))
            .prop_map(Past::NextIndex),
    ]
}

fn happen(machine: &Machine, alive: &mut Vec<DeviceId>, made: &mut usize, past: &Past) {
    match *past {
        Past::Add(count) => {
            alive.extend(add_many(machine, *made, count));
            *made += count;
        }
        Past::RemoveEach(each, from) => {
            let is_gone = |at: &usize| at % each == from % each;
            (0..alive.len()).filter(is_gone).for_each(|at| machine.remove(alive[at]));
            let mut at = 0..;
            alive.retain(|_| !at.next().is_some_and(|at| is_gone(&at)));
        }
        Past::RemoveRun(from, count) => {
            let from = from.min(alive.len());
            let to = (from + count).min(alive.len());
            alive.drain(from..to).for_each(|id| machine.remove(id));
        }
        Past::Rename(at) => {
            if let Some(&id) = alive.get(at) {
                *made += 1;
                machine.rename(id, format!("r{made}").as_bytes()).expect("renamed");
            }
        }
        Past::SwapNames(a, b) => {
            if let (Some(&a), Some(&b)) = (alive.get(a), alive.get(b))
                && a != b
            {
                machine.swap_names(a, b).expect("swapped");
            }
        }
        Past::Recreate(at) => {
            if let Some(&id) = alive.get(at) {
                machine.recreate_uverbs(id).expect("made again");
            }
        }
        Past::ReloadUverbs => machine.reload_ib_uverbs().expect("reloaded"),
        Past::NextIndex(index) => machine.set_next_index(index),
    }
}

/// How many requests the search takes: at most for one device; for all together, if no other device's index is
/// known; and for all together, if the indices that were searched for before are known. The figures show whether a
/// change of the search is an improvement. Any order finds the devices.
#[test]
fn gaps_cost_a_few_more_requests() {
    use Past::{Add, ReloadUverbs, RemoveEach, RemoveRun};
    let pasts = [
        (vec![Add(1000), RemoveEach(2, 0)], (16, 219, 1920)),
        (vec![Add(1000), RemoveEach(2, 1), RemoveEach(2, 1)], (43, 283, 2030)),
        (vec![Add(1000), RemoveEach(3, 1), RemoveEach(5, 2)], (17, 211, 1577)),
        (vec![Add(1000), RemoveRun(0, 500)], (41, 594, 540)),
        (vec![Add(1000), RemoveRun(100, 800)], (45, 138, 252)),
        (vec![Add(1000), RemoveRun(500, 500), Add(500)], (41, 579, 1037)),
        (
            vec![Add(500), RemoveEach(7, 3), Add(500), RemoveRun(300, 300), ReloadUverbs],
            (38, 401, 792),
        ),
    ];
    for (past, expected) in pasts {
        let machine = Machine::new();
        let (mut alive, mut made) = (Vec::new(), 0);
        for past in &past {
            happen(&machine, &mut alive, &mut made, past);
        }
        let requests = Requests::count(&machine);
        let search = |registry: &Registry, id: DeviceId| {
            let devices = registry.devices().expect("a list");
            let ino = machine.directory(id);
            let device = devices.by("it", |device| Some(device.instance().ino) == ino);
            let index = device.expect("listed").index().expect("found");
            assert_eq!(index, machine.index_of(id));
            let (single, dumps) = requests.take();
            assert_eq!(dumps, 0, "after {past:?}: a dump for {id:?}, after {single} requests");
            single
        };
        let (mut worst, mut alone, mut together) = (0, 0, 0);
        let all = registry(&machine);
        // Spread out, and each of them once.
        for at in (0..alive.len()).map(|at| at * 389 % alive.len()) {
            if at % 29 == 0 {
                let requests = search(&registry(&machine), alive[at]);
                (worst, alone) = (worst.max(requests), alone + requests);
            }
            together += search(&all, alive[at]);
        }
        assert_eq!((worst, alone, together), expected, "requests after {past:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    /// Before the list, and between the list and the search.
    #[test]
    fn the_search_finds_the_same_as_a_dump(
        before in prop::collection::vec(past(), 1..10),
        after in prop::collection::vec(past(), 0..3),
        wanted in prop::collection::vec(0usize..400, 1..6),
    ) {
        let machine = Machine::new();
        let (mut alive, mut made) = (Vec::new(), 0);
        for past in &before {
            happen(&machine, &mut alive, &mut made, past);
        }
        let devices = registry(&machine).devices().expect("a list");
        let listed = devices.len();
        let listing = devices.iter().cloned().collect::<Vec<_>>();
        for past in &after {
            happen(&machine, &mut alive, &mut made, past);
        }
        let requests = Requests::count(&machine);
        for at in wanted {
            let Some(device) = listing.get(at % listed.max(1)) else { continue };
            // The right answer, from the simulated kernel.
            let id = alive.iter().find(|id| machine.directory(**id) == Some(device.instance().ino));
            match (device.index(), id) {
                (Ok(index), Some(id)) => prop_assert_eq!(index, machine.index_of(*id)),
                (Ok(index), None) => prop_assert!(false, "found {} of a device that is gone", index),
                (Err(error), Some(_)) => prop_assert!(false, "not found: {}", error),
                (Err(_), None) => {}
            }
            let (single, dumps) = requests.take();
            prop_assert!(single <= 129 + listed + 400 && dumps <= 1, "{single} requests, {dumps} dumps");
        }
    }
}
