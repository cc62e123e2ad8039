//! Passing a context on to another process: the descriptor, and the sender's claim with it.

use std::fmt;
use std::os::fd::OwnedFd;

use super::Context;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Value;
use crate::ids::{DeviceNumber, DriverId, Guid};
use crate::kernel::Handle;
use crate::open;

/// A sender's description of the context that it passes on ([`Context::claim`]): the instance that it proved the
/// descriptor to be on, and the numbers under which the kernel lists the context.
///
/// The sender sends it beside the descriptor, as [bytes](Self::to_bytes). [`Context::from_fd`] describes how far the
/// receiver trusts it. It holds nothing secret.
///
/// ```no_run
/// use uverbs::{Context, ContextClaim};
///
/// # fn main() -> uverbs::Result<()> {
/// # let (ours, theirs): (Context, uverbs::Device) = unimplemented!();
/// # let received: std::os::fd::OwnedFd = unimplemented!();
/// // The broker sends these bytes, with the descriptor as SCM_RIGHTS.
/// let bytes = ours.claim()?.to_bytes();
///
/// // The worker proves the descriptor that it received.
/// let claim = ContextClaim::from_bytes(&bytes)?;
/// let context = Context::from_fd(&theirs, received, &claim)?;
/// # Ok(())
/// # }
/// ```
///
/// # Its bytes
/// Version 1.0 has 64 bytes. Numbers are little-endian on all machines.
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 4 | `UVBC` |
/// | 4 | 1 | major version, 1 |
/// | 5 | 1 | minor version, 0 |
/// | 6 | 2 | length of the whole claim in bytes, 64 |
/// | 8 | 4 | [`driver`](Self::driver) |
/// | 12 | 4 | [`device_number`](Self::device_number), major |
/// | 16 | 4 | [`device_number`](Self::device_number), minor |
/// | 20 | 4 | [`index`](Self::index) |
/// | 24 | 4 | [`context_number`](Self::context_number) |
/// | 28 | 4 | [`completion_vectors`](Self::completion_vectors) |
/// | 32 | 8 | [`node_guid`](Self::node_guid) |
/// | 40 | 8 | [`ino`](Self::ino) |
/// | 48 | 16 | reserved, 0 |
///
/// A later minor version may use the reserved bytes and add fields at the end, up to [`MAX_LEN`](Self::MAX_LEN). It
/// changes no field that is here. A receiver ignores what a newer minor version added, and refuses another major
/// version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ContextClaim {
    /// GUID of the node.
    pub node_guid: Guid,
    /// Inode number of the uverbs directory, which no other device gets until the next boot.
    pub ino: u64,
    /// Device number of the node.
    pub device_number: DeviceNumber,
    /// The driver id, which every command carries.
    pub driver: DriverId,
    /// Index of the device in RDMA netlink.
    pub index: u32,
    /// The number under which the kernel lists the context there (`RDMA_NLDEV_ATTR_RES_CTXN`).
    pub context_number: u32,
    /// Number of completion vectors.
    pub completion_vectors: u32,
}

impl ContextClaim {
    /// The maximum length of a claim of this major version, in bytes: a buffer of this size can receive any of
    /// them.
    pub const MAX_LEN: usize = 256;
    /// The length of version 1.0, and the minimum for every minor version.
    const LEN: usize = 64;
    const MAGIC: [u8; 4] = *b"UVBC";
    const MAJOR: u8 = 1;
    const MINOR: u8 = 0;
    /// The offset where the header ends and the fields begin.
    const HEADER: usize = 8;
    /// The offset where the fields of version 1.0 end.
    const RESERVED: usize = 48;

    /// The claim as bytes, in the layout above.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::LEN);
        bytes.extend(Self::MAGIC);
        bytes.extend([Self::MAJOR, Self::MINOR]);
        bytes.extend((Self::LEN as u16).to_le_bytes());
        let DeviceNumber { major, minor } = self.device_number;
        for word in [
            self.driver.to_raw(),
            major,
            minor,
            self.index,
            self.context_number,
            self.completion_vectors,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(self.node_guid.0.to_le_bytes());
        bytes.extend(self.ino.to_le_bytes());
        bytes.resize(Self::LEN, 0);
        bytes
    }

    /// Parses a claim of this or a newer minor version. The reverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// `Malformed` if the bytes are not a claim, have another major version, or are not the whole claim.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let malformed = |what: String| Error::new(ErrorKind::Malformed, format!("a claim: {what}"));
        let Some((&[m0, m1, m2, m3, major, minor, l0, l1], _)) =
            bytes.split_first_chunk::<{ Self::HEADER }>()
        else {
            return Err(malformed(format!("{} bytes are too few for its header", bytes.len())));
        };
        if [m0, m1, m2, m3] != Self::MAGIC {
            return Err(malformed("it does not begin with UVBC".to_owned()));
        }
        if major != Self::MAJOR {
            let text = format!("version {major}.{minor} is not understood, only 1.x is");
            return Err(malformed(text));
        }
        let len = usize::from(u16::from_le_bytes([l0, l1]));
        if len != bytes.len() {
            return Err(malformed(format!("its length is {len}, but there are {}", bytes.len())));
        }
        let lens =
            if minor == Self::MINOR { Self::LEN..=Self::LEN } else { Self::LEN..=Self::MAX_LEN };
        if !lens.contains(&len) {
            return Err(malformed(format!("version {major}.{minor} does not have {len} bytes")));
        }
        if minor == Self::MINOR && bytes[Self::RESERVED..].iter().any(|byte| *byte != 0) {
            return Err(malformed("reserved bytes are not 0".to_owned()));
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Ok(Self {
            driver: DriverId::from_raw(word(8)),
            device_number: (word(12), word(16)).into(),
            index: word(20),
            context_number: word(24),
            completion_vectors: word(28),
            node_guid: Guid(long(32)),
            ino: long(40),
        })
    }
}

impl fmt::Display for ContextClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "context {} of index {}", self.context_number, self.index)
    }
}

impl Context {
    /// Makes the claim to send beside the descriptor. The receiver passes it to [`from_fd`](Self::from_fd).
    ///
    /// # Errors
    /// `Removed` if the device is gone.
    pub fn claim(&self) -> Result<ContextClaim> {
        let unproven = || Error::new(ErrorKind::Unproven, "the context was never listed");
        Ok(ContextClaim {
            node_guid: self.query_device()?.node_guid,
            ino: self.device().instance().ino,
            device_number: self.device().device_number(),
            driver: self.driver_id(),
            index: self.evidence().index().ok_or_else(unproven)?,
            context_number: self.evidence().context_number().ok_or_else(unproven)?,
            completion_vectors: self.completion_vectors(),
        })
    }

    /// Takes over a context that another process opened and passed on, with `SCM_RIGHTS` (`unix(7)`) or over a
    /// fork. The same proof as in [`Device::verify`] shows that the descriptor is bound to `device`. It uses only
    /// what the kernel shows to this process.
    ///
    /// The claim proves nothing. It is compared with the facts found, so that a mix-up of descriptors has a clear
    /// error. Only [`completion_vectors`](Self::completion_vectors) is taken from the claim, because the kernel
    /// reports that number only to the process that allocates the context.
    ///
    /// A sandboxed process needs the same access as for `verify`: `openat2` beneath its [`Host`](crate::Host)'s
    /// directories, and the netlink socket.
    ///
    /// # Errors
    /// `Replaced` if the claim is about another instance than `device`. `NodeMismatch` if it names another index or
    /// another context than the descriptor's. The errors of [`Device::verify`]. The descriptor is closed then.
    pub fn from_fd(device: &Device, fd: OwnedFd, claim: &ContextClaim) -> Result<Self> {
        let compare = |what, kind, expected: u64, found: u64| {
            let (expected, found) = (Value::Number(expected), Value::Number(found));
            if expected == found {
                return Ok(());
            }
            Err(Error::differs(kind, what, expected, found).of(|| device.to_string()))
        };
        let what = "uverbs directory inode, in the claim";
        compare(what, ErrorKind::Replaced, device.0.ino, claim.ino)?;
        let (cmd, evidence, witness) = open::adopt(device, Handle::Real(fd))?;
        let guid = cmd.node_guid().map_err(|error| error.of(|| device.to_string()))?;
        compare("node GUID, in the claim", ErrorKind::NodeMismatch, guid.0, claim.node_guid.0)?;
        for (what, found, claimed) in [
            ("netlink index, in the claim", evidence.index(), claim.index),
            ("context number, in the claim", evidence.context_number(), claim.context_number),
        ] {
            if let Some(found) = found {
                compare(what, ErrorKind::NodeMismatch, found.into(), claimed.into())?;
            }
        }
        cmd.set_completion_vectors(claim.completion_vectors);
        Ok(Self::new((cmd, None, evidence), device, witness))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLAIM: ContextClaim = ContextClaim {
        node_guid: Guid(0x0002_c903_0005_1234),
        ino: 0x1122_3344_5566_7788,
        device_number: DeviceNumber { major: 231, minor: 192 },
        driver: DriverId::RXE,
        index: 0x0a0b_0c0d,
        context_number: 5,
        completion_vectors: 6,
    };

    proptest! {
        #[test]
        fn claims_round_trip(words: [u32; 6], guid: u64, ino: u64) {
            let [driver, major, minor, index, context_number, completion_vectors] = words;
            let claim = ContextClaim {
                node_guid: Guid(guid),
                ino,
                device_number: (major, minor).into(),
                driver: DriverId::from_raw(driver),
                index,
                context_number,
                completion_vectors,
            };
            prop_assert_eq!(ContextClaim::from_bytes(&claim.to_bytes()).expect("a claim"), claim);
        }

        #[test]
        fn any_bytes_are_an_error_or_a_claim(
            version in prop::option::of((any::<bool>(), 48usize..300)),
            mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            // Most of them have a valid header, so that the rest is parsed, too.
            if let Some((is_newer, len)) = version {
                bytes.resize(len, 0);
                bytes[..6].copy_from_slice(&[b'U', b'V', b'B', b'C', 1, u8::from(is_newer)]);
                bytes[6..8].copy_from_slice(&(len as u16).to_le_bytes());
            }
            if let Ok(claim) = ContextClaim::from_bytes(&bytes) {
                prop_assert_eq!(&claim.to_bytes()[8..48], &bytes[8..48]);
                prop_assert!((64..=ContextClaim::MAX_LEN).contains(&bytes.len()));
            }
        }
    }

    /// The table of the documentation, byte by byte: a claim that was sent once stays readable as long as the major
    /// version is 1.
    #[test]
    fn the_layout_is_that_of_the_documentation() {
        let bytes = [
            &b"UVBC"[..],
            &[1, 0, 64, 0],
            &[14, 0, 0, 0],
            &[231, 0, 0, 0],
            &[192, 0, 0, 0],
            &[0x0d, 0x0c, 0x0b, 0x0a],
            &[5, 0, 0, 0],
            &[6, 0, 0, 0],
            &[0x34, 0x12, 0x05, 0x00, 0x03, 0xc9, 0x02, 0x00],
            &[0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11],
            &[0; 16],
        ]
        .concat();
        assert_eq!(CLAIM.to_bytes(), bytes);
        assert_eq!(ContextClaim::from_bytes(&bytes).expect("a claim"), CLAIM);
    }

    #[test]
    fn additions_of_a_newer_minor_version_are_ignored() {
        for (minor, len) in [(1, 64), (1, 72), (255, ContextClaim::MAX_LEN)] {
            let mut bytes = CLAIM.to_bytes();
            bytes[48..].fill(0xff);
            bytes.resize(len, 0xff);
            bytes[5] = minor;
            bytes[6..8].copy_from_slice(&(len as u16).to_le_bytes());
            assert_eq!(ContextClaim::from_bytes(&bytes).expect("a claim"), CLAIM, "1.{minor}");
        }
    }

    #[test]
    fn an_incomplete_or_foreign_claim_is_refused() {
        let refused = |change: &dyn Fn(&mut Vec<u8>), reason: &str| {
            let mut bytes = CLAIM.to_bytes();
            change(&mut bytes);
            let error = ContextClaim::from_bytes(&bytes).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
            assert!(error.to_string().contains(reason), "{error}");
        };
        refused(&|bytes| bytes.clear(), "0 bytes are too few");
        refused(&|bytes| bytes.truncate(7), "7 bytes are too few");
        refused(&|bytes| bytes[0] = b'u', "UVBC");
        refused(&|bytes| bytes[3] = b'1', "UVBC");
        refused(&|bytes| bytes[4] = 0, "version 0.0");
        refused(&|bytes| bytes[4..6].copy_from_slice(&[2, 3]), "version 2.3");
        // Cut, or with something behind it.
        refused(&|bytes| bytes.truncate(63), "there are 63");
        refused(&|bytes| bytes.push(0), "there are 65");
        refused(&|bytes| bytes[6] = 65, "its length is 65");
        for (minor, len) in [(0, 63), (0, 65), (1, 63), (1, ContextClaim::MAX_LEN + 1)] {
            let change = |bytes: &mut Vec<u8>| {
                bytes.resize(len, 0);
                bytes[5] = minor;
                bytes[6..8].copy_from_slice(&(len as u16).to_le_bytes());
            };
            refused(&change, &format!("does not have {len} bytes"));
        }
        for at in [48, 63] {
            refused(&|bytes| bytes[at] = 1, "reserved");
        }
    }
}
