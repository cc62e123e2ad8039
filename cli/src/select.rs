//! Which device is meant on the command line.

use std::cmp::Reverse;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;

use uverbs::{
    Device, DeviceNumber, Devices, Error, ErrorKind, Guid, ParseGuidError, ParsePciAddressError,
    PciAddress,
};

use crate::absent::Absent;
use crate::netdev;
use crate::output::{Failure, up_to_five};

/// A device as it is named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector {
    by: By,
    /// The same text as a name: without a key, it may be that as well.
    or_name: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum By {
    /// Its name: the bytes, or the bytes as they are printed.
    Name(Vec<u8>),
    /// The N of uverbsN.
    Uverbs(u32),
    /// The device number of its node.
    Number(DeviceNumber),
    /// Its netlink index.
    Index(u32),
    /// Its node GUID.
    Guid(Guid),
    /// The address of its PCI function, and the number of the sub-function, where one is meant.
    Pci(PciAddress, Option<u32>),
    /// A network device of one of its ports.
    Netdev(Vec<u8>),
}

/// The keys, for errors.
const KEYS: &str =
    "name=NAME, uverbs=N, dev_t=MAJOR:MINOR, index=N, guid=GUID, pci=ADDRESS or netdev=NAME";

impl Selector {
    /// Parses a device as the help of the command describes it.
    ///
    /// # Errors
    /// A message that repeats the text escaped, or not at all.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let bytes = text.as_bytes();
        let Some(equals) = bytes.iter().position(|byte| *byte == b'=') else {
            let by = match without_key(bytes) {
                Some(by) => by,
                None => return name(bytes).map(Self::only),
            };
            return Ok(Self { by, or_name: Some(bytes.into()) });
        };
        let (key, value) = (&bytes[..equals], &bytes[equals + 1..]);
        let by = match key {
            b"name" => name(value),
            b"uverbs" => number(value)
                .map(By::Uverbs)
                .ok_or_else(|| "uverbs= takes a number, such as uverbs=0".to_owned()),
            b"dev_t" => device_number(value)
                .map(By::Number)
                .ok_or_else(|| "dev_t= takes a device number, such as dev_t=231:192".to_owned()),
            b"index" => number(value)
                .map(By::Index)
                .ok_or_else(|| "index= takes a number, such as index=3".to_owned()),
            b"guid" => guid(value).map(By::Guid),
            b"pci" => pci(value),
            b"netdev" if value.is_empty() => Err("netdev= takes a name, such as eth0".to_owned()),
            b"netdev" => Ok(By::Netdev(value.into())),
            _ => Err(format!(
                "\"{}\" is not a key: use {KEYS} (name= also for a name with \"=\" in it)",
                key.escape_ascii()
            )),
        };
        by.map(Self::only)
    }

    fn only(by: By) -> Self {
        Self { by, or_name: None }
    }

    /// Finds the one device that it selects.
    ///
    /// # Errors
    /// `NotFound`, with the devices that are listed; `Ambiguous`, with the selectors that tell the matches
    /// apart. Where none matches and a device could not be queried, the reason for that.
    pub(crate) fn find(&self, devices: &Devices) -> Result<Device, Failure> {
        self.find_if(devices, |_| true)
    }

    /// The same. A device that may not be queried has no index and no GUID.
    pub(crate) fn find_if(
        &self,
        devices: &Devices,
        may_query: impl Fn(&Device) -> bool,
    ) -> Result<Device, Failure> {
        // Many devices may be queried: one socket for all. Where there is none, a query returns the reason.
        let host = devices.get(0).filter(|_| self.needs_query()).map(Device::host);
        let _kept = host.map(|host| host.keep_netlink());
        let of_function = match &self.by {
            By::Pci(address, _) => devices.all_by_pci(*address)?,
            _ => Vec::new(),
        };
        let interface = match &self.by {
            By::Netdev(name) => Some(netdev::index(name)?),
            _ => None,
        };
        let mut unknown = None;
        let mut matches = |device: &Device| {
            let is_it = match &self.by {
                _ if self.needs_query() && !may_query(device) => Ok(false),
                By::Name(asked) => Ok(is_named(device, asked)),
                By::Uverbs(number) => Ok(device.uverbs_number() == *number),
                By::Number(number) => Ok(device.device_number() == *number),
                By::Index(index) => device.index().map(|found| found == *index),
                By::Guid(guid) => device.query().map(|facts| facts.node_guid == *guid),
                By::Pci(_, None) => Ok(of_function.contains(device)),
                By::Pci(_, number) if of_function.contains(device) => {
                    device.parent().map(|parent| parent.subfunction == *number)
                }
                By::Pci(..) => Ok(false),
                By::Netdev(_) => device
                    .netdevs()
                    .map(|found| found.iter().any(|netdev| Some(netdev.index) == interface)),
            };
            let is_it = is_it.unwrap_or_else(|error| {
                if !is_gone(&error) {
                    unknown.get_or_insert(error);
                }
                false
            });
            is_it || self.or_name.as_ref().is_some_and(|name| is_named(device, name))
        };
        let found: Vec<_> = devices.iter().filter(|device| matches(device)).collect();
        match (found.as_slice(), unknown) {
            ([device], _) => Ok((*device).clone()),
            // Without a key it is a name in the first place, and names need no query.
            ([], Some(error)) if self.or_name.is_none() => Err(error.into()),
            ([], _) => Err(self.not_found(devices)),
            (several, _) => Err(self.ambiguous(several)),
        }
    }

    /// Whether only a query of the device shows that it is selected.
    pub(crate) fn needs_query(&self) -> bool {
        matches!(self.by, By::Index(_) | By::Guid(_) | By::Netdev(_))
    }

    fn not_found(&self, devices: &Devices) -> Failure {
        let mut listed: Vec<_> = devices.iter().collect();
        // By likeness, and of equal ones in the order of the list.
        listed.sort_by_key(|device| Reverse(self.likeness(device)));
        let candidates = match listed.is_empty() {
            true => Absent::look(devices).of_empty_list(),
            false => format!("listed: {}", up_to_five(listed)),
        };
        Failure::new("not_found", format!("no device matches {self}; {candidates}"))
    }

    /// How much of what was asked for the device has, from the left.
    fn likeness(&self, device: &Device) -> usize {
        let asked = match (&self.by, &self.or_name) {
            (By::Name(name), _) | (_, Some(name)) => name.clone(),
            (By::Uverbs(number), _) => format!("uverbs{number}").into_bytes(),
            (By::Number(number), _) => number.to_string().into_bytes(),
            // Indices, GUIDs and addresses that begin alike have nothing to do with each other.
            (By::Index(_) | By::Guid(_) | By::Pci(..) | By::Netdev(_), _) => return 0,
        };
        let forms = [
            device.name().to_string(),
            format!("uverbs{}", device.uverbs_number()),
            device.device_number().to_string(),
        ];
        let common = |form: &String| form.bytes().zip(&asked).take_while(|(a, b)| a == *b).count();
        forms.iter().map(common).max().unwrap_or(0)
    }

    fn ambiguous(&self, matches: &[&Device]) -> Failure {
        let selectors = matches.iter().map(|device| {
            let subfunction = match self.by {
                By::Pci(address, None) => subfunction(device).map(|number| (address, number)),
                _ => None,
            };
            match subfunction {
                Some((address, number)) => format!("pci={address}/sf{number}"),
                None => format!("uverbs={}", device.uverbs_number()),
            }
        });
        let message = format!(
            "{} devices match {self}: {}; to select one, use {}",
            matches.len(),
            up_to_five(matches),
            selectors.take(5).collect::<Vec<_>>().join(" or ")
        );
        Failure::new("ambiguous", message)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.by, &self.or_name) {
            (By::Name(name), _) | (_, Some(name)) => write!(f, "\"{}\"", name.escape_ascii()),
            (By::Uverbs(number), _) => write!(f, "uverbs={number}"),
            (By::Number(number), _) => write!(f, "dev_t={number}"),
            (By::Index(index), _) => write!(f, "index={index}"),
            (By::Guid(guid), _) => write!(f, "guid={guid}"),
            (By::Pci(address, None), _) => write!(f, "pci={address}"),
            (By::Pci(address, Some(number)), _) => write!(f, "pci={address}/sf{number}"),
            (By::Netdev(name), _) => write!(f, "netdev={}", name.escape_ascii()),
        }
    }
}

/// Whether an error means that the device is no longer there.
pub(crate) fn is_gone(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Removed | ErrorKind::Replaced)
}

/// What a text without a key may be beside a name.
fn without_key(text: &[u8]) -> Option<By> {
    let uverbs = text.strip_prefix(b"/dev/infiniband/").unwrap_or(text);
    uverbs_number(uverbs)
        .map(By::Uverbs)
        .or_else(|| device_number(text).map(By::Number))
        // Digits without colons are a name.
        .or_else(|| guid(text).ok().filter(|_| text.contains(&b':')).map(By::Guid))
}

/// The N of `uverbsN`, as the kernel writes it.
pub(crate) fn uverbs_number(name: &[u8]) -> Option<u32> {
    number(name.strip_prefix(b"uverbs")?)
}

/// `MAJOR:MINOR`.
pub(crate) fn device_number(text: &[u8]) -> Option<DeviceNumber> {
    let colon = text.iter().position(|byte| *byte == b':')?;
    let (major, minor) = (number(&text[..colon])?, number(&text[colon + 1..])?);
    Some(DeviceNumber { major, minor })
}

/// Decimal digits without leading zeros.
fn number(digits: &[u8]) -> Option<u32> {
    let is_canonical = digits == b"0" || !digits.starts_with(b"0");
    if !is_canonical || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

fn name(bytes: &[u8]) -> Result<By, String> {
    match bytes {
        [] => Err("the name of a device is not empty".to_owned()),
        _ => Ok(By::Name(bytes.into())),
    }
}

/// Whether a device has that name, or a name that is printed so. Where this holds for two devices, the
/// name is ambiguous.
fn is_named(device: &Device, asked: &[u8]) -> bool {
    let name = device.name();
    name.as_bytes() == asked || name.to_string().as_bytes() == asked
}

/// A GUID, in each form that the library parses.
fn guid(text: &[u8]) -> Result<Guid, String> {
    String::from_utf8_lossy(text).parse().map_err(|error: ParseGuidError| error.to_string())
}

/// `0000:3b:00.2`, or `0000:3b:00.0/sf88` of a sub-function.
fn pci(text: &[u8]) -> Result<By, String> {
    let slash = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
    let (address, rest) = text.split_at(slash);
    let address = String::from_utf8_lossy(address).parse();
    let subfunction = match rest {
        [] => Some(None),
        rest => rest.strip_prefix(b"/sf").and_then(number).map(Some),
    };
    match (address, subfunction) {
        (Ok(address), Some(subfunction)) => Ok(By::Pci(address, subfunction)),
        (Err(error), _) => Err(ParsePciAddressError::to_string(&error)),
        (_, None) => Err("the address of a sub-function ends in its number: /sf88".to_owned()),
    }
}

fn subfunction(device: &Device) -> Option<u32> {
    device.parent().ok()?.subfunction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &[u8]) -> Result<Selector, String> {
        Selector::parse(OsStr::from_bytes(text))
    }

    fn name(text: &[u8]) -> Result<Selector, String> {
        Ok(Selector::only(By::Name(text.into())))
    }

    fn by(by: By) -> Result<Selector, String> {
        Ok(Selector::only(by))
    }

    /// A text that is a name, too.
    fn or_name(text: &str, by: By) {
        let or_name = Some(text.as_bytes().into());
        assert_eq!(parse(text.as_bytes()), Ok(Selector { by, or_name }), "{text}");
    }

    #[cfg(feature = "demo")]
    fn kind(failure: &Failure) -> String {
        let json = serde_json::to_value(failure).expect("JSON");
        json["kind"].as_str().expect("a kind").to_owned()
    }

    #[test]
    fn each_way_to_name_a_device() {
        assert_eq!(parse(b"mlx5_0"), name(b"mlx5_0"));
        or_name("uverbs12", By::Uverbs(12));
        or_name("/dev/infiniband/uverbs12", By::Uverbs(12));
        or_name("231:192", By::Number((231, 192).into()));
        or_name("0002:c903:0005:1234", By::Guid(Guid(0x0002_c903_0005_1234)));
        or_name("00:02:c9:03:00:05:12:34", By::Guid(Guid(0x0002_c903_0005_1234)));
        assert_eq!(parse(b"uverbs=12"), by(By::Uverbs(12)));
        assert_eq!(parse(b"dev_t=231:192"), by(By::Number((231, 192).into())));
        for text in [&b"uverbs12"[..], b"index=3", b"=", b"a=b", b"name=", b"\xff\x1b"] {
            assert_eq!(parse(&[b"name=", text].concat()), name(text));
        }
        assert_eq!(parse(b"index=4294967295"), by(By::Index(u32::MAX)));
        let guid = by(By::Guid(Guid(0x0002_c903_0005_1234)));
        assert_eq!(parse(b"guid=00:02:C9:03:00:05:12:34"), guid);
        assert_eq!(parse(b"guid=0002:c903:0005:1234"), guid);
        assert_eq!(parse(b"guid=0x0002C90300051234"), guid);
        assert_eq!(parse(b"guid=0002c90300051234"), guid);
        let address = PciAddress::new(0x1_0000, 0xe1, 0, 2).expect("an address");
        assert_eq!(parse(b"pci=10000:E1:00.2"), by(By::Pci(address, None)));
        assert_eq!(parse(b"pci=10000:e1:00.2/sf88"), by(By::Pci(address, Some(88))));
        assert_eq!(parse(b"netdev=eth0"), by(By::Netdev(b"eth0".into())));
        // Without a key it is a name.
        assert_eq!(parse(b"0000:3b:00.2"), name(b"0000:3b:00.2"));
    }

    #[test]
    fn what_is_no_number_is_a_name_or_an_error() {
        for text in [
            &b"uverbs"[..],
            b"uverbs01",
            b"uverbs-1",
            b"uverbs4294967296",
            b"\xff\n",
            b"..",
            b"/dev/infiniband/rdma_cm",
            b"/dev/uverbs0",
            b"231:",
            b"231:0192",
            b"0002c90300051234",
            b"00:02:c9:03:00:05:12",
            b"00:02:c9:03:00:05:12:3g",
        ] {
            assert_eq!(parse(text), name(text));
        }
        for text in [
            &b""[..],
            b"name=",
            b"uverbs=",
            b"uverbs=uverbs0",
            b"Name=a",
            b"=a",
            b"dev_t=",
            b"dev_t=231",
            b"dev_t=231:192:1",
            b"index=",
            b"index=+1",
            b"index=01",
            b"guid=",
            b"guid=1",
            b"guid=0002:c903:0005:123",
            b"guid=00:02:c9:03:00:05:123:4",
            b"guid=00:02:c9:03:00:05:12:+4",
            b"guid=0002:c903:00051234",
            b"guid=+002c90300051234",
            b"guid=0x0002:c903:0005:1234",
            b"guid=0x0x02c90300051234",
            b"pci=",
            b"pci=3b:00.2",
            b"pci=0000:3b:00.8",
            b"pci=0000:3b:00.0/",
            b"pci=0000:3b:00.0/sf",
            b"pci=0000:3b:00.0/sf01",
            b"pci=0000:3b:00.0/88",
            b"pci=0000:3b:00.0/sf4294967296",
            b"netdev=",
        ] {
            assert!(parse(text).is_err(), "{}", text.escape_ascii());
        }
    }

    #[test]
    fn errors_name_the_keys_and_repeat_nothing_raw() {
        let error = parse(b"inde\x1b[31m\n=3").expect_err("no key");
        assert!(error.starts_with(r#""inde\x1b[31m\n" is not a key"#), "{error}");
        for key in ["name=", "uverbs=", "dev_t=", "index=", "guid=", "pci=", "netdev="] {
            assert!(error.contains(key), "{error}");
            let error = parse(format!("{key}\u{1b}").as_bytes());
            assert!(error.is_ok() || !error.unwrap_err().contains('\u{1b}'), "{key}");
        }
    }

    #[test]
    fn it_prints_escaped() {
        assert_eq!(parse(b"a\x1b[31m").expect("a name").to_string(), r#""a\x1b[31m""#);
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_name_that_looks_like_another_device_is_ambiguous() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        machine.add(DeviceSpec::new("uverbs1").guid(0xa0)).expect("added");
        machine.add(DeviceSpec::new("rxe1").guid(0xb0)).expect("added");
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let find = |text: &str| parse(text.as_bytes()).expect("a selector").find(&devices);
        let number = |text| find(text).expect("found").uverbs_number();
        assert_eq!(kind(&find("uverbs1").expect_err("refused")), "ambiguous");
        assert_eq!(number("uverbs=1"), 1);
        assert_eq!(kind(&find("uverbs=2").expect_err("none")), "not_found");
        assert_eq!(number("name=uverbs1"), 0);
        assert_eq!(number("uverbs0"), 0);
        assert_eq!(number("guid=00000000000000b0"), 1);
        let index = devices.by_name("rxe1").expect("listed").index().expect("an index");
        assert_eq!(number(&format!("index={index}")), 1);
        assert_eq!(kind(&find("guid=00000000000000c0").expect_err("none")), "not_found");
        machine.deny_netlink(Some(1));
        assert_eq!(kind(&find("guid=00000000000000c0").expect_err("none")), "netlink_unavailable");
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_silent_device_explains_nothing_but_that_none_is_found() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        let gone = machine.add(DeviceSpec::new("gone").guid(0xc0)).expect("added");
        let hidden = machine.add(DeviceSpec::new("hidden").guid(0xb0)).expect("added");
        for name in ["one", "other"] {
            machine.add(DeviceSpec::new(name).guid(0xa0)).expect("added");
        }
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let kind = |text: &str| {
            let selector = parse(text.as_bytes()).expect("a selector");
            kind(&selector.find(&devices).expect_err("refused"))
        };
        machine.remove(gone);
        assert_eq!(kind("guid=00000000000000c0"), "not_found");
        machine.set_netns_visible(hidden, false);
        assert_eq!(kind("guid=00000000000000c0"), "other_namespace");
        assert_eq!(kind("guid=00000000000000a0"), "ambiguous");
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_name_is_found_by_its_bytes_and_as_it_is_printed() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        for name in [&b"a\x1b"[..], b"b\n\xff", br"b\x1b", b"c=d", br"e\\x", br"e\x"] {
            machine.add(DeviceSpec::new(name)).expect("added");
        }
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let find = |text: &[u8]| parse(text).expect("a selector").find(&devices);
        for device in &devices {
            let bytes = [b"name=", device.name().as_bytes()].concat();
            let printed = [b"name=", device.name().to_string().as_bytes()].concat();
            if device.name().as_bytes() == br"e\\x" {
                // It is also what the other one is printed as.
                assert_eq!(kind(&find(&bytes).expect_err("refused")), "ambiguous");
            } else {
                assert_eq!(find(&bytes).expect("by its bytes"), *device);
            }
            if device.name().as_bytes() == br"e\x" {
                assert_eq!(kind(&find(&printed).expect_err("refused")), "ambiguous");
            } else {
                assert_eq!(find(&printed).expect("as printed"), *device);
            }
        }
        assert_eq!(find(br"a\x1b").expect("found").uverbs_number(), 0);
        // An escape that `list` does not print is a name that no device has.
        assert_eq!(kind(&find(br"\x61\x1b").expect_err("none")), "not_found");
    }

    #[cfg(feature = "demo")]
    #[test]
    fn errors_name_candidates_and_the_way_out() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        for name in ["mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3", "mlx5_4", "rxe0"] {
            machine.add(DeviceSpec::new(name).guid(0xa0)).expect("added");
        }
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let find = |text: &str| parse(text.as_bytes()).expect("a selector").find(&devices);
        let error = |text: &str| find(text).expect_err("refused").to_string();

        assert_eq!(
            error("rxe1"),
            "no device matches \"rxe1\"; listed: rxe0 (uverbs5), mlx5_0 (uverbs0), mlx5_1 \
             (uverbs1), mlx5_2 (uverbs2), mlx5_3 (uverbs3) and 1 more"
        );
        assert_eq!(
            error("guid=00:00:00:00:00:00:00:a0"),
            "6 devices match guid=0000:0000:0000:00a0: mlx5_0 (uverbs0), mlx5_1 (uverbs1), mlx5_2 \
             (uverbs2), mlx5_3 (uverbs3), mlx5_4 (uverbs4) and 1 more; to select one, use uverbs=0 \
             or uverbs=1 or uverbs=2 or uverbs=3 or uverbs=4"
        );
        for text in ["/dev/infiniband/uverbs5", "231:197", "dev_t=231:197", "uverbs5"] {
            assert_eq!(find(text).expect("found").name(), "rxe0", "{text}");
        }
        assert!(error("dev_t=231:300").starts_with("no device matches dev_t=231:300; listed: "));
    }

    #[cfg(feature = "demo")]
    #[test]
    fn a_function_with_several_devices_is_ambiguous() {
        use uverbs::sim::{DeviceSpec, Machine};

        const PF: &str = "pci0000:3a/0000:3b:00.0";
        let machine = Machine::new();
        machine.add_pci_function(PF, (0x15b3, 0x1017), 0);
        machine.add(DeviceSpec::new("mlx5_0").beneath(PF)).expect("added");
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let registry = uverbs::Registry::new(host);
        let find = |text: &str| {
            let devices = registry.devices().expect("a list");
            parse(text.as_bytes()).expect("a selector").find(&devices)
        };
        assert_eq!(find("pci=0000:3b:00.0").expect("found").name(), "mlx5_0");
        assert_eq!(kind(&find("pci=0000:3b:00.1").expect_err("none")), "not_found");
        for number in [88, 89] {
            let path = format!("{PF}/mlx5_core.sf.{}", number - 80);
            machine.add_auxiliary(&path, Some(number));
            machine.add(DeviceSpec::new(format!("sf{number}")).beneath(path)).expect("added");
        }
        assert_eq!(
            find("pci=0000:3b:00.0").expect_err("three").to_string(),
            "3 devices match pci=0000:3b:00.0: mlx5_0 (uverbs0), sf88 (uverbs1), sf89 (uverbs2); to select one, use \
             uverbs=0 or pci=0000:3b:00.0/sf88 or pci=0000:3b:00.0/sf89"
        );
        assert_eq!(find("pci=0000:3b:00.0/sf89").expect("found").name(), "sf89");
        // Not the number in the name of the auxiliary device.
        assert_eq!(kind(&find("pci=0000:3b:00.0/sf8").expect_err("none")), "not_found");
        // A device that may be another match.
        machine.set_parent_attribute(&format!("{PF}/mlx5_core.sf.8"), "sfnum", Some(b"x\n"));
        assert_eq!(kind(&find("pci=0000:3b:00.0").expect_err("not known")), "malformed");
    }

    /// `lo` has index 1 in every network namespace.
    #[cfg(feature = "demo")]
    #[test]
    fn a_device_is_found_by_its_network_device() {
        use uverbs::sim::{DeviceSpec, Machine};

        let machine = Machine::new();
        let ids =
            ["a", "b"].map(|name| machine.add(DeviceSpec::new(name).ports(2)).expect("added"));
        let host = uverbs::Host::simulated(&machine).expect("a host");
        let devices = uverbs::Registry::new(host).devices().expect("a list");
        let find = |text: &str| parse(text.as_bytes()).expect("a selector").find(&devices);
        assert_eq!(kind(&find("netdev=lo").expect_err("none")), "not_found");
        machine.set_netdev(ids[0], 1, Some((7, "lo"))).expect("a port");
        assert_eq!(kind(&find("netdev=lo").expect_err("another index")), "not_found");
        machine.set_netdev(ids[1], 2, Some((1, "renamed"))).expect("a port");
        assert_eq!(find("netdev=lo").expect("found").name(), "b");
        machine.set_netdev(ids[0], 1, Some((1, "lo"))).expect("a port");
        let error = find("netdev=lo").expect_err("two").to_string();
        assert_eq!(
            error,
            "2 devices match netdev=lo: a (uverbs0), b (uverbs1); to select one, use uverbs=0 or uverbs=1"
        );
        let none = find("netdev=no such one").expect_err("none");
        assert_eq!(kind(&none), "not_found");
        assert!(none.to_string().contains("network namespace"), "{none}");
        machine.deny_netlink(Some(1));
        assert_eq!(kind(&find("netdev=lo").expect_err("denied")), "netlink_unavailable");
    }
}
