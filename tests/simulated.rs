//! The protocol on the simulated kernel: what must be refused, and what must not. (`explore/` tries everything at
//! every call.)

use std::os::fd::AsFd as _;

use uverbs::sim::{CallKind, DeviceSpec, Machine, NodeKind, NodeOpened, Verdict};
use uverbs::{CheckId, Device, ErrorKind, Host, OpenOptions, Opened, Registry, Step};

fn device(name: &str, guid: u64) -> DeviceSpec {
    DeviceSpec::new(name).guid(guid)
}

fn registry(machine: &Machine) -> Registry {
    Registry::new(Host::simulated(machine).expect("a host"))
}

fn listed(machine: &Machine, name: &str) -> Device {
    registry(machine).devices().expect("a list").by_name(name).expect("listed")
}

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("it has to be refused").kind()
}

/// Which check refused it.
fn refused_by<T: std::fmt::Debug>(result: uverbs::Result<T>) -> (Step, CheckId) {
    let error = result.expect_err("it has to be refused");
    let check = error.check().expect("a check");
    assert!(!check.held(), "{error}");
    let last = error.evidence().and_then(|evidence| evidence.checks().last());
    assert_eq!(last, Some(check), "{error}");
    (check.step, check.id)
}

#[test]
fn a_device_is_opened_and_proved() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0)).expect("added");
    let context = listed(&machine, "rxe0").open().expect("opened");
    assert_eq!(machine.device_of(context.as_fd()), Some(id));
    assert_eq!(context.query_device().expect("queried").node_guid.0, 0xa0);
    assert_eq!(context.evidence().context_number(), machine.ctxn_of(context.as_fd()));
    assert!(context.evidence().checks().iter().all(uverbs::Check::held));
    drop(context);
    assert_eq!(machine.open_handles(), 0, "everything was closed");
}

#[test]
fn a_replacement_is_refused_and_not_touched() {
    for guid in [0xa0, 0xb0] {
        let machine = Machine::new();
        let old = machine.add(device("rxe0", 0xa0)).expect("added");
        let target = listed(&machine, "rxe0");
        machine.remove(old);
        machine.add(device("rxe0", guid)).expect("added");
        assert_eq!(kind(target.open()), ErrorKind::Replaced);
        assert_eq!(machine.node_opens(), []);
    }
}

#[test]
fn a_removed_device_is_not_looked_up_again() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0)).expect("added");
    let target = listed(&machine, "rxe0");
    machine.remove(id);
    assert_eq!(kind(target.open()), ErrorKind::Removed);
    let calls = machine.calls();
    assert_eq!(kind(target.open()), ErrorKind::Removed);
    assert_eq!(machine.calls(), calls);
}

#[test]
fn a_static_node_bound_to_the_old_device_is_refused() {
    for guid in [0xa0, 0xb0] {
        let machine = Machine::new();
        let old = machine.add(device("old", 0xa0).disassociates(false)).expect("added");
        machine.set_node(0, NodeKind::Static);
        let context = listed(&machine, "old").open().expect("it works like any other node");
        machine.remove(old);
        let new = machine.add(device("new", guid).disassociates(false)).expect("added");
        let target = listed(&machine, "new");
        assert_eq!(kind(target.open()), ErrorKind::NodeMismatch);
        drop(context);
        let context = target.open().expect("the node leads to the new one now");
        assert_eq!(machine.device_of(context.as_fd()), Some(new));
    }
}

#[test]
fn a_wrong_node_is_not_opened() {
    for (node, expected, found) in [
        (NodeKind::Symlink("uverbs1".into()), ErrorKind::NodeMismatch, "found symbolic link"),
        (NodeKind::Fifo, ErrorKind::NodeMismatch, "found FIFO"),
        (NodeKind::Regular, ErrorKind::NodeMismatch, "found regular file"),
        (NodeKind::Directory, ErrorKind::NodeMismatch, "found directory"),
        (NodeKind::Device(1, 3), ErrorKind::NodeMismatch, "found 1:3"),
        (NodeKind::Missing, ErrorKind::Os, "ENOENT"),
    ] {
        let machine = Machine::new();
        machine.add(device("rxe0", 0xa0)).expect("added");
        machine.add(device("rxe1", 0xb0)).expect("added");
        let target = listed(&machine, "rxe0");
        machine.set_node(0, node.clone());
        let error = target.open().expect_err("it has to be refused");
        assert_eq!(error.kind(), expected, "{node:?}");
        assert!(error.to_string().contains(found), "{error}");
        assert_eq!(machine.node_opens(), [], "{node:?}");
    }
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    machine.set_node(0, NodeKind::Forbidden);
    assert_eq!(kind(listed(&machine, "rxe0").open()), ErrorKind::PermissionDenied);
}

#[test]
fn a_strict_open_demands_the_timestamp_of_the_last_list() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let registry = registry(&machine);
    let list = || registry.devices().expect("a list").by_name("rxe0").expect("listed");
    let asked = list();
    let strict = OpenOptions::new().strict_timestamps(true);
    let opened = asked.open_with(&strict).expect("unmoved");
    let Opened::Proven(context) = opened else { panic!("proved") };
    let check = (Step::Pin, CheckId::Timestamp);
    assert!(context.evidence().checks().iter().any(|made| (made.step, made.id) == check));
    drop(context);
    for strict in [strict.clone(), strict.allow_unproven(true)] {
        machine.evict();
        assert_eq!(refused_by(strict.open(&asked)), check);
        // Neither an open without it nor a reading takes the timestamp over.
        asked.open().expect("opened");
        asked.query().expect("facts");
        assert_eq!(kind(strict.open(&asked)), ErrorKind::Replaced);
        assert!(!asked.is_known_gone());
        // A list does, and it is the same device.
        assert_eq!(list(), asked);
        strict.open(&asked).expect("opened");
    }
}

#[test]
fn records_stay_with_their_instance() {
    let machine = Machine::new();
    let a = machine.add(device("a", 1)).expect("added");
    let b = machine.add(device("b", 2)).expect("added");
    let registry = registry(&machine);
    let list = || registry.devices().expect("a list");
    let (first, second) = (list().by_name("a").expect("a"), list().by_name("b").expect("b"));
    machine.evict();
    machine.swap_names(a, b).expect("swapped");
    assert_eq!(list().by_name("b").expect("listed"), first);
    assert_eq!(second.name(), "a");
    machine.rename(a, b"x/y").expect("renamed");
    assert_eq!(list().by_name("x/y").expect("listed"), first);
    machine.remove(b);
    assert_eq!(list().len(), 1);
    assert!(second.is_known_gone() && !first.is_known_gone());
    machine.reload_ib_uverbs().expect("reloaded");
    assert_eq!(list().len(), 1);
    assert!(first.is_known_gone());
}

#[test]
fn the_node_is_looked_at_before_it_is_opened() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let target = listed(&machine, "rxe0");
    // Swapped between the look and the open: opened once, refused, closed.
    machine.on_call(|world, call| {
        let opens = call.kind() == CallKind::Openat2 && call.detail(world).ends_with("/uverbs0");
        if opens && call.detail(world).contains("/dev") {
            world.set_node(0, NodeKind::Device(1, 3));
        }
        Verdict::Continue
    });
    assert_eq!(refused_by(target.open()), (Step::Open, CheckId::NodeDeviceNumber));
    assert_eq!(machine.node_opens(), [NodeOpened::Device(1, 3)]);
    drop(target);
    assert_eq!(machine.open_handles(), 0);
}

/// Changes `/dev/infiniband/uverbs0` after it was looked at and before it is opened.
fn change_before_open(machine: &Machine, to: NodeKind) {
    machine.on_call(move |world, call| {
        let detail = call.detail(world);
        if call.kind() == CallKind::Openat2
            && detail.starts_with("/dev:")
            && detail.ends_with("/uverbs0")
        {
            world.set_node(0, to.clone());
        }
        Verdict::Continue
    });
}

#[test]
fn the_opened_node_is_the_one_looked_at() {
    // The number is right, but it is another node.
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    change_before_open(&machine, NodeKind::Static);
    let refused = refused_by(listed(&machine, "rxe0").open());
    assert_eq!(refused, (Step::Open, CheckId::NodeInode));
    // What cannot be opened as a device any more.
    for (node, errno, expected) in [
        (NodeKind::Symlink("uverbs1".into()), 40, ErrorKind::NodeMismatch),
        (NodeKind::Directory, 21, ErrorKind::NodeMismatch),
        (NodeKind::Missing, 2, ErrorKind::Unstable),
        (NodeKind::Forbidden, 13, ErrorKind::PermissionDenied),
    ] {
        let machine = Machine::new();
        machine.add(device("rxe0", 0xa0)).expect("added");
        machine.add(device("rxe1", 0xb0)).expect("added");
        let target = listed(&machine, "rxe0");
        let mut opens = 0;
        let to = node.clone();
        machine.on_call(move |world, call| {
            let detail = call.detail(world);
            if call.kind() == CallKind::Openat2
                && detail.starts_with("/dev:")
                && detail.contains("/uverbs0")
            {
                opens += 1;
                // Every other open is a look.
                world.set_node(0, if opens % 2 == 1 { NodeKind::Kernel } else { to.clone() });
            }
            Verdict::Continue
        });
        let error = target.open().expect_err("it has to be refused");
        assert_eq!((error.kind(), error.raw_os_error()), (expected, Some(errno)), "{node:?}");
        assert_eq!(machine.node_opens(), [], "{node:?}");
    }
}

/// An open starts over when the name changes meanwhile, but not endlessly.
#[test]
fn an_open_starts_over_twice() {
    for (renames, succeeds) in [(1, true), (2, true), (3, false), (9, false)] {
        let machine = Machine::new();
        let id = machine.add(device("rxe0", 0xa0)).expect("added");
        let target = listed(&machine, "rxe0");
        let mut left = renames;
        machine.on_call(move |world, call| {
            // Once the cmd fd is open.
            let is_of_node = call.kind() == CallKind::Openat2
                && call.detail(world).starts_with("/dev:")
                && !call.detail(world).ends_with("O_PATH");
            if is_of_node && left > 0 {
                left -= 1;
                world.rename(id, format!("renamed{left}").as_bytes()).expect("renamed");
            }
            Verdict::Continue
        });
        let opened = target.open();
        assert_eq!(opened.is_ok(), succeeds, "{renames} renames");
        let attempts = if succeeds { renames + 1 } else { 3 };
        assert_eq!(machine.node_opens().len(), attempts, "{renames} renames");
        if !succeeds {
            assert_eq!(kind(opened), ErrorKind::Unstable);
        }
    }
}

/// The device goes before the last call of an operation. That call has to notice.
#[test]
fn the_last_call_notices_whether_the_device_is_there() {
    type Act = fn(&Machine, &Device) -> uverbs::Result<()>;
    let acts: [(&str, Act); 5] = [
        ("open", |_, device| device.open().map(drop)),
        ("open without PDs", |machine, device| {
            machine.fail_alloc_pd(22, u32::MAX);
            device.open().map(drop)
        }),
        ("open without netlink", |machine, device| {
            machine.deny_netlink(Some(1));
            device
                .open_allow_unproven()
                .map(|opened| assert!(matches!(opened, Opened::Unproven(_))))
        }),
        ("verify", |machine, device| {
            let foreign = machine.open_unguarded(0).expect("opened");
            device.verify(&foreign).map(drop)
        }),
        ("query", |_, device| device.query().map(drop)),
    ];
    for (what, act) in acts {
        let mut last = None;
        for _ in 0..2 {
            let machine = Machine::new();
            let id = machine.add(device("rxe0", 0xa0).disassociates(false)).expect("added");
            let target = listed(&machine, "rxe0");
            if let Some(last) = last {
                machine.on_call(move |world, call| {
                    if call.ordinal() == last {
                        world.remove(id);
                    }
                    Verdict::Continue
                });
                assert_eq!(kind(act(&machine, &target)), ErrorKind::Removed, "{what}");
                assert!(target.is_known_gone(), "{what}");
            } else {
                act(&machine, &target).expect("nothing went wrong");
                last = Some(machine.calls());
            }
        }
    }
}

#[test]
fn a_known_gone_device_takes_no_call() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0)).expect("added");
    let target = listed(&machine, "rxe0");
    let context = target.open().expect("opened");
    machine.remove(id);
    assert_eq!(kind(target.open()), ErrorKind::Removed);
    let calls = machine.calls();
    assert_eq!(kind(target.query()), ErrorKind::Removed);
    assert_eq!(machine.calls(), calls);
    let error = target.verify(&context).expect_err("it is gone");
    assert_eq!((error.kind(), error.step()), (ErrorKind::Removed, Some(Step::Known)));
    assert_eq!(machine.calls(), calls + 1, "only the duplicate");
}

#[test]
fn nothing_is_done_with_the_descriptor_of_another_node() {
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    machine.add(device("rxe1", 0xa0)).expect("added");
    let other = machine.open_unguarded(1).expect("opened");
    let target = listed(&machine, "rxe0");
    machine.on_call(|_, call| match call.kind() {
        CallKind::VerbsIoctl => panic!("a command to the wrong device"),
        _ => Verdict::Continue,
    });
    let refused = refused_by(target.verify(&other));
    assert_eq!(refused, (Step::Open, CheckId::NodeDeviceNumber));
}

/// The pinned device has its number and is mapped, so a node that leads to nothing is not the device's.
#[test]
fn a_node_that_leads_nowhere_is_a_mismatch() {
    let machine = Machine::new();
    let old = machine.add(device("old", 0xa0)).expect("added");
    machine.set_node(0, NodeKind::Static);
    machine.foreign_context(old).expect("held");
    machine.remove(old);
    machine.add(device("new", 0xa0)).expect("added");
    let error = listed(&machine, "new").open().expect_err("the old one is dead");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NodeMismatch, Some(5)));
    for (errno, expected) in
        [(6, ErrorKind::NodeMismatch), (19, ErrorKind::NodeMismatch), (24, ErrorKind::Os)]
    {
        let machine = Machine::new();
        machine.add(device("rxe0", 0xa0)).expect("added");
        let target = listed(&machine, "rxe0");
        machine.on_call(move |world, call| {
            let detail = call.detail(world);
            let is_open = call.kind() == CallKind::Openat2 && detail.starts_with("/dev:");
            match is_open && !detail.ends_with("O_PATH") {
                true => Verdict::Fail(errno),
                false => Verdict::Continue,
            }
        });
        assert_eq!(kind(target.open()), expected, "errno {errno}");
    }
    // The first command through it finds the device dead.
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let target = listed(&machine, "rxe0");
    machine.on_call(|_, call| match call.kind() {
        CallKind::VerbsIoctl => Verdict::Fail(5),
        _ => Verdict::Continue,
    });
    let error = target.open().expect_err("it is dead");
    assert_eq!((error.kind(), error.step()), (ErrorKind::NodeMismatch, Some(Step::Allocate)));
}

#[test]
fn a_failed_context_reports_whether_a_provider_is_missing() {
    for (driver, is_missing) in [(14, false), (999, true)] {
        let machine = Machine::new();
        machine.add(device("a", 0xa0).driver(driver, 2)).expect("added");
        let target = listed(&machine, "a");
        machine.on_call(|world, call| match call.kind() {
            CallKind::VerbsIoctl if call.detail(world) == "0.3" => Verdict::Fail(12),
            _ => Verdict::Continue,
        });
        let error = target.open().expect_err("no memory");
        assert_eq!((error.kind(), error.step()), (ErrorKind::Os, Some(Step::Allocate)));
        assert_eq!(error.to_string().contains("no provider"), is_missing, "{error}");
    }
}

#[test]
fn a_context_reports_whether_its_device_is_there() {
    let machine = Machine::new();
    let id = machine.add(device("rxe0", 0xa0).disassociates(false)).expect("added");
    let context = listed(&machine, "rxe0").open().expect("opened");
    assert!(context.is_device_present().expect("there"));
    // A result that leaves it open is neither.
    machine.on_call(|_, call| match call.kind() {
        CallKind::Pread => Verdict::Fail(5),
        _ => Verdict::Continue,
    });
    assert_eq!(kind(context.is_device_present()), ErrorKind::Os);
    machine.clear_hook();
    machine.remove(id);
    assert!(!context.is_device_present().expect("gone"));
}

/// An answer about another device, or another PD, is refused.
#[test]
fn an_answer_about_another_object_is_refused() {
    // The index is the first attribute; the number comes after the name and a count.
    let answers = [("GET ", 20), ("RES_PD_GET ", 20), ("RES_PD_GET dump", 20), ("RES_PD_GET ", 52)];
    for (request, at) in answers {
        let machine = Machine::new();
        machine.set_next_index(7);
        machine.add(device("rxe0", 0xa0)).expect("added");
        let target = listed(&machine, "rxe0");
        let foreign = machine.open_unguarded(0).expect("opened");
        target.index().expect("joined");
        if request.starts_with("RES_PD") {
            target.verify(&foreign).expect("verified");
        }
        if request.ends_with("dump") {
            machine.set_next_pdn(machine.instance_of(0).expect("listed"), 100);
        }
        let mut is_answered = false;
        machine.on_call(move |world, call| match call.kind() {
            CallKind::Send => {
                is_answered = call.detail(world).starts_with(request);
                Verdict::Continue
            }
            CallKind::Recv if std::mem::take(&mut is_answered) => Verdict::Alter(vec![(at, 1)]),
            _ => Verdict::Continue,
        });
        assert_eq!(kind(target.verify(&foreign)), ErrorKind::Malformed, "{request}: {at}");
    }
}

/// The signals that this thread blocks, as `/proc` shows them.
#[allow(clippy::disallowed_methods)] // a test looks at itself
fn blocked_signals() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("read");
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).expect("a mask");
    u64::from_str_radix(mask.trim(), 16).expect("a number")
}

/// From the context to the end, no signal handler runs on a thread that proves.
#[test]
fn no_signal_handler_runs_during_the_proof() {
    // SIGUSR1, SIGALRM, SIGCHLD.
    const HANDLED: u64 = 1 << 9 | 1 << 13 | 1 << 16;
    let machine = Machine::new();
    machine.add(device("rxe0", 0xa0)).expect("added");
    let target = listed(&machine, "rxe0");
    let before = blocked_signals();
    let commands = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = commands.clone();
    machine.on_call(move |_, call| {
        if call.kind() == CallKind::VerbsIoctl {
            seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(blocked_signals() & HANDLED, HANDLED);
        }
        Verdict::Continue
    });
    let mut expected = 0;
    for _ in 0..2 {
        let context = target.open().expect("opened");
        // GET_CONTEXT, QUERY_DEVICE, and a PD that is allocated and freed.
        expected += 4;
        assert_eq!(commands.load(std::sync::atomic::Ordering::Relaxed), expected);
        target.verify(&context).expect("verified");
        expected += 3;
        assert_eq!(blocked_signals(), before);
    }
}
