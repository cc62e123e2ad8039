//! Uevents: what the kernel broadcasts when devices are registered, removed and renamed, and what may become of it
//! on the way. Also the timers and epoll descriptors with which a program waits for them, and the clock.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::super::uevent::{KERNEL_GROUP, Packet};
use super::super::{Errno, Sys};
use super::devices::device_number;
use super::files::copy;
use super::spec::DeviceId;
use super::tree::{NodeId, SOCKETS};
use super::world::{FileId, FileState, World, pair};

/// A uevent socket.
#[derive(Debug, Default, Hash)]
pub(super) struct Inbox {
    is_subscribed: bool,
    with_credentials: bool,
    queue: VecDeque<Message>,
    /// Messages did not fit, and no receive has reported that yet.
    overrun: bool,
    /// Messages did not fit. No more are delivered, and no more losses reported, until a receive leaves the queue
    /// empty (`NETLINK_S_CONGESTED`, `net/netlink/af_netlink.c`).
    is_congested: bool,
}

#[derive(Debug, Clone, Hash)]
struct Message {
    bytes: Vec<u8>,
    is_cut: bool,
    groups: u32,
    port: u32,
    sender: (i32, u32),
}

/// The sender of everything, and what happens to it.
#[derive(Debug, Hash)]
pub(super) struct Broadcast {
    sequence: u64,
    lose: u32,
    repeat: u32,
    cut: u32,
    holds: bool,
    held: Vec<Message>,
    /// How many messages fit into a socket's buffer.
    room: usize,
    in_user_namespace: bool,
    /// How the program's user namespace shows the kernel's user id.
    root: u32,
}

impl Default for Broadcast {
    fn default() -> Self {
        Self {
            sequence: 0,
            lose: 0,
            repeat: 0,
            cut: 0,
            holds: false,
            held: Vec::new(),
            room: 4096,
            in_user_namespace: false,
            root: 0,
        }
    }
}

/// The subsystems, as the kernel names them.
const VERBS: &str = "infiniband_verbs";
const RDMA: &str = "infiniband";

impl World {
    /// The path of a node as a uevent has it: without `/sys`.
    fn devpath(&self, node: NodeId) -> Vec<u8> {
        let mut path = Vec::new();
        for id in self.tree.ancestors(node).iter().rev().skip(1) {
            path.push(b'/');
            path.extend_from_slice(&self.tree[*id].name);
        }
        path
    }

    /// The event of a uverbs instance, whose directory is `dir`.
    pub(super) fn verbs_event(&mut self, action: &str, dir: NodeId, number: u32) {
        let (major, minor) = device_number(number);
        let keys = format!(
            "MAJOR={major}\0MINOR={minor}\0DEVNAME=infiniband/uverbs{number}\0DEVMODE=0666\0"
        );
        let path = self.devpath(dir);
        self.broadcast(action, VERBS, &path, &[], keys.as_bytes());
    }

    /// The event of an RDMA device, whose directory is `dir`. For a rename, `from` is its previous path.
    pub(super) fn rdma_event(&mut self, action: &str, id: DeviceId, from: Option<&[u8]>) {
        let device = &self.devices[id];
        if !device.visible {
            return;
        }
        let path = self.devpath(device.dir);
        let name = [b"NAME=", &*device.name, b"\0"].concat();
        let from = from.map(|from| [b"DEVPATH_OLD=", from, b"\0"].concat()).unwrap_or_default();
        self.broadcast(action, RDMA, &path, &from, &name);
    }

    pub(super) fn rdma_devpath(&self, id: DeviceId) -> Vec<u8> {
        self.devpath(self.devices[id].dir)
    }

    fn broadcast(&mut self, action: &str, subsystem: &str, path: &[u8], from: &[u8], keys: &[u8]) {
        let sequence = &mut self.uevents.sequence;
        *sequence += 1;
        let (head, tail) = (action.as_bytes(), format!("SEQNUM={sequence}\0"));
        let subsystem_key = format!("SUBSYSTEM={subsystem}\0");
        let bytes = [
            &[head, b"@", path, b"\0"].concat()[..],
            &[b"ACTION=", head, b"\0DEVPATH=", path, b"\0"].concat(),
            subsystem_key.as_bytes(),
            from,
            keys,
            tail.as_bytes(),
        ]
        .concat();
        if let Some(log) = &mut self.sent {
            let text: Vec<_> = bytes.split(|byte| *byte == 0).collect();
            log.push(text[..text.len() - 1].join(&b' ').escape_ascii().to_string());
        }
        // Untagged events stay in the initial user namespace (`uevent_net_broadcast_untagged`).
        if subsystem == VERBS && self.uevents.in_user_namespace {
            return;
        }
        let (port, groups, sender) = (0, KERNEL_GROUP, (0, self.uevents.root));
        let mut message = Message { bytes, is_cut: false, groups, port, sender };
        let fate = &mut self.uevents;
        if take(&mut fate.lose) {
            return;
        }
        message.is_cut = take(&mut fate.cut);
        let copies = 1 + usize::from(take(&mut fate.repeat));
        for _ in 0..copies {
            if self.uevents.holds {
                self.uevents.held.push(message.clone());
            } else {
                self.deliver(&message);
            }
        }
    }

    fn deliver(&mut self, message: &Message) {
        let room = self.uevents.room;
        let mut reached = Vec::new();
        for (id, file) in &mut self.files {
            if let FileState::Uevents(inbox) = &mut file.state
                && inbox.is_subscribed
            {
                if !inbox.is_congested && inbox.queue.len() < room {
                    inbox.queue.push_back(message.clone());
                } else if !inbox.is_congested {
                    (inbox.is_congested, inbox.overrun) = (true, true);
                }
                reached.push(*id);
            }
        }
        for file in self.files.values() {
            if let FileState::Epoll(members) = &file.state
                && reached.iter().any(|id| members.contains(id))
            {
                file.wake();
            }
        }
    }

    /// Loses the next events, as the kernel does without a sign when it has no memory for a message.
    pub fn lose_uevents(&mut self, events: u32) {
        self.uevents.lose = events;
    }

    /// Sends each of the next events twice.
    pub fn repeat_uevents(&mut self, events: u32) {
        self.uevents.repeat = events;
    }

    /// Makes receivers see the next events cut.
    pub fn cut_uevents(&mut self, events: u32) {
        self.uevents.cut = events;
    }

    /// Holds events back from now on.
    pub fn hold_uevents(&mut self) {
        self.uevents.holds = true;
    }

    /// Delivers what is held back, in order or in reverse order, and holds nothing back any more.
    pub fn release_uevents(&mut self, reversed: bool) {
        self.uevents.holds = false;
        let mut held = std::mem::take(&mut self.uevents.held);
        if reversed {
            held.reverse();
        }
        for message in held {
            self.deliver(&message);
        }
    }

    /// Sets how many messages fit into the buffer of a uevent socket. The default is 4,096.
    pub fn set_uevent_room(&mut self, messages: usize) {
        self.uevents.room = messages;
    }

    /// Sets whether the program's network namespace belongs to a user namespace other than the initial one. Then
    /// it receives no events of the subsystem `infiniband_verbs`.
    pub fn set_in_user_namespace(&mut self, is_in: bool) {
        self.uevents.in_user_namespace = is_in;
    }

    /// Sets the user id that the kernel's messages are received with. It is 65,534 in a user namespace to which root is
    /// not mapped (`from_kuid_munged`).
    pub fn set_root_uid(&mut self, uid: u32) {
        self.uevents.root = uid;
    }

    /// Another process sends a message to the sockets. With port 0 and group 1 it is what
    /// `CAP_SYS_ADMIN` in the namespace can inject. The kernel adds the true process id and user id.
    pub fn forge_uevent(&mut self, bytes: &[u8], port: u32, groups: u32) {
        let sender = (4321, 65_534);
        let message = Message { bytes: bytes.to_vec(), is_cut: false, groups, port, sender };
        self.deliver(&message);
    }

    /// The kernel sends these bytes, as for a device of another subsystem.
    pub fn foreign_uevent(&mut self, bytes: &[u8]) {
        let (port, groups, sender) = (0, KERNEL_GROUP, (0, self.uevents.root));
        self.deliver(&Message { bytes: bytes.to_vec(), is_cut: false, groups, port, sender });
    }

    /// Root writes `add` to the `uevent` attribute of the device's uverbs instance.
    pub fn synthetic_uevent(&mut self, id: DeviceId) {
        if let Some(uverbs) = self.devices[id].uverbs {
            let uverbs = &self.uverbs[uverbs.0 as usize];
            self.verbs_event("add", uverbs.dir, uverbs.number);
        }
    }

    /// Starts or stops recording the events that are sent. Earlier records are discarded.
    pub fn record_uevents(&mut self, record: bool) {
        self.sent = record.then(Vec::new);
    }

    /// The events since [`World::record_uevents`], as text.
    pub fn sent_uevents(&self) -> Vec<String> {
        self.sent.clone().unwrap_or_default()
    }

    /// Advances the monotonic clock.
    pub fn advance(&mut self, by: Duration) {
        self.clock = self.clock.saturating_add(by);
    }

    /// The monotonic clock.
    pub fn clock(&self) -> Duration {
        self.clock
    }

    // The calls.

    fn inbox(&mut self, id: FileId) -> Sys<&mut Inbox> {
        match &mut self.file_mut(id)?.state {
            FileState::Uevents(inbox) => Ok(inbox),
            FileState::Path => Err(Errno::BADF),
            _ => Err(Errno::NOTSOCK),
        }
    }

    pub(super) fn uevent_socket(&mut self) -> FileId {
        self.open_file(SOCKETS, FileState::Uevents(Inbox::default()))
    }

    pub(super) fn pass_credentials(&mut self, id: FileId) -> Sys<()> {
        self.inbox(id)?.with_credentials = true;
        Ok(())
    }

    pub(super) fn subscribe(&mut self, id: FileId) -> Sys<()> {
        self.inbox(id)?.is_subscribed = true;
        Ok(())
    }

    pub(super) fn recv_uevent(&mut self, id: FileId, buffer: &mut [u8]) -> Sys<Packet> {
        let inbox = self.inbox(id)?;
        let message = match std::mem::take(&mut inbox.overrun) {
            true => Err(Errno::NOBUFS),
            false => inbox.queue.pop_front().ok_or(Errno::AGAIN),
        };
        inbox.is_congested &= !inbox.queue.is_empty();
        let message = message?;
        let len = copy(&message.bytes, buffer);
        Ok(Packet {
            len,
            is_cut: message.is_cut || len < message.bytes.len(),
            port: message.port,
            groups: message.groups,
            sender: inbox.with_credentials.then_some(message.sender),
        })
    }

    pub(super) fn timer(&mut self) -> FileId {
        self.open_file(SOCKETS, FileState::Timer(None))
    }

    pub(super) fn set_timer(&mut self, id: FileId, after: Duration) -> Sys<()> {
        let at = self.clock.saturating_add(after);
        match &mut self.file_mut(id)?.state {
            FileState::Timer(timer) => *timer = Some(at),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    pub(super) fn epoll(&mut self) -> Sys<(FileId, Option<OwnedFd>)> {
        self.open_with(SOCKETS, FileState::Epoll(Vec::new()), pair()?)
    }

    pub(super) fn epoll_add(&mut self, id: FileId, member: FileId) -> Sys<()> {
        match &mut self.file_mut(id)?.state {
            FileState::Epoll(members) => members.push(member),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    pub(super) fn epoll_remove(&mut self, id: FileId, member: FileId) -> Sys<()> {
        match &mut self.file_mut(id)?.state {
            FileState::Epoll(members) => members.retain(|known| *known != member),
            _ => return Err(Errno::INVAL),
        }
        Ok(())
    }

    /// Waits for the members of an epoll descriptor: advances the clock to the next timer, or by the timeout.
    /// Returns whether one is ready. Nothing else happens meanwhile.
    pub(super) fn wait(&mut self, members: &[FileId], timeout: Option<Duration>) -> bool {
        let states = || members.iter().filter_map(|id| Some(&self.files.get(id)?.state));
        let is_ready = |state: &FileState| match state {
            FileState::Uevents(inbox) => inbox.overrun || !inbox.queue.is_empty(),
            FileState::Timer(due) => due.is_some_and(|due| due <= self.clock),
            _ => false,
        };
        if states().any(is_ready) {
            return true;
        }
        let due = states().filter_map(|state| match state {
            FileState::Timer(due) => *due,
            _ => None,
        });
        let (due, end) = (due.min(), timeout.map(|timeout| self.clock.saturating_add(timeout)));
        let (at, is_ready) = match (due, end) {
            (Some(due), Some(end)) if end < due => (end, false),
            (Some(due), _) => (due, true),
            (None, Some(end)) => (end, false),
            (None, None) => return false,
        };
        self.clock = at;
        is_ready
    }
}

/// Counts down. Returns whether there was something to count.
fn take(count: &mut u32) -> bool {
    let some = *count > 0;
    *count -= u32::from(some);
    some
}
