//! What `uverbs guard` does not run, because the guard would not get into it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const PROGRAM: &str = "/usr/bin/ibv-lazy";

fn guard(command: &[&str]) -> Result<(i32, String)> {
    let output = Command::new("uverbs").args(["guard", "--"]).args(command).output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code().context("killed")?, text))
}

fn require(command: &[&str], status: i32, words: &str) -> Result<()> {
    let (found, text) = guard(command)?;
    let is_right = found == status && text.contains(words);
    ensure!(is_right, "{command:?}: expected {status} and {words:?}, found {found} and {text:?}");
    println!("    {}", text.trim_end());
    Ok(())
}

fn copy(name: &str, mode: u32) -> Result<String> {
    let path = format!("/tmp/{name}");
    fs::copy(PROGRAM, &path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
    Ok(path)
}

pub(in crate::scenarios) fn refuses() -> Result<()> {
    require(&["static-true"], 126, "static program")?;
    require(&[&copy("setuid", 0o4755)?], 126, "setuid")?;
    require(&[&copy("setgid", 0o2755)?], 126, "setuid")?;
    require(&[&copy("not-executable", 0o644)?], 126, "")?;
    require(&["no-such-program"], 127, "in no directory of PATH")?;
    require(&["/no/such/program"], 127, "cannot run")?;
    let capable = copy("capable", 0o755)?;
    // cap_net_raw, permitted and effective, in version 2 of the attribute (linux/capability.h).
    let mut value = [0_u8; 20];
    value[..8].copy_from_slice(&[1, 0, 0, 2, 0, 0x20, 0, 0]);
    rustix::fs::setxattr(&capable, "security.capability", &value, rustix::fs::XattrFlags::empty())?;
    require(&[&capable], 126, "file capabilities")?;
    let musl = copy("musl", 0o755)?;
    let bytes = fs::read(&musl)?;
    let loader = b"/lib64/ld-linux-x86-64.so.2";
    let at =
        bytes.windows(loader.len()).position(|window| window == loader).context("PT_INTERP")?;
    let mut other = bytes;
    other[at..at + loader.len()].copy_from_slice(b"/lib/ld-musl-x86_64.so.1\0\0\0");
    fs::write(&musl, &other)?;
    require(&[&musl], 126, "not that of glibc")?;
    // Scripts are followed to their interpreters.
    for (name, text) in [("script", "#! /usr/bin/static-true -x\n"), ("nested", "#!/tmp/script\n")]
    {
        let path = format!("/tmp/{name}");
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        require(&[&path], 126, "static program")?;
    }
    // What is set already stays, and comes first. The program's status is the command's.
    let script = "/tmp/prints";
    fs::write(
        script,
        "#!/usr/bin/dash\nprintf '%s|%s|%s' \"$LD_PRELOAD\" \"$0\" \"$1\"; exit 7\n",
    )?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    let output = Command::new("uverbs").args(["guard", "--", script, "a b"]).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let expected = format!("/usr/bin/libuverbs_guard.so|{script}|a b");
    ensure!(output.status.code() == Some(7) && text == expected, "{output:?}");
    let other = "/usr/bin/ibv-plugin.so";
    let output =
        Command::new("uverbs").args(["guard", "--", script]).env("LD_PRELOAD", other).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.starts_with(&format!("{other}:/usr/bin/libuverbs_guard.so|")), "{output:?}");
    // What comes first may define the functions itself, or have libibverbs inside.
    let output = Command::new("uverbs")
        .args(["guard", "--", PROGRAM, "tst"])
        .env("LD_PRELOAD", "libibverbs.so.1")
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(126) && text.contains("is found before it"), "{text}");
    let inside = copy("inside", 0o755)?;
    let mut bytes = fs::read(&inside)?;
    // Backwards, so that this program does not contain it.
    bytes.extend("revird etacolla t'ndluoc :gninraW :sbrevbibil".bytes().rev());
    fs::write(&inside, &bytes)?;
    require(&[&inside], 126, "linked into it")?;
    // A library that the loader cannot preload.
    let broken = "/tmp/libuverbs_guard.so";
    fs::write(broken, "not a library")?;
    let output = Command::new("uverbs")
        .args(["guard", "--library", broken, "--", PROGRAM, "tst"])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(126) && text.contains("does not preload"), "{text}");
    ensure!(output.stdout.is_empty() && Path::new(PROGRAM).exists(), "it was run");
    println!("    {}", text.trim_end());
    Ok(())
}
