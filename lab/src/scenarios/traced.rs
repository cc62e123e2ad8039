//! The library's system calls, as strace sees them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::guest;
use crate::spawn::{self, MARK};

const TRACE: &str = "/tmp/trace";

/// The lines of a role's trace between its two marks.
fn trace(args: &[&str]) -> Result<Vec<String>> {
    let exe = spawn::exe()?;
    let calls = "trace=open,openat,openat2,creat,write,socket,sendto,ioctl,pread64,readlinkat,fstat,newfstatat,statx,stat,lstat,access";
    let mut strace = vec!["-f", "-o", TRACE, "-e", calls, &exe, "role"];
    strace.extend(args);
    guest::run("strace", &strace)?;
    let trace = fs::read_to_string(TRACE)?;
    let mut parts = trace.split(MARK);
    let between = parts.nth(1).context("no marks in the trace")?;
    // The rest of the first mark's line, and the start of the second's, belong to the marks.
    let mut lines: Vec<_> = between.lines().skip(1).map(str::to_owned).collect();
    lines.pop();
    Ok(lines)
}

pub(super) fn list_and_open() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let lines = trace(&["marked-open", "/dev", "tst", "ok"])?;
    let opens: Vec<_> = lines.iter().filter(|line| line.contains(" openat2(")).collect();
    ensure!(opens.len() > 8, "{lines:#?}");
    for line in &opens {
        ensure!(line.contains("RESOLVE_BENEATH") && line.contains("RESOLVE_NO_SYMLINKS"), "{line}");
        ensure!(line.contains("O_CLOEXEC"), "{line}");
        ensure!(
            line.contains("RESOLVE_NO_XDEV") || line.contains("\"infiniband/uverbs0\""),
            "{line}"
        );
    }
    // No other system call uses a path.
    for line in &lines {
        for call in [" open(", " openat(", " creat(", " stat(", " lstat(", " access("] {
            ensure!(!line.contains(call), "{line}");
        }
        ensure!(!line.contains("\"/"), "an absolute path: {line}");
    }
    println!("    {} system calls of these kinds, {} openat2", lines.len(), opens.len());
    Ok(())
}

/// Requires that the node was only looked at.
fn nothing_opened(lines: &[String]) -> Result<()> {
    let looks = lines.iter().filter(|line| line.contains("\"infiniband/uverbs0\"")).count();
    ensure!(looks > 0, "the node was not even looked at: {lines:#?}");
    for line in lines {
        ensure!(!line.contains("O_RDWR"), "opened: {line}");
        ensure!(!line.contains(" ioctl("), "a command: {line}");
    }
    Ok(())
}

pub(super) fn wrong_node() -> Result<()> {
    let dev = guest::container_dev()?;
    let node = dev.join("infiniband/uverbs0");
    guest::hca("add name=tst guid=00000000000000a0")?;
    let dev = dev.to_string_lossy();
    let refused = |kind| nothing_opened(&trace(&["marked-open", &dev, "tst", kind])?);
    symlink("/dev/infiniband/uverbs0", &node)?;
    refused("NodeMismatch")?;
    fs::remove_file(&node)?;
    guest::run("mkfifo", &[&node.to_string_lossy()])?;
    refused("NodeMismatch")?;
    fs::remove_file(&node)?;
    fs::write(&node, "")?;
    refused("NodeMismatch")?;
    fs::remove_file(&node)?;
    guest::mknod(&node, (1, 3))?;
    refused("NodeMismatch")
}

/// Runs a program under strace that lists, waits for Enter and opens. Replaces the device meanwhile. Returns the
/// exit status, the output, and the trace from then on.
fn replaced_under(program: &[&str]) -> Result<(Option<i32>, String, String)> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
    let mut strace = Command::new("strace")
        .args(["-f", "-o", TRACE, "-e", "trace=openat2,ioctl"])
        .args(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = BufReader::new(strace.stdout.take().context("stdout")?);
    let mut output = String::new();
    while !output.contains("Enter") {
        ensure!(stdout.read_line(&mut output)? > 0, "it ended: {output}");
    }
    let before = fs::read_to_string(TRACE)?.len();
    guest::hca("del-sync name=tst")?;
    guest::hca("add name=tst guid=00000000000000ff disassociate=1")?;
    strace.stdin.take().context("stdin")?.write_all(b"\n")?;
    let status = crate::guest::wait(&mut strace, std::time::Duration::from_secs(30))?;
    std::io::Read::read_to_string(&mut stdout, &mut output)?;
    let mut stderr = strace.stderr.take().context("stderr")?;
    std::io::Read::read_to_string(&mut stderr, &mut output)?;
    Ok((status.code(), output, fs::read_to_string(TRACE)?.split_off(before)))
}

fn is_refused(program: &[&str]) -> Result<()> {
    let (code, output, trace) = replaced_under(program)?;
    ensure!(code == Some(1), "{program:?}: exit status {code:?}: {output}");
    ensure!(output.contains("replaced"), "{output}");
    ensure!(trace.contains("openat2(") && !trace.contains("O_RDWR"), "{trace}");
    // A program may check whether its output is a terminal, but must not send the device any command.
    let command = trace.lines().find(|line| line.contains("ioctl(") && !line.contains("TCGETS"));
    ensure!(command.is_none(), "{command:?}");
    ensure!(guest::hca_value("tst", "allocs")? == "0");
    Ok(())
}

pub(super) fn replaced() -> Result<()> {
    is_refused(&["uverbs", "open", "--wait-for-enter", "tst"])
}

pub(super) fn example_hotplug() -> Result<()> {
    is_refused(&["hotplug", "tst"])?;
    guest::hca("del-sync name=tst")?;
    guest::hca("add name=tst guid=00000000000000a0")?;
    let mut child =
        Command::new("hotplug").arg("tst").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(b"\n")?;
    let output = child.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && printed.contains("0000:0000:0000:00a0"), "{printed}");
    Ok(())
}

pub(super) fn example_handed_in() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    let said = guest::stdout("handed_in", &["tst"])?;
    ensure!(said.contains("0000:0000:0000:00a0"), "{said}");
    let said = guest::stdout("handed_in", &["--try-forbidden", "tst"])?;
    refuses(&said, &[])?;
    ensure!(said.contains("0000:0000:0000:00a0"), "{said}");
    Ok(())
}

/// The calls that an example reports as refused by its sandbox: those that both examples refuse, and `more`.
pub(super) fn refuses(output: &str, more: &[&str]) -> Result<()> {
    let both = ["openat", "socket", "connect", "execve", "a process", "another ioctl"];
    for call in both.iter().chain(more) {
        let refused = output.lines().any(|line| line == format!("refused: {call}"));
        ensure!(refused, "{call} is not refused: {output}");
    }
    Ok(())
}

pub(super) fn known_gone() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0 disassociate=1")?;
    let lines = trace(&["known-gone"])?;
    ensure!(lines.is_empty(), "it made calls: {lines:#?}");
    Ok(())
}

pub(super) fn openat2_blocked() -> Result<()> {
    guest::hca("add name=tst guid=00000000000000a0")?;
    for errno in [libc::EPERM, libc::ENOSYS] {
        let status = spawn::run_and_show(&["blocked", &errno.to_string()])?;
        ensure!(status.success(), "{status}");
    }
    Ok(())
}
