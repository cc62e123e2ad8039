//! `uverbs cdi`, `uverbs hook` and `uverbs open --expect-env` with real runtimes and real virtual functions.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use uverbs::Guid;

use crate::container::{CDI_DIRECTORY, Container, Output, Runtime};
use crate::functions::PF;
use crate::syslog::Syslog;
use crate::{functions, guest};

const KIND: &str = "uverbs/device";
const FILE: &str = "/var/run/cdi/uverbs-device.json";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A virtual function that a container is given, and one that takes its number.
struct Pair {
    first: String,
    second: String,
}

impl Pair {
    /// The first is bound, the second is not. The CDI file is written for both, and for the physical one.
    fn make(options: &[&str]) -> Result<Self> {
        functions::make(2)?;
        let (first, second) = (functions::virtual_function(0)?, functions::virtual_function(1)?);
        functions::bind(&first)?;
        let pair = Self { first, second };
        pair.write(options)?;
        Ok(pair)
    }

    fn write(&self, options: &[&str]) -> Result<()> {
        guest::run("uverbs", &[&["cdi", "--dir", CDI_DIRECTORY], options].concat())?;
        Ok(())
    }

    /// The second takes the number of the first.
    fn swap(&self) -> Result<()> {
        functions::swap(&self.first, &self.second)
    }

    /// The first is bound again, and has its number again.
    fn rebind(&self) -> Result<()> {
        let before = functions::verbs(&self.first)?;
        functions::unbind(&self.first)?;
        functions::bind(&self.first)?;
        let after = functions::verbs(&self.first)?;
        ensure!(after == before, "{after:?} is not {before:?} again");
        Ok(())
    }

    /// A container that is given the first function, and opens what it was given.
    fn container(&self, runtime: Runtime) -> Container {
        let container = Container::new(runtime, &["uverbs", "open", "--json", "--expect-env"]);
        Container { cdi: vec![format!("{KIND}={}", self.first)], ..container }
    }

    fn end(&self) -> Result<()> {
        functions::release_all()?;
        fs::remove_file(FILE).context(FILE)
    }
}

/// Requires that the container opened and proved the device of a function.
fn opened(output: &Output, address: &str) -> Result<()> {
    let open: Value = serde_json::from_str(output.success()?)?;
    let guid = Guid(functions::guid(address)?).to_string();
    ensure!(open["proven"] == true && open["attributes"]["node_guid"] == *guid, "{open}");
    Ok(())
}

/// Requires that the hook refused the container, in one line of syslog that has these words.
fn refused(syslog: &Syslog, runtime: Runtime, output: &Output, words: &[&str]) -> Result<()> {
    let messages = syslog.messages()?;
    ensure!(output.status != Some(0) && output.stdout.is_empty(), "{output:?}, {messages:?}");
    let lines: Vec<_> = messages.iter().filter(|line| line.contains("uverbs-hook[")).collect();
    let [line] = lines[..] else {
        anyhow::bail!("not one line of the hook: {messages:?}, {output:?}");
    };
    ensure!(line.starts_with("<27>uverbs-hook[") && line.contains("is refused: "), "{line}");
    for words in words {
        ensure!(line.contains(words), "{words:?} is not in {line}");
    }
    // runc shows what a hook prints; crun discards it.
    ensure!(runtime != Runtime::Runc || output.stderr.contains("is refused: "), "{output:?}");
    println!("    {runtime:?}: {line}");
    Ok(())
}

fn each(what: &str, run: impl Fn(Runtime) -> Result<()>) -> Result<()> {
    for runtime in Runtime::ALL {
        let began = Instant::now();
        run(runtime).with_context(|| format!("{runtime:?}, {what}"))?;
        println!("    {runtime:?}, {what}: {:.1?}", began.elapsed());
    }
    Ok(())
}

/// A container gets the function of an address, whatever number it has; and with the next function under its number, it
/// is refused.
pub(super) fn given_or_refused() -> Result<()> {
    let syslog = Syslog::start()?;
    each("the function that was given", |runtime| {
        guest::run("modprobe", &["rdma_ucm"])?;
        let pair = Pair::make(&["--all"])?;
        let file = fs::read_to_string(FILE)?;
        ensure!(file.contains("\"rdma_cm=10:"), "{file}");
        opened(&pair.container(runtime).run()?, &pair.first)?;
        let mapped = Container { user_namespace: true, seccomp: true, ..pair.container(runtime) };
        opened(&mapped.run().context("user namespace")?, &pair.first)?;
        let messages = syslog.messages()?;
        ensure!(messages.iter().all(|line| !line.contains("uverbs-hook")), "{messages:?}");
        pair.end()
    })?;
    each("another function under the number", |runtime| {
        let pair = Pair::make(&["--all"])?;
        let prepared = pair.container(runtime).prepare()?;
        pair.swap()?;
        let words =
            [&*format!("expected pci {}", pair.first), &format!("found pci {}", pair.second)];
        refused(&syslog, runtime, &prepared.run()?, &words)?;
        pair.end()
    })?;
    // The function is there, and a number that was fixed at the creation leads nowhere.
    each("a node of a module that was unloaded", |runtime| {
        guest::run("modprobe", &["rdma_ucm"])?;
        let pair = Pair::make(&["--all"])?;
        opened(&pair.container(runtime).run()?, &pair.first)?;
        let prepared = pair.container(runtime).prepare()?;
        guest::run("rmmod", &["rdma_ucm"])?;
        let output = prepared.run()?;
        match runtime {
            // It reads the file at the start, and looks for the node first.
            Runtime::Podman => {
                let is_refused = output.status != Some(0) && output.stderr.contains("rdma_cm");
                ensure!(is_refused, "{output:?}");
            }
            Runtime::Crun | Runtime::Runc => {
                let words = ["expected rdma_cm as 10:", "found no rdma_cm"];
                refused(&syslog, runtime, &output, &words)?;
            }
        }
        pair.end()
    })?;
    // Both functions are there, under other numbers, and the file has been written again.
    each("a file that was updated before the start", |runtime| {
        let pair = Pair::make(&["--all"])?;
        let prepared = pair.container(runtime).prepare()?;
        pair.swap()?;
        functions::bind(&pair.first)?;
        pair.write(&["--all"])?;
        let output = prepared.run()?;
        match runtime {
            Runtime::Podman => opened(&output, &pair.first)?,
            Runtime::Crun | Runtime::Runc => {
                let words = [&*format!("expected pci {}", pair.first), " now has uverbs"];
                refused(&syslog, runtime, &output, &words)?;
            }
        }
        pair.end()
    })
}

/// Without the hook, the container starts with the other function: a program that does not check opens it, and one that
/// checks what it was given does not.
pub(super) fn control() -> Result<()> {
    each("no hook", |runtime| {
        let pair = Pair::make(&["--no-hook"])?;
        let name = functions::verbs(&pair.first)?.name;
        let command = ["uverbs", "open", "--json", &*name].map(str::to_owned).to_vec();
        let blind = Container { command, ..pair.container(runtime) }.prepare()?;
        let checks = pair.container(runtime).prepare()?;
        pair.swap()?;
        opened(&blind.run()?, &pair.second)?;
        let output = checks.run()?;
        let open: Value = serde_json::from_str(&output.stdout)?;
        ensure!(output.status == Some(1) && open["error"]["kind"] == "not_expected", "{output:?}");
        let message = open["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains(&pair.first) && message.contains(&pair.second), "{message}");
        pair.end()
    })
}

/// A function that was bound again passes by default, and is refused where the instance was to be checked.
pub(super) fn rebound() -> Result<()> {
    let syslog = Syslog::start()?;
    each("bound again", |runtime| {
        let pair = Pair::make(&["--with-guid"])?;
        let prepared = pair.container(runtime).prepare()?;
        pair.rebind()?;
        opened(&prepared.run()?, &pair.first)?;
        pair.write(&["--with-guid", "--with-instance"])?;
        opened(&pair.container(runtime).run()?, &pair.first)?;
        let prepared = pair.container(runtime).prepare()?;
        pair.rebind()?;
        refused(&syslog, runtime, &prepared.run()?, &["expected inode ", "found inode "])?;
        pair.end()
    })
}

/// After a reboot, an instance is of another boot, even if its inode number is the same.
pub(super) fn rebooted() -> Result<()> {
    let syslog = Syslog::start()?;
    fs::write("/tmp/boot_id", "11111111-2222-4333-8444-555555555555\n")?;
    each("another boot", |runtime| {
        let pair = Pair::make(&["--with-instance"])?;
        let prepared = pair.container(runtime).prepare()?;
        guest::run("mount", &["--bind", "/tmp/boot_id", BOOT_ID])?;
        let output = prepared.run();
        guest::run("umount", &[BOOT_ID])?;
        let words = ["expected boot ", "found boot 11111111-2222-4333-8444-555555555555"];
        refused(&syslog, runtime, &output?, &words)?;
        pair.end()
    })
}

/// `uverbs cdi --watch`, which is killed if a scenario fails before its end.
struct Watch(Child);

impl Watch {
    const LOG: &'static str = "/tmp/cdi-watch";

    fn start() -> Result<Self> {
        // The command makes the last directory alone. A guest without runtimes has no /var/run.
        fs::create_dir_all(Path::new(CDI_DIRECTORY).parent().context("no directory")?)?;
        let child = Command::new("uverbs")
            .args(["cdi", "--watch", "--dir", CDI_DIRECTORY])
            .stderr(fs::File::create(Self::LOG)?)
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    /// How often it has written the file.
    fn writes() -> Result<usize> {
        Ok(fs::read_to_string(Self::LOG)?.matches("uverbs: wrote ").count())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The names of the devices in the file; none without a file.
fn in_file() -> Vec<String> {
    let Ok(text) = fs::read(FILE) else { return Vec::new() };
    let file: Value = serde_json::from_slice(&text).unwrap_or_default();
    let devices = file["devices"].as_array().cloned().unwrap_or_default();
    devices.iter().filter_map(|device| Some(device["name"].as_str()?.to_owned())).collect()
}

fn until_file(what: &str, expected: &[String]) -> Result<()> {
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let expected = sorted(expected.to_vec());
    guest::until(what, || sorted(in_file()) == expected)
        .with_context(|| format!("{:?}, {:?}", in_file(), fs::read_to_string(Watch::LOG)))
}

/// 64 functions at once are one write, and the file is right then. So is their removal.
pub(super) fn burst() -> Result<()> {
    functions::bind(PF)?;
    let mut watch = Watch::start()?;
    until_file("the physical function", &[PF.to_owned()])?;
    let before = Watch::writes()?;
    let began = Instant::now();
    functions::make_bound(functions::TOTAL)?;
    let made = began.elapsed();
    let addresses = functions::virtual_functions()?;
    ensure!(addresses.len() == 64, "{addresses:?}");
    let all: Vec<_> = addresses.iter().cloned().chain([PF.to_owned()]).collect();
    until_file("64 virtual functions", &all)?;
    println!("    64 functions in {made:.1?}, in the file after {:.1?}", began.elapsed());
    ensure!(Watch::writes()? == before + 1, "{}", fs::read_to_string(Watch::LOG)?);

    functions::set(PF, "sriov_numvfs", "0")?;
    until_file("no virtual function", &[PF.to_owned()])?;
    ensure!(Watch::writes()? == before + 2, "{}", fs::read_to_string(Watch::LOG)?);
    functions::unbind(PF)?;
    guest::until("no file", || !Path::new(FILE).exists())?;
    functions::bind(PF)?;
    until_file("the physical function again", &[PF.to_owned()])?;

    kill_process(Pid::from_child(&watch.0), Signal::TERM)?;
    let status = guest::wait(&mut watch.0, Duration::from_secs(10))?;
    ensure!(status.success() && !Path::new(FILE).exists(), "{status}");
    Ok(())
}
