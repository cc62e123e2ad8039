//! GUIDs.

use std::fmt;
use std::str::FromStr;

/// A globally unique identifier of a node (EUI-64), as a number in host byte order.
///
/// ```
/// use uverbs::Guid;
///
/// let guid: Guid = "0002:c903:0005:1234".parse()?;
/// assert_eq!(guid, Guid(0x0002_c903_0005_1234));
/// assert_eq!("00:02:c9:03:00:05:12:34".parse(), Ok(guid));
/// assert_eq!("0x0002c90300051234".parse(), Ok(guid));
/// assert_eq!(guid.to_string(), "0002:c903:0005:1234");
/// # Ok::<(), uverbs::ParseGuidError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_structs)] // a GUID has exactly this number
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    /// As sysfs prints it: `0002:c903:0005:1234`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (self.0 >> shift) & 0xffff);
        f.pad(&format!("{a:04x}:{b:04x}:{c:04x}:{d:04x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

/// The error for a text that is not a [`Guid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a GUID has 16 hexadecimal digits: 0002:c903:0005:1234, 00:02:c9:03:00:05:12:34, 0002c90300051234 or 0x0002c90300051234"
)]
#[non_exhaustive]
pub struct ParseGuidError;

impl FromStr for Guid {
    type Err = ParseGuidError;

    /// Parses four groups of four hexadecimal digits (`0002:c903:0005:1234`, as sysfs and this type print them), eight
    /// groups of two (`00:02:c9:03:00:05:12:34`, as `ip link` prints them), or 16 digits, also with `0x` before
    /// them. Upper case is accepted. A sign, a space or a missing digit is not.
    fn from_str(text: &str) -> Result<Self, ParseGuidError> {
        let is_grouped = |len| text.split(':').all(|group| group.len() == len);
        let digits = match text.len() {
            16 => text.to_owned(),
            18 => text.strip_prefix("0x").ok_or(ParseGuidError)?.to_owned(),
            19 if is_grouped(4) => text.replace(':', ""),
            23 if is_grouped(2) => text.replace(':', ""),
            _ => return Err(ParseGuidError),
        };
        // `from_str_radix` accepts a sign, too.
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ParseGuidError);
        }
        u64::from_str_radix(&digits, 16).map(Self).map_err(|_| ParseGuidError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guid_prints_as_sysfs_prints_it() {
        assert_eq!(Guid(0x0002_c903_0005_1234).to_string(), "0002:c903:0005:1234");
    }

    #[test]
    fn a_guid_is_parsed_strictly() {
        let guid = Guid(0x0002_c903_0005_12af);
        for text in [
            "0002:c903:0005:12af",
            "0002c903000512af",
            "0002:C903:0005:12AF",
            "00:02:c9:03:00:05:12:af",
            "00:02:C9:03:00:05:12:AF",
            "0x0002c903000512af",
            "0x0002C903000512AF",
        ] {
            assert_eq!(text.parse(), Ok(guid), "{text}");
        }
        for number in [0, 1, u64::MAX] {
            assert_eq!(Guid(number).to_string().parse(), Ok(Guid(number)));
        }
        for text in [
            "",
            "0",
            "0002:c903:0005:12a",
            "0002:c903:0005:12afb",
            "0002:c903:0005:12ag",
            "0002:c903:000512af",
            "0002:c9030:005:12af",
            ":0002:c903:0005:12a",
            "0002 c903 0005 12af",
            "+002c903000512af",
            "0x0002c903000512",
            "0x+002c903000512af",
            "0X0002c903000512af",
            "0x0002:c903:0005:12af",
            "0x0x02c903000512af",
            "00:02:c9:03:00:05:12",
            "00:02:c9:03:00:05:12:a",
            "00:02:c9:03:00:05:12:af:00",
            "0:002:c9:03:00:05:12:af",
            "00:02:c9:03:00:05:12-af",
            "-002:c903:0005:12af",
            " 0002c903000512af",
            "0002c903000512af\n",
            "0002:c903:0005:12\u{e9}",
        ] {
            assert_eq!(text.parse::<Guid>(), Err(ParseGuidError), "{text:?}");
        }
    }

    #[test]
    fn the_error_shows_each_form() {
        let error = ParseGuidError.to_string();
        let forms = error.split([' ', ',']).filter_map(|word| word.parse::<Guid>().ok());
        assert_eq!(forms.collect::<Vec<_>>(), [Guid(0x0002_c903_0005_1234); 4]);
    }
}
