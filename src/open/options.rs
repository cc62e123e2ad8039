//! What a caller may demand of an open, or allow it.

/// How to open a device. The default is that of [`Device::open`](crate::Device::open).
///
/// ```no_run
/// use uverbs::OpenOptions;
///
/// # fn main() -> uverbs::Result<()> {
/// # let device: uverbs::Device = unimplemented!();
/// let opened = OpenOptions::new().strict_timestamps(true).open(&device)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct OpenOptions {
    pub(super) strict_timestamps: bool,
    pub(super) allow_unproven: bool,
}

impl OpenOptions {
    /// The default options.
    pub fn new() -> Self {
        Self::default()
    }

    /// Demands that the timestamp of the device's `ibdev` attribute has not moved since the last list that looked at
    /// the device. If it has, the open is refused as `Replaced`.
    ///
    /// The kernel also moves it when it drops the inode from its cache, so this refuses devices that were not
    /// replaced. The next list takes the new timestamp over, and a further open goes by that.
    pub fn strict_timestamps(mut self, yes: bool) -> Self {
        self.strict_timestamps = yes;
        self
    }

    /// Opens the device also where it cannot be proved to be the right one, as
    /// [`Device::open_allow_unproven`](crate::Device::open_allow_unproven) does.
    pub fn allow_unproven(mut self, yes: bool) -> Self {
        self.allow_unproven = yes;
        self
    }

    pub(crate) fn is_unproven_allowed(&self) -> bool {
        self.allow_unproven
    }
}
