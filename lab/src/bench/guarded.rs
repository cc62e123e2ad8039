//! The cost of the guard: libibverbs in processes with the guard preloaded, in turns with processes without it.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::measure::{Note, Times, in_turns, time};
use super::targets::Findings;
use crate::guest::GUARD;
use crate::ibverbs::{Ibverbs, Lookup};
use crate::spawn;

/// How many processes are measured, of each kind.
const PROCESSES: usize = 5;
/// How often a process opens, and lists.
const OPENS: usize = 200;
const LISTS: usize = 10;
/// How many processes are started that do nothing.
const STARTS: usize = 100;

fn command(program: impl AsRef<std::ffi::OsStr>, is_guarded: bool) -> Command {
    let mut command = Command::new(program);
    if is_guarded {
        command.env("LD_PRELOAD", GUARD);
    }
    command.stdin(Stdio::null());
    command
}

/// The times of an open with its close, and of a list, without and with the guard.
pub(super) fn measure(device: &str, note: Note<'_>) -> Result<()> {
    let (mut opens, mut lists) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..PROCESSES {
        for is_guarded in [false, true] {
            let output = command(spawn::exe()?, is_guarded)
                .args(["role", "guarded-times", device])
                .output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let mut figures =
                text.split_whitespace().map(str::parse).map(|n| n.map(Duration::from_nanos));
            opens[usize::from(is_guarded)].push(figures.next().context("an open")??);
            lists[usize::from(is_guarded)].push(figures.next().context("a list")??);
        }
    }
    for (names, times) in
        [(["plain_open", "guarded_open"], opens), (["plain_list", "guarded_list"], lists)]
    {
        for (name, times) in names.into_iter().zip(times) {
            note(name, &Times::new(times));
        }
    }
    Ok(())
}

/// The role `guarded-times`: prints the medians of an open and of a list, in nanoseconds.
pub(crate) fn role(device: &str) -> Result<()> {
    let ibverbs = Ibverbs::load_as(Lookup::Program)?;
    let list = ibverbs.list()?;
    let listed = list.find(device)?;
    listed.open_and_close()?;
    let [opens] = in_turns(OPENS, [&mut |_| time(|| listed.open_and_close())])?;
    let [lists] = in_turns(LISTS, [&mut |_| time(|| ibverbs.list().map(drop))])?;
    let nanoseconds = |times: &Times| (times.median() * 1000.0) as u64;
    println!("{} {}", nanoseconds(&opens), nanoseconds(&lists));
    Ok(())
}

/// What the guard adds to the start of any program: its time, its memory and its file.
pub(super) fn start(findings: &mut Findings, note: Note<'_>) -> Result<()> {
    // A program that has nothing to do with RDMA.
    let run = |is_guarded| {
        time(|| {
            let mut command = command("ip", is_guarded);
            let status = command.arg("-V").stdout(Stdio::null()).status()?;
            ensure!(status.success(), "{status}");
            Ok(())
        })
    };
    run(true)?;
    let [plain, guarded] = in_turns(STARTS, [&mut |_| run(false), &mut |_| run(true)])?;
    note("start_plain", &plain);
    note("start_guarded", &guarded);
    // Private and resident. It includes code that no other process has mapped at the moment.
    let memory = |is_guarded| -> Result<usize> {
        let output = command(spawn::exe()?, is_guarded).args(["role", "own-memory"]).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().parse()?)
    };
    let (plain, guarded) = (memory(false)?, memory(true)?);
    findings.count(1, "guard_memory_kib", guarded.saturating_sub(plain));
    findings.count(1, "guard_file_kib", (fs::metadata(GUARD)?.len() / 1024) as usize);
    Ok(())
}

/// The role `own-memory`: prints this process's private resident memory, in KiB.
pub(crate) fn memory_role() -> Result<()> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")?;
    let own = text.lines().filter(|line| line.starts_with("Private_"));
    let own = own.filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    println!("{}", own.sum::<usize>());
    Ok(())
}
