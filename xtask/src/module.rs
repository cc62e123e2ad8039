//! Building the test HCA for a kernel.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::apt::Sources;
use crate::kernel::Kernel;
use crate::{packages, paths, tools};

/// The module's sources in `lab/hca`.
const SOURCES: [&str; 2] = ["Makefile", "uverbs_test_hca.c"];

/// For a kernel that was built with a compiler that the host lacks: the host's own compiler, without the flag that
/// only gcc 14 and later have.
const OTHER_COMPILER: [&str; 2] = ["CC=gcc", "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT="];

/// Builds `uverbs_test_hca.ko` if it is not there yet; `None` for a kernel without headers.
pub(crate) fn build(kernel: &Kernel) -> Result<Option<PathBuf>> {
    let Some(headers) = &kernel.headers else {
        eprintln!("xtask: no headers of {}: the guest goes without the test HCA", kernel.release);
        return Ok(None);
    };
    let source = paths::workspace().join("lab/hca");
    let dir = paths::lab("hca")?.join(&kernel.release);
    fs::create_dir_all(&dir)?;
    let module = dir.join("uverbs_test_hca.ko");
    let mut changed = !module.is_file();
    for name in SOURCES {
        let wanted =
            fs::read(source.join(name)).with_context(|| format!("reading lab/hca/{name}"))?;
        let copy = dir.join(name);
        if fs::read(&copy).ok().as_ref() != Some(&wanted) {
            fs::write(&copy, wanted)?;
            changed = true;
        }
    }
    if !changed {
        return Ok(Some(module));
    }
    let mut settings: &[&str] = &[];
    if let Some(compiler) = compiler(headers)
        && tools::find(&compiler).is_none()
    {
        if packages::versions(&Sources::host(), std::slice::from_ref(&compiler))?.is_empty() {
            eprintln!("xtask: the host has no {compiler}: building the test HCA with its own gcc");
            settings = &OTHER_COMPILER;
        } else {
            packages::ensure(&[compiler.as_str()])?;
        }
    }
    // A build that fails must not leave an older module behind as if it were this one.
    let _ = fs::remove_file(&module);
    let log = dir.join("build.log");
    let output = tools::command("make")
        .arg("-C")
        .arg(&dir)
        .arg(format!("KDIR={}", headers.display()))
        .args(settings)
        .args(["KCFLAGS=-Werror", "modules"])
        .output()
        .context("running make")?;
    let text = [output.stdout, output.stderr].concat();
    fs::write(&log, &text)?;
    if !output.status.success() {
        anyhow::bail!(
            "building the test HCA for {}: {}\n{}",
            kernel.release,
            output.status,
            String::from_utf8_lossy(&text)
        );
    }
    Ok(Some(module))
}

/// The compiler that Debian's headers name, such as `gcc-12`. Its package has the same name.
fn compiler(headers: &std::path::Path) -> Option<String> {
    let text = fs::read_to_string(headers.join(".kernelvariables")).ok()?;
    let at = text.find("gcc-")?;
    let rest = &text[at..];
    let end = rest[4..].find(|c: char| !c.is_ascii_digit()).map_or(rest.len(), |n| n + 4);
    Some(rest[..end].to_owned())
}
