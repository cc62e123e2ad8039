//! What a program does after an open, on the simulated kernel.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, Verdict};
use uverbs::{
    AsyncEventKind, Context, ContextClaim, Device, ErrorKind, ForkSafety, GidType, Host, LinkLayer,
    PortState, Registry,
};

fn host(machine: &Machine) -> Host {
    Host::simulated(machine).expect("a host")
}

fn listed(machine: &Machine, name: &str) -> Device {
    let registry = Registry::new(host(machine));
    registry.devices().expect("a list").by_name(name).expect("listed")
}

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("an error").kind()
}

/// A machine with one device, and a context on it.
fn opened(disassociates: bool) -> (Machine, DeviceId, Context) {
    let machine = Machine::new();
    let spec = DeviceSpec::new("rxe0").guid(0xa0).disassociates(disassociates);
    let id = machine.add(spec).expect("added");
    let context = listed(&machine, "rxe0").open().expect("opened");
    (machine, id, context)
}

#[test]
fn queries_work_until_the_device_goes() {
    let (machine, id, context) = opened(true);
    assert_eq!(context.completion_vectors(), 3);
    let port = context.query_port(1).expect("a port");
    assert_eq!((port.state, port.link_layer), (PortState::ACTIVE, LinkLayer::ETHERNET));
    assert_eq!(context.query_port(2).expect_err("no such port").raw_os_error(), Some(22));
    let gids = context.gids().expect("a table");
    assert_eq!(gids.len(), 1);
    assert_eq!((gids[0].kind, gids[0].netdev_index), (GidType::ROCE_V2, None));
    assert_eq!(context.pkeys(1).expect("a table"), [0xffff]);
    let extended = context.query_device_extended().expect("attributes");
    assert_eq!((extended.hca_core_clock_khz, extended.device_cap_flags_ex), (1000, 1 << 33));
    assert_eq!(extended.max_device_memory, 0);
    assert!(context.is_device_present().expect("known"));
    machine.remove(id);
    assert_eq!(kind(context.query_device()), ErrorKind::Removed);
    assert_eq!(kind(context.query_device_extended()), ErrorKind::Removed);
    assert_eq!(kind(context.query_port(1)), ErrorKind::Removed);
    assert_eq!(kind(context.gids()), ErrorKind::Removed);
    assert_eq!(kind(context.pkeys(1)), ErrorKind::Removed);
    assert_eq!(kind(context.async_events()), ErrorKind::Removed);
    assert_eq!(kind(context.claim()), ErrorKind::Removed);
    assert!(!context.is_device_present().expect("known"));
    drop(context);
    assert_eq!(machine.open_handles(), 0);
}

#[test]
fn an_extended_answer_that_is_too_long_or_short_is_malformed() {
    let (machine, _, context) = opened(true);
    for filled in [0_u32, 183, 305, u32::MAX] {
        machine.on_call(move |_, call| {
            let mut answer = vec![0; 184];
            answer[180..].copy_from_slice(&filled.to_ne_bytes());
            if call.kind() == CallKind::VerbsIoctl {
                Verdict::Answer(answer)
            } else {
                Verdict::Continue
            }
        });
        assert_eq!(kind(context.query_device_extended()), ErrorKind::Malformed, "{filled}");
    }
}

#[test]
fn keys_of_another_device_are_not_returned() {
    let (machine, id, context) = opened(true);
    let other = machine.add(DeviceSpec::new("rxe1").guid(0xb0)).expect("added");
    // Once the name was read, it leads to another device.
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Openat2 && call.detail(world).contains("infiniband/rxe0") {
            world.rename(id, b"away").and_then(|()| world.rename(other, b"rxe0")).expect("renamed");
        }
        Verdict::Continue
    });
    assert_eq!(kind(context.pkeys(1)), ErrorKind::Unstable);
    machine.clear_hook();
    assert_eq!(context.pkeys(1).expect("a table"), [0xffff]);
}

#[test]
fn keys_are_not_read_through_a_name_that_leads_elsewhere() {
    let (machine, id, context) = opened(true);
    // A device next to it, with the same GUID and another key.
    machine.add(DeviceSpec::new("b").guid(0xa0)).expect("added");
    machine.on_call(|world, call| match call.kind() {
        CallKind::Pread if call.detail(world).contains("/b/ports/") => {
            Verdict::Answer(b"0x8001\n".into())
        }
        _ => Verdict::Continue,
    });
    let leads = |call: &String| call.contains(": devices/virtual/infiniband/");
    for name in ["../infiniband/b", "x/../b", "b/", "/b", ".", ".."] {
        machine.rename(id, name.as_bytes()).expect("renamed");
        machine.record_calls(true);
        let error = context.pkeys(1).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{name}: {error}");
        assert!(error.to_string().contains("rename"), "{name}: {error}");
        assert!(!machine.call_log().iter().any(leads), "{name} was opened");
    }
    machine.rename(id, b"..rxe0").expect("renamed");
    machine.record_calls(true);
    assert_eq!(context.pkeys(1).expect("a table"), [0xffff]);
    assert!(machine.call_log().iter().any(leads));
}

#[test]
fn events_come_in_order_and_end_with_the_device() {
    let (machine, id, context) = opened(true);
    let mut early = context.async_events().expect("events");
    assert_eq!(early.try_next().expect("read"), None);
    machine.event(id, 9, 1);
    let mut late = context.async_events().expect("events");
    machine.event(id, 18, 1);
    machine.event(id, 1234, 5);
    machine.remove(id);
    let kinds: Vec<_> = early.by_ref().map(|event| event.expect("read").kind).collect();
    let (unknown, last) = (AsyncEventKind::from_raw(1234), AsyncEventKind::DEVICE_FATAL);
    assert_eq!(kinds, [AsyncEventKind::PORT_ACTIVE, AsyncEventKind::GID_CHANGE, unknown, last]);
    assert!(early.has_ended() && !late.has_ended());
    assert_eq!(early.try_next().expect("read"), None);
    let gid = late.wait(Some(Duration::ZERO)).expect("read").expect("an event");
    assert_eq!((gid.kind, gid.port(), gid.element), (AsyncEventKind::GID_CHANGE, Some(1), 1));
    let unknown = late.wait(None).expect("read").expect("an event");
    assert_eq!((unknown.port(), unknown.element), (None, 5));
    assert_eq!(late.wait(None).expect("read").expect("an event").kind, last);
    assert_eq!(late.wait(None).expect("read"), None);
    drop((early, late));
    drop(context);
    assert_eq!(machine.open_handles(), 0);
}

#[test]
fn a_driver_that_does_not_disassociate_reports_no_removal() {
    let (machine, id, context) = opened(false);
    let mut events = context.async_events().expect("events");
    machine.remove(id);
    assert_eq!(events.wait(Some(Duration::from_millis(1))).expect("read"), None);
    assert!(!events.has_ended());
    assert!(context.query_device().is_ok());
    assert!(!context.is_device_present().expect("known"));
    assert!(!machine.is_gone(id));
    drop(events);
    drop(context);
    assert_eq!(machine.open_handles(), 0);
    assert!(machine.is_gone(id));
}

#[test]
fn a_wait_ends_at_its_deadline_although_poll_reports_ready() {
    let (machine, id, context) = opened(true);
    let mut events = context.async_events().expect("events");
    machine.event(id, 9, 1);
    // Another reader takes each event between poll and read, and after a while stops.
    let started = Instant::now();
    machine.on_call(move |_, call| match call.kind() {
        CallKind::Read if started.elapsed() < Duration::from_secs(5) => Verdict::Fail(11),
        _ => Verdict::Continue,
    });
    for timeout in [Duration::ZERO, Duration::from_millis(20)] {
        let started = Instant::now();
        assert_eq!(events.wait(Some(timeout)).expect("read"), None);
        assert!(started.elapsed() >= timeout, "it did not wait");
    }
    // Without a deadline it continues until there is an event.
    machine.on_call({
        let mut reads = 0;
        move |_, call| {
            reads += u32::from(call.kind() == CallKind::Read);
            if call.kind() == CallKind::Read && reads < 4 {
                Verdict::Fail(11)
            } else {
                Verdict::Continue
            }
        }
    });
    assert!(events.wait(None).expect("read").is_some());
}

#[test]
fn a_read_that_fails_ends_the_iterator() {
    let (machine, id, context) = opened(true);
    let mut events = context.async_events().expect("events");
    machine.event(id, 9, 1);
    machine.on_call(|_, call| {
        if call.kind() == CallKind::Read { Verdict::Fail(14) } else { Verdict::Continue }
    });
    assert_eq!(events.try_next().expect_err("EFAULT").raw_os_error(), Some(14));
    let read: Vec<_> = events.by_ref().collect();
    assert!(matches!(&read[..], [Err(error)] if error.raw_os_error() == Some(14)), "{read:?}");
    drop(events);
    // A read that is interrupted, and a descriptor that cannot be made non-blocking.
    for (fault, errno, expected) in [(CallKind::Poll, 4, None), (CallKind::Fcntl, 9, Some(9))] {
        let mut times = 0;
        machine.on_call(move |_, call| {
            times += usize::from(call.kind() == fault);
            if call.kind() == fault && (times == 1 || errno != 4) {
                return Verdict::Fail(errno);
            }
            Verdict::Continue
        });
        let waited = context.async_events().and_then(|mut events| events.wait(None));
        assert_eq!(waited.err().and_then(|error| error.raw_os_error()), expected);
    }
    machine.clear_hook();
    drop(context);
    assert_eq!(machine.open_handles(), 0);
}

#[cfg(feature = "tokio")]
#[test]
fn a_stream_wakes_its_task() {
    use futures_core::Stream as _;
    let (machine, id, context) = opened(true);
    let outside = context.async_events().expect("events").into_stream();
    assert_eq!(kind(outside), ErrorKind::Unsupported);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let kinds = runtime.expect("a runtime").block_on(async {
        let mut stream = std::pin::pin!(context.async_events().expect("events").into_stream()?);
        let later = std::thread::spawn({
            let machine = machine.clone();
            move || {
                for act in [|m: &Machine, id| m.event(id, 9, 1), |m: &Machine, id| m.remove(id)] {
                    std::thread::sleep(Duration::from_millis(20));
                    act(&machine, id);
                }
            }
        });
        let mut kinds = Vec::new();
        while let Some(event) = std::future::poll_fn(|task| stream.as_mut().poll_next(task)).await {
            kinds.push(event?.kind);
        }
        later.join().expect("no panic");
        Ok::<_, uverbs::Error>(kinds)
    });
    assert_eq!(kinds.expect("events"), [AsyncEventKind::PORT_ACTIVE, AsyncEventKind::DEVICE_FATAL]);
}

#[test]
fn a_received_context_is_proved() {
    let (machine, id, context) = opened(true);
    let claim = context.claim().expect("a claim");
    let claim = ContextClaim::from_bytes(&claim.to_bytes()).expect("a claim");
    // The receiver has its own list.
    let device = listed(&machine, "rxe0");
    let pass = || context.as_fd().try_clone_to_owned().expect("a copy");
    let received = Context::from_fd(&device, pass(), &claim).expect("adopted");
    assert_eq!(received.query_device().expect("attributes").node_guid, claim.node_guid);
    assert_eq!(received.completion_vectors(), 3);
    assert_eq!(received.evidence().context_number(), machine.ctxn_of(context.as_fd()));
    assert_eq!(machine.pd_handles_of(context.as_fd()), []);

    let refused = |claim: ContextClaim| kind(Context::from_fd(&device, pass(), &claim));
    let mut other = claim;
    other.ino += 1;
    assert_eq!(refused(other), ErrorKind::Replaced);
    let mut other = claim;
    other.context_number += 1;
    assert_eq!(refused(other), ErrorKind::NodeMismatch);
    let mut other = claim;
    other.node_guid.0 += 1;
    assert_eq!(refused(other), ErrorKind::NodeMismatch);
    let mut other = claim;
    other.index += 1;
    assert_eq!(refused(other), ErrorKind::NodeMismatch);

    // The descriptor of another device, which now has the number.
    machine.remove(id);
    let second = machine.add(DeviceSpec::new("rxe0").guid(0xb0)).expect("added");
    let theirs = listed(&machine, "rxe0").open().expect("opened");
    assert_eq!(machine.device_of(theirs.as_fd()), Some(second));
    let error = kind(Context::from_fd(&device, OwnedFd::from(theirs), &claim));
    assert_eq!(error, ErrorKind::Replaced);
    assert_eq!(refused(claim), ErrorKind::Replaced);
    drop((context, received, device));
    assert_eq!(machine.open_handles(), 0);
}

#[test]
fn fork_safety_is_what_the_kernel_reports() {
    let machine = Machine::new();
    let host = host(&machine);
    assert_eq!(host.fork_safety().expect("reported"), ForkSafety::CopiedOnFork);
    machine.set_copies_on_fork(false);
    assert_eq!(host.fork_safety().expect("reported"), ForkSafety::MarkPages);
    // A kernel that does not know the request.
    machine.refuse_request(22);
    assert_eq!(host.fork_safety().expect("reported"), ForkSafety::MarkPages);
    machine.deny_netlink(Some(1));
    assert_eq!(kind(host.fork_safety()), ErrorKind::NetlinkUnavailable);
}

#[test]
fn a_board_has_an_id_or_none() {
    let machine = Machine::new();
    let with =
        machine.add(DeviceSpec::new("a").guid(0xa0).board_id("MT_0000000010")).expect("added");
    machine.add(DeviceSpec::new("b").guid(0xb0)).expect("added");
    let [a, b] = ["a", "b"].map(|name| listed(&machine, name).open().expect("opened"));
    assert_eq!(a.board_id().expect("read").expect("an id"), "MT_0000000010");
    assert_eq!(b.board_id().expect("read"), None);
    // Not of another device that has the name by then.
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Pread && call.detail(world).contains("board_id") {
            world.rename(with, b"c").expect("renamed");
        }
        Verdict::Continue
    });
    assert_eq!(kind(a.board_id()), ErrorKind::Unstable);
}
