//! Names, numbers and GUIDs as the kernel gives them, printed so that no terminal or log can be
//! misled.

use std::fmt;
use std::sync::Arc;

/// The name of a device, as the kernel gave it: up to 63 bytes, and any bytes at all, because
/// `CAP_NET_ADMIN` may rename a device to `..`, `a/b` or a line feed.
///
/// It prints escaped ([`u8::escape_ascii`]); [`as_bytes`](Self::as_bytes) has the bytes. A name is
/// display text, never an identity. Clones share the bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<[u8]>);

impl Name {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    /// The bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.escape_ascii().to_string())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        *self.0 == *other.as_bytes()
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

/// A device number (`dev_t`): what a character device node leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Major number, 231 for the first 32 uverbs devices.
    pub major: u32,
    /// Minor number, 192 for uverbs0.
    pub minor: u32,
}

impl From<(u32, u32)> for DeviceNumber {
    fn from((major, minor): (u32, u32)) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}:{}", self.major, self.minor))
    }
}

/// A globally unique identifier of a node (EUI-64), as a number in host byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    /// As sysfs prints it: `0002:c903:0005:1234`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (self.0 >> shift) & 0xffff);
        f.pad(&format!("{a:04x}:{b:04x}:{c:04x}:{d:04x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_prints_escaped() {
        let name = Name::new(b"rx\n\xff\x1b[31m");
        assert_eq!(name.to_string(), r"rx\n\xff\x1b[31m");
        assert_eq!(format!("{:>8}", Name::new(b"rxe0")), "    rxe0");
    }

    #[test]
    fn a_guid_prints_as_sysfs_prints_it() {
        assert_eq!(Guid(0x0002_c903_0005_1234).to_string(), "0002:c903:0005:1234");
    }
}
