//! The proof in band, on the simulated kernel: what it must see through, and what it must not need.
//! (`explore/` tries everything at every call.)

use std::os::fd::AsFd as _;

use uverbs::sim::{CallKind, DeviceId, DeviceSpec, Machine, NodeKind, Verdict};
use uverbs::{Device, ErrorKind, Host, Opened, Policy, Registry};

const OCRDMA: u32 = 7;

fn spec(name: &str) -> DeviceSpec {
    DeviceSpec::new(name).guid(0xa0).disassociates(false)
}

fn listed(machine: &Machine, name: &str) -> Device {
    let host = Host::simulated(machine, Policy::new()).expect("a host");
    Registry::new(host).devices().expect("a list").by_name(name).expect("listed")
}

fn one() -> (Machine, DeviceId, Device) {
    let machine = Machine::new();
    let id = machine.add(spec("rxe0")).expect("added");
    let device = listed(&machine, "rxe0");
    (machine, id, device)
}

/// A node that is bound to `old`, which is being removed, stands in the place of the listed `new`'s. Both
/// have one GUID.
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

fn kind<T: std::fmt::Debug>(result: uverbs::Result<T>) -> ErrorKind {
    result.expect_err("it has to be refused").kind()
}

/// Which check of the proof decided.
fn decided(evidence: &uverbs::Evidence) -> &'static str {
    let checks = evidence.checks();
    let what = |check: &uverbs::Check| (check.step == uverbs::Step::Prove).then_some(check.what);
    let mut of_step = checks.iter().filter_map(what);
    let decisive = |what: &&str| what.contains("thread");
    of_step.find(decisive).expect("a check decides")
}

const BY_NUMBER: &str = "thread of the context of that number";
const BY_PD: &str = "PD of a new thread, under the index";
const BY_PD_HERE: &str = "PD of this thread under a number that was free";
const BY_CONTEXT: &str = "context of a new thread, under the index";

#[test]
fn the_second_open_is_proved_by_number() {
    let (machine, id, device) = one();
    for expected in [BY_PD, BY_NUMBER, BY_NUMBER] {
        let context = device.open().expect("opened");
        assert_eq!(decided(context.evidence()), expected);
        assert_eq!(context.evidence().context_number(), machine.ctxn_of(context.as_fd()));
        assert!(context.evidence().checks().iter().all(uverbs::Check::held));
        assert_eq!(machine.pds_of(id), [], "a PD is left");
    }
    // Somebody else takes the number.
    machine.foreign_context(id).expect("a context");
    assert_eq!(decided(device.open().expect("opened").evidence()), BY_PD);
}

/// The attack that broke the proof once: the list of contexts is cut, so that it leaves out an older context of
/// this thread.
#[test]
fn a_cut_list_proves_nothing() {
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

#[test]
fn an_older_context_of_that_number_proves_nothing() {
    // A node that is bound to the old device is put in place once the library knows the number that comes next.
    let machine = Machine::new();
    let old = machine.add(spec("old")).expect("added");
    machine.foreign_context(old).expect("held");
    machine.set_node_aside(0);
    machine.remove(old);
    let new = machine.add(spec("new")).expect("added");
    let device = listed(&machine, "new");
    drop(device.open().expect("the node is the kernel's"));
    machine.put_node_back(0);
    let thread = machine.with(|world| world.this_thread());
    let older = machine.context_by(new, thread).expect("a context");
    assert_eq!(older, 1, "of the number that comes next");
    assert_eq!(kind(device.open()), ErrorKind::NodeMismatch);
}

#[test]
fn what_another_library_opened_is_verified() {
    let (machine, id, device) = one();
    machine.add(spec("rxe1")).expect("added");
    let other = listed(&machine, "rxe1");
    let foreign = machine.open_unguarded(0).expect("opened");
    // As often as wanted, and on any thread.
    for _ in 0..2 {
        let evidence = device.verify(&foreign).expect("verified");
        assert_eq!(evidence.context_number(), machine.ctxn_of(foreign.as_fd()));
    }
    std::thread::scope(|scope| scope.spawn(|| device.verify(&foreign)).join())
        .expect("no panic")
        .expect("verified");
    assert_eq!(kind(other.verify(&foreign)), ErrorKind::NodeMismatch);
    // A caller that keeps a right context and a right PD, and hands in a wrong descriptor.
    let (right, wrong) =
        (device.open().expect("opened"), machine.open_unguarded(1).expect("opened"));
    let thread = machine.with(|world| world.this_thread());
    let ctxn = machine.context_by(id, thread).expect("a context");
    machine.pd_by(id, ctxn, thread).expect("a PD");
    for _ in 0..2 {
        assert_eq!(kind(device.verify(&wrong)), ErrorKind::NodeMismatch);
        device.verify(&right).expect("verified");
    }
    // One that leads to this number, of a device that is gone.
    let (machine, _, device) = stale();
    let stale = machine.open_unguarded(0).expect("opened");
    let error = device.verify(&stale).expect_err("it is on the old one");
    assert_eq!(error.kind(), ErrorKind::NodeMismatch);
    let last = error.evidence().and_then(|evidence| evidence.checks().last()).expect("evidence");
    assert_eq!((last.what, last.held()), (BY_PD, false));
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
    // The number is known now.
    assert_eq!(decided(device.open().expect("opened").evidence()), BY_NUMBER);
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
    // The failure is still to come: no PD was allocated.
    machine.add(spec("rxe0")).expect("added");
    let foreign = machine.open_unguarded(1).expect("opened");
    assert_eq!(kind(listed(&machine, "rxe0").verify(&foreign)), ErrorKind::Unproven);
}

#[test]
fn without_threads_a_number_that_was_free_proves() {
    let (machine, id, device) = one();
    machine.deny_threads(Some(11));
    for _ in 0..3 {
        machine.foreign_pd(id).expect("a PD");
        let context = device.open().expect("opened");
        let evidence = device.verify(&context).expect("verified");
        assert_eq!(decided(&evidence), BY_PD_HERE);
        assert_eq!(evidence.context_number(), machine.ctxn_of(context.as_fd()));
    }
    let (machine, _, device) = stale();
    machine.deny_threads(Some(11));
    assert_eq!(kind(device.open()), ErrorKind::Unproven);
    machine.fail_alloc_pd(22, u32::MAX);
    let opened = device.open_allow_unproven().expect("nothing contradicts");
    assert!(matches!(opened, Opened::Unproven(_)));
}

#[test]
fn a_pd_is_freed_whatever_comes() {
    // The answer could not be copied, and the PD is there.
    let (machine, id, device) = one();
    let foreign = machine.open_unguarded(0).expect("opened");
    machine.fail_after_alloc_pd(14, 1);
    assert_eq!(kind(device.verify(&foreign)), ErrorKind::Unproven);
    assert_eq!(machine.pds_of(id), []);
    // Freeing it fails once; twice; and then it stays.
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
fn not_listed_counts_only_of_two_pds_that_lived() {
    let (machine, _, device) = one();
    let foreign = machine.open_unguarded(0).expect("opened");
    // One that the kernel could not track is not listed, though it is on the right device.
    machine.untrack_pds(1);
    device.verify(&foreign).expect("verified by the second");
    // One that could not be freed may have gone with its device.
    let (machine, _, device) = stale();
    let stale = machine.open_unguarded(0).expect("opened");
    machine.fail_dealloc_pd(5, 4);
    assert_eq!(kind(device.verify(&stale)), ErrorKind::Unproven);
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
fn without_netlink_nothing_is_proved() {
    let (machine, _, device) = one();
    machine.deny_netlink(Some(1));
    let error = device.open().expect_err("it has to be refused");
    assert_eq!(error.kind(), ErrorKind::NetlinkUnavailable);
    assert_eq!(error.raw_os_error(), Some(1));
    assert_eq!(machine.node_opens(), []);
    let Ok(Opened::Unproven(context)) = device.open_allow_unproven() else {
        panic!("it is the right one, but that cannot be proved");
    };
    assert_eq!(context.query_device().expect("asked").node_guid.0, 0xa0);
    assert_eq!(context.reason().kind(), ErrorKind::NetlinkUnavailable);
    drop(context);
    // No room for a descriptor says nothing of netlink.
    machine.deny_netlink(Some(24));
    assert_eq!(kind(device.open()), ErrorKind::Os);
    machine.deny_netlink(None);
    device.open().expect("proved");
}

/// What is at hand is compared, also where nothing can be proved: here sysfs' GUID.
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
    // And netlink's, where only the lists are missing.
    machine.deny_netlink(None);
    machine.set_no_res_ctx(true);
    machine.set_no_res_pd(true);
    let opened = device.open_allow_unproven();
    assert_eq!(kind(opened), ErrorKind::NodeMismatch);
}

#[test]
fn a_refused_open_brings_its_evidence() {
    let (_machine, _, device) = stale();
    let error = device.open().expect_err("it has to be refused");
    let checks = error.evidence().expect("evidence").checks();
    let (last, before) = checks.split_last().expect("checks");
    assert!(!last.held() && before.iter().all(uverbs::Check::held), "{checks:?}");
}

/// The thread of a proof has a stack of a size of its own: `RUST_MIN_STACK`, here one that no thread can have, does
/// not matter.
#[test]
fn no_variable_sizes_the_thread() {
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
