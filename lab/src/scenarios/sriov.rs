//! Virtual functions that come and go: what the kernel shows of them, and that a handle never opens another function.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use uverbs::{Change, Device, ErrorKind, Registry, Watch};

use super::expect::{opened, refused, registry};
use super::parents;
use crate::functions::{self, Facts, NODE, PF, TOTAL, Verbs};
use crate::guest;
use crate::ibverbs::Ibverbs;

/// The library's handle of the device of a function.
fn handle(registry: &Registry, address: &str) -> Result<Device> {
    let verbs = functions::verbs(address)?;
    let device = registry.devices()?.by_name(&verbs.name)?;
    let number = format!("uverbs{}", device.uverbs_number());
    ensure!(number == verbs.uverbs, "{device:?} is not {verbs:?}");
    ensure!(device.device_number().to_string() == format!("{}:{}", verbs.number.0, verbs.number.1));
    Ok(device)
}

/// How many contexts the device of a function has allocated.
fn allocs(address: &str) -> Result<u64> {
    Ok(guest::hca_value(&functions::verbs(address)?.name, "allocs")?.parse()?)
}

pub(super) fn appear() -> Result<()> {
    functions::make(3)?;
    let pf = Facts::read(PF)?;
    ensure!(pf.total == Some(TOTAL) && pf.physical.is_none() && pf.numa_node == NODE, "{pf:?}");
    let addresses = functions::virtual_functions()?;
    ensure!(addresses == ["0000:3b:00.1", "0000:3b:00.2", "0000:3b:00.3"], "{addresses:?}");
    for (number, address) in (0..).zip(&addresses) {
        let vf = Facts::read(address)?;
        let expected = Facts { physical: Some(PF.to_owned()), total: None, ..pf.clone() };
        ensure!(vf == expected, "{address}: {vf:?}");
        ensure!(functions::number(address)? == number, "{address}");
        ensure!(!functions::is_bound(address) && functions::all_verbs(address)?.is_empty());
    }
    // The kernel changes the number of functions only by way of none.
    ensure!(functions::set(PF, "sriov_numvfs", "2").is_err());

    // The physical function alone has a device, until one of the others is bound.
    let registry = registry()?;
    ensure!(registry.devices()?.len() == 1);
    opened(handle(&registry, PF)?.open(), functions::guid(PF)?)?;
    let vf = &addresses[1];
    functions::bind(vf)?;
    ensure!(functions::of_uverbs(&functions::verbs(vf)?.uverbs)? == *vf);
    ensure!(registry.devices()?.len() == 2);
    let device = handle(&registry, vf)?;
    let context = opened(device.open(), functions::guid(vf)?)?;

    // They vanish together, bound or not.
    functions::set(PF, "sriov_numvfs", "0")?;
    ensure!(addresses.iter().all(|address| !functions::directory(address).exists()));
    refused(context.query_device(), ErrorKind::Removed)?;
    refused(device.open(), ErrorKind::Removed)?;
    ensure!(registry.devices()?.len() == 1);
    // The same address again is another device.
    functions::set(PF, "sriov_numvfs", "2")?;
    functions::bind(vf)?;
    refused(device.open(), ErrorKind::Removed)?;
    ensure!(allocs(vf)? == 0);
    opened(handle(&registry, vf)?.open(), functions::guid(vf)?).map(drop)
}

/// Collects the changes of a watch until a condition holds.
fn follow(
    watch: &mut Watch,
    limit: Duration,
    holds: impl Fn(&[Change]) -> bool,
) -> Result<Vec<Change>> {
    let end = Instant::now() + limit;
    let mut changes = Vec::new();
    while !holds(&changes) {
        let left = end.checked_duration_since(Instant::now());
        let left = left.with_context(|| format!("nothing more came after {changes:?}"))?;
        changes.extend(watch.wait(Some(left))?);
    }
    Ok(changes)
}

const LONG: Duration = Duration::from_secs(20);

fn removed(changes: &[Change], device: &Device) -> bool {
    changes.iter().any(|change| match change {
        Change::Removed { device: old, .. } | Change::Replaced { old, .. } => old == device,
        _ => false,
    })
}

fn added(changes: &[Change]) -> Vec<Device> {
    changes
        .iter()
        .filter_map(|change| match change {
            Change::Added { device, .. } | Change::Replaced { new: device, .. } => Some(device),
            _ => None,
        })
        .cloned()
        .collect()
}

/// Two virtual functions. The first is bound, and has what the test is about.
struct Pair {
    first: String,
    second: String,
    verbs: Verbs,
}

impl Pair {
    fn make(words: &str) -> Result<Self> {
        functions::make(2)?;
        let (first, second) = (functions::virtual_function(0)?, functions::virtual_function(1)?);
        if !words.is_empty() {
            guest::hca(&format!("pci function={first} {words}"))?;
        }
        functions::bind(&first)?;
        Ok(Self { verbs: functions::verbs(&first)?, first, second })
    }
}

pub(super) fn number_is_taken() -> Result<()> {
    let Pair { first, second, verbs } = Pair::make("")?;
    // One registry looks as things happen. Another has not looked since.
    let (looking, asleep) = (registry()?, registry()?);
    let mut watch = looking.watch()?;
    let (watched, slept) = (handle(&looking, &first)?, handle(&asleep, &first)?);
    let context = opened(slept.open(), functions::guid(&first)?)?;
    let allocated = allocs(&first)?;

    functions::unbind(&first)?;
    ensure!(functions::all_verbs(&first)?.is_empty());
    follow(&mut watch, LONG, |changes| removed(changes, &watched))?;
    refused(context.query_device(), ErrorKind::Removed)?;
    refused(watched.open(), ErrorKind::Removed)?;

    functions::bind(&second)?;
    ensure!(functions::verbs(&second)? == verbs, "{:?}", functions::verbs(&second)?);
    let changes = follow(&mut watch, LONG, |changes| !added(changes).is_empty())?;
    ensure!(added(&changes) == [handle(&looking, &second)?], "{changes:?}");
    refused(watched.open(), ErrorKind::Removed)?;
    refused(slept.open(), ErrorKind::Replaced)?;
    refused(context.query_device(), ErrorKind::Removed)?;
    ensure!(allocs(&second)? == 0, "the other function was opened");
    opened(handle(&asleep, &second)?.open(), functions::guid(&second)?)?;

    // Back at its address it has the same number, name and GUID. It is another device nevertheless.
    functions::unbind(&second)?;
    functions::bind(&first)?;
    ensure!(functions::verbs(&first)? == verbs);
    refused(slept.open(), ErrorKind::Replaced)?;
    refused(watched.open(), ErrorKind::Removed)?;
    ensure!(allocs(&first)? == 0 && allocated > 0, "it was opened");
    let fresh = handle(&asleep, &first)?;
    ensure!(fresh != slept);
    opened(fresh.open(), functions::guid(&first)?).map(drop)
}

/// What a program on libibverbs does in the same place: it opens the other function.
pub(super) fn control_libibverbs() -> Result<()> {
    let Pair { first, second, verbs } = Pair::make("")?;
    let ibverbs = Ibverbs::load()?;
    let list = ibverbs.list()?;
    ensure!(list.guid_when_opened(&verbs.name)? == functions::guid(&first)?);
    functions::unbind(&first)?;
    functions::bind(&second)?;
    let found = list.guid_when_opened(&verbs.name)?;
    ensure!(found == functions::guid(&second)?, "libibverbs opened {found:016x}");
    ensure!(allocs(&second)? == 1);
    Ok(())
}

/// A driver that does not disassociate. Its unbinding waits, but the number is free meanwhile.
pub(super) fn unbinding_waits() -> Result<()> {
    let Pair { first, second, verbs } = Pair::make("guid=00000000000000a0 disassociate=0")?;
    let registry = registry()?;
    let device = handle(&registry, &first)?;
    let context = opened(device.open(), 0xa0)?;
    let unbinding = std::thread::spawn({
        let first = first.clone();
        move || functions::unbind(&first)
    });
    guest::until_uverbs(&verbs.uverbs, false)?;
    functions::bind(&second)?;
    let other = functions::verbs(&second)?;
    ensure!(other.uverbs == verbs.uverbs && other.number == verbs.number, "{other:?}");
    // The name is not free yet.
    ensure!(other.name != verbs.name, "{other:?}");
    refused(device.open(), ErrorKind::Replaced)?;
    ensure!(allocs(&second)? == 0, "the other function was opened");
    // The old context still works, and is still of the first function.
    ensure!(context.query_device()?.node_guid.0 == 0xa0);
    ensure!(!unbinding.is_finished(), "it did not wait");
    drop(context);
    unbinding.join().expect("no panic")?;
    ensure!(!functions::is_bound(&first));
    opened(handle(&registry, &second)?.open(), functions::guid(&second)?).map(drop)
}

pub(super) fn many_at_once() -> Result<()> {
    functions::bind(PF)?;
    let registry = registry()?;
    let mut watch = registry.watch()?;
    let count = TOTAL as usize;
    let began = Instant::now();
    functions::make_bound(TOTAL)?;
    let made = began.elapsed();
    let changes = follow(&mut watch, LONG, |changes| added(changes).len() >= count)?;
    let followed = began.elapsed();
    let addresses = functions::virtual_functions()?;
    ensure!(addresses.len() == count);
    ensure!(registry.devices()?.len() == count + 1);
    let mut devices = Vec::new();
    for (number, address) in (0..).zip(&addresses) {
        ensure!(functions::number(address)? == number);
        devices.push(handle(&registry, address)?);
        opened(devices[devices.len() - 1].open(), functions::guid(address)?)?;
    }
    let mut reported = added(&changes);
    ensure!(reported.len() == count && devices.iter().all(|device| reported.contains(device)));
    // uverbs0 to uverbs31 have a major number of their own.
    let majors: BTreeSet<u32> = addresses
        .iter()
        .map(|address| Ok(functions::verbs(address)?.number.0))
        .collect::<Result<_>>()?;
    ensure!(majors.len() == 2, "{majors:?}");

    // In another order each has another number. What was listed before opens none of them.
    let asleep = self::registry()?;
    let slept: Vec<Device> =
        addresses.iter().map(|address| handle(&asleep, address)).collect::<Result<_>>()?;
    let began = Instant::now();
    for address in &addresses {
        functions::unbind(address)?;
    }
    for address in addresses.iter().rev() {
        functions::bind(address)?;
    }
    let shuffled = began.elapsed();
    let changes = follow(&mut watch, LONG, |changes| {
        reported.iter().all(|device| removed(changes, device))
            && added(changes).iter().filter(|device| !device.is_known_gone()).count() == count
    })?;
    for (device, address) in slept.iter().zip(&addresses) {
        ensure!(functions::verbs(address)?.uverbs != format!("uverbs{}", device.uverbs_number()));
        let error = device.open().err().context("it was opened")?;
        ensure!(matches!(error.kind(), ErrorKind::Replaced | ErrorKind::Removed), "{error}");
        ensure!(allocs(address)? == 0, "{address} was opened");
    }
    reported = added(&changes).into_iter().filter(|device| !device.is_known_gone()).collect();

    let began = Instant::now();
    functions::set(PF, "sriov_numvfs", "0")?;
    let gone = began.elapsed();
    follow(&mut watch, LONG, |changes| reported.iter().all(|device| removed(changes, device)))?;
    ensure!(registry.devices()?.len() == 1 && watch.devices().len() == 1);
    println!(
        "    {count} functions: made in {made:.1?}, reported after {followed:.1?}, bound again in {shuffled:.1?}, \
         gone in {gone:.1?}"
    );
    Ok(())
}

/// A list of functions reads NUMA nodes, which one of software devices does not.
pub(super) fn cost_of_a_list() -> Result<()> {
    functions::make_bound(0)?;
    let without = parents::calls_of_a_list()?;
    functions::set(PF, "sriov_numvfs", &TOTAL.to_string())?;
    let calls = (parents::calls_of_a_list()? - without).div_ceil(TOTAL as usize);
    println!("    {calls} system calls a function");
    ensure!(calls <= parents::CALLS, "{calls} system calls a function");
    Ok(())
}
