//! Device numbers.

use std::fmt;

/// A device number (`dev_t`): the device that a character device node leads to.
///
/// ```
/// let number = uverbs::DeviceNumber::from((231, 192));
/// assert_eq!(number.to_string(), "231:192");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[doc(alias = "dev_t")]
#[allow(clippy::exhaustive_structs)] // a device number has exactly these two parts
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
