//! What a container was given: which device, under which number. It is written where the device is allotted, travels as
//! text, and is checked where the container starts and where its program opens the device.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::str::FromStr;

use crate::device::Device;
use crate::error::{Error, ErrorKind, Result};
use crate::identity::Instance;
use crate::ids::{DeviceNumber, Guid, Name, PciAddress};
use crate::open;
use crate::parent::{Bus, Parent};
use crate::registry::Devices;
use crate::sysfs;

/// Which device somebody was given, and under which number: what `uverbs cdi` writes for a container.
///
/// A device node and its number are only a name. Between the moment when a container is given
/// `/dev/infiniband/uverbs19` and its start, the device may be unplugged, and another one gets the number. An
/// expectation names the device by its parent, such as a PCI function, and has the uverbs number and the device number
/// under which it was given. It may also have the node GUID, and the instance: then a device that was removed and added
/// again does not match, even under the same number.
///
/// Its text is one word of printable ASCII, for an environment variable or an argument:
///
/// ```text
/// v1,pci=0000:3b:00.2,uverbs=19,dev_t=231:211
/// v1,pci=0000:3b:00.0,sf=88,uverbs=3,dev_t=231:195,guid=0002:c903:0005:1234
/// v1,bus=virtual,uverbs=0,dev_t=231:192,inode=14540,boot=6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3c
/// ```
///
/// `pci` is the address of the function, and `sf` the number of the sub-function (attribute `sfnum`) where the parent
/// is one. Devices of other buses have `bus` and `name`, with bytes other than `A-Z a-z 0-9 _ . : -` as `%XX`. `inode`
/// is the inode number of the uverbs directory, which is unique until the next reboot: so `boot` comes with it. Software
/// devices, on the bus `virtual`, have no parent. Their expectations are checked only with the two.
///
/// ```no_run
/// use uverbs::{BootId, Expectation, Host, Registry};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let given = Expectation::from_variables(std::env::vars_os())?;
/// let boot: BootId = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim_end().parse()?;
/// let devices = Registry::new(Host::open()?).devices()?;
/// for expectation in given {
///     let context = expectation.find(&devices, Some(boot))?.open()?;
///     println!("{}", context.device());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    place: Place,
    uverbs_number: u32,
    device_number: DeviceNumber,
    guid: Option<Guid>,
    /// Inode number of the uverbs directory, and the boot that it is of.
    instance: Option<(u64, BootId)>,
}

/// Where a device is: its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Function(PciAddress),
    Subfunction(PciAddress, u32),
    Virtual,
    /// Another parent, by bus and name.
    On(Name, Name),
}

/// The number that the kernel draws at each boot (`/proc/sys/kernel/random/boot_id`, random(4)).
///
/// It prints as the kernel prints it, and is parsed from that text alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootId(u128);

/// The error for a text that is not a [`BootId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a boot id has 32 hexadecimal digits: 6c2ff2ab-8a4e-4b0c-8d5c-02b7a4fb0d3c")]
#[non_exhaustive]
pub struct ParseBootIdError;

/// The error for a text that is not an [`Expectation`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" is not an expectation: {why}", .text.escape_ascii())]
#[non_exhaustive]
pub struct ParseExpectationError {
    text: Vec<u8>,
    why: &'static str,
}

/// The longest text that is parsed, in bytes: far more than one can have.
const TEXT_MAX: usize = 1024;
const VERSION: &str = "v1";

impl Expectation {
    /// What the names of the environment variables begin with that hold expectations. `uverbs cdi` appends the uverbs
    /// number: two devices of one container never have the same variable.
    pub const VARIABLE: &'static str = "UVERBS_EXPECT_";

    /// The expectation that a device meets now: parent, uverbs number and device number. That of a software device, which
    /// has no parent, can be checked only [with its instance](Self::with_instance).
    ///
    /// # Errors
    /// As [`Device::parent`].
    pub fn of(device: &Device) -> Result<Self> {
        Ok(Self {
            place: Place::of(device.parent()?),
            uverbs_number: device.uverbs_number(),
            device_number: device.device_number(),
            guid: None,
            instance: None,
        })
    }

    /// The same, which only a device of the node GUID of this one meets.
    ///
    /// # Errors
    /// As [`Device::query`].
    pub fn with_guid_of(self, device: &Device) -> Result<Self> {
        Ok(Self { guid: Some(guid(device)?), ..self })
    }

    /// The same, which only this instance meets, and only until the next reboot. `boot` is the id of this boot.
    ///
    /// A driver that is bound again makes another instance. So does everything that does this on the way to the start
    /// of a container, such as a CNI plugin that moves the device to another namespace.
    pub fn with_instance(self, instance: Instance, boot: BootId) -> Self {
        Self { instance: Some((instance.ino, boot)), ..self }
    }

    /// The expectations among environment variables: those whose names begin with [`VARIABLE`](Self::VARIABLE).
    /// The library itself never reads the environment: pass in `std::env::vars_os()`.
    ///
    /// # Errors
    /// One of them does not hold an expectation, has the uverbs number of another device in its name, or is there
    /// twice.
    pub fn from_variables(
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> std::result::Result<Vec<Self>, ParseExpectationError> {
        let mut given: Vec<Self> = Vec::new();
        for (name, text) in variables {
            if !name.as_bytes().starts_with(Self::VARIABLE.as_bytes()) {
                continue;
            }
            let expectation = Self::from_bytes(text.as_bytes())?;
            let number = expectation.uverbs_number;
            let why = match given.iter().any(|other| other.uverbs_number == number) {
                true => "its variable is there twice",
                false if name.as_bytes() != expectation.variable().as_bytes() => {
                    "uverbs differs from the number in the name of the variable"
                }
                false => {
                    given.push(expectation);
                    continue;
                }
            };
            return Err(ParseExpectationError::new(text.as_bytes(), why));
        }
        Ok(given)
    }

    /// The name of the environment variable for it.
    pub fn variable(&self) -> String {
        format!("{}{}", Self::VARIABLE, self.uverbs_number)
    }

    /// The N of `uverbsN`.
    pub fn uverbs_number(&self) -> u32 {
        self.uverbs_number
    }

    /// The device number of its node.
    pub fn device_number(&self) -> DeviceNumber {
        self.device_number
    }

    /// The PCI function that is the parent, or has the sub-function that is.
    pub fn pci_address(&self) -> Option<PciAddress> {
        match self.place {
            Place::Function(address) | Place::Subfunction(address, _) => Some(address),
            Place::Virtual | Place::On(..) => None,
        }
    }

    /// The node GUID, where it matters.
    pub fn guid(&self) -> Option<Guid> {
        self.guid
    }

    /// Whether only one instance meets it, which takes the boot id to check.
    pub fn needs_boot_id(&self) -> bool {
        self.instance.is_some()
    }

    /// Checks that a device meets it. `boot` is the id of this boot, which may be left out where
    /// [`needs_boot_id`](Self::needs_boot_id) is false.
    ///
    /// Parent and numbers are read in sysfs, where every network namespace sees them. The GUID is queried over RDMA
    /// netlink, or read in sysfs where netlink is not available. Neither has it if the device belongs to another
    /// network namespace: that is an error.
    ///
    /// # Errors
    /// `NotExpected`, with what was expected and what was found. `Unsupported` where inode numbers may repeat, without
    /// a boot id that is needed, and for a software device whose instance is not in the expectation: it has no parent,
    /// so that another one under its numbers would pass. Otherwise as [`Device::parent`] and [`Device::query`].
    pub fn check(&self, device: &Device, boot: Option<BootId>) -> Result<()> {
        let found = self.found(device, boot)?;
        match found == *self {
            true => Ok(()),
            false => Err(self.differs(&found).of(|| device.to_string())),
        }
    }

    /// Checks a device against what a container was given: against the expectation that has its uverbs number. Where
    /// there is none, it is checked against those of its parent, whose numbers then differ, so that the error has both
    /// numbers.
    ///
    /// # Errors
    /// `NotExpected` if the device is none of `given`. Otherwise as [`check`](Self::check).
    pub fn check_among(given: &[Self], device: &Device, boot: Option<BootId>) -> Result<()> {
        let with_number = given.iter().filter(|one| one.uverbs_number == device.uverbs_number());
        let mut concerned: Vec<_> = with_number.collect();
        if concerned.is_empty() {
            let place = Place::of(device.parent()?);
            concerned.extend(given.iter().filter(|one| one.place == place));
        }
        if concerned.is_empty() {
            let texts: Vec<_> = given.iter().map(ToString::to_string).collect();
            let texts = if texts.is_empty() { "nothing".to_owned() } else { texts.join(" and ") };
            let text = format!("this container was given {texts}, not this device");
            return Err(Error::new(ErrorKind::NotExpected, text).of(|| device.to_string()));
        }
        concerned.into_iter().try_for_each(|one| one.check(device, boot))
    }

    /// The device of a list that meets it.
    ///
    /// # Errors
    /// As [`check`](Self::check), of the device that has the uverbs number. `NotExpected` if there is none. The error
    /// also names where the expected parent's device is, if it is elsewhere.
    pub fn find(&self, devices: &Devices, boot: Option<BootId>) -> Result<Device> {
        let has_number = |device: &&Device| device.uverbs_number() == self.uverbs_number;
        let (error, device) = match devices.iter().find(has_number) {
            Some(device) => match self.found(device, boot)? {
                found if found == *self => return Ok(device.clone()),
                found => (self.difference(&found), Some(device)),
            },
            None => (format!("expected {self}, found no uverbs{}", self.uverbs_number), None),
        };
        let moved = devices
            .iter()
            .filter(|other| Some(*other) != device)
            .find(|other| other.parent().is_ok_and(|parent| Place::of(parent) == self.place));
        let text = match moved {
            Some(moved) => format!(
                "{error}; {} now has uverbs{} ({})",
                self.place,
                moved.uverbs_number(),
                moved.device_number()
            ),
            None => error,
        };
        let error = Error::new(ErrorKind::NotExpected, text);
        Err(match device {
            Some(device) => error.of(|| device.to_string()),
            None => error,
        })
    }

    /// What a device is, as far as this compares it.
    fn found(&self, device: &Device, boot: Option<BootId>) -> Result<Self> {
        let unsupported = |text| Error::new(ErrorKind::Unsupported, text).of(|| device.to_string());
        let mut found = Self::of(device)?;
        if found.place == Place::Virtual && self.place == Place::Virtual && self.instance.is_none()
        {
            return Err(unsupported(
                "a software device has no parent: its expectation needs inode= and boot=",
            ));
        }
        if self.guid.is_some() {
            found.guid = Some(guid(device)?);
        }
        if self.instance.is_some() {
            let instance = device.instance();
            if !instance.has_unique_inode {
                return Err(unsupported("inode numbers may repeat here, and identify no instance"));
            }
            let boot = boot.ok_or_else(|| unsupported("the id of this boot is not known"))?;
            found.instance = Some((instance.ino, boot));
        }
        Ok(found)
    }

    fn differs(&self, found: &Self) -> Error {
        Error::new(ErrorKind::NotExpected, self.difference(found))
    }

    /// Both sides, as far as they differ.
    fn difference(&self, found: &Self) -> String {
        let (expected, found) = (self.fields(), found.fields());
        let only = |these: &[(&str, String)], others: &[(&str, String)]| {
            let these = these.iter().filter(|field| !others.contains(field));
            these.map(|(key, value)| format!("{key} {value}")).collect::<Vec<_>>().join(", ")
        };
        format!("expected {}; found {}", only(&expected, &found), only(&found, &expected))
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = self.place.fields();
        fields.push(("uverbs", self.uverbs_number.to_string()));
        fields.push(("dev_t", self.device_number.to_string()));
        fields.extend(self.guid.map(|guid| ("guid", guid.to_string())));
        if let Some((inode, boot)) = self.instance {
            fields.extend([("inode", inode.to_string()), ("boot", boot.to_string())]);
        }
        fields
    }

    fn from_bytes(text: &[u8]) -> std::result::Result<Self, ParseExpectationError> {
        parse(text).map_err(|why| ParseExpectationError::new(text, why))
    }
}

impl ParseExpectationError {
    fn new(text: &[u8], why: &'static str) -> Self {
        Self { text: text[..text.len().min(TEXT_MAX)].into(), why }
    }
}

/// The node GUID: from netlink, or in sysfs where netlink is not available.
fn guid(device: &Device) -> Result<Guid> {
    match device.query() {
        Ok(facts) => Ok(facts.node_guid),
        Err(error) if error.kind().is_unproven() => match open::read_sysfs_guid(device)? {
            Some(guid) => Ok(guid),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

impl Place {
    fn of(parent: Parent) -> Self {
        let address = parent.pci_address();
        match (parent.bus, parent.name, address, parent.subfunction) {
            (Bus::Pci, _, Some(address), _) => Self::Function(address),
            (Bus::Auxiliary, _, Some(address), Some(number)) => Self::Subfunction(address, number),
            (Bus::Virtual, ..) => Self::Virtual,
            (bus, name, ..) => {
                let bus = bus.name().unwrap_or_else(|| Name::new(b"unknown"));
                Self::On(bus, name.unwrap_or_else(|| Name::new(b"")))
            }
        }
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Function(address) => vec![("pci", address.to_string())],
            Self::Subfunction(address, number) => {
                vec![("pci", address.to_string()), ("sf", number.to_string())]
            }
            Self::Virtual => vec![("bus", "virtual".to_owned())],
            Self::On(bus, name) => vec![("bus", escape(bus)), ("name", escape(name))],
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<_> = self.fields().into_iter().map(|(_, value)| value).collect();
        f.pad(&fields.join(" "))
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte)
}

fn escape(name: &Name) -> String {
    let mut text = String::new();
    for &byte in name.as_bytes() {
        match is_plain(byte) {
            true => text.push(char::from(byte)),
            false => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<Name> {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        rest = match byte {
            b'%' => {
                let digits = str::from_utf8(after.get(..2)?).ok()?;
                let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
                &after[2..]
            }
            byte if is_plain(byte) => {
                bytes.push(byte);
                after
            }
            _ => return None,
        };
    }
    Some(Name::new(&bytes))
}

/// The fields of a text, by key.
#[derive(Default)]
struct Fields<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fields<'a> {
    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.0.iter().position(|(found, _)| *found == key)?;
        Some(self.0.swap_remove(at).1)
    }

    /// A field that may be missing, parsed.
    fn parsed<T>(
        &mut self,
        key: &str,
        why: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> std::result::Result<Option<T>, &'static str> {
        self.take(key).map(|value| parse(value).ok_or(why)).transpose()
    }
}

/// A field that is not known is an error: a check that this version cannot make must not be left out.
fn parse(text: &[u8]) -> std::result::Result<Expectation, &'static str> {
    if text.len() > TEXT_MAX {
        return Err("it is too long");
    }
    let text = str::from_utf8(text).map_err(|_| "it is not ASCII")?;
    let mut parts = text.split(',');
    if parts.next() != Some(VERSION) {
        return Err("it does not begin with v1: another version of uverbs may have written it");
    }
    let fields = parts.map(|part| part.split_once('=').ok_or("a field has no value"));
    let mut fields = Fields(fields.collect::<std::result::Result<_, _>>()?);
    let address = fields.parsed("pci", "pci is not a PCI address", |text| text.parse().ok())?;
    let subfunction = fields.parsed("sf", "sf is not a number", decimal)?;
    let bus = fields.parsed("bus", "bus is not a name", unescape)?;
    let name = fields.parsed("name", "name is not a name", unescape)?;
    let place = match (address, subfunction, bus, name) {
        (Some(address), None, None, None) => Place::Function(address),
        (Some(address), Some(number), None, None) => Place::Subfunction(address, number),
        (None, None, Some(bus), None) if bus == "virtual" => Place::Virtual,
        (None, None, Some(bus), Some(name)) => Place::On(bus, name),
        _ => return Err("it names no parent: pci=, pci= and sf=, or bus= and name="),
    };
    let number = fields.parsed("uverbs", "uverbs is not a number", decimal)?;
    let device_number = fields.parsed("dev_t", "dev_t is not a device number", |text| {
        sysfs::parse_device_number(text.as_bytes()).ok()
    })?;
    let guid = fields.parsed("guid", "guid is not a GUID", |text| text.parse().ok())?;
    let inode = fields.parsed("inode", "inode is not a number", |text| {
        let number: u64 = text.parse().ok()?;
        (number.to_string() == text).then_some(number)
    })?;
    let boot = fields.parsed("boot", "boot is not a boot id", |text| text.parse().ok())?;
    if !fields.0.is_empty() {
        return Err("a field is not known here, or is there twice");
    }
    Ok(Expectation {
        place,
        uverbs_number: number.ok_or("it has no uverbs=")?,
        device_number: device_number.ok_or("it has no dev_t=")?,
        guid,
        instance: match (inode, boot) {
            (Some(inode), Some(boot)) => Some((inode, boot)),
            (None, None) => None,
            _ => return Err("inode and boot go together"),
        },
    })
}

fn decimal(text: &str) -> Option<u32> {
    sysfs::parse_decimal(text.as_bytes())
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERSION)?;
        self.fields().into_iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

impl FromStr for Expectation {
    type Err = ParseExpectationError;

    /// Parses the text of an expectation. The fields may be in any order; each has to be known, and there once.
    fn from_str(text: &str) -> std::result::Result<Self, ParseExpectationError> {
        Self::from_bytes(text.as_bytes())
    }
}

/// Where the groups of a UUID end.
const DASHES: [usize; 4] = [8, 13, 18, 23];

impl FromStr for BootId {
    type Err = ParseBootIdError;

    fn from_str(text: &str) -> std::result::Result<Self, ParseBootIdError> {
        let is_right = |(at, byte): (usize, u8)| match DASHES.contains(&at) {
            true => byte == b'-',
            false => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        };
        if text.len() != 36 || !text.bytes().enumerate().all(is_right) {
            return Err(ParseBootIdError);
        }
        let digits = text.replace('-', "");
        u128::from_str_radix(&digits, 16).map(Self).map_err(|_| ParseBootIdError)
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let [a, b, c, d, e] = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        f.pad(&format!("{a}-{b}-{c}-{d}-{e}"))
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BootId({self})")
    }
}

#[cfg(test)]
mod tests;
