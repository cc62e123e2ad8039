//! RDMA netlink. Requests are answered at once. Dumps are made one page ahead of the reader.
//!
//! The first page of a dump is made within `sendto`, and each later page within the `recvfrom` that returns the
//! page before (`__netlink_dump_start`, `netlink_recvmsg` and `netlink_dump` in `net/netlink/af_netlink.c`, read in
//! 6.1). Each page skips as many entries as were shown before, by position. A page is full if the next entry does
//! not fit. `NLMSG_DONE` is a datagram of its own: the kernel appends it to a page only if the dump ends within
//! that page, and RDMA's dumps end with a page on which they show nothing.

use std::collections::VecDeque;

use super::super::netlink::{Attrs, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer};
use super::super::nldev::{Command, attr, encode_dev};
use super::super::{Datagram, Errno, Sys};
use super::devices::device_number;
use super::resources::Pd;
use super::spec::DeviceId;
use super::world::{FileId, FileState, World, errno};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_MULTI: u16 = 2;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;

/// Attributes that only the simulated kernel writes.
const CHARDEV_ABI: u16 = 71;
const RES_KERN_NAME: u16 = 29;
const RES_USECNT: u16 = 38;
const DRIVER_STRING: u16 = 56;

/// The length of a page in bytes, unless a longer buffer was seen (`NLMSG_GOODSIZE`).
const SHORT_PAGE: usize = 3776;
/// The length of the longest page in bytes: 32 KiB less what the kernel needs for itself.
const LONG_PAGE: usize = 32_448;
/// Header of a message, or of an attribute.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// The requests that are supported.
const COMMANDS: [Command; 6] = [
    Command::Get,
    Command::PortGet,
    Command::SysGet,
    Command::GetChardev,
    Command::ResCtxGet,
    Command::ResPdGet,
];

/// Drivers that userspace must not match by id: mthca and hns.
const UNBOUND: [u32; 2] = [5, 12];

#[derive(Debug, Default, Hash)]
pub(super) struct Socket {
    queue: VecDeque<Vec<u8>>,
    dump: Option<Dump>,
    /// The longest buffer that was passed to a receive.
    longest: usize,
}

impl Socket {
    /// The length in bytes of a page that is made now.
    fn page(&self, is_memory_short: bool) -> usize {
        match is_memory_short {
            true => SHORT_PAGE,
            false => self.longest.clamp(SHORT_PAGE, LONG_PAGE),
        }
    }
}

/// A dump that is not at its end. It only knows how many entries it has shown.
#[derive(Debug, Clone, Copy, Hash)]
struct Dump {
    command: Command,
    seq: u32,
    index: Option<u32>,
    position: usize,
}

impl World {
    fn socket(&mut self, id: FileId) -> Sys<&mut Socket> {
        match &mut self.file_mut(id)?.state {
            FileState::Socket(socket) => Ok(socket),
            FileState::Path => Err(Errno::BADF),
            _ => Err(Errno::NOTSOCK),
        }
    }

    pub(super) fn send(&mut self, id: FileId, bytes: &[u8]) -> Sys<usize> {
        self.socket(id)?;
        let mut messages = Messages(bytes);
        loop {
            let raw = messages.0;
            let Some(Ok(message)) = messages.next() else { return Ok(bytes.len()) };
            let flags = u16::from_ne_bytes([raw[6], raw[7]]);
            if flags & NLM_F_REQUEST == 0 {
                continue;
            }
            let result = self.request(id, &message, flags);
            if result == Ok(()) && (flags & NLM_F_ACK == 0 || flags & NLM_F_DUMP != 0) {
                continue;
            }
            let errno = result.err().map_or(0, |errno| -errno.raw_os_error());
            let original = &raw[..(16 + message.body.len()).min(raw.len())];
            let error = Writer::message(NLMSG_ERROR, 0, message.seq);
            let error = error.raw(&errno.to_ne_bytes()).raw(original).finish();
            self.socket(id)?.queue.push_back(error);
        }
    }

    fn request(&mut self, id: FileId, message: &Message<'_>, flags: u16) -> Sys<()> {
        if let Some(refused) = self.settings.refuse_request.take() {
            return Err(errno(refused));
        }
        let is_known = |command: &Command| match command {
            Command::ResCtxGet => !self.settings.no_res_ctx,
            Command::ResPdGet => !self.settings.no_res_pd,
            _ => true,
        };
        let command = COMMANDS
            .into_iter()
            .find(|command| command.message_type() == message.kind)
            .filter(is_known)
            .ok_or(Errno::INVAL)?;
        let index = number(message.attrs(), attr::DEV_INDEX);
        if flags & NLM_F_DUMP != 0 {
            if matches!(command, Command::SysGet | Command::GetChardev) {
                return Err(Errno::INVAL);
            }
            let socket = self.socket(id)?;
            if socket.dump.is_some() {
                return Err(Errno::BUSY);
            }
            socket.dump = Some(Dump { command, seq: message.seq, index, position: 0 });
            return self.go_on(id);
        }
        let reply = match command {
            Command::Get => {
                let device = self.accessible(index)?;
                self.device_message(device, message.seq, 0)
            }
            Command::PortGet => {
                let port = number(message.attrs(), attr::PORT_INDEX).ok_or(Errno::INVAL)?;
                let device = self.accessible(index)?;
                // The kernel answers with the type of the other command (`nldev_port_get_doit`).
                self.port_message(Command::Get, device, port, (message.seq, 0))?
            }
            Command::SysGet => {
                let reply = Writer::message(Command::SysGet.message_type(), 0, message.seq);
                match self.settings.copies_on_fork {
                    true => reply.attr(attr::SYS_COPY_ON_FORK, &[1]).finish(),
                    false => reply.finish(),
                }
            }
            Command::GetChardev => self.chardev_message(message, index)?,
            Command::ResCtxGet | Command::ResPdGet => {
                self.resource_message(command, message, index)?
            }
        };
        self.socket(id)?.queue.push_back(reply);
        Ok(())
    }

    /// The device with an index, as a request by index finds it. That includes a device whose removal waits.
    fn accessible(&self, index: Option<u32>) -> Sys<DeviceId> {
        let device = index.and_then(|index| self.indices.get(&index)).copied();
        device
            .filter(|id| {
                self.devices[*id].visible
                    && (self.devices[*id].listed || !self.settings.hides_unlisted)
            })
            .ok_or(Errno::INVAL)
    }

    fn device_message(&self, id: DeviceId, seq: u32, flags: u16) -> Vec<u8> {
        let device = &self.devices[id];
        let ports = device.ports.len() as u32;
        let mut message =
            self.answer(Command::Get, id, seq, flags).attr(attr::PORT_INDEX, &ports.to_ne_bytes());
        if !device.spec.fw_version.is_empty() {
            let version = [device.spec.fw_version.as_bytes(), b"\0"].concat();
            message = message.attr(attr::FW_VERSION, &version);
        }
        message
            .attr(attr::NODE_GUID, &device.guid.to_ne_bytes())
            .attr(attr::SYS_IMAGE_GUID, &device.guid.to_ne_bytes())
            .attr(attr::DEV_NODE_TYPE, &[device.spec.node_type])
            .finish()
    }

    fn chardev_message(&self, message: &Message<'_>, index: Option<u32>) -> Sys<Vec<u8>> {
        let kind = message
            .attrs()
            .map_while(Result::ok)
            .find(|attribute| attribute.kind == attr::CHARDEV_TYPE)
            .ok_or(Errno::INVAL)?;
        let device = &self.devices[self.accessible(index)?];
        // The mark of the client goes before its instance.
        let uverbs = device
            .uverbs
            .filter(|_| device.listed && device.is_reported() && kind.value == b"uverbs\0")
            .ok_or(Errno::OPNOTSUPP)?;
        let number = self.uverbs[uverbs.0 as usize].number;
        let mut reply = Writer::message(Command::GetChardev.message_type(), 0, message.seq)
            .attr(attr::CHARDEV, &encode_dev(device_number(number)).to_ne_bytes())
            .attr(CHARDEV_ABI, &u64::from(device.spec.abi_version).to_ne_bytes())
            .attr(attr::CHARDEV_NAME, format!("uverbs{number}\0").as_bytes());
        if !UNBOUND.contains(&device.spec.driver_id) {
            let driver_id = device.spec.driver_id.to_ne_bytes();
            reply = reply.attr(attr::UVERBS_DRIVER_ID, &driver_id);
        }
        Ok(reply.finish())
    }

    /// Makes the next message of a dump.
    fn go_on(&mut self, id: FileId) -> Sys<()> {
        let Some(mut dump) = self.socket(id)?.dump else { return Ok(()) };
        let page = match (self.settings.break_dump.take(), dump.command) {
            (Some(broken), _) => Err(errno(broken)),
            (None, Command::ResCtxGet | Command::ResPdGet) => self.resources_page(id, &mut dump),
            (None, Command::PortGet) => self.device_ports_page(id, &mut dump),
            (None, _) => Ok(self.devices_page(&mut dump)),
        };
        let end = match page {
            Ok(Some(page)) => {
                let socket = self.socket(id)?;
                socket.dump = Some(dump);
                socket.queue.push_back(page);
                return Ok(());
            }
            Ok(None) => 0,
            Err(errno) => -errno.raw_os_error(),
        };
        let done = Writer::message(NLMSG_DONE, NLM_F_MULTI, dump.seq).raw(&end.to_ne_bytes());
        let socket = self.socket(id)?;
        socket.dump = None;
        socket.queue.push_back(done.finish());
        Ok(())
    }

    fn devices_page(&self, dump: &mut Dump) -> Option<Vec<u8>> {
        let mut shown = self
            .indices
            .values()
            .filter(|id| self.devices[**id].listed && self.devices[**id].visible);
        let device = shown.nth(dump.position)?;
        dump.position += 1;
        Some(self.device_message(*device, dump.seq, NLM_F_MULTI))
    }

    fn device_ports_page(&mut self, file: FileId, dump: &mut Dump) -> Sys<Option<Vec<u8>>> {
        let is_memory_short = self.settings.short_pages;
        let room = self.socket(file)?.page(is_memory_short);
        let id = self.accessible(dump.index)?;
        let page = self.ports_page(id, dump.position, (dump.seq, NLM_F_MULTI), room);
        Ok(page.map(|(page, position)| {
            dump.position = position;
            page
        }))
    }

    /// Contexts or PDs of a device, each with its number and its attributes.
    fn resources(&mut self, command: Command, id: DeviceId) -> Vec<(u32, Writer)> {
        if command == Command::ResPdGet {
            let pds = self.shown_pds(id).into_iter();
            return pds.map(|(pdn, pd)| (pdn, pd_attributes(pdn, pd))).collect();
        }
        let contexts = self.devices[id].contexts.iter();
        let attributes = |ctxn: u32, thread| {
            let number = Writer::message(0, 0, 0).attr(attr::RES_CTXN, &ctxn.to_ne_bytes());
            with_thread(number, thread)
        };
        contexts.map(|(ctxn, thread)| (*ctxn, attributes(*ctxn, *thread))).collect()
    }

    /// The header of an answer about a device.
    pub(super) fn answer(&self, command: Command, id: DeviceId, seq: u32, flags: u16) -> Writer {
        let device = &self.devices[id];
        let name = [&*device.name, b"\0"].concat();
        Writer::message(command.message_type(), flags, seq)
            .attr(attr::DEV_INDEX, &device.index.to_ne_bytes())
            .attr(attr::DEV_NAME, &name)
    }

    /// One context or PD by its number: its attributes, not nested.
    fn resource_message(
        &mut self,
        command: Command,
        message: &Message<'_>,
        index: Option<u32>,
    ) -> Sys<Vec<u8>> {
        let kind = if command == Command::ResPdGet { attr::RES_PDN } else { attr::RES_CTXN };
        let wanted = number(message.attrs(), kind).ok_or(Errno::INVAL)?;
        let id = self.accessible(index)?;
        let resources = self.resources(command, id);
        let found = resources.into_iter().find(|(number, _)| *number == wanted);
        let (_, attributes) = found.ok_or(Errno::NOENT)?;
        let answer = self.answer(command, id, message.seq, 0);
        Ok(answer.raw(&nested(attributes)).finish())
    }

    fn resources_page(&mut self, file: FileId, dump: &mut Dump) -> Sys<Option<Vec<u8>>> {
        let is_memory_short = self.settings.short_pages;
        let page = self.socket(file)?.page(is_memory_short);
        let id = self.accessible(dump.index)?;
        let resources = self.resources(dump.command, id);
        let answer = self.answer(dump.command, id, dump.seq, NLM_F_MULTI);
        let (table, kind) = match dump.command {
            Command::ResPdGet => (attr::RES_PD, attr::RES_PD_ENTRY),
            _ => (attr::RES_CTX, attr::RES_CTX_ENTRY),
        };
        let used = answer.len() + ATTRIBUTE;
        // The least length of an entry, so that exactly that many fit into a short page.
        let least = (SHORT_PAGE - used).checked_div(self.settings.contexts_a_page).unwrap_or(0);
        let room = page - used;
        let mut entries = Writer::message(0, 0, 0);
        let before = dump.position;
        for (_, entry) in resources.into_iter().skip(before) {
            let entry = nested(padded(entry, least));
            if entries.len() - HEADER + ATTRIBUTE + entry.len() > room {
                break;
            }
            entries = entries.attr(kind, &entry);
            dump.position += 1;
        }
        if dump.position == before {
            return Ok(None);
        }
        Ok(Some(answer.attr(table, &nested(entries)).finish()))
    }

    /// Takes the next datagram and continues the dump.
    pub(super) fn recv(&mut self, id: FileId, buffer: &mut [u8]) -> Sys<Datagram> {
        let socket = self.socket(id)?;
        let datagram = socket.queue.pop_front().ok_or(Errno::AGAIN)?;
        socket.longest = socket.longest.max(buffer.len());
        self.go_on(id)?;
        super::files::copy(&datagram, buffer);
        Ok(Datagram { len: datagram.len(), from_kernel: true })
    }

    /// Drops the next datagram.
    pub(super) fn lose(&mut self, id: FileId) -> Sys<()> {
        self.recv(id, &mut []).map(drop)
    }
}

/// The thread that allocated a resource, while it lives.
fn with_thread(writer: Writer, thread: Option<u32>) -> Writer {
    match thread {
        Some(thread) => writer.attr(attr::RES_PID, &thread.to_ne_bytes()),
        None => writer,
    }
}

fn pd_attributes(pdn: u32, pd: Pd) -> Writer {
    let numbers = Writer::message(0, 0, 0)
        .attr(RES_USECNT, &0_u64.to_ne_bytes())
        .attr(attr::RES_PDN, &pdn.to_ne_bytes());
    match pd.ctxn {
        Some(ctxn) => with_thread(numbers.attr(attr::RES_CTXN, &ctxn.to_ne_bytes()), pd.thread),
        None => numbers.attr(RES_KERN_NAME, b"ib_core\0"),
    }
}

/// Pads an entry to at least that many bytes, with an attribute that no reader knows.
fn padded(entry: Writer, least: usize) -> Writer {
    let len = entry.len() - HEADER + 2 * ATTRIBUTE;
    match (least & !3).checked_sub(len) {
        Some(missing) if missing > 0 => entry.attr(DRIVER_STRING, &vec![0; missing]),
        _ => entry,
    }
}

/// What was written after the header of a message that is not used otherwise.
fn nested(writer: Writer) -> Vec<u8> {
    writer.finish().split_off(HEADER)
}

fn number(attrs: Attrs<'_>, kind: u16) -> Option<u32> {
    attrs.map_while(Result::ok).find(|attribute| attribute.kind == kind)?.u32().ok()
}

/// A description of a request, for people to read.
pub(super) fn describe(bytes: &[u8]) -> String {
    let Some(Ok(message)) = Messages(bytes).next() else { return "malformed".into() };
    let name = match message.kind & 0x3ff {
        1 => "GET",
        5 => "PORT_GET",
        6 => "SYS_GET",
        14 => "RES_PD_GET",
        15 => "GET_CHARDEV",
        22 => "RES_CTX_GET",
        _ => "other",
    };
    let dump = if bytes[7] & 3 != 0 || bytes[6] & 3 == 3 { " dump" } else { "" };
    let number_of = |kind| number(message.attrs(), kind);
    let of_one = [attr::RES_PDN, attr::RES_CTXN, attr::PORT_INDEX];
    match (number_of(attr::DEV_INDEX), of_one.into_iter().find_map(number_of)) {
        (Some(index), Some(number)) => format!("{name}{dump} {index}: {number}"),
        (Some(index), None) => format!("{name}{dump} {index}"),
        (None, _) => format!("{name}{dump}"),
    }
}
