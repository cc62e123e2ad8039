//! Sentences for what an operator meets most: a missing node, a node that may not be opened, a masked
//! `/sys`, a device of another network namespace.

use std::fmt;

use uverbs::{Error, ErrorKind, Step};

use crate::output::up_to_five;

/// An error in words, without the system call that it came from, where the library has a hint.
pub(crate) fn sentence(error: &Error) -> Option<String> {
    let hint = error.hint()?;
    // Which command a driver refused matters as much as the hint.
    if error.raw_os_error().is_none() || error.step() == Some(Step::Allocate) {
        return None;
    }
    let about = error.device().map(|device| format!("{device}: ")).unwrap_or_default();
    Some(match error.kind() {
        ErrorKind::Os | ErrorKind::PermissionDenied => format!("{about}{hint}"),
        kind => format!("{about}{kind}: {hint}"),
    })
}

/// What it means that netlink does not list these devices, and what to do.
pub(crate) fn elsewhere(devices: &[impl fmt::Display]) -> String {
    let (they, them) = match devices {
        [_] => ("it", "it"),
        _ => ("they", "one"),
    };
    format!(
        "{} may belong to another network namespace: {they} cannot be opened here. To move {them} here, run in \
         that namespace: rdma dev set DEV netns NAME",
        up_to_five(devices)
    )
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use rustix::io::Errno;
    use uverbs::{Device, Host, Registry};

    use super::*;
    use crate::output::Failure;
    use uverbs::sim::{CallKind, DeviceSpec, Machine, NodeKind, Verdict};

    fn listed(machine: &Machine) -> Device {
        machine.add(DeviceSpec::new("rxe(0)")).expect("added");
        let host = Host::simulated(machine).expect("a host");
        Registry::new(host).devices().expect("a list").by_name("rxe(0)").expect("listed")
    }

    #[test]
    fn a_missing_node_is_named() {
        let machine = Machine::new();
        let device = listed(&machine);
        machine.set_node(0, NodeKind::Missing);
        let failure = Failure::from(device.open().expect_err("no node"));
        assert_eq!(
            failure.to_string(),
            "rxe(0) (uverbs0): there is no such node in /dev: udev or devtmpfs may not be set up, or the node was \
             not given to this container"
        );
        let json = serde_json::to_value(&failure).expect("JSON");
        assert!(
            json["cause"].as_str().is_some_and(|cause| cause.starts_with("openat2(dev")),
            "{json}"
        );
        assert_eq!((&json["step"], &json["errno"]), (&"node".into(), &2.into()));
    }

    #[test]
    fn a_call_that_fails_is_a_sentence() {
        for (path, errno, words) in [
            ("infiniband/uverbs0", Errno::ACCESS, "this user may not open the node"),
            ("infiniband/uverbs0", Errno::PERM, "device cgroup"),
            ("uverbs0", Errno::XDEV, "mounted over"),
        ] {
            let machine = Machine::new();
            let device = listed(&machine);
            machine.on_call(move |world, call| {
                let is_it = call.kind() == CallKind::Openat2 && call.detail(world).contains(path);
                if is_it { Verdict::Fail(errno.raw_os_error()) } else { Verdict::Continue }
            });
            let text = Failure::from(device.open().expect_err("refused")).to_string();
            assert!(text.starts_with("rxe(0) (uverbs0): ") && text.contains(words), "{text}");
            assert!(!text.contains("openat2"), "{text}");
        }
    }

    #[test]
    fn without_netlink_the_reason_is_named() {
        for (errno, words) in [
            (Errno::PROTONOSUPPORT, "ib_core is not loaded"),
            (Errno::AFNOSUPPORT, "a filter"),
            (Errno::CONNREFUSED, "nothing shows"),
        ] {
            let machine = Machine::new();
            let device = listed(&machine);
            machine.deny_netlink(Some(errno.raw_os_error()));
            let text = Failure::from(device.open().expect_err("refused")).to_string();
            assert!(text.contains("RDMA netlink") && text.contains(words), "{text}");
        }
    }

    #[test]
    fn a_device_that_went_is_not_called_a_missing_node() {
        let machine = Machine::new();
        let device = listed(&machine);
        machine.set_node(0, NodeKind::Missing);
        let id = machine.instance_of(0).expect("there");
        machine.remove(id);
        let failure = Failure::from(device.open().expect_err("gone"));
        assert!(failure.to_string().contains("removed"), "{failure}");
    }

    #[test]
    fn a_device_that_netlink_does_not_know_is_of_another_namespace() {
        let machine = Machine::new();
        let device = listed(&machine);
        let id = machine.instance_of(0).expect("there");
        machine.set_netns_visible(id, false);
        let text = Failure::from(device.open().expect_err("not listed")).to_string();
        assert!(text.contains("another network namespace"), "{text}");
        assert!(text.ends_with("rdma dev set DEV netns NAME"), "{text}");
    }

    #[test]
    fn devices_of_another_namespace_are_named() {
        let device = listed(&Machine::new());
        let text = elsewhere(&[&device]);
        assert!(
            text.starts_with("rxe(0) (uverbs0) may belong to another network namespace"),
            "{text}"
        );
        let text = elsewhere(&[&device, &device]);
        assert!(text.contains("rxe(0) (uverbs0), rxe(0) (uverbs0) may belong to"), "{text}");
    }
}
