//! The CDI file: its fields, and the names that it may contain.
//!
//! Loaders refuse unknown fields, an empty list of devices, and two devices of one name.

use std::fmt;

use serde::Serialize;

/// A CDI file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(deny_unknown_fields))]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) cdi_version: String,
    pub(super) kind: String,
    pub(super) devices: Vec<CdiDevice>,
    /// What every container gets that gets one of the devices.
    #[serde(default, skip_serializing_if = "Edits::is_empty")]
    pub(super) container_edits: Edits,
}

/// A device that a container can be given by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(deny_unknown_fields))]
#[serde(rename_all = "camelCase")]
pub(super) struct CdiDevice {
    pub(super) name: String,
    pub(super) container_edits: Edits,
}

/// What a container gets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(deny_unknown_fields))]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Edits {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) device_nodes: Vec<Node>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) hooks: Vec<Hook>,
}

/// A device node, under the same path in the container as on the host.
///
/// It has neither a type nor a number: with these, podman makes a node for a device that the host does not have.
/// Without a mode, the node is one that nobody may open if the container has a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(deny_unknown_fields))]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) path: String,
    pub(super) file_mode: u32,
    pub(super) permissions: String,
}

/// A program that the runtime runs on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(serde::Deserialize), serde(deny_unknown_fields))]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    pub(super) args: Vec<String>,
    /// In seconds. Without it the runtime waits without a limit.
    pub(super) timeout: u32,
}

impl Edits {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Node {
    /// A node of `/dev/infiniband`.
    pub(super) fn new(name: &str, file_mode: u32) -> Self {
        let (path, permissions) = (format!("/dev/infiniband/{name}"), "rw".to_owned());
        Self { path, file_mode, permissions }
    }
}

/// The kind of the devices: `VENDOR/CLASS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    vendor: String,
    class: String,
}

impl Kind {
    /// The name of a file for the devices of this kind, as other writers choose it.
    pub(super) fn file_name(&self) -> String {
        format!("{}-{}.json", self.vendor, self.class)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vendor, self.class)
    }
}

/// Parses a kind, as the specification and its loaders both accept it.
pub(crate) fn kind(text: &str) -> Result<Kind, String> {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let begins = |name: &str| name.starts_with(|c: char| c.is_ascii_alphabetic());
    let parse = || {
        let (vendor, class) = text.split_once('/')?;
        let is_vendor = begins(vendor) && vendor.len() <= 253 && vendor.split('.').all(is_label);
        let is_class = begins(class) && class.len() <= 63 && is_word(class, b"_-.");
        (is_vendor && is_class).then(|| Kind { vendor: vendor.into(), class: class.into() })
    };
    parse().ok_or_else(|| "a kind is VENDOR/CLASS, such as vendor.com/device".to_owned())
}

/// Whether a text may be the name of a device: letters, digits and `_-.:`, with a letter or digit at both ends.
pub(super) fn is_device_name(text: &str) -> bool {
    is_word(text, b"_-.:")
}

fn is_word(text: &str, between: &[u8]) -> bool {
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    is_end(bytes.first())
        && is_end(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || between.contains(byte))
}

/// The versions of the specification, in their order.
const VERSIONS: [&str; 8] =
    ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// A version of the specification: where it is in [`VERSIONS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(usize);

impl Version {
    /// The first that has names which begin with a digit, as PCI addresses do. The engines of 2023 know none later.
    const DIGITS: Self = Self(2);
    /// The first that has dots in the class.
    const DOTS: Self = Self(3);

    /// The lowest version that has all that a file of this kind needs.
    pub(super) fn lowest(kind: &Kind) -> Self {
        if kind.class.contains('.') { Self::DOTS } else { Self::DIGITS }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(VERSIONS[self.0])
    }
}

pub(crate) fn version(text: &str) -> Result<Version, String> {
    let at = VERSIONS.iter().position(|known| *known == text);
    at.map(Version).ok_or_else(|| format!("the versions of CDI are {}", VERSIONS.join(", ")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kinds_of_the_specification() {
        for text in ["vendor.com/foo", "foo.bar.baz/foo-bar123.B_az", "uverbs/device", "a/b"] {
            assert_eq!(kind(text).expect(text).to_string(), text);
        }
        for text in [
            "",
            "foo",
            "/",
            "a/",
            "/a",
            "vendor.com/foo/",
            "vendor.com/foo/bar",
            "1a/b",
            "a/1b",
            "a_b/c",
            ".a/b",
            "a./b",
            "a..b/c",
            "-a/b",
            "a-/b",
            "a/b-",
            "a/_b",
            "a b/c",
            "a/b c",
            "a/b\n",
            "a/\u{e9}",
        ] {
            assert!(kind(text).is_err(), "{text:?}");
        }
        let long = "a".repeat(64);
        assert!(kind(&format!("a/{long}")).is_err() && kind(&format!("{long}/a")).is_err());
        assert_eq!(kind("vendor.com/foo").expect("a kind").file_name(), "vendor.com-foo.json");
    }

    #[test]
    fn the_lowest_version_is_written() {
        let lowest = |text| Version::lowest(&kind(text).expect(text)).to_string();
        assert_eq!(lowest("vendor.com/foo"), "0.5.0");
        assert_eq!(lowest("vendor.com/foo.bar"), "0.6.0");
        assert!(version("0.5.0") < version("1.0.0"));
        for text in ["", "0.5", "v0.5.0", "0.5.1", "2.0.0"] {
            assert!(version(text).is_err(), "{text}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn a_name_has_the_letters_of_the_specification(text in r"[a-c0-2_.:%/\n -]{0,8}") {
            let expected = !text.is_empty()
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
                && !text.starts_with(['_', '-', '.', ':'])
                && !text.ends_with(['_', '-', '.', ':']);
            prop_assert_eq!(is_device_name(&text), expected);
        }

        #[test]
        fn any_text_comes_back_from_json(name: String, path: String, mode: u32, args: Vec<String>) {
            let hook = Hook { hook_name: name.clone(), path, args: args.clone(), timeout: mode };
            let node = Node::new(&name, mode);
            let edits = Edits { env: args, device_nodes: vec![node], hooks: vec![hook] };
            let devices = vec![CdiDevice { name, container_edits: edits.clone() }];
            let (cdi_version, kind) = ("0.5.0".to_owned(), "a/b".to_owned());
            let spec = Spec { cdi_version, kind, devices, container_edits: edits };
            let text = serde_json::to_string_pretty(&spec).expect("JSON");
            let back: Spec = serde_json::from_str(&text).expect("parsed");
            prop_assert_eq!(back, spec);
        }
    }
}
