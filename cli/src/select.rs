//! Which device is meant on the command line.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;

use uverbs::{Device, Devices, Error, ErrorKind, Guid};

/// A device as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// By name, any bytes.
    Name(Vec<u8>),
    /// By the N of uverbsN, unless another device is *named* so.
    Uverbs(u32),
    /// By netlink index.
    Index(u32),
    /// By node GUID.
    Guid(Guid),
}

impl Selector {
    /// Understands `NAME`, `uverbsN`, `name=NAME`, `index=N` and `guid=GUID`.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, &'static str> {
        let bytes = text.as_bytes();
        if bytes.is_empty() {
            return Err("a device has a name");
        }
        if let Some(name) = bytes.strip_prefix(b"name=") {
            return Ok(Self::Name(name.into()));
        }
        if let Some(index) = bytes.strip_prefix(b"index=") {
            return number(index).map(Self::Index).ok_or("an index is a number: index=3");
        }
        if let Some(digits) = bytes.strip_prefix(b"guid=") {
            const EXAMPLE: &str = "a GUID has 16 hexadecimal digits: guid=0002:c903:0005:1234";
            return guid(digits).map(Self::Guid).ok_or(EXAMPLE);
        }
        Ok(uverbs_number(bytes).map_or_else(|| Self::Name(bytes.into()), Self::Uverbs))
    }

    /// Finds the device in a list.
    pub(crate) fn find(&self, devices: &Devices) -> uverbs::Result<Device> {
        match self {
            Self::Name(name) => devices.by_name(name),
            Self::Uverbs(number) => {
                let name = format!("uverbs{number}");
                devices.by(self, |device| {
                    device.uverbs_number() == *number || device.name() == name.as_str()
                })
            }
            Self::Index(index) => self.ask(devices, |device| Ok(device.index()? == *index)),
            Self::Guid(guid) => self.ask(devices, |device| Ok(device.query()?.node_guid == *guid)),
        }
    }

    /// Finds it by what netlink says of each. Where none fits, a device that could not be asked is
    /// the reason.
    fn ask(
        &self,
        devices: &Devices,
        fits: impl Fn(&Device) -> uverbs::Result<bool>,
    ) -> uverbs::Result<Device> {
        let mut silent = None;
        let found = devices.by(self, |device| match fits(device) {
            Ok(fits) => fits,
            Err(error) => {
                if !is_gone(&error) {
                    silent.get_or_insert(error);
                }
                false
            }
        });
        match (found, silent) {
            (Err(error), Some(silent)) if error.kind() == ErrorKind::NotFound => Err(silent),
            (found, _) => found,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "\"{}\"", name.escape_ascii()),
            Self::Uverbs(number) => write!(f, "uverbs{number}"),
            Self::Index(index) => write!(f, "index={index}"),
            Self::Guid(guid) => write!(f, "guid={guid}"),
        }
    }
}

/// Whether an error says that the device is no longer there.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced)
}

/// The N of `uverbsN`, as the kernel writes it.
pub(crate) fn uverbs_number(name: &[u8]) -> Option<u32> {
    number(name.strip_prefix(b"uverbs")?)
}

/// Decimal digits without leading zeros.
fn number(digits: &[u8]) -> Option<u32> {
    let is_canonical = digits == b"0" || !digits.starts_with(b"0");
    if !is_canonical || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

/// `0002:c903:0005:1234`, `0x0002c90300051234` or `0002c90300051234`.
fn guid(text: &[u8]) -> Option<Guid> {
    let text = str::from_utf8(text).ok()?;
    let parts: Vec<_> = text.split(':').collect();
    let digits = match parts[..] {
        [whole] => whole.strip_prefix("0x").unwrap_or(whole).to_owned(),
        [a, b, c, d] if [a, b, c, d].iter().all(|part| part.len() == 4) => parts.concat(),
        _ => return None,
    };
    if digits.len() != 16 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(&digits, 16).ok().map(Guid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Selector, &'static str> {
        Selector::parse(OsStr::from_bytes(text))
    }

    fn name(text: &[u8]) -> Result<Selector, &'static str> {
        Ok(Selector::Name(text.into()))
    }

    #[test]
    fn each_way_to_name_a_device() {
        assert_eq!(parse(b"mlx5_0"), name(b"mlx5_0"));
        assert_eq!(parse(b"uverbs12"), Ok(Selector::Uverbs(12)));
        assert_eq!(parse(b"name=uverbs12"), name(b"uverbs12"));
        assert_eq!(parse(b"index=4294967295"), Ok(Selector::Index(u32::MAX)));
        let guid = Ok(Selector::Guid(Guid(0x0002_c903_0005_1234)));
        assert_eq!(parse(b"guid=0002:c903:0005:1234"), guid);
        assert_eq!(parse(b"guid=0x0002C90300051234"), guid);
        assert_eq!(parse(b"guid=0002c90300051234"), guid);
    }

    #[test]
    fn what_is_no_number_is_a_name_or_an_error() {
        for text in
            [&b"uverbs"[..], b"uverbs01", b"uverbs-1", b"uverbs4294967296", b"\xff\n", b".."]
        {
            assert_eq!(parse(text), name(text));
        }
        for text in [
            &b""[..],
            b"index=",
            b"index=+1",
            b"index=01",
            b"guid=",
            b"guid=1",
            b"guid=0002:c903:0005:123",
            b"guid=0002:c903:00051234",
            b"guid=+002c90300051234",
        ] {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn it_prints_escaped() {
        assert_eq!(Selector::Name(b"a\x1b[31m".into()).to_string(), r#""a\x1b[31m""#);
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_name_that_looks_like_another_device_is_ambiguous() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        machine.add(DeviceSpec::new("uverbs1").guid(0xa0)).expect("added");
        machine.add(DeviceSpec::new("rxe1").guid(0xb0)).expect("added");
        let host = uverbs::Host::simulated(&machine, uverbs::Policy::new()).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let find = |text: &str| parse(text.as_bytes()).expect("a selector").find(&devices);
        let number = |text| find(text).expect("found").uverbs_number();
        assert_eq!(find("uverbs1").expect_err("refused").kind(), ErrorKind::Ambiguous);
        assert_eq!(number("name=uverbs1"), 0);
        assert_eq!(number("uverbs0"), 0);
        assert_eq!(number("guid=00000000000000b0"), 1);
        let index = devices.by_name("rxe1").expect("listed").index().expect("an index");
        assert_eq!(number(&format!("index={index}")), 1);
        assert_eq!(find("guid=00000000000000c0").expect_err("none").kind(), ErrorKind::NotFound);
        machine.deny_netlink(Some(1));
        assert_eq!(find("guid=00000000000000c0").expect_err("none").kind(), ErrorKind::Unproven);
    }
}
