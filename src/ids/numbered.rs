//! Kernel numbers that have names.

/// A type for a kernel number, with a constant for each value that has a name. The C names become aliases in the
/// documentation's search.
///
/// It is a newtype, not an enum: naming another value later does not change anything for a program that has already
/// met its number.
macro_rules! numbered {
    (
        $(#[$doc:meta])*
        $name:ident($type:ty):
        $($constant:ident = $number:literal $text:literal $alias:literal,)*
    ) => {
        $(#[$doc])*
        ///
        /// Every number is valid. One without a name prints as `unknown(N)`. The order is numerical.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        pub struct $name($type);

        impl $name {
            $(
                #[doc = concat!("`", $text, "`, number ", $number, ".")]
                #[doc(alias = $alias)]
                pub const $constant: Self = Self($number);
            )*

            /// Every value that has a name, in the order of this list.
            #[allow(dead_code)] // not every type needs it
            pub(crate) const NAMED: &'static [Self] = &[$(Self::$constant,)*];

            /// The value with that number.
            pub const fn from_raw(raw: $type) -> Self {
                Self(raw)
            }

            /// Its number.
            pub const fn to_raw(self) -> $type {
                self.0
            }

            /// Its name; `None` for a number that this version does not know.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$constant => Some($text),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            /// The name, or `unknown(N)`.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.pad(name),
                    None => f.pad(&format!("unknown({})", self.0)),
                }
            }
        }

        impl std::fmt::Debug for $name {
            /// The constant's name, or the number.
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match *self {
                    $(Self::$constant => {
                        f.write_str(concat!(stringify!($name), "(", stringify!($constant), ")"))
                    })*
                    Self(raw) => write!(f, concat!(stringify!($name), "({})"), raw),
                }
            }
        }
    };
}

pub(crate) use numbered;

#[cfg(test)]
#[allow(unreachable_pub)] // the macro generates it
mod tests {
    use std::collections::HashSet;

    numbered! {
        /// A number for the test.
        Sample(u8):
        FIRST = 1 "the first" "C_FIRST",
        FOURTH = 4 "the fourth" "C_FOURTH",
    }

    #[test]
    fn every_number_round_trips() {
        for raw in 0..=u8::MAX {
            assert_eq!(Sample::from_raw(raw).to_raw(), raw);
        }
        let all: HashSet<_> = (0..=u8::MAX).map(Sample::from_raw).collect();
        assert_eq!(all.len(), 256);
        assert!(Sample::from_raw(3) < Sample::FOURTH && Sample::FIRST < Sample::from_raw(3));
        assert_eq!(Sample::NAMED, [Sample::FIRST, Sample::FOURTH]);
    }

    #[test]
    fn it_prints_its_name_or_its_number() {
        const FOURTH: Sample = Sample::from_raw(4);
        assert_eq!((FOURTH, FOURTH.name()), (Sample::FOURTH, Some("the fourth")));
        assert_eq!(
            (FOURTH.to_string(), format!("{FOURTH:?}")),
            ("the fourth".into(), "Sample(FOURTH)".into())
        );
        let other = Sample::from_raw(2);
        assert_eq!(other.name(), None);
        assert_eq!(
            (other.to_string(), format!("{other:?}")),
            ("unknown(2)".into(), "Sample(2)".into())
        );
        assert_eq!(format!("[{other:>12}]"), "[  unknown(2)]");
    }
}
