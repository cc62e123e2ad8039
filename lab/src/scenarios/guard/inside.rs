//! Programs under the guard that do more than open one device: threads, forks, freed lists, and opens after a refusal.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use rustix::io::Errno;

use super::hca::{add, replace};
use crate::guest;
use crate::ibverbs::{Ibverbs, Lookup};

/// What the program in the guard's hands does.
const PARTS: [&str; 7] =
    ["freed", "again", "renamed", "descriptors", "threads", "forked", "forked-busy"];

/// Runs each part in a process of its own, under the guard.
pub(in crate::scenarios) fn inside() -> Result<()> {
    for part in PARTS {
        guest::hca("del-all")?;
        guest::hca("wait-idle")?;
        let output = Command::new("uverbs")
            .args(["guard", "--", "uverbs-lab", "role", "guarded", part])
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{part}: {}: {text}", output.status);
        print!("    {part}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// `uverbs-lab role guarded PART`
pub(crate) fn role(part: &str) -> Result<()> {
    ensure!(std::fs::read_to_string("/proc/self/maps")?.contains("libuverbs_guard.so"));
    match part {
        "freed" => freed(),
        "again" => again(),
        "renamed" => renamed(),
        "descriptors" => descriptors(),
        "threads" => threads(),
        "forked" => forked(),
        "forked-busy" => forked_busy(),
        _ => bail!("no such part"),
    }
}

const REFUSED: std::result::Result<u64, i32> = Err(Errno::NODEV.raw_os_error());

/// A program may open a handle after its list was freed, as long as something else keeps the handle: here, a second list.
fn freed() -> Result<()> {
    add("tst", 0xa0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let (first, second) = (ibverbs.list()?, ibverbs.list()?);
    let device = second.find("tst")?;
    drop(first);
    ensure!(device.guid_or_errno()? == Ok(0xa0));
    replace(0xa0)?;
    ensure!(device.guid_or_errno()? == REFUSED);
    let third = ibverbs.list()?;
    ensure!(third.find("tst")?.guid_or_errno()? == Ok(0xa0));
    ensure!(device.guid_or_errno()? == REFUSED, "an older handle after a newer list");
    println!("opened, refused, and opened by a fresh handle");
    Ok(())
}

/// An open that was refused leaves the handle as it was: once the device can be proved, it opens.
fn again() -> Result<()> {
    add("tst", 0xa0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let list = ibverbs.list()?;
    let device = list.find("tst")?;
    for _ in 0..3 {
        guest::hca("set name=tst fail=ALLOC_PD:12")?;
        ensure!(device.guid_or_errno()? == REFUSED);
        guest::hca("set name=tst fail=ALLOC_PD:0")?;
        ensure!(device.guid_or_errno()? == Ok(0xa0));
    }
    println!("refused and opened three times");
    Ok(())
}

/// The same where the list was not seen, and the device has another name for a while.
fn renamed() -> Result<()> {
    add("tst", 0xa0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Library)?;
    let list = ibverbs.list()?;
    let device = list.find("tst")?;
    for _ in 0..3 {
        guest::rename("tst", "other")?;
        ensure!(device.guid_or_errno()? == REFUSED);
        guest::rename("other", "tst")?;
        ensure!(device.guid_or_errno()? == Ok(0xa0));
    }
    println!("refused and opened three times");
    Ok(())
}

/// Neither a refused open nor a good one leaves a descriptor, a context, a protection domain or a thread.
fn descriptors() -> Result<()> {
    add("tst", 0xa0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let list = ibverbs.list()?;
    let device = list.find("tst")?;
    ensure!(device.guid_or_errno()? == Ok(0xa0));
    let before = guest::open_descriptors();
    // A thread is listed for a moment after its end.
    let is_alone = || guest::names("/proc/self/task").len() == 1;
    for round in 0..20 {
        guest::hca(&format!("set name=tst fail=ALLOC_PD:{}", if round % 2 == 0 { 12 } else { 0 }))?;
        let expected = if round % 2 == 0 { REFUSED } else { Ok(0xa0) };
        ensure!(device.guid_or_errno()? == expected, "round {round}");
        ensure!(guest::hca_value("tst", "contexts")? == "0", "a context is left");
        let now = guest::open_descriptors();
        ensure!(now == before, "{before} descriptors before, {now} now");
        guest::until("the thread of the proof to end", is_alone)?;
    }
    // A program may close everything that it does not know.
    for fd in 3..64 {
        close(fd);
    }
    ensure!(device.guid_or_errno()? == Ok(0xa0));
    replace(0xa0)?;
    ensure!(device.guid_or_errno()? == REFUSED);
    let few = rustix::process::Rlimit { current: Some(16), maximum: Some(16) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few)?;
    let list = ibverbs.list()?;
    ensure!(list.find("tst")?.guid_or_errno()? == Ok(0xa0), "with few descriptors");
    println!("{before} descriptors, before and after");
    Ok(())
}

#[allow(unsafe_code)]
fn close(fd: i32) {
    // SAFETY: nothing in this process owns a descriptor that it still uses.
    unsafe { libc::close(fd) };
}

/// Two threads open two devices by their handles, while one of the devices is replaced again and again.
fn threads() -> Result<()> {
    add("tst", 0xa0)?;
    add("other", 0xb0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let list = ibverbs.list()?;
    let (device, other) = (list.find("tst")?, list.find("other")?);
    let (stop, opened, refused) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let open = |device: &crate::ibverbs::Listed<'_>, guid: u64, always: bool| -> Result<()> {
        while !stop.load(Relaxed) {
            match device.guid_or_errno()? {
                Ok(found) if found == guid => opened.fetch_add(1, Relaxed),
                Err(_) if !always => refused.fetch_add(1, Relaxed),
                found => bail!("{found:?} for {guid:x}"),
            };
        }
        Ok(())
    };
    thread::scope(|scope| {
        let threads =
            [scope.spawn(|| open(&other, 0xb0, true)), scope.spawn(|| open(&device, 0xa0, false))];
        let replaced = (|| {
            thread::sleep(Duration::from_millis(300));
            for _ in 0..5 {
                // The listed one must not be taken for this.
                replace(0xc0)?;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })();
        stop.store(true, Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic")).and(replaced)
    })?;
    let (opened, refused) = (opened.load(Relaxed), refused.load(Relaxed));
    ensure!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");
    println!("{opened} opened, {refused} refused or failed");
    Ok(())
}

/// A child opens by a handle that its parent listed, before and after the device was replaced.
fn forked() -> Result<()> {
    add("tst", 0xa0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let list = ibverbs.list()?;
    let device = list.find("tst")?;
    for expected in [Ok(0xa0), REFUSED] {
        if expected == REFUSED {
            replace(0xa0)?;
        }
        in_child(&device, expected)?;
        ensure!(device.guid_or_errno()? == expected, "the parent: expected {expected:?}");
    }
    println!("a child opened, and was refused, as its parent was");
    Ok(())
}

/// The same while another thread of the parent lists, so that locks may be taken when it forks.
fn forked_busy() -> Result<()> {
    const FORKS: usize = 20;
    add("tst", 0xa0)?;
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let list = ibverbs.list()?;
    let device = list.find("tst")?;
    let (stop, lists) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let lister = scope.spawn(|| -> Result<()> {
            while !stop.load(Relaxed) {
                drop(ibverbs.list()?);
                lists.fetch_add(1, Relaxed);
            }
            Ok(())
        });
        let forked = (|| {
            for number in 0..FORKS {
                if number == FORKS / 2 {
                    replace(0xa0)?;
                }
                in_child(&device, if number < FORKS / 2 { Ok(0xa0) } else { REFUSED })?;
            }
            Ok(())
        })();
        stop.store(true, Relaxed);
        lister.join().expect("no panic").and(forked)
    })?;
    let lists = lists.load(Relaxed);
    ensure!(lists > 0, "nothing was listed");
    println!("{FORKS} children opened or were refused, during {lists} lists of another thread");
    Ok(())
}

/// Forks, and opens in the child. A child that waits for a lock ends by an alarm.
#[allow(unsafe_code)]
fn in_child(
    device: &crate::ibverbs::Listed<'_>,
    expected: std::result::Result<u64, i32>,
) -> Result<()> {
    // SAFETY: the child opens and ends. glibc makes its allocator and its loader usable in the child of a program with
    // threads, and what else it might wait for ends by the alarm.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        // SAFETY: it takes a number.
        unsafe { libc::alarm(60) };
        let is_right = device.guid_or_errno().is_ok_and(|found| found == expected);
        // SAFETY: it ends the process.
        unsafe { libc::_exit(i32::from(!is_right)) };
    }
    let mut status = 0;
    // SAFETY: `status` is writable.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    ensure!(waited == pid && status == 0, "the child: {status:#x}, expected {expected:?}");
    Ok(())
}
