//! The nodes in /dev/infiniband, which are looked at and not opened.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::{Access, AtFlags, CWD, accessat, major, minor};
use rustix::io::Errno;
use uverbs::{Device, DeviceNumber, Devices};

use super::audit::{Audit, Severity};
use super::container::Signs;
use crate::output::up_to_five;
use crate::select::{is_gone, uverbs_number};

const DIRECTORY: &str = "/dev/infiniband";

/// A mount, as far as it matters here.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    point: Vec<u8>,
    kind: String,
    nodev: bool,
}

impl Mount {
    pub(super) fn is_devtmpfs(&self) -> bool {
        self.kind == "devtmpfs"
    }

    /// The kind of file system.
    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    #[cfg(test)]
    pub(super) fn test(point: &str, kind: &str) -> Self {
        Self { point: point.into(), kind: kind.to_owned(), nodev: false }
    }
}

/// The numbers of the devices that have no node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Missing {
    /// Those where the kernel does not create nodes, and somebody else has created none.
    pub(super) not_given: BTreeSet<u32>,
    /// Those where it does.
    pub(super) lost: BTreeSet<u32>,
}

/// The mounts of this process, in the order in which they were made.
pub(super) fn mounts(audit: &mut Audit) -> Vec<Mount> {
    match fs::read("/proc/self/mountinfo") {
        Ok(text) => text.split(|byte| *byte == b'\n').filter_map(mount).collect(),
        Err(error) => {
            let message = format!(
                "/proc/self/mountinfo cannot be read ({error}), so that they are unchecked"
            );
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
pub(super) fn mount_of<'a>(mounts: &'a [Mount], path: &str) -> Option<&'a Mount> {
    let leads = |mount: &&Mount| {
        let rest = path.as_bytes().strip_prefix(mount.point.as_slice());
        rest.is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(b"/") || mount.point.ends_with(b"/")
        })
    };
    mounts.iter().filter(leads).max_by_key(|mount| mount.point.len())
}

/// Looks at the node of each device. A device that was asked for has to have one.
pub(super) fn look(
    audit: &mut Audit,
    devices: &[&Device],
    mounts: &[Mount],
    signs: &Signs,
    are_named: bool,
) -> Missing {
    let (mut missing, mut by_hand) = (Vec::new(), Vec::new());
    for &device in devices {
        let path = path_of(device);
        let mount = mount_of(mounts, &path);
        match fs::symlink_metadata(&path) {
            Ok(stat) => {
                look_at_node(audit, device, &path, &stat, mount);
                by_hand.extend(mount.filter(|mount| !mount.is_devtmpfs()).map(|_| path));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if device.query().is_err_and(|error| is_gone(&error)) {
                    continue;
                }
                missing.push((device, mount));
            }
            Err(error) => audit.error(path, format!("the node of {device}: {error}")),
        }
    }
    if !by_hand.is_empty() {
        let message = format!(
            "{}: not on devtmpfs, as is normal in a container. Such a node may stay bound to a device that \
             was removed (open refuses it then): create it again when devices change",
            up_to_five(&by_hand)
        );
        audit.info("nodes", message);
    }
    report_missing(audit, devices.len(), &missing, signs, are_named)
}

/// Reports nodes that are missing. The kernel creates those on devtmpfs by itself; on another file system
/// a runtime has created the nodes that this container was given.
fn report_missing(
    audit: &mut Audit,
    devices: usize,
    missing: &[(&Device, Option<&Mount>)],
    signs: &Signs,
    are_named: bool,
) -> Missing {
    let mut found = Missing::default();
    let mut not_given = Vec::new();
    for &(device, mount) in missing {
        let Some(mount) = mount.filter(|mount| !mount.is_devtmpfs()) else {
            audit.error(
                path_of(device),
                format!("the node of {device} does not exist: is udev or devtmpfs set up?"),
            );
            found.lost.insert(device.uverbs_number());
            continue;
        };
        if are_named {
            let message = format!(
                "{device} has no node there, which is on {}: {}. Give the node to the container",
                mount.kind(),
                signs.not_given()
            );
            audit.error(path_of(device), message);
        }
        found.not_given.insert(device.uverbs_number());
        not_given.push(device);
    }
    if !not_given.is_empty() && !are_named {
        let why = signs.not_given();
        let message = format!("{}: no node in {DIRECTORY}", up_to_five(&not_given));
        match not_given.len() == devices {
            true => audit.found(
                Severity::Warning,
                DIRECTORY,
                format!(
                    "{message}, and no other device has one, so that none can be opened: {why}"
                ),
            ),
            false => audit.info("nodes", format!("{message}: {why}")),
        }
    }
    found
}

fn path_of(device: &Device) -> String {
    format!("{DIRECTORY}/uverbs{}", device.uverbs_number())
}

fn look_at_node(
    audit: &mut Audit,
    device: &Device,
    path: &str,
    stat: &fs::Metadata,
    mount: Option<&Mount>,
) {
    if !stat.file_type().is_char_device() {
        let message = "it is not a character device, and open refuses it: remove it";
        return audit.error(path, message);
    }
    let number = DeviceNumber { major: major(stat.rdev()), minor: minor(stat.rdev()) };
    if number != device.device_number() {
        let message = format!(
            "its device number is {number}, and that of {device} is {}: remove it",
            device.device_number()
        );
        return audit.error(path, message);
    }
    let findings = audit.findings.len();
    // The kernel decides, which knows of access lists, capabilities and device cgroups.
    let mode = Access::READ_OK | Access::WRITE_OK;
    match accessat(CWD, path, mode, AtFlags::EACCESS) {
        Ok(()) => {}
        Err(Errno::PERM) => audit.error(
            path,
            "the device cgroup of this container forbids it: allow the device there, and do not only create \
             the node",
        ),
        Err(errno) => {
            let (mode, user, group) = (stat.mode() & 0o7777, stat.uid(), stat.gid());
            let message = format!(
                "this user may not open it (mode {mode:04o}, user {user}, group {group}): {}",
                io::Error::from(errno)
            );
            audit.error(path, message);
        }
    }
    if mount.is_some_and(|mount| mount.nodev) {
        let message = "its file system is mounted nodev, so that no device can be opened there";
        audit.error(path, message);
    }
    if audit.findings.len() == findings {
        audit.fine(format!(
            "{path} is a character device {number}, as that of {device}, and its permissions let this \
             user open it"
        ));
    }
}

/// Nodes of devices that are not there.
pub(super) fn orphans(audit: &mut Audit, devices: &Devices) {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return audit.unknown(DIRECTORY, format!("it cannot be read: {error}")),
    };
    let nodes = entries.flatten().filter_map(|entry| uverbs_number(entry.file_name().as_bytes()));
    // A device that could not be listed is there all the same.
    let faulty = devices.faults().filter_map(|fault| uverbs_number(fault.device()?.as_bytes()));
    let listed: BTreeSet<_> = devices.iter().map(Device::uverbs_number).chain(faulty).collect();
    let nodes: BTreeSet<_> = nodes.collect();
    for number in nodes.difference(&listed) {
        audit.warning(
            format!("{DIRECTORY}/uverbs{number}"),
            "no device has this number: the node was created by hand, or is left over; remove it",
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

    #[cfg(feature = "demo")]
    #[test]
    fn a_missing_node_is_an_error_on_devtmpfs_and_not_in_a_container() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        for name in ["rxe0", "rxe1"] {
            machine.add(DeviceSpec::new(name)).expect("added");
        }
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let devices: Vec<_> = devices.iter().collect();
        let (devtmpfs, tmpfs) = (Mount::test("/dev", "devtmpfs"), Mount::test("/dev", "tmpfs"));
        let report = |audit: &mut Audit, missing: &[_], are_named| {
            report_missing(audit, 2, missing, &Signs::default(), are_named)
        };

        for mount in [Some(&devtmpfs), None] {
            let mut audit = Audit::default();
            let missing = report(&mut audit, &[(devices[0], mount)], false);
            assert_eq!(missing, Missing { lost: [0].into(), ..Missing::default() });
            assert_eq!((audit.findings.len(), audit.count(Severity::Error)), (1, 1));
            let message = &audit.findings[0].message;
            assert!(message.contains("rxe0 (uverbs0) does not exist"), "{message}");
        }

        let mut audit = Audit::default();
        let missing = report(&mut audit, &[(devices[1], Some(&tmpfs))], false);
        assert_eq!(missing, Missing { not_given: [1].into(), ..Missing::default() });
        assert!(audit.is_good() && audit.info.len() == 1, "{audit:?}");

        // The one that somebody asked for has to be there.
        let mut audit = Audit::default();
        report(&mut audit, &[(devices[1], Some(&tmpfs))], true);
        assert_eq!((audit.findings.len(), audit.count(Severity::Error)), (1, 1));

        let all: Vec<_> = devices.iter().map(|&device| (device, Some(&tmpfs))).collect();
        let mut audit = Audit::default();
        assert_eq!(report(&mut audit, &all, false).not_given, BTreeSet::from([0, 1]));
        assert_eq!((audit.findings.len(), audit.count(Severity::Warning)), (1, 1));
    }
}
