//! `uverbs cdi`, `uverbs hook` and `uverbs open --expect-env` as programs. Nothing here depends on the devices of the
//! host.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const GIVEN: &str = "v1,pci=ffff:ff:1f.7,uverbs=4000000,dev_t=231:192";

fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uverbs"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().expect("it runs")
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).expect("text")
}

/// Runs the hook with a state.
fn hook(args: &[&str], state: &[u8]) -> Output {
    let mut hook =
        command(&[&["hook"], args].concat()).stdin(Stdio::piped()).spawn().expect("it runs");
    // It may end before it has read all.
    let _ = hook.stdin.take().expect("a pipe").write_all(state);
    hook.wait_with_output().expect("it ends")
}

#[test]
fn a_hook_refuses_in_one_line() {
    let state = br#"{"ociVersion":"1.0","id":"a\nb","pid":0,"root":"/","bundle":"/nowhere","status":"created"}"#;
    let long = [b"{\"id\": \"".to_vec(), vec![b'a'; 2 << 20]].concat();
    for (args, state, words) in [
        (&[GIVEN][..], &state[..], "container a\\nb is refused: "),
        (&[GIVEN], b"", "stdin has no state"),
        (&[GIVEN], b"{", "stdin has no state"),
        (&[GIVEN], &long, "more than"),
        (&["v1,serial=1"], state, "is not an expectation"),
        (&["--node", "umad=1:1", GIVEN], state, "is no node"),
        (&["\u{1b}[31m"], state, "is not an expectation"),
        (&[GIVEN, "x"], state, "is not an expectation"),
    ] {
        let output = hook(args, state);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        let line = text(&output.stderr);
        assert!(line.starts_with("uverbs: ") && line.contains(words), "{args:?}: {line}");
        assert_eq!(line.matches('\n').count(), 1, "{args:?}: {line}");
        assert!(!line.trim_end().contains(char::is_control), "{args:?}: {line:?}");
    }
    assert_eq!(run(&["hook"]).status.code(), Some(2));
}

#[test]
fn a_hook_has_its_own_limit() {
    let mut hook = command(&["hook", GIVEN]).stdin(Stdio::piped()).spawn().expect("it runs");
    // Nobody ever closes it.
    let stdin = hook.stdin.take();
    let start = Instant::now();
    let output = hook.wait_with_output().expect("it ends");
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("took more than 5 s"), "{output:?}");
    drop(stdin);
}

/// The kernel then keeps no status of the check, but what it printed is there. env(1) sets what a runtime may leave.
#[test]
fn a_hook_works_where_sigchld_is_ignored() {
    let mut hook = Command::new("env")
        .args(["--ignore-signal=CHLD", env!("CARGO_BIN_EXE_uverbs"), "hook", GIVEN])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let ignored = || {
        let status = fs::read_to_string(format!("/proc/{}/status", hook.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?.trim().to_owned();
        u64::from_str_radix(&line, 16).ok()
    };
    let start = Instant::now();
    while ignored().is_none_or(|mask| mask & 1 << 16 == 0) {
        assert!(start.elapsed() < Duration::from_secs(20), "SIGCHLD is not ignored");
        thread::sleep(Duration::from_millis(5));
    }
    hook.stdin.take().expect("a pipe").write_all(b"{").expect("written");
    let output = hook.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains("stdin has no state"), "{output:?}");
}

/// It may be left behind in a call that never returns. It must not keep the caller's directory or descriptors then.
#[test]
fn the_check_keeps_nothing_of_the_runtime() {
    use std::os::fd::AsRawFd as _;

    let directory = tempfile::tempdir().expect("a directory");
    let mut hook = command(&["hook", GIVEN]);
    hook.stdin(Stdio::piped()).current_dir(directory.path());
    let inherited = fs::File::open("/dev/null").expect("opened");
    rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::empty()).expect("set");
    let mut hook = hook.spawn().expect("it runs");
    // It waits for its state.
    let stdin = hook.stdin.take();
    let children = format!("/proc/{0}/task/{0}/children", hook.id());
    let start = Instant::now();
    let is_done = || {
        let child = fs::read_to_string(&children).unwrap_or_default();
        let child = Path::new("/proc").join(child.trim());
        let cwd = fs::read_link(child.join("cwd")).ok()?;
        let fd = child.join("fd").join(inherited.as_raw_fd().to_string());
        Some((cwd == Path::new("/"), fs::symlink_metadata(fd).is_err()))
    };
    while is_done() != Some((true, true)) {
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", is_done());
        thread::sleep(Duration::from_millis(5));
    }
    drop(stdin);
    hook.wait().expect("it ends");
}

#[test]
fn an_open_of_what_was_given_needs_a_variable() {
    for (args, variable, words) in [
        (&["open", "--expect-env"][..], None, "no environment variable UVERBS_EXPECT_*"),
        (&["open", "--expect-env=MINE"], None, "no environment variable MINE"),
        (&["open", "--expect-env"], Some(("UVERBS_EXPECT_1", "v2")), "another version"),
        (
            &["open", "--expect-env=MINE"],
            Some(("MINE", "\u{1b}")),
            r#""\x1b" is not an expectation"#,
        ),
        (
            &["open", "--expect-env"],
            Some(("UVERBS_EXPECT_4000000", GIVEN)),
            "found no uverbs4000000",
        ),
    ] {
        let output = command(args).envs(variable).output().expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        // On a host without /sys there is no list.
        let is_no_list = run(&["list"]).status.code() != Some(0);
        assert!(is_no_list || text(&output.stderr).contains(words), "{args:?}: {output:?}");
    }
    // An option's value never swallows the device.
    let output = run(&["open", "--expect-env", "rxe0", "more"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &["cdi", "--watch"][..],
        &["cdi", "--all", "rxe0"],
        &["cdi", "--kind", "a"],
        &["cdi", "--kind=1a/b"],
        &["cdi", "--cdi-version=0.5"],
        &["cdi", "--cdi-version=0.4.0"],
        &["cdi", "--kind=a/b.c", "--cdi-version=0.5.0"],
        &["cdi", "--output", "/tmp/x.yaml"],
        &["cdi", "--output", "a.json", "--dir", "b"],
        &["cdi", "--hook", "uverbs"],
        &["cdi", "--hook=/a", "--no-hook"],
        &["cdi", "--keep"],
        &["cdi", "nme=rxe0"],
        &["open"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn every_device_that_is_missing_is_reported() {
    if run(&["list"]).status.code() != Some(0) {
        return;
    }
    let output = run(&["cdi", "ffff:ff:1f.6", "name=no such device", "ffff:ff:1f.7"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for name in ["ffff:ff:1f.6", "no such device", "ffff:ff:1f.7"] {
        assert!(text(&output.stderr).contains(name), "{name}: {output:?}");
    }
}

/// A name that no device has: a file for it is removed, or never made.
#[test]
fn a_watch_removes_the_file_and_ends_at_a_signal() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uverbs-device.json");
    if run(&["list"]).status.code() != Some(0) {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        fs::write(&path, r#"{"kind": "uverbs/device"}"#).expect("written");
        let args = ["cdi", "--watch", "--dir"].map(OsStr::new);
        let args = [&args[..], &[directory.path().as_os_str(), OsStr::new("name=no such device")]]
            .concat();
        let mut watch = command(&args).spawn().expect("it runs");
        let start = Instant::now();
        while path.exists() {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "the file of no device is still there"
            );
            thread::sleep(Duration::from_millis(10));
        }
        assert!(watch.try_wait().expect("a child").is_none(), "it ended by itself");
        kill_process(Pid::from_child(&watch), signal).expect("it is there");
        let output = watch.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(text(&output.stderr).contains("no device matches"), "{output:?}");
    }
    assert_eq!(run(&["cdi", "name=no such device"]).status.code(), Some(1));
}
