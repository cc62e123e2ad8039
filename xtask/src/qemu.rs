//! One guest under QEMU: starts it, passes its output on, and limits its time.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::tools;

/// The kernel's parameters. An oops ends the guest at once. The console has warnings and worse, for the log.
/// Watchdogs are off, because an emulated guest on a busy host is slow, not stuck.
const PARAMETERS: &str = "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic nowatchdog \
    rcupdate.rcu_cpu_stall_suppress=1 sysctl.kernel.hung_task_timeout_secs=0 \
    mitigations=off no5lvl nokaslr random.trust_cpu=on tsc=reliable";

/// The parts of a guest.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    /// A directory for this run only.
    pub(crate) dir: &'a Path,
    pub(crate) memory_mb: u32,
    pub(crate) cpus: u32,
    /// Whether it has a PCI function with virtual functions.
    pub(crate) sriov: bool,
    pub(crate) timeout: Duration,
}

/// How a guest ended, as seen from outside.
pub(crate) struct Ended {
    pub(crate) timed_out: bool,
    /// Whether the guest started its command.
    pub(crate) begun: bool,
    /// The guest's report after its command had ended.
    pub(crate) report: Option<Report>,
    /// The kernel's warnings and worse.
    pub(crate) console: String,
}

/// The guest's own report.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) status: u8,
    /// The kernel's taint flags.
    pub(crate) tainted: u64,
}

/// What the guest writes when it starts its command.
const BEGUN: &str = "begun\n";

impl Report {
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_prefix(BEGUN)?.lines().next()?.split(' ');
        let status = words.next()?.strip_prefix("exit=")?.parse().ok()?;
        let tainted = words.next()?.strip_prefix("tainted=")?.parse().ok()?;
        Some(Self { status, tainted })
    }
}

/// Boots the machine and waits for its end.
pub(crate) fn boot(machine: &Machine<'_>) -> Result<Ended> {
    let console = machine.dir.join("console.log");
    let control = machine.dir.join("control");
    let mut child = command(machine, &console, &control)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting qemu-system-x86_64")?;
    let output = child.stdout.take().ok_or_else(|| anyhow!("no pipe from qemu-system-x86_64"))?;
    let copier = thread::spawn(move || copy(output));
    let timed_out = wait(&mut child, machine.timeout)?;
    let _ = copier.join();
    let lossy =
        |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let control = lossy(&control).unwrap_or_default();
    Ok(Ended {
        timed_out,
        begun: control.starts_with(BEGUN),
        report: Report::parse(&control),
        console: lossy(&console).unwrap_or_default(),
    })
}

fn command(machine: &Machine<'_>, console: &Path, control: &Path) -> Command {
    // Through setpriv, so that the guest does not outlive this program, however it ends.
    let mut command = match tools::find("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
            command
        }
        None => tools::command("qemu-system-x86_64"),
    };
    command.stdin(Stdio::null());
    command
        .args(["-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
        .args(["-smp", &machine.cpus.to_string()])
        .args(["-m", &machine.memory_mb.to_string()])
        .arg("-serial")
        .arg(join("file:", console))
        .args(["-device", "virtio-serial-pci"])
        // Not `stdio`, which hangs up when its input ends.
        .args(["-chardev", "file,id=output,path=/dev/fd/1"])
        .args(["-device", "virtserialport,chardev=output,name=lab.output"])
        .arg("-chardev")
        .arg(join("file,id=control,path=", control))
        .args(["-device", "virtserialport,chardev=control,name=lab.control"])
        .arg("-kernel")
        .arg(machine.kernel)
        .arg("-initrd")
        .arg(machine.initramfs)
        .args(["-append", PARAMETERS]);
    if machine.sriov {
        command.args(sriov(machine));
    }
    command
}

/// How many virtual functions the physical function has.
const VFS: u32 = 64;

/// The options for a physical function, 0000:3b:00.0, beneath a host bridge of the second of two NUMA nodes. It is an
/// NVMe controller, because QEMU's has virtual functions. No driver of that kind is in
/// the guest: the test HCA takes the functions. Each virtual function needs two queues and an interrupt vector, and
/// the controller two queues and a vector of its own.
fn sriov(machine: &Machine<'_>) -> Vec<String> {
    let half = machine.memory_mb / 2;
    let rest = machine.memory_mb - half;
    let last = machine.cpus.saturating_sub(1);
    let (queues, pairs, vectors) = (2 * VFS, 2 * VFS + 2, VFS + 1);
    let nvme = format!(
        "nvme,serial=pf,subsys=subsystem,bus=root0,max_ioqpairs={pairs},msix_qsize={vectors},\
         sriov_max_vfs={VFS},sriov_vq_flexible={queues},sriov_vi_flexible={VFS}"
    );
    [
        ("-object", format!("memory-backend-ram,id=memory0,size={half}M")),
        ("-object", format!("memory-backend-ram,id=memory1,size={rest}M")),
        ("-numa", format!("node,nodeid=0,memdev=memory0,cpus=0-{last}")),
        ("-numa", "node,nodeid=1,memdev=memory1".to_owned()),
        ("-device", "pxb-pcie,id=bridge,bus_nr=58,bus=pcie.0,numa_node=1".to_owned()),
        ("-device", "pcie-root-port,id=root0,bus=bridge,chassis=1,slot=1".to_owned()),
        ("-device", "nvme-subsys,id=subsystem".to_owned()),
        ("-device", nvme),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .collect()
}

fn join(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

/// Passes the guest's output on as it arrives. If nobody reads ours any more, the guest's is read nevertheless.
fn copy(mut from: impl Read) {
    let mut buffer = vec![0; 65536];
    let mut to = Some(io::stdout());
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => {
                let written = to
                    .as_mut()
                    .map(|out| out.write_all(&buffer[..length]).and_then(|()| out.flush()));
                if let Some(Err(_)) = written {
                    to = None;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
}

/// Waits for the end, or kills the guest when the time is over. Returns whether it did.
fn wait(child: &mut Child, timeout: Duration) -> Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        if child.try_wait()?.is_some() {
            return Ok(false);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports() {
        let report = Report::parse("begun\nexit=3 tainted=4096\n");
        assert_eq!(report, Some(Report { status: 3, tainted: 4096 }));
        assert_eq!(Report::parse(""), None);
        assert_eq!(Report::parse("begun\n"), None);
        assert_eq!(Report::parse("begun\nexit=3"), None);
        assert_eq!(Report::parse("exit=3 tainted=4096\n"), None);
    }
}
