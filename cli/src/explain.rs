//! Sentences for what an operator meets most: a missing node, a node that may not be opened, a masked
//! `/sys`, a device of another network namespace. The library's error names the system call instead.

use std::fs;

use rustix::io::Errno;
use uverbs::{Device, Error, ErrorKind, Host, HostBuilder, Step};

use crate::output::{Failure, up_to_five};

/// What an error means, where a sentence is of more use than the system call.
pub(crate) fn sentence(error: &Error) -> Option<String> {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    let device = error.device();
    let about = device.map(|device| format!("{device}: ")).unwrap_or_default();
    let node = device.and_then(node_of);
    let is_of_node = matches!(error.step(), Some(Step::Node | Step::Open));
    let text = match (error.kind(), errno?) {
        // What became of the device matters more than the call by which it was found.
        (ErrorKind::Removed | ErrorKind::Replaced, _) => return None,
        (ErrorKind::NetlinkUnavailable, errno) => netlink(errno),
        (ErrorKind::Unsupported, Errno::PERM) if error.step().is_none() => {
            "this process may not call openat2(2): a seccomp filter, such as that of a container, \
             blocks it. Allow it there"
                .to_owned()
        }
        (ErrorKind::Unsupported, Errno::NOSYS) if error.step().is_none() => {
            "there is no openat2(2): Linux 5.6 or later is needed, or a filter hides the call"
                .to_owned()
        }
        (_, Errno::NOENT) if is_of_node => format!(
            "{} does not exist: is udev or devtmpfs set up, or was the node not given to this \
             container?",
            node?
        ),
        (_, Errno::ACCESS) if is_of_node => format!(
            "this user may not open {}: see its mode and group, and those of its directory",
            node?
        ),
        (_, Errno::PERM) if is_of_node => format!(
            "the kernel does not let this process open {}: the device cgroup of a container \
             forbids it, or the device belongs to another network namespace",
            node?
        ),
        (_, Errno::XDEV) if !is_of_node => {
            "a part of /sys is mounted over, as some containers mask it, and the \
                             library does not read through another mount: run it with the whole \
                             sysfs at /sys"
                .to_owned()
        }
        (_, Errno::ACCESS) if error.step().is_none_or(|step| step == Step::Pin) => {
            "this user may not read the device's directory in /sys, or that of its class".to_owned()
        }
        _ => return None,
    };
    Some(format!("{about}{text}"))
}

/// Why there is no netlink socket.
fn netlink(errno: Errno) -> String {
    let why = match errno {
        Errno::PROTONOSUPPORT => "ib_core is not loaded",
        Errno::PERM | Errno::ACCESS | Errno::AFNOSUPPORT => {
            "a filter around this process forbids the socket (AF_NETLINK, NETLINK_RDMA): allow it \
             there"
        }
        _ => "the socket cannot be made",
    };
    format!("RDMA netlink cannot be used, so that nothing can be proved: {why}")
}

/// The path of a device's node, by the name that the library's errors have for the device.
fn node_of(device: &str) -> Option<String> {
    let (_, uverbs) = device.strip_suffix(')')?.rsplit_once('(')?;
    Some(format!("/dev/infiniband/{uverbs}"))
}

/// Opens the host; an error is explained by what is there.
pub(crate) fn host(builder: HostBuilder) -> Result<Host, Failure> {
    builder.build().map_err(|error| {
        let is_missing = |path: &str| fs::metadata(path).is_err();
        let text = match error.kind() {
            ErrorKind::Os if is_missing("/sys") => "there is no /sys: mount sysfs there",
            ErrorKind::Os if is_missing("/dev") => "there is no /dev: mount devtmpfs there",
            ErrorKind::Unsupported if error.raw_os_error().is_none() => {
                "/sys is not sysfs: mount it there (mount -t sysfs sysfs /sys), or run this where \
                 it is"
            }
            _ => return error.into(),
        };
        Failure::from(error).in_words(text)
    })
}

/// Why a device could not be opened or read: where it belongs to another network namespace, that.
pub(crate) fn of_device(device: &Device, error: Error) -> Failure {
    let is_elsewhere = error.kind() == ErrorKind::Unproven
        && is_exclusive()
        && device.query().is_err_and(|error| is_unlisted(&error));
    match is_elsewhere {
        true => Failure::from(error).in_words(elsewhere(&[device])),
        false => error.into(),
    }
}

/// Whether RDMA netlink answers, and does not know the device.
pub(crate) fn is_unlisted(error: &Error) -> bool {
    error.kind() == ErrorKind::Unproven && error.raw_os_error().is_none()
}

/// What it means that netlink does not know these devices in exclusive mode, and what to do.
pub(crate) fn elsewhere(devices: &[&Device]) -> String {
    let (belong, they, them) = match devices {
        [_] => ("belongs", "it", "it"),
        _ => ("belong", "they", "one"),
    };
    format!(
        "{} {belong} to another network namespace, and the RDMA subsystem is in exclusive mode: {they} \
         cannot be opened here. To move {them} here, run in that namespace: rdma dev set DEV netns NAME",
        up_to_five(devices)
    )
}

/// Whether each RDMA device belongs to one network namespace alone (`rdma system set netns exclusive`): the
/// kernel shows the mode as a parameter of ib_core. False where it cannot be read.
pub(crate) fn is_exclusive() -> bool {
    let mode = fs::read("/sys/module/ib_core/parameters/netns_mode");
    mode.is_ok_and(|mode| mode.trim_ascii() == b"N")
}

#[cfg(all(test, feature = "demo"))]
mod tests {
    use super::*;
    use uverbs::Registry;
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
            "rxe(0) (uverbs0): /dev/infiniband/uverbs0 does not exist: is udev or devtmpfs set \
             up, or was the node not given to this container?"
        );
        let json = serde_json::to_value(&failure).expect("JSON");
        assert!(
            json["cause"].as_str().is_some_and(|cause| cause.contains("openat2(dev")),
            "{json}"
        );
        assert_eq!((&json["step"], &json["errno"]), (&"node".into(), &2.into()));
    }

    #[test]
    fn a_call_that_fails_is_a_sentence() {
        for (path, errno, words) in [
            ("infiniband/uverbs0", Errno::ACCESS, "this user may not open /dev/infiniband/uverbs0"),
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
            (Errno::CONNREFUSED, "cannot be made"),
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
    fn a_device_that_netlink_does_not_know_differs_from_one_that_cannot_be_read() {
        let machine = Machine::new();
        let device = listed(&machine);
        let id = machine.instance_of(0).expect("there");
        machine.set_netns_visible(id, false);
        assert!(device.query().is_err_and(|error| is_unlisted(&error)));
        machine.set_netns_visible(id, true);
        machine.deny_netlink(Some(1));
        assert!(device.query().is_err_and(|error| !is_unlisted(&error)));
    }

    #[test]
    fn devices_of_another_namespace_are_named() {
        let device = listed(&Machine::new());
        let text = elsewhere(&[&device]);
        assert!(
            text.starts_with("rxe(0) (uverbs0) belongs to another network namespace"),
            "{text}"
        );
        let text = elsewhere(&[&device, &device]);
        assert!(text.contains("rxe(0) (uverbs0), rxe(0) (uverbs0) belong to"), "{text}");
    }
}
