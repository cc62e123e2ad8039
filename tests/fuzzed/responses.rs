//! A kernel that answers nonsense: at some calls of a program, the contents of files, links, netlink answers and
//! ioctl outputs are replaced or altered. The library may believe a kernel that lies consistently. It must not
//! panic, loop endlessly, leave anything open, or print the input unescaped.

use std::os::fd::AsFd as _;
use std::time::Duration;

use uverbs::sim::{DeviceSpec, Machine, Verdict};
use uverbs::{Context, ContextClaim, Device, Host, Registry};

use crate::input::Input;
use crate::sanity::{TOO_MANY, require_sane, sane};

/// What happens to one call.
fn verdict(input: &mut Input<'_>) -> Verdict {
    match input.below(5) {
        0 => Verdict::Answer(input.bytes(255).to_vec()),
        1 => Verdict::Alter((0..=input.below(4)).map(|_| place(input)).collect()),
        2 => Verdict::Truncate(input.below(256)),
        3 => Verdict::Forge(input.bytes(64).to_vec()),
        _ => Verdict::Lose,
    }
}

/// Mostly in the part of an answer that has content.
fn place(input: &mut Input<'_>) -> (usize, u8) {
    (usize::from(input.byte()), input.byte())
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let machine = Machine::new();
    let settings = input.byte();
    let spec = DeviceSpec::new("rxe0").disassociates(settings & 1 == 0);
    let first = machine.add(spec.response(vec![0x5a; 40])).expect("a new machine takes a device");
    machine.add(DeviceSpec::new("rxe1")).expect("and another one");
    if settings & 2 != 0 {
        machine.set_contexts_a_page(1);
        machine.foreign_context(first);
        machine.foreign_context(first);
    }
    // For mthca, netlink does not report the driver, so the descriptor is probed.
    if settings & 4 != 0 {
        let _ = machine.add(DeviceSpec::new("mthca0").driver(5, 1).driver_data(0, 8));
    }
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let listed = registry.devices().expect("a list");
    let number = usize::from(settings >> 3) % listed.len();
    let chosen = listed.iter().nth(number).expect("there are so many").clone();

    let mut plan = Vec::new();
    let mut at = 0;
    let program = input.below(7);
    while !input.is_used_up() && plan.len() < 16 {
        at += u64::from(input.byte() % 16);
        plan.push((at, verdict(&mut input)));
    }
    let held = (program >= 5).then(|| chosen.open().ok()).flatten();
    if let Some(id) = machine.instance_of(number as u32) {
        machine.event(id, 9, 1);
    }
    let start = machine.calls() + 1;
    machine.on_call(move |_, call| {
        let number = call.ordinal() - start;
        assert!(number < TOO_MANY, "it does not end");
        let planned = plan.iter().find(|(at, _)| *at == number);
        planned.map_or(Verdict::Continue, |(_, verdict)| verdict.clone())
    });
    match program {
        0 => {
            if let Some(context) = sane(chosen.open()) {
                sane(context.query_device());
            }
        }
        1 => {
            if let Some(facts) = sane(chosen.query()) {
                let _ = (facts.index, facts.node_guid);
            }
        }
        2 => {
            if let Ok(fd) = machine.open_unguarded(number as u32) {
                sane(chosen.verify(fd.as_fd()));
            }
        }
        3 => {
            if let Some(devices) = sane(registry.devices()) {
                devices.faults().for_each(require_sane);
                for device in &devices {
                    sane(device.open());
                }
            }
        }
        4 => drop(sane(chosen.open_allow_unproven())),
        5 => held.as_ref().map_or((), |context| query_all(context, &machine, &chosen)),
        _ => held.as_ref().map_or((), pass_on),
    }
    machine.clear_hook();
    drop((held, chosen, listed, registry));
    assert_eq!(machine.open_handles(), 0, "left open");
}

/// Every query of a context.
fn query_all(context: &Context, machine: &Machine, device: &Device) {
    let mut events = sane(context.async_events());
    sane(context.query_device());
    sane(context.query_device_extended());
    sane(context.query_port(1));
    sane(context.gids());
    sane(context.pkeys(1));
    sane(context.is_device_present());
    sane(device.provider());
    sane(device.query());
    if let Some(id) = machine.device_of(context.as_fd()) {
        machine.event(id, 18, 1);
    }
    if let Some(events) = &mut events {
        while let Some(Some(event)) = sane(events.wait(Some(Duration::ZERO))) {
            let _ = (event.kind, event.port());
        }
    }
}

/// Another process takes the context over.
fn pass_on(context: &Context) {
    let Some(claim) = sane(context.claim()) else { return };
    sane(ContextClaim::from_bytes(&claim.to_bytes()));
    if let Ok(fd) = context.as_fd().try_clone_to_owned() {
        sane(Context::from_fd(context.device(), fd, &claim));
    }
}
