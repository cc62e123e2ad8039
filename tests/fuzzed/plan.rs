//! A whole host from bytes. Devices come, go, change their names and have hostile contents, and calls fail.
//! Meanwhile a program lists, keeps handles, opens, verifies and queries. After each step the model checks the
//! result: the opened device is the listed one, nothing else is open, handles still report the same, and every text
//! can be printed.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use uverbs::sim::{DeviceId, Machine, Verdict, World};
use uverbs::{
    Context, Device, DeviceNumber, Devices, Host, Instance, OpenOptions, Opened, Registry,
};

use crate::event::{self, Event};
use crate::input::Input;
use crate::plugged::Plugged;
use crate::sanity::{TOO_MANY, require_printable, require_sane, sane};

/// More steps would find nothing more, and take long.
const STEPS: usize = 48;

/// The device that each directory of sysfs belongs or belonged to.
type Directories = Arc<Mutex<BTreeMap<u64, DeviceId>>>;

struct Play<'a> {
    input: Input<'a>,
    options: OpenOptions,
    machine: Machine,
    registry: Registry,
    devices: Vec<DeviceId>,
    directories: Directories,
    listed: Option<Devices>,
    handles: Vec<(Device, Facts)>,
    contexts: Vec<Context>,
    /// Descriptors that are open without having been requested.
    idle: usize,
}

/// What a handle reports permanently.
#[derive(Debug, PartialEq)]
struct Facts {
    instance: Instance,
    number: u32,
    device_number: DeviceNumber,
}

impl Facts {
    fn of(device: &Device) -> Self {
        Self {
            instance: device.instance(),
            number: device.uverbs_number(),
            device_number: device.device_number(),
        }
    }
}

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let machine = Machine::new();
    let settings = input.byte();
    machine.set_tick(if settings & 1 == 0 { 4_000_000 } else { 0 });
    machine.set_entries_a_page(1 + usize::from(settings >> 1 & 3));
    machine.set_contexts_a_page(if settings & 8 == 0 { 256 } else { 1 });
    machine.set_devtmpfs(settings & 16 == 0);
    let host = Host::simulated(&machine).expect("a host");
    let (registry, plugged) = if settings & 64 == 0 {
        (Registry::new(host), None)
    } else {
        let (registry, plugged) = Plugged::registry(&machine, host);
        (registry, Some(plugged))
    };
    let idle = machine.open_handles();
    let mut play = Play {
        input,
        options: OpenOptions::new().strict_timestamps(settings & 32 != 0),
        registry,
        devices: Vec::new(),
        directories: Directories::default(),
        listed: None,
        handles: Vec::new(),
        contexts: Vec::new(),
        idle,
        machine,
    };
    for _ in 0..STEPS {
        if play.input.is_used_up() {
            break;
        }
        play.step();
        play.check();
    }
    let machine = play.machine.clone();
    if let Some(plugged) = &plugged {
        plugged.unplug();
    }
    drop(play);
    if let Some(plugged) = plugged {
        plugged.check_gone();
    }
    assert_eq!(machine.open_handles(), 0, "left open");
    assert_eq!(machine.overruns(), 0, "memory was overwritten");
}

impl Play<'_> {
    fn step(&mut self) {
        match self.input.below(16) {
            0..=5 => {
                let event = Event::decode(&mut self.input);
                let devices = &mut self.devices;
                self.machine.with(|world| happen(world, &event, devices, &self.directories));
            }
            6 => self.list_quietly(),
            7 | 8 => self.list(),
            9..=11 => self.open(),
            12 => self.verify(),
            13 => self.query(),
            14 => self.use_context(),
            _ => self.drop_something(),
        }
    }

    /// Applies events and makes calls fail while the library runs.
    fn meanwhile<T>(&mut self, act: impl FnOnce(&Self) -> T) -> T {
        let mut plan = Vec::new();
        for _ in 0..self.input.below(4) {
            let at = u64::from(self.input.byte() % 64);
            let event = if self.input.flag() {
                Ok(Event::decode(&mut self.input))
            } else {
                Err(event::fault(&mut self.input))
            };
            plan.push((at, event));
        }
        let start = self.machine.calls() + 1;
        let devices = Arc::new(Mutex::new(self.devices.clone()));
        let (shared, directories) = (devices.clone(), self.directories.clone());
        self.machine.on_call(move |world, call| {
            let number = call.ordinal() - start;
            assert!(number < TOO_MANY, "it does not end");
            let mut verdict = Verdict::Continue;
            for (_, planned) in plan.iter().filter(|(at, _)| *at == number) {
                match planned {
                    Ok(event) => {
                        let mut devices = shared.lock().expect("no panic");
                        happen(world, event, &mut devices, &directories);
                    }
                    Err(fault) => verdict = fault.clone(),
                }
            }
            verdict
        });
        let answer = act(self);
        self.machine.clear_hook();
        self.devices = std::mem::take(&mut *devices.lock().expect("no panic"));
        answer
    }

    fn list(&mut self) {
        let listed = self.meanwhile(|play| sane(play.registry.devices()));
        self.keep(listed);
    }

    /// Without events, the list has exactly the devices that exist.
    fn list_quietly(&mut self) {
        let Some(listed) = sane(self.registry.devices()) else { return };
        let known: Vec<u64> = listed.iter().map(|device| device.instance().ino).collect();
        let faults = listed.faults().count();
        let mut missing = 0;
        for &id in &self.devices {
            let Some(directory) = self.machine.directory(id) else { continue };
            let has_link = self.machine.number_of(id).is_some();
            if self.machine.is_alive(id) && has_link && !known.contains(&directory) {
                missing += 1;
            }
        }
        assert!(
            missing <= faults,
            "{missing} devices are missing, {faults} are reported as faulty"
        );
        for ino in &known {
            let id = self.device_of(*ino);
            assert!(id.is_some_and(|id| !self.machine.is_gone(id)), "listed, but gone");
        }
        self.keep(Some(listed));
    }

    fn keep(&mut self, listed: Option<Devices>) {
        let Some(listed) = listed else { return };
        listed.faults().for_each(require_sane);
        for device in &listed {
            require_printable(&device.name().to_string());
            if self.handles.len() < 32 && !self.handles.iter().any(|(known, _)| known == device) {
                self.handles.push((device.clone(), Facts::of(device)));
            }
        }
        self.listed = Some(listed);
    }

    fn handle(&mut self) -> Option<Device> {
        let at = self.input.below(self.handles.len());
        self.handles.get(at).map(|(device, _)| device.clone())
    }

    fn open(&mut self) {
        let Some(device) = self.handle() else { return };
        let opened = self.meanwhile(|play| sane(play.options.open(&device)));
        let Some(opened) = opened else { return };
        let Opened::Proven(context) = opened else { panic!("not proved, and opened") };
        let bound = self.machine.directory_of(context.as_fd());
        assert_eq!(bound, Some(device.instance().ino), "WRONG DEVICE");
        assert!(context.evidence().checks().iter().all(uverbs::Check::held), "not all held");
        if self.contexts.len() < 8 {
            self.contexts.push(context);
        }
    }

    fn verify(&mut self) {
        let Some(device) = self.handle() else { return };
        let number = self.input.below(4) as u32;
        self.meanwhile(|play| {
            let Ok(fd) = play.machine.open_unguarded(number) else { return };
            if sane(device.verify(fd.as_fd())).is_some() {
                let bound = play.machine.directory_of(fd.as_fd());
                assert_eq!(bound, Some(device.instance().ino), "WRONG DEVICE verified");
            }
        });
    }

    fn query(&mut self) {
        let Some(device) = self.handle() else { return };
        let Some(facts) = self.meanwhile(|_| sane(device.query())) else { return };
        let id = self.device_of(device.instance().ino).expect("a device that was there");
        let truth = (self.machine.index_of(id), self.machine.guid_of(id));
        assert_eq!((facts.index, facts.node_guid.0), truth, "facts of another device");
    }

    fn use_context(&mut self) {
        let at = self.input.below(self.contexts.len());
        let Some(context) = self.contexts.get(at) else { return };
        if let Some(attributes) = sane(context.query_device()) {
            let id = self.device_of(context.device().instance().ino).expect("it was there");
            assert_eq!(attributes.node_guid.0, self.machine.guid_of(id), "WRONG DEVICE answers");
        }
    }

    fn drop_something(&mut self) {
        match self.input.below(3) {
            0 => self.listed = None,
            1 if !self.contexts.is_empty() => {
                let at = self.input.below(self.contexts.len());
                self.contexts.swap_remove(at);
            }
            2 if !self.handles.is_empty() => {
                let at = self.input.below(self.handles.len());
                self.handles.swap_remove(at);
            }
            _ => {}
        }
    }

    fn device_of(&self, directory: u64) -> Option<DeviceId> {
        self.directories.lock().expect("no panic").get(&directory).copied()
    }

    /// What holds after every step.
    fn check(&self) {
        let open = self.machine.open_handles();
        assert_eq!(open, self.idle + self.contexts.len(), "more descriptors than contexts");
        for (at, (device, facts)) in self.handles.iter().enumerate() {
            assert_eq!(Facts::of(device), *facts, "a handle reports something else");
            assert!(self.handles[..at].iter().all(|(other, _)| other != device), "twice the same");
            require_printable(&format!("{} {device:?}", device.name()));
        }
    }
}

/// Applies an event, and records the devices afterwards.
fn happen(
    world: &mut World,
    event: &Event,
    devices: &mut Vec<DeviceId>,
    directories: &Directories,
) {
    event.happen(world, devices);
    let mut directories = directories.lock().expect("no panic");
    for &id in devices.iter() {
        if let Some(directory) = world.directory(id) {
            directories.insert(directory, id);
        }
    }
}
