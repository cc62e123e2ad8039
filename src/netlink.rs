//! Asking the kernel over RDMA netlink: one request, its answer, retries within bounds.

use std::sync::{Arc, Mutex};

use crate::attr::retry;
use crate::error::{Error, ErrorKind, Result};
use crate::kernel::rdma::{
    Bad, Chardev, Command, ContextEntry, DeviceInfo, Message, Messages, NLMSG_DONE, NLMSG_ERROR,
    Writer, attr, parse_contexts, parse_copy_on_fork,
};
use crate::kernel::{Errno, Handle, Kernel};

/// Room for the answer to a question about one device, or for a short list. The kernel makes the messages
/// of a dump as long as the longest buffer that it has seen on the socket, and clears them before, so
/// that an open with short ones takes half of the time (`benches/RESULTS.md`).
const BUFFER: usize = 2 * 1024;
/// The most that the kernel puts into one message of a dump (`netlink_recvmsg`).
const LONG_BUFFER: usize = 32 * 1024;
/// How many datagrams that answer nothing are passed over before it counts as lost.
const STRAYS: usize = 4096;
/// How often a request is made anew whose answer was lost.
const ATTEMPTS: usize = 3;

/// A netlink socket, one exchange at a time.
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
    /// An answer may still be under way, of an exchange that failed.
    dirty: bool,
}

/// Why a request got no answer.
#[derive(Debug)]
enum Fault {
    /// The kernel refused it.
    Refused(Errno),
    /// Sending or receiving failed.
    Call(&'static str, Errno),
    /// The answer, or a part of it, did not arrive.
    Lost(&'static str),
    /// It did, and cannot be understood.
    Bad(Bad),
}

/// Contexts on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contexts {
    /// Their numbers.
    pub(crate) numbers: Vec<u32>,
    /// The whole list came in one message. Where it takes several, the kernel goes by position, and
    /// a context that somebody else closes meanwhile can hide another one.
    pub(crate) in_one_message: bool,
}

impl Socket {
    /// A socket of our own making, for which nothing is under way.
    fn made(kernel: Kernel, handle: Handle) -> Self {
        Self::new(kernel, handle, false)
    }

    /// A socket that was handed in: it may have been asked something before.
    pub(crate) fn given(kernel: Kernel, handle: Handle) -> Self {
        Self::new(kernel, handle, true)
    }

    fn new(kernel: Kernel, handle: Handle, dirty: bool) -> Self {
        let exchange = Exchange { seq: 0, buffer: vec![0; BUFFER].into(), dirty };
        Self { kernel, handle, exchange: Mutex::new(exchange) }
    }

    /// The device of that index; none when the kernel knows none that this process may see.
    pub(crate) fn device(&self, index: u32) -> Result<Option<DeviceInfo>> {
        let mut found = None;
        let asked = self.ask(Command::Get, index, &mut |message| {
            found = Some(DeviceInfo::parse(message)?);
            Ok(())
        });
        match asked {
            Ok(()) => match found {
                Some(info) if info.index == index => Ok(Some(info)),
                _ => Err(Error::malformed("RDMA_NLDEV_CMD_GET", Bad("another device"))),
            },
            Err(Fault::Refused(Errno::INVAL)) => Ok(None),
            Err(fault) => Err(fault.error("RDMA_NLDEV_CMD_GET")),
        }
    }

    /// The uverbs node of the device of that index; none when there is no such device, or it has
    /// no uverbs node at the moment.
    pub(crate) fn chardev(&self, index: u32) -> Result<Option<Chardev>> {
        let mut found = None;
        let asked = self.ask(Command::GetChardev, index, &mut |message| {
            found = Some(Chardev::parse(message)?);
            Ok(())
        });
        match asked {
            Ok(()) => Ok(found),
            Err(Fault::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(None),
            Err(fault) => Err(fault.error("RDMA_NLDEV_CMD_GET_CHARDEV")),
        }
    }

    /// Whether the kernel copies pinned pages on fork; not when it knows no such question.
    pub(crate) fn copies_on_fork(&self) -> Result<bool> {
        let mut copies = false;
        let asked = self.retrying(|exchange| {
            let request = exchange.request(Command::SysGet, false);
            exchange.run(&self.kernel, &self.handle, request, false, &mut |message| {
                copies = parse_copy_on_fork(message)?;
                Ok(())
            })
        });
        match asked {
            Ok(()) => Ok(copies),
            Err(Fault::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(false),
            Err(fault) => Err(fault.error("RDMA_NLDEV_CMD_SYS_GET")),
        }
    }

    /// All devices: a hint only, since the kernel goes by position and devices come and go.
    pub(crate) fn devices(&self) -> Result<Vec<DeviceInfo>> {
        let mut found = Vec::new();
        self.retrying(|exchange| {
            found.clear();
            let request = exchange.request(Command::Get, true);
            exchange.run(&self.kernel, &self.handle, request, true, &mut |message| {
                found.push(DeviceInfo::parse(message)?);
                Ok(())
            })
        })
        .map_err(|fault| fault.error("RDMA_NLDEV_CMD_GET"))?;
        Ok(found)
    }

    /// The contexts on the device of that index that are wanted; none when the kernel cannot tell (before
    /// 5.13, or the device is gone).
    pub(crate) fn contexts(
        &self,
        index: u32,
        is_wanted: impl Fn(&ContextEntry) -> bool,
    ) -> Result<Option<Contexts>> {
        let mut contexts = Contexts { numbers: Vec::new(), in_one_message: true };
        let mut list = |exchange: &mut Exchange| {
            let mut messages = 0;
            contexts.numbers.clear();
            let request = exchange
                .request(Command::ResCtxGet, true)
                .attr(attr::DEV_INDEX, &index.to_ne_bytes());
            exchange.run(&self.kernel, &self.handle, request, true, &mut |message| {
                messages += 1;
                parse_contexts(message, index, &mut |entry: ContextEntry| {
                    if is_wanted(&entry) {
                        contexts.numbers.push(entry.ctxn);
                    }
                })
            })?;
            contexts.in_one_message = messages <= 1;
            Ok(contexts.in_one_message)
        };
        let asked = self.retrying(|exchange| {
            let was_short = exchange.is_short();
            let in_one_message = list(exchange)?;
            // The first one has made the buffer longer, and with it the messages of the next.
            if !in_one_message && was_short { list(exchange).map(drop) } else { Ok(()) }
        });
        match asked {
            Ok(()) => Ok(Some(contexts)),
            Err(Fault::Refused(Errno::INVAL | Errno::OPNOTSUPP)) => Ok(None),
            Err(fault) => Err(fault.error("RDMA_NLDEV_CMD_RES_CTX_GET")),
        }
    }

    /// One request about one device, with one answer.
    fn ask(
        &self,
        command: Command,
        index: u32,
        each: &mut dyn FnMut(&Message<'_>) -> std::result::Result<(), Bad>,
    ) -> std::result::Result<(), Fault> {
        self.retrying(|exchange| {
            let mut request =
                exchange.request(command, false).attr(attr::DEV_INDEX, &index.to_ne_bytes());
            if command == Command::GetChardev {
                request = request.attr(attr::CHARDEV_TYPE, b"uverbs\0");
            }
            exchange.run(&self.kernel, &self.handle, request, false, each)
        })
    }

    fn retrying(
        &self,
        mut exchange: impl FnMut(&mut Exchange) -> std::result::Result<(), Fault>,
    ) -> std::result::Result<(), Fault> {
        let mut guard = self.exchange.lock().unwrap_or_else(|poison| poison.into_inner());
        for _ in 1..ATTEMPTS {
            match exchange(&mut guard) {
                Err(Fault::Lost(what)) => tracing::debug!(what, "RDMA netlink answer lost"),
                done => return done,
            }
        }
        exchange(&mut guard)
    }
}

impl Exchange {
    fn request(&mut self, command: Command, dump: bool) -> Writer {
        self.seq = self.seq.wrapping_add(1);
        Writer::request(command, dump, self.seq)
    }

    fn is_short(&self) -> bool {
        self.buffer.len() < LONG_BUFFER
    }

    fn lengthen(&mut self) {
        if self.is_short() {
            self.buffer = vec![0; LONG_BUFFER].into();
        }
    }

    /// Sends a request and shows every message of its answer to `each`.
    fn run(
        &mut self,
        kernel: &Kernel,
        socket: &Handle,
        request: Writer,
        dump: bool,
        each: &mut dyn FnMut(&Message<'_>) -> std::result::Result<(), Bad>,
    ) -> std::result::Result<(), Fault> {
        if self.dirty {
            self.drain(kernel, socket)?;
        }
        self.dirty = true;
        let mut shown = 0;
        let request = request.finish();
        let sent = retry(|| kernel.send(socket, &request));
        if sent.map_err(|errno| Fault::Call("sendto", errno))? != request.len() {
            return Err(Fault::Lost("a request that was cut short"));
        }
        for _ in 0..STRAYS {
            let datagram = match kernel.recv(socket, &mut self.buffer) {
                Err(Errno::INTR) => continue,
                // The kernel answers within the request: an answer that is not there is lost.
                Err(Errno::AGAIN) => return Err(Fault::Lost("no answer")),
                Err(Errno::NOBUFS) => return Err(Fault::Lost("no room for the answer")),
                received => received.map_err(|errno| Fault::Call("recvfrom", errno))?,
            };
            if !datagram.from_kernel {
                continue;
            }
            let Some(bytes) = self.buffer.get(..datagram.len) else {
                self.lengthen();
                return Err(Fault::Lost("an answer that was cut short"));
            };
            for message in Messages(bytes) {
                let message = message.map_err(Fault::Bad)?;
                if message.seq != self.seq {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        self.dirty = false;
                        return match message.errno().map_err(Fault::Bad)? {
                            Some(errno) => Err(Fault::Refused(errno)),
                            None => Ok(()),
                        };
                    }
                    _ => each(&message).map_err(Fault::Bad)?,
                }
                if !dump {
                    self.dirty = false;
                    return Ok(());
                }
                shown += 1;
            }
            if shown > 1 {
                self.lengthen();
            }
        }
        Err(Fault::Lost("no end of the answer"))
    }

    /// Takes what is left of an exchange that failed: the kernel starts no other dump before.
    fn drain(&mut self, kernel: &Kernel, socket: &Handle) -> std::result::Result<(), Fault> {
        for _ in 0..STRAYS {
            match kernel.recv(socket, &mut self.buffer) {
                Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
                Err(errno) => return Err(Fault::Call("recvfrom", errno)),
            }
        }
        Err(Fault::Lost("an answer without end"))
    }
}

impl Fault {
    fn error(self, command: &'static str) -> Error {
        match self {
            Self::Refused(errno) => Error::call(command, errno),
            Self::Call(call, errno) => {
                Error::call(format!("{call}(NETLINK_RDMA, {command})"), errno)
            }
            Self::Lost(what) => {
                Error::new(ErrorKind::Unstable, format!("{command}: {what} ({ATTEMPTS} times)"))
            }
            Self::Bad(bad) => Error::malformed(command, bad),
        }
    }
}

/// Where the netlink socket of a host comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// It was handed in when the host was made.
    Given(Arc<Socket>),
    /// It is opened by whoever asks, each its own, so that none waits for another: one that stays open
    /// would keep ib_core from being unloaded.
    Ambient,
    /// There is none: nothing can be proved.
    Denied,
}

impl Source {
    /// The socket.
    ///
    /// # Errors
    /// Unproven, with the errno of `socket(2)`, where there is none.
    pub(crate) fn socket(&self, kernel: &Kernel) -> Result<Arc<Socket>> {
        match self {
            Self::Given(socket) => Ok(socket.clone()),
            Self::Ambient => {
                let handle = retry(|| kernel.rdma_socket()).map_err(|errno| {
                    Error::call("socket(AF_NETLINK, SOCK_RAW, NETLINK_RDMA)", errno)
                        .into_kind(ErrorKind::Unproven)
                        .hint("without RDMA netlink nothing tells which device a context is on")
                })?;
                Ok(Arc::new(Socket::made(kernel.clone(), handle)))
            }
            Self::Denied => Err(Error::new(
                ErrorKind::Unproven,
                "no RDMA netlink socket was handed in, so nothing tells which device a context is on",
            )),
        }
    }
}
