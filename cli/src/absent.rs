//! Why there are no verbs devices: whether ib_uverbs is loaded, and which RDMA devices have none.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use uverbs::{Devices, Name};

use crate::output::up_to_five;

/// What `/sys/class` shows beside the list of verbs devices.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    /// There is a class `infiniband_verbs`: the kernel has it while ib_uverbs is loaded.
    pub(crate) is_loaded: bool,
    /// RDMA devices without a verbs device, by name, escaped.
    pub(crate) without_verbs: Vec<String>,
}

impl Absent {
    /// Looks at `/sys/class`.
    pub(crate) fn look(devices: &Devices) -> Self {
        // A fault may be of a device whose name is not known.
        let are_all_listed = devices.faults().next().is_none();
        Self::beside(devices.iter().map(|device| device.name()), are_all_listed)
    }

    /// Looks at `/sys/class`. `listed` are the names of the verbs devices.
    pub(crate) fn beside(listed: impl Iterator<Item = Name>, are_all_listed: bool) -> Self {
        let listed = listed.map(|name| name.as_bytes().to_vec()).collect();
        Self::look_in(Path::new("/sys/class"), listed, are_all_listed)
    }

    fn look_in(class: &Path, listed: BTreeSet<Vec<u8>>, are_all_listed: bool) -> Self {
        // Another error than ENOENT is no reason to call the module missing.
        let is_loaded = fs::metadata(class.join("infiniband_verbs"))
            .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |_| true);
        let names = fs::read_dir(class.join("infiniband")).into_iter().flatten().flatten();
        let names = names.map(|entry| entry.file_name().into_vec());
        let without = names.filter(|name| are_all_listed && !listed.contains(name));
        let mut without_verbs: Vec<_> =
            without.map(|name| name.escape_ascii().to_string()).collect();
        without_verbs.sort_unstable();
        Self { is_loaded, without_verbs }
    }

    /// Why the list is empty, in a line or two.
    pub(crate) fn of_empty_list(&self) -> String {
        let loaded = match self.is_loaded {
            true => None,
            false => Some("ib_uverbs is not loaded (modprobe ib_uverbs)".to_owned()),
        };
        let reasons: Vec<_> = loaded.into_iter().chain(self.in_words()).collect();
        match reasons.is_empty() {
            true => "no RDMA verbs devices".to_owned(),
            false => format!("no RDMA verbs devices: {}", reasons.join("; ")),
        }
    }

    /// Which RDMA devices have no verbs device, if any.
    pub(crate) fn in_words(&self) -> Option<String> {
        let names = up_to_five(&self.without_verbs);
        match self.without_verbs.len() {
            0 => None,
            1 => Some(format!("1 RDMA device ({names}) has no verbs device")),
            count => Some(format!("{count} RDMA devices ({names}) have no verbs device")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn absent(is_loaded: bool, names: &[&str]) -> Absent {
        Absent { is_loaded, without_verbs: names.iter().map(|&name| name.to_owned()).collect() }
    }

    #[test]
    fn an_empty_list_has_its_reason() {
        for (is_loaded, names, text) in [
            (true, &[][..], "no RDMA verbs devices"),
            (false, &[], "no RDMA verbs devices: ib_uverbs is not loaded (modprobe ib_uverbs)"),
            (
                true,
                &["mlx5_0"],
                "no RDMA verbs devices: 1 RDMA device (mlx5_0) has no verbs device",
            ),
            (
                false,
                &["a", "b"],
                "no RDMA verbs devices: ib_uverbs is not loaded (modprobe ib_uverbs); 2 RDMA \
                 devices (a, b) have no verbs device",
            ),
        ] {
            assert_eq!(absent(is_loaded, names).of_empty_list(), text);
        }
    }

    #[test]
    fn the_classes_are_compared_with_the_list() {
        let class = std::env::temp_dir().join(format!("uverbs-absent-{}", std::process::id()));
        let look = |are_all_listed| {
            Absent::look_in(&class, BTreeSet::from([b"rxe0".to_vec()]), are_all_listed)
        };
        assert_eq!(look(true), absent(false, &[]));
        for name in ["infiniband_verbs", "infiniband/rxe0", "infiniband/mlx5_1", "infiniband/a\x1b"]
        {
            fs::create_dir_all(class.join(name)).expect("made");
        }
        let (found, with_a_fault) = (look(true), look(false));
        fs::remove_dir_all(&class).expect("removed");
        assert_eq!(found, absent(true, &[r"a\x1b", "mlx5_1"]));
        assert_eq!(with_a_fault, absent(true, &[]));
    }
}
