//! Passing a context on to another process: the descriptor, and beside it what its sender claims of it.

use std::fmt;
use std::os::fd::OwnedFd;

use super::Context;
use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::evidence::Value;
use crate::ids::{DeviceNumber, DriverId, Guid};
use crate::kernel::Handle;
use crate::open;

/// What a sender says of the context that it passes on ([`Context::claim`]): which instance it proved the
/// descriptor to be on, and under which numbers the kernel lists the context.
///
/// It goes beside the descriptor, as [bytes](Self::to_bytes), and is believed as far as
/// [`Context::from_fd`] says. It holds nothing secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ContextClaim {
    /// GUID of the node.
    pub node_guid: Guid,
    /// Inode number of the uverbs directory, which no other device has until the next boot.
    pub ino: u64,
    /// Device number of the node.
    pub device_number: DeviceNumber,
    /// The driver, which every command has to name.
    pub driver: DriverId,
    /// Index of the device in RDMA netlink.
    pub index: u32,
    /// The number under which the kernel lists the context there (`RDMA_NLDEV_ATTR_RES_CTXN`).
    pub context_number: u32,
    /// Number of completion vectors.
    pub completion_vectors: u32,
}

impl ContextClaim {
    /// How many bytes it takes.
    pub const LEN: usize = 48;
    /// The first four, which say what it is, in which version.
    const MAGIC: [u8; 4] = *b"UVC1";

    /// As bytes, of one form on all machines.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&Self::MAGIC);
        let DeviceNumber { major, minor } = self.device_number;
        let words = [
            self.driver.to_raw(),
            major,
            minor,
            self.index,
            self.context_number,
            self.completion_vectors,
        ];
        for (place, word) in bytes[4..28].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[32..40].copy_from_slice(&self.node_guid.0.to_le_bytes());
        bytes[40..].copy_from_slice(&self.ino.to_le_bytes());
        bytes
    }

    /// The reverse of [`to_bytes`](Self::to_bytes).
    ///
    /// # Errors
    /// `Malformed`, when these are not such bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let malformed = |what: &str| Error::new(ErrorKind::Malformed, format!("a claim: {what}"));
        let bytes: &[u8; Self::LEN] =
            bytes.try_into().map_err(|_| malformed("of another length than 48 bytes"))?;
        if bytes[..4] != Self::MAGIC || bytes[28..32] != [0; 4] {
            return Err(malformed("of another kind or version"));
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        Ok(Self {
            driver: DriverId::from_raw(word(4)),
            device_number: (word(8), word(12)).into(),
            index: word(16),
            context_number: word(20),
            completion_vectors: word(24),
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
    /// What to send beside the descriptor, so that its receiver can check it with
    /// [`from_fd`](Self::from_fd).
    ///
    /// # Errors
    /// `Removed` when the device is gone.
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

    /// Takes over a context that another process opened, and passed on with `SCM_RIGHTS` (`unix(7)`) or over a
    /// fork. The descriptor is proved to be bound to `device`, by the same proof as in
    /// [`Device::verify`](Device::verify), and by what the kernel shows to this process alone.
    ///
    /// The claim proves nothing. It is compared with what is found, so that a mix-up of descriptors has a clear
    /// error. Only [`completion_vectors`](Self::completion_vectors) is the sender's word: the kernel reports that
    /// number to nobody but the process that allocates the context.
    ///
    /// A sandboxed process needs what `verify` needs: `openat2` beneath its [`Host`](crate::Host)'s directories,
    /// and the netlink socket.
    ///
    /// # Errors
    /// `Replaced` when the claim is about another instance than `device`; `NodeMismatch` when it names another
    /// index or another context than the descriptor's; those of [`Device::verify`]. The descriptor is closed then.
    pub fn from_fd(device: &Device, fd: OwnedFd, claim: &ContextClaim) -> Result<Self> {
        let compare = |what, kind, expected: u64, found: u64| {
            let (expected, found) = (Value::Number(expected), Value::Number(found));
            if expected == found {
                return Ok(());
            }
            Err(Error::differs(kind, what, expected, found).of(|| device.to_string()))
        };
        let what = "uverbs directory (inode), in the claim";
        compare(what, ErrorKind::Replaced, device.0.ino, claim.ino)?;
        let (cmd, evidence, witness) = open::adopt(device, Handle::Real(fd))?;
        let guid = cmd.query_device()?.node_guid;
        compare("node GUID, in the claim", ErrorKind::NodeMismatch, guid.0, claim.node_guid.0)?;
        for (what, found, claimed) in [
            ("netlink index, in the claim", evidence.index(), claim.index),
            ("context number, in the claim", evidence.context_number(), claim.context_number),
        ] {
            if let Some(found) = found {
                compare(what, ErrorKind::NodeMismatch, found.into(), claimed.into())?;
            }
        }
        let _ = cmd.completion_vectors.set(claim.completion_vectors);
        Ok(Self::new(cmd, evidence, witness))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn claims_come_back(words: [u32; 6], guid: u64, ino: u64) {
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
        fn any_bytes_are_an_error_or_a_claim(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(claim) = ContextClaim::from_bytes(&bytes) {
                prop_assert_eq!(&claim.to_bytes()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn another_kind_or_version_is_refused() {
        let mut bytes = [0; ContextClaim::LEN];
        bytes[..4].copy_from_slice(&ContextClaim::MAGIC);
        ContextClaim::from_bytes(&bytes).expect("a claim");
        for at in [0, 3, 28, 31] {
            bytes[at] ^= 1;
            let error = ContextClaim::from_bytes(&bytes).expect_err("not this one");
            assert_eq!(error.kind(), ErrorKind::Malformed, "byte {at}");
            bytes[at] ^= 1;
        }
    }
}
