//! Numbers of the kernel that have names.

/// An enum of them; `Unknown` is what this version does not know.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident($type:ty): $($variant:ident = $number:literal $text:literal,)*) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[allow(missing_docs)] // the names are the field's own
        pub enum $name {
            $($variant,)*
            /// A number that this version does not know.
            Unknown($type),
        }

        impl $name {
            /// What that number stands for.
            pub fn from_raw(raw: $type) -> Self {
                match raw {
                    $($number => Self::$variant,)*
                    raw => Self::Unknown(raw),
                }
            }

            /// Its number.
            pub fn to_raw(self) -> $type {
                match self {
                    $(Self::$variant => $number,)*
                    Self::Unknown(raw) => raw,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self {
                    $(Self::$variant => f.pad($text),)*
                    Self::Unknown(raw) => f.pad(&format!("unknown({raw})")),
                }
            }
        }
    };
}

pub(super) use numbered;
