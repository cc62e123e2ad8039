//! Opens that cannot be proved, on the simulated kernel, and the comparisons that are made nevertheless.

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, NodeKind, Verdict};
use uverbs::{Device, ErrorKind, Host, Opened, Registry};

fn spec(name: &str) -> DeviceSpec {
    DeviceSpec::new(name).guid(0xa0).disassociates(false)
}

fn listed(machine: &Machine, name: &str) -> Device {
    let host = Host::simulated(machine).expect("a host");
    Registry::new(host).devices().expect("a list").by_name(name).expect("listed")
}

fn one() -> (Machine, DeviceId, Device) {
    let machine = Machine::new();
    let id = machine.add(spec("rxe0")).expect("added");
    let device = listed(&machine, "rxe0");
    (machine, id, device)
}

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("it has to be refused").kind()
}

#[test]
fn without_netlink_nothing_is_proved() {
    let (machine, _, device) = one();
    machine.deny_netlink(Some(1));
    let error = device.open().expect_err("it has to be refused");
    assert_eq!(error.kind(), ErrorKind::NetlinkUnavailable);
    assert_eq!(error.raw_os_error(), Some(1));
    assert_eq!(machine.node_opens(), []);
    let Ok(Opened::Unproven(context)) = device.open_allow_unproven() else {
        panic!("it is the right device, but that cannot be proved");
    };
    assert_eq!(context.query_device().expect("queried").node_guid.0, 0xa0);
    assert_eq!(context.reason().kind(), ErrorKind::NetlinkUnavailable);
    drop(context);
    // A lack of descriptors says nothing about netlink.
    machine.deny_netlink(Some(24));
    assert_eq!(kind(device.open()), ErrorKind::Os);
    machine.deny_netlink(None);
    device.open().expect("proved");
}

/// A request that the kernel refuses counts as unknown to it. A request that fails because this process lacks room
/// does not.
#[test]
fn refused_requests_prove_nothing() {
    for errno in [1, 5, 95] {
        let (machine, _, device) = one();
        machine.refuse_request(errno);
        let error = device.open().expect_err("it has to be refused");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Unproven, Some(errno)));
        assert_eq!(machine.node_opens(), []);
        machine.refuse_request(errno);
        let opened = device.open_allow_unproven().expect("nothing contradicts");
        assert!(matches!(opened, Opened::Unproven(_)), "errno {errno}");
    }
    for errno in [12, 23, 24, 105] {
        let (machine, _, device) = one();
        machine.refuse_request(errno);
        assert_eq!(kind(device.open_allow_unproven()), ErrorKind::Os, "errno {errno}");
    }
}

/// The available facts are compared even if nothing can be proved: here the GUID in sysfs.
#[test]
fn an_unproven_open_compares_guids() {
    let machine = Machine::new();
    let old = machine.add(spec("old").guid(0xb0)).expect("added");
    machine.set_node(0, NodeKind::Static);
    machine.foreign_context(old).expect("held");
    machine.remove(old);
    machine.add(spec("new")).expect("added");
    let device = listed(&machine, "new");
    machine.deny_netlink(Some(1));
    let opened = device.open_allow_unproven();
    assert_eq!(kind(opened), ErrorKind::NodeMismatch);
    // Also netlink's GUID, if only the lists are missing.
    machine.deny_netlink(None);
    machine.set_no_res_ctx(true);
    machine.set_no_res_pd(true);
    let opened = device.open_allow_unproven();
    assert_eq!(kind(opened), ErrorKind::NodeMismatch);
}

/// The GUID in sysfs is found by the name, which may lead elsewhere.
#[test]
fn the_guid_is_not_read_through_a_name_that_leads_elsewhere() {
    let (machine, id, device) = one();
    let other = machine.add(spec("b").guid(0xb0)).expect("added");
    machine.deny_netlink(Some(1));
    let is_unproven = || matches!(device.open_allow_unproven(), Ok(Opened::Unproven(_)));
    for name in ["../infiniband/b", "x/../b", ".", ".."] {
        machine.rename(id, name.as_bytes()).expect("renamed");
        assert!(is_unproven(), "{name}");
    }
    // The name is another device's by the time the path is opened.
    machine.rename(id, b"rxe0").expect("renamed");
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Openat2
            && call.detail(world).contains("/infiniband/rxe0")
            && world.name_of(id) == b"rxe0"
        {
            world.swap_names(id, other).expect("swapped");
        }
        Verdict::Continue
    });
    assert!(is_unproven());
    assert_eq!(machine.name_of(id), b"b");
}

#[test]
fn nothing_is_proved_if_sys_is_not_the_kernels() {
    let machine = Machine::new();
    machine.add(spec("rxe0")).expect("added");
    machine.set_sys_type(0x0102_1994);
    let host = Host::builder().simulated(&machine).allow_foreign_sys(true).build();
    let host = host.expect("allowed");
    let asked = Registry::new(host).devices().expect("a list").by_name("rxe0").expect("listed");
    assert_eq!(kind(asked.open()), ErrorKind::Unproven);
    assert_eq!(machine.node_opens(), []);
    let opened = asked.open_allow_unproven().expect("nothing contradicts");
    assert!(matches!(opened, Opened::Unproven(_)));
}

/// A filter that forbids the calls on the socket has the same effect as one that forbids the socket.
#[test]
fn filtered_netlink_is_unavailable() {
    for (errno, expected) in [
        (1, ErrorKind::NetlinkUnavailable),
        (13, ErrorKind::NetlinkUnavailable),
        (12, ErrorKind::Os),
    ] {
        for filtered in [CallKind::Send, CallKind::Recv] {
            let (machine, _, device) = one();
            machine.on_call(move |_, call| match call.kind() == filtered {
                true => Verdict::Fail(errno),
                false => Verdict::Continue,
            });
            assert_eq!(kind(device.open()), expected, "errno {errno}");
            let opened = device.open_allow_unproven();
            assert_eq!(opened.is_ok(), expected == ErrorKind::NetlinkUnavailable, "errno {errno}");
        }
    }
}

/// The kernel starts no list before the previous one is at its end, even if that one failed.
#[test]
fn a_list_of_many_pages_is_read_to_its_end() {
    let (machine, id, device) = one();
    machine.set_contexts_a_page(4);
    machine.set_short_pages(true);
    for _ in 0..12 {
        machine.foreign_pd(id).expect("a PD");
    }
    let foreign = machine.open_unguarded(0).expect("opened");
    device.verify(&foreign).expect("verified");
}

#[test]
fn an_unrelated_answer_is_refused() {
    let (machine, _, device) = one();
    device.index().expect("known");
    let mut is_requested = false;
    // The type of the message, then its number.
    for at in [4, 8] {
        machine.on_call(move |world, call| match call.kind() {
            CallKind::Send => {
                is_requested = call.detail(world).starts_with("GET ");
                Verdict::Continue
            }
            CallKind::Recv if is_requested => Verdict::Alter(vec![(at, 2)]),
            _ => Verdict::Continue,
        });
        assert_eq!(kind(device.query()), ErrorKind::Unstable);
    }
}

/// EIO is also the answer of a failing driver or firmware. Then the node is right.
#[test]
fn a_failing_driver_is_not_a_wrong_node() {
    let (machine, _, device) = one();
    // GET_CONTEXT, then QUERY_DEVICE.
    for command in 0..2 {
        let mut commands = 0;
        machine.on_call(move |_, call| {
            commands += usize::from(call.kind() == CallKind::VerbsIoctl);
            let fails = call.kind() == CallKind::VerbsIoctl && commands == command + 1;
            if fails { Verdict::Fail(5) } else { Verdict::Continue }
        });
        let error = device.open().expect_err("it has to be refused");
        assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Os, Some(5)));
        assert!(error.to_string().contains("still there"), "{error}");
    }
    machine.on_call(|_, _| Verdict::Continue);
    let context = device.open().expect("proved");
    // The same for a query, and for the removal itself.
    let mut commands = 0;
    machine.on_call(move |_, call| {
        commands += usize::from(call.kind() == CallKind::VerbsIoctl);
        if commands == 1 { Verdict::Fail(5) } else { Verdict::Continue }
    });
    assert_eq!(kind(context.query_port(1)), ErrorKind::Os);
    machine.on_call(|_, _| Verdict::Continue);
    drop(context);
    let machine = Machine::new();
    let id = machine.add(DeviceSpec::new("rxe0").guid(0xa0)).expect("added");
    let context = listed(&machine, "rxe0").open().expect("proved");
    machine.remove(id);
    assert_eq!(kind(context.query_port(1)), ErrorKind::Removed);
}
