//! What a driver wants to be told when a context is allocated.

use std::fmt;

/// The driver of a device: `enum rdma_driver_id` (`rdma/ib_user_ioctl_verbs.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[allow(missing_docs)] // the names are the drivers' own
pub enum DriverId {
    Mlx5,
    Mlx4,
    Cxgb3,
    Cxgb4,
    Mthca,
    BnxtRe,
    Ocrdma,
    Nes,
    Irdma,
    VmwPvrdma,
    Qedr,
    Hns,
    Usnic,
    Rxe,
    Hfi1,
    Qib,
    Efa,
    Siw,
    Erdma,
    Mana,
    Ionic,
    /// One that this version does not know.
    Unknown(u32),
}

const DRIVERS: [(DriverId, &str); 21] = [
    (DriverId::Mlx5, "mlx5"),
    (DriverId::Mlx4, "mlx4"),
    (DriverId::Cxgb3, "cxgb3"),
    (DriverId::Cxgb4, "cxgb4"),
    (DriverId::Mthca, "mthca"),
    (DriverId::BnxtRe, "bnxt_re"),
    (DriverId::Ocrdma, "ocrdma"),
    (DriverId::Nes, "nes"),
    (DriverId::Irdma, "irdma"),
    (DriverId::VmwPvrdma, "vmw_pvrdma"),
    (DriverId::Qedr, "qedr"),
    (DriverId::Hns, "hns"),
    (DriverId::Usnic, "usnic"),
    (DriverId::Rxe, "rxe"),
    (DriverId::Hfi1, "hfi1"),
    (DriverId::Qib, "qib"),
    (DriverId::Efa, "efa"),
    (DriverId::Siw, "siw"),
    (DriverId::Erdma, "erdma"),
    (DriverId::Mana, "mana"),
    (DriverId::Ionic, "ionic"),
];

impl DriverId {
    /// The driver of that number.
    pub fn from_raw(raw: u32) -> Self {
        match raw.checked_sub(1).and_then(|place| DRIVERS.get(place as usize)) {
            Some((driver, _)) => *driver,
            None => Self::Unknown(raw),
        }
    }

    /// Its number.
    pub fn to_raw(self) -> u32 {
        match self {
            Self::Unknown(raw) => raw,
            known => {
                DRIVERS.iter().position(|(driver, _)| *driver == known).unwrap_or(0) as u32 + 1
            }
        }
    }

    /// Every driver of which this version knows the number.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        DRIVERS.iter().map(|(driver, _)| *driver)
    }
}

impl fmt::Display for DriverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(raw) => f.pad(&format!("unknown({raw})")),
            known => f.pad(DRIVERS[known.to_raw() as usize - 1].1),
        }
    }
}

/// The memory that always lies behind the output of GET_CONTEXT: drivers up to 7.0 write their whole
/// answer whatever length they are given.
pub(crate) const OUTPUT_ROOM: usize = 256;

/// What GET_CONTEXT is given for a driver: its input, and the length of output that it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ContextData {
    pub(crate) input: &'static [u8],
    pub(crate) output_len: u16,
}

/// The least that a driver's GET_CONTEXT accepts (its `alloc_ucontext`, Linux 6.1 to 7.3). A driver
/// that is unknown is given nothing.
pub(crate) fn context_data(driver: DriverId) -> ContextData {
    // total_num_bfregs 16, num_low_latency_bfregs 0 (rdma/mlx5-abi.h).
    const MLX5: &[u8] = &if cfg!(target_endian = "little") {
        [16, 0, 0, 0, 0, 0, 0, 0]
    } else {
        [0, 0, 0, 16, 0, 0, 0, 0]
    };
    // comp_mask: both handshake bits (rdma/efa-abi.h).
    const EFA: &[u8] = &if cfg!(target_endian = "little") {
        [3, 0, 0, 0, 0, 0, 0, 0]
    } else {
        [0, 0, 0, 3, 0, 0, 0, 0]
    };
    // rsvd32, userspace_ver 5 (rdma/irdma-abi.h).
    const IRDMA: &[u8] = &[0, 0, 0, 0, 5, 0, 0, 0];
    const ZEROS: &[u8] = &[0; 8];
    let (input, output_len) = match driver {
        DriverId::Mlx5 => (MLX5, 0),
        DriverId::Mlx4 => (&[][..], 16),
        // Less than its whole answer switches a feature off for every user of the device.
        DriverId::Cxgb4 => (&[][..], 16),
        DriverId::Mthca | DriverId::VmwPvrdma | DriverId::Siw => (&[][..], 8),
        DriverId::Ocrdma => (&[][..], 80),
        // Sixteen would select a legacy mode.
        DriverId::Irdma => (IRDMA, 80),
        DriverId::Efa => (EFA, 24),
        DriverId::Erdma => (&[][..], 40),
        DriverId::Hns => (ZEROS, 0),
        DriverId::Ionic => (ZEROS, 40),
        _ => (&[][..], 0),
    };
    ContextData { input, output_len }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_header() {
        for (raw, driver) in [(1, DriverId::Mlx5), (9, DriverId::Irdma), (14, DriverId::Rxe)] {
            assert_eq!(DriverId::from_raw(raw), driver);
            assert_eq!(driver.to_raw(), raw);
        }
        for raw in [0, 22, u32::MAX] {
            assert_eq!(DriverId::from_raw(raw), DriverId::Unknown(raw));
            assert_eq!(DriverId::from_raw(raw).to_raw(), raw);
        }
    }

    #[test]
    fn no_output_is_longer_than_the_room_behind_it() {
        for driver in DriverId::all() {
            assert!(usize::from(context_data(driver).output_len) <= OUTPUT_ROOM);
        }
    }
}
