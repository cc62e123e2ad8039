//! What a program inherits through `uverbs guard`. Another library stands for the guard, which these tests do not need.

use std::fs;
use std::process::{Command, Output};

/// A library that the loader can preload into any program.
fn library() -> String {
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let mut files = maps.lines().filter_map(|line| line.split_whitespace().nth(5));
    files.find(|file| file.contains("/libc.so")).expect("this test is linked with glibc").to_owned()
}

/// Runs a program through `uverbs guard`. `env(1)` sets what it inherits: std's `Command` resets signals, too.
fn guarded(inherited: &[&str], command: &[&str]) -> Output {
    let output = Command::new("env")
        .args(inherited)
        .args([env!("CARGO_BIN_EXE_uverbs"), "guard", "--library", &library(), "--"])
        .args(command)
        .output()
        .expect("env of coreutils");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {text}", output.status);
    output
}

/// The numbers of the signals in a set of `/proc/PID/status`, without 32 and 33: glibc uses these itself, and ignores them
/// in what posix_spawn(3) starts.
fn signals(status: &str, set: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(":\t"));
    let bits = u64::from_str_radix(line.expect("a set of signals"), 16).expect("hexadecimal");
    (1..32).filter(|signal| bits & (1 << (signal - 1)) != 0).collect()
}

const SIGHUP: u32 = 1;
const SIGUSR1: u32 = 10;
const SIGUSR2: u32 = 12;
const SIGPIPE: u32 = 13;

#[test]
fn signals_stay_as_they_were() {
    let status = |inherited: &[&str]| {
        let output = guarded(inherited, &["cat", "/proc/self/status"]);
        String::from_utf8(output.stdout).expect("text")
    };
    let plain = status(&["--default-signal"]);
    assert!(
        signals(&plain, "SigBlk").is_empty() && signals(&plain, "SigIgn").is_empty(),
        "{plain}"
    );
    let inherited =
        ["--default-signal", "--ignore-signal=HUP", "--ignore-signal=USR2", "--block-signal=USR1"];
    let set = status(&inherited);
    assert_eq!(signals(&set, "SigBlk"), [SIGUSR1]);
    assert_eq!(signals(&set, "SigIgn"), [SIGHUP, SIGUSR2]);
    // Rust's runtime ignores it before the command can look. It is never ignored in the program.
    let ignored = status(&["--default-signal", "--ignore-signal=PIPE"]);
    assert!(!signals(&ignored, "SigIgn").contains(&SIGPIPE), "{ignored}");
    let blocked = status(&["--default-signal", "--block-signal=PIPE"]);
    assert_eq!(signals(&blocked, "SigBlk"), [SIGPIPE]);
}

#[test]
fn variables_stay_but_for_those_of_the_guard() {
    let inherited =
        ["-i", "PATH=/usr/bin:/bin", "A=b=c", "UVERBS_GUARD_ALLOW=unproven", "LD_PRELOAD="];
    let output = guarded(&inherited, &["env"]);
    let text = String::from_utf8(output.stdout).expect("text");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let preload = format!("LD_PRELOAD={}", fs::canonicalize(library()).expect("a file").display());
    assert_eq!(lines, ["A=b=c", &preload, "PATH=/usr/bin:/bin", "UVERBS_GUARD_ALLOW="]);
}
