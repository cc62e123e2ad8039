//! A netlink dump, page by page. The kernel makes the first page within `sendto` and each later page within the
//! `recvfrom` before the one that receives it, so the caller decides what happens in between.
//!
//! The library is judged by these dumps, so they are not decoded with the library's code.

use anyhow::{Context as _, Result, ensure};
use uverbs::sim::{Probe, Wire};

/// `rdma/rdma_netlink.h`, `linux/netlink.h`.
const RES_PD_GET: u16 = (5 << 10) + 14;
const RES_CTX_GET: u16 = (5 << 10) + 22;
const DEV_INDEX: u16 = 1;
const RES_PID: u16 = 28;
const RES_PD: u16 = 46;
const RES_PDN: u16 = 60;
const RES_CTXN: u16 = 64;
const RES_CTX: u16 = 86;
const REQUEST: u16 = 1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// The bits of an attribute's type without the flags.
const TYPE: u16 = 0x3fff;

/// The maximum that the kernel puts into one page.
pub(crate) const LONG: usize = 32 * 1024;

/// The kind of object that is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    Contexts,
    Pds,
}

/// One context or PD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The number of the PD; `None` for a context.
    pub(crate) pdn: Option<u32>,
    pub(crate) ctxn: Option<u32>,
    pub(crate) thread: Option<u32>,
}

/// One datagram of an answer.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub(crate) len: usize,
    /// Whether the room did not suffice.
    pub(crate) is_cut: bool,
    pub(crate) entries: Vec<Entry>,
    /// Whether the answer ends here, and with which errno.
    pub(crate) end: Option<Option<i32>>,
}

pub(crate) struct Dump {
    wire: Wire,
    index: u32,
    of: Of,
}

impl Dump {
    pub(crate) fn new(probe: &Probe, of: Of, index: u32) -> Result<Self> {
        let wire = probe.wire().map_err(std::io::Error::from_raw_os_error)?;
        Ok(Self { wire, index, of })
    }

    /// Requests the list. The kernel makes the first page here.
    pub(crate) fn begin(&self) -> Result<()> {
        self.send(DUMP, &[(DEV_INDEX, self.index)])
    }

    /// Requests the entry with one number. One page is the whole answer.
    pub(crate) fn by_number(&self, number: u32) -> Result<Page> {
        self.send(0, &[(DEV_INDEX, self.index), (self.key(), number)])?;
        self.page(LONG)
    }

    /// Requests an entry without naming one.
    pub(crate) fn without_number(&self) -> Result<Page> {
        self.send(0, &[(DEV_INDEX, self.index)])?;
        self.page(LONG)
    }

    pub(crate) fn of(&self) -> Of {
        self.of
    }

    /// The attribute that holds an entry's number.
    fn key(&self) -> u16 {
        match self.of {
            Of::Contexts => RES_CTXN,
            Of::Pds => RES_PDN,
        }
    }

    fn send(&self, flags: u16, attrs: &[(u16, u32)]) -> Result<()> {
        let kind = match self.of {
            Of::Contexts => RES_CTX_GET,
            Of::Pds => RES_PD_GET,
        };
        let len = 16 + 8 * attrs.len() as u32;
        let mut message = Vec::new();
        message.extend_from_slice(&len.to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&(REQUEST | flags).to_ne_bytes());
        // Sequence number and port are constant: there is one request at a time.
        message.extend_from_slice(&[0; 8]);
        for (kind, value) in attrs {
            message.extend_from_slice(&8u16.to_ne_bytes());
            message.extend_from_slice(&kind.to_ne_bytes());
            message.extend_from_slice(&value.to_ne_bytes());
        }
        Ok(self.wire.send(&message).map_err(std::io::Error::from_raw_os_error)?)
    }

    /// The next datagram.
    pub(crate) fn page(&self, room: usize) -> Result<Page> {
        let received = self.wire.receive(room).map_err(std::io::Error::from_raw_os_error);
        let (bytes, len) = received.context("recvfrom")?;
        let mut page = Page { len, is_cut: len > bytes.len(), ..Page::default() };
        if page.is_cut {
            return Ok(page);
        }
        let mut rest = bytes.as_slice();
        while let Some(header) = rest.first_chunk::<16>() {
            let len = u32::from_ne_bytes(header[..4].try_into()?) as usize;
            let kind = u16::from_ne_bytes(header[4..6].try_into()?);
            let body = rest.get(16..len).context("a message that is cut short")?;
            match kind {
                ERROR | DONE => {
                    let errno = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    page.end = Some((errno != 0).then_some(-errno));
                }
                _ => self.read(body, &mut page.entries)?,
            }
            rest = &rest[len.next_multiple_of(4).min(rest.len())..];
        }
        Ok(page)
    }

    fn read(&self, body: &[u8], entries: &mut Vec<Entry>) -> Result<()> {
        let mut index = None;
        let list = match self.of {
            Of::Contexts => RES_CTX,
            Of::Pds => RES_PD,
        };
        let all = attrs(body)?;
        for (kind, value) in &all {
            match *kind {
                DEV_INDEX => index = Some(number(value)?),
                // The only entries in a list are its own.
                kind if kind == list => {
                    for (_, one) in attrs(value)? {
                        entries.push(entry(one)?);
                    }
                }
                _ => {}
            }
        }
        // In an answer by number, the entry's attributes are not nested.
        let key = self.key();
        if all.iter().any(|(kind, _)| *kind == key) {
            entries.push(entry(body)?);
        }
        ensure!(index == Some(self.index), "an answer about index {index:?}");
        Ok(())
    }

    /// All pages from here to the end.
    pub(crate) fn rest(&self, room: usize) -> Result<Vec<Page>> {
        let mut pages = Vec::new();
        loop {
            let page = self.page(room)?;
            let is_last = page.end.is_some();
            pages.push(page);
            if is_last {
                return Ok(pages);
            }
            ensure!(pages.len() < 1000, "the answer does not end");
        }
    }
}

fn attrs(mut bytes: &[u8]) -> Result<Vec<(u16, &[u8])>> {
    let mut all = Vec::new();
    while let Some(header) = bytes.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(4..len).context("an attribute that is cut short")?;
        all.push((u16::from_ne_bytes([header[2], header[3]]) & TYPE, value));
        bytes = &bytes[len.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(all)
}

fn entry(bytes: &[u8]) -> Result<Entry> {
    let mut entry = Entry { pdn: None, ctxn: None, thread: None };
    for (kind, value) in attrs(bytes)? {
        match kind {
            RES_PDN => entry.pdn = Some(number(value)?),
            RES_CTXN => entry.ctxn = Some(number(value)?),
            RES_PID => entry.thread = Some(number(value)?),
            _ => {}
        }
    }
    Ok(entry)
}

fn number(value: &[u8]) -> Result<u32> {
    Ok(u32::from_ne_bytes(value.try_into().context("a number of another size")?))
}

/// How many entries the pages of a list hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    /// The maximum that fits into the library's first buffer.
    pub(crate) buffer: usize,
    /// The first page of a socket that has not received anything yet.
    pub(crate) short: usize,
    /// A page of a socket that was given a long buffer.
    pub(crate) long: usize,
}

impl Pages {
    /// Measures them on a device that has enough contexts or PDs for two long pages.
    pub(crate) fn measure(probe: &Probe, of: Of, index: u32, buffer: usize) -> Result<Self> {
        let dump = Dump::new(probe, of, index)?;
        dump.begin()?;
        let first = dump.rest(LONG)?.swap_remove(0);
        dump.begin()?;
        let pages = dump.rest(LONG)?;
        let (short, long) = (first.entries.len(), pages[0].entries.len());
        ensure!(pages.len() > 2 && short < long, "too few for two pages: {short}, {long}");
        // Entries with numbers of the same size have the same length, which the short page shows.
        let each = (pages[0].len - first.len) / (long - short);
        let around = first.len - short * each;
        Ok(Self { buffer: (buffer - around) / each, short, long })
    }
}
