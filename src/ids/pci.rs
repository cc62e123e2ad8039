//! PCI addresses.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device and function.
///
/// It prints as the kernel does (`pci_setup_device`, `drivers/pci/probe.c`): the domain in four hexadecimal digits, or
/// more where it needs more. Intel VMD and Hyper-V have such domains. The order is that of the numbers.
///
/// ```
/// use uverbs::PciAddress;
///
/// let address: PciAddress = "0000:3b:00.2".parse()?;
/// assert_eq!(Some(address), PciAddress::new(0, 0x3b, 0, 2));
/// assert_eq!("00000000:3B:00.2".parse(), Ok(address));
/// assert_eq!("10000:e1:00.0".parse::<PciAddress>()?.domain(), 0x10000);
/// assert_eq!(address.to_string(), "0000:3b:00.2");
/// # Ok::<(), uverbs::ParsePciAddressError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// The address of these numbers; `None` if the device is above 31 or the function above 7.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        match (device, function) {
            (0..32, 0..8) => Some(Self { domain, bus, device, function }),
            _ => None,
        }
    }

    /// The domain, also called segment.
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// The bus.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device on the bus, 0 to 31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// The function of the device, 0 to 7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// Bus, device and function as one number, in which the functions of a domain are counted (routing ID).
    pub(crate) const fn routing_id(self) -> u16 {
        (self.bus as u16) << 8 | (self.device as u16) << 3 | self.function as u16
    }
}

impl fmt::Display for PciAddress {
    /// As the kernel prints it: `0000:3b:00.2`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        f.pad(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function}"))
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PciAddress({self})")
    }
}

/// The error for a text that is not a [`PciAddress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a PCI address has a domain, a bus, a device and a function: 0000:3b:00.2")]
#[non_exhaustive]
pub struct ParsePciAddressError;

impl FromStr for PciAddress {
    type Err = ParsePciAddressError;

    /// Parses `DOMAIN:BUS:DEVICE.FUNCTION`: four to eight, two, two and one digit, hexadecimal. Upper case is accepted.
    /// A text without the domain, as `lspci` prints it, is not: it leaves open which function is meant.
    fn from_str(text: &str) -> Result<Self, ParsePciAddressError> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let domain = digits(domain, 4, 8)?;
            let [bus, device] = [digits(bus, 2, 2)?, digits(device, 2, 2)?];
            let function = digits(function, 1, 1)?;
            Self::new(domain, bus as u8, device as u8, function as u8)
        };
        parse().ok_or(ParsePciAddressError)
    }
}

/// So many hexadecimal digits. (`from_str_radix` accepts a sign, too.)
fn digits(text: &str, least: usize, most: usize) -> Option<u32> {
    let is_number =
        (least..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u32::from_str_radix(text, 16).ok().filter(|_| is_number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_come_back(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress::new(domain, bus, device, function).expect("in range");
            let text = address.to_string();
            prop_assert_eq!(text.parse(), Ok(address));
            prop_assert_eq!(text.to_uppercase().parse(), Ok(address));
            prop_assert_eq!(format!("{domain:08x}{}", &text[text.find(':').unwrap_or(0)..]).parse(), Ok(address));
            let parts = (address.domain(), address.bus(), address.device(), address.function());
            prop_assert_eq!(parts, (domain, bus, device, function));
        }

        #[test]
        fn only_an_address_is_parsed(text in "[0-9a-g:. +-]{0,16}") {
            if let Ok(address) = text.parse::<PciAddress>() {
                // Leading zeros of the domain are all that may differ.
                let printed = address.to_string();
                let zeros = text.len() - printed.len();
                prop_assert_eq!("0".repeat(zeros) + &printed, text);
            }
        }

        #[test]
        fn the_order_is_that_of_the_numbers(
            a in (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8),
            b in (any::<u32>(), any::<u8>(), 0u8..32, 0u8..8),
        ) {
            let of = |(domain, bus, device, function)| PciAddress::new(domain, bus, device, function);
            prop_assert_eq!(of(a).cmp(&of(b)), a.cmp(&b));
        }
    }

    #[test]
    fn addresses_of_real_hosts() {
        for (text, domain) in [
            ("0000:3b:00.2", 0),
            ("10000:e1:00.0", 0x1_0000),
            ("b4a8:00:02.0", 0xb4a8),
            ("ffffffff:ff:1f.7", u32::MAX),
        ] {
            let address: PciAddress = text.parse().expect(text);
            assert_eq!((address.domain(), address.to_string()), (domain, text.to_owned()));
        }
        assert_eq!(PciAddress::new(0, 0xff, 31, 7).map(PciAddress::routing_id), Some(0xffff));
        assert_eq!(PciAddress::new(9, 1, 2, 3).map(PciAddress::routing_id), Some(0x0113));
    }

    #[test]
    fn an_address_is_parsed_strictly() {
        for text in [
            "",
            "3b:00.2",
            "000:3b:00.2",
            "000000000:3b:00.2",
            "0000:3b:00",
            "0000:3b:00.",
            "0000:3b:00.8",
            "0000:3b:20.0",
            "0000:3b:0.2",
            "0000:3b:00.02",
            "0000:03b:00.2",
            "0000:3b:00.2\n",
            " 0000:3b:00.2",
            "+000:3b:00.2",
            "0000:+b:00.2",
            "0000:3b:00.+",
            "0x00:3b:00.2",
            "0000.3b.00.2",
            "0000:3b:00:2",
            "0000:3b:00.2.0",
            "\u{ff10}000:3b:00.2",
        ] {
            assert_eq!(text.parse::<PciAddress>(), Err(ParsePciAddressError), "{text:?}");
        }
        assert_eq!(PciAddress::new(0, 0, 32, 0), None);
        assert_eq!(PciAddress::new(0, 0, 0, 8), None);
    }

    #[test]
    fn the_error_shows_the_form() {
        let error = ParsePciAddressError.to_string();
        assert!(error.split(' ').any(|word| word.parse::<PciAddress>().is_ok()), "{error}");
    }
}
