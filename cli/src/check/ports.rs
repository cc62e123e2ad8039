//! Ports of a device, from sysfs: their state and rate, without opening the device.
//!
//! A driver may ask its firmware for these, so that a read may hang. They are read by the worker alone.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

/// A port. What cannot be read, or is not understood, is `None`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    pub(super) port: u8,
    /// `enum ib_port_state`.
    pub(super) state: Option<u64>,
    /// `enum ib_port_phys_state`.
    pub(super) physical_state: Option<u64>,
    /// The rate of all lanes.
    pub(super) bytes_per_second: Option<u64>,
}

/// The ports of the device whose uverbs directory this is; none if it is not certain that they are its.
///
/// The class `infiniband` has devices by name, and a name may pass to another device. So the name is read before and
/// after, through the directory of the instance.
pub(super) fn read(uverbs: impl AsFd) -> Vec<Port> {
    read_in(Path::new("/sys/class/infiniband"), uverbs)
}

fn read_in(class: &Path, uverbs: impl AsFd) -> Vec<Port> {
    let name = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut name = text(openat(&uverbs, "ibdev", flags, Mode::empty()).ok()?.into())?;
        (name.pop() == Some(b'\n')).then_some(name)
    };
    let Some(before) = name() else { return Vec::new() };
    if before.contains(&b'/') || matches!(&*before, b"" | b"." | b"..") {
        return Vec::new();
    }
    let directory = class.join(std::ffi::OsStr::from_bytes(&before)).join("ports");
    let numbers = fs::read_dir(&directory).into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let mut numbers: Vec<u8> = numbers.collect();
    numbers.sort_unstable();
    numbers.dedup();
    let ports: Vec<_> = numbers.iter().map(|&number| port(&directory, number)).collect();
    match name() == Some(before) {
        true => ports,
        false => Vec::new(),
    }
}

fn port(directory: &Path, port: u8) -> Port {
    let directory = directory.join(port.to_string());
    let attribute = |name: &str| text(File::open(directory.join(name)).ok()?);
    Port {
        port,
        state: attribute("state").as_deref().and_then(state),
        physical_state: attribute("phys_state").as_deref().and_then(state),
        bytes_per_second: attribute("rate").as_deref().and_then(bytes_per_second),
    }
}

/// An attribute: at most a page, as in sysfs.
fn text(file: File) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    file.take(4096).read_to_end(&mut text).ok()?;
    Some(text)
}

/// The number of `4: ACTIVE`.
fn state(text: &[u8]) -> Option<u64> {
    let (number, words) = str::from_utf8(text).ok()?.split_once(':')?;
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    (is_number && words.starts_with(' ')).then(|| number.parse().ok())?
}

/// The rate of `2.5 Gb/sec (1X SDR)`, where the kernel writes one decimal at most.
fn bytes_per_second(text: &[u8]) -> Option<u64> {
    let (number, _) = str::from_utf8(text).ok()?.split_once(" Gb/sec")?;
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(tenth) || tenth.len() != 1 {
        return None;
    }
    let tenths = whole.parse::<u64>().ok()?.checked_mul(10)? + tenth.parse::<u64>().ok()?;
    tenths.checked_mul(100_000_000 / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_as_the_kernel_writes_them() {
        assert_eq!(state(b"4: ACTIVE\n"), Some(4));
        assert_eq!(state(b"5: LinkUp\n"), Some(5));
        assert_eq!(state(b"0: <unknown>\n"), Some(0));
        for odd in [&b""[..], b"ACTIVE", b"4", b": x", b"-1: x", b"\xff: x", b"4:", b" 4: x"] {
            assert_eq!(state(odd), None, "{}", odd.escape_ascii());
        }
        assert_eq!(bytes_per_second(b"100 Gb/sec (4X EDR)\n"), Some(12_500_000_000));
        assert_eq!(bytes_per_second(b"2.5 Gb/sec (1X SDR)\n"), Some(312_500_000));
        for odd in [
            &b""[..],
            b"100",
            b" Gb/sec",
            b".5 Gb/sec",
            b"1. Gb/sec",
            b"1.25 Gb/sec",
            b"-1 Gb/sec",
            b"NaN Gb/sec",
            b"99999999999999999999 Gb/sec",
            b"1844674407370955161 Gb/sec",
        ] {
            assert_eq!(bytes_per_second(odd), None, "{}", odd.escape_ascii());
        }
    }

    #[test]
    fn one_odd_attribute_costs_one_value() {
        let root = tempfile::tempdir().expect("a directory");
        let (uverbs, class) = (root.path().join("uverbs0"), root.path().join("infiniband"));
        fs::create_dir(&uverbs).expect("made");
        let attribute = |path: &Path, text: &str| {
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        attribute(&uverbs.join("ibdev"), "mlx5_0\n");
        let ports = class.join("mlx5_0/ports");
        for (port, name, text) in [
            ("1", "state", "4: ACTIVE\n"),
            ("1", "phys_state", "odd\n"),
            ("1", "rate", "100 Gb/sec (4X EDR)\n"),
            ("2", "state", "1: DOWN\n"),
            ("x", "state", "4: ACTIVE\n"),
        ] {
            attribute(&ports.join(port).join(name), text);
        }
        let read = || read_in(&class, File::open(&uverbs).expect("opened"));
        let port = |port, state, bytes_per_second| Port {
            port,
            state: Some(state),
            physical_state: None,
            bytes_per_second,
        };
        assert_eq!(read(), [port(1, 4, Some(12_500_000_000)), port(2, 1, None)]);
        for name in ["other\n", "..\n", "../infiniband/mlx5_0\n", "\n", ""] {
            attribute(&uverbs.join("ibdev"), name);
            assert!(read().is_empty(), "{name:?}");
        }
    }
}
