//! Errors: what they print, and what programs read from them.

use std::error::Error as _;
use std::io;

use uverbs::sim::{CallKind, DeviceSpec, Machine, NodeKind, Verdict};
use uverbs::{CheckId, Device, Error, ErrorKind, Host, Registry, Step, Value};

fn listed(machine: &Machine) -> Device {
    machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
    let registry = Registry::new(Host::simulated(machine).expect("a host"));
    registry.devices().expect("a list").by_name("rxe0").expect("listed")
}

fn replaced() -> (Error, u64, u64) {
    let machine = Machine::new();
    let device = listed(&machine);
    machine.remove(machine.instance_of(0).expect("there"));
    let new = machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
    let error = device.open().expect_err("replaced");
    (error, device.instance().ino, machine.directory(new).expect("there"))
}

#[test]
fn a_check_that_did_not_hold_prints_what_was_and_is() {
    let (error, old, new) = replaced();
    let cause = format!("uverbs directory inode {old}, now {new}");
    assert_eq!(
        error.to_string(),
        format!("rxe0 (uverbs0): replaced by another device ({cause}) [pin]")
    );
    assert_eq!(error.cause(), cause);
    let check = error.check().expect("a check");
    assert_eq!((check.id, check.step, check.held()), (CheckId::UverbsInode, Step::Pin, false));
    assert_eq!((&check.expected, &check.found), (&Value::Number(old), &Value::Number(new)));
    assert!(error.source().is_none() && error.hint().is_none());
}

#[test]
fn a_node_that_leads_elsewhere_prints_what_was_expected() {
    let machine = Machine::new();
    let device = listed(&machine);
    machine.set_node(0, NodeKind::Fifo);
    assert_eq!(
        device.open().expect_err("refused").to_string(),
        "rxe0 (uverbs0): its node leads to another device (kind of node: expected character device, found FIFO) [node]"
    );
}

#[test]
fn a_call_that_failed_prints_the_call_the_step_and_a_hint() {
    let machine = Machine::new();
    let device = listed(&machine);
    machine.set_node(0, NodeKind::Missing);
    let error = device.open().expect_err("no node");
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("udev"), "{hint}");
    let cause = error.cause();
    assert!(cause.starts_with("openat2(dev, \"infiniband/uverbs0\", O_"), "{cause}");
    assert!(cause.ends_with("): ENOENT (no such file or directory)"), "{cause}");
    let text = format!("rxe0 (uverbs0): a system call failed ({cause}) [node]: {hint}");
    assert_eq!(error.to_string(), text);
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(source.expect("an io::Error").raw_os_error(), Some(2));
    assert!(error.check().is_none());
}

/// A hint of what failed first does not stay with an error that turns out to be something else.
#[test]
fn a_device_that_went_has_no_hint_about_its_node() {
    let machine = Machine::new();
    let device = listed(&machine);
    let id = machine.instance_of(0).expect("there");
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Openat2 && call.detail(world).starts_with("/dev:") {
            world.remove(id);
        }
        Verdict::Continue
    });
    let error = device.open().expect_err("removed");
    assert_eq!((error.kind(), error.hint()), (ErrorKind::Removed, None), "{error}");
}

#[test]
fn io_errors_are_not_found_only_for_what_is_not_listed() {
    let kind = |error: Error| io::Error::from(error).kind();
    let (error, ..) = replaced();
    assert_eq!(kind(error), io::ErrorKind::StaleNetworkFileHandle);
    let machine = Machine::new();
    let device = listed(&machine);
    machine.set_node(0, NodeKind::Missing);
    assert_eq!(kind(device.open().expect_err("no node")), io::ErrorKind::Other);
    machine.remove(machine.instance_of(0).expect("there"));
    assert_eq!(kind(device.open().expect_err("removed")), io::ErrorKind::StaleNetworkFileHandle);
    let registry = Registry::new(Host::simulated(&machine).expect("a host"));
    let error = registry.devices().expect("a list").by_name("x").expect_err("none");
    assert_eq!(kind(error), io::ErrorKind::NotFound);
}

#[test]
fn a_device_that_netlink_does_not_list_may_be_of_another_namespace() {
    let machine = Machine::new();
    let device = listed(&machine);
    let id = machine.instance_of(0).expect("there");
    machine.set_netns_visible(id, false);
    for error in [device.index().map(drop), device.open().map(drop)].map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::OtherNamespace);
        let text = error.to_string();
        assert!(
            text.starts_with("rxe0 (uverbs0): may belong to another network namespace"),
            "{text}"
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("rdma dev set DEV netns")), "{text}");
    }
    // Without a proof it is the kernel that refuses.
    let error = device.open_allow_unproven().expect_err("refused");
    assert_eq!((error.kind(), error.step()), (ErrorKind::PermissionDenied, Some(Step::Open)));
    // Moved away after its index was known.
    machine.set_netns_visible(id, true);
    device.index().expect("joined");
    machine.set_netns_visible(id, false);
    assert_eq!(device.query().expect_err("hidden").kind(), ErrorKind::OtherNamespace);
    // One that is gone is not elsewhere.
    machine.remove(id);
    assert_eq!(device.query().expect_err("gone").kind(), ErrorKind::Removed);
}

/// Codes are part of the interface.
#[test]
fn codes() {
    use ErrorKind::*;

    for (kind, code) in [
        (NotFound, "not_found"),
        (Ambiguous, "ambiguous"),
        (Removed, "removed"),
        (Replaced, "replaced"),
        (Unstable, "unstable"),
        (NodeMismatch, "node_mismatch"),
        (NotExpected, "not_expected"),
        (Unproven, "unproven"),
        (OtherNamespace, "other_namespace"),
        (NetlinkUnavailable, "netlink_unavailable"),
        (PermissionDenied, "permission_denied"),
        (Unsupported, "unsupported"),
        (AbiMismatch, "abi_mismatch"),
        (Provider, "provider"),
        (Busy, "busy"),
        (Malformed, "malformed"),
        (Os, "os"),
    ] {
        assert_eq!(kind.code(), code);
    }
}

/// So are the names of checks.
#[test]
fn checks_have_stable_names() {
    let machine = Machine::new();
    let context = listed(&machine).open().expect("opened");
    let checks = context.evidence().checks().iter();
    let names: Vec<_> = checks.map(|check| (check.step.name(), check.id.name())).collect();
    assert_eq!(
        names,
        [
            ("pin", "sysfs_mount"),
            ("pin", "uverbs_inode"),
            ("pin", "device_number"),
            ("node", "node_kind"),
            ("node", "node_device_number"),
            ("open", "node_kind"),
            ("open", "node_device_number"),
            ("open", "node_inode"),
            ("revalidate", "uverbs_inode"),
            ("revalidate", "device_number"),
            ("revalidate", "name"),
            ("revalidate", "timestamp"),
            ("prove", "node_guid"),
            ("prove", "protection_domain"),
            ("prove", "device_number"),
        ]
    );
}
