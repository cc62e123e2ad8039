//! The drivers, by their numbers.

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
}
