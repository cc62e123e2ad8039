//! The rate of a port.

use std::fmt;

use crate::ids::numbered;

numbered! {
    /// The number of lanes of a link (`enum ib_port_width`). The numbers are bits, so their order differs from that
    /// of the [lanes](Self::lanes).
    #[doc(alias = "ibv_port_width")]
    #[doc(alias = "active_width")]
    LinkWidth(u8):
    X1 = 1 "1X" "IB_WIDTH_1X",
    X4 = 2 "4X" "IB_WIDTH_4X",
    X8 = 4 "8X" "IB_WIDTH_8X",
    X12 = 8 "12X" "IB_WIDTH_12X",
    X2 = 16 "2X" "IB_WIDTH_2X",
}

numbered! {
    /// The speed of one lane (`enum ib_port_speed`).
    #[doc(alias = "ibv_port_speed")]
    #[doc(alias = "active_speed")]
    LinkSpeed(u32):
    SDR = 1 "SDR" "IB_SPEED_SDR",
    DDR = 2 "DDR" "IB_SPEED_DDR",
    QDR = 4 "QDR" "IB_SPEED_QDR",
    FDR10 = 8 "FDR10" "IB_SPEED_FDR10",
    FDR = 16 "FDR" "IB_SPEED_FDR",
    EDR = 32 "EDR" "IB_SPEED_EDR",
    HDR = 64 "HDR" "IB_SPEED_HDR",
    NDR = 128 "NDR" "IB_SPEED_NDR",
    XDR = 256 "XDR" "IB_SPEED_XDR",
}

impl LinkWidth {
    /// The number of lanes, 1 to 12; `None` for a number without a name.
    pub const fn lanes(self) -> Option<u32> {
        Some(match self {
            Self::X1 => 1,
            Self::X2 => 2,
            Self::X4 => 4,
            Self::X8 => 8,
            Self::X12 => 12,
            _ => return None,
        })
    }
}

impl LinkSpeed {
    /// The speed in Mb/s, as sysfs counts it (14,000 for FDR); `None` for a number without a name.
    pub const fn megabits_per_second(self) -> Option<u32> {
        Some(match self {
            Self::SDR => 2_500,
            Self::DDR => 5_000,
            Self::QDR | Self::FDR10 => 10_000,
            Self::FDR => 14_000,
            Self::EDR => 25_000,
            Self::HDR => 50_000,
            Self::NDR => 100_000,
            Self::XDR => 200_000,
            _ => return None,
        })
    }
}

/// The rate of a port: the speed of one lane times the number of lanes, both of them known.
///
/// It prints as the sysfs attribute `rate` does (`rate_show`, `drivers/infiniband/core/sysfs.c`).
///
/// ```
/// use uverbs::{LinkSpeed, LinkWidth, PortRate};
///
/// let rate = PortRate::new(LinkWidth::X4, LinkSpeed::EDR).expect("both have names");
/// assert_eq!(rate.megabits_per_second(), 100_000);
/// assert_eq!(rate.to_string(), "100 Gb/sec (4X EDR)");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRate {
    width: LinkWidth,
    speed: LinkSpeed,
    megabits: u32,
}

impl PortRate {
    /// The rate of that many lanes of that speed; `None` if one of the two is a number without a name.
    pub const fn new(width: LinkWidth, speed: LinkSpeed) -> Option<Self> {
        match (width.lanes(), speed.megabits_per_second()) {
            (Some(lanes), Some(lane)) => Some(Self { width, speed, megabits: lanes * lane }),
            _ => None,
        }
    }

    /// The number of lanes.
    pub const fn width(self) -> LinkWidth {
        self.width
    }

    /// The speed of one lane.
    pub const fn speed(self) -> LinkSpeed {
        self.speed
    }

    /// The rate of all lanes in Mb/s, 2,500 to 2,400,000.
    pub const fn megabits_per_second(self) -> u32 {
        self.megabits
    }
}

impl fmt::Display for PortRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gigabits = f64::from(self.megabits) / 1000.0;
        f.pad(&format!("{gigabits} Gb/sec ({} {})", self.width, self.speed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_prints_as_sysfs_prints_it() {
        for (width, speed, megabits, text) in [
            (LinkWidth::X1, LinkSpeed::SDR, 2_500, "2.5 Gb/sec (1X SDR)"),
            (LinkWidth::X4, LinkSpeed::SDR, 10_000, "10 Gb/sec (4X SDR)"),
            (LinkWidth::X4, LinkSpeed::FDR10, 40_000, "40 Gb/sec (4X FDR10)"),
            (LinkWidth::X4, LinkSpeed::FDR, 56_000, "56 Gb/sec (4X FDR)"),
            (LinkWidth::X2, LinkSpeed::HDR, 100_000, "100 Gb/sec (2X HDR)"),
            (LinkWidth::X12, LinkSpeed::XDR, 2_400_000, "2400 Gb/sec (12X XDR)"),
        ] {
            let rate = PortRate::new(width, speed).expect("known");
            assert_eq!((rate.megabits_per_second(), rate.to_string()), (megabits, text.to_owned()));
        }
    }

    #[test]
    fn an_unknown_width_or_speed_has_no_rate() {
        assert_eq!(PortRate::new(LinkWidth::from_raw(3), LinkSpeed::EDR), None);
        assert_eq!(PortRate::new(LinkWidth::X4, LinkSpeed::from_raw(512)), None);
    }

    #[test]
    fn every_named_width_and_speed_counts() {
        assert!(LinkWidth::NAMED.iter().all(|width| width.lanes().is_some()));
        let speeds = LinkSpeed::NAMED.iter().map(|speed| speed.megabits_per_second());
        assert!(speeds.is_sorted() && LinkSpeed::SDR.megabits_per_second().is_some());
    }
}
