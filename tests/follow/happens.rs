//! What may happen to the world before a call, and to the uevents of it.

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Verdict, World};

/// What becomes of the uevents of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Sent,
    /// Without a sign.
    Lost,
    SentTwice,
    Cut,
    /// Until the next call.
    Delayed,
    /// Until the next call, and then in reverse order.
    Reordered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Nothing,
    Remove,
    RemoveStages(usize),
    /// The last stages of a removal that has begun.
    RemoveRest,
    Replace,
    ReplaceTwice,
    ReplaceRenamed,
    ComeAndGo,
    Add,
    BeginAdd,
    AddStage,
    Rename,
    SwapNames,
    MoveAway,
    MoveBack,
    Recreate,
    ReloadUverbs,
    ReloadCore,
    RemoveWhileListed,
    Synthetic,
    Foreign,
    Forged,
}

/// What happens to the call itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Fail(i32),
    Forged,
    Garbage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Change(Change, Fate),
    Fault(Fault),
}

use Change::*;

/// A list may have a device or not while its attributes are gone and its link is not, so no change ends in the third
/// stage of a removal.
const CHANGES: [Change; 18] = [
    Remove,
    RemoveStages(1),
    RemoveStages(4),
    RemoveStages(6),
    RemoveRest,
    Replace,
    ReplaceTwice,
    ReplaceRenamed,
    ComeAndGo,
    Add,
    BeginAdd,
    AddStage,
    Rename,
    SwapNames,
    MoveAway,
    MoveBack,
    Recreate,
    RemoveWhileListed,
];

/// Changes whose events come to several. One fate is enough for these.
const OTHERS: [Change; 6] = [Nothing, ReloadUverbs, ReloadCore, Synthetic, Foreign, Forged];

const FATES: [Fate; 6] =
    [Fate::Sent, Fate::Lost, Fate::SentTwice, Fate::Cut, Fate::Delayed, Fate::Reordered];

/// Errnos of a receive, of any call, and of a lack of descriptors or memory.
const ERRNOS: [i32; 5] = [4, 11, 12, 24, 105];

pub(crate) fn everything() -> Vec<Happening> {
    let changes =
        CHANGES.into_iter().flat_map(|change| FATES.map(|fate| Happening::Change(change, fate)));
    let others = OTHERS.map(|change| Happening::Change(change, Fate::Sent));
    let faults = ERRNOS.map(Fault::Fail).into_iter().chain([Fault::Forged, Fault::Garbage]);
    changes.chain(others).chain(faults.map(Happening::Fault)).collect()
}

const GENUINE: &[u8] = b"remove@/d/uverbs0\0ACTION=remove\0SUBSYSTEM=infiniband_verbs\0";

impl Happening {
    /// Whether it makes calls fail.
    pub(crate) fn is_fault(self) -> bool {
        matches!(self, Self::Fault(_))
    }

    /// Whether the kernel may have lost events without a sign.
    pub(crate) fn is_silent(self) -> bool {
        // In the fourth stage the device is in no list any more, and the event has not been sent. Of a device in
        // another namespace, a rename is not reported here.
        matches!(self, Self::Change(_, Fate::Lost) | Self::Change(RemoveStages(4) | MoveAway, _))
    }

    /// Whether a registration may take as long as any other call.
    pub(crate) fn is_slow(self) -> bool {
        matches!(self, Self::Change(BeginAdd | AddStage, _) | Self::Fault(_))
    }

    /// Applies it. `id` is the device that was there first, if any was. Returns what happens to the call.
    pub(crate) fn happen(self, world: &mut World, id: Option<DeviceId>, kind: CallKind) -> Verdict {
        let (change, fate) = match self {
            Self::Change(change, fate) => (change, fate),
            Self::Fault(Fault::Fail(errno)) => {
                // Waiting and the clock do not fail; a buffer overflows only where messages are received.
                let is_of_socket = kind == CallKind::RecvUevent;
                let may_fail = !matches!(kind, CallKind::Poll) && (errno != 105 || is_of_socket);
                return if may_fail { Verdict::Fail(errno) } else { Verdict::Continue };
            }
            Self::Fault(Fault::Forged) => return Verdict::Forge(GENUINE.into()),
            Self::Fault(Fault::Garbage) if kind == CallKind::RecvUevent => {
                world.foreign_uevent(b"garbage");
                return Verdict::Continue;
            }
            Self::Fault(Fault::Garbage) => return Verdict::Continue,
        };
        match fate {
            Fate::Sent => {}
            Fate::Lost => world.lose_uevents(u32::MAX),
            Fate::SentTwice => world.repeat_uevents(u32::MAX),
            Fate::Cut => world.cut_uevents(u32::MAX),
            Fate::Delayed | Fate::Reordered => world.hold_uevents(),
        }
        act(change, world, id);
        world.lose_uevents(0);
        world.repeat_uevents(0);
        world.cut_uevents(0);
        Verdict::Continue
    }

    /// What comes one call later.
    pub(crate) fn end(self, world: &mut World) {
        match self {
            Self::Change(_, Fate::Delayed) => world.release_uevents(false),
            Self::Change(_, Fate::Reordered) => world.release_uevents(true),
            _ => {}
        }
    }
}

/// Errors are ignored: the change is then not possible in this world, and nothing happens.
fn act(change: Change, world: &mut World, id: Option<DeviceId>) {
    // The device that has number 0 now, which may be another one than at first.
    let current = world.instance_of(0);
    let any = current.or(id);
    match (change, any) {
        (Add, _) => drop(world.add(DeviceSpec::new("added%d"))),
        (BeginAdd, _) => {
            if let Ok(id) = world.begin_add(DeviceSpec::new("slow%d")) {
                world.add_step(id);
            }
        }
        (ComeAndGo, _) => {
            if let Ok(id) = world.add(DeviceSpec::new("brief")) {
                world.remove(id);
            }
        }
        (ReloadUverbs, _) => drop(world.reload_ib_uverbs()),
        (ReloadCore, _) => drop(world.reload_ib_core()),
        (Foreign, _) => world.foreign_uevent(b"add@/d/bdi\0ACTION=add\0SUBSYSTEM=bdi\0"),
        (Forged, _) => world.forge_uevent(GENUINE, 0, 1),
        (Nothing, _) | (_, None) => {}
        (AddStage, Some(id)) => {
            for id in [Some(id), world.instance_of(1), world.instance_of(2)].into_iter().flatten() {
                world.add_step(id);
            }
        }
        (Remove, Some(id)) => world.remove(id),
        (RemoveStages(stages), Some(id)) => {
            for _ in 0..stages {
                world.remove_step(id);
            }
        }
        (RemoveRest, Some(id)) => {
            if !world.is_alive(id) {
                world.remove(id);
            }
        }
        (Replace, Some(id)) => replace(world, id, false),
        (ReplaceTwice, Some(id)) => {
            replace(world, id, false);
            if let Some(id) = world.instance_of(0) {
                replace(world, id, false);
            }
        }
        (ReplaceRenamed, Some(id)) => replace(world, id, true),
        (Rename, Some(id)) => drop(world.rename(id, b"renamed")),
        (SwapNames, Some(id)) => {
            if let Some(other) = world.instance_of(1) {
                let _ = world.swap_names(id, other);
            }
        }
        (MoveAway, Some(id)) => drop(world.move_netns(id, false)),
        (MoveBack, Some(id)) => {
            let _ = world.move_netns(id, false);
            let _ = world.move_netns(id, true);
        }
        (Recreate, Some(id)) => drop(world.recreate_uverbs(id)),
        (RemoveWhileListed, Some(id)) => world.remove_while_listed(id),
        (Synthetic, Some(id)) => world.synthetic_uevent(id),
    }
}

fn replace(world: &mut World, id: DeviceId, with_another_name: bool) {
    let name = world.name_of(id);
    world.remove(id);
    let name = String::from_utf8_lossy(&name).into_owned();
    let name = if with_another_name { "another".into() } else { name };
    let _ = world.add(DeviceSpec::new(name));
}
