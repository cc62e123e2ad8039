//! Uevents from bytes, on a host whose devices change: genuine ones, forged ones, and what may become of them. A watch
//! follows meanwhile. One safety interval after the last change, its list is the kernel's.

use std::collections::BTreeMap;
use std::time::Duration;

use uverbs::sim::{DeviceId, Machine};
use uverbs::{Change, Devices, Host, Name, Registry, Watch};

use crate::event::Event;
use crate::input::Input;
use crate::sanity::{require_printable, require_sane};

const STEPS: usize = 64;
/// The longest time after which a watch is right, and its devices are ready or will not be.
const SAFETY: Duration = Duration::from_millis(2_200);

/// The devices by the inode of their directory.
type State = BTreeMap<u64, (u32, Vec<u8>)>;

pub(crate) fn run(bytes: &[u8]) {
    uverbs::fuzzing::uevent(bytes);
    let mut input = Input(bytes);
    let machine = Machine::new();
    let settings = input.byte();
    machine.set_uevent_room([4096, 0, 1, 7][usize::from(settings & 3)]);
    machine.set_in_user_namespace(settings & 4 != 0);
    machine.deny_uevents((settings & 24 == 24).then_some(1));
    let host = Host::simulated(&machine).expect("a host");
    let registry = Registry::new(host);
    let mut watch = registry.watch_since(&Devices::default()).expect("a watch");
    let mut devices: Vec<DeviceId> = Vec::new();
    let mut state = State::new();
    for _ in 0..STEPS {
        if input.is_used_up() {
            break;
        }
        match input.below(12) {
            0..=3 => {
                let event = Event::decode(&mut input);
                // What lies about itself, or is listed differently, is for the other target.
                if !matches!(event, Event::Attribute(..) | Event::Visible(..)) {
                    machine.with(|world| event.happen(world, &mut devices));
                }
            }
            4 => machine.foreign_uevent(input.bytes(120)),
            5 => {
                let (port, groups) = (u32::from(input.byte() & 1), u32::from(input.byte() & 3));
                machine.forge_uevent(input.bytes(120), port, groups);
            }
            6 => match input.below(4) {
                0 => machine.lose_uevents(u32::from(input.byte())),
                1 => machine.repeat_uevents(u32::from(input.byte())),
                2 => machine.cut_uevents(u32::from(input.byte())),
                _ => machine.set_in_user_namespace(input.flag()),
            },
            7 if input.flag() => machine.hold_uevents(),
            7 => machine.release_uevents(input.flag()),
            8 => machine.advance(Duration::from_millis(u64::from(input.byte()) * 16)),
            9 => drop(registry.devices()),
            _ => follow(&mut watch, &mut state, Duration::from_millis(u64::from(input.byte()))),
        }
    }
    // While the attributes of a device are gone and its link is not, a list may have it or not.
    for id in devices {
        if !machine.is_alive(id) {
            machine.remove(id);
        }
    }
    follow(&mut watch, &mut state, SAFETY);
    let truth: State =
        machine.listed().into_iter().map(|(number, ino, name)| (ino, (number, name))).collect();
    assert_eq!(state, truth, "STALE");
    drop((watch, registry));
    assert_eq!(machine.open_handles(), 0, "left open");
}

/// Applies what comes within that time.
fn follow(watch: &mut Watch, state: &mut State, long: Duration) {
    let mut changes = 0;
    loop {
        changes += 1;
        assert!(changes < 10_000, "it does not end");
        let change = match watch.wait(Some(long)) {
            Ok(None) => return,
            Ok(Some(change)) => change,
            Err(error) => {
                require_sane(&error);
                continue;
            }
        };
        require_printable(&change.to_string());
        require_printable(&format!("{change:?}"));
        match change {
            Change::Added { device, name, .. } => {
                let before =
                    state.insert(device.instance().ino, (device.uverbs_number(), bytes(&name)));
                assert_eq!(before, None, "added twice");
            }
            Change::Removed { device, .. } => {
                state.remove(&device.instance().ino).expect("it was there");
            }
            Change::Replaced { old, new, name, .. } => {
                state.remove(&old.instance().ino).expect("it was there");
                let before = state.insert(new.instance().ino, (new.uverbs_number(), bytes(&name)));
                assert_eq!(before, None, "added twice");
            }
            Change::Renamed { device, from, to, .. } => {
                let entry = state.get_mut(&device.instance().ino).expect("it is there");
                assert_eq!(
                    std::mem::replace(&mut entry.1, bytes(&to)),
                    bytes(&from),
                    "another name"
                );
            }
            Change::Ready { device, .. } => {
                assert!(state.contains_key(&device.instance().ino), "ready, but not there");
            }
            _ => {}
        }
    }
}

fn bytes(name: &Name) -> Vec<u8> {
    name.as_bytes().to_vec()
}
