//! Checks of the runner itself: whether it notices programs that die, hang, or make their system calls on another
//! thread, and whether what it does to a device really happens.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::crowd::{Member, RIGHT, measure_buffer, measure_page};
use super::link::Resource;
use super::mutation::{self, Mutation};
use super::trace::{Point, mark, stop, trace_me};
use super::world::{Kind, World};
use super::{judge, link, program, trace, verbs};
use crate::guest;

/// A program: what it does between the marks.
type Does = fn();

/// A call that identifies the thread. No program of the table makes it.
fn known_call() {
    let _ = rustix::process::getppid();
}

fn run(
    does: Does,
    at: &[Point],
    limit: Duration,
    meanwhile: impl FnMut(usize) -> Result<()>,
) -> Result<trace::Run> {
    let process = program::start(|mut output| {
        trace_me()?;
        mark();
        does();
        mark();
        std::io::Write::write_all(&mut output, b"refused nothing")?;
        stop();
        Ok(())
    })?;
    trace::run(process, at, limit, meanwhile)
}

pub(crate) fn deaths_hangs_and_threads() -> Result<()> {
    trace::prepare()?;
    let ways: [(Does, &str); 5] = [
        (|| panic!("on purpose"), "WRONG: died: status 0x100 panicked"),
        (|| std::process::abort(), "WRONG: died: status 0x"),
        (|| std::process::exit(0), "WRONG: died: status 0x0"),
        (|| std::thread::sleep(Duration::from_secs(60)), "WRONG: hung at "),
        (
            || {
                let sleeps = || std::thread::sleep(Duration::from_secs(60));
                let _ = std::thread::spawn(sleeps).join();
            },
            "WRONG: hung at ",
        ),
    ];
    for (does, expected) in ways {
        let mut run = run(does, &[], Duration::from_secs(2), |_| Ok(()))?;
        let lost = judge::report(&run.end).err().context("it came to its end")?;
        ensure!(lost.starts_with(expected), "expected {expected:?}, found {lost:?}");
        println!("    {lost}");
        run.process.kill(Duration::from_secs(5))?;
    }
    two_boundaries()?;
    on_another_thread(|| {
        let _ = std::thread::spawn(known_call).join();
    })?;
    let calls = on_another_thread(bare_thread)?;
    for name in ["clone", "futex"] {
        ensure!(calls.iter().any(|call| call == name), "no {name}: {calls:?}");
    }
    the_crowd_and_failures()
}

/// Both boundaries are reached, in order.
fn two_boundaries() -> Result<()> {
    let does = || {
        known_call();
        known_call();
        let _ = std::fs::metadata("/dev/infiniband/uverbs0");
    };
    let mut came = Vec::new();
    let points = [Point::Call(1), Point::Node(0)];
    let run = run(does, &points, trace::LIMIT, |boundary| {
        came.push(boundary);
        Ok(())
    })?;
    ensure!(came == [0, 1] && run.reached == 2, "{came:?}: {:?}", run.calls);
    ensure!(run.calls.len() == 3, "{:?}", run.calls);
    Ok(())
}

/// What the scenes and mutations rely on: others hold what they should, and leave nothing behind; the driver fails
/// when it should.
fn the_crowd_and_failures() -> Result<()> {
    let listed = Resource::listed()?;
    for kind in Kind::all()? {
        let mut world = World::new(kind);
        mutation::prepare(&mut world, &[], None, true)?;
        let index = world.index()?;
        for &resource in listed {
            let (buffer, page) = (measure_buffer(resource)?, measure_page(resource)?);
            ensure!(0 < buffer && buffer < page, "{resource:?}: {buffer} and {page}");
        }
        let count =
            || -> Result<[usize; 2]> { Ok([link::contexts(index)?, link::domains(index)?]) };
        let before = count()?;
        for (stays, resource) in [(true, Resource::Context), (false, Resource::Domain)] {
            let mut member = Member::start(resource, 3)?;
            member.ready()?;
            world.join(stays, member);
        }
        let during = count()?;
        ensure!(during == [before[0] + 4, before[1] + 3], "{before:?}, then {during:?}");
        ensure!(world.besides() == 4 && world.contexts()?.get(&index) == Some(&4));
        Mutation::CrowdLeaves.happen(&mut world)?;
        let after = count()?;
        ensure!(after == [before[0] + 3, before[1]] && world.besides() == 3, "{after:?}");
        if let Kind::Hca { .. } = kind {
            failures(&mut world)?;
        }
        world.clean()?;
    }
    Ok(())
}

fn failures(world: &mut World) -> Result<()> {
    let node = verbs::open(RIGHT)?;
    let domain = verbs::allocate_domain(&node)?;
    Mutation::AllocPdFails.happen(world)?;
    let refused = verbs::allocate_domain(&node).err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::ENOMEM), "allocated: {refused:?}");
    Mutation::DeallocPdFails.happen(world)?;
    let refused = verbs::free_domain(&node, domain).err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::EBUSY), "freed: {refused:?}");
    guest::hca("set name=tst fail=DEALLOC_PD:0")?;
    Ok(verbs::free_domain(&node, domain)?)
}

/// A thread that the C library does not know, and the wait for its end.
#[allow(unsafe_code)]
fn bare_thread() {
    extern "C" fn works(_: *mut libc::c_void) -> libc::c_int {
        known_call();
        0
    }
    const FLAGS: libc::c_int = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    let mut stack = vec![0_u128; 4096];
    let lives = std::sync::atomic::AtomicU32::new(0);
    // No address of the thread's own storage is passed.
    let storage = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: the stack and the number live until the thread has ended, which is awaited below. The thread makes
    // one system call, and does not touch thread-local storage, because it shares this thread's.
    let tid = unsafe {
        let top = stack.as_mut_ptr_range().end.cast();
        let id = lives.as_ptr();
        libc::clone(works, top, FLAGS, std::ptr::null_mut(), id, storage, id)
    };
    assert!(tid > 0, "clone: {}", std::io::Error::last_os_error());
    // The kernel writes the thread's id before `clone` returns. At the end it zeroes it and wakes whoever waits for
    // it. If that has happened already, this returns at once.
    loop {
        let none = std::ptr::null::<libc::timespec>();
        // SAFETY: the number lives for the call.
        unsafe { libc::syscall(libc::SYS_futex, lives.as_ptr(), libc::FUTEX_WAIT, tid, none) };
        if lives.load(std::sync::atomic::Ordering::Acquire) == 0 {
            return;
        }
    }
}

/// Each call of a short-lived thread is a boundary, and the thread waits there. Returns all of the calls.
fn on_another_thread(does: Does) -> Result<Vec<String>> {
    let undisturbed = run(does, &[], trace::LIMIT, |_| Ok(()))?;
    let report = judge::report(&undisturbed.end);
    ensure!(report == Ok("refused nothing"), "{report:?}");
    ensure!(undisturbed.threads == 2, "{} threads", undisturbed.threads);
    let is_known = |call: &String| call == "getppid";
    ensure!(undisturbed.calls.iter().any(is_known), "{:?}", undisturbed.calls);
    let mut stopped = 0;
    let mut found = false;
    // The order of the calls of two threads varies: on a busy host three rounds were once not enough.
    for at in (0..undisturbed.calls.len()).cycle().take(12 * undisturbed.calls.len()) {
        let mut here = false;
        let run = run(does, &[Point::Call(at)], trace::LIMIT, |_| {
            here = true;
            Ok(())
        })?;
        ensure!(judge::report(&run.end) == Ok("refused nothing") && (run.reached == 1) == here);
        stopped += usize::from(here);
        found = here && run.calls.last().is_some_and(is_known);
        if found {
            break;
        }
    }
    println!("    stopped at {stopped} calls of two threads");
    ensure!(found, "never stopped at the call of the other thread");
    Ok(undisturbed.calls)
}
