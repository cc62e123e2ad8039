//! Device names, printed so that they cannot mislead a terminal or a log.

use std::fmt;
use std::sync::Arc;

/// A name that the kernel reports, such as the name of a device.
///
/// That of a device has 1 to 63 bytes. They may be any bytes except NUL, because a process with `CAP_NET_ADMIN` may
/// rename a device to `..`, `a/b` or a line feed.
///
/// It prints escaped ([`u8::escape_ascii`]); [`as_bytes`](Self::as_bytes) returns the raw bytes. A name is display
/// text, never an identity. Clones share the bytes.
///
/// ```no_run
/// # let device: uverbs::Device = unimplemented!();
/// let name = device.name();
/// println!("{name}");
/// assert!(name == "mlx5_0" || name.as_bytes() != b"mlx5_0");
/// ```
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_prints_escaped() {
        let name = Name::new(b"rx\n\xff\x1b[31m");
        assert_eq!(name.to_string(), r"rx\n\xff\x1b[31m");
        assert_eq!(format!("{name:?}"), r#""rx\n\xff\x1b[31m""#);
        assert_eq!(format!("{:>8}", Name::new(b"rxe0")), "    rxe0");
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
