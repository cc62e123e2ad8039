//! The nodes in /dev/infiniband, looked at and never opened.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::{Access, AtFlags, CWD, accessat, major, minor};
use uverbs::{Device, DeviceNumber, Devices};

use super::Audit;
use crate::select::{is_gone, uverbs_number};

const DIRECTORY: &str = "/dev/infiniband";

/// A mount, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    point: Vec<u8>,
    kind: String,
    nodev: bool,
}

/// The mounts of this process, in the order in which they were made.
pub(super) fn mounts(audit: &mut Audit) -> Vec<Mount> {
    match fs::read("/proc/self/mountinfo") {
        Ok(text) => text.split(|byte| *byte == b'\n').filter_map(mount).collect(),
        Err(error) => {
            let message =
                format!("/proc/self/mountinfo cannot be read ({error}): mounts unchecked");
            audit.info("mounts", message);
            Vec::new()
        }
    }
}

/// One line of `proc_pid_mountinfo(5)`.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.nth(4)?);
    let nodev = fields.next()?.split(|byte| *byte == b',').any(|option| option == b"nodev");
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { point, kind: kind.escape_ascii().to_string(), nodev })
}

/// Undoes the kernel's octal escapes, such as `\040` for a space.
fn unescape(mut text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    while let [first, rest @ ..] = text {
        let octal = |digits: &[u8]| digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
        match rest {
            [a @ b'0'..=b'3', b, c, after @ ..] if *first == b'\\' && octal(&[*b, *c]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                text = after;
            }
            _ => {
                plain.push(*first);
                text = rest;
            }
        }
    }
    plain
}

/// The mount that a path is on: the longest that leads to it, and of equal ones the last.
fn mount_of<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    let leads = |mount: &&Mount| {
        let rest = path.as_bytes().strip_prefix(mount.point.as_slice());
        rest.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(b"/") || mount.point.ends_with(b"/")
        })
    };
    mounts.iter().filter(leads).max_by_key(|mount| mount.point.len())
}

/// The node of a device that is listed.
pub(super) fn look_at_node(audit: &mut Audit, device: &Device, mounts: &[Mount]) {
    let path = format!("{DIRECTORY}/uverbs{}", device.uverbs_number());
    let stat = match fs::symlink_metadata(&path) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if device.query().is_err_and(|error| is_gone(&error)) {
                return;
            }
            return audit.error(
                path,
                format!("{device} has no node: see that udev runs, or hand it to the container"),
            );
        }
        Err(error) => return audit.error(path, format!("the node of {device}: {error}")),
    };
    if !stat.file_type().is_char_device() {
        let message = "it is no character device, and opens are refused: remove it";
        return audit.error(path, message);
    }
    let number = DeviceNumber { major: major(stat.rdev()), minor: minor(stat.rdev()) };
    if number != device.device_number() {
        let message = format!(
            "it has the device number {number}, and {device} has {}: remove it",
            device.device_number()
        );
        return audit.error(path, message);
    }
    let findings = audit.findings.len();
    // Asked of the kernel, which knows of access lists, capabilities and device cgroups.
    let mode = Access::READ_OK | Access::WRITE_OK;
    if let Err(errno) = accessat(CWD, &path, mode, AtFlags::EACCESS) {
        let (mode, user, group) = (stat.mode() & 0o7777, stat.uid(), stat.gid());
        let message = format!(
            "this user may not open it (mode {mode:04o}, user {user}, group {group}): {}",
            io::Error::from(errno)
        );
        audit.error(path.as_str(), message);
    }
    if let Some(mount) = mount_of(mounts, &path) {
        if mount.nodev {
            let message = "its file system is mounted nodev, and nothing can be opened there";
            audit.error(path.as_str(), message);
        }
        if mount.kind != "devtmpfs" {
            let message = format!(
                "it is on {}, not devtmpfs: made by hand, it stays bound to a device that is gone \
                 (open refuses it then); make it anew whenever devices change",
                mount.kind
            );
            audit.warning(path.as_str(), message);
        }
    }
    if audit.findings.len() == findings {
        let seen = "and its permissions let this user open it";
        audit.fine(format!("{path} is a character device {number}, as that of {device}, {seen}"));
    }
}

/// Nodes of devices that are not there.
pub(super) fn orphans(audit: &mut Audit, devices: &Devices) {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return audit.error(DIRECTORY, format!("it cannot be read: {error}")),
    };
    let nodes = entries.flatten().filter_map(|entry| uverbs_number(entry.file_name().as_bytes()));
    // A device that could not be listed is there all the same.
    let faulty = devices.faults().filter_map(|fault| uverbs_number(fault.device()?.as_bytes()));
    let listed: BTreeSet<_> = devices.iter().map(Device::uverbs_number).chain(faulty).collect();
    let nodes: BTreeSet<_> = nodes.collect();
    for number in nodes.difference(&listed) {
        audit.warning(
            format!("{DIRECTORY}/uverbs{number}"),
            "no such device is listed: a node that was made by hand, or left over; remove it",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<Mount> {
        text.lines().filter_map(|line| mount(line.as_bytes())).collect()
    }

    #[test]
    fn the_mount_of_a_node() {
        let mounts = parsed(
            "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
             22 21 0:5 / /dev rw,nosuid shared:2 master:1 - devtmpfs udev rw\n\
             23 22 0:9 / /dev/infini rw - tmpfs tmpfs rw\n\
             24 22 0:6 / /dev/infiniband/uverbs1 rw,nodev - tmpfs tmpfs rw\n\
             25 22 0:7 / /dev/infiniband/uverbs1 rw - xfs /dev/sdb rw\n\
             26 22 0:7 / /a\\040b\\011c\\\\ rw - ext4 /dev/sdb rw\n\
             a line that is none",
        );
        assert_eq!(mounts.len(), 6);
        let kind = |path| mount_of(&mounts, path).map(|mount| (mount.kind.as_str(), mount.nodev));
        assert_eq!(kind("/dev/infiniband/uverbs0"), Some(("devtmpfs", false)));
        assert_eq!(kind("/dev/infiniband/uverbs1"), Some(("xfs", false)));
        assert_eq!(kind("/dev/infiniband/uverbs10"), Some(("devtmpfs", false)));
        assert_eq!(kind("/etc"), Some(("ext4", false)));
        assert_eq!(mounts[5].point, b"/a b\tc\\\\");
        assert!(mounts[3].nodev);
        assert_eq!(mount_of(&[], "/dev"), None);
    }
}
