//! The providers of rdma-core, as far as opening a device goes.

use std::ops::RangeInclusive;

use super::{Match, pci};
use crate::ids::DriverId;

/// A built-in provider: how it is recognised, and its driver and ABI versions.
pub(super) struct BuiltIn {
    pub(super) name: &'static str,
    pub(super) driver: DriverId,
    /// The kernel reports the driver id of its devices.
    pub(super) by_driver: bool,
    pub(super) abi_versions: RangeInclusive<u32>,
    pub(super) functions: pci::Functions,
    /// Patterns of the device's name and its parent's modalias.
    pub(super) device_name: Option<&'static str>,
    pub(super) modalias: Option<&'static str>,
}

/// The driver's part of GET_CONTEXT: its input, and the length of its output in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DriverData {
    pub(crate) input: &'static [u8],
    pub(crate) output_len: u16,
}

const fn built_in(
    name: &'static str,
    driver: DriverId,
    abi_versions: RangeInclusive<u32>,
    functions: pci::Functions,
) -> BuiltIn {
    BuiltIn {
        name,
        driver,
        by_driver: true,
        abi_versions,
        functions,
        device_name: None,
        modalias: None,
    }
}

/// The largest version that a provider without a limit accepts.
const ANY: u32 = i32::MAX as u32;

/// The built-in providers. The kernel reports no driver id for devices of mthca and hns.
pub(super) static ALL: [BuiltIn; 18] = [
    built_in("bnxt_re", DriverId::BNXT_RE, 1..=1, pci::BNXT_RE),
    built_in("cxgb4", DriverId::CXGB4, 0..=ANY, pci::CXGB4),
    built_in("efa", DriverId::EFA, 1..=1, pci::EFA),
    built_in("erdma", DriverId::ERDMA, 0..=1, pci::ERDMA),
    built_in("hfi1verbs", DriverId::HFI1, 0..=ANY, pci::HFI1),
    BuiltIn { by_driver: false, ..built_in("hns", DriverId::HNS, 0..=ANY, pci::HNS) },
    built_in("ionic", DriverId::IONIC, 1..=1, &[]),
    built_in("ipathverbs", DriverId::QIB, 0..=ANY, pci::QIB),
    built_in("irdma", DriverId::IRDMA, 0..=5, pci::IRDMA),
    built_in("mana", DriverId::MANA, 1..=1, &[]),
    BuiltIn {
        // A PCI function that Hyper-V passes through has its own bus for a parent.
        modalias: Some("vmbus:3daf2e8ca732094bab99bd1f1c86b501"),
        ..built_in("mlx4", DriverId::MLX4, 2..=4, pci::MLX4)
    },
    built_in("mlx5", DriverId::MLX5, 1..=1, pci::MLX5),
    BuiltIn { by_driver: false, ..built_in("mthca", DriverId::MTHCA, 0..=1, pci::MTHCA) },
    built_in("ocrdma", DriverId::OCRDMA, 2..=2, pci::OCRDMA),
    built_in("qedr", DriverId::QEDR, 8..=8, pci::QEDR),
    BuiltIn { device_name: Some("*rxe*"), ..built_in("rxe", DriverId::RXE, 1..=2, &[]) },
    built_in("siw", DriverId::SIW, 1..=1, &[]),
    built_in("vmw_pvrdma", DriverId::VMW_PVRDMA, 3..=3, pci::PVRDMA),
];

impl BuiltIn {
    pub(super) fn matches(&self) -> impl Iterator<Item = Match> {
        let driver = self.by_driver.then_some(Match::Driver(self.driver));
        let functions = self.functions.iter().flat_map(|(vendor, devices)| {
            devices.iter().map(|device| Match::Pci(*vendor, *device))
        });
        let name = self.device_name.map(|pattern| Match::Name(pattern.into()));
        let modalias = self.modalias.map(|pattern| Match::Modalias(pattern.into()));
        driver.into_iter().chain(name).chain(modalias).chain(functions)
    }
}

/// The least that a driver's GET_CONTEXT accepts (its `alloc_ucontext`, Linux 6.1 to 7.3;
/// `audits/providers.md`). An unknown driver gets no data.
pub(crate) fn data_of(driver: DriverId) -> DriverData {
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
        DriverId::MLX5 => (MLX5, 0),
        DriverId::MLX4 => (&[][..], 16),
        // Less than its whole answer switches a feature off for every user of the device.
        DriverId::CXGB4 => (&[][..], 16),
        DriverId::MTHCA | DriverId::VMW_PVRDMA | DriverId::SIW => (&[][..], 8),
        DriverId::OCRDMA => (&[][..], 80),
        // Sixteen would select a legacy mode.
        DriverId::IRDMA => (IRDMA, 80),
        DriverId::EFA => (EFA, 24),
        DriverId::ERDMA => (&[][..], 40),
        DriverId::HNS => (ZEROS, 0),
        DriverId::IONIC => (ZEROS, 40),
        _ => (&[][..], 0),
    };
    DriverData { input, output_len }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_output_is_longer_than_the_room_behind_it() {
        for driver in DriverId::all() {
            assert!(usize::from(data_of(driver).output_len) <= crate::verbs::OUTPUT_ROOM);
        }
    }

    #[test]
    fn every_provider_is_recognised_by_something() {
        for provider in &ALL {
            assert!(provider.matches().next().is_some(), "{}", provider.name);
            // The kernel reports no driver id for these two.
            let by_driver = !matches!(provider.driver, DriverId::MTHCA | DriverId::HNS);
            let matches = |wanted| provider.matches().any(|found| found == wanted);
            assert_eq!(matches(Match::Driver(provider.driver)), by_driver, "{}", provider.name);
        }
        let functions = ALL.iter().flat_map(BuiltIn::matches);
        let functions = functions.filter(|found| matches!(found, Match::Pci(..)));
        assert_eq!(functions.count(), 274);
    }
}
