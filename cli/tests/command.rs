//! The command as a program: what it prints, how it exits. Nothing here depends on the devices of the
//! host, nor on there being a /sys.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_uverbs"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run<S: AsRef<OsStr>>(args: &[S]) -> Output {
    command(args).output().expect("the command runs")
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).expect("text")
}

#[test]
fn help_names_every_subcommand() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let names =
        ["list", "show", "open", "watch", "wait", "check", "cdi", "hook", "completions", "man"];
    for name in names.into_iter().chain(["Exit status:", "\n  3  "]) {
        assert!(stdout(&output).contains(name), "{name}");
    }
    assert_eq!(stdout(&output).contains("demo"), cfg!(feature = "demo"));
    for subcommand in ["list", "show", "open", "wait", "check"] {
        let output = run(&[subcommand, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{subcommand}");
        for words in ["--json", "--pretty", "Exit status:", "\n  2  "] {
            assert!(stdout(&output).contains(words), "{subcommand}: {words}");
        }
    }
}

#[test]
fn wrong_usage_is_2() {
    for args in [
        &[""; 0][..],
        &["nothing"],
        &["open"],
        &["open", ""],
        &["open", "rxe0", "--hold", "-1"],
        &["open", "rxe0", "--hold=86401"],
        &["show", "index=one"],
        &["show", "guid=12"],
        &["show", "uverbs=-1"],
        &["show", "name="],
        &["open", "nme=rxe0"],
        &["open", "=rxe0"],
        &["show", "dev_t=231"],
        &["list", "--pretty"],
        &["check", "--device", "nme=rxe0"],
        &["check", "--device", "rxe0", "--expect", "1"],
        &["check", "--expect", "-1"],
        &["check", "--timeout", "0"],
        &["check", "--fail-on", "everything"],
        &["check", "--worker", "--open"],
        &["completions", "tcsh-but-not-quite"],
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stdout(&output).is_empty() && !stderr(&output).is_empty(), "{args:?}");
    }
}

#[test]
fn wrong_usage_is_also_printed_as_json() {
    for (args, words) in [
        (&["open", "nme=rxe0", "--json"][..], "is not a key"),
        (&["open", "nme=rxe0", "-j"], "is not a key"),
        (&["show", "--json"], "required"),
        (&["list", "--json", "--nothing"], "--nothing"),
        (&["nothing", "--json"], "nothing"),
        (&["open", "rxe0", "--hold", "no", "-jp"], "no"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let error = &json["error"];
        assert_eq!(error["kind"], "usage", "{args:?}");
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains(words), "{args:?}: {message}");
        assert_eq!(stderr(&output).lines().next(), Some(&*format!("error: {message}")), "{args:?}");
    }
    assert!(run(&["--help", "--json"]).stdout.starts_with(b"List"));
}

#[test]
fn json_is_a_line_unless_it_is_to_be_pretty() {
    assert_eq!(run(&["check", "--json", "--textfile", "-"]).status.code(), Some(2));
    for args in [&["check", "--json"][..], &["check", "-j"], &["show", "-j", "no such device"]] {
        let output = run(args);
        assert_eq!(stdout(&output).matches('\n').count(), 1, "{args:?}: {}", stdout(&output));
    }
    for args in [&["check", "-jp"][..], &["show", "--json", "--pretty", "no such device"]] {
        let output = run(args);
        assert!(stdout(&output).lines().count() > 3, "{args:?}: {}", stdout(&output));
        let _: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    }
}

#[test]
fn check_prints_one_line_beside_its_findings_and_all_with_verbose() {
    let lines = |args: &[&str]| {
        let output = run(args);
        stdout(&output).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let json: Value = serde_json::from_slice(&run(&["check", "--json"]).stdout).expect("JSON");
    let count = |key: &str| json[key].as_array().expect("an array").len();
    let short = lines(&["check"]);
    assert_eq!(short.len(), count("findings") + 1, "{short:?}");
    let last = short.last().expect("a line");
    assert!(last.starts_with("ok") && last.contains("-v"), "{last}");
    let full = lines(&["check", "-v"]);
    assert_eq!(full.len(), count("findings") + count("info") + count("checked"), "{full:?}");
}

#[test]
fn an_unknown_key_is_wrong_usage_that_names_the_known_ones() {
    let output = run(&["show", "ifindex=3"]);
    assert_eq!(output.status.code(), Some(2));
    for word in ["ifindex", "name=", "uverbs=", "dev_t=", "index=", "guid="] {
        assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
    }
    // Where it is the name, it is said to be.
    let output = run(&["show", "name=ifindex=3"]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}

/// What would colour a terminal, go back to the start of the line, forge a line of ours, ring, clear the
/// screen (as UTF-8 and as a byte), and reverse the text.
const HOSTILE: &[u8] = b"\x1b[31m\r\nuverbs: proved\x07\x08\xc2\x9b2J\x9b2J\xe2\x80\xae";

/// Whether a terminal shows it as it is, and a log line by line.
fn assert_is_plain(text: &[u8], what: &dyn std::fmt::Debug) {
    let text = str::from_utf8(text).unwrap_or_else(|_| panic!("{what:?}: no text"));
    let is_odd = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!text.contains(is_odd), "{what:?}: {text:?}");
    assert!(!text.lines().any(|line| line.starts_with("uverbs: proved")), "{what:?}: {text:?}");
}

#[test]
fn no_argument_reaches_the_terminal_as_it_is() {
    let words = String::from_utf8_lossy(HOSTILE).replace('\u{fffd}', "").into_bytes();
    let before: &[&[&str]] = &[
        &[],
        &["--"],
        &["list"],
        &["show"],
        &["show", "--"],
        &["show", "--no-open"],
        &["open"],
        &["open", "rxe0"],
        &["open", "rxe0", "--hold"],
        &["watch"],
        &["wait", "--timeout", "0"],
        &["wait", "--timeout", "0", "rxe0"],
        &["wait", "rxe0", "--timeout"],
        &["check"],
        &["check", "--device"],
        &["check", "--expect"],
        &["demo"],
        &["help"],
        &["help", "open"],
        &["completions"],
        &["completions", "bash"],
        &["man"],
        &["man", "--dir", "/dev/null", "--"],
        &["man", "--dir", "/dev/null/x"],
    ];
    let prefixes = [
        "",
        "-",
        "-v",
        "-j",
        "--",
        "--hold",
        "--hold=",
        "--json=",
        "name=",
        "index=",
        "guid=",
        "uverbs=",
        "dev_t=",
        "pci=",
        "pci=0000:3b:00.0/sf",
        "netdev=",
        "/dev/infiniband/",
        "x=",
    ];
    for hostile in [HOSTILE, &words] {
        for before in before {
            for prefix in prefixes {
                let mut args: Vec<_> = before.iter().map(OsString::from).collect();
                args.push(OsString::from_vec([prefix.as_bytes(), hostile].concat()));
                let output = run(&args);
                // A device that `check` does not find is a finding, on stdout.
                let is_finding = before.starts_with(&["check"]) && !output.stdout.is_empty();
                let expected = if is_finding { 1..=5 } else { 1..=3 };
                assert!(
                    output.status.code().is_some_and(|code| expected.contains(&code)),
                    "{args:?}"
                );
                assert!(is_finding || !output.stderr.is_empty(), "{args:?}");
                assert_is_plain(&output.stdout, &args);
                assert_is_plain(&output.stderr, &args);
            }
        }
        let file = OsString::from_vec([b"/dev/null/", hostile].concat());
        let output = run(&[OsStr::new("check"), OsStr::new("--textfile"), &file]);
        assert!(matches!(output.status.code(), Some(1 | 5)), "{}", stdout(&output));
        assert_is_plain(&output.stdout, &"--textfile");
        for args in [&["--help"][..], &["nothing"], &["open"], &["open", "--help"], &["man"]] {
            let output = command(args).arg0(OsStr::from_bytes(hostile)).output().expect("it runs");
            assert_is_plain(&output.stdout, &("argv[0]", args));
            assert_is_plain(&output.stderr, &("argv[0]", args));
        }
    }
}

#[cfg(feature = "demo")]
#[test]
fn demo_shows_what_is_opened_and_what_is_refused() {
    let output = run(&["demo"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stderr(&output).is_empty());
    for words in [
        "SIMULATED",
        "wrong device",
        "refused: rxe0 (uverbs0): replaced by another device",
        "its node leads to another device",
        "proved: ",
    ] {
        assert!(stdout(&output).contains(words), "{words}");
    }
    assert!(!stdout(&output).contains('\u{1b}'), "no colour but on a terminal");
}

#[test]
fn no_such_device_is_1_and_an_error_in_json() {
    const NAME: &str = "no\u{1b}[31m such\ndevice";
    for subcommand in ["show", "open"] {
        let output = run(&[subcommand, NAME, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{subcommand}");
        let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let error = json["error"].as_object().expect("an error");
        for key in ["kind", "device", "step", "message", "cause", "errno"] {
            assert!(error.contains_key(key), "{key}");
        }
        let message = error["message"].as_str().expect("a message");
        assert_eq!(stderr(&output), format!("uverbs: {message}\n"));
        assert!(!stderr(&output).contains('\u{1b}'));

        let output = run(&[subcommand, NAME]);
        assert_eq!(output.status.code(), Some(1), "{subcommand}");
        assert!(stdout(&output).is_empty());
        assert!(stderr(&output).starts_with("uverbs: "));
    }
}

#[test]
fn list_and_check_print_json_whatever_the_host() {
    let output = run(&["list", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    match output.status.code() {
        Some(0) => assert!(json["devices"].is_array() && json["faults"] == serde_json::json!([])),
        Some(1) => assert!(json["faults"].is_array() || json["error"].is_object()),
        code => panic!("{code:?}"),
    }
    let output = run(&["check", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(json["checked"].is_array());
    assert!(json["info"].is_array() && json["container"].is_array());
    assert_eq!(output.status.code(), Some(status(&json, false)));
    let output = run(&["check", "--json", "--fail-on", "warning"]);
    assert_eq!(output.status.code(), Some(status(&json, true)));
}

/// The exit status that the findings of `check --json` call for.
fn status(json: &Value, do_warnings_fail: bool) -> i32 {
    let findings = json["findings"].as_array().expect("findings");
    let has = |severity: &str| findings.iter().any(|finding| finding["severity"] == severity);
    match (has("error"), has("unknown"), has("warning")) {
        (true, ..) => 1,
        (_, true, _) => 5,
        (.., true) if do_warnings_fail => 4,
        _ => 0,
    }
}

#[test]
fn a_device_that_is_not_there_fails_the_check() {
    let json: Value = serde_json::from_slice(&run(&["check", "--json"]).stdout).expect("JSON");
    let output = run(&["check", "--json", "--device", "name=no such device"]);
    let named: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(output.status.code(), Some(status(&named, false)));
    // Where the devices can be listed, it is an error.
    let is_unknown = status(&json, false) == 5;
    assert!(is_unknown || output.status.code() == Some(1), "{named}");

    let output = run(&["check", "--json", "--expect", "12345"]);
    assert!(is_unknown || output.status.code() == Some(1), "{}", stdout(&output));
}

#[test]
fn the_textfile_is_written_whole_or_printed() {
    let has_metrics = |text: &str| {
        text.starts_with("# HELP uverbs_") && text.ends_with('\n') && !text.contains(" ok")
    };
    let usual = run(&["check"]).status.code();
    let output = run(&["check", "--textfile", "-"]);
    assert_eq!(output.status.code(), usual);
    assert!(has_metrics(stdout(&output)), "{}", stdout(&output));

    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("textfile");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir(&dir).expect("made");
    let file = dir.join("uverbs.prom");
    let path = file.to_str().expect("a path");
    let output = run(&["check", "--textfile", path]);
    assert_eq!(output.status.code(), usual);
    let lines = stdout(&output).lines().last().map(str::to_owned);
    assert!(lines.is_some_and(|line| line.starts_with("ok")), "{}", stdout(&output));
    assert!(has_metrics(&std::fs::read_to_string(&file).expect("written")));
    assert_eq!(std::fs::read_dir(&dir).expect("a directory").count(), 1);

    // What is not written is not known to whoever reads it.
    for path in [dir.join("no/such/dir/x.prom").to_str().expect("a path"), "/dev/null"] {
        let output = run(&["check", "--textfile", path]);
        let expected = if usual == Some(1) { 1 } else { 5 };
        assert_eq!(output.status.code(), Some(expected), "{path}: {}", stdout(&output));
        assert!(stdout(&output).contains("unknown") && stdout(&output).contains("textfile"));
    }
}

/// A worker ends with its stdin, and closes what it inherited.
#[test]
fn the_worker_of_a_check_keeps_no_descriptor_of_its_caller() {
    use std::io::{Read as _, Write as _};

    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    // The shell leaves descriptor 9 open in the worker.
    let script =
        format!("exec 9>&2 2>/dev/null; exec {} check --worker", env!("CARGO_BIN_EXE_uverbs"));
    let mut worker = Command::new("sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .expect("it runs");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("the end, while the worker still runs");
    assert!(text.is_empty(), "{text}");
    assert!(worker.try_wait().expect("a state").is_none(), "it has ended");
    let mut requests = worker.stdin.take().expect("stdin");
    requests
        .write_all(b"{\"number\":4294967295,\"sys_dev\":0,\"inode\":0,\"index\":null,\"task\":{\"open\":true,\"ports\":true},\"wait\":{\"secs\":0,\"nanos\":0}}\n")
        .expect("written");
    drop(requests);
    let output = worker.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0));
    // There is no such device, and where there is no /sys nothing can be said.
    let line: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(line == "Gone" || line["Failed"].is_string(), "{line}");
}

#[test]
fn a_closed_pipe_is_no_error() {
    for args in [&["--help"][..], &["completions", "bash"], &["man"], &["check"]] {
        let usual = command(args).stdout(Stdio::null()).status().expect("it runs");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let output = command(args).stdout(writer).output().expect("it runs");
        assert_eq!(output.status.code(), usual.code(), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let Ok(full) = File::options().write(true).open("/dev/full") else { return };
    let output = command(&["man"]).stdout(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot write to stdout"), "{}", stderr(&output));
}

#[test]
fn completions_and_manual_pages() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completions", shell]);
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(
            stdout(&output).contains("uverbs") && stdout(&output).contains("strict-timestamps"),
            "{shell}"
        );
    }
    let output = run(&["man"]);
    assert!(stdout(&output).contains(".TH uverbs 1"));

    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("man");
    let _ = std::fs::remove_dir_all(&dir);
    let output = run(&["man", "--dir", dir.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains(dir.to_str().expect("a path")), "{}", stderr(&output));
    assert!(!dir.exists(), "it was made");

    std::fs::create_dir(&dir).expect("made");
    let output = run(&["man", "--dir", dir.to_str().expect("a path")]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let main = std::fs::read_to_string(dir.join("uverbs.1")).expect("uverbs.1");
    for name in [
        "list",
        "show",
        "open",
        "watch",
        "wait",
        "check",
        "cdi",
        "hook",
        "completions",
        "man",
        "help",
    ] {
        let page = format!("uverbs-{name}");
        let text = std::fs::read_to_string(dir.join(format!("{page}.1"))).expect(&page);
        let title = format!(".TH {page} 1");
        for words in [&*title, ".SH NAME", ".SH \"EXIT STATUS\"", ".SH \"SEE ALSO\"", "uverbs(1)"] {
            assert!(text.contains(words), "{page}: {words}: {text}");
        }
        assert!(main.contains(&page.replace('-', "\\-")), "{page}: {main}");
    }
}
