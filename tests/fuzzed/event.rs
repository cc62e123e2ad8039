//! Events on a host, from bytes.

use uverbs::sim::{DeviceId, DeviceSpec, NodeKind, Verdict, World};

use crate::input::Input;

/// The maximum number of devices in a plan, because plans are about few of them.
const DEVICES: usize = 12;

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Add { name: Vec<u8>, guid: u64, disassociates: bool, foreign_driver: bool },
    Remove(usize),
    RemoveStages(usize, usize),
    Rename(usize, Vec<u8>),
    SwapNames(usize, usize),
    Attribute(usize, &'static str, Vec<u8>),
    Evict,
    Listxattr(u32),
    Node(u32, NodeKind),
    ForeignContext(usize),
    CloseForeign(usize),
    Recreate(usize),
    ReloadUverbs,
    ReloadCore,
    Visible(usize, bool),
    NoContextList(bool),
    DenyNetlink(bool),
    ContextsAPage(usize),
    RefuseRequest(i32),
    BreakDump(i32),
    HideUnlisted(bool),
}

const NAMES: [&str; 4] = ["rxe0", "rxe1", "mlx5_%d", "a/b"];
const ATTRIBUTES: [&str; 3] = ["dev", "ibdev", "abi_version"];
const ERRNOS: [i32; 8] = [1, 4, 5, 11, 12, 16, 22, 24];

impl Event {
    pub(crate) fn decode(input: &mut Input<'_>) -> Self {
        let device = |input: &mut Input<'_>| input.below(DEVICES);
        match input.below(24) {
            0..=3 => {
                let choice = input.byte();
                let name = match choice & 7 {
                    7 => input.bytes(70).to_vec(),
                    known => NAMES[usize::from(known) % NAMES.len()].into(),
                };
                Self::Add {
                    name,
                    guid: u64::from(choice >> 3 & 3),
                    disassociates: choice & 32 == 0,
                    foreign_driver: choice & 64 != 0,
                }
            }
            4 => Self::Remove(device(input)),
            5 => Self::RemoveStages(device(input), 1 + input.below(9)),
            6 => Self::Rename(device(input), input.bytes(70).to_vec()),
            7 => Self::SwapNames(device(input), device(input)),
            8 => {
                let name = ATTRIBUTES[input.below(ATTRIBUTES.len())];
                let at = device(input);
                let mut value = input.bytes(80).to_vec();
                // A kernel that gives one device another's number lies, and may be believed.
                if name == "dev" {
                    value.insert(0, b'+');
                }
                Self::Attribute(at, name, value)
            }
            9 => Self::Evict,
            10 => Self::Listxattr(input.below(4) as u32),
            11 | 12 => Self::Node(input.below(4) as u32, node(input)),
            13 | 14 => Self::ForeignContext(device(input)),
            15 => Self::CloseForeign(device(input)),
            16 => Self::Recreate(device(input)),
            17 if input.flag() => Self::ReloadUverbs,
            17 => Self::ReloadCore,
            18 => Self::Visible(device(input), input.flag()),
            19 if input.flag() => Self::NoContextList(input.flag()),
            19 => Self::DenyNetlink(input.flag()),
            20 => Self::ContextsAPage(1 + input.below(4)),
            21 => Self::RefuseRequest(ERRNOS[input.below(ERRNOS.len())]),
            22 => Self::BreakDump(ERRNOS[input.below(ERRNOS.len())]),
            _ => Self::HideUnlisted(input.flag()),
        }
    }

    pub(crate) fn happen(&self, world: &mut World, devices: &mut Vec<DeviceId>) {
        // Events that are impossible in this world are ignored.
        let _ = self.try_happen(world, devices);
    }

    fn try_happen(&self, world: &mut World, devices: &mut Vec<DeviceId>) -> Option<()> {
        if let Self::Add { name, guid, disassociates, foreign_driver } = self {
            if devices.len() < DEVICES {
                let mut spec = DeviceSpec::new(name.clone()).disassociates(*disassociates);
                spec = spec.guid(*guid);
                if *foreign_driver {
                    // mlx4: netlink reports it, and it writes its whole response.
                    spec = spec.driver(2, 4).driver_data(0, 16).response(vec![1; 16]);
                }
                devices.push(world.add(spec).ok()?);
            }
            return Some(());
        }
        let device = |at: &usize| devices.get(*at).copied();
        match self {
            Self::Add { .. } => {}
            Self::Remove(at) => world.remove(device(at)?),
            Self::RemoveStages(at, stages) => {
                for _ in 0..*stages {
                    world.remove_step(device(at)?)?;
                }
            }
            Self::Rename(at, name) => world.rename(device(at)?, name).ok()?,
            Self::SwapNames(one, other) => {
                world.swap_names(device(one)?, device(other)?).ok()?;
            }
            Self::Attribute(at, name, value) => {
                world.set_attribute(device(at)?, name, value).ok()?;
            }
            Self::Evict => world.evict(),
            Self::Listxattr(number) => world.listxattr(*number),
            Self::Node(number, kind) => world.set_node(*number, kind.clone()),
            Self::ForeignContext(at) => drop(world.foreign_context(device(at)?)?),
            Self::CloseForeign(at) => {
                let id = device(at)?;
                let ctxn = *world.foreign_contexts_of(id).first()?;
                world.close_foreign(id, ctxn);
            }
            Self::Recreate(at) => world.recreate_uverbs(device(at)?).ok()?,
            Self::ReloadUverbs => world.reload_ib_uverbs().ok()?,
            Self::ReloadCore => world.reload_ib_core().ok()?,
            Self::Visible(at, visible) => world.set_netns_visible(device(at)?, *visible),
            Self::NoContextList(missing) => world.set_no_res_ctx(*missing),
            Self::DenyNetlink(deny) => world.deny_netlink(deny.then_some(1)),
            Self::ContextsAPage(contexts) => world.set_contexts_a_page(*contexts),
            Self::RefuseRequest(errno) => world.refuse_request(*errno),
            Self::BreakDump(errno) => world.break_dump(*errno),
            Self::HideUnlisted(hides) => world.set_hides_unlisted(*hides),
        }
        Some(())
    }
}

fn node(input: &mut Input<'_>) -> NodeKind {
    match input.below(9) {
        0 => NodeKind::Kernel,
        1 | 2 => NodeKind::Static,
        3 => NodeKind::Device(231, 192 + input.below(4) as u32),
        4 => NodeKind::Symlink("uverbs1".into()),
        5 => NodeKind::Fifo,
        6 => NodeKind::Regular,
        7 => NodeKind::Directory,
        _ => NodeKind::Missing,
    }
}

/// What may happen to a call.
pub(crate) fn fault(input: &mut Input<'_>) -> Verdict {
    match input.below(4) {
        0 => Verdict::Lose,
        1 => Verdict::Truncate(input.below(256)),
        2 => Verdict::Forge(input.bytes(64).to_vec()),
        _ => Verdict::Fail(ERRNOS[input.below(ERRNOS.len())]),
    }
}
