//! Programs on libibverbs under the guard: a model of libibverbs' list and open, and the guard's steps around them.
//!
//! The model has what matters of libibverbs: it reads names, GUIDs and indices over netlink, a device number for each,
//! and, where that fails, looks one up by the name; it keeps a handle whose index and number are found again, with
//! the old name and GUID; and it opens a node by name and compares its device number. It makes each of its system
//! calls on the simulated kernel, so everything may happen before any of them.

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex};

use uverbs::sim::{As, DeviceId, Machine, Probe, Root, World};
use uverbs::{ErrorKind, Guid, Host, IbvHandle, IbvHandles, IbvNames, OldNames, Registry};

use crate::play::Program;
use crate::threads::Shared;

/// The name by which a program chooses its device, and the GUID.
const NAME: &[u8] = b"rxe0";
const GUID: u64 = 0xa0;

/// The highest index that any world has, and a few more.
const INDICES: u32 = 6;

/// A part of the guard that no check of the library stands for, and that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Names are mended after each list.
    Mending,
    /// A list whose names could not all be read does not count.
    MendingWhole,
    /// The descriptor is proved.
    Proof,
}

static LEFT_OUT: Mutex<Option<Part>> = Mutex::new(None);

#[cfg(uverbs_leave_out)]
pub(crate) fn leave_out(part: Option<Part>) {
    *LEFT_OUT.lock().expect("no panic") = part;
}

fn lacks(part: Part) -> bool {
    *LEFT_OUT.lock().expect("no panic") == Some(part)
}

/// The devices that a program may get. A device whose uverbs directory is another one by now, because ib_uverbs was
/// reloaded, is still the same.
#[derive(Clone, Default)]
pub(crate) struct Asked(Arc<Mutex<(bool, Vec<DeviceId>)>>);

impl Asked {
    /// Notes which devices have the name, or the GUID, if a program is choosing one.
    pub(crate) fn observe(&self, program: Program, world: &World) {
        let mut asked = self.0.lock().expect("no panic");
        if !asked.0 {
            return;
        }
        let there = world.listed().into_iter().filter_map(|(number, ..)| world.instance_of(number));
        asked.1.extend(there.filter(|id| match program {
            Program::GuardedByGuid => world.guid_of(*id) == GUID,
            _ => world.name_of(*id) == NAME,
        }));
    }

    /// From now on, whatever the program may choose counts, and nothing else.
    fn begin(&self) {
        *self.0.lock().expect("no panic") = (true, Vec::new());
    }

    fn end(&self) {
        self.0.lock().expect("no panic").0 = false;
    }

    pub(crate) fn only(&self, id: DeviceId) {
        self.0.lock().expect("no panic").1 = vec![id];
    }

    fn has(&self, id: Option<DeviceId>) -> bool {
        id.is_some_and(|id| self.0.lock().expect("no panic").1.contains(&id))
    }
}

/// libibverbs, and the guard of the same process.
pub(crate) struct Ibverbs {
    machine: Machine,
    host: Host,
    /// The newest list of the thread that runs here.
    handles: Vec<Handle>,
    guard: IbvHandles,
    pub(crate) asked: Asked,
    pub(crate) shared: Shared,
}

/// `struct ibv_device`, with the device number that libibverbs compares. All lists share it.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    pub(crate) index: u32,
    dev: (u32, u32),
    name: Arc<Mutex<Vec<u8>>>,
    guid: u64,
}

impl Handle {
    pub(crate) fn new(index: u32, dev: (u32, u32), name: Vec<u8>, guid: u64) -> Self {
        Self { index, dev, name: Arc::new(Mutex::new(name)), guid }
    }

    fn name(&self) -> Vec<u8> {
        self.name.lock().expect("no panic").clone()
    }

    pub(crate) fn set_name(&self, name: &[u8]) {
        name.clone_into(&mut self.name.lock().expect("no panic"));
    }
}

/// What `found` stands for in the handles that libibverbs has already.
pub(crate) fn keep(known: &[Handle], found: Handle) -> Handle {
    let is_kept = |known: &&Handle| known.index == found.index && known.dev == found.dev;
    known.iter().find(is_kept).cloned().unwrap_or(found)
}

type Outcome<T> = std::result::Result<T, ErrorKind>;

/// libibverbs finds nothing, or a call of its own fails.
const THEIRS: ErrorKind = ErrorKind::NotFound;

impl Ibverbs {
    /// A process that has just started under the guard.
    pub(crate) fn new(machine: &Machine) -> Self {
        let host = Host::simulated(machine).expect("a host");
        let guard = IbvHandles::new();
        guard.begin(&host).expect("an epoch");
        let (machine, asked) = (machine.clone(), Asked::default());
        Self { machine, host, handles: Vec::new(), guard, asked, shared: Shared::default() }
    }

    /// `ibv_get_device_list`, through the guard if the program is such a one.
    pub(crate) fn list(&mut self, program: Program) -> Outcome<()> {
        if !program.is_list_seen() {
            self.handles = real_list(&self.host, &self.shared);
            return Ok(());
        }
        let (host, shared) = (&self.host, &self.shared);
        let _alone = shared.lock(&self.machine);
        let list = || real_list(host, shared);
        let mend = |list: &mut Vec<Handle>, names: &mut IbvNames<'_>| {
            let handles = list.iter().filter(|_| !lacks(Part::Mending));
            for handle in handles {
                match names.get(handle.index) {
                    Ok(Some(name)) => handle.set_name(name.as_bytes()),
                    Ok(None) => {}
                    Err(_) if lacks(Part::MendingWhole) => break,
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        };
        let listed = self.guard.list(host, list, mend);
        self.handles = listed.map_err(|error| error.kind())?;
        Ok(())
    }

    /// Chooses a handle of the last list, as the program does.
    fn choose(&self, program: Program) -> Outcome<Handle> {
        let is_chosen = |handle: &&Handle| match program {
            Program::GuardedByGuid => handle.guid == GUID,
            _ => handle.name() == NAME,
        };
        self.handles.iter().find(is_chosen).cloned().ok_or(THEIRS)
    }

    /// `ibv_open_device`, with the guard at the boundary to the provider. Returns whether another device than one of
    /// those that the program may get was opened.
    fn open(&self, handle: &Handle) -> Outcome<bool> {
        let probe = Probe::new(&self.host);
        let number = handle.dev.1 - 192;
        let path = format!("infiniband/uverbs{number}");
        let node = probe.open(Root::Dev, &path, As::Node).map_err(|_| THEIRS)?;
        if node.facts().map_err(|_| THEIRS)?.rdev != handle.dev {
            return Err(THEIRS);
        }
        let dev_name = format!("uverbs{number}");
        let (index, guid) = (handle.index.cast_signed(), Guid(handle.guid));
        let foreign = IbvHandle::new(index, dev_name.as_bytes(), &handle.name(), guid);
        let registry = Registry::new(self.host.clone());
        let device = foreign
            .and_then(|foreign| self.guard.find(&registry, &foreign, OldNames::AfterList))
            .map_err(|error| error.kind())?;
        node.get_context().map_err(|_| THEIRS)?;
        if !lacks(Part::Proof) {
            device.verify(&node).map_err(|error| error.kind())?;
        }
        self.asked.end();
        Ok(!self.asked.has(self.machine.device_of(node.as_fd())))
    }

    /// Runs a program. Returns its result, and whether it got the wrong device.
    pub(crate) fn run(&mut self, program: Program) -> (Outcome<()>, bool) {
        let mut done = || {
            if program.lists_again() {
                self.asked.begin();
                self.list(program)?;
                // A list that the guard does not see may have an older name, which is compared when it is opened.
                if program.is_list_seen() {
                    self.asked.end();
                }
            }
            let handle = self.choose(program)?;
            self.open(&handle)
        };
        match done() {
            Ok(wrong) => (Ok(()), wrong),
            Err(kind) => (Err(kind), false),
        }
    }
}

/// `ibv_get_device_list`, with the handles that libibverbs has. Its own lock keeps other lists away.
fn real_list(host: &Host, shared: &Shared) -> Vec<Handle> {
    let known = shared.begin_list();
    let found = found_by_list(host, &known);
    shared.end_list(&found);
    found
}

fn found_by_list(host: &Host, known: &[Handle]) -> Vec<Handle> {
    let probe = Probe::new(host);
    let mut found = Vec::new();
    for index in 0..INDICES {
        // A device that goes meanwhile is left out.
        let Ok((name, guid)) = probe.device(index) else { continue };
        let dev = probe.chardev(index).ok().or_else(|| dev_by_name(&probe, &name));
        let Some(dev) = dev else { continue };
        found.push(keep(known, Handle::new(index, dev, name, guid)));
    }
    found
}

/// The device number of the uverbs device with that name in /sys.
fn dev_by_name(probe: &Probe, name: &[u8]) -> Option<(u32, u32)> {
    let class = probe.open(Root::Sys, "class/infiniband_verbs", As::File).ok()?;
    for entry in class.names().ok()? {
        let Ok(link) =
            probe.open(Root::Sys, &format!("class/infiniband_verbs/{entry}"), As::Reference)
        else {
            continue;
        };
        let Ok(target) = link.link() else { continue };
        let target = String::from_utf8_lossy(&target).replace("../../", "");
        let read = |attribute: &str| {
            probe.open(Root::Sys, &format!("{target}/{attribute}"), As::File).ok()?.read().ok()
        };
        if read("ibdev").is_some_and(|ibdev| ibdev.trim_ascii_end() == name) {
            let dev = String::from_utf8(read("dev")?).ok()?;
            let (major, minor) = dev.trim_end().split_once(':')?;
            return Some((major.parse().ok()?, minor.parse().ok()?));
        }
    }
    None
}
