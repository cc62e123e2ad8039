//! Container runtimes and promtool, from Debian's packages, for a guest that runs containers.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::apt::Sources;
use crate::cpio::Archive;
use crate::image::{self, Files};
use crate::{packages, paths};

/// The packages of the programs, and those of their libraries that a host may lack.
const PACKAGES: [&str; 11] = [
    "crun",
    "runc",
    "podman",
    "conmon",
    "golang-github-containers-common",
    "prometheus",
    "libyajl2",
    "libsubid4",
    "libgpgme11",
    "libassuan0",
    "libdevmapper1.02.1",
];

/// The guest's programs, and where the packages have them.
const PROGRAMS: [(&str, &str); 5] = [
    ("/usr/bin/crun", "usr/bin/crun"),
    ("/usr/bin/runc", "usr/sbin/runc"),
    ("/usr/bin/podman", "usr/bin/podman"),
    ("/usr/bin/conmon", "usr/bin/conmon"),
    ("/usr/bin/promtool", "usr/bin/promtool"),
];

/// The seccomp profile that podman applies, and other engines like it.
const SECCOMP: &str = "usr/share/containers/seccomp.json";

/// Lets podman run a root directory that no registry has signed.
const POLICY: &[u8] = b"{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}\n";

/// The archive to append to the base image. It is made once; removing `target/lab/containers` renews it.
pub(crate) fn layer() -> Result<PathBuf> {
    let dir = paths::lab("containers")?;
    let mut hasher = DefaultHasher::new();
    (PACKAGES, PROGRAMS, SECCOMP, POLICY).hash(&mut hasher);
    let layer = dir.join(format!("layer-{:016x}.cpio", hasher.finish()));
    if layer.is_file() {
        return Ok(layer);
    }
    image::remove_older(&dir, "layer-")?;
    let unpacked = dir.join("unpacked");
    if unpacked.exists() {
        fs::remove_dir_all(&unpacked)?;
    }
    packages::unpack(&Sources::host(), &PACKAGES.map(str::to_owned), &unpacked)?;
    let mut files = Files::new();
    for (path, program) in PROGRAMS {
        let program = unpacked.join(program);
        image::add_program_with(&mut files, path, &program, Some(&unpacked))?;
    }
    files.insert(format!("/{SECCOMP}"), unpacked.join(SECCOMP));
    let partial = dir.join("partial");
    write(&files, &partial).with_context(|| format!("writing {}", partial.display()))?;
    fs::rename(&partial, &layer)?;
    // All that is needed of it is in the archive.
    fs::remove_dir_all(&unpacked)?;
    Ok(layer)
}

fn write(files: &Files, to: &Path) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(fs::File::create(to)?));
    for dir in ["/var/lib/containers", "/var/tmp"] {
        archive.directory(dir)?;
    }
    archive.symlink("/var/run", "../run")?;
    archive.file("/etc/containers/policy.json", 0o644, POLICY)?;
    image::write_files(&mut archive, files)?;
    // lab/guest/init prepares the root directory for containers where this is present.
    archive.file("/lab/containers", 0o644, b"")?;
    archive.finish()?.flush()?;
    Ok(())
}
