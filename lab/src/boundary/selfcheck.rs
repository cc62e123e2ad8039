//! Whether the runner itself sees what it is there to see: programs that die, hang, or make their
//! system calls on another thread.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::trace::{Point, mark, stop, trace_me};
use super::{judge, program, trace};

/// A program: what it does between the marks.
type Does = fn();

/// The call that tells the thread from others; no program of the table makes it.
fn known_call() {
    let _ = rustix::process::getppid();
}

fn run(does: Does, at: &[Point], meanwhile: impl FnMut(usize) -> Result<()>) -> Result<trace::Run> {
    let process = program::start(|mut say| {
        trace_me()?;
        mark();
        does();
        mark();
        std::io::Write::write_all(&mut say, b"refused nothing")?;
        stop();
        Ok(())
    })?;
    trace::run(process, at, Duration::from_secs(2), meanwhile)
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
        let mut run = run(does, &[], |_| Ok(()))?;
        let lost = judge::said(&run.end).err().context("it came to its end")?;
        ensure!(lost.starts_with(expected), "expected {expected:?}, found {lost:?}");
        println!("    {lost}");
        run.process.kill(Duration::from_secs(5))?;
    }
    on_another_thread()
}

/// Each call of a short-lived thread is a boundary, and the thread waits there.
fn on_another_thread() -> Result<()> {
    let does = || {
        let _ = std::thread::spawn(known_call).join();
    };
    let undisturbed = run(does, &[], |_| Ok(()))?;
    ensure!(judge::said(&undisturbed.end) == Ok("refused nothing") && undisturbed.threads == 2);
    let name = format!("call {}", libc::SYS_getppid);
    ensure!(undisturbed.calls.contains(&name), "{:?}", undisturbed.calls);
    let mut stopped = 0;
    let mut found = false;
    // The order of two threads' calls is not always the same.
    for at in (0..undisturbed.calls.len()).cycle().take(3 * undisturbed.calls.len()) {
        let mut here = false;
        let run = run(does, &[Point::Call(at)], |_| {
            here = true;
            Ok(())
        })?;
        ensure!(judge::said(&run.end) == Ok("refused nothing") && (run.reached == 1) == here);
        stopped += usize::from(here);
        found = here && run.calls.last() == Some(&name);
        if found {
            break;
        }
    }
    println!("    stopped at {stopped} calls of two threads");
    ensure!(found, "never stopped at the call of the other thread");
    Ok(())
}
