//! `uverbs check` as a probe: devices that hang, exit statuses, metrics.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{container, guest};

/// Runs `uverbs check` and requires an exit status.
fn check(args: &[&str], status: i32) -> Result<Output> {
    let output = Command::new("uverbs").arg("check").args(args).output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(status), "{args:?}: {}: {printed}", output.status);
    Ok(output)
}

fn json(args: &[&str], status: i32) -> Result<Value> {
    let args: Vec<_> = ["--json"].iter().chain(args).copied().collect();
    Ok(serde_json::from_slice(&check(&args, status)?.stdout)?)
}

/// The message of the only finding.
fn finding(json: &Value) -> Result<&str> {
    let findings = json["findings"].as_array().context("no findings")?;
    ensure!(findings.len() == 1, "{json}");
    findings[0]["message"].as_str().context("no message")
}

/// Each exit status, and what decides it.
pub(super) fn statuses() -> Result<()> {
    check(&["--expect", "0"], 0)?;
    guest::hca("add name=a guid=00000000000000a0")?;
    guest::hca("add name=b guid=00000000000000b0")?;
    check(&["--expect", "2", "--open", "--fail-on", "warning"], 0)?;
    let counted = json(&["--expect", "3"], 1)?;
    ensure!(finding(&counted)?.contains("2 with a node"), "{counted}");
    check(&["--device", "name=a", "--device", "guid=00000000000000b0", "--open"], 0)?;
    ensure!(finding(&json(&["--device", "name=c"], 1)?)?.contains("no device matches"));
    check(&["--device", "nme=a"], 2)?;

    // A node without a device is a warning.
    guest::mknod("/dev/infiniband/uverbs9", (231, 201))?;
    check(&[], 0)?;
    check(&["--fail-on", "warning"], 4)?;
    // It is nothing to somebody who asks for a device.
    check(&["--device", "name=a", "--fail-on", "warning"], 0)?;
    fs::remove_file("/dev/infiniband/uverbs9")?;

    // A device that was asked for has to have its node.
    fs::remove_file("/dev/infiniband/uverbs1")?;
    check(&["--device", "name=a", "--open"], 0)?;
    check(&["--device", "name=b"], 1)?;
    check(&["--textfile", "/no/such/directory/uverbs.prom", "--device", "name=a"], 5)?;
    Ok(())
}

/// A driver that does not return from allocating a context, but can be killed.
pub(super) fn hangs() -> Result<()> {
    guest::hca("add name=slow guid=00000000000000a0 delay_ms=60000")?;
    guest::hca("add name=good guid=00000000000000b0")?;
    let started = Instant::now();
    let found = json(&["--open", "--timeout", "2"], 1)?;
    let took = started.elapsed();
    ensure!(took < Duration::from_secs(20), "it took {took:?}");
    let message = finding(&found)?;
    ensure!(message.contains("opening it took longer than 2 s"), "{message}");
    ensure!(message.contains("was killed") && !message.contains("left behind"), "{message}");
    let (slow, good) = (&found["opens"][0], &found["opens"][1]);
    ensure!(slow["error"]["kind"] == "timeout" && good["proven"] == true, "{found}");
    ensure!(workers()?.is_empty(), "a child is left");

    // Nor is one left when the check itself is killed.
    let mut killed = Command::new("uverbs").args(["check", "--open", "--timeout", "60"]).spawn()?;
    until_in_driver(&mut killed)?;
    killed.kill()?;
    killed.wait()?;
    guest::until("the child to end", || workers().is_ok_and(|workers| workers.is_empty()))?;
    guest::hca("set name=slow delay_ms=0")?;
    check(&["--open"], 0).map(drop)
}

/// A child that SIGKILL does not end, held by the freezer of cgroup v1: it is left behind once, reported as long as it
/// is there, and in nobody's way afterwards.
pub(super) fn left_behind() -> Result<()> {
    beside_freezer(frozen)
}

/// A child of another user that was left behind shows nothing of the device: this user finds out.
pub(super) fn left_behind_by_another_user() -> Result<()> {
    beside_freezer(frozen_of_user)
}

fn beside_freezer(scenario: fn(&Path) -> Result<()>) -> Result<()> {
    let freezer = Path::new("/tmp/freezer");
    fs::create_dir_all(freezer)?;
    let mount = ["-t", "cgroup", "-o", "freezer", "freezer", "/tmp/freezer"];
    guest::run("mount", &mount)?;
    let done = with_freezer(freezer, scenario);
    guest::run("umount", &["/tmp/freezer"])?;
    done
}

fn with_freezer(freezer: &Path, scenario: fn(&Path) -> Result<()>) -> Result<()> {
    let cold = freezer.join("cold");
    fs::create_dir(&cold)?;
    let done = scenario(&cold);
    // Whatever happened, nothing stays frozen.
    fs::write(cold.join("freezer.state"), "THAWED")?;
    guest::until("the processes to end", || {
        fs::read_to_string(cold.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty())
    })?;
    fs::remove_dir(&cold)?;
    done
}

fn frozen(cold: &Path) -> Result<()> {
    guest::hca("add name=hung guid=00000000000000a0 delay_ms=60000")?;
    guest::hca("add name=good guid=00000000000000b0")?;
    let args = ["check", "--json", "--open", "--timeout", "3"];
    let mut first = Command::new("uverbs").args(args).stdout(Stdio::piped()).spawn()?;
    let worker = frozen_worker(&mut first, cold)?;
    let output = first.wait_with_output()?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(output.status.code() == Some(1), "{found}");
    let message = finding(&found)?;
    ensure!(
        message.contains(&format!("process {worker} was killed and has not ended")),
        "{message}"
    );
    ensure!(found["opens"][1]["proven"] == true, "{found}");
    ensure!(workers()? == [worker], "{:?}", workers()?);

    // Each later check sees it, returns soon, and adds none.
    for args in
        [&["--open"][..], &["--device", "name=hung", "--open"], &["--textfile", "/tmp/x.prom"]]
    {
        let started = Instant::now();
        let found = json(args, 1)?;
        ensure!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        let message = finding(&found)?;
        let words = format!("an earlier probe still hangs: process {worker} was killed");
        ensure!(message.contains(&words), "{message}");
        ensure!(workers()? == [worker], "{:?}", workers()?);
    }
    // Without --open nothing touches the device.
    check(&[], 0)?;

    // The next device of that name and number has a lock of its own.
    guest::hca("set name=hung delay_ms=0")?;
    guest::hca("del-sync name=hung")?;
    guest::hca("add name=next guid=00000000000000a0")?;
    guest::until_uverbs("uverbs0", true)?;
    check(&["--device", "name=next", "--open"], 0).map(drop)
}

fn frozen_of_user(cold: &Path) -> Result<()> {
    const USER: u32 = 1000;
    guest::hca("add name=hung guid=00000000000000a0 delay_ms=60000")?;
    let args = ["check", "--open", "--timeout", "2"];
    let theirs = || {
        let mut command = Command::new("uverbs");
        command.args(args).uid(USER).gid(USER).stdout(Stdio::piped());
        command
    };
    let mut first = theirs().spawn()?;
    let worker = frozen_worker(&mut first, cold)?;
    first.wait()?;
    ensure!(workers()? == [worker], "{:?}", workers()?);

    let found = json(&["--open", "--timeout", "2"], 1)?;
    let message = finding(&found)?;
    ensure!(message.contains("opening it took longer than 2 s"), "{message}");
    ensure!(workers()? == [worker], "{:?}", workers()?);

    // That user's next check sees it.
    let output = theirs().output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let words = format!("an earlier probe still hangs: process {worker} was killed");
    ensure!(output.status.code() == Some(1) && printed.contains(&words), "{printed}");
    ensure!(workers()? == [worker], "{:?}", workers()?);
    Ok(())
}

/// Two checks at once of a device that is slow, and answers within the time.
pub(super) fn at_once() -> Result<()> {
    guest::hca("add name=slow guid=00000000000000a0 delay_ms=3000")?;
    let start = || {
        let mut command = Command::new("uverbs");
        command.args(["check", "--open", "--timeout", "60"]).stdout(Stdio::piped()).spawn()
    };
    for check in [start()?, start()?] {
        let output = check.wait_with_output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {printed}", output.status);
    }
    Ok(())
}

/// The worker of a check once it is in the driver, moved into a frozen cgroup.
fn frozen_worker(check: &mut Child, cold: &Path) -> Result<u32> {
    let worker = until_in_driver(check)?;
    fs::write(cold.join("cgroup.procs"), worker.to_string())?;
    fs::write(cold.join("freezer.state"), "FROZEN")?;
    Ok(worker)
}

/// Waits until the worker of a check sleeps in the driver, which no signal but SIGKILL ends. It may sleep so for other
/// reasons while it starts, before it has its lock and the node.
fn until_in_driver(check: &mut Child) -> Result<u32> {
    let has_node = |worker: &u32| {
        let files = fs::read_dir(format!("/proc/{worker}/fd")).into_iter().flatten().flatten();
        let mut files = files.filter_map(|file| fs::read_link(file.path()).ok());
        files.any(|file| file.starts_with("/dev/infiniband"))
    };
    let is_in_driver = |worker: &u32| {
        has_node(worker)
            && fs::read_to_string(format!("/proc/{worker}/status"))
                .is_ok_and(|status| status.contains("State:\tD"))
    };
    guest::until("the driver to be called", || {
        workers().is_ok_and(|workers| workers.first().is_some_and(is_in_driver))
    })?;
    ensure!(check.try_wait()?.is_none(), "the check has ended");
    workers()?.first().copied().context("no worker")
}

/// The processes that run `uverbs check --worker`.
fn workers() -> Result<Vec<u32>> {
    let processes = guest::names("/proc").into_iter().filter_map(|name| name.parse().ok());
    let is_worker = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line == b"uverbs\0check\0--worker\0")
    };
    Ok(processes.filter(is_worker).collect())
}

const METRICS: &str = "/tmp/uverbs.prom";

/// The metrics that a check writes to a file, which are those that it prints.
fn written_metrics() -> Result<String> {
    check(&["--textfile", METRICS], 0)?;
    let printed = check(&["--textfile", "-"], 0)?;
    let text = fs::read_to_string(METRICS)?;
    let without_time = |text: &str| -> Vec<String> {
        let lines = text.lines().map(str::to_owned);
        lines.filter(|line| !line.starts_with("uverbs_check_last_run")).collect()
    };
    ensure!(without_time(&text) == without_time(&String::from_utf8(printed.stdout)?), "{text}");
    Ok(text)
}

/// Two devices, of which the second has a name that labels have to escape.
fn hostile_devices() -> Result<()> {
    guest::hca("add name=a guid=00000000000000a0")?;
    guest::add_rxe("rxe0", "d0")?;
    guest::rename("rxe0", "x\u{1b}\"\\y")
}

/// A hostile name, and a replacement, in the metrics.
pub(super) fn metrics() -> Result<()> {
    let value = |text: &str, series: &str| -> Result<String> {
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {series} in {text}"))?.to_owned())
    };
    hostile_devices()?;
    let before = written_metrics()?;
    ensure!(value(&before, "uverbs_devices")? == "2", "{before}");
    let rxe = r#"uverbs="uverbs1",device="x\\x1b\\\"\\\\y",port="1""#;
    ensure!(value(&before, &format!("uverbs_port_state{{{rxe}}}"))? == "4", "{before}");
    let of_port = "uverbs=\"uverbs0\",device=\"a\",port=\"1\"";
    for (name, file) in [("state", "state"), ("physical_state", "phys_state")] {
        let attribute = format!("/sys/class/infiniband/a/ports/1/{file}");
        let attribute = fs::read_to_string(attribute)?;
        let number = attribute.split(':').next().context("no state")?;
        ensure!(value(&before, &format!("uverbs_port_{name}{{{of_port}}}"))? == number, "{before}");
    }
    // 4X EDR: 100 Gb/s.
    let rate = value(&before, &format!("uverbs_port_rate_bytes_per_second{{{of_port}}}"))?;
    ensure!(rate == "12500000000", "{before}");
    ensure!(guest::hca_value("a", "allocs")? == "0", "it was opened");

    let instance = "uverbs_device_instance{uverbs=\"uverbs0\"}";
    let inode = |text: &str| value(text, instance);
    ensure!(inode(&written_metrics()?)? == inode(&before)?, "it changed by itself");
    guest::hca("del-sync name=a")?;
    guest::hca("add name=a guid=00000000000000a0")?;
    guest::until_uverbs("uverbs0", true)?;
    let after = written_metrics()?;
    ensure!(inode(&after)? != inode(&before)?, "the replacement does not show: {after}");
    Ok(())
}

/// promtool accepts the metrics of devices, one of which has a hostile name.
pub(super) fn promtool_accepts_metrics() -> Result<()> {
    hostile_devices()?;
    written_metrics()?;
    let output = container::promtool(Path::new(METRICS))?;
    let is_clean = output.status == Some(0) && output.stderr.is_empty();
    ensure!(is_clean, "{output:?}: {}", fs::read_to_string(METRICS)?);
    Ok(())
}
