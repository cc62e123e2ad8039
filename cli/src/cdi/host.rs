//! The nodes of a host beside those of its verbs devices: which there are, which of them are for management datagrams
//! (MAD), and whose they are.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat,
};
use rustix::io::{Errno, read};
use uverbs::DeviceNumber;

use crate::select;

/// The node of the RDMA connection manager, which all devices share.
pub(crate) const RDMA_CM: &str = "rdma_cm";

/// The nodes of a host.
pub(crate) trait Nodes {
    /// The number of a character device in `/dev/infiniband`; `None` if there is no such node.
    fn number(&self, name: &str) -> Option<DeviceNumber>;

    /// The number that [`RDMA_CM`] has in the kernel; `None` if its module is not loaded.
    fn rdma_cm(&self) -> io::Result<Option<DeviceNumber>>;

    /// The nodes for management datagrams.
    fn mads(&self) -> io::Result<Vec<Mad>>;

    /// The name of the device above `uverbsN`, on its bus; `None` if it cannot be read.
    fn parent_of(&self, uverbs: &str) -> Option<Vec<u8>>;
}

/// A node for management datagrams: `umadN` or `issmN`. The N is not that of `uverbsN`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mad {
    pub(crate) name: String,
    pub(crate) kind: MadKind,
    /// The number that it has in the kernel.
    pub(crate) number: DeviceNumber,
    /// The name of the device that it belongs to, on its bus; `virtual` of a software device.
    pub(crate) parent: Vec<u8>,
    /// The name of its RDMA device.
    pub(crate) device: Vec<u8>,
}

impl Mad {
    /// Whether it is a node of the device of this name, whose parent has that name. Where several devices of a parent
    /// are meant, the nodes of the parent are theirs.
    pub(crate) fn is_of(&self, parent: Option<&[u8]>, device: &[u8], of_group: bool) -> bool {
        let is_named = self.device == device;
        match parent {
            Some(parent) => self.parent == parent && (of_group || is_named),
            None => self.parent == b"virtual" && is_named,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MadKind {
    /// Sends and receives datagrams.
    Umad,
    /// Announces to the fabric that a subnet manager runs here.
    Issm,
}

/// The nodes of this host.
pub(crate) struct Host {
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
    pub(crate) fn open() -> io::Result<Self> {
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
        let Some((path, parent)) = parse_link(link.as_bytes(), b"infiniband_mad", name) else {
            let text = format!("{CLASS}/{name} leads to \"{}\"", link.as_bytes().escape_ascii());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        };
        let path = Path::new(OsStr::from_bytes(path));
        let number = self.device_number(&path.join("dev"))?;
        let (Some(number), Some(device)) = (number, self.attribute(&path.join("ibdev"))?) else {
            return Ok(None);
        };
        Ok(Some(Mad { name: name.to_owned(), kind, number, parent: parent.to_vec(), device }))
    }

    /// An attribute, by its path beneath /sys; `None` if it is not there.
    fn attribute(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let value = self.in_sys(path, flags).and_then(|file| {
            let mut buffer = [0; 128];
            let len = read(&file, &mut buffer)?;
            Ok(buffer[..len].strip_suffix(b"\n").unwrap_or(&buffer[..len]).to_vec())
        });
        match value {
            Ok(value) => Ok(Some(value)),
            Err(Errno::NOENT | Errno::NODEV) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// An attribute that is a device number.
    fn device_number(&self, path: &Path) -> io::Result<Option<DeviceNumber>> {
        let Some(value) = self.attribute(path)? else { return Ok(None) };
        match select::device_number(&value) {
            Some(number) => Ok(Some(number)),
            None => {
                let text = format!("{}: not a device number", path.as_os_str().display());
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
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

    fn rdma_cm(&self) -> io::Result<Option<DeviceNumber>> {
        self.device_number(Path::new("devices/virtual/misc/rdma_cm/dev"))
    }

    fn parent_of(&self, uverbs: &str) -> Option<Vec<u8>> {
        let class = self.in_sys("class/infiniband_verbs", OFlags::PATH | OFlags::DIRECTORY).ok()?;
        let link = readlinkat(&class, uverbs, Vec::new()).ok()?;
        let (_, parent) = parse_link(link.as_bytes(), b"infiniband_verbs", uverbs)?;
        Some(parent.to_vec())
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

/// Which of the two a name is of; `None` if of neither.
pub(crate) fn mad_kind(name: &str) -> Option<MadKind> {
    let is_number = |digits: &str| digits.parse::<u32>().is_ok_and(|n| n.to_string() == digits);
    match (name.strip_prefix("umad"), name.strip_prefix("issm")) {
        (Some(digits), _) if is_number(digits) => Some(MadKind::Umad),
        (_, Some(digits)) if is_number(digits) => Some(MadKind::Issm),
        _ => None,
    }
}

/// The path relative to /sys that a link of the class leads to, and the name of the device above:
/// `../../devices/…/PARENT/CLASS/NAME`.
fn parse_link<'a>(text: &'a [u8], class: &[u8], name: &str) -> Option<(&'a [u8], &'a [u8])> {
    let path = text.strip_prefix(b"../../")?;
    let parts: Vec<_> = path.split(|byte| *byte == b'/').collect();
    if parts.iter().any(|part| matches!(*part, b"" | b"." | b"..")) {
        return None;
    }
    match parts[..] {
        [b"devices", .., parent, above, last] if above == class && last == name.as_bytes() => {
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
        let parse_link = |text, name| parse_link(text, b"infiniband_mad", name);
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
        host.rdma_cm().expect("read");
        assert_eq!(host.parent_of("no such device"), None);
        let null = host.device_number(Path::new("devices/virtual/mem/null/dev")).expect("read");
        assert_eq!(null, Some((1, 3).into()));
        assert!(host.device_number(Path::new("devices/virtual/mem/null/uevent")).is_err());
    }
}
