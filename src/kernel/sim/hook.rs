//! The hook: what it sees of a call before the call is done, and what it may do about it. Also the world's methods
//! on the machine.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::{AddStage, DeviceId, DeviceSpec, Machine, NodeKind, NodeOpened, Stage, World};

pub(super) type Hook = Box<dyn FnMut(&mut World, &Call<'_>) -> Verdict + Send>;

/// Which call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum CallKind {
    /// `openat2`.
    Openat2,
    /// `fstat` of a descriptor that the library opened.
    Fstat,
    /// `fstatfs`.
    Fstatfs,
    /// `readlinkat`.
    Readlink,
    /// `pread`.
    Pread,
    /// `getdents64`.
    Getdents,
    /// `socket`.
    RdmaSocket,
    /// `sendto`.
    Send,
    /// `recvfrom`.
    Recv,
    /// `fstat` of a descriptor that the library did not open.
    FstatCmd,
    /// `ioctl`.
    VerbsIoctl,
    /// `fcntl`.
    Fcntl,
    /// `read`.
    Read,
    /// `ppoll`.
    Poll,
    /// `clone` of a thread.
    Thread,
    /// `fcntl(F_DUPFD_CLOEXEC)` of a descriptor that the library did not open.
    Duplicate,
    /// `socket` for uevents.
    UeventSocket,
    /// `setsockopt`.
    Setsockopt,
    /// `bind`.
    Bind,
    /// `recvmsg` of a uevent.
    RecvUevent,
    /// `timerfd_create`.
    Timer,
    /// `timerfd_settime`.
    SetTimer,
    /// `epoll_create1`.
    Epoll,
    /// `epoll_ctl`.
    EpollAdd,
    /// `faccessat2`.
    Access,
}

impl CallKind {
    fn name(self) -> &'static str {
        match self {
            Self::Openat2 => "openat2",
            Self::Fstat | Self::FstatCmd => "fstat",
            Self::Fstatfs => "fstatfs",
            Self::Readlink => "readlinkat",
            Self::Pread => "pread",
            Self::Getdents => "getdents64",
            Self::RdmaSocket => "socket",
            Self::Send => "sendto",
            Self::Recv => "recvfrom",
            Self::VerbsIoctl => "ioctl",
            Self::Fcntl => "fcntl",
            Self::Read => "read",
            Self::Poll => "ppoll",
            Self::Thread => "clone",
            Self::Duplicate => "fcntl",
            Self::UeventSocket => "socket",
            Self::Setsockopt => "setsockopt",
            Self::Bind => "bind",
            Self::RecvUevent => "recvmsg",
            Self::Timer => "timerfd_create",
            Self::SetTimer => "timerfd_settime",
            Self::Epoll => "epoll_create1",
            Self::EpollAdd => "epoll_ctl",
            Self::Access => "faccessat2",
        }
    }
}

/// A call that is about to be done.
pub struct Call<'a> {
    kind: CallKind,
    ordinal: u64,
    describe: &'a dyn Fn(&World) -> String,
}

impl<'a> Call<'a> {
    pub(super) fn new(
        kind: CallKind,
        ordinal: u64,
        describe: &'a dyn Fn(&World) -> String,
    ) -> Self {
        Self { kind, ordinal, describe }
    }

    /// Which call it is.
    pub fn kind(&self) -> CallKind {
        self.kind
    }

    /// Its number among all calls of the machine; the first is 1.
    pub fn ordinal(&self) -> u64 {
        self.ordinal
    }

    /// The object of the call in this world, for people to read.
    pub fn detail(&self, world: &World) -> String {
        (self.describe)(world)
    }

    /// The call as text.
    pub(super) fn text(&self, world: &World) -> String {
        format!("{}({})", self.kind.name(), self.detail(world))
    }
}

impl fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What happens to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The call is done.
    Continue,
    /// The call fails with this errno, and has no effect.
    Fail(i32),
    /// For send: the request is lost. For recv: the next datagram is lost, and the one after it is returned. For
    /// other calls as [`Verdict::Continue`].
    Lose,
    /// For send: only this many bytes arrive. For recv: the buffer has room for no more than this. For other calls
    /// as [`Verdict::Continue`].
    Truncate(usize),
    /// For recv: this datagram, from another process, comes first. For other calls as [`Verdict::Continue`].
    Forge(Vec<u8>),
    /// For recv, and for reading a file or a link: this answer, from the kernel, in place of the right one. For an
    /// ioctl that succeeds: the output begins with this. For other calls as [`Verdict::Continue`].
    Answer(Vec<u8>),
    /// For the same calls: in the right answer, these bits are flipped in the bytes at these positions.
    Alter(Vec<(usize, u8)>),
}

impl Verdict {
    /// Changes the answer in the buffer accordingly, and returns its length.
    pub(super) fn of_answer(&self, buffer: &mut [u8], len: usize) -> usize {
        match self {
            Self::Answer(bytes) => {
                super::files::copy(bytes, buffer);
                bytes.len()
            }
            Self::Alter(places) => {
                let given = len.min(buffer.len());
                for (at, bits) in places {
                    if let Some(byte) = buffer[..given].get_mut(*at) {
                        *byte ^= bits;
                    }
                }
                len
            }
            _ => len,
        }
    }
}

/// Gives the machine the methods of its world.
macro_rules! by_locking {
    ($( $name:ident ( $($arg:ident: $type:ty),* ) $(-> $result:ty)?; )*) => {
        impl Machine {
            $(
                #[doc = concat!("[`World::", stringify!($name), "`].")]
                pub fn $name(&self, $($arg: $type),*) $(-> $result)? {
                    self.with(|world| world.$name($($arg),*))
                }
            )*
        }
    };
}

by_locking! {
    add(spec: DeviceSpec) -> Result<DeviceId, i32>;
    begin_add(spec: DeviceSpec) -> Result<DeviceId, i32>;
    add_step(id: DeviceId) -> Option<AddStage>;
    remove(id: DeviceId);
    remove_step(id: DeviceId) -> Option<Stage>;
    recreate_uverbs(id: DeviceId) -> Result<(), i32>;
    rename(id: DeviceId, name: &[u8]) -> Result<(), i32>;
    set_guid(id: DeviceId, guid: u64);
    swap_names(a: DeviceId, b: DeviceId) -> Result<(), i32>;
    move_netns(id: DeviceId, visible: bool) -> Result<(), i32>;
    set_netns_visible(id: DeviceId, visible: bool);
    set_attribute(id: DeviceId, name: &str, value: &[u8]) -> Result<(), i32>;
    add_pci_function(path: &str, ids: (u16, u16), numa_node: i32);
    make_physical(path: &str, total: u16, offset: u16, stride: u16);
    make_virtual(path: &str, physical: &str, number: u32);
    add_auxiliary(path: &str, subfunction: Option<u32>);
    add_device_of_bus(path: &str, bus: &str);
    set_parent_attribute(path: &str, name: &str, value: Option<&[u8]>);
    set_parent_link(path: &str, name: &str, text: Option<&[u8]>);
    remove_parent(path: &str) -> Result<(), i32>;
    set_port_state(id: DeviceId, number: u32, state: u8, physical_state: u8) -> Result<(), i32>;
    set_netdev(id: DeviceId, number: u32, netdev: Option<(u32, &str)>) -> Result<(), i32>;
    set_port_attribute(id: DeviceId, number: u32, name: &str, value: Option<&[u8]>) -> Result<(), i32>;
    unload_ib_uverbs() -> Result<(), i32>;
    load_ib_uverbs();
    reload_ib_uverbs() -> Result<(), i32>;
    reload_ib_core() -> Result<(), i32>;
    force_reload_ib_core();
    set_node(number: u32, kind: NodeKind);
    set_node_aside(number: u32);
    put_node_back(number: u32);
    node_ino(number: u32) -> Option<u64>;
    foreign_context(id: DeviceId) -> Option<u32>;
    context_by(id: DeviceId, thread: u32) -> Option<u32>;
    close_foreign(id: DeviceId, ctxn: u32);
    foreign_pd(id: DeviceId) -> Option<u32>;
    pd_by(id: DeviceId, ctxn: u32, thread: u32) -> Option<u32>;
    dealloc_foreign_pd(id: DeviceId, pdn: u32);
    kernel_pd(id: DeviceId) -> Option<u32>;
    hide_pd(id: DeviceId, pdn: u32, answers: u32);
    set_next_ctxn(id: DeviceId, ctxn: u32);
    set_next_pdn(id: DeviceId, pdn: u32);
    fail_alloc_pd(errno: i32, times: u32);
    fail_after_alloc_pd(errno: i32, times: u32);
    fail_dealloc_pd(errno: i32, times: u32);
    untrack_contexts(contexts: u32);
    untrack_pds(pds: u32);
    this_thread() -> u32;
    set_next_index(index: u32);
    event(id: DeviceId, kind: u32, element: u64);
    forget_thread(thread: u32);
    evict();
    listxattr(number: u32);
    set_tick(nanoseconds: u64);
    set_clock(nanoseconds: u64);
    set_entries_a_page(entries: usize);
    remove_while_listed(id: DeviceId);
    set_steps_over(steps_over: bool);
    set_lists_reversed(reversed: bool);
    set_contexts_a_page(contexts: usize);
    set_short_pages(short: bool);
    set_no_res_ctx(missing: bool);
    set_no_res_pd(missing: bool);
    set_hides_unlisted(hides: bool);
    deny_netlink(errno: Option<i32>);
    deny_threads(errno: Option<i32>);
    deny_uevents(errno: Option<i32>);
    lose_uevents(events: u32);
    repeat_uevents(events: u32);
    cut_uevents(events: u32);
    hold_uevents();
    release_uevents(reversed: bool);
    set_uevent_room(messages: usize);
    set_in_user_namespace(is_in: bool);
    set_root_uid(uid: u32);
    forge_uevent(bytes: &[u8], port: u32, groups: u32);
    foreign_uevent(bytes: &[u8]);
    synthetic_uevent(id: DeviceId);
    record_uevents(record: bool);
    sent_uevents() -> Vec<String>;
    advance(by: Duration);
    clock() -> Duration;
    refuse_request(errno: i32);
    break_dump(errno: i32);
    rename_while_listed(id: DeviceId, name: &[u8]);
    fingerprint() -> u64;
    closed() -> u64;
    opened_by_others() -> u64;
    set_devtmpfs(devtmpfs: bool);
    set_listxattr_moves(moves: bool);
    set_copies_on_fork(copies: bool);
    set_sys_type(magic: u64);
    record_calls(record: bool);
    device_of(fd: BorrowedFd<'_>) -> Option<DeviceId>;
    directory_of(fd: BorrowedFd<'_>) -> Option<u64>;
    directory(id: DeviceId) -> Option<u64>;
    ctxn_of(fd: BorrowedFd<'_>) -> Option<u32>;
    instance_of(number: u32) -> Option<DeviceId>;
    number_of(id: DeviceId) -> Option<u32>;
    listed() -> Vec<(u32, u64, Vec<u8>)>;
    index_of(id: DeviceId) -> u32;
    guid_of(id: DeviceId) -> u64;
    name_of(id: DeviceId) -> Vec<u8>;
    is_alive(id: DeviceId) -> bool;
    is_ready(id: DeviceId) -> bool;
    is_gone(id: DeviceId) -> bool;
    contexts_of(id: DeviceId) -> Vec<u32>;
    foreign_contexts_of(id: DeviceId) -> Vec<u32>;
    contexts_by(id: DeviceId, thread: u32) -> Vec<u32>;
    pds_of(id: DeviceId) -> Vec<u32>;
    pds_by(id: DeviceId, thread: u32) -> Vec<u32>;
    foreign_pds_of(id: DeviceId) -> Vec<u32>;
    pd_handles_of(fd: BorrowedFd<'_>) -> Vec<u32>;
    driver_data_of(id: DeviceId) -> Vec<u8>;
    overruns() -> u64;
    node_opens() -> Vec<NodeOpened>;
    calls() -> u64;
    call_log() -> Vec<String>;
}
