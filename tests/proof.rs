//! The in-band proof, on the simulated kernel: what it must not be deceived by, and what it must not require.
//! (`explore/` tries everything at every call.)

use std::os::fd::AsFd as _;

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, NodeKind, Verdict};
use uverbs::{CheckId, Device, ErrorKind, Host, Opened, Registry};

const OCRDMA: u32 = 7;

fn spec(name: &str) -> DeviceSpec {
    DeviceSpec::new(name).guid(0xa0).disassociates(false)
}

fn listed(machine: &Machine, name: &str) -> Device {
    let host = Host::simulated(machine).expect("a host");
    Registry::new(host).devices().expect("a list").by_name(name).expect("listed")
}

fn one() -> (Machine, DeviceId, Device) {
    let machine = Machine::new();
    machine.set_next_index(7);
    let id = machine.add(spec("rxe0")).expect("added");
    let device = listed(&machine, "rxe0");
    (machine, id, device)
}

/// In place of the node of the listed device `new`, there is one that is bound to `old`, which is being removed.
/// Both devices have the same GUID.
fn stale() -> (Machine, DeviceId, Device) {
    let machine = Machine::new();
    let old = machine.add(spec("old")).expect("added");
    machine.set_node(0, NodeKind::Static);
    machine.foreign_context(old).expect("held");
    machine.remove(old);
    let new = machine.add(spec("new")).expect("added");
    let device = listed(&machine, "new");
    (machine, new, device)
}

/// In place of the new device's node, there is one that is bound to the old device. The library knows which numbers
/// come next on the new device.
fn known_and_stale() -> (Machine, DeviceId, Device) {
    let machine = Machine::new();
    let old = machine.add(spec("old")).expect("added");
    machine.foreign_context(old).expect("held");
    machine.set_node_aside(0);
    machine.remove(old);
    let new = machine.add(spec("new")).expect("added");
    let device = listed(&machine, "new");
    drop(device.open().expect("the node is the kernel's"));
    machine.put_node_back(0);
    (machine, new, device)
}

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("it has to be refused").kind()
}

/// Which check of the proof decided.
fn decided(evidence: &uverbs::Evidence) -> CheckId {
    let checks = evidence.checks();
    let what = |check: &uverbs::Check| (check.step == uverbs::Step::Prove).then_some(check.id);
    let mut of_step = checks.iter().filter_map(what);
    let decisive = |id: &CheckId| matches!(*id, BY_PD | BY_CONTEXT);
    of_step.find(decisive).expect("a check decides")
}

const BY_PD: CheckId = CheckId::ProtectionDomain;
const BY_CONTEXT: CheckId = CheckId::Context;

#[test]
fn every_open_is_proved_by_a_new_thread() {
    let (machine, id, device) = one();
    for _ in 0..3 {
        let context = device.open().expect("opened");
        assert_eq!(decided(context.evidence()), BY_PD);
        assert_eq!(context.evidence().context_number(), machine.ctxn_of(context.as_fd()));
        assert_eq!(context.evidence().index(), Some(machine.index_of(id)));
        assert!(context.evidence().checks().iter().all(uverbs::Check::held));
        assert_eq!(machine.pds_of(id), [], "a PD is left");
    }
}

/// The attack that broke the proof once: the list of contexts is truncated, so that it leaves out an older context
/// of this thread.
#[test]
fn a_truncated_list_proves_nothing() {
    let (machine, new, device) = stale();
    machine.set_contexts_a_page(4);
    let crowd: Vec<u32> = (0..4).map(|_| machine.foreign_context(new).expect("one")).collect();
    let thread = machine.with(|world| world.this_thread());
    machine.context_by(new, thread).expect("an older context");
    let mut lists = 0;
    machine.on_call(move |world, call| {
        if call.kind() == CallKind::Send && call.detail(world).starts_with("RES_CTX_GET dump") {
            lists += 1;
        }
        // Between the first page and the second.
        if call.kind() == CallKind::Recv && lists == 1 {
            crowd.iter().for_each(|ctxn| world.close_foreign(new, *ctxn));
        }
        Verdict::Continue
    });
    assert_eq!(kind(device.open()), ErrorKind::NodeMismatch);
}

/// io_uring runs requests as the thread that submitted them, even during another system call of that thread.
#[test]
fn allocations_of_this_thread_meanwhile_prove_nothing() {
    let (machine, new, device) = known_and_stale();
    let thread = machine.with(|world| world.this_thread());
    machine.on_call(move |world, call| {
        // During each command, GET_CONTEXT and ALLOC_PD: this thread allocates a context and a PD on the right
        // device.
        if call.kind() == CallKind::VerbsIoctl
            && let Some(ctxn) = world.context_by(new, thread)
        {
            world.pd_by(new, ctxn, thread);
        }
        Verdict::Continue
    });
    assert_eq!(kind(device.open()), ErrorKind::NodeMismatch);
    let stale = machine.open_unguarded(0).expect("opened");
    assert_eq!(kind(device.verify(&stale)), ErrorKind::NodeMismatch);
}

#[test]
fn a_descriptor_of_another_library_is_verified() {
    let (machine, id, device) = one();
    machine.add(spec("rxe1")).expect("added");
    let other = listed(&machine, "rxe1");
    let foreign = machine.open_unguarded(0).expect("opened");
    // Any number of times, and on any thread.
    for _ in 0..2 {
        let evidence = device.verify(&foreign).expect("verified");
        assert_eq!(evidence.context_number(), machine.ctxn_of(foreign.as_fd()));
    }
    std::thread::scope(|scope| scope.spawn(|| device.verify(&foreign)).join())
        .expect("no panic")
        .expect("verified");
    assert_eq!(kind(other.verify(&foreign)), ErrorKind::NodeMismatch);
    // A caller that keeps a right context and a right PD, and passes in a wrong descriptor.
    let (right, wrong) =
        (device.open().expect("opened"), machine.open_unguarded(1).expect("opened"));
    let thread = machine.with(|world| world.this_thread());
    let ctxn = machine.context_by(id, thread).expect("a context");
    machine.pd_by(id, ctxn, thread).expect("a PD");
    for _ in 0..2 {
        assert_eq!(kind(device.verify(&wrong)), ErrorKind::NodeMismatch);
        device.verify(&right).expect("verified");
    }
    // A descriptor of this number, but of a device that is gone.
    let (machine, _, device) = stale();
    let stale = machine.open_unguarded(0).expect("opened");
    let error = device.verify(&stale).expect_err("it is on the old one");
    assert_eq!(error.kind(), ErrorKind::NodeMismatch);
    let last = error.evidence().and_then(|evidence| evidence.checks().last()).expect("evidence");
    assert_eq!((last.id, last.held()), (BY_PD, false));
}

#[test]
fn a_descriptor_without_a_context_is_not_verified() {
    let (machine, _, device) = one();
    let bare = machine.open_node(0).expect("opened");
    assert_eq!(kind(device.verify(&bare)), ErrorKind::Unproven);
    let (socket, _) = std::os::unix::net::UnixStream::pair().expect("a socket");
    assert!(device.verify(&socket).is_err());
}

#[test]
fn linux_5_10_proves_by_pds() {
    let (machine, _, device) = one();
    machine.set_no_res_ctx(true);
    for _ in 0..3 {
        assert_eq!(decided(device.open().expect("opened").evidence()), BY_PD);
    }
    machine.set_no_res_pd(true);
    assert_eq!(kind(device.open()), ErrorKind::Unproven);
    let Ok(Opened::Unproven(context)) = device.open_allow_unproven() else {
        panic!("the kernel shows nothing");
    };
    assert_eq!(context.reason().kind(), ErrorKind::Unproven);
}

#[test]
fn without_a_pd_the_context_is_allocated_on_a_new_thread() {
    let (machine, _, device) = one();
    let foreign = machine.open_unguarded(0).expect("opened");
    machine.fail_alloc_pd(22, u32::MAX);
    assert_eq!(decided(device.open().expect("opened").evidence()), BY_CONTEXT);
    assert_eq!(kind(device.verify(&foreign)), ErrorKind::Unproven);
    let (machine, _, device) = stale();
    machine.fail_alloc_pd(22, u32::MAX);
    assert_eq!(kind(device.open()), ErrorKind::Unproven);
}

#[test]
fn no_pd_is_allocated_on_ocrdma() {
    let machine = Machine::new();
    machine.add(spec("ocrdma0").driver(OCRDMA, 2)).expect("added");
    let device = listed(&machine, "ocrdma0");
    machine.fail_alloc_pd(5, 1);
    let context = device.open().expect("opened");
    assert_eq!(decided(context.evidence()), BY_CONTEXT);
    assert_eq!(kind(device.verify(&context)), ErrorKind::Unproven);
    // The injected failure was not used up: no PD was allocated.
    machine.add(spec("rxe0")).expect("added");
    let foreign = machine.open_unguarded(1).expect("opened");
    assert_eq!(kind(listed(&machine, "rxe0").verify(&foreign)), ErrorKind::Unproven);
}

#[test]
fn without_threads_nothing_is_proved() {
    let (machine, _, device) = one();
    let foreign = machine.open_unguarded(0).expect("opened");
    machine.deny_threads(Some(11));
    for fail_alloc_pd in [0, u32::MAX] {
        machine.fail_alloc_pd(22, fail_alloc_pd);
        assert_eq!(kind(device.open()), ErrorKind::Unproven);
        assert_eq!(kind(device.verify(&foreign)), ErrorKind::Unproven);
        let opened = device.open_allow_unproven().expect("nothing contradicts");
        assert!(matches!(opened, Opened::Unproven(_)));
    }
    machine.deny_threads(None);
    device.open().expect("proved");
}

/// Whatever else shows that it is the device, the GUID has to be right, too.
#[test]
fn another_guid_is_refused_however_the_open_is_proved() {
    for fail_alloc_pd in [0, u32::MAX] {
        for opened_before in [false, true] {
            let (machine, _, device) = one();
            machine.fail_alloc_pd(22, fail_alloc_pd);
            let before = opened_before.then(|| device.open().expect("opened"));
            // If the context is allocated again, on another thread, that one's GUID is queried, too.
            let mut contexts_before = u32::from(fail_alloc_pd > 0) + 1;
            machine.on_call(move |world, call| {
                if call.kind() != CallKind::VerbsIoctl {
                    return Verdict::Continue;
                }
                match call.detail(world).as_str() {
                    "0.3" => contexts_before = contexts_before.saturating_sub(1),
                    // The only command here with such a long response.
                    "0.0" if contexts_before == 0 => return Verdict::Alter(vec![(15, 1)]),
                    _ => {}
                }
                Verdict::Continue
            });
            let error = device.open().expect_err("it has to be refused");
            let last = error.evidence().and_then(|evidence| evidence.checks().last());
            assert_eq!(error.kind(), ErrorKind::NodeMismatch);
            assert_eq!(last.expect("evidence").id, CheckId::NodeGuid);
            if let Some(before) = before {
                // It stays altered.
                assert_eq!(kind(device.verify(&before)), ErrorKind::NodeMismatch);
            }
        }
    }
}

/// The guess of the next PD saves the lists.
/// Some drivers allow another node GUID. The one that the first proof has kept is then requested again.
#[test]
fn a_device_may_get_another_guid() {
    let (machine, id, device) = one();
    drop(device.open().expect("proved"));
    machine.set_guid(id, 0xb0);
    let context = device.open().expect("proved");
    assert_eq!(context.query_device().expect("an answer").node_guid.0, 0xb0);
    drop(context);
    device.open().expect("proved");
}

#[test]
fn the_second_verify_takes_no_list() {
    let (machine, id, device) = one();
    machine.set_next_pdn(id, 40);
    let foreign = machine.open_unguarded(0).expect("opened");
    for lists in [1, 0, 0] {
        machine.record_calls(true);
        let evidence = device.verify(&foreign).expect("verified");
        let log = machine.call_log();
        let dumps = log.iter().filter(|call| call.contains("RES_PD_GET dump")).count();
        assert_eq!(dumps, lists, "{log:#?}");
        assert_eq!(evidence.index(), Some(machine.index_of(id)));
        assert_eq!(evidence.context_number(), machine.ctxn_of(foreign.as_fd()));
    }
}

#[test]
fn a_descriptor_on_a_dead_device_is_refused() {
    let machine = Machine::new();
    let old = machine.add(spec("old").disassociates(true)).expect("added");
    let dead = machine.open_unguarded(0).expect("opened");
    machine.remove(old);
    machine.add(spec("new")).expect("added");
    let error = listed(&machine, "new").verify(&dead).expect_err("it is dead");
    assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::NodeMismatch, Some(5)));
}

#[test]
fn a_pd_is_freed_whatever_fails() {
    // The response could not be copied, but the PD exists.
    let (machine, id, device) = one();
    let foreign = machine.open_unguarded(0).expect("opened");
    machine.fail_after_alloc_pd(14, 1);
    assert_eq!(kind(device.verify(&foreign)), ErrorKind::Unproven);
    assert_eq!(machine.pds_of(id), []);
    // Freeing it fails once; twice; after that it stays.
    for (times, leaked) in [(1, false), (2, true)] {
        machine.fail_dealloc_pd(16, times);
        let evidence = device.verify(&foreign).expect("verified");
        assert_eq!(evidence.leaked_pd(), leaked);
        assert_eq!(machine.pds_of(id).len(), usize::from(leaked));
    }
    drop(foreign);
    machine.open_handles();
    assert_eq!(machine.pds_of(id), []);
}

#[test]
fn not_listed_counts_only_for_two_pds_that_lived() {
    let (machine, _, device) = one();
    let foreign = machine.open_unguarded(0).expect("opened");
    // A PD that the kernel could not track is not listed, even on the right device.
    machine.untrack_pds(1);
    device.verify(&foreign).expect("verified by the second");
    // A PD that could not be freed may have gone with its device.
    let (machine, _, device) = stale();
    let stale = machine.open_unguarded(0).expect("opened");
    machine.fail_dealloc_pd(5, 4);
    assert_eq!(kind(device.verify(&stale)), ErrorKind::Unproven);
}

/// Any user may allocate PDs, and each page takes longer the more PDs come before it.
#[test]
fn endless_lists_are_not_read() {
    let (machine, id, device) = one();
    let before = machine.calls();
    machine.set_contexts_a_page(2);
    machine.set_short_pages(true);
    for _ in 0..400 {
        machine.foreign_pd(id).expect("a PD");
    }
    assert_eq!(kind(device.open()), ErrorKind::Unproven);
    assert!(machine.calls() - before < 200, "{} calls", machine.calls() - before);
    let opened = device.open_allow_unproven().expect("nothing contradicts");
    assert!(matches!(opened, Opened::Unproven(_)));
    assert_eq!(machine.pds_of(id).len(), 400, "a PD of the proof is left");
}

#[test]
fn pds_that_come_and_go_prove_nothing() {
    let (machine, new, device) = stale();
    let thread = machine.with(|world| world.this_thread());
    let ctxn = machine.context_by(new, thread).expect("a context");
    let pdn = machine.pd_by(new, ctxn, thread).expect("a PD");
    let stale = machine.open_unguarded(0).expect("opened");
    for answers in 0..6 {
        machine.hide_pd(new, pdn, answers);
        assert_eq!(kind(device.verify(&stale)), ErrorKind::NodeMismatch);
    }
}

#[test]
fn somebody_elses_pd_of_the_guessed_number_proves_nothing() {
    let (machine, new, device) = known_and_stale();
    let stale = machine.open_unguarded(0).expect("opened");
    let pdn = machine.foreign_pd(new).expect("a PD");
    assert_eq!(pdn, 1, "the number that comes next");
    assert_eq!(kind(device.verify(&stale)), ErrorKind::NodeMismatch);
}

/// An incomplete list without the PD proves nothing, so the right descriptor is not refused because of it.
#[test]
fn a_truncated_list_refuses_nothing() {
    for (cuts, expected) in [(3, None), (u32::MAX, Some(ErrorKind::Unproven))] {
        let (machine, id, device) = one();
        machine.set_contexts_a_page(4);
        machine.set_short_pages(true);
        let crowd: Vec<u32> = (0..4).map(|_| machine.foreign_pd(id).expect("a PD")).collect();
        let foreign = machine.open_unguarded(0).expect("opened");
        let (mut is_first_page, mut left) = (false, cuts);
        machine.on_call(move |world, call| {
            match call.kind() {
                CallKind::Send => {
                    is_first_page = call.detail(world).starts_with("RES_PD_GET dump");
                }
                // The PDs of the first page go when it arrives, so the second page leaves out as many.
                CallKind::Recv if is_first_page && left > 0 => {
                    crowd.iter().for_each(|pdn| world.hide_pd(id, *pdn, 1));
                    (is_first_page, left) = (false, left - 1);
                }
                _ => {}
            }
            Verdict::Continue
        });
        let verified = device.verify(&foreign);
        assert_eq!(
            verified.err().map(|error| error.kind()),
            expected,
            "{cuts} lists are truncated"
        );
    }
}

#[test]
fn evidence_is_readable() {
    let (_machine, _, device) = one();
    let context = device.open().expect("opened");
    let steps: std::collections::BTreeSet<_> =
        context.evidence().checks().iter().map(|check| check.step).collect();
    let texts: Vec<_> = steps.iter().map(|step| (step.number(), step.to_string())).collect();
    let expected = [
        (2, "step 2 (pin)"),
        (3, "step 3 (node)"),
        (4, "step 4 (open)"),
        (5, "step 5 (revalidate)"),
        (7, "step 7 (prove)"),
    ];
    assert_eq!(texts, expected.map(|(number, text)| (number, text.to_owned())));
    let values = [
        (uverbs::Value::Word("listed"), "listed"),
        (uverbs::Value::Number(7), "7"),
        (uverbs::Value::Device((231, 192).into()), "231:192"),
        (uverbs::Value::Guid(uverbs::Guid(0xa0)), "0000:0000:0000:00a0"),
        (uverbs::Value::Time(1, 2), "1.000000002"),
    ];
    for (value, text) in values {
        assert_eq!(value.to_string(), text);
    }
    assert!(!context.evidence().leaked_pd());
}

#[test]
fn a_refused_open_returns_its_evidence() {
    let (_machine, _, device) = stale();
    let error = device.open().expect_err("it has to be refused");
    let checks = error.evidence().expect("evidence").checks();
    let (last, before) = checks.split_last().expect("checks");
    assert!(!last.held() && before.iter().all(uverbs::Check::held), "{checks:?}");
}

/// The thread of a proof has a fixed stack size. `RUST_MIN_STACK`, set to a value that no thread can have, has no
/// effect on it.
#[test]
fn no_variable_sets_the_threads_stack_size() {
    const VARIABLE: &str = "RUST_MIN_STACK";
    #[allow(clippy::disallowed_methods)] // the test's own process
    if std::env::var_os(VARIABLE).is_none() {
        let this = std::env::current_exe().expect("this program");
        let args = ["--exact", "no_variable_sizes_the_thread", "--test-threads=1"];
        let mut child = std::process::Command::new(this);
        let output = child.args(args).env(VARIABLE, (1_u64 << 62).to_string()).output();
        let output = output.expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let (_machine, _, device) = one();
    assert_eq!(decided(device.open().expect("opened").evidence()), BY_PD);
}
