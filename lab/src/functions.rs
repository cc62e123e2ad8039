//! PCI functions of the guest: the physical function, its virtual functions, and the test HCA as their driver. Binding,
//! unbinding, `sriov_numvfs` and `driver_override` are the kernel's own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::guest;

/// The physical function of a guest that is started with `--sriov`.
pub(crate) const PF: &str = "0000:3b:00.0";

/// How many virtual functions it can have.
pub(crate) const TOTAL: u32 = 64;

/// The NUMA node of its host bridge.
pub(crate) const NODE: i32 = 1;

const DRIVER: &str = "/sys/bus/pci/drivers/uverbs_test_hca";

/// The directory of a PCI function in sysfs.
pub(crate) fn directory(address: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(address)
}

/// An attribute of a PCI function.
pub(crate) fn attribute(address: &str, name: &str) -> Result<String> {
    let path = directory(address).join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim_end().to_owned())
}

/// Writes an attribute of a PCI function.
pub(crate) fn set(address: &str, name: &str, value: &str) -> Result<()> {
    write(&directory(address).join(name), value)
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
}

/// What sysfs shows of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) numa_node: i32,
    /// The address of the physical function, if this is a virtual one.
    pub(crate) physical: Option<String>,
    /// How many virtual functions it can have, if this is a physical one.
    pub(crate) total: Option<u32>,
}

impl Facts {
    pub(crate) fn read(address: &str) -> Result<Self> {
        let identity = |name| -> Result<u16> {
            let text = attribute(address, name)?;
            let digits = text.strip_prefix("0x").with_context(|| format!("{name}: {text:?}"))?;
            Ok(u16::from_str_radix(digits, 16)?)
        };
        let total = directory(address).join("sriov_totalvfs").exists();
        Ok(Self {
            vendor: identity("vendor")?,
            device: identity("device")?,
            numa_node: attribute(address, "numa_node")?.parse()?,
            physical: link(address, "physfn")?,
            total: total
                .then(|| attribute(address, "sriov_totalvfs"))
                .transpose()?
                .map(|text| text.parse())
                .transpose()?,
        })
    }
}

/// The address that a link of a PCI function leads to, if there is such a link.
fn link(address: &str, name: &str) -> Result<Option<String>> {
    let path = directory(address).join(name);
    if !path.is_symlink() {
        return Ok(None);
    }
    let target = fs::read_link(&path)?;
    let target = target.file_name().with_context(|| path.display().to_string())?;
    Ok(Some(target.to_string_lossy().into_owned()))
}

/// The address of a virtual function by its number, counted from 0.
pub(crate) fn virtual_function(number: u32) -> Result<String> {
    link(PF, &format!("virtfn{number}"))?.with_context(|| format!("no virtual function {number}"))
}

/// The addresses of all virtual functions, in the order of their numbers.
pub(crate) fn virtual_functions() -> Result<Vec<String>> {
    let count: u32 = attribute(PF, "sriov_numvfs")?.parse()?;
    (0..count).map(virtual_function).collect()
}

/// The number of a virtual function by the formula of the SR-IOV specification.
pub(crate) fn number(address: &str) -> Result<u32> {
    let part = |name| -> Result<u32> { Ok(attribute(PF, name)?.parse()?) };
    let distance = routing_id(address)?.checked_sub(routing_id(PF)?).context("below its PF")?;
    let distance = distance.checked_sub(part("sriov_offset")?).context("below the offset")?;
    let stride = part("sriov_stride")?;
    ensure!(distance % stride == 0, "{address}: {distance} is no multiple of {stride}");
    Ok(distance / stride)
}

/// Bus, device and function as one number.
fn routing_id(address: &str) -> Result<u32> {
    let parse = || {
        let (bus, slot) = address.split_once(':')?.1.split_once(':')?;
        let (slot, function) = slot.split_once('.')?;
        let hex = |text| u32::from_str_radix(text, 16).ok();
        Some(hex(bus)? << 8 | hex(slot)? << 3 | hex(function)?)
    };
    parse().with_context(|| format!("{address:?} is not a PCI address"))
}

/// The node GUID that the test HCA derives from an address.
pub(crate) fn guid(address: &str) -> Result<u64> {
    let domain = address.split(':').next().context("no domain")?;
    let domain = u64::from_str_radix(domain, 16)?;
    Ok(2 << 56 | domain << 16 | u64::from(routing_id(address)?))
}

/// Makes virtual functions, after it has bound the physical one. Nothing binds them: `sriov_drivers_autoprobe` is off.
pub(crate) fn make(count: u32) -> Result<()> {
    ensure!(directory(PF).exists(), "no PCI function {PF}: start the guest with --sriov");
    bind(PF)?;
    set(PF, "sriov_drivers_autoprobe", "0")?;
    set(PF, "sriov_numvfs", &count.to_string())
}

/// Makes virtual functions that the driver takes as they appear.
pub(crate) fn make_bound(count: u32) -> Result<()> {
    bind(PF)?;
    let Facts { vendor, device, .. } = Facts::read(PF)?;
    // Twice is an error.
    let id = format!("{vendor:04x} {device:04x}");
    let _ = fs::write(Path::new(DRIVER).join("remove_id"), &id);
    write(&Path::new(DRIVER).join("new_id"), &id)?;
    set(PF, "sriov_drivers_autoprobe", "1")?;
    set(PF, "sriov_numvfs", &count.to_string())
}

/// Binds a function to the test HCA, unless it is bound.
pub(crate) fn bind(address: &str) -> Result<()> {
    if !Path::new(DRIVER).exists() {
        guest::run("modprobe", &["uverbs_test_hca"])?;
    }
    if is_bound(address) {
        return Ok(());
    }
    set(address, "driver_override", "uverbs_test_hca")?;
    write(&Path::new(DRIVER).join("bind"), address)
}

/// Unbinds a function from its driver. This waits for open descriptors where the driver does not disassociate.
pub(crate) fn unbind(address: &str) -> Result<()> {
    write(&directory(address).join("driver/unbind"), address)
}

/// Whether a driver has the function.
pub(crate) fn is_bound(address: &str) -> bool {
    directory(address).join("driver").exists()
}

/// The verbs device of a bound function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verbs {
    /// Its name, such as hca_0.
    pub(crate) name: String,
    /// Its uverbs device, such as uverbs0.
    pub(crate) uverbs: String,
    /// Its device number.
    pub(crate) number: (u32, u32),
}

/// The verbs devices beneath a function.
pub(crate) fn all_verbs(address: &str) -> Result<Vec<Verbs>> {
    let uverbs = guest::names(directory(address).join("infiniband_verbs"));
    uverbs
        .into_iter()
        .map(|uverbs| {
            let (name, number) = (guest::ibdev(&uverbs)?, guest::device_number(&uverbs)?);
            Ok(Verbs { name, uverbs, number })
        })
        .collect()
}

/// The one verbs device of a bound function.
pub(crate) fn verbs(address: &str) -> Result<Verbs> {
    let mut found = all_verbs(address)?;
    ensure!(found.len() == 1, "{address} has these verbs devices: {found:?}");
    Ok(found.remove(0))
}

/// Unbinds the first function and binds the second, whose device takes the name, the number and the device number of the
/// other's.
pub(crate) fn swap(first: &str, second: &str) -> Result<()> {
    let before = verbs(first)?;
    unbind(first)?;
    bind(second)?;
    let after = verbs(second)?;
    ensure!(after == before, "{after:?} did not take over {before:?}");
    Ok(())
}

/// The address of the function that a uverbs device belongs to, by its path in sysfs.
pub(crate) fn of_uverbs(uverbs: &str) -> Result<String> {
    let link = fs::read_link(Path::new("/sys/class/infiniband_verbs").join(uverbs))?;
    let parent = link.ancestors().nth(2).and_then(Path::file_name);
    Ok(parent.with_context(|| link.display().to_string())?.to_string_lossy().into_owned())
}

/// Unbinds every function, which also removes the virtual ones, and unloads the driver, which forgets its ids and
/// plans.
pub(crate) fn release_all() -> Result<()> {
    let bound: Vec<String> =
        guest::names(DRIVER).into_iter().filter(|name| routing_id(name).is_ok()).collect();
    if bound.is_empty() {
        return Ok(());
    }
    // Otherwise the driver would take it again when it is loaded.
    for address in &bound {
        set(address, "driver_override", "\n")?;
    }
    guest::run("rmmod", &["uverbs_test_hca"]).map(drop)
}
