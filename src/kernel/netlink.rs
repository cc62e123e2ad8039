//! Netlink's framing (`linux/netlink.h`). Messages and attributes are written and parsed here, strictly. No content
//! of an answer is used before its bounds are checked.

use super::{Bad, Errno};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const HEADER: usize = 16;

/// The bits of an attribute's type without the flags (`NLA_TYPE_MASK`).
const NLA_TYPE_MASK: u16 = 0x3fff;

/// The longest request.
const REQUEST_MAX: usize = 64;

/// A request that is being written. It takes no heap memory, because a bare thread may not allocate.
#[derive(Debug)]
pub(crate) struct Request {
    /// Type of the message.
    pub(crate) kind: u16,
    /// Type of its answers, where that is another.
    pub(crate) answer: u16,
    /// Whether the request is for a list.
    pub(crate) is_dump: bool,
    bytes: [u8; REQUEST_MAX],
    len: usize,
}

impl Request {
    pub(crate) fn new(kind: u16, is_dump: bool, seq: u32) -> Self {
        let flags = NLM_F_REQUEST | if is_dump { NLM_F_DUMP } else { 0 };
        let mut request =
            Self { kind, answer: kind, is_dump, bytes: [0; REQUEST_MAX], len: HEADER };
        request.bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        request.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        request.bytes[8..12].copy_from_slice(&seq.to_ne_bytes());
        request
    }

    /// Sets the type of its answers.
    pub(crate) fn answered_by(self, answer: u16) -> Self {
        Self { answer, ..self }
    }

    /// Adds one attribute, padded to four bytes.
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        let len = value.len() + 4;
        let attribute = &mut self.bytes[self.len..];
        attribute[..2].copy_from_slice(&(len as u16).to_ne_bytes());
        attribute[2..4].copy_from_slice(&kind.to_ne_bytes());
        attribute[4..len].copy_from_slice(value);
        self.len += len.next_multiple_of(4);
        self
    }

    /// The finished message.
    pub(crate) fn finish(&mut self) -> &[u8] {
        self.bytes[..4].copy_from_slice(&(self.len as u32).to_ne_bytes());
        &self.bytes[..self.len]
    }
}

/// An answer that is being written.
#[cfg(any(test, feature = "sim"))]
#[derive(Debug)]
pub(crate) struct Writer(Vec<u8>);

#[cfg(any(test, feature = "sim"))]
impl Writer {
    /// A message with an empty body.
    pub(crate) fn message(kind: u16, flags: u16, seq: u32) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&seq.to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        Self(bytes)
    }

    /// Adds one attribute, padded to four bytes.
    pub(crate) fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds bytes without an attribute around them: the errno of an answer.
    pub(crate) fn raw(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }

    /// The number of bytes so far.
    #[cfg(feature = "sim")]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The finished message.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let len = self.0.len() as u32;
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// A message that was parsed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) seq: u32,
    pub(crate) body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The errno of an `NLMSG_ERROR` or `NLMSG_DONE`; `None` means success.
    pub(crate) fn errno(&self) -> Result<Option<Errno>, Bad> {
        // The end of a successful dump may have an empty body.
        if self.kind == NLMSG_DONE && self.body.is_empty() {
            return Ok(None);
        }
        let code = self.body.first_chunk().ok_or(Bad("an errno that is cut short"))?;
        match i32::from_ne_bytes(*code) {
            0 => Ok(None),
            code @ -4095..=-1 => Ok(Some(Errno::from_raw_os_error(-code))),
            _ => Err(Bad("an errno out of range")),
        }
    }

    /// Its attributes.
    pub(crate) fn attrs(&self) -> Attrs<'a> {
        Attrs(self.body)
    }
}

/// The messages of one datagram. Ends at the first error.
#[derive(Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = take_message(self.0);
        match message {
            Ok((message, rest)) => {
                self.0 = rest;
                Some(Ok(message))
            }
            Err(bad) => {
                self.0 = &[];
                Some(Err(bad))
            }
        }
    }
}

fn take_message(bytes: &[u8]) -> Result<(Message<'_>, &[u8]), Bad> {
    const SHORT: Bad = Bad("a message that is cut short");
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(SHORT)?;
    let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let body = bytes.get(HEADER..len).ok_or(SHORT)?;
    let message = Message {
        kind: u16::from_ne_bytes([header[4], header[5]]),
        seq: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
        body,
    };
    let next = len.next_multiple_of(4).min(bytes.len());
    Ok((message, &bytes[next..]))
}

/// Attributes of a message, or nested in another attribute. Ends at the first error.
#[derive(Debug)]
pub(crate) struct Attrs<'a>(pub(crate) &'a [u8]);

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attribute<'a> {
    pub(crate) kind: u16,
    pub(crate) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    fn fixed<const N: usize>(&self) -> Result<[u8; N], Bad> {
        self.value.try_into().map_err(|_| Bad("a number of another size"))
    }

    pub(crate) fn u8(&self) -> Result<u8, Bad> {
        self.fixed().map(u8::from_ne_bytes)
    }

    pub(crate) fn u32(&self) -> Result<u32, Bad> {
        self.fixed().map(u32::from_ne_bytes)
    }

    pub(crate) fn u64(&self) -> Result<u64, Bad> {
        self.fixed().map(u64::from_ne_bytes)
    }

    /// A string: the bytes before its one NUL, at most `max` of them.
    pub(crate) fn string(&self, max: usize) -> Result<&'a [u8], Bad> {
        match self.value.split_last() {
            Some((0, text)) if text.len() <= max && !text.contains(&0) => Ok(text),
            _ => Err(Bad("a string that is too long or not ended by its one NUL")),
        }
    }

    pub(crate) fn nested(&self) -> Attrs<'a> {
        Attrs(self.value)
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = Result<Attribute<'a>, Bad>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let header = self.0.first_chunk::<4>();
        let taken = header.and_then(|header| {
            let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            let value = self.0.get(4..len)?;
            let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
            Some((Attribute { kind, value }, len))
        });
        let Some((attribute, len)) = taken else {
            self.0 = &[];
            return Some(Err(Bad("an attribute that is cut short")));
        };
        self.0 = &self.0[len.next_multiple_of(4).min(self.0.len())..];
        Some(Ok(attribute))
    }
}
