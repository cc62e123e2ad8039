//! The cases. Each runs on a machine of its own.

use std::os::fd::AsFd as _;
use std::time::Duration;

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, NodeKind, Verdict};

use crate::api::{Api, Change, Evidence, Failure, Handle};

pub(crate) fn add(machine: &Machine, name: &str, guid: u64) -> DeviceId {
    machine.add(DeviceSpec::new(name).guid(guid)).expect("added")
}

/// A machine with `rxe0` (GUID 0xa0).
fn one() -> (Machine, DeviceId) {
    let machine = Machine::new();
    let id = add(&machine, "rxe0", 0xa0);
    (machine, id)
}

pub(crate) fn listed<A: Api>(machine: &Machine, name: &str) -> A::Device {
    let list = A::list(&A::registry(machine)).expect("a list");
    A::by_name(&list, name.as_bytes()).expect("listed")
}

/// The error of what had to fail.
pub(crate) fn refused<T>(result: Result<T, Failure>) -> Failure {
    result.err().expect("it has to be refused")
}

pub(crate) fn ino(machine: &Machine, id: DeviceId) -> u64 {
    machine.directory(id).expect("a directory")
}

fn list_ino<A: Api>(list: &A::List, name: &str) -> Option<u64> {
    A::by_name(list, name.as_bytes()).ok().map(|device| A::ino(&device))
}

fn all_held(evidence: &Evidence) -> bool {
    !evidence.checks.is_empty()
        && evidence.checks.iter().all(|check| check.held && check.expected == check.found)
}

pub(crate) fn a_list_has_every_device<A: Api>() {
    let machine = Machine::new();
    let registry = A::registry(&machine);
    assert!(A::devices(&A::list(&registry).expect("a list")).is_empty());
    let ids = ["rxe0", "rxe1", "mlx5_0"].map(|name| add(&machine, name, 1));
    let list = A::list(&registry).expect("a list");
    let found: Vec<_> = A::devices(&list).iter().map(|it| (A::name(it), A::ino(it))).collect();
    let expected = [(0, "rxe0"), (1, "rxe1"), (2, "mlx5_0")];
    let expected = expected.map(|(at, name)| (name.as_bytes().to_vec(), ino(&machine, ids[at])));
    assert_eq!(found, expected);
    assert!(A::faults(&list).is_empty());
    // The list does not change, and a new one keeps the records.
    machine.remove(ids[1]);
    assert_eq!(A::devices(&list).len(), 3);
    let newer = A::list(&registry).expect("a list");
    let (before, after) = (A::devices(&list), A::devices(&newer));
    assert_eq!(after.len(), 2);
    assert!(A::same(&before[0], &after[0]) && A::same(&before[2], &after[1]));
    assert!(!A::same(&before[0], &after[1]));
    assert!(A::is_known_gone(&before[1]) && !A::is_known_gone(&before[0]));
}

pub(crate) fn a_device_is_found_by_each_key<A: Api>() {
    let (machine, _) = one();
    let id = add(&machine, "rxe1", 0xb0);
    let index = machine.index_of(id);
    let registry = A::registry(&machine);
    let list = A::list(&registry).expect("a list");
    for device in [
        A::by_name(&list, b"rxe1"),
        A::by_guid(&list, 0xb0),
        A::by_index(&list, index),
        A::by_number(&list, 1),
        A::by_index_at_once(&registry, index),
    ] {
        assert_eq!(A::ino(&device.expect("found")), ino(&machine, id));
    }
}

pub(crate) fn a_lookup_without_a_match_fails<A: Api>() {
    let (machine, _) = one();
    add(&machine, "rxe1", 0xa0);
    let registry = A::registry(&machine);
    let list = A::list(&registry).expect("a list");
    for failure in [
        refused(A::by_name(&list, b"mlx5_0")),
        refused(A::by_name(&list, b"")),
        refused(A::by_guid(&list, 0xff)),
        refused(A::by_index(&list, 77)),
        refused(A::by_number(&list, 7)),
        refused(A::by_index_at_once(&registry, 77)),
    ] {
        assert_eq!(failure.code, "not_found", "{failure:?}");
        assert_eq!((failure.step, failure.evidence), (None, None));
        assert!(failure.message.contains(&failure.cause));
    }
    let failure = refused(A::by_guid(&list, 0xa0));
    assert_eq!(failure.code, "ambiguous");
    assert!(failure.cause.contains("rxe0 (uverbs0), rxe1 (uverbs1)"), "{failure:?}");
}

pub(crate) fn a_device_reports_what_it_is<A: Api>() {
    let (machine, id) = one();
    let device = listed::<A>(&machine, "rxe0");
    assert_eq!(A::name(&device), b"rxe0");
    assert_eq!(A::label(&device), "rxe0 (uverbs0)");
    assert_eq!((A::number(&device), A::device_number(&device)), (0, (231, 192)));
    assert_eq!(A::index(&device), Ok(machine.index_of(id)));
    assert_eq!(A::driver_id(&device), Ok(14));
    let facts = A::facts(&device).expect("facts");
    assert_eq!((facts.node_guid, facts.sys_image_guid), (0xa0, 0xa0));
    assert_eq!((facts.index, facts.driver_id, facts.node_type), (machine.index_of(id), 14, 1));
    assert_eq!((facts.firmware_version.as_slice(), facts.port_count), (&b"1.2.3"[..], 1));
    assert_eq!(A::check_ready(&device), Ok(()));
    machine.set_node(0, NodeKind::Missing);
    let failure = refused(A::check_ready(&device));
    assert_eq!((failure.code.as_str(), failure.errno), ("os", Some(2)));
    machine.remove(id);
    assert_eq!(refused(A::facts(&device)).code, "removed");
    assert_eq!((A::label(&device), A::index(&device)), ("rxe0 (uverbs0)".into(), Ok(facts.index)));
}

pub(crate) fn an_open_is_proved_check_by_check<A: Api>() {
    let (machine, id) = one();
    let device = listed::<A>(&machine, "rxe0");
    let before = machine.open_handles();
    let context = A::open(&device).expect("opened");
    assert_eq!(machine.device_of(A::fd(&context)), Some(id));
    assert_eq!(A::device_of(&context), ino(&machine, id));
    let evidence = A::evidence(&context);
    assert!(all_held(&evidence), "{evidence:?}");
    assert_eq!(evidence.index, Some(machine.index_of(id)));
    assert_eq!(evidence.context_number, machine.ctxn_of(A::fd(&context)));
    let inode = ino(&machine, id).to_string();
    let check = evidence.checks.iter().find(|check| check.id == "uverbs_inode").expect("a check");
    assert_eq!((check.step.0, check.step.1.as_str(), &check.found), (2, "pin", &inode));
    assert!(evidence.checks.iter().any(|check| check.step.1 == "prove"));
    drop(context);
    assert_eq!(machine.open_handles(), before);
    // What is proved is not reported as unproven.
    let (context, reason) = A::open_unproven(&device).expect("opened");
    assert_eq!((A::device_of(&context), reason), (ino(&machine, id), None));
}

pub(crate) fn a_context_answers_queries<A: Api>() {
    let (machine, id) = one();
    let context = A::open(&listed::<A>(&machine, "rxe0")).expect("opened");
    let answers = A::answers(&context).expect("answers");
    // The Rust interface is the reference.
    let reference = crate::rust::Rust::answers(
        &crate::rust::Rust::open(&listed::<crate::rust::Rust>(&machine, "rxe0")).expect("opened"),
    );
    assert_eq!(Ok(&answers), reference.as_ref());
    assert!(answers.device.contains(&("node_guid", 0xa0)));
    assert!(answers.device.contains(&("max_pkeys", 16)));
    assert!(answers.extended.contains(&("hca_core_clock_khz", 1000)));
    assert_eq!((answers.port_state, answers.driver_id, answers.completion_vectors), (4, 14, 3));
    assert_eq!((answers.gids.len(), answers.pkeys), (1, vec![0xffff]));
    assert!(answers.is_present);
    machine.remove(id);
    assert_eq!(refused(A::answers(&context)).code, "removed");
}

pub(crate) fn a_descriptor_is_taken_out<A: Api>() {
    let (machine, id) = one();
    let context = A::open(&listed::<A>(&machine, "rxe0")).expect("opened");
    let fd = A::take_fd(context);
    assert_eq!(machine.device_of(fd.as_fd()), Some(id));
    drop(fd);
    machine.with(|_| ());
    assert_eq!(machine.contexts_of(id), [0; 0]);
}

pub(crate) fn a_replaced_device_is_refused<A: Api>() {
    for guid in [0xa0, 0xb0] {
        let (machine, old) = one();
        let device = listed::<A>(&machine, "rxe0");
        let before = ino(&machine, old);
        machine.remove(old);
        let new = add(&machine, "rxe0", guid);
        let failure = refused(A::open(&device));
        assert_eq!(failure.code, "replaced");
        assert_eq!(failure.step, Some((2, "pin".to_owned())));
        assert_eq!(failure.device.as_deref(), Some("rxe0 (uverbs0)"));
        assert_eq!(failure.errno, None);
        let after = ino(&machine, new);
        let cause = format!("uverbs directory inode {before}, now {after}");
        assert_eq!(failure.cause, cause);
        let message = format!("rxe0 (uverbs0): replaced by another device ({cause}) [pin]");
        assert_eq!(failure.message, message);
        let evidence = failure.evidence.expect("evidence");
        let last = evidence.checks.last().expect("a check");
        assert_eq!((last.id.as_str(), last.held), ("uverbs_inode", false));
        assert_eq!((&last.expected, &last.found), (&before.to_string(), &after.to_string()));
        // Allowing unproven contexts does not allow wrong ones.
        assert_eq!(A::open_unproven(&device).err().expect("refused").code, "replaced");
        assert_eq!(machine.node_opens(), []);
        assert!(A::is_known_gone(&device));
    }
}

pub(crate) fn a_removed_device_is_refused<A: Api>() {
    let (machine, id) = one();
    let device = listed::<A>(&machine, "rxe0");
    machine.remove(id);
    assert_eq!(refused(A::open(&device)).code, "removed");
    let failure = refused(A::open(&device));
    assert_eq!(failure.step, Some((1, "known".to_owned())));
}

pub(crate) fn a_node_that_leads_elsewhere_is_refused<A: Api>() {
    let (machine, _) = one();
    add(&machine, "rxe1", 0xb0);
    let device = listed::<A>(&machine, "rxe0");
    machine.set_node(0, NodeKind::Device(231, 193));
    let failure = refused(A::open(&device));
    assert_eq!((failure.code.as_str(), failure.step), ("node_mismatch", Some((3, "node".into()))));
    assert_eq!(failure.cause, "device number of the node: expected 231:192, found 231:193");
}

pub(crate) fn without_netlink_nothing_is_proved<A: Api>() {
    let (machine, id) = one();
    let device = listed::<A>(&machine, "rxe0");
    machine.deny_netlink(Some(1));
    let failure = refused(A::open(&device));
    assert_eq!((failure.code.as_str(), failure.errno), ("netlink_unavailable", Some(1)));
    let (context, reason) = A::open_unproven(&device).expect("allowed");
    assert!(reason.expect("a reason").contains("EPERM"));
    assert_eq!(A::device_of(&context), ino(&machine, id));
    assert_eq!(A::answers(&context).expect("answers").driver_id, 14);
    let failure = refused(A::facts(&listed::<A>(&machine, "rxe0")));
    assert_eq!(failure.code, "netlink_unavailable");
}

pub(crate) fn a_device_outlives_its_list_and_registry<A: Api>() {
    let (machine, id) = one();
    let device = {
        let registry = A::registry(&machine);
        let list = A::list(&registry).expect("a list");
        A::devices(&list).remove(0)
    };
    let context = A::open(&device).expect("opened");
    let mut events = A::events(&context).expect("events");
    drop(device);
    assert_eq!(A::answers(&context).expect("answers").driver_id, 14);
    machine.with(|world| world.event(id, 9, 1));
    drop(context);
    // The kernel delivers no event after the context was closed.
    machine.with(|world| world.event(id, 10, 1));
    assert_eq!(A::next_event(&mut events), Ok(Some((9, 1, Some(1)))));
    assert_eq!(A::next_event(&mut events), Ok(None));
    drop(events);
    assert_eq!(machine.open_handles(), 0);
}

pub(crate) fn a_descriptor_is_verified<A: Api>() {
    let (machine, id) = one();
    add(&machine, "rxe1", 0xa0);
    let device = listed::<A>(&machine, "rxe0");
    let right = machine.open_unguarded(0).expect("opened");
    let evidence = A::verify(&device, right.as_fd()).expect("proved");
    assert!(all_held(&evidence));
    assert_eq!(evidence.index, Some(machine.index_of(id)));
    let wrong = machine.open_unguarded(1).expect("opened");
    let failure = refused(A::verify(&device, wrong.as_fd()));
    assert_eq!((failure.code.as_str(), failure.step), ("node_mismatch", Some((4, "open".into()))));
    let without_context = machine.open_node(0).expect("opened");
    assert_eq!(refused(A::verify(&device, without_context.as_fd())).code, "unproven");
    machine.remove(id);
    assert_eq!(refused(A::verify(&device, right.as_fd())).code, "removed");
}

pub(crate) fn a_handle_of_libibverbs_is_verified<A: Api>() {
    let (machine, id) = one();
    let other = add(&machine, "rxe1", 0xb0);
    let registry = A::registry(&machine);
    let index = machine.index_of(id).cast_signed();
    let good = Handle { index, dev_name: "uverbs0", name: "rxe0", guid: 0xa0 };
    let fd = machine.open_unguarded(0).expect("opened");
    let evidence = A::verify_ibv(&registry, &good, fd.as_fd()).expect("proved");
    assert!(all_held(&evidence));
    let stale = |handle: Handle<'_>| {
        let failure = refused(A::verify_ibv(&registry, &handle, fd.as_fd()));
        assert_eq!(failure.step, Some((0, "handle".into())), "{failure:?}");
        let check = failure.evidence.and_then(|evidence| evidence.checks.last().cloned());
        (failure.code, check.map(|check| check.id).unwrap_or_default())
    };
    let text = |code: &str, check: &str| (code.to_owned(), check.to_owned());
    assert_eq!(stale(Handle { guid: 0xb0, ..good }), text("replaced", "handle_guid"));
    assert_eq!(stale(Handle { name: "rxe1", ..good }), text("replaced", "handle_name"));
    assert_eq!(stale(Handle { dev_name: "uverbs1", ..good }), text("replaced", "handle_node"));
    assert_eq!(stale(Handle { index: -1, ..good }).0, "unproven");
    assert_eq!(stale(Handle { index: 77, ..good }).0, "removed");
    let failure =
        refused(A::verify_ibv(&registry, &Handle { dev_name: "umad0", ..good }, fd.as_fd()));
    assert_eq!(failure.code, "malformed");
    // The handle is right, and the descriptor is another device's.
    let wrong = machine.open_unguarded(1).expect("opened");
    let failure = refused(A::verify_ibv(&registry, &good, wrong.as_fd()));
    assert_eq!(failure.code, "node_mismatch");
    // The device was replaced before libibverbs opened it.
    let index = machine.index_of(other).cast_signed();
    let old = Handle { index, dev_name: "uverbs1", name: "rxe1", guid: 0xb0 };
    machine.remove(other);
    add(&machine, "rxe1", 0xb0);
    let fd = machine.open_unguarded(1).expect("opened");
    assert_eq!(refused(A::verify_ibv(&registry, &old, fd.as_fd())).code, "removed");
}

pub(crate) fn after_a_reload_of_ib_core_a_handle_is_refused<A: Api>() {
    let machine = Machine::new();
    let id = add(&machine, "rxe0", 0xa0);
    let registry = A::registry(&machine);
    let index = machine.index_of(id).cast_signed();
    machine.with(|world| world.reload_ib_core()).expect("reloaded");
    let again = add(&machine, "rxe0", 0xa0);
    assert_eq!(machine.index_of(again).cast_signed(), index);
    let fd = machine.open_unguarded(0).expect("opened");
    let handle = Handle { index, dev_name: "uverbs0", name: "rxe0", guid: 0xa0 };
    let failure = refused(A::verify_ibv(&registry, &handle, fd.as_fd()));
    assert_eq!(failure.code, "replaced");
    assert!(failure.hint.expect("a hint").contains("ib_core was reloaded"));
    A::verify_ibv(&A::registry(&machine), &handle, fd.as_fd()).expect("of the present epoch");
}

pub(crate) fn lists_differ_by_their_changes<A: Api>() {
    let machine = Machine::new();
    let ids = ["a", "b", "c"].map(|name| add(&machine, name, 1));
    let registry = A::registry(&machine);
    let old = A::list(&registry).expect("a list");
    let inodes = ids.map(|id| ino(&machine, id));
    machine.remove(ids[0]);
    machine.remove(ids[1]);
    machine.rename(ids[2], b"d").expect("renamed");
    // It takes the number 0 and the name of another one.
    let new = add(&machine, "b", 1);
    let list = A::list(&registry).expect("a list");
    let name = |name: &[u8]| Some(name.to_owned());
    let (removed, added) = (inodes[1], ino(&machine, new));
    let expected = [
        Change {
            kind: "removed",
            device: Some(removed),
            text: "b (uverbs1): removed".into(),
            ..Change::default()
        },
        Change {
            kind: "replaced",
            device: Some(added),
            old: Some(inodes[0]),
            name: name(b"b"),
            text: "a (uverbs0): replaced by b (uverbs0)".into(),
            ..Change::default()
        },
        Change {
            kind: "renamed",
            device: Some(inodes[2]),
            name: name(b"d"),
            old_name: name(b"c"),
            text: "uverbs2: renamed from c to d".into(),
            ..Change::default()
        },
    ];
    assert_eq!(A::changes(&list, Some(&old)), expected);
    assert_eq!(A::changes(&list, Some(&list)), []);
    let all = A::changes(&list, None);
    let found: Vec<_> = all.iter().map(|change| (change.kind, change.device)).collect();
    assert_eq!(found, [("added", Some(added)), ("added", Some(inodes[2]))]);
}

pub(crate) fn a_watch_reports_each_change<A: Api>() {
    let (machine, id) = one();
    let registry = A::registry(&machine);
    let next = |watch: &mut A::Watch| {
        A::next(watch).expect("no error").map(|change| (change.kind, change.text))
    };
    let change = |kind, text: &str| Some((kind, text.to_owned()));
    let mut watch = A::watch(&registry).expect("a watch");
    assert_eq!(next(&mut watch), None);
    add(&machine, "rxe1", 1);
    assert_eq!(next(&mut watch), change("added", "rxe1 (uverbs1): added"));
    assert_eq!(next(&mut watch), change("ready", "rxe1 (uverbs1): ready"));
    assert_eq!(next(&mut watch), None);
    let list = A::list_of(&watch);
    assert_eq!(A::devices(&list).len(), 2);
    machine.advance(Duration::from_secs(1));
    machine.remove(id);
    assert_eq!(next(&mut watch), change("removed", "rxe0 (uverbs0): removed"));
    drop(watch);
    // Since a list, and since nothing.
    let mut watch = A::watch_since(&registry, Some(&list)).expect("a watch");
    assert_eq!(next(&mut watch), change("removed", "rxe0 (uverbs0): removed"));
    drop(watch);
    let mut watch = A::watch_since(&registry, None).expect("a watch");
    assert_eq!(next(&mut watch), change("added", "rxe1 (uverbs1): added"));
    // No end of a registration is heard, so this takes a moment.
    let ready = A::wait(&mut watch, Duration::from_secs(1)).expect("no error").expect("a change");
    assert_eq!((ready.kind, ready.device), ("ready", list_ino::<A>(&list, "rxe1")));
    drop(watch);
    // Without uevents it reports that once.
    machine.with(|world| world.deny_uevents(Some(1)));
    let mut watch = A::watch(&registry).expect("a watch");
    let first = A::next(&mut watch).expect("no error").expect("a change");
    assert_eq!((first.kind, first.reason.as_deref()), ("resynchronised", Some("no_events")));
    assert_eq!((first.device, first.old, first.name), (None, None, None));
}

pub(crate) fn a_watch_waits<A: Api>() {
    let (machine, _) = one();
    let mut watch = A::watch(&A::registry(&machine)).expect("a watch");
    let before = machine.with(|world| world.clock());
    assert_eq!(A::wait(&mut watch, Duration::from_millis(700)), Ok(None));
    let waited = machine.with(|world| world.clock()) - before;
    assert_eq!(waited, Duration::from_millis(700));
    assert_eq!(A::wait(&mut watch, Duration::ZERO), Ok(None));
    add(&machine, "rxe1", 1);
    let change = A::wait(&mut watch, Duration::from_secs(9)).expect("no error").expect("a change");
    assert_eq!((change.kind, change.name), ("added", Some(b"rxe1".to_vec())));
}

pub(crate) fn events_arrive_and_end<A: Api>() {
    let (machine, id) = one();
    let context = A::open(&listed::<A>(&machine, "rxe0")).expect("opened");
    let mut events = A::events(&context).expect("events");
    assert_eq!(A::next_event(&mut events), Ok(None));
    assert_eq!(A::wait_for_event(&mut events, Duration::from_millis(5)), Ok(None));
    machine.with(|world| world.event(id, 10, 1));
    machine.with(|world| world.event(id, 1, 0x1234_5678_9abc));
    assert_eq!(A::wait_for_event(&mut events, Duration::ZERO), Ok(Some((10, 1, Some(1)))));
    assert_eq!(A::next_event(&mut events), Ok(Some((1, 0x1234_5678_9abc, None))));
    assert!(!A::have_ended(&events));
    machine.remove(id);
    assert_eq!(A::next_event(&mut events), Ok(Some((8, 0, None))));
    assert!(A::have_ended(&events));
    assert_eq!(A::wait_for_event(&mut events, Duration::from_secs(9)), Ok(None));
    assert_eq!(refused(A::events(&context).map(drop)).code, "removed");
}

pub(crate) fn hostile_names_are_escaped<A: Api>() {
    let (machine, id) = one();
    let registry = A::registry(&machine);
    let old = A::list(&registry).expect("a list");
    machine.rename(id, b"a\n\x1b[31m\xff").expect("renamed");
    let list = A::list(&registry).expect("a list");
    let device = A::by_name(&list, b"a\n\x1b[31m\xff").expect("found");
    assert_eq!(A::name(&device), b"a\n\x1b[31m\xff");
    assert_eq!(A::label(&device), r"a\n\x1b[31m\xff (uverbs0)");
    let change = A::changes(&list, Some(&old)).remove(0);
    assert_eq!(change.name.as_deref(), Some(&b"a\n\x1b[31m\xff"[..]));
    assert_eq!(change.text, r"uverbs0: renamed from rxe0 to a\n\x1b[31m\xff");
    let failure = refused(A::by_name(&list, b"x\n"));
    assert!(failure.message.is_ascii() && !failure.message.contains('\n'), "{failure:?}");
}

pub(crate) fn faults_are_listed<A: Api>() {
    let (machine, id) = one();
    add(&machine, "rxe1", 1);
    machine.with(|world| world.set_attribute(id, "dev", b"nonsense\n")).expect("set");
    let list = A::list(&A::registry(&machine)).expect("a list");
    assert_eq!(A::devices(&list).len(), 1);
    let faults = A::faults(&list);
    assert!(faults.len() == 1 && faults[0].starts_with("uverbs0: malformed"), "{faults:?}");
}

pub(crate) fn a_system_call_that_fails_is_named<A: Api>() {
    let (machine, _) = one();
    let registry = A::registry(&machine);
    machine.on_call(|_, call| match call.kind() {
        CallKind::Openat2 => Verdict::Fail(24),
        _ => Verdict::Continue,
    });
    let failure = refused(A::list(&registry).map(drop));
    assert_eq!((failure.code.as_str(), failure.errno), ("os", Some(24)));
    assert!(failure.cause.starts_with("openat2("), "{failure:?}");
    assert!(failure.cause.contains("EMFILE"), "{failure:?}");
}
