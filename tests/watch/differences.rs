//! The difference of two lists, for random histories of a host.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use uverbs::sim::{CallKind, DeviceId, Verdict};
use uverbs::{Change, Devices, Instance};

use super::{device, machine};

#[derive(Debug, Clone)]
enum Step {
    Add,
    Remove(usize),
    Replace(usize),
    Rename(usize, u8),
    Swap(usize, usize),
    Move(usize),
    Reload,
    /// The device cannot be read for a while.
    Hide(usize),
    Show,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Add),
        2 => (0..8_usize).prop_map(Step::Remove),
        2 => (0..8_usize).prop_map(Step::Replace),
        2 => (0..8_usize, 0..4_u8).prop_map(|(at, name)| Step::Rename(at, name)),
        1 => (0..8_usize, 0..8_usize).prop_map(|(one, other)| Step::Swap(one, other)),
        1 => (0..8_usize).prop_map(Step::Move),
        1 => Just(Step::Reload),
        1 => (0..8_usize).prop_map(Step::Hide),
        1 => Just(Step::Show),
    ]
}

type State = HashMap<Instance, (u32, String)>;

/// Applies changes in their order, and requires that each fits.
fn apply(changes: &[Change], state: &mut State) {
    let mut seen = HashSet::new();
    let mut once = |instance: Instance| assert!(seen.insert(instance), "twice: {changes:?}");
    for change in changes {
        match change {
            Change::Added { device, name, .. } => {
                once(device.instance());
                let entry = (device.uverbs_number(), name.to_string());
                assert!(state.values().all(|(number, _)| *number != entry.0), "{changes:?}");
                assert!(state.insert(device.instance(), entry).is_none());
            }
            Change::Removed { device, .. } => {
                once(device.instance());
                state.remove(&device.instance()).expect("it was there");
            }
            Change::Replaced { old, new, name, .. } => {
                once(old.instance());
                once(new.instance());
                assert_eq!(old.uverbs_number(), new.uverbs_number());
                state.remove(&old.instance()).expect("it was there");
                state.insert(new.instance(), (new.uverbs_number(), name.to_string()));
            }
            Change::Renamed { device, from, to, .. } => {
                once(device.instance());
                let entry = state.get_mut(&device.instance()).expect("it is there");
                assert_eq!(std::mem::replace(&mut entry.1, to.to_string()), from.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn changes_lead_from_any_list_to_any_later_one(steps in prop::collection::vec(step(), 1..40)) {
        let (machine, registry) = machine();
        let mut ids: Vec<DeviceId> = Vec::new();
        // What every list would show if all of its devices could be read.
        let mut lists: Vec<(Devices, State)> = vec![(Devices::default(), State::new())];
        for (at, step) in steps.iter().enumerate() {
            let id = |at: &usize| ids.get(*at).copied();
            match step {
                Step::Add => ids.extend(machine.add(device(&format!("m{at}")))),
                Step::Remove(at) => {
                    if let Some(id) = id(at) {
                        machine.remove(id);
                    }
                }
                Step::Replace(at) => {
                    if let Some(id) = id(at) {
                        machine.remove(id);
                        ids.extend(machine.add(device(&format!("r{at}"))));
                    }
                }
                Step::Rename(at, name) => {
                    if let Some(id) = id(at) {
                        let _ = machine.rename(id, format!("n{name}").as_bytes());
                    }
                }
                Step::Swap(one, other) => {
                    if let (Some(one), Some(other)) = (id(one), id(other)) && one != other {
                        let _ = machine.swap_names(one, other);
                    }
                }
                Step::Move(at) => {
                    if let Some(id) = id(at) {
                        let _ = machine.move_netns(id, true);
                    }
                }
                Step::Reload => drop(machine.reload_ib_uverbs()),
                Step::Hide(at) => {
                    let hidden = format!("uverbs{at}: ibdev");
                    machine.on_call(move |world, call| {
                        let is_hidden = call.kind() == CallKind::Openat2
                            && call.detail(world).ends_with(&hidden);
                        if is_hidden { Verdict::Fail(12) } else { Verdict::Continue }
                    });
                }
                Step::Show => machine.clear_hook(),
            }
            let list = registry.devices().expect("a list");
            let mut state = lists.last().expect("one").1.clone();
            apply(&list.changes_since(&lists.last().expect("one").0), &mut state);
            lists.push((list, state));
        }
        machine.clear_hook();
        for (older, before) in &lists {
            prop_assert!(older.changes_since(older).is_empty());
            let newer = lists.iter().skip_while(|(list, _)| !std::ptr::eq(list, older));
            for (newer, after) in newer {
                let mut state = before.clone();
                apply(&newer.changes_since(older), &mut state);
                prop_assert_eq!(&state, after);
                // Every device that is listed is in the state, and the others could not be read.
                let listed = newer.iter().filter(|device| state.contains_key(&device.instance()));
                prop_assert_eq!(listed.count(), newer.len());
                prop_assert!(state.len() <= newer.len() + newer.faults().count());
            }
        }
        let last = registry.devices().expect("a list");
        let mut state = lists.last().expect("one").1.clone();
        apply(&last.changes_since(&lists.last().expect("one").0), &mut state);
        let truth: Vec<(u32, String)> = machine
            .listed()
            .into_iter()
            .map(|(number, _, name)| (number, String::from_utf8_lossy(&name).into_owned()))
            .collect();
        let mut found: Vec<_> = state.into_values().collect();
        found.sort();
        prop_assert_eq!(found, truth);
    }
}
