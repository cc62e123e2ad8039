//! Requests to the kernel over RDMA netlink: one request, its answer, and a bounded number of retries.

mod source;

use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::kernel::Bad;
use crate::kernel::netlink::{Message, Messages, NLMSG_DONE, NLMSG_ERROR, Request};
use crate::kernel::nldev::{
    Chardev, Command, DeviceInfo, PortInfo, Resource, ResourceEntry, attr, parse_copy_on_fork,
    parse_one_resource, parse_resources,
};
use crate::kernel::retry;
use crate::kernel::{Errno, Handle, Kernel};

pub(crate) use source::{Kept, Source};

/// Room for an answer about one device, or for a short list. The kernel makes the messages of a dump as long as the
/// longest buffer that it has seen on the socket, and clears them first, so an open with a short buffer takes half
/// of the time (`benches/RESULTS.md`).
const BUFFER: usize = 2 * 1024;
/// The longest message of a dump that the kernel sends (`netlink_recvmsg`).
const LONG_BUFFER: usize = 32 * 1024;
/// Room for the shortest page that the kernel fills.
const PAGE: usize = 4 * 1024;
/// How many pages of contexts or protection domains are read: enough for some 43,000. For each page the kernel
/// counts from the first entry, so the time grows with the square of their number, and any user may allocate them.
const PAGES: usize = 64;
/// How many unrelated datagrams are skipped before the answer counts as lost.
const STRAYS: usize = 4096;
/// How many times a request is sent if its answer is lost.
const ATTEMPTS: usize = 3;

/// A netlink socket. It runs one exchange at a time.
#[derive(Debug)]
pub(crate) struct Socket {
    kernel: Kernel,
    handle: Handle,
    exchange: Mutex<Exchange>,
}

#[derive(Debug)]
struct Exchange {
    seq: u32,
    buffer: Box<[u8]>,
    /// An answer to an exchange that failed may still be queued.
    dirty: bool,
    /// The kernel may have seen a long buffer on this socket, and then makes the first page of a dump long, too.
    has_long_pages: bool,
}

/// The form in which an answer came.
#[derive(Debug, Clone, Copy)]
struct Answer {
    /// Length of its first datagram.
    first_len: usize,
    /// How many messages there were, not counting the one that ends a dump.
    messages: usize,
}

/// Why a request got no answer. It holds no heap memory, so a bare thread may return it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The kernel refused the request.
    Refused(Errno),
    /// Sending or receiving failed.
    Call(&'static str, Errno),
    /// The answer, or a part of it, did not arrive.
    Lost(&'static str),
    /// The answer arrived but is malformed.
    Bad(Bad),
    /// The answer has more pages than are read.
    TooLong,
}

/// If the first datagram of a dump is no longer than this, it ended because nothing was left to list: the smallest
/// page that the kernel fills is about 3.7 KB long (`netlink_dump`, `net/netlink/af_netlink.c`).
const WHOLE: usize = 2 * 1024;

/// The content of a list of contexts or protection domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The first entry that was wanted.
    pub(crate) found: Option<ResourceEntry>,
    /// The list has every entry that existed from before the request until after the answer. Only then does a
    /// missing entry mean that it does not exist. In a list of several pages, each page skips as many entries as
    /// were shown before, by position, so an entry is left out whenever an earlier one goes away meanwhile. That
    /// includes a list of one full page and an empty end.
    pub(crate) is_whole: bool,
    /// The list came in one message. The old rule took that for complete.
    #[cfg(uverbs_leave_out)]
    pub(crate) in_one_message: bool,
}

impl Socket {
    /// A socket that the library opened. Nothing is queued on it.
    fn made(kernel: Kernel, handle: Handle) -> Self {
        Self::new(kernel, handle, false)
    }

    /// A socket that the program passed in. Answers to earlier requests may still be queued on it.
    ///
    /// # Errors
    /// Unsupported if it is subscribed to a group: that delivers messages which no request caused.
    pub(crate) fn given(kernel: Kernel, handle: Handle) -> Result<Self> {
        let groups = retry(|| kernel.netlink_groups(&handle))
            .map_err(|errno| Error::call("getsockname(netlink socket)", errno))?;
        if groups != 0 {
            let text = format!("the netlink socket is subscribed to groups ({groups:#x})");
            let error = Error::new(ErrorKind::Unsupported, text);
            return Err(error.with_hint("pass in a socket that is not"));
        }
        Ok(Self::new(kernel, handle, true))
    }

    fn new(kernel: Kernel, handle: Handle, dirty: bool) -> Self {
        // Whoever passed a socket in may have used it.
        let has_long_pages = dirty;
        let exchange = Exchange { seq: 0, buffer: vec![0; BUFFER].into(), dirty, has_long_pages };
        Self { kernel, handle, exchange: Mutex::new(exchange) }
    }

    /// The device with that index; `None` if the kernel has none that this process may see.
    pub(crate) fn device(&self, index: u32) -> Result<Option<DeviceInfo>> {
        let mut found = None;
        let result = self.query(Command::Get, index, &mut |message| {
            found = Some(DeviceInfo::parse(message)?);
            Ok(())
        });
        match result {
            Ok(_) => match found {
                Some(info) if info.index == index => Ok(Some(info)),
                _ => Err(Error::malformed(Command::Get.name(), Bad("another device"))),
            },
            Err(Fault::Refused(Errno::INVAL)) => Ok(None),
            Err(fault) => Err(fault.error(Command::Get)),
        }
    }

    /// The uverbs node of the device with that index; `None` if there is no such device, or it has no uverbs node
    /// at the moment.
    pub(crate) fn chardev(&self, index: u32) -> Result<Option<Chardev>> {
        let mut found = None;
        let result = self.query(Command::GetChardev, index, &mut |message| {
            found = Some(Chardev::parse(message)?);
            Ok(())
        });
        match result {
            Ok(_) => Ok(found),
            Err(Fault::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(None),
            Err(fault) => Err(fault.error(Command::GetChardev)),
        }
    }

    /// A port of the device with that index; `None` if the kernel has no such device or port that this process may
    /// see.
    pub(crate) fn port(&self, index: u32, port: u32) -> Result<Option<PortInfo>> {
        let mut found = None;
        let result = self.retrying(|exchange| {
            let request = exchange
                .request(Command::PortGet, false)
                .attr(attr::DEV_INDEX, &index.to_ne_bytes())
                .attr(attr::PORT_INDEX, &port.to_ne_bytes())
                // The type of the answer is that of the other request (`nldev_port_get_doit`).
                .answered_by(Command::Get.message_type());
            exchange.run(&self.kernel, &self.handle, request, &mut |message| {
                found = Some(PortInfo::parse(message, index, port)?);
                Ok(())
            })
        });
        match result {
            Ok(_) => Ok(found),
            Err(Fault::Refused(Errno::INVAL)) => Ok(None),
            Err(fault) => Err(fault.error(Command::PortGet)),
        }
    }

    /// Whether the kernel copies pinned pages on fork; `false` if it does not know the request.
    pub(crate) fn copies_on_fork(&self) -> Result<bool> {
        let mut copies = false;
        let result = self.retrying(|exchange| {
            let request = exchange.request(Command::SysGet, false);
            exchange.run(&self.kernel, &self.handle, request, &mut |message| {
                copies = parse_copy_on_fork(message)?;
                Ok(())
            })
        });
        match result {
            Ok(_) => Ok(copies),
            Err(Fault::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(false),
            Err(fault) => Err(fault.error(Command::SysGet)),
        }
    }

    /// All devices. Only a hint, since the kernel goes by position and devices come and go.
    pub(crate) fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let mut found = Vec::new();
        self.retrying(|exchange| {
            found.clear();
            let request = exchange.request(Command::Get, true);
            exchange.run(&self.kernel, &self.handle, request, &mut |message| {
                found.push(DeviceInfo::parse(message)?);
                Ok(())
            })
        })
        .map_err(|fault| fault.error(Command::Get))?;
        Ok(found)
    }

    /// The context or protection domain with that number on the device with that index; `None` if the kernel has
    /// none. Does not allocate.
    pub(crate) fn resource(
        &self,
        kind: Resource,
        index: u32,
        number: u32,
    ) -> std::result::Result<Option<ResourceEntry>, Fault> {
        let mut found = None;
        let result = self.retrying(|exchange| {
            let request = exchange
                .request(kind.command(), false)
                .attr(attr::DEV_INDEX, &index.to_ne_bytes())
                .attr(kind.number(), &number.to_ne_bytes());
            exchange.run(&self.kernel, &self.handle, request, &mut |message| {
                found = Some(parse_one_resource(message, kind, index)?);
                Ok(())
            })
        });
        match result {
            Ok(_) if found.is_some_and(|entry| entry.number == number) => Ok(found),
            Ok(_) => Err(Fault::Bad(Bad("another number"))),
            Err(Fault::Refused(Errno::NOENT | Errno::INVAL | Errno::OPNOTSUPP)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Enlarges the buffer for [lists](Self::list). Otherwise a page could be cut short, and the rest of the dump
    /// would have to be read before the next request.
    pub(crate) fn make_room(&self) {
        self.lock().lengthen();
    }

    /// Lists the contexts or protection domains of the device with that index, once. Returns `None` if there is no
    /// such device, or the kernel does not know the request (contexts before Linux 5.13). `is_wanted` is called
    /// with every entry, including those of a list that was lost before. Does not allocate after
    /// [`make_room`](Self::make_room).
    pub(crate) fn list(
        &self,
        kind: Resource,
        index: u32,
        mut is_wanted: impl FnMut(&ResourceEntry) -> bool,
    ) -> std::result::Result<Option<Listing>, Fault> {
        let mut found = None;
        let result = self.retrying(|exchange| {
            found = None;
            exchange.lengthen();
            let request =
                exchange.request(kind.command(), true).attr(attr::DEV_INDEX, &index.to_ne_bytes());
            exchange.run(&self.kernel, &self.handle, request, &mut |message| {
                parse_resources(message, kind, index, &mut |entry: ResourceEntry| {
                    if is_wanted(&entry) {
                        found.get_or_insert(entry);
                    }
                })
            })
        });
        match result {
            Ok(answer) => Ok(Some(Listing {
                found,
                is_whole: answer.first_len <= WHOLE,
                #[cfg(uverbs_leave_out)]
                in_one_message: answer.messages <= 1,
            })),
            Err(Fault::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// Sends one request about one device, which has one answer.
    fn query(
        &self,
        command: Command,
        index: u32,
        each: &mut dyn FnMut(&Message<'_>) -> std::result::Result<(), Bad>,
    ) -> std::result::Result<Answer, Fault> {
        self.retrying(|exchange| {
            let mut request =
                exchange.request(command, false).attr(attr::DEV_INDEX, &index.to_ne_bytes());
            if command == Command::GetChardev {
                request = request.attr(attr::CHARDEV_TYPE, b"uverbs\0");
            }
            exchange.run(&self.kernel, &self.handle, request, each)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    fn retrying(
        &self,
        mut exchange: impl FnMut(&mut Exchange) -> std::result::Result<Answer, Fault>,
    ) -> std::result::Result<Answer, Fault> {
        let mut guard = self.lock();
        for _ in 1..ATTEMPTS {
            match exchange(&mut guard) {
                // No log event: no code of the program runs here, not even a subscriber of log events.
                Err(Fault::Lost(_)) => {}
                done => return done,
            }
        }
        exchange(&mut guard)
    }
}

impl Exchange {
    fn request(&mut self, command: Command, dump: bool) -> Request {
        self.seq = self.seq.wrapping_add(1);
        Request::new(command.message_type(), dump, self.seq)
    }

    fn is_short(&self) -> bool {
        self.buffer.len() < LONG_BUFFER
    }

    fn lengthen(&mut self) {
        if self.is_short() {
            self.buffer = vec![0; LONG_BUFFER].into();
        }
    }

    /// Sends a request and passes every message of its answer to `each`.
    fn run(
        &mut self,
        kernel: &Kernel,
        socket: &Handle,
        mut request: Request,
        each: &mut dyn FnMut(&Message<'_>) -> std::result::Result<(), Bad>,
    ) -> std::result::Result<Answer, Fault> {
        if self.dirty {
            self.drain(kernel, socket)?;
        }
        self.dirty = true;
        let mut answer = Answer { first_len: 0, messages: 0 };
        let of_resources = [Command::ResCtxGet, Command::ResPdGet].map(Command::message_type);
        let is_of_resources = of_resources.contains(&request.kind);
        let message = request.finish();
        let sent = retry(|| kernel.send(socket, message));
        if sent.map_err(|errno| Fault::Call("sendto", errno))? != message.len() {
            return Err(Fault::Lost("the request was cut short"));
        }
        for _ in 0..STRAYS {
            // The kernel has made the first page of a list already. If that is short and not full, nothing is gained
            // by having the kernel make and clear a long one for the end.
            let is_long = self.has_long_pages || answer.first_len > WHOLE;
            let room = match is_of_resources && request.is_dump && !is_long {
                true => self.buffer.len().min(PAGE),
                false => self.buffer.len(),
            };
            self.has_long_pages |= room > PAGE;
            let datagram = match kernel.recv(socket, &mut self.buffer[..room]) {
                Err(Errno::INTR) => continue,
                // The kernel answers during the request, so an answer that is not there is lost.
                Err(Errno::AGAIN) => return Err(Fault::Lost("no answer")),
                Err(Errno::NOBUFS) => return Err(Fault::Lost("no room for the answer")),
                received => received.map_err(|errno| Fault::Call("recvfrom", errno))?,
            };
            if !datagram.from_kernel {
                continue;
            }
            let Some(bytes) = self.buffer[..room].get(..datagram.len) else {
                // These requests also run on bare threads, which may not allocate. Their answers fit.
                if !is_of_resources {
                    self.lengthen();
                }
                return Err(Fault::Lost("the answer was cut short"));
            };
            for message in Messages(bytes) {
                let message = message.map_err(Fault::Bad)?;
                if message.seq != self.seq {
                    continue;
                }
                if answer.first_len == 0 {
                    answer.first_len = datagram.len;
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let errno = message.errno().map_err(Fault::Bad)?;
                        if request.is_dump && errno == Some(Errno::BUSY) {
                            // The rest of it is read before the next request.
                            return Err(Fault::Lost("another dump is under way"));
                        }
                        self.dirty = false;
                        return errno.map_or(Ok(answer), |errno| Err(Fault::Refused(errno)));
                    }
                    kind if kind == request.kind || kind == request.answer => {
                        each(&message).map_err(Fault::Bad)?;
                    }
                    // A message of another exchange is not part of this answer.
                    _ => continue,
                }
                answer.messages += 1;
                if !request.is_dump {
                    self.dirty = false;
                    return Ok(answer);
                }
            }
            if answer.messages > 1 && !is_of_resources {
                self.lengthen();
            }
            if is_of_resources && answer.messages > PAGES {
                return Err(Fault::TooLong);
            }
        }
        Err(Fault::Lost("no end of the answer"))
    }

    /// Reads what is left of an exchange that failed: the kernel starts no other dump before.
    fn drain(&mut self, kernel: &Kernel, socket: &Handle) -> std::result::Result<(), Fault> {
        self.has_long_pages |= self.buffer.len() > PAGE;
        for _ in 0..2 * PAGES {
            match kernel.recv(socket, &mut self.buffer) {
                Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(errno) => return Err(Fault::Call("recvfrom", errno)),
            }
        }
        Err(Fault::Lost("the answer does not end"))
    }
}

impl Fault {
    pub(crate) fn error(self, command: Command) -> Error {
        let command = command.name();
        match self {
            Self::Refused(errno) => Error::call(command, errno),
            Self::Call(call, errno) => {
                let error = Error::call(format!("{call}(NETLINK_RDMA, {command})"), errno);
                match errno {
                    // A filter did that: the kernel itself forbids these calls to nobody.
                    Errno::PERM | Errno::ACCESS => {
                        error.into_kind(ErrorKind::NetlinkUnavailable).with_hint(FILTERED)
                    }
                    _ => error,
                }
            }
            Self::Lost(what) => {
                Error::new(ErrorKind::Unstable, format!("{command}: {what} ({ATTEMPTS} times)"))
            }
            Self::Bad(bad) => Error::malformed(command, bad),
            Self::TooLong => {
                Error::new(ErrorKind::Unproven, format!("{command}: more than {PAGES} pages"))
            }
        }
    }
}

const FILTERED: &str =
    "a filter around this process forbids the socket (AF_NETLINK, NETLINK_RDMA): allow it there";

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink, socket_with};

    use super::*;

    /// Once a page was long, the first page of the next list is long as well.
    #[cfg(feature = "sim")]
    #[test]
    fn long_lists_on_one_socket_are_whole_pages() {
        use crate::sim::{DeviceSpec, Machine};

        const CONTEXTS: usize = 700;
        let machine = Machine::new();
        let id = machine.add(DeviceSpec::new("a")).expect("added");
        let index = machine.index_of(id);
        let kernel = Kernel::Sim(machine.clone());
        let socket = Socket::made(kernel.clone(), kernel.rdma_socket().expect("a socket"));
        socket.make_room();
        let count = || {
            let mut count = 0;
            let listing = socket.list(Resource::Context, index, |_| {
                count += 1;
                false
            });
            (count, listing.expect("an answer").expect("a list").is_whole)
        };
        assert_eq!(count(), (0, true));
        machine.with(|world| {
            for _ in 0..CONTEXTS {
                world.foreign_context(id).expect("opened");
            }
        });
        for _ in 0..3 {
            assert_eq!(count(), (CONTEXTS, false));
        }
    }

    /// Works with any netlink family: the groups belong to the socket.
    #[test]
    fn a_socket_that_is_subscribed_is_refused() {
        let made = || {
            let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
            socket_with(family, kind, SocketFlags::CLOEXEC, None).expect("a socket")
        };
        let given = |socket| Socket::given(Kernel::Linux, Handle::Real(socket));
        given(made()).expect("subscribed to nothing");
        let subscribed = made();
        bind(&subscribed, &netlink::SocketAddrNetlink::new(0, 1)).expect("subscribed");
        assert_eq!(given(subscribed).expect_err("refused").kind(), ErrorKind::Unsupported);
        let (no_netlink, _) = std::os::unix::net::UnixStream::pair().expect("a socket");
        given(no_netlink.into()).expect_err("not a netlink socket");
    }
}
