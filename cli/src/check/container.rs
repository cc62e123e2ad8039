//! What was seen that a container has and a host does not.
//!
//! No single sign is certain: a host may have a `/dev` of its own making, and a container may share every namespace
//! with its host. So the signs are reported as what they are, and none of them makes a finding.

use std::fs;
use std::path::Path;

use super::nodes::{Mount, mount_of};

/// The inode numbers of the initial namespaces (`include/uapi/linux/nsfs.h`). Network and mount namespaces have no
/// fixed ones.
const INITIAL: [(&str, &str, &str); 3] = [
    ("cgroup", "cgroup:[4026531835]", "the cgroup namespace is not the initial one"),
    ("pid", "pid:[4026531836]", "the PID namespace is not the initial one"),
    ("user", "user:[4026531837]", "the user namespace is not the initial one"),
];

/// Files that podman and Docker put into each container.
const FILES: [&str; 2] = ["/run/.containerenv", "/.dockerenv"];

/// The signs of a container that this process sees.
#[derive(Debug, Default)]
pub(super) struct Signs {
    /// `/dev` is on another file system than devtmpfs.
    dev: Option<String>,
    /// Other signs.
    others: Vec<String>,
}

impl Signs {
    /// Looks for signs.
    pub(super) fn look(mounts: &[Mount]) -> Self {
        let link = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).ok();
        let namespaces = INITIAL.into_iter().filter(|(kind, initial, _)| {
            link(kind).is_some_and(|found| found.as_os_str() != *initial)
        });
        let namespaces = namespaces.map(|(_, _, words)| words.to_owned());
        let files = FILES.into_iter().filter(|file| Path::new(file).exists());
        let others = namespaces.chain(files.map(|file| format!("{file} exists"))).collect();
        let dev = mount_of(mounts, "/dev").filter(|mount| !mount.is_devtmpfs());
        Self { dev: dev.map(|mount| format!("/dev is on {}", mount.kind())), others }
    }

    /// All of them, in words.
    pub(super) fn words(&self) -> Vec<String> {
        self.dev.iter().chain(&self.others).cloned().collect()
    }

    /// Why a device may have no node where the kernel does not create them.
    pub(super) fn not_given(&self) -> &'static str {
        match self.others.is_empty() {
            true => "it was not created there, or not given to this container, if this is one",
            false => "it was not given to this container",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dev_of_its_own_is_a_sign_and_not_proof() {
        let signs = |dev: Option<&str>, others: &[&str]| Signs {
            dev: dev.map(str::to_owned),
            others: others.iter().map(|&sign| sign.to_owned()).collect(),
        };
        assert!(signs(Some("/dev is on tmpfs"), &[]).not_given().contains("if this is one"));
        let certain = signs(Some("/dev is on tmpfs"), &["/.dockerenv exists"]);
        assert!(!certain.not_given().contains("if this is one"));
        assert_eq!(certain.words(), ["/dev is on tmpfs", "/.dockerenv exists"]);
        assert!(signs(None, &[]).words().is_empty());
    }

    #[test]
    fn only_a_dev_on_another_file_system_is_a_sign() {
        for (kind, expected) in [("devtmpfs", None), ("tmpfs", Some("/dev is on tmpfs"))] {
            let mounts = [Mount::test("/", "overlay"), Mount::test("/dev", kind)];
            assert_eq!(Signs::look(&mounts).dev.as_deref(), expected);
        }
        assert_eq!(Signs::look(&[]).dev, None);
    }
}
