//! What a CDI file needs of the host beside its verbs devices: which nodes there are, and which of them are for
//! management datagrams (MAD).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat,
};
use rustix::io::{Errno, read};
use uverbs::DeviceNumber;

/// The nodes of a host.
pub(super) trait Nodes {
    /// The number of a character device in `/dev/infiniband`; `None` if there is no such node.
    fn number(&self, name: &str) -> Option<DeviceNumber>;

    /// The nodes for management datagrams.
    fn mads(&self) -> io::Result<Vec<Mad>>;
}

/// A node for management datagrams: `umadN` or `issmN`. The N is not that of `uverbsN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mad {
    pub(super) name: String,
    pub(super) kind: MadKind,
    /// The name of the device that it belongs to, on its bus; `virtual` of a software device.
    pub(super) parent: Vec<u8>,
    /// The name of its RDMA device.
    pub(super) device: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MadKind {
    /// Sends and receives datagrams.
    Umad,
    /// Announces to the fabric that a subnet manager runs here.
    Issm,
}

/// The nodes of this host.
pub(super) struct Host {
    sys: OwnedFd,
    dev: OwnedFd,
}

/// Nothing leads out of the directory that was opened.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS).union(ResolveFlags::NO_SYMLINKS);
/// The same, within one mount.
const IN_SYS: ResolveFlags = BENEATH.union(ResolveFlags::NO_XDEV);
const CLASS: &str = "class/infiniband_mad";

impl Host {
    pub(super) fn open() -> io::Result<Self> {
        let root = |path: &str| {
            openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        };
        Ok(Self { sys: root("/sys")?, dev: root("/dev")? })
    }

    fn in_sys(&self, path: impl rustix::path::Arg, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        openat2(&self.sys, path, flags | OFlags::CLOEXEC, Mode::empty(), IN_SYS)
    }

    /// A node of the class; `None` if it is gone, or is none of the two.
    fn mad(&self, class: &OwnedFd, name: &str) -> io::Result<Option<Mad>> {
        let Some(kind) = mad_kind(name) else { return Ok(None) };
        let link = match readlinkat(class, name, Vec::new()) {
            Ok(link) => link,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let Some((path, parent)) = parse_link(link.as_bytes(), name) else {
            let text = format!("{CLASS}/{name} leads to \"{}\"", link.as_bytes().escape_ascii());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        };
        let path = OsStr::from_bytes(path);
        let attribute = std::path::Path::new(path).join("ibdev");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let value = self.in_sys(attribute.as_path(), flags).and_then(|file| {
            let mut buffer = [0; 128];
            let len = read(&file, &mut buffer)?;
            Ok(buffer[..len].strip_suffix(b"\n").unwrap_or(&buffer[..len]).to_vec())
        });
        match value {
            Ok(device) => {
                Ok(Some(Mad { name: name.to_owned(), kind, parent: parent.to_vec(), device }))
            }
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl Nodes for Host {
    fn number(&self, name: &str) -> Option<DeviceNumber> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = format!("infiniband/{name}");
        let node = openat2(&self.dev, path, flags, Mode::empty(), BENEATH).ok()?;
        let stat = fstat(&node).ok()?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        is_device.then(|| (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)).into())
    }

    fn mads(&self) -> io::Result<Vec<Mad>> {
        let class = match self.in_sys(CLASS, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(class) => class,
            // ib_umad is not loaded.
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        };
        // By number, so that the file does not depend on the order of the directory.
        let mut mads = BTreeMap::new();
        for entry in Dir::read_from(&class)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if let Some(mad) = self.mad(&class, name)? {
                mads.insert((mad.name.len(), mad.name.clone()), mad);
            }
        }
        Ok(mads.into_values().collect())
    }
}

fn mad_kind(name: &str) -> Option<MadKind> {
    let is_number = |digits: &str| digits.parse::<u32>().is_ok_and(|n| n.to_string() == digits);
    match (name.strip_prefix("umad"), name.strip_prefix("issm")) {
        (Some(digits), _) if is_number(digits) => Some(MadKind::Umad),
        (_, Some(digits)) if is_number(digits) => Some(MadKind::Issm),
        _ => None,
    }
}

/// The path relative to /sys that a link of the class leads to, and the name of the device above:
/// `../../devices/…/PARENT/infiniband_mad/NAME`.
fn parse_link<'a>(text: &'a [u8], name: &str) -> Option<(&'a [u8], &'a [u8])> {
    let path = text.strip_prefix(b"../../")?;
    let parts: Vec<_> = path.split(|byte| *byte == b'/').collect();
    if parts.iter().any(|part| matches!(*part, b"" | b"." | b"..")) {
        return None;
    }
    match parts[..] {
        [b"devices", .., parent, b"infiniband_mad", last] if last == name.as_bytes() => {
            Some((path, parent))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_parsed_strictly() {
        let link = b"../../devices/pci0000:3a/0000:3b:00.2/infiniband_mad/umad0";
        let (path, parent) = parse_link(link, "umad0").expect("a link");
        assert_eq!((path, parent), (&link[6..], &b"0000:3b:00.2"[..]));
        let link = b"../../devices/virtual/infiniband_mad/issm3";
        assert_eq!(parse_link(link, "issm3").expect("a link").1, b"virtual");
        for text in [
            &b""[..],
            b"../../devices/infiniband_mad/umad0",
            b"../../devices/a/../infiniband_mad/umad0",
            b"../../devices//a/infiniband_mad/umad0",
            b"../../class/a/infiniband_mad/umad0",
            b"../../devices/a/infiniband/umad0",
            b"../../devices/a/infiniband_mad/umad1",
            b"/devices/a/infiniband_mad/umad0",
        ] {
            assert_eq!(parse_link(text, "umad0"), None, "{}", text.escape_ascii());
        }
        for name in ["umad", "umad01", "umad-1", "umad+1", "mad0", "abi_version", "issm4294967296"]
        {
            assert_eq!(mad_kind(name), None, "{name}");
        }
    }

    #[test]
    fn the_nodes_of_this_host_can_be_read() {
        let host = Host::open().expect("/sys and /dev");
        assert_eq!(host.number("no such node"), None);
        assert_eq!(host.number("../null"), None);
        host.mads().expect("read");
    }
}
