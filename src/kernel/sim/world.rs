//! The state of the simulated kernel, its settings, and the truth that tests compare with.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::super::{Errno, Sys};
use super::devices::{Devices, Uverbs, UverbsId};
use super::mixer::Mixer;
use super::netlink::Socket;
use super::nodes::NodeOpened;
use super::resources::{Context, Failures, Pds};
use super::spec::DeviceId;
use super::tree::{NodeId, SYS, Tree};
use super::uevents::{Broadcast, Inbox};

/// One open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId(pub(super) u64);

#[derive(Debug)]
pub(super) struct File {
    pub(super) node: NodeId,
    pub(super) state: FileState,
    stand_in: Option<StandIn>,
    /// Another process holds it.
    pub(super) foreign: bool,
}

#[derive(Debug, Hash)]
pub(super) enum FileState {
    Path,
    Dir(DirPlace),
    Attr,
    /// A cmd fd, with its context and the handles of its PDs.
    Cmd {
        uverbs: UverbsId,
        context: Option<Context>,
        pds: Pds,
    },
    /// The async events of a context.
    Async {
        uverbs: UverbsId,
        cmd: FileId,
        events: VecDeque<AsyncEvent>,
    },
    /// Another file that was opened under /dev.
    Node,
    Socket(Socket),
    Uevents(Inbox),
    /// A timer, and when it is due.
    Timer(Option<Duration>),
    /// An epoll descriptor, and its members.
    Epoll(Vec<FileId>),
}

impl File {
    /// Makes its stand-in readable for pollers.
    pub(super) fn wake(&self) {
        if let Some(stand_in) = &self.stand_in {
            stand_in.wake();
        }
    }
}

/// An async event: its element and its kind.
pub(super) type AsyncEvent = (u64, u32);

/// How far a directory was read.
#[derive(Debug, Default, Hash)]
pub(super) struct DirPlace {
    pub(super) dots: usize,
    pub(super) after: Option<Box<[u8]>>,
}

/// The world's end of a socket pair, whose other end stands for a simulated descriptor in the process. When that
/// end and all its duplicates are closed, this one reads end of file.
#[derive(Debug)]
struct StandIn {
    peer: OwnedFd,
    key: (u64, u64),
}

impl StandIn {
    /// Makes the other end readable for pollers.
    fn wake(&self) {
        // If it is full, it is readable already.
        let _ = rustix::net::send(&self.peer, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    fn is_closed(&self) -> bool {
        let mut byte = [0];
        loop {
            match rustix::net::recv(&self.peer, &mut byte, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return true,
                // The other end was closed with an unread wake in it.
                Err(Errno::CONNRESET) => return true,
                // Whatever was written into it precedes the end of file.
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }
}

/// Identifies an open file of this process, whatever its number.
fn key_of(fd: BorrowedFd<'_>) -> Sys<(u64, u64)> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Two ends of a stream that carries no data.
pub(super) fn pair() -> Sys<(OwnedFd, OwnedFd)> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
    rustix::net::socketpair(family, kind, SocketFlags::CLOEXEC, None)
}

/// A simulated kernel, as one call sees it. Its methods add and remove devices.
#[derive(Debug)]
pub struct World {
    pub(super) tree: Tree,
    pub(super) devices: Devices,
    pub(super) indices: BTreeMap<u32, DeviceId>,
    pub(super) next_index: u32,
    pub(super) uverbs: Vec<Uverbs>,
    pub(super) numbers: BTreeMap<u32, UverbsId>,
    /// `class/infiniband`.
    pub(super) infiniband: NodeId,
    /// `class/infiniband_verbs`, while ib_uverbs is loaded.
    pub(super) infiniband_verbs: Option<NodeId>,
    pub(super) files: BTreeMap<FileId, File>,
    next_file: u64,
    pub(super) next_foreign: u64,
    closed: u64,
    by_stand_in: BTreeMap<(u64, u64), FileId>,
    /// Dropped by the library, but open as long as somebody has the stand-in.
    released: Vec<FileId>,
    pub(super) opened: Vec<NodeOpened>,
    pub(super) overruns: u64,
    pub(super) calls: u64,
    pub(super) log: Option<Vec<String>>,
    pub(super) uevents: Broadcast,
    /// The uevents so far, if they are recorded.
    pub(super) sent: Option<Vec<String>>,
    /// The monotonic clock.
    pub(super) clock: Duration,
    /// Threads of this process, in the order in which they first appeared. Their numbers here, unlike those of the
    /// real kernel, are the same in each run.
    threads: Vec<u32>,
    /// A hash of everything that calls have returned so far.
    pub(super) returned: Mixer,
    pub(super) settings: Settings,
}

#[derive(Debug, Hash)]
pub(super) struct Settings {
    pub(super) tick: u64,
    pub(super) devtmpfs: bool,
    pub(super) entries_a_page: usize,
    pub(super) contexts_a_page: usize,
    pub(super) short_pages: bool,
    pub(super) no_res_ctx: bool,
    pub(super) no_res_pd: bool,
    pub(super) hides_unlisted: bool,
    pub(super) deny_netlink: Option<i32>,
    pub(super) no_threads: Option<i32>,
    pub(super) deny_uevents: Option<i32>,
    pub(super) sys_type: u64,
    pub(super) listxattr_moves: bool,
    pub(super) copies_on_fork: bool,
    pub(super) refuse_request: Option<i32>,
    pub(super) break_dump: Option<i32>,
    pub(super) failures: Failures,
    pub(super) while_listed: Option<WhileListed>,
    pub(super) steps_over: bool,
    pub(super) lists_reversed: bool,
}

/// What happens to a device during a `getdents` that has just shown its link.
#[derive(Debug, Hash)]
pub(super) enum WhileListed {
    Remove(DeviceId),
    Rename(DeviceId, Box<[u8]>),
}

/// The number of the first thread. Those of other processes are far from it.
const FIRST_THREAD: u32 = 1000;

/// An errno that a test passed in. An invalid one becomes `EIO`.
pub(super) fn errno(raw: i32) -> Errno {
    if (1..4096).contains(&raw) { Errno::from_raw_os_error(raw) } else { Errno::IO }
}

impl World {
    pub(super) fn new() -> Self {
        let mut tree = Tree::new();
        let class = tree.add_dir(SYS, b"class");
        let infiniband = tree.add_dir(class, b"infiniband");
        let mut world = Self {
            tree,
            devices: Devices::default(),
            indices: BTreeMap::new(),
            next_index: 0,
            uverbs: Vec::new(),
            numbers: BTreeMap::new(),
            infiniband,
            infiniband_verbs: None,
            files: BTreeMap::new(),
            next_file: 0,
            next_foreign: 0,
            closed: 0,
            by_stand_in: BTreeMap::new(),
            released: Vec::new(),
            opened: Vec::new(),
            overruns: 0,
            calls: 0,
            log: None,
            uevents: Broadcast::default(),
            sent: None,
            clock: Duration::from_secs(1000),
            threads: Vec::new(),
            returned: Mixer::default(),
            settings: Settings {
                tick: 4_000_000,
                devtmpfs: true,
                entries_a_page: 64,
                contexts_a_page: 0,
                short_pages: false,
                no_res_ctx: false,
                no_res_pd: false,
                hides_unlisted: false,
                deny_netlink: None,
                no_threads: None,
                deny_uevents: None,
                sys_type: super::super::SYSFS_MAGIC,
                listxattr_moves: true,
                copies_on_fork: true,
                refuse_request: None,
                break_dump: None,
                failures: Failures::default(),
                while_listed: None,
                steps_over: true,
                lists_reversed: false,
            },
        };
        world.load_ib_uverbs();
        world
    }

    /// The number of one of this process' threads in this world.
    pub(super) fn thread(&mut self, real: u32) -> u32 {
        let known = self.threads.iter().position(|thread| *thread == real);
        let at = known.unwrap_or_else(|| {
            self.threads.push(real);
            self.threads.len() - 1
        });
        FIRST_THREAD + at as u32
    }

    /// The number of the calling thread in this world.
    pub fn this_thread(&mut self) -> u32 {
        self.thread(super::threads::current())
    }

    /// A thread of this process has exited. The real kernel may give its number to the next thread, which is a
    /// different thread here.
    pub(super) fn thread_exits(&mut self, real: u32) {
        if let Some(at) = self.threads.iter().position(|thread| *thread == real) {
            self.threads[at] = 0;
            self.forget_thread(FIRST_THREAD + at as u32);
        }
    }

    /// A fingerprint of the state. Two worlds that the same program reached from the same start, with the same
    /// fingerprint, continue alike under the same events: their state is the same, and so is everything that their
    /// calls have returned. A search need not look at the same state twice.
    pub fn fingerprint(&self) -> u64 {
        let mut state = self.returned;
        self.tree.hash(&mut state);
        self.devices.hash(&mut state);
        self.indices.hash(&mut state);
        self.next_index.hash(&mut state);
        self.uverbs.hash(&mut state);
        self.numbers.hash(&mut state);
        self.infiniband.hash(&mut state);
        self.infiniband_verbs.hash(&mut state);
        for (id, file) in &self.files {
            (id, file.node, &file.state, file.foreign).hash(&mut state);
        }
        (self.next_file, self.next_foreign, &self.released, self.threads.len()).hash(&mut state);
        (&self.uevents, self.clock).hash(&mut state);
        self.settings.hash(&mut state);
        state.finish()
    }

    pub(super) fn device_ids(&self) -> Vec<DeviceId> {
        self.indices.values().copied().collect()
    }

    // Open files.

    pub(super) fn open_file(&mut self, node: NodeId, state: FileState) -> FileId {
        let id = FileId(self.next_file);
        self.next_file += 1;
        self.open_as(id, node, state, false);
        id
    }

    pub(super) fn open_as(&mut self, id: FileId, node: NodeId, state: FileState, foreign: bool) {
        self.tree.pin(node);
        if let FileState::Cmd { uverbs, .. } | FileState::Async { uverbs, .. } = state {
            self.uverbs[uverbs.0 as usize].open += 1;
        }
        self.files.insert(id, File { node, state, stand_in: None, foreign });
    }

    /// Ties a file to the descriptor that stands for it in this process.
    pub(super) fn stand_in(&mut self, id: FileId, (fd, peer): (OwnedFd, OwnedFd)) -> Sys<OwnedFd> {
        use std::os::fd::AsFd;
        let key = key_of(fd.as_fd())?;
        if let Some(file) = self.files.get_mut(&id) {
            file.stand_in = Some(StandIn { peer, key });
            self.by_stand_in.insert(key, id);
        }
        Ok(fd)
    }

    pub(super) fn file(&self, id: FileId) -> Sys<&File> {
        self.files.get(&id).ok_or(Errno::BADF)
    }

    pub(super) fn file_mut(&mut self, id: FileId) -> Sys<&mut File> {
        self.files.get_mut(&id).ok_or(Errno::BADF)
    }

    /// The file that a descriptor of this process stands for.
    pub(super) fn file_of(&self, fd: BorrowedFd<'_>) -> Option<FileId> {
        self.by_stand_in.get(&key_of(fd).ok()?).copied()
    }

    pub(super) fn close(&mut self, id: FileId) {
        let Some(file) = self.files.remove(&id) else { return };
        self.closed += 1;
        if let Some(stand_in) = &file.stand_in {
            self.by_stand_in.remove(&stand_in.key);
        }
        self.tree.unpin(file.node);
        if let FileState::Cmd { uverbs, context, pds } = file.state {
            let instance = &self.uverbs[uverbs.0 as usize];
            if !instance.disassociated {
                self.release(instance.device, context, &pds);
            }
            self.uverbs_closed(uverbs);
        } else if let FileState::Async { uverbs, .. } = file.state {
            self.uverbs_closed(uverbs);
        }
    }

    /// Delivers an event to every context on the instance.
    pub(super) fn deliver_event(&mut self, to: UverbsId, event: AsyncEvent) {
        let open: Vec<FileId> = self.cmd_fds().map(|(id, _)| id).collect();
        for file in self.files.values_mut() {
            if let FileState::Async { uverbs, cmd, events } = &mut file.state
                && *uverbs == to
                && open.contains(cmd)
            {
                events.push_back(event);
                file.wake();
            }
        }
    }

    /// Closes what the library has dropped, unless its stand-in was passed on and is still open.
    pub(super) fn settle(&mut self, closing: &mut Vec<FileId>) {
        self.released.append(closing);
        let mut at = 0;
        while let Some(&id) = self.released.get(at) {
            let stand_in = self.files.get(&id).and_then(|file| file.stand_in.as_ref());
            if stand_in.is_some_and(|stand_in| !stand_in.is_closed()) {
                at += 1;
            } else {
                self.released.swap_remove(at);
                self.close(id);
            }
        }
    }

    /// Whether something that the library has dropped is still open.
    pub(super) fn has_dropped_files(&self) -> bool {
        !self.released.is_empty()
    }

    /// The number of files that were closed so far.
    pub fn closed(&self) -> u64 {
        self.closed
    }

    pub(super) fn cmd_fds(&self) -> impl Iterator<Item = (FileId, &File)> {
        let files = self.files.iter().map(|(id, file)| (*id, file));
        files.filter(|(_, file)| matches!(file.state, FileState::Cmd { .. }))
    }

    pub(super) fn sockets(&self) -> usize {
        self.files.values().filter(|file| matches!(file.state, FileState::Socket(_))).count()
    }

    /// Sets the netlink index that the next device gets, unless it is taken. The kernel's indices end below 2^31.
    pub fn set_next_index(&mut self, index: u32) {
        self.next_index = index;
    }

    /// The device raises an async event (`enum ib_event_type`), of itself (element 0) or of a port.
    pub fn event(&mut self, id: DeviceId, kind: u32, element: u64) {
        if let Some(uverbs) = self.devices[id].uverbs {
            self.deliver_event(uverbs, (element, kind));
        }
    }

    /// Drops every cached inode of sysfs that nothing holds, as memory reclaim does. Looked up again, it has the
    /// same number and other times.
    pub fn evict(&mut self) {
        self.tree.evict();
    }

    /// Any user's `listxattr` on `uverbsN/ibdev`. It changes the times once, even if the inode is held, unless
    /// [`World::set_listxattr_moves`] turned that off.
    pub fn listxattr(&mut self, number: u32) {
        if let Some(uverbs) = self.numbers.get(&number)
            && let dir = self.uverbs[uverbs.0 as usize].dir
            && let Some(ibdev) = self.tree.child(dir, b"ibdev")
            && self.settings.listxattr_moves
        {
            self.tree.take_own_times(ibdev);
        }
    }

    // Settings.

    /// Sets how many nanoseconds the coarse clock advances with every call; 0 stops it. The default is 4 ms.
    pub fn set_tick(&mut self, nanoseconds: u64) {
        self.settings.tick = nanoseconds;
    }

    /// Sets the clock, in nanoseconds since the epoch. It may go backwards.
    pub fn set_clock(&mut self, nanoseconds: u64) {
        self.tree.now = nanoseconds;
    }

    /// Sets the maximum number of names in one `getdents`. The default is 64.
    pub fn set_entries_a_page(&mut self, entries: usize) {
        self.settings.entries_a_page = entries.max(1);
    }

    /// Removes a device within the next `getdents` that shows it in a class, while the kernel passes its entry out
    /// without a lock. The live entry after it is then skipped, unless [`World::set_steps_over`] turned that off.
    pub fn remove_while_listed(&mut self, id: DeviceId) {
        self.settings.while_listed = Some(WhileListed::Remove(id));
    }

    /// Sets whether `getdents` skips the entry after one that is removed while it is passed out, as
    /// `kernfs_fop_readdir` does up to Linux 6.12 at least, but not in 7.3.
    pub fn set_steps_over(&mut self, steps_over: bool) {
        self.settings.steps_over = steps_over;
    }

    /// Sets whether `getdents` returns names in reverse order. The kernel's order is that of hashes.
    pub fn set_lists_reversed(&mut self, reversed: bool) {
        self.settings.lists_reversed = reversed;
    }

    /// Makes each entry of a dump so long that this many contexts, or PDs, fill a short page (3,776 bytes). A
    /// longer page, up to 32,448 bytes, holds accordingly more. With 0, the default, entries are as long as the
    /// kernel makes them.
    pub fn set_contexts_a_page(&mut self, contexts: usize) {
        self.settings.contexts_a_page = contexts;
    }

    /// Sets whether the kernel lacks the memory for long pages of dumps, whatever buffers it has seen.
    pub fn set_short_pages(&mut self, short: bool) {
        self.settings.short_pages = short;
    }

    /// Sets whether the kernel is older than 5.13, and so does not know `RES_CTX_GET`.
    pub fn set_no_res_ctx(&mut self, missing: bool) {
        self.settings.no_res_ctx = missing;
    }

    /// Sets whether the kernel is older than 5.10, and so does not know `RES_PD_GET`.
    pub fn set_no_res_pd(&mut self, missing: bool) {
        self.settings.no_res_pd = missing;
    }

    /// Sets whether netlink by index refuses a device as soon as its removal has begun, as a future kernel may.
    /// Present kernels answer until nobody has the device open.
    pub fn set_hides_unlisted(&mut self, hides: bool) {
        self.settings.hides_unlisted = hides;
    }

    /// Makes new netlink sockets fail with this errno.
    pub fn deny_netlink(&mut self, errno: Option<i32>) {
        self.settings.deny_netlink = errno;
    }

    /// Makes new threads fail with this errno, as after `unshare` of a pid namespace.
    pub fn deny_threads(&mut self, errno: Option<i32>) {
        self.settings.no_threads = errno;
    }

    /// Makes new uevent sockets fail with this errno, as a seccomp filter does.
    pub fn deny_uevents(&mut self, errno: Option<i32>) {
        self.settings.deny_uevents = errno;
    }

    /// Refuses the next netlink request with this errno.
    pub fn refuse_request(&mut self, errno: i32) {
        self.settings.refuse_request = Some(errno);
    }

    /// Ends a netlink dump, the current one or else the next one, with this errno in place of its next message. The
    /// errno is inside `NLMSG_DONE`.
    pub fn break_dump(&mut self, errno: i32) {
        self.settings.break_dump = Some(errno);
    }

    /// As [`remove_while_listed`](Self::remove_while_listed), but renames the device, which moves its link in
    /// `class/infiniband`. In the other class nothing moves, and nothing is skipped.
    pub fn rename_while_listed(&mut self, id: DeviceId, name: &[u8]) {
        self.settings.while_listed = Some(WhileListed::Rename(id, name.into()));
    }

    /// Sets whether the kernel makes the nodes in /dev. If not, as in a container, only those exist that
    /// [`World::set_node`] makes.
    pub fn set_devtmpfs(&mut self, devtmpfs: bool) {
        self.settings.devtmpfs = devtmpfs;
    }

    /// Sets whether `listxattr` changes times, as up to Linux 7.2.
    pub fn set_listxattr_moves(&mut self, moves: bool) {
        self.settings.listxattr_moves = moves;
    }

    /// Sets whether the kernel reports that it copies pinned pages on fork, as it does from Linux 5.12 on.
    pub fn set_copies_on_fork(&mut self, copies: bool) {
        self.settings.copies_on_fork = copies;
    }

    /// Sets the file system type that `fstatfs` returns for /sys.
    pub fn set_sys_type(&mut self, magic: u64) {
        self.settings.sys_type = magic;
    }

    /// Starts or stops recording the calls. Earlier records are discarded.
    pub fn record_calls(&mut self, record: bool) {
        self.log = record.then(Vec::new);
    }
}
