//! The kernel, its netlink, and this process's limits.

use uverbs::{Devices, ForkSafety, Host};

use super::Audit;
use crate::select::is_gone;

/// What can be told from the kernel's version.
pub(super) fn kernel(audit: &mut Audit) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().escape_debug().to_string();
    match version(&release) {
        None => audit.warning("kernel", format!("its release \"{release}\" has no version")),
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

/// How much memory may be locked, as registered memory is.
pub(super) fn memlock(audit: &mut Audit) {
    const ENOUGH: u64 = 64 << 20;
    match uverbs::memlock_limit() {
        Some(limit) if limit < ENOUGH => audit.info(
            "memlock",
            format!(
                "{} KiB may be locked, and registering more memory fails: raise RLIMIT_MEMLOCK \
                 (ulimit -l, or memlock in limits.conf)",
                limit >> 10
            ),
        ),
        Some(limit) => audit.fine(format!("{} MiB of memory may be locked", limit >> 20)),
        None => audit.fine("memory may be locked without limit"),
    }
}

/// Whether RDMA netlink answers, and knows every device that is listed. Without devices it need not
/// be there.
pub(super) fn netlink(audit: &mut Audit, host: &Host, devices: &Devices) {
    const USE: &str = "nothing can be proved; allow AF_NETLINK sockets of NETLINK_RDMA";
    if devices.is_empty() {
        return;
    }
    if let Err(error) = host.check_netlink() {
        return audit.error("netlink", format!("it cannot be asked: {error}: {USE}"));
    }
    match host.fork_safety() {
        Ok(ForkSafety::CopiedOnFork) => audit.fine("registered memory is copied on fork"),
        Ok(_) => audit.info(
            "fork",
            "the kernel does not say that registered memory is copied on fork (Linux 5.12): programs \
             that fork need ibv_fork_init, or mark it MADV_DONTFORK",
        ),
        Err(error) => audit.info("fork", format!("it cannot be told what a fork does: {error}")),
    }
    let mut silent = false;
    for device in devices {
        match device.query() {
            Err(error) if !is_gone(&error) => {
                silent = true;
                let message = format!("netlink does not tell of it, opens are Unproven: {error}");
                audit.error(device.to_string(), message);
            }
            _ => {}
        }
    }
    if !silent {
        audit.fine("RDMA netlink can be asked, and knows every device");
    }
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
}
