//! The library's own cost, on the simulated kernel: `cargo bench --features sim`.

use divan::Bencher;
use uverbs::sim::{DeviceSpec, Machine};
use uverbs::{Host, Registry};

const DEVICES: [usize; 3] = [1, 64, 1000];

fn main() {
    divan::main();
}

/// A host with that many devices, listed once.
fn listed(devices: usize) -> (Machine, Registry) {
    let machine = Machine::new();
    machine.set_entries_a_page(1024);
    for number in 0..devices {
        machine.add(DeviceSpec::new(format!("m{number}"))).expect("added");
    }
    let registry = registry(&machine);
    registry.devices().expect("a list");
    (machine, registry)
}

fn registry(machine: &Machine) -> Registry {
    Registry::new(Host::simulated(machine).expect("a host"))
}

#[divan::bench(args = DEVICES)]
fn first_list(bencher: Bencher<'_, '_>, devices: usize) {
    let (machine, _) = listed(devices);
    bencher.with_inputs(|| registry(&machine)).bench_refs(|registry| registry.devices());
}

#[divan::bench(args = DEVICES)]
fn list_unchanged(bencher: Bencher<'_, '_>, devices: usize) {
    let (_machine, registry) = listed(devices);
    bencher.bench(|| registry.devices());
}

#[divan::bench(args = DEVICES)]
fn list_one_renamed(bencher: Bencher<'_, '_>, devices: usize) {
    let (machine, registry) = listed(devices);
    let id = machine.instance_of(devices as u32 / 2).expect("there");
    let mut round = 0;
    let rename = || {
        round += 1;
        machine.rename(id, format!("renamed{round}").as_bytes()).expect("renamed");
    };
    bencher.with_inputs(rename).bench_local_values(|()| registry.devices());
}

#[divan::bench(args = DEVICES)]
fn open_and_close(bencher: Bencher<'_, '_>, devices: usize) {
    let (_machine, registry) = listed(devices);
    let device = registry.devices().expect("a list").iter().last().expect("one").clone();
    bencher.bench(|| device.open().map(drop));
}

/// The first open, when the index is not known.
#[divan::bench(args = DEVICES)]
fn first_open(bencher: Bencher<'_, '_>, devices: usize) {
    let (machine, _) = listed(devices);
    let list = || registry(&machine).devices().expect("a list");
    bencher
        .with_inputs(list)
        .bench_refs(|devices| devices.iter().nth(devices.len() / 2).expect("one").open().map(drop));
}
