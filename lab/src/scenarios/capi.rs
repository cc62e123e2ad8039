//! The examples of the C interface, as they are and with AddressSanitizer, which also reports leaks.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest;

/// Of each example there is one with AddressSanitizer.
const BUILDS: [&str; 2] = ["", "-asan"];

/// An example. At its exit no object may be left, so what old stack frames point to counts as lost, too.
fn example(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).env("LSAN_OPTIONS", "use_stacks=0:use_registers=0");
    command
}

/// Runs an example that has to succeed. Returns what it prints.
fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = example(program, args).output().with_context(|| format!("starting {program}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {}: {messages}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A device of the test HCA.
fn add() -> Result<()> {
    // The shadow memory of older sanitizers has no place where addresses are more random.
    let _ = fs::write("/proc/sys/vm/mmap_rnd_bits", "28");
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")
}

fn replace(guid: u8) -> Result<()> {
    guest::hca("del-sync name=tst")?;
    guest::hca(&format!("add name=tst guid={guid:016x} disassociate=1"))
}

/// A running example that has listed the devices and waits for a line.
struct Listed {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Listed {
    fn start(program: &str, args: &[&str]) -> Result<Self> {
        let mut command = example(program, args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {program}"))?;
        let output = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, output })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Sends it the line. Returns its exit status and everything that it prints.
    fn finish(mut self) -> Result<(Option<i32>, String)> {
        self.child.stdin.take().context("stdin")?.write_all(b"\n")?;
        let mut printed = String::new();
        self.output.read_to_string(&mut printed)?;
        self.child.stderr.take().context("stderr")?.read_to_string(&mut printed)?;
        let status = guest::wait(&mut self.child, Duration::from_secs(30))?;
        Ok((status.code(), printed))
    }
}

pub(super) fn lists() -> Result<()> {
    for build in BUILDS {
        let list = format!("capi-list{build}");
        ensure!(run(&list, &[])?.is_empty());
    }
    guest::add_rxe("rxe0", "d0")?;
    add()?;
    let listed: Value = serde_json::from_str(&guest::stdout("uverbs", &["list", "--json"])?)?;
    let text = |device: &Value, key: &str| device[key].as_str().unwrap_or_default().to_owned();
    let expected: String = listed["devices"]
        .as_array()
        .context("devices")?
        .iter()
        .map(|device| {
            let [name, node, driver, guid] =
                ["name", "uverbs", "driver", "node_guid"].map(|key| text(device, key));
            let index = &device["index"];
            let pci = device["parent"]["pci"].as_str().map(|pci| format!(" PCI {pci}"));
            let pci = pci.unwrap_or_default();
            format!("{name} ({node}) index {index} driver {driver} node GUID {guid}{pci}\n")
        })
        .collect();
    ensure!(expected.lines().count() == 2, "{expected}");
    for build in BUILDS {
        let found = run(&format!("capi-list{build}"), &[])?;
        ensure!(found == expected, "expected:\n{expected}found:\n{found}");
    }
    // The control: what is not dropped is reported.
    let output = example("capi-leaks-asan", &[]).output()?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && messages.contains("detected memory leaks"), "{messages}");
    Ok(())
}

pub(super) fn opens() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    add()?;
    for build in BUILDS {
        for name in ["rxe0", "tst"] {
            let printed = run(&format!("capi-open{build}"), &[name])?;
            ensure!(printed.lines().any(|line| line.starts_with("proved: ")), "{printed}");
            ensure!(printed.contains("prove: ") && !printed.contains("WRONG"), "{printed}");
            ensure!(printed.contains("1 ports\nport 1: state "), "{printed}");
        }
        let printed = run(&format!("capi-open{build}"), &["tst"])?;
        ensure!(printed.contains("node GUID 0000:0000:0000:00a0"), "{printed}");
    }
    ensure!(guest::hca_value("tst", "contexts")? == "0", "{}", guest::hca_state()?);
    Ok(())
}

pub(super) fn refuses() -> Result<()> {
    for build in BUILDS {
        for guid in [0xa0, 0xb0] {
            add()?;
            let mut open = Listed::start(&format!("capi-open{build}"), &["tst", "wait"])?;
            let line = open.line()?;
            ensure!(line == "listed", "{line}");
            replace(guid)?;
            let (status, printed) = open.finish()?;
            ensure!(status == Some(1), "{status:?}: {printed}");
            ensure!(printed.contains("tst (uverbs0): replaced by another device"), "{printed}");
            ensure!(printed.contains("WRONG"), "no evidence: {printed}");
            ensure!(guest::hca_value("tst", "allocs")? == "0", "{}", guest::hca_state()?);
            guest::hca("del-sync name=tst")?;
        }
    }
    Ok(())
}

pub(super) fn verifies() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    for build in BUILDS {
        let verify = format!("capi-verify{build}");
        ensure!(run(&verify, &["rxe0"])?.starts_with("proved: node GUID "));
        add()?;
        let printed = run(&verify, &["tst"])?;
        ensure!(printed == "proved: node GUID 0000:0000:0000:00a0\n", "{printed}");
        for guid in [0xa0, 0xb0] {
            let mut caller = Listed::start(&verify, &["tst", "wait"])?;
            let line = caller.line()?;
            ensure!(line == "listed", "{line}");
            replace(guid)?;
            let (status, printed) = caller.finish()?;
            ensure!(status == Some(1), "{status:?}: {printed}");
            // libibverbs opens the replacement, and the descriptor is closed again.
            let errno = rustix::io::Errno::NODEV.raw_os_error();
            ensure!(printed.contains(&format!("[handle] (errno {errno})")), "{printed}");
            ensure!(guest::hca_value("tst", "allocs")? != "0", "nothing was opened");
            ensure!(guest::hca_value("tst", "contexts")? == "0", "{}", guest::hca_state()?);
        }
        guest::hca("del-sync name=tst")?;
    }
    Ok(())
}

pub(super) fn watches() -> Result<()> {
    guest::add_rxe("rxe0", "d0")?;
    for build in BUILDS {
        let mut watch = Listed::start(&format!("capi-watch{build}"), &["6"])?;
        let mut expect = |expected: &str| -> Result<()> {
            let line = watch.line()?;
            ensure!(line == expected, "expected {expected:?}, found {line:?}");
            Ok(())
        };
        expect("rxe0 (uverbs0): added")?;
        expect("rxe0 (uverbs0): ready")?;
        add()?;
        expect("tst (uverbs1): added")?;
        expect("tst (uverbs1): ready")?;
        guest::rename("tst", "other")?;
        expect("uverbs1: renamed from tst to other")?;
        // The test HCA keeps the name that it gave.
        guest::hca("del-sync name=tst")?;
        expect("other (uverbs1): removed")?;
        let (status, printed) = watch.finish()?;
        ensure!(status == Some(0) && printed.is_empty(), "{status:?}: {printed}");
    }
    Ok(())
}

/// After a reload of ib_core a device has the index, the name, the number and the GUID of one before it. Only the epoch
/// shows that it is another one.
pub(super) fn core_reloaded() -> Result<()> {
    guest::reload(true)?;
    guest::add_rxe("rxe0", "d0")?;
    let mut caller = Listed::start("capi-verify", &["rxe0", "wait"])?;
    let line = caller.line()?;
    ensure!(line == "listed", "{line}");
    let before = guest::stdout("capi-list", &[])?;
    guest::delete_rxe("rxe0")?;
    guest::reload(true)?;
    guest::add_rxe("rxe0", "d0")?;
    let after = guest::stdout("capi-list", &[])?;
    ensure!(before == after, "before:\n{before}after:\n{after}");
    let (status, printed) = caller.finish()?;
    ensure!(status == Some(1), "{status:?}: {printed}");
    ensure!(printed.contains("ib_core was reloaded since the devices were listed"), "{printed}");
    ensure!(guest::stdout("capi-verify", &["rxe0"])?.starts_with("proved: "));
    Ok(())
}
