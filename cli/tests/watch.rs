//! `uverbs watch` and `uverbs wait` as programs: how they end. Nothing here depends on the devices of the host.

use std::fs;
use std::io::Read as _;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// How long anything may take that should happen at once.
const LIMIT: Duration = Duration::from_secs(20);
/// A name that no device has.
const NO_DEVICE: &str = "name=no such device";

fn uverbs(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uverbs"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// The same under a shell that ignores SIGINT and SIGTERM, which a program inherits.
fn with_ignored_signals(args: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let program = env!("CARGO_BIN_EXE_uverbs");
    command.args(["-c", r#"trap "" INT TERM; exec "$0" "$@""#, program]).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A command that is killed if a test fails before its end.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("it starts"))
    }

    /// Waits until it has handlers for SIGINT and SIGTERM. Before that, the signals end it by themselves.
    fn until_it_handles_signals(self) -> Self {
        let bits = 1 << (Signal::INT.as_raw() - 1) | 1 << (Signal::TERM.as_raw() - 1);
        until("it handles signals", || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).ok()?;
            let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
            let caught = u64::from_str_radix(caught.trim(), 16).expect("digits");
            (caught & bits == bits).then_some(())
        });
        self
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, signal).expect("it is there");
    }

    fn end(&mut self) -> ExitStatus {
        until("it ends", || self.0.try_wait().expect("a child"))
    }

    fn output(mut self) -> Output {
        let status = self.end();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(pipe) = &mut self.0.stdout {
            pipe.read_to_end(&mut stdout).expect("read");
        }
        self.0.stderr.take().expect("a pipe").read_to_end(&mut stderr).expect("read");
        Output { status, stdout, stderr }
    }

    /// The processor time that it has taken, in ticks; a second has 100.
    fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).expect("stat");
        let (_, fields) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<_> = fields.split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn run(args: &[&str]) -> Output {
    Running::start(&mut uverbs(args)).output()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text")
}

/// Whether devices can be listed here at all. If not, both commands fail, which is tested in place of the rest.
fn is_usable() -> bool {
    let listed = run(&["list", "--json"]);
    let json: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    if json["devices"].is_array() {
        return true;
    }
    for args in [&["watch"][..], &["wait", NO_DEVICE], &["wait", "--gone", NO_DEVICE]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    false
}

#[test]
fn signals_end_a_watch() {
    if !is_usable() {
        return;
    }
    for signal in [Signal::INT, Signal::TERM] {
        for make in [uverbs, with_ignored_signals] {
            for args in [&["watch", "--json"][..], &["watch", "--json", "--present"]] {
                let running = Running::start(&mut make(args)).until_it_handles_signals();
                running.signal(signal);
                let output = running.output();
                assert_eq!(output.status.code(), Some(0), "{signal:?}: {output:?}");
                for line in text(&output.stdout).lines() {
                    let line: Value = serde_json::from_str(line).expect("JSON");
                    assert!(line["time"].is_string() && line["change"].is_string(), "{line}");
                }
            }
        }
    }
}

#[test]
fn a_watch_ends_when_its_reader_goes_and_nothing_happens() {
    if !is_usable() {
        return;
    }
    let mut running = Running::start(&mut uverbs(&["watch"])).until_it_handles_signals();
    thread::sleep(Duration::from_millis(100));
    assert!(running.0.try_wait().expect("a child").is_none(), "it ended by itself");
    drop(running.0.stdout.take());
    let output = running.output();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn a_watch_whose_reader_was_never_there_ends() {
    if !is_usable() {
        return;
    }
    for args in [&["watch"][..], &["watch", "--present"], &["watch", "--present", "--json"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = Running::start(uverbs(args).stdout(writer)).output();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    }
}

#[test]
fn a_watch_idles() {
    if !is_usable() {
        return;
    }
    let running = Running::start(&mut uverbs(&["watch"])).until_it_handles_signals();
    let before = running.ticks();
    thread::sleep(Duration::from_secs(1));
    let used = running.ticks() - before;
    assert!(used < 30, "{used} hundredths of a second of processor time in a second");
    running.signal(Signal::TERM);
    assert_eq!(running.output().status.code(), Some(0));
}

#[test]
fn a_timeout_has_its_own_status_and_its_reason() {
    if !is_usable() {
        return;
    }
    for timeout in ["--timeout=0", "--timeout=0.2"] {
        let output = run(&["wait", NO_DEVICE, timeout]);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        assert!(output.stdout.is_empty());
        for words in ["timed out after 0", "no device matches \"no such device\""] {
            assert!(text(&output.stderr).contains(words), "{words}: {}", text(&output.stderr));
        }
    }
    let output = run(&["wait", NO_DEVICE, "--timeout", "0", "--json"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["error"]["kind"], "timeout");
}

#[test]
fn without_a_timeout_it_waits() {
    if !is_usable() {
        return;
    }
    let mut running = Running::start(&mut uverbs(&["wait", NO_DEVICE]));
    thread::sleep(Duration::from_millis(300));
    assert!(running.0.try_wait().expect("a child").is_none(), "it ended by itself");
    let before = running.ticks();
    thread::sleep(Duration::from_secs(1));
    let used = running.ticks() - before;
    assert!(used < 30, "{used} hundredths of a second of processor time in a second");
}

#[test]
fn a_device_that_is_not_there_has_gone() {
    if !is_usable() {
        return;
    }
    for option in ["--gone", "--removed"] {
        let output = run(&["wait", option, NO_DEVICE]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }
    let output = run(&["wait", "--gone", "--json", NO_DEVICE]);
    assert_eq!(output.stdout, b"{\"device\":null}\n");
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &["watch", "rxe0"][..],
        &["watch", "--pretty"],
        &["watch", "--json=yes"],
        &["wait"],
        &["wait", ""],
        &["wait", "rxe0", "rxe1"],
        &["wait", "nme=rxe0"],
        &["wait", "rxe0", "--timeout"],
        &["wait", "rxe0", "--timeout=-1"],
        &["wait", "rxe0", "--timeout=soon"],
        &["wait", "rxe0", "--timeout=86401"],
        &["wait", "rxe0", "--pretty"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}
