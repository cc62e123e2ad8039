//! Which device is meant on the command line.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;

use uverbs::{Device, Devices, Error, ErrorKind, Guid, ParseGuidError};

/// A device as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selector {
    /// By name: its bytes, or its bytes as they are printed.
    Name(Vec<u8>),
    /// By the N of uverbsN.
    Uverbs(u32),
    /// By the N of uverbsN, unless another device is *named* so.
    UverbsOrName(u32),
    /// By netlink index.
    Index(u32),
    /// By node GUID.
    Guid(Guid),
}

/// How a device may be named, for errors.
const KEYS: &str = "name=NAME, uverbs=N, index=N or guid=GUID";

impl Selector {
    /// Parses a name, `uverbsN`, `name=NAME`, `uverbs=N`, `index=N` or `guid=GUID`.
    ///
    /// # Errors
    /// A message that repeats the text escaped, or not at all.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let Some(equals) = bytes.iter().position(|byte| *byte == b'=') else {
            return match uverbs_number(bytes) {
                Some(number) => Ok(Self::UverbsOrName(number)),
                None => name(bytes),
            };
        };
        let (key, value) = (&bytes[..equals], &bytes[equals + 1..]);
        match key {
            b"name" => name(value),
            b"uverbs" => number(value)
                .map(Self::Uverbs)
                .ok_or_else(|| "the number of a uverbs device is a number: uverbs=0".to_owned()),
            b"index" => number(value)
                .map(Self::Index)
                .ok_or_else(|| "an index is a number: index=3".to_owned()),
            b"guid" => guid(value).map(Self::Guid),
            _ => Err(format!(
                "\"{}\" is no key: use {KEYS} (name= also for a name with \"=\" in it)",
                key.escape_ascii()
            )),
        }
    }

    /// Finds the device in a list.
    pub(crate) fn find(&self, devices: &Devices) -> uverbs::Result<Device> {
        match self {
            Self::Name(asked) => devices.by(self, |device| is_named(device, asked)),
            Self::Uverbs(number) => devices.by(self, |device| device.uverbs_number() == *number),
            Self::UverbsOrName(number) => {
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
            Self::Uverbs(number) => write!(f, "uverbs={number}"),
            Self::UverbsOrName(number) => write!(f, "uverbs{number}"),
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

fn name(bytes: &[u8]) -> Result<Selector, String> {
    match bytes {
        [] => Err("a device has a name".to_owned()),
        _ => Ok(Selector::Name(bytes.into())),
    }
}

/// Whether a device has that name, or one that is printed so. Where this holds for two devices, the name is
/// ambiguous.
fn is_named(device: &Device, asked: &[u8]) -> bool {
    let name = device.name();
    name.as_bytes() == asked || name.to_string().as_bytes() == asked
}

/// A GUID as it is printed, or 16 digits, also with `0x` before them.
fn guid(text: &[u8]) -> Result<Guid, String> {
    let text = String::from_utf8_lossy(text);
    let digits = text.strip_prefix("0x").filter(|digits| digits.len() == 16).unwrap_or(&text);
    digits.parse().map_err(|error: ParseGuidError| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Selector, String> {
        Selector::parse(OsStr::from_bytes(text))
    }

    fn name(text: &[u8]) -> Result<Selector, String> {
        Ok(Selector::Name(text.into()))
    }

    #[test]
    fn each_way_to_name_a_device() {
        assert_eq!(parse(b"mlx5_0"), name(b"mlx5_0"));
        assert_eq!(parse(b"uverbs12"), Ok(Selector::UverbsOrName(12)));
        assert_eq!(parse(b"uverbs=12"), Ok(Selector::Uverbs(12)));
        for text in [&b"uverbs12"[..], b"index=3", b"=", b"a=b", b"name=", b"\xff\x1b"] {
            assert_eq!(parse(&[b"name=", text].concat()), name(text));
        }
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
            b"name=",
            b"uverbs=",
            b"uverbs=uverbs0",
            b"Name=a",
            b"=a",
            b"index=",
            b"index=+1",
            b"index=01",
            b"guid=",
            b"guid=1",
            b"guid=0002:c903:0005:123",
            b"guid=0002:c903:00051234",
            b"guid=+002c90300051234",
            b"guid=0x0002:c903:0005:1234",
            b"guid=0x0x02c90300051234",
        ] {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn errors_name_the_keys_and_repeat_nothing_raw() {
        let error = parse(b"inde\x1b[31m\n=3").expect_err("no key");
        assert!(error.starts_with(r#""inde\x1b[31m\n" is no key"#), "{error}");
        for key in ["name=", "uverbs=", "index=", "guid="] {
            assert!(error.contains(key), "{error}");
            let error = parse(format!("{key}\u{1b}").as_bytes());
            assert!(error.is_ok() || !error.unwrap_err().contains('\u{1b}'), "{key}");
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
        assert_eq!(number("uverbs=1"), 1);
        assert_eq!(find("uverbs=2").expect_err("none").kind(), ErrorKind::NotFound);
        assert_eq!(number("name=uverbs1"), 0);
        assert_eq!(number("uverbs0"), 0);
        assert_eq!(number("guid=00000000000000b0"), 1);
        let index = devices.by_name("rxe1").expect("listed").index().expect("an index");
        assert_eq!(number(&format!("index={index}")), 1);
        assert_eq!(find("guid=00000000000000c0").expect_err("none").kind(), ErrorKind::NotFound);
        machine.deny_netlink(Some(1));
        assert_eq!(
            find("guid=00000000000000c0").expect_err("none").kind(),
            ErrorKind::NetlinkUnavailable
        );
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_name_is_found_by_its_bytes_and_as_it_is_printed() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        for name in [&b"a\x1b"[..], b"b\n\xff", br"b\x1b", b"c=d", br"e\\x", br"e\x"] {
            machine.add(DeviceSpec::new(name)).expect("added");
        }
        let host = uverbs::Host::simulated(&machine, uverbs::Policy::new()).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let find = |text: &[u8]| parse(text).expect("a selector").find(&devices);
        for device in &devices {
            let bytes = [b"name=", device.name().as_bytes()].concat();
            let printed = [b"name=", device.name().to_string().as_bytes()].concat();
            if device.name().as_bytes() == br"e\\x" {
                // It is also what the other one is printed as.
                assert_eq!(find(&bytes).expect_err("refused").kind(), ErrorKind::Ambiguous);
            } else {
                assert_eq!(find(&bytes).expect("by its bytes"), *device);
            }
            if device.name().as_bytes() == br"e\x" {
                assert_eq!(find(&printed).expect_err("refused").kind(), ErrorKind::Ambiguous);
            } else {
                assert_eq!(find(&printed).expect("as printed"), *device);
            }
        }
        assert_eq!(find(br"a\x1b").expect("found").uverbs_number(), 0);
        // An escape that `list` does not print is a name that no device has.
        assert_eq!(find(br"\x61\x1b").expect_err("none").kind(), ErrorKind::NotFound);
    }
}
