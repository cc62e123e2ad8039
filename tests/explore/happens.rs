//! The events: what happens between two kernel calls, or to one of them.

use uverbs::sim::{Call, CallKind, DeviceId, DeviceSpec, NodeKind, Verdict, World};

/// How many contexts, or PDs, a short page of a list holds in these worlds. The library's first buffer holds one.
pub(crate) const PAGE: usize = 2;
/// How many a long page holds.
pub(crate) const LONG_PAGE: usize = 17;

/// The thread of the program. No two threads of a machine have the same number, and the program's is the first.
pub(crate) const PROGRAM: u32 = 1000;

/// A change of the world before a call, or of the call.
#[derive(Clone, Copy)]
pub(crate) struct Event {
    pub(crate) name: &'static str,
    act: fn(&mut World, DeviceId) -> Verdict,
    /// Whether a call fails, or an answer is lost or changed, while nothing happens to the world.
    pub(crate) is_fault: bool,
    /// Whether the program must succeed as if nothing had happened.
    pub(crate) is_harmless: bool,
    /// The calls that it can affect. Before any other call, it might as well happen one call later.
    pub(crate) matters_to: &'static [Class],
}

/// The part of the host that a call examines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    SysOpen,
    SysStat,
    SysRead,
    SysList,
    Link,
    DevOpen,
    DevStat,
    Socket,
    Send,
    Recv,
    Command,
    Other,
}

use Class::*;

impl Class {
    pub(crate) fn of(call: &Call<'_>, world: &World) -> Self {
        let is_dev = || call.detail(world).starts_with("/dev");
        match call.kind() {
            CallKind::Openat2 if is_dev() => DevOpen,
            CallKind::Openat2 => SysOpen,
            CallKind::Fstat if is_dev() => DevStat,
            CallKind::Fstat => SysStat,
            CallKind::FstatCmd => DevStat,
            CallKind::Pread => SysRead,
            CallKind::Getdents => SysList,
            CallKind::Readlink => Link,
            CallKind::RdmaSocket => Socket,
            CallKind::Send => Send,
            CallKind::Recv => Recv,
            CallKind::VerbsIoctl => Command,
            _ => Other,
        }
    }
}

/// Calls that may notice that a device is gone, or that another one is there.
const DEVICE: &[Class] =
    &[SysOpen, SysStat, SysRead, SysList, Link, DevOpen, DevStat, Send, Recv, Command];
const NODE: &[Class] = &[DevOpen, DevStat];
pub(crate) const NAME: &[Class] = &[SysOpen, SysRead, SysList, Link, Send, Recv];
const CONTEXT: &[Class] = &[DevOpen, Send, Recv, Command];
const ANSWER: &[Class] = &[Send, Recv];
const COMMAND: &[Class] = &[DevOpen, Command];
const LIST: &[Class] = &[SysList];
const SOCKET: &[Class] = &[Socket];
const THREAD: &[Class] = &[Other];
const ALL: &[Class] = &[
    SysOpen, SysStat, SysRead, SysList, Link, DevOpen, DevStat, Socket, Send, Recv, Command, Other,
];

impl Event {
    /// Applies the event; `id` is the device that was listed.
    pub(crate) fn happen(&self, world: &mut World, id: DeviceId) -> Verdict {
        (self.act)(world, id)
    }
}

macro_rules! mutations {
    ($($name:literal $($harmless:ident)?, $class:ident: |$world:ident, $id:ident| $act:expr;)*) => {
        &[$(Event {
            name: $name,
            act: |$world, $id| { let _ = ($id, $act); Verdict::Continue },
            is_fault: false,
            is_harmless: mutations!(@ $($harmless)?),
            matters_to: $class,
        }),*]
    };
    (@ harmless) => { true };
    (@) => { false };
}

macro_rules! faults {
    ($($name:literal $($harmless:ident)?, $class:ident: $verdict:expr;)*) => {
        &[$(Event {
            name: $name,
            act: |_, _| $verdict,
            is_fault: true,
            is_harmless: mutations!(@ $($harmless)?),
            matters_to: $class,
        }),*]
    };
}

/// Changes of the world around the listed device.
pub(crate) const MUTATIONS: &[Event] = mutations! {
    "remove", DEVICE: |world, id| world.remove(id);
    "remove, one stage", DEVICE: |world, id| world.remove_step(id);
    "remove, four stages", DEVICE: |world, id| (0..4).for_each(|_| { world.remove_step(id); });
    "replace, same name and GUID", DEVICE: |world, id| replace(world, id, "rxe0", 0xa0);
    "replace, same name, other GUID", DEVICE: |world, id| replace(world, id, "rxe0", 0xb0);
    "replace, other name", DEVICE: |world, id| replace(world, id, "other", 0xb0);
    "replace, other device number", DEVICE: |world, id| {
        world.remove(id);
        let _ = world.add(spec("other", 0xb0));
        world.add(spec("rxe0", 0xa0))
    };
    "replace, and replace that", DEVICE: |world, id| {
        replace(world, id, "rxe0", 0xb0);
        if let Some(second) = world.instance_of(0) {
            replace(world, second, "rxe0", 0xa0);
        }
    };
    "replace under a held node, same GUID", DEVICE: |world, id| replace_held(world, id, 0xa0);
    "replace under a held node, other GUID", DEVICE: |world, id| replace_held(world, id, 0xb0);
    "recreate uverbs", DEVICE: |world, id| world.recreate_uverbs(id);
    "rename" harmless, NAME: |world, id| world.rename(id, b"renamed");
    "swap names" harmless, NAME: |world, id| swap_names(world, id);
    "evict" harmless, ALL: |world, _id| world.evict();
    "listxattr" harmless, ALL: |world, _id| world.listxattr(0);
    "node: link", NODE: |world, _id| world.set_node(0, NodeKind::Symlink("uverbs1".into()));
    "node: FIFO", NODE: |world, _id| world.set_node(0, NodeKind::Fifo);
    "node: regular file", NODE: |world, _id| world.set_node(0, NodeKind::Regular);
    "node: directory", NODE: |world, _id| world.set_node(0, NodeKind::Directory);
    "node: another device", NODE: |world, _id| world.set_node(0, NodeKind::Device(1, 3));
    "node: the other uverbs device", NODE: |world, _id| world.set_node(0, NodeKind::Device(231, 193));
    "node: by hand", NODE: |world, _id| world.set_node(0, NodeKind::Static);
    "node: forbidden", NODE: |world, _id| world.set_node(0, NodeKind::Forbidden);
    "node: missing", NODE: |world, _id| world.set_node(0, NodeKind::Missing);
    "node: the kernel's", NODE: |world, _id| world.set_node(0, NodeKind::Kernel);
    "reload ib_uverbs", DEVICE: |world, _id| world.reload_ib_uverbs();
    "reload ib_core, index reused", DEVICE: |world, _id| {
        world.force_reload_ib_core();
        world.add(spec("rxe0", 0xa0))
    };
    "to another namespace", DEVICE: |world, id| world.set_netns_visible(id, false);
    "back from another namespace", DEVICE: |world, id| world.set_netns_visible(id, true);
    "a foreign context" harmless, CONTEXT: |world, id| world.foreign_context(id);
    "the oldest context closes", CONTEXT: |world, id| close_oldest(world, id);
    "the list takes more messages", CONTEXT: |world, id| {
        world.set_contexts_a_page(1);
        world.set_short_pages(true);
        (0..2).for_each(|_| { world.foreign_context(id); });
    };
    "a page of contexts closes", CONTEXT: |world, id| close_contexts(world, id, PAGE);
    "a long page of contexts closes", CONTEXT: |world, id| close_contexts(world, id, LONG_PAGE);
    "all contexts of others close", CONTEXT: |world, id| close_contexts(world, id, usize::MAX);
    "an older context of the program closes", CONTEXT: |world, id| close_own(world, id, 1);
    "the program's older contexts close", CONTEXT: |world, id| close_own(world, id, usize::MAX);
    "the next context is not tracked", CONTEXT: |world, _id| world.untrack_contexts(1);
    "a foreign PD" harmless, CONTEXT: |world, id| world.foreign_pd(id);
    "a page of PDs goes", CONTEXT: |world, id| drop_pds(world, id, PAGE);
    "all PDs of others go", CONTEXT: |world, id| drop_pds(world, id, usize::MAX);
    "older PDs are absent once", ANSWER: |world, id| {
        for pdn in world.foreign_pds_of(id) {
            world.hide_pd(id, pdn, 1);
        }
    };
    "PD numbers jump" harmless, COMMAND: |world, id| world.set_next_pdn(id, 1000);
    "PD numbers are about to wrap around" harmless, COMMAND: |world, id| {
        world.set_next_pdn(id, u32::MAX);
    };
    "ALLOC_PD fails, EINVAL", COMMAND: |world, _id| world.fail_alloc_pd(22, u32::MAX);
    "ALLOC_PD fails once, ENOMEM", COMMAND: |world, _id| world.fail_alloc_pd(12, 1);
    "ALLOC_PD fails once after its work", COMMAND: |world, _id| world.fail_after_alloc_pd(14, 1);
    "DEALLOC_PD fails, EBUSY", COMMAND: |world, _id| world.fail_dealloc_pd(16, u32::MAX);
    "DEALLOC_PD fails once, EBUSY", COMMAND: |world, _id| world.fail_dealloc_pd(16, 1);
    "the next PD is not tracked", COMMAND: |world, _id| world.untrack_pds(1);
    "no more threads", THREAD: |world, _id| world.deny_threads(Some(11));
    "no list of PDs", ANSWER: |world, _id| world.set_no_res_pd(true);
    "no memory for long pages" harmless, ANSWER: |world, _id| world.set_short_pages(true);
    "it goes while it is listed", LIST: |world, id| world.remove_while_listed(id);
    "another device goes while it is listed", LIST: |world, _id| {
        if let Some(other) = world.instance_of(1) {
            world.remove_while_listed(other);
        }
    };
    "no list of contexts", ANSWER: |world, _id| world.set_no_res_ctx(true);
    "netlink denied", SOCKET: |world, _id| world.deny_netlink(Some(1));
    "netlink hides what is being removed", ANSWER: |world, _id| world.set_hides_unlisted(true);
    "netlink request refused, EBUSY", ANSWER: |world, _id| world.refuse_request(16);
    "netlink request refused, EINVAL", ANSWER: |world, _id| world.refuse_request(22);
    "netlink dump ends in ENOMEM", ANSWER: |world, _id| world.break_dump(12);
    "netlink dump ends in EINVAL", ANSWER: |world, _id| world.break_dump(22);
};

/// Changes that only a handle of libibverbs can mistake for something else.
pub(crate) const OF_HANDLES: &[Event] = mutations! {
    "reload ib_core, index reused, other GUID", DEVICE: |world, _id| {
        world.force_reload_ib_core();
        world.add(spec("rxe0", 0xb0))
    };
    "reload ib_core, index reused, names swapped", DEVICE: |world, _id| {
        world.force_reload_ib_core();
        let _ = world.add(spec("rxe1", 0xa0));
        world.add(spec("rxe0", 0xa0))
    };
    "replace, and swap names", DEVICE: |world, id| {
        replace(world, id, "rxe1x", 0xa0);
        if let (Some(one), Some(other)) = (world.instance_of(0), world.instance_of(1)) {
            let _ = world.rename(other, b"rxe0");
            let _ = world.rename(one, b"rxe1");
        }
    };
};

/// Errors of calls, and lost answers.
pub(crate) const FAULTS: &[Event] = faults! {
    "EPERM", ALL: Verdict::Fail(1);
    "EINTR" harmless, ALL: Verdict::Fail(4);
    "EIO", ALL: Verdict::Fail(5);
    "EAGAIN" harmless, ALL: Verdict::Fail(11);
    "ENOMEM", ALL: Verdict::Fail(12);
    "EMFILE", ALL: Verdict::Fail(24);
    "ENOBUFS", ALL: Verdict::Fail(105);
    "lost", ANSWER: Verdict::Lose;
    "cut short", ANSWER: Verdict::Truncate(20);
    "from another process", ANSWER: Verdict::Forge(vec![0; 16]);
};

/// All events.
pub(crate) fn all() -> impl Iterator<Item = &'static Event> + Clone {
    MUTATIONS.iter().chain(FAULTS)
}

/// A device whose driver disassociates if that of the listed device does.
pub(crate) fn spec(name: &str, guid: u64) -> DeviceSpec {
    DeviceSpec::new(name).guid(guid)
}

fn replace(world: &mut World, id: DeviceId, name: &str, guid: u64) {
    world.remove(id);
    // If the removal waits, the old name is taken.
    if world.add(spec(name, guid).disassociates(false)).is_err() {
        let _ = world.add(spec("second", guid).disassociates(false));
    }
}

/// Somebody holds the device open through a hand-made node, even inside devtmpfs. The node survives the removal,
/// and leads to the old device as long as it is held.
fn replace_held(world: &mut World, id: DeviceId, guid: u64) {
    world.set_node(0, NodeKind::Static);
    world.foreign_context(id);
    replace(world, id, "rxe0", guid);
}

fn swap_names(world: &mut World, id: DeviceId) {
    if let Some(other) = world.instance_of(1) {
        let _ = world.swap_names(id, other);
    }
}

fn close_oldest(world: &mut World, id: DeviceId) {
    close_contexts(world, id, 1);
}

/// Contexts of other threads close, starting with the first.
fn close_contexts(world: &mut World, id: DeviceId, count: usize) {
    let own = world.contexts_by(id, PROGRAM);
    let theirs = world.foreign_contexts_of(id).into_iter().filter(|ctxn| !own.contains(ctxn));
    for ctxn in theirs.take(count).collect::<Vec<_>>() {
        world.close_foreign(id, ctxn);
    }
}

/// Another thread of the program closes contexts that the program's own thread allocated before.
fn close_own(world: &mut World, id: DeviceId, count: usize) {
    for ctxn in world.contexts_by(id, PROGRAM).into_iter().take(count) {
        world.close_foreign(id, ctxn);
    }
}

/// PDs of others are deallocated, starting with the first.
fn drop_pds(world: &mut World, id: DeviceId, count: usize) {
    let own = world.pds_by(id, PROGRAM);
    let theirs = world.foreign_pds_of(id).into_iter().filter(|pdn| !own.contains(pdn));
    for pdn in theirs.take(count).collect::<Vec<_>>() {
        world.dealloc_foreign_pd(id, pdn);
    }
}
