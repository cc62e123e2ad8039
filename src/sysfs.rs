//! Sysfs: opening and reading beneath a directory descriptor, and strict parsers for its contents.

use std::ffi::{CStr, CString};

use crate::error::{Error, ErrorKind, Result};
use crate::ids::{DeviceNumber, Guid, Name};
use crate::kernel::Bad;
use crate::kernel::nldev::NAME_MAX;
use crate::kernel::{DirEntry, Errno, FileType, Handle, Kernel, OFlags, Resolve, Stat, retry};

/// Opens a directory beneath /sys as a reference only.
pub(crate) const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);
/// Opens a directory beneath /sys to sweep its names.
pub(crate) const SWEEP: OFlags = OFlags::DIRECTORY;
/// Opens a link itself.
pub(crate) const LINK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);
/// Opens an attribute. A file that poses as one must neither block nor become the controlling terminal.
const ATTRIBUTE: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens something beneath /sys.
pub(crate) fn open(kernel: &Kernel, sys: &Handle, path: &CStr, flags: OFlags) -> Result<Handle> {
    open_beneath(kernel, "sys", sys, path, flags)
}

fn open_beneath(
    kernel: &Kernel,
    name: &str,
    dir: &Handle,
    path: &CStr,
    flags: OFlags,
) -> Result<Handle> {
    retry(|| kernel.openat2(dir, path, flags, Resolve::Sys)).map_err(|errno| {
        let error = Error::call(open_text(name, path, flags), errno);
        match errno {
            Errno::XDEV => error.with_hint(MASKED),
            Errno::ACCESS => error.with_hint(UNREADABLE),
            _ => error,
        }
    })
}

const MASKED: &str = "a part of /sys is mounted over, as some containers mask it, and the library does not read \
                      through another mount: it needs the whole sysfs at /sys";
const UNREADABLE: &str =
    "this user may not read the device's directory in /sys, or that of its class";

/// An `openat2` as strace prints it, with the directory's name.
pub(crate) fn open_text(dir: &str, path: &CStr, flags: OFlags) -> String {
    let mut text = String::new();
    for (name, _) in flags.iter_names() {
        text.push_str("O_");
        text.push_str(name);
        text.push('|');
    }
    let path = path.to_bytes().escape_ascii();
    format!("openat2({dir}, \"{path}\", {text}O_CLOEXEC)")
}

/// `fstat` of an open descriptor.
pub(crate) fn stat(kernel: &Kernel, fd: &Handle) -> Result<Stat> {
    retry(|| kernel.fstat(fd)).map_err(|errno| Error::call("fstat", errno))
}

/// An attribute that is held open. Each read returns the current value. Once the device is gone, every read fails
/// with ENODEV (`kernfs_seq_start`, `fs/kernfs/file.c`).
#[derive(Debug)]
pub(crate) struct Attribute {
    handle: Handle,
    name: &'static CStr,
}

/// Length of the read buffer, longer than the longest value that is accepted.
const VALUE_MAX: usize = 128;

impl Attribute {
    /// Opens attribute `name` of the directory.
    pub(crate) fn open(kernel: &Kernel, dir: &Handle, name: &'static CStr) -> Result<Self> {
        Ok(Self { handle: open_beneath(kernel, "uverbs directory", dir, name, ATTRIBUTE)?, name })
    }

    /// `fstat` of it. It is an error if it is not a regular file.
    pub(crate) fn stat(&self, kernel: &Kernel) -> Result<Stat> {
        let stat = stat(kernel, &self.handle)?;
        if stat.kind == FileType::RegularFile {
            Ok(stat)
        } else {
            Err(self.malformed(Bad("not a regular file")))
        }
    }

    /// Reads its current value and parses it without the line feed at its end.
    pub(crate) fn read<T>(
        &self,
        kernel: &Kernel,
        parse: impl FnOnce(&[u8]) -> std::result::Result<T, Bad>,
    ) -> Result<T> {
        read_value(kernel, &self.handle, self.name, parse)
    }

    fn malformed(&self, bad: Bad) -> Error {
        malformed(self.name, bad)
    }
}

fn malformed(name: &CStr, bad: Bad) -> Error {
    Error::malformed(format_args!("attribute {}", name.to_bytes().escape_ascii()), bad)
}

fn read_value<T>(
    kernel: &Kernel,
    handle: &Handle,
    name: &CStr,
    parse: impl FnOnce(&[u8]) -> std::result::Result<T, Bad>,
) -> Result<T> {
    let mut buffer = [0; VALUE_MAX];
    let len = retry(|| kernel.pread(handle, &mut buffer)).map_err(|errno| {
        Error::call(format!("pread(\"{}\")", name.to_bytes().escape_ascii()), errno)
    })?;
    let value = buffer.get(..len).ok_or(Bad("longer than the buffer"));
    value.and_then(line).and_then(parse).map_err(|bad| malformed(name, bad))
}

/// Opens an attribute beneath a directory, reads it once, and closes it.
pub(crate) fn read_once<T>(
    kernel: &Kernel,
    dir: &Handle,
    path: &CStr,
    parse: impl FnOnce(&[u8]) -> std::result::Result<T, Bad>,
) -> Result<T> {
    let handle = open_beneath(kernel, "device directory", dir, path, ATTRIBUTE)?;
    read_value(kernel, &handle, path, parse)
}

/// The same of an attribute that not every device has: `None` if there is none.
pub(crate) fn read_optional<T>(
    kernel: &Kernel,
    dir: &Handle,
    path: &CStr,
    parse: impl FnOnce(&[u8]) -> std::result::Result<T, Bad>,
) -> Result<Option<T>> {
    match open_beneath(kernel, "device directory", dir, path, ATTRIBUTE) {
        Ok(handle) => read_value(kernel, &handle, path, parse).map(Some),
        Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The text of a link in a directory; `None` if there is none.
pub(crate) fn read_link(kernel: &Kernel, dir: &Handle, name: &CStr) -> Result<Option<Vec<u8>>> {
    let link = match open_beneath(kernel, "device directory", dir, name, LINK) {
        Ok(link) => link,
        Err(error) if error.errno() == Some(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut buffer = [0; LINK_MAX];
    let len = read_link_into(kernel, &link, c"", name, &mut buffer)?;
    match buffer.get(..len) {
        Some(text) if len < LINK_MAX => Ok(Some(text.to_vec())),
        _ => Err(malformed_link(name, Bad("too long"))),
    }
}

/// Reads the link of that name in a directory, or with an empty name an open one. Errors show `path`.
fn read_link_into(
    kernel: &Kernel,
    fd: &Handle,
    name: &CStr,
    path: &CStr,
    buffer: &mut [u8],
) -> Result<usize> {
    retry(|| kernel.readlink(fd, name, buffer)).map_err(|errno| {
        Error::call(format!("readlinkat(\"{}\")", path.to_bytes().escape_ascii()), errno)
    })
}

pub(crate) fn malformed_link(name: &CStr, bad: Bad) -> Error {
    Error::malformed(format_args!("link {}", name.to_bytes().escape_ascii()), bad)
}

/// The text before the line feed that ends every value.
pub(crate) fn line(value: &[u8]) -> std::result::Result<&[u8], Bad> {
    match value.split_last() {
        _ if value.len() == VALUE_MAX => Err(Bad("too long")),
        Some((b'\n', text)) => Ok(text),
        _ => Err(Bad("not ended by a line feed")),
    }
}

/// `ibdev`: a device name, which may be any bytes except NUL, and is not empty.
pub(crate) fn parse_name(text: &[u8]) -> std::result::Result<Name, Bad> {
    match text.len() {
        0 => Err(Bad("an empty name")),
        1..=NAME_MAX if !text.contains(&0) => Ok(Name::new(text)),
        1..=NAME_MAX => Err(Bad("a name with a NUL in it")),
        _ => Err(Bad("a name of more than 63 bytes")),
    }
}

/// `dev`: `major:minor`, in decimal digits.
pub(crate) fn parse_device_number(text: &[u8]) -> std::result::Result<DeviceNumber, Bad> {
    const BAD: Bad = Bad("not a device number");
    let colon = text.iter().position(|&byte| byte == b':').ok_or(BAD)?;
    let major = parse_decimal(&text[..colon]).ok_or(BAD)?;
    let minor = parse_decimal(&text[colon + 1..]).ok_or(BAD)?;
    // The kernel's dev_t has 12 and 20 bits (linux/kdev_t.h).
    if major < 1 << 12 && minor < 1 << 20 { Ok((major, minor).into()) } else { Err(BAD) }
}

/// `node_guid`: four groups of four hexadecimal digits.
pub(crate) fn parse_guid(text: &[u8]) -> std::result::Result<Guid, Bad> {
    const BAD: Bad = Bad("not a GUID");
    let mut guid = 0;
    let mut groups = 0;
    for group in text.split(|&byte| byte == b':') {
        guid = guid << 16 | u64::from(parse_hex(group).ok_or(BAD)?);
        groups += 1;
    }
    if groups == 4 { Ok(Guid(guid)) } else { Err(BAD) }
}

/// `pkeys/I`: `0x` and four hexadecimal digits.
pub(crate) fn parse_pkey(text: &[u8]) -> std::result::Result<u16, Bad> {
    text.strip_prefix(b"0x").and_then(parse_hex).ok_or(Bad("not a partition key"))
}

/// `vendor` and `device` of a PCI function: `0x` and four hexadecimal digits.
pub(crate) fn parse_pci_id(text: &[u8]) -> std::result::Result<u16, Bad> {
    text.strip_prefix(b"0x").and_then(parse_hex).ok_or(Bad("not a number of the PCI bus"))
}

/// Four lower-case hexadecimal digits.
fn parse_hex(digits: &[u8]) -> Option<u16> {
    let digits: &[u8; 4] = digits.try_into().ok()?;
    digits.iter().try_fold(0, |sum, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(sum << 4 | u16::from(digit))
    })
}

/// Reads the content of an attribute, without the line feed at the end.
pub(crate) fn read_bytes(kernel: &Kernel, dir: &Handle, path: &CStr) -> Result<Vec<u8>> {
    // A value is shorter than a page (`sysfs_kf_seq_show`, fs/sysfs/file.c).
    let mut buffer = vec![0; 4096];
    let handle = open_beneath(kernel, "device directory", dir, path, ATTRIBUTE)?;
    let len = retry(|| kernel.pread(&handle, &mut buffer)).map_err(|errno| {
        Error::call(format!("pread(\"{}\")", path.to_bytes().escape_ascii()), errno)
    })?;
    if len >= buffer.len() {
        return Err(malformed(path, Bad("too long")));
    }
    buffer.truncate(len);
    buffer.pop_if(|last| *last == b'\n');
    Ok(buffer)
}

/// A decimal number as the kernel prints it: no sign, no leading zero.
pub(crate) fn parse_decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    digits.iter().try_fold(0u32, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// The N of `uverbsN`.
pub(crate) fn parse_uverbs(name: &[u8]) -> Option<u32> {
    parse_decimal(name.strip_prefix(b"uverbs")?)
}

/// The target of the class link of `uverbsN`: a path relative to /sys, without `..`.
///
/// Links of the kernel are `../../devices/…/infiniband_verbs/uverbsN`. Anything else is refused.
pub(crate) fn parse_class_link(text: &[u8], number: u32) -> std::result::Result<CString, Bad> {
    let path = text.strip_prefix(b"../../").ok_or(Bad("a class link that does not lead up"))?;
    let mut parts = path.split(|&byte| byte == b'/');
    if parts.next() != Some(b"devices") {
        return Err(Bad("a class link that does not lead to devices/"));
    }
    let (mut parent, mut last): (&[u8], &[u8]) = (b"", b"");
    for part in parts {
        if matches!(part, b"" | b"." | b"..") {
            return Err(Bad("a class link with an empty, . or .. part"));
        }
        (parent, last) = (last, part);
    }
    if parent != b"infiniband_verbs" || parse_uverbs(last) != Some(number) {
        return Err(Bad("a class link that leads to another kind of device"));
    }
    CString::new(path).map_err(|_| Bad("a class link with a NUL in it"))
}

/// The longest link text that is accepted, enough for some fifty nested bridges.
const LINK_MAX: usize = 1024;

/// Reads the target of the class link of `uverbsN`. The inode number of the directory there has to be read
/// separately.
pub(crate) fn read_class_link(kernel: &Kernel, sys: &Handle, number: u32) -> Result<CString> {
    let path = uverbs_path("class/infiniband_verbs/", number);
    let link = open(kernel, sys, &path, LINK)?;
    read_class_link_from(kernel, &link, c"", &path, number)
}

/// The same, from the open class directory. Takes one system call.
pub(crate) fn read_class_link_in(kernel: &Kernel, class: &Handle, number: u32) -> Result<CString> {
    let name = uverbs_path("", number);
    read_class_link_from(kernel, class, &name, &name, number)
}

fn read_class_link_from(
    kernel: &Kernel,
    fd: &Handle,
    name: &CStr,
    path: &CStr,
    number: u32,
) -> Result<CString> {
    let mut buffer = [0; LINK_MAX];
    let len = read_link_into(kernel, fd, name, path, &mut buffer)?;
    match buffer.get(..len) {
        Some(text) if len < LINK_MAX => parse_class_link(text, number),
        _ => Err(Bad("a class link that is too long")),
    }
    .map_err(|bad| Error::malformed(path.to_string_lossy(), bad))
}

/// The path of the parent device's directory, from that of a uverbs device. Both are relative to /sys.
pub(crate) fn parent_path(uverbs: &CStr) -> Result<CString> {
    let class = uverbs.to_bytes().rsplitn(3, |byte| *byte == b'/').nth(2).unwrap_or_default();
    CString::new(class).map_err(|_| Error::new(ErrorKind::Malformed, "a path with a NUL in it"))
}

/// The path of the directory of the RDMA device of that name, next to that of its uverbs device.
///
/// # Errors
/// `Unsupported` for a name that is not one component of a path: it would lead to another device's directory.
pub(crate) fn rdma_path(uverbs: &CStr, name: &Name) -> Result<CString> {
    let text = name.as_bytes();
    if matches!(text, b"." | b"..") || text.contains(&b'/') {
        let text = format!("a device named \"{name}\" has no directory of its own in sysfs");
        let error = Error::new(ErrorKind::Unsupported, text);
        return Err(error.with_hint("rename the device"));
    }
    let path = [parent_path(uverbs)?.to_bytes(), b"/infiniband/", text].concat();
    CString::new(path).map_err(|_| Error::new(ErrorKind::Malformed, "a name with a NUL in it"))
}

/// `prefix` and `uverbsN` as a path.
pub(crate) fn uverbs_path(prefix: &str, number: u32) -> CString {
    CString::new(format!("{prefix}uverbs{number}")).unwrap_or_default()
}

/// Whether an error means that something is no longer there.
pub(crate) fn is_absent(error: &Error) -> bool {
    matches!(error.errno(), Some(Errno::NOENT | Errno::NODEV | Errno::NXIO))
        && error.kind() == ErrorKind::Os
}

/// How many pages of names a sweep reads: far more than 8,192 devices take, which is the kernel's limit.
const PAGES: usize = 1024;

/// Passes every entry of an open directory to `each`.
pub(crate) fn sweep(
    kernel: &Kernel,
    directory: &Handle,
    path: &'static str,
    each: &mut dyn FnMut(DirEntry<'_>),
) -> Result<()> {
    for _ in 0..PAGES {
        let more = retry(|| kernel.getdents(directory, each))
            .map_err(|errno| Error::call(format!("getdents64(\"{path}\")"), errno))?;
        if !more {
            return Ok(());
        }
    }
    Err(Error::new(ErrorKind::Malformed, format!("{path}: more entries than there can be devices")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_come_back(major in 0u32..1 << 12, minor in 0u32..1 << 20) {
            let text = format!("{major}:{minor}");
            prop_assert_eq!(parse_device_number(text.as_bytes()), Ok((major, minor).into()));
        }

        #[test]
        fn guids_and_keys_come_back(guid: u64, key: u16) {
            let text = Guid(guid).to_string();
            prop_assert_eq!(parse_guid(text.as_bytes()), Ok(Guid(guid)));
            prop_assert_eq!(parse_guid(&text.as_bytes()[5..]), Err(Bad("not a GUID")));
            prop_assert_eq!(parse_pkey(format!("0x{key:04x}").as_bytes()), Ok(key));
        }

        #[test]
        fn only_what_the_kernel_prints_is_a_number(text in "[0-9:+ -]{0,12}") {
            if let Ok(number) = parse_device_number(text.as_bytes()) {
                prop_assert_eq!(number.to_string(), text);
            }
        }

        #[test]
        fn any_bytes_are_an_error_or_one_line(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_device_number(&bytes);
            let _ = parse_uverbs(&bytes);
            let _ = parse_guid(&bytes);
            let _ = parse_pkey(&bytes);
            if let Ok(name) = line(&bytes).and_then(parse_name) {
                prop_assert_eq!([name.as_bytes(), b"\n"].concat(), bytes);
            }
        }

        #[test]
        fn a_link_stays_beneath_devices(
            text in r"(\.\./){0,3}(devices/|class/|/)?([a-z.]{0,3}/){0,3}(infiniband_verbs/)?uverbs[0-2]"
        ) {
            if let Ok(path) = parse_class_link(text.as_bytes(), 1) {
                let path = path.to_str().expect("of ASCII");
                prop_assert!(path.starts_with("devices/") && path.ends_with("/infiniband_verbs/uverbs1"));
                prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")));
            }
        }
    }

    #[test]
    fn class_links_of_the_kernel() {
        let link = b"../../devices/pci0000:00/0000:00:03.0/infiniband_verbs/uverbs31";
        assert!(parse_class_link(link, 31).is_ok());
        assert!(parse_class_link(link, 3).is_err());
        assert_eq!(parse_uverbs(b"uverbs0"), Some(0));
        assert_eq!(parse_uverbs(b"uverbs00"), None);
    }
}
