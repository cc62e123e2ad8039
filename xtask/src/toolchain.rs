//! The programs in a kernel's headers package, when they come from a later Debian release than the host's.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::Sources;
use crate::{packages, tools};

/// Relative to an unpacked kernel.
const LOADER: &str = "libc/usr/lib64/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "libc/usr/lib/x86_64-linux-gnu";

/// Makes the programs run that need a later C library than the host's. Only they get that library. The unpacked
/// contents of `partial` will be in `dir`.
pub(crate) fn adapt(sources: &Sources, partial: &Path, dir: &Path) -> Result<()> {
    let mut programs = Vec::new();
    for entry in fs::read_dir(partial.join("usr/lib"))? {
        let path = entry?.path();
        if path.to_string_lossy().contains("/linux-kbuild-") {
            find_programs(&path, &mut programs)?;
        }
    }
    programs.retain(|program| lacks_library(program));
    if programs.is_empty() {
        return Ok(());
    }
    packages::unpack(sources, &["libc6".to_owned()], &partial.join("libc"))?;
    for program in programs {
        let elf = program.with_extension(match program.extension().and_then(|ext| ext.to_str()) {
            Some(extension) => format!("{extension}.elf"),
            None => "elf".to_owned(),
        });
        fs::rename(&program, &elf)?;
        let elf = dir.join(elf.strip_prefix(partial).context("a program of another kernel")?);
        let script = format!(
            "#!/bin/sh\nexec '{}' --library-path '{}' '{}' \"$@\"\n",
            dir.join(LOADER).display(),
            // All other libraries are the host's.
            [dir.join(LIBRARIES).to_string_lossy().as_ref(), "/usr/lib/x86_64-linux-gnu"].join(":"),
            elf.display(),
        );
        fs::write(&program, script)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn find_programs(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            find_programs(&path, found)?;
        } else if kind.is_file() && tools::is_executable(&path) {
            found.push(path);
        }
    }
    Ok(())
}

/// Whether the host's C library is too old for the program. A script needs no libraries.
fn lacks_library(program: &Path) -> bool {
    let output = tools::command("ldd").arg(program).output();
    output.is_ok_and(|output| {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        text.lines().any(|line| line.contains("GLIBC_") && line.contains("not found"))
    })
}
