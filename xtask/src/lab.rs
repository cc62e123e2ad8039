//! `cargo xtask lab run`: runs one command in a freshly booted kernel.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kernel::{self, KernelChoice};
use crate::qemu::{self, Ended, Machine};
use crate::{containers, guest, image, packages, paths};

/// Exit codes of the lab itself. A command's own status is passed on unchanged.
pub(crate) const EXIT_KERNEL_FAULT: u8 = 123;
/// The same as timeout(1).
pub(crate) const EXIT_TIMED_OUT: u8 = 124;
pub(crate) const EXIT_LAB_FAILED: u8 = 125;

/// The time limit for getting a kernel and making its image.
pub(crate) const PREPARATION: Duration = Duration::from_secs(1800);

/// The command to run, and its guest.
#[derive(Clone, Debug)]
pub(crate) struct LabRun {
    pub(crate) kernel: KernelChoice,
    /// Files to put in the guest.
    pub(crate) add: Vec<PathBuf>,
    pub(crate) timeout: Duration,
    pub(crate) memory_mb: u32,
    pub(crate) cpus: u32,
    /// Whether the guest has a PCI function with virtual functions.
    pub(crate) sriov: bool,
    /// Whether it has container runtimes, and a root directory for them.
    pub(crate) containers: bool,
    pub(crate) command: Vec<OsString>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The command's exit status; 128 plus the signal's number if a signal ended it.
    Exited(u8),
    /// The kernel oopsed, warned or reported a bug: the command's result does not count.
    KernelFault(String),
    TimedOut(String),
    /// The guest shut down without a report.
    Lost(String),
}

impl Outcome {
    pub(crate) fn exit_code(&self) -> u8 {
        match self.end {
            End::Exited(status) => status,
            End::KernelFault(_) => EXIT_KERNEL_FAULT,
            End::TimedOut(_) => EXIT_TIMED_OUT,
            End::Lost(_) => EXIT_LAB_FAILED,
        }
    }

    /// The problem, unless it is the command's own.
    pub(crate) fn problem(&self) -> Option<&str> {
        match &self.end {
            End::Exited(_) => None,
            End::KernelFault(text) | End::TimedOut(text) | End::Lost(text) => Some(text),
        }
    }
}

/// Runs a command in a guest. Its output goes to our standard output as it arrives.
pub(crate) fn run(run: &LabRun) -> Result<Outcome> {
    let lock = paths::lock()?;
    packages::ensure_tools()?;
    let kernel = kernel::get(&run.kernel)?;
    let bootable = kernel.bootable()?;
    let mut layers = vec![image::base(&kernel)?];
    if run.containers {
        layers.push(containers::layer()?);
    }
    let dir = tempfile::Builder::new()
        .prefix("run-")
        .tempdir_in(paths::lab("runs")?)
        .context("making a directory for this run")?;
    let initramfs = dir.path().join("initramfs");
    // In the guest's time, which on a busy host can run several times too fast.
    let limit = run.timeout.as_secs().saturating_mul(10);
    image::with_overlay(&layers, &initramfs, &guest::programs(), &run.add, &run.command, limit)?;
    drop(lock);

    let machine = Machine {
        kernel: &bootable,
        initramfs: &initramfs,
        dir: dir.path(),
        memory_mb: run.memory_mb,
        cpus: run.cpus,
        sriov: run.sriov,
        timeout: run.timeout,
    };
    let mut ended = qemu::boot(&machine)?;
    for _ in 1..BOOTS {
        let what = match &ended {
            ended if ended.timed_out => break,
            ended if !ended.begun => "died while it booted",
            ended if is_emulators(ended) => "ran into code that was being patched",
            _ => break,
        };
        let log = keep_console(&ended, &kernel.release)?;
        eprintln!("xtask: the guest {what}, see {}: running everything again", log.display());
        ended = qemu::boot(&machine)?;
    }
    Ok(Outcome { end: judge(&ended, run.timeout, &kernel.release)? })
}

/// How many times a guest is booted that dies before its command begins, or because of the emulator.
const BOOTS: usize = 3;

/// Whether the kernel's first fault is QEMU's. Its processors sometimes execute the int3 that another processor has
/// written while it patches a jump (`arch/x86/kernel/alternative.c`), after that int3 is gone again. No real
/// processor does that. It mostly happens at boot, and where soft-RoCE comes and goes (`udp_destroy_sock`) or containers do. A
/// kernel has no other int3 unless it is probed, and nobody does that in the lab.
fn is_emulators(ended: &Ended) -> bool {
    let first = ended.console.lines().find(|line| is_fault(line));
    first.is_some_and(|line| line.contains(INT3))
}

fn judge(ended: &Ended, timeout: Duration, release: &str) -> Result<End> {
    if let Some(fault) = fault(ended) {
        let log = keep_console(ended, release)?;
        return Ok(End::KernelFault(format!(
            "the guest's kernel ({release}) reported a fault (exit code {EXIT_KERNEL_FAULT}); all of its console is in {}\n{fault}",
            log.display(),
        )));
    }
    if ended.timed_out {
        return Ok(End::TimedOut(format!(
            "the guest ({release}) was killed after {} seconds{}",
            timeout.as_secs(),
            tail(&ended.console),
        )));
    }
    Ok(match &ended.report {
        Some(report) => End::Exited(report.status),
        None => End::Lost(format!(
            "the guest ({release}) went down without reporting{}",
            tail(&ended.console),
        )),
    })
}

/// Taints that a fault leaves: bad page, oops, warning, soft lockup.
const FAULT_TAINTS: u64 = 1 << 5 | 1 << 7 | 1 << 9 | 1 << 14;

/// The beginnings of the kernel's reports about its own faults.
const FAULT_MARKS: [&str; 12] = [
    INT3,
    "WARNING: ",
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "general protection fault",
    "Kernel panic",
    "Unable to handle ",
    "cannot create duplicate filename",
    "kobject_add_internal failed",
    "unregister_netdevice: waiting",
    "refcount_t: ",
];

/// The beginning of its report about an unknown int3.
const INT3: &str = "int3: 0000 ";

fn is_fault(line: &str) -> bool {
    FAULT_MARKS.iter().any(|mark| line.contains(mark))
}

/// The part of the console where the kernel's first fault begins.
fn fault(ended: &Ended) -> Option<String> {
    const LINES: usize = 60;
    let lines: Vec<&str> = ended.console.lines().collect();
    if let Some(first) = lines.iter().position(|line| is_fault(line)) {
        // The line before may be the "cut here", or its first half.
        let from = first.saturating_sub(1);
        let to = lines.len().min(from + LINES);
        return Some(lines[from..to].join("\n"));
    }
    let tainted = ended.report.as_ref()?.tainted;
    (tainted & FAULT_TAINTS != 0)
        .then(|| format!("taint flags {tainted:#x}, nothing on the console"))
}

fn tail(console: &str) -> String {
    const LINES: usize = 20;
    let lines: Vec<&str> = console.lines().collect();
    if lines.is_empty() {
        return String::new();
    }
    let from = lines.len().saturating_sub(LINES);
    format!("; the end of its console:\n{}", lines[from..].join("\n"))
}

fn keep_console(ended: &Ended, release: &str) -> Result<PathBuf> {
    let name = format!("console-{release}-{}.log", std::process::id());
    let path = paths::lab("logs")?.join(name);
    fs::write(&path, &ended.console).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Report;

    fn ended(console: &str, tainted: u64) -> Ended {
        Ended {
            timed_out: false,
            begun: true,
            report: Some(Report { status: 0, tainted }),
            console: console.to_owned(),
        }
    }

    #[test]
    fn faults_are_found() {
        // An out-of-tree module without a signature taints with 1 << 12 and 1 << 13.
        assert_eq!(fault(&ended("loading out-of-tree module taints kernel.\n", 0x3000)), None);
        let text =
            "a\n------------[ cut here ]------------\nWARNING: CPU: 0 PID: 1 at x.c:1 f\nb\n";
        let found = fault(&ended(text, 0)).unwrap_or_default();
        assert!(found.starts_with("------------[ cut here"), "{found}");
        assert!(fault(&ended("", 1 << 9)).is_some());
    }

    #[test]
    fn an_int3_is_the_emulators_where_it_comes_first() {
        let (int3, bug) = ("[  4.6] Oops: int3: 0000 [#1] SMP NOPTI\n", "[  4.7] BUG: f\n");
        assert!(is_emulators(&ended(&format!("a\n{int3}{bug}"), 0)));
        assert!(is_emulators(&ended("[  4.6] int3: 0000 [#1] PREEMPT SMP\n", 0)));
        assert!(!is_emulators(&ended(&format!("{bug}{int3}"), 0)));
        assert!(!is_emulators(&ended("", 1 << 7)));
        assert!(fault(&ended(int3, 0)).is_some());
    }
}
