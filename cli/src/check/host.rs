//! The kernel, its netlink, and this process's limits.

use std::collections::BTreeSet;
use std::fs;

use uverbs::{Device, ErrorKind, ForkSafety, Host};

use super::audit::{Audit, Severity};
use crate::explain;
use crate::output::Failure;
use crate::select::is_gone;

/// What the kernel's version is enough for.
pub(super) fn kernel(audit: &mut Audit) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().escape_debug().to_string();
    match version(&release) {
        None => audit.warning("kernel", format!("its release \"{release}\" is not a version")),
        Some(version) if version < (5, 6) => audit.error(
            "kernel",
            format!("Linux {release}: 5.6 is needed to run, and 5.10 to prove; upgrade it"),
        ),
        Some(version) if version < (5, 10) => audit.warning(
            "kernel",
            format!(
                "Linux {release} shows no protection domains: opens are Unproven; upgrade to 5.10"
            ),
        ),
        Some(_) => audit.fine(format!("Linux {release} can prove which device a context is on")),
    }
}

/// Major and minor number of a release such as `6.12.111-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.splitn(3, '.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

/// How much memory may be locked, as registered memory is. The default is little, so that a limit is information.
pub(super) fn memlock(audit: &mut Audit) {
    const ENOUGH: u64 = 64 << 20;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match uverbs::memlock_limit() {
        _ if is_ipc_lock(&status) => {
            audit.fine("memory may be locked without limit (CAP_IPC_LOCK)");
        }
        Some(limit) if limit < ENOUGH => audit.info(
            "memlock",
            format!(
                "this process may lock {} KiB. Registering more memory fails: raise RLIMIT_MEMLOCK for \
                 programs that do (ulimit -l, or memlock in limits.conf)",
                limit >> 10
            ),
        ),
        Some(limit) => audit.fine(format!("{} MiB of memory may be locked", limit >> 20)),
        None => audit.fine("memory may be locked without limit"),
    }
}

/// Whether `/proc/self/status` (`proc_pid_status(5)`) has the effective capability `CAP_IPC_LOCK`, which no limit
/// applies to.
fn is_ipc_lock(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> CAP_IPC_LOCK & 1 == 1)
}

/// Whether RDMA netlink answers, and knows every one of these devices. Without devices it need not
/// be there. Returns the numbers of the devices that belong to another network namespace, which is an error where the
/// devices were asked for.
pub(super) fn netlink(
    audit: &mut Audit,
    host: &Host,
    devices: &[&Device],
    are_named: bool,
) -> BTreeSet<u32> {
    let mut elsewhere = BTreeSet::new();
    if devices.is_empty() {
        return elsewhere;
    }
    if let Err(error) = host.check_netlink() {
        audit.error("netlink", Failure::from(error).to_string());
        return elsewhere;
    }
    match host.fork_safety() {
        Ok(ForkSafety::CopiedOnFork) => audit.fine("registered memory is copied on fork"),
        Ok(_) => audit.info(
            "fork",
            "the kernel does not report that registered memory is copied on fork (Linux 5.12): programs \
             that fork need ibv_fork_init, or mark it MADV_DONTFORK",
        ),
        Err(error) => {
            let error = Failure::from(error);
            audit.info("fork", format!("it is not known what a fork does to memory: {error}"));
        }
    }
    let mut unanswered = false;
    for device in devices {
        match device.query() {
            Err(error) if is_gone(&error) => {}
            Err(error) if error.kind() == ErrorKind::OtherNamespace => {
                elsewhere.insert(device.uverbs_number());
            }
            Err(error) => {
                unanswered = true;
                let error = Failure::from(error);
                let error = error.without_device();
                let message =
                    format!("netlink does not describe it, so that it does not open: {error}");
                audit.error(device.to_string(), message);
            }
            Ok(_) => {}
        }
    }
    if !elsewhere.is_empty() {
        let theirs = devices.iter().filter(|device| elsewhere.contains(&device.uverbs_number()));
        let theirs: Vec<_> = theirs.copied().collect();
        let severity = if are_named { Severity::Error } else { Severity::Warning };
        audit.found(severity, "network namespace", explain::elsewhere(&theirs));
    }
    if !unanswered {
        audit.fine("RDMA netlink can be used, and knows every device of this network namespace");
    }
    elsewhere
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.12.111-amd64"), Some((6, 12)));
        assert_eq!(version("5.6-rc1"), Some((5, 6)));
        assert_eq!(version("7.3"), Some((7, 3)));
        for release in ["", "6", "6.", "x.y", "6.x"] {
            assert_eq!(version(release), None, "{release}");
        }
        assert!((5, 10) < (5, 13) && (6, 1) > (5, 13));
    }

    #[test]
    fn the_capability_is_a_bit() {
        let status =
            |set: &str| format!("Name:\tuverbs\nCapEff:\t{set}\nCapBnd:\tffffffffffffffff\n");
        for set in ["0000000000004000", "000001ffffffffff"] {
            assert!(is_ipc_lock(&status(set)), "{set}");
        }
        for set in ["0000000000000000", "000001ffffffbfff", ""] {
            assert!(!is_ipc_lock(&status(set)), "{set}");
        }
        assert!(!is_ipc_lock(""));
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_device_of_another_network_namespace_differs_from_one_that_is_missing() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        machine.add(DeviceSpec::new("rxe0")).expect("added");
        let other = machine.add(DeviceSpec::new("rxe1")).expect("added");
        machine.set_netns_visible(other, false);
        let host = Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host.clone()).devices().expect("a list");

        let devices: Vec<_> = devices.iter().collect();
        let mut audit = Audit::default();
        assert_eq!(netlink(&mut audit, &host, &devices, true), BTreeSet::from([1]));
        assert_eq!(audit.count(Severity::Error), 1);

        let mut audit = Audit::default();
        assert_eq!(netlink(&mut audit, &host, &devices, false), BTreeSet::from([1]));
        assert_eq!((audit.findings.len(), audit.count(Severity::Warning)), (1, 1));
        let message = &audit.findings[0].message;
        for words in ["rxe1 (uverbs1)", "another network namespace", "rdma dev set DEV netns NAME"]
        {
            assert!(message.contains(words), "{words}: {message}");
        }
        assert!(!message.contains("rxe0"), "{message}");
    }
}
