//! The drivers, by their numbers.

use super::numbered;

numbered! {
    /// The driver of a device (`enum rdma_driver_id`, `rdma/ib_user_ioctl_verbs.h`). It prints as the driver's
    /// name.
    ///
    /// ```
    /// use uverbs::DriverId;
    ///
    /// assert_eq!(DriverId::MLX5.to_raw(), 1);
    /// assert_eq!(DriverId::from_raw(1).name(), Some("mlx5"));
    /// assert_eq!(DriverId::from_raw(99).to_string(), "unknown(99)");
    /// ```
    #[doc(alias = "rdma_driver_id")]
    DriverId(u32):
    MLX5 = 1 "mlx5" "RDMA_DRIVER_MLX5",
    MLX4 = 2 "mlx4" "RDMA_DRIVER_MLX4",
    CXGB3 = 3 "cxgb3" "RDMA_DRIVER_CXGB3",
    CXGB4 = 4 "cxgb4" "RDMA_DRIVER_CXGB4",
    MTHCA = 5 "mthca" "RDMA_DRIVER_MTHCA",
    BNXT_RE = 6 "bnxt_re" "RDMA_DRIVER_BNXT_RE",
    OCRDMA = 7 "ocrdma" "RDMA_DRIVER_OCRDMA",
    NES = 8 "nes" "RDMA_DRIVER_NES",
    IRDMA = 9 "irdma" "RDMA_DRIVER_IRDMA",
    VMW_PVRDMA = 10 "vmw_pvrdma" "RDMA_DRIVER_VMW_PVRDMA",
    QEDR = 11 "qedr" "RDMA_DRIVER_QEDR",
    HNS = 12 "hns" "RDMA_DRIVER_HNS",
    USNIC = 13 "usnic" "RDMA_DRIVER_USNIC",
    RXE = 14 "rxe" "RDMA_DRIVER_RXE",
    HFI1 = 15 "hfi1" "RDMA_DRIVER_HFI1",
    QIB = 16 "qib" "RDMA_DRIVER_QIB",
    EFA = 17 "efa" "RDMA_DRIVER_EFA",
    SIW = 18 "siw" "RDMA_DRIVER_SIW",
    ERDMA = 19 "erdma" "RDMA_DRIVER_ERDMA",
    MANA = 20 "mana" "RDMA_DRIVER_MANA",
    IONIC = 21 "ionic" "RDMA_DRIVER_IONIC",
}

impl DriverId {
    /// Every driver whose number this version knows.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Self::NAMED.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_header() {
        for (raw, driver) in [(1, DriverId::MLX5), (9, DriverId::IRDMA), (14, DriverId::RXE)] {
            assert_eq!(DriverId::from_raw(raw), driver);
            assert_eq!(driver.to_raw(), raw);
        }
        for raw in [0, 22, u32::MAX] {
            assert_eq!(DriverId::from_raw(raw).name(), None);
        }
        assert_eq!(DriverId::all().count(), 21);
    }
}
