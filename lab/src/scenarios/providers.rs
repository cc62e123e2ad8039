//! The test HCA poses as each driver. The data of the provider has to arrive.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};

use anyhow::{Result, ensure};
use uverbs::{
    Allocation, DeviceProvider, DriverId, ErrorKind, Host, Match, MatchedBy, PinnedView, Provider,
    Registry,
};

use super::expect::{listed, opened, refused, registry};
use crate::guest;

/// For each driver: an ABI that its provider knows, and the input and the length of output that GET_CONTEXT must be
/// given. Written down independently of the library's own table.
const DRIVERS: [(u32, &str, u32, &str, &str); 21] = [
    (1, "mlx5", 1, "1000000000000000", "0"),
    (2, "mlx4", 4, "", "16"),
    (3, "-", 1, "", "0"),
    (4, "cxgb4", 9, "", "16"),
    (5, "mthca", 1, "", "8"),
    (6, "bnxt_re", 1, "", "0"),
    (7, "ocrdma", 2, "", "80"),
    (8, "-", 1, "", "0"),
    (9, "irdma", 5, "0000000005000000", "80"),
    (10, "vmw_pvrdma", 3, "", "8"),
    (11, "qedr", 8, "", "0"),
    (12, "hns", 1, "0000000000000000", "0"),
    (13, "-", 1, "", "0"),
    (14, "rxe", 2, "", "0"),
    (15, "hfi1verbs", 6, "", "0"),
    (16, "ipathverbs", 2, "", "0"),
    (17, "efa", 1, "0300000000000000", "24"),
    (18, "siw", 1, "", "8"),
    (19, "erdma", 1, "", "40"),
    (20, "mana", 1, "", "0"),
    (21, "ionic", 1, "0000000000000000", "40"),
];

/// A PCI function that is recognised only by its modalias, for drivers without a driver id.
fn modalias(driver: u32) -> Option<&'static str> {
    match driver {
        5 => Some("pci:v000015B3d00006282sv00000000sd00000000bc0Csc06i00"),
        12 => Some("pci:v000019E5d0000A222sv00000000sd00000000bc02sc00i00"),
        _ => None,
    }
}

pub(super) fn each_driver() -> Result<()> {
    let mut known = 0;
    for (driver, provider, abi, input, output_len) in DRIVERS {
        let name = format!("p{driver}");
        let parent = modalias(driver).map_or(String::new(), |alias| format!(" parent={alias}"));
        let guid = 0xa000 + u64::from(driver);
        guest::hca(&format!(
            "add name={name} guid={guid:016x} driver_id={driver} abi={abi}{parent}"
        ))?;
        let device = listed(&registry()?, &name)?;
        let info = device.provider()?;
        let (found, by) = info.provider.clone().unzip();
        ensure!(found.as_deref().unwrap_or("-") == provider, "{driver}: {info:?}");
        let expected = if parent.is_empty() { MatchedBy::Driver } else { MatchedBy::Modalias };
        ensure!(by.is_none_or(|by| by == expected), "{driver}: {info:?}");
        ensure!(info.abi_version == abi && info.is_abi_known(), "{driver}: {info:?}");
        // The driver allocates no protection domain, so the proof needs a list of contexts.
        if provider == "ocrdma" && !guest::lists_contexts()? {
            refused(device.open(), ErrorKind::Unproven)?;
            println!("    proving {provider}: not on this kernel");
        } else {
            let context = opened(device.open(), guid)?;
            ensure!(context.driver_id().to_raw() == driver, "{driver}: {}", context.driver_id());
        }
        let value = |key: &str| guest::hca_value(&name, key);
        ensure!(
            value("last_in")?.trim_start_matches('-') == input,
            "{driver}: {}",
            value("last_in")?
        );
        ensure!(value("last_inlen")? == (input.len() / 2).to_string(), "{driver}");
        ensure!(value("last_outlen")? == output_len, "{driver}: {}", value("last_outlen")?);
        known += usize::from(found.is_some());
    }
    ensure!(known == 18, "{known} providers");
    println!("    {} drivers were given the data of their providers", DRIVERS.len());
    Ok(())
}

pub(super) fn by_modalias() -> Result<()> {
    // An unknown driver, on PCI functions that a provider knows.
    for (number, (alias, provider)) in [
        ("pci:v000015B3d00001017sv000015B3sd00000007bc02sc00i00", Some("mlx5")),
        ("vmbus:3daf2e8ca732094bab99bd1f1c86b501", Some("mlx4")),
        ("pci:v000015B3d0000FFFFsv000015B3sd00000007bc02sc00i00", None),
        (r"pci:v000015B3d00001017\x0asv", None),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, guid) = (format!("m{number}"), 0xb0 + number);
        let add = format!("add name={name} guid={guid:016x} driver_id=99 abi=2 parent={alias}");
        guest::hca(&add)?;
        let info = listed(&registry()?, &name)?.provider()?;
        let found = info.provider.as_ref().map(|(name, by)| (name.as_str(), *by));
        ensure!(found == provider.map(|name| (name, MatchedBy::Modalias)), "{alias}: {info:?}");
    }
    Ok(())
}

pub(super) fn abi_out_of_range() -> Result<()> {
    guest::hca("add name=q guid=00000000000000a0 driver_id=11 abi=9")?;
    let device = listed(&registry()?, "q")?;
    let info = device.provider()?;
    ensure!(info.abi_version == 9 && info.abi_versions == (8..=8), "{info:?}");
    refused(device.open(), ErrorKind::AbiMismatch)?;
    ensure!(guest::hca_value("q", "allocs")? == "0", "a context was allocated");
    let text = guest::stdout("uverbs", &["show", "--no-open", "q"])?;
    ensure!(text.contains("ABI 9 of 8 to 8: it does not open"), "{text}");
    let check = std::process::Command::new("uverbs").arg("check").output()?;
    let text = String::from_utf8_lossy(&check.stdout);
    ensure!(check.status.code() == Some(1) && text.contains("known is 8 to 8"), "{text}");
    Ok(())
}

pub(super) fn unknown() -> Result<()> {
    guest::hca("add name=u guid=00000000000000a0 driver_id=99 abi=3")?;
    let device = listed(&registry()?, "u")?;
    let info = device.provider()?;
    ensure!(info.provider.is_none() && info.is_abi_known(), "{info:?}");
    let context = opened(device.open(), 0xa0)?;
    ensure!(context.driver_id() == DriverId::from_raw(99));
    ensure!(guest::hca_value("u", "last_inlen")? == "0");
    drop(context);
    guest::hca("set name=u fail=GET_CONTEXT:22")?;
    let error = refused(device.open(), ErrorKind::Os)?;
    ensure!(error.to_string().contains("no provider knows this device"), "{error}");
    Ok(())
}

/// A program's own provider: how many times each of its functions ran.
#[derive(Default)]
struct Counts {
    attached: AtomicUsize,
    allocations: AtomicUsize,
    dropped: AtomicUsize,
}

impl Counts {
    fn all(&self) -> [usize; 3] {
        [&self.attached, &self.allocations, &self.dropped].map(|count| count.load(Relaxed))
    }
}

struct Own(Arc<Counts>);

impl Provider for Own {
    fn name(&self) -> &str {
        "own"
    }

    fn matches(&self) -> &[Match] {
        const { &[Match::Driver(DriverId::from_raw(99))] }
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn attach(&self, device: &PinnedView<'_>) -> uverbs::Result<Box<dyn DeviceProvider>> {
        self.0.attached.fetch_add(1, Relaxed);
        let modalias = device.parent_attribute("modalias")?;
        Ok(Box::new(Attached { modalias, counts: self.0.clone() }))
    }
}

struct Attached {
    modalias: Vec<u8>,
    counts: Arc<Counts>,
}

impl DeviceProvider for Attached {
    fn allocation(&self, _: &PinnedView<'_>) -> uverbs::Result<Allocation> {
        self.counts.allocations.fetch_add(1, Relaxed);
        Ok(Allocation::new(self.modalias.as_slice(), 12))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.counts.dropped.fetch_add(1, Relaxed);
    }
}

/// It is attached when the device is listed, supplies the allocation of each open, and is dropped once: with the
/// last of the list, handles and contexts. A removal alone does not drop it.
pub(super) fn registered() -> Result<()> {
    const ADD: &str = "driver_id=99 abi=3 parent=own:1 disassociate=1";
    let own = Arc::new(Counts::default());
    let provider = Arc::new(Own(own.clone())) as Arc<dyn Provider>;
    let registry = Registry::with_providers(Host::open()?, [provider]);
    guest::hca(&format!("add name=o guid=00000000000000a0 {ADD}"))?;
    let device = listed(&registry, "o")?;
    ensure!(own.all() == [1, 0, 0], "{:?}", own.all());
    let context = opened(device.open(), 0xa0)?;
    drop(opened(device.open(), 0xa0)?);
    ensure!(guest::hca_value("o", "last_in")? == "6f776e3a31", "not the provider's data");
    ensure!(guest::hca_value("o", "last_outlen")? == "12");
    ensure!(own.all() == [1, 2, 0], "{:?}", own.all());

    guest::hca("del-sync name=o")?;
    guest::hca(&format!("add name=o guid=00000000000000b0 {ADD}"))?;
    let second = listed(&registry, "o")?;
    ensure!(own.all() == [2, 2, 0], "{:?}", own.all());
    refused(device.open(), ErrorKind::Replaced)?;
    refused(context.query_device(), ErrorKind::Removed)?;
    drop(device);
    ensure!(own.all() == [2, 2, 0], "a context holds it: {:?}", own.all());
    drop(context);
    ensure!(own.all() == [2, 2, 1], "{:?}", own.all());
    guest::hca("del-sync name=o")?;
    ensure!(registry.devices()?.is_empty());
    ensure!(own.all() == [2, 2, 1], "a handle holds it: {:?}", own.all());
    drop(second);
    ensure!(own.all() == [2, 2, 2], "{:?}", own.all());
    drop(registry);
    ensure!(Arc::strong_count(&own) == 1, "somebody still has the provider");
    Ok(())
}

/// A provider that lists and opens while it is attached, on two threads at a time.
struct Peers {
    /// Taken out at the end, because the registry holds the provider.
    registry: Mutex<Option<Registry>>,
    both: Barrier,
    refused: AtomicUsize,
}

impl Provider for Peers {
    fn name(&self) -> &str {
        "peers"
    }

    fn matches(&self) -> &[Match] {
        const { &[Match::Driver(DriverId::from_raw(99))] }
    }

    fn abi_versions(&self) -> RangeInclusive<u32> {
        1..=5
    }

    fn attach(&self, device: &PinnedView<'_>) -> uverbs::Result<Box<dyn DeviceProvider>> {
        self.both.wait();
        let opens = || {
            let registry = self.registry.lock().expect("no panic").clone().expect("set");
            let devices = registry.devices()?;
            devices.by_name("r")?.open()?;
            // The peer is being attached on the other thread, this one on this thread.
            for name in ["a", "b"] {
                let opened = devices.by_name(name)?.open();
                let busy = opened.is_err_and(|error| error.kind() == ErrorKind::Busy);
                self.refused.fetch_add(usize::from(busy), Relaxed);
            }
            Ok(())
        };
        let done: uverbs::Result<()> = opens();
        // Both stay unattached until both have tried.
        self.both.wait();
        done?;
        Ok(Box::new(Allocation::new(device.name().as_bytes(), 0)))
    }
}

/// No call waits for a provider: if two threads each attach a device and open the other's, both get an error.
pub(super) fn reentry() -> Result<()> {
    for (name, guid, driver) in [("a", 0xa0, 99), ("b", 0xb0, 99), ("r", 0xc0, 14)] {
        guest::hca(&format!("add name={name} guid={guid:016x} driver_id={driver} abi=2"))?;
    }
    let peers = Arc::new(Peers {
        registry: Mutex::new(None),
        both: Barrier::new(2),
        refused: AtomicUsize::new(0),
    });
    let registry = Registry::with_providers(Host::open()?, [peers.clone() as Arc<dyn Provider>]);
    *peers.registry.lock().expect("no panic") = Some(registry.clone());
    let lists = [registry.clone(), registry.clone()]
        .map(|registry| std::thread::spawn(move || registry.devices().map(drop)));
    for list in lists {
        list.join().expect("no panic")?;
    }
    ensure!(peers.refused.load(Relaxed) == 4, "{} of 4 were busy", peers.refused.load(Relaxed));
    for (name, guid, input) in [("a", 0xa0, "61"), ("b", 0xb0, "62")] {
        opened(listed(&registry, name)?.open(), guid)?;
        ensure!(guest::hca_value(name, "last_in")? == input, "not the provider's data");
    }
    peers.registry.lock().expect("no panic").take();
    Ok(())
}
