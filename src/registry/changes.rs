//! The difference of two lists.

use std::fmt;

use super::Devices;
use crate::device::Device;
use crate::ids::Name;

/// What happened to a device, as [`Devices::changes_since`] and a [`Watch`](crate::Watch) report it.
///
/// A device is an [instance](Device::instance): one that is removed never comes back, and another one that takes its
/// name or its number is a different device. So is a device after it was moved to another network namespace or back,
/// which the kernel does by removing its uverbs device and making another. In `/sys` it stays visible
/// from every namespace. In a namespace that does not own it, it is never [`Ready`](Self::Ready).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A device was added. It may not be usable yet: its node may still be missing, or not have its mode.
    #[non_exhaustive]
    Added {
        /// The device.
        device: Device,
        /// Its name in the list that found it.
        name: Name,
    },
    /// A device that was added can be opened by this process now ([`Device::check_ready`]). Only a
    /// [`Watch`](crate::Watch) reports this, once for each device. udev may rename the device right after it.
    #[non_exhaustive]
    Ready {
        /// The device.
        device: Device,
    },
    /// A device was removed. If it is still open and its driver does not disassociate, its removal waits in the
    /// kernel until it is closed.
    #[non_exhaustive]
    Removed {
        /// The device.
        device: Device,
    },
    /// A device was removed, and another one has its number.
    #[non_exhaustive]
    Replaced {
        /// The device that was removed.
        old: Device,
        /// The device that was added.
        new: Device,
        /// The new device's name in the list that found it.
        name: Name,
    },
    /// A device has another name.
    #[non_exhaustive]
    Renamed {
        /// The device.
        device: Device,
        /// Its name before.
        from: Name,
        /// Its name in the list that found it.
        to: Name,
    },
    /// Changes may be missing from those that were reported before this: a device that came and went in between is
    /// not reported. The state is right: applied to the earlier list, the changes still give the later one. Only a
    /// [`Watch`](crate::Watch) reports this.
    #[non_exhaustive]
    Resynchronised {
        /// Why.
        reason: ResyncReason,
    },
}

/// Why a [`Watch`](crate::Watch) may have missed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum ResyncReason {
    /// More uevents came than fit into the socket's buffer (`ENOBUFS`).
    Overflow,
    /// A uevent was longer than any that the kernel makes, and was cut.
    Cut,
    /// Uevents do not arrive: changes were found for which there was no event. In a container whose network
    /// namespace belongs to a user namespace of its own, the kernel sends none about verbs devices. From here on the
    /// watch looks more often by itself. This is reported once, and again if events arrive in the meantime.
    EventsMissing,
    /// There is no uevent socket, so the watch only looks from time to time. This is reported once.
    NoEvents,
}

impl ResyncReason {
    /// A stable name: `overflow`, `cut`, `events_missing`, `no_events`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Cut => "cut",
            Self::EventsMissing => "events_missing",
            Self::NoEvents => "no_events",
        }
    }
}

impl fmt::Display for ResyncReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Overflow => "uevents were lost: the socket's buffer was full",
            Self::Cut => "a uevent was cut",
            Self::EventsMissing => "uevents do not arrive",
            Self::NoEvents => "there is no uevent socket",
        })
    }
}

impl fmt::Display for Change {
    /// One line, such as `mlx5_0 (uverbs0): added`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { device, .. } => write!(f, "{device}: added"),
            Self::Ready { device } => write!(f, "{device}: ready"),
            Self::Removed { device } => write!(f, "{device}: removed"),
            Self::Replaced { old, new, .. } => write!(f, "{old}: replaced by {new}"),
            Self::Renamed { device, from, to } => {
                write!(f, "uverbs{}: renamed from {from} to {to}", device.uverbs_number())
            }
            Self::Resynchronised { reason } => write!(f, "resynchronised: {reason}"),
        }
    }
}

impl Devices {
    /// The changes that lead from an older list to this one: removals first, then replacements, renames and additions,
    /// each ordered by number. Makes no system call. Both lists have to be of the same registry.
    ///
    /// A device that came and went between the two lists is in neither, so it is not reported. A device that is there
    /// but could not be read ([`faults`](Self::faults)) counts as it was before.
    ///
    /// ```no_run
    /// # fn main() -> uverbs::Result<()> {
    /// let registry = uverbs::Registry::new(uverbs::Host::open()?);
    /// let older = registry.devices()?;
    /// for change in registry.devices()?.changes_since(&older) {
    ///     println!("{change}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn changes_since(&self, older: &Self) -> Vec<Change> {
        let (mut removed, mut replaced) = (Vec::new(), Vec::new());
        let (mut renamed, mut added) = (Vec::new(), Vec::new());
        let mut before = older.present().peekable();
        for (device, name) in self.present() {
            while let Some((gone, _)) =
                before.next_if(|(known, _)| known.uverbs_number() < device.uverbs_number())
            {
                removed.push(Change::Removed { device: gone.clone() });
            }
            let same = before.next_if(|(known, _)| known.uverbs_number() == device.uverbs_number());
            match same {
                Some((known, from)) if known == device => {
                    if from != name {
                        let (from, to) = (from.clone(), name.clone());
                        renamed.push(Change::Renamed { device: device.clone(), from, to });
                    }
                }
                Some((old, _)) => {
                    let (old, new, name) = (old.clone(), device.clone(), name.clone());
                    replaced.push(Change::Replaced { old, new, name });
                }
                None => added.push(Change::Added { device: device.clone(), name: name.clone() }),
            }
        }
        removed.extend(before.map(|(gone, _)| Change::Removed { device: gone.clone() }));
        removed.into_iter().chain(replaced).chain(renamed).chain(added).collect()
    }
}
