//! Names, numbers and GUIDs as the kernel gives them, printed so that no terminal or log can be
//! misled.

use std::fmt;
use std::str::FromStr;
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

impl AsRef<[u8]> for Name {
    fn as_ref(&self) -> &[u8] {
        self.as_bytes()
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

/// A text that is no [`Guid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a GUID has 16 hexadecimal digits, such as 0002:c903:0005:1234")]
#[non_exhaustive]
pub struct ParseGuidError;

impl FromStr for Guid {
    type Err = ParseGuidError;

    /// Parses 16 hexadecimal digits, with a colon after every fourth one (`0002:c903:0005:1234`) or with no colons
    /// (`0002c90300051234`). Nothing else is accepted: no prefix, no sign, no space, no missing digit.
    fn from_str(text: &str) -> Result<Self, ParseGuidError> {
        let digits = match text.len() {
            16 => text.to_owned(),
            19 if text.split(':').all(|group| group.len() == 4) => text.replace(':', ""),
            _ => return Err(ParseGuidError),
        };
        // `from_str_radix` accepts a sign, too.
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseGuidError);
        }
        u64::from_str_radix(&digits, 16).map(Self).map_err(|_| ParseGuidError)
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

    #[test]
    fn a_guid_is_parsed_strictly() {
        let guid = Guid(0x0002_c903_0005_12af);
        for text in ["0002:c903:0005:12af", "0002c903000512af", "0002:C903:0005:12AF"] {
            assert_eq!(text.parse(), Ok(guid), "{text}");
        }
        for number in [0, 1, u64::MAX] {
            assert_eq!(Guid(number).to_string().parse(), Ok(Guid(number)));
        }
        for text in [
            "",
            "0",
            "0002:c903:0005:12a",
            "0002:c903:0005:12afb",
            "0002:c903:0005:12ag",
            "0002:c903:000512af",
            "0002:c9030:005:12af",
            ":0002:c903:0005:12a",
            "0002 c903 0005 12af",
            "+002c903000512af",
            "0x0002c903000512",
            "0x0002c903000512af",
            "-002:c903:0005:12af",
            " 0002c903000512af",
            "0002c903000512af\n",
            "0002:c903:0005:12\u{e9}",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(ParseGuidError), "{text:?}");
        }
    }

    #[test]
    fn a_name_is_bytes_where_bytes_are_wanted() {
        fn bytes(name: impl AsRef<[u8]>) -> Vec<u8> {
            name.as_ref().to_owned()
        }
        let name = Name::new(b"rx\xffe0");
        assert_eq!(bytes(&name), b"rx\xffe0");
        assert_eq!(bytes(name), b"rx\xffe0");
    }
}
