//! Paths: the workspace, its target directory, and the lab's part of it.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::FlockOperation;

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target directory.
pub(crate) fn target() -> PathBuf {
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// A directory of the lab beneath the target directory, created if it is missing.
pub(crate) fn lab(part: &str) -> Result<PathBuf> {
    let dir = target().join("lab").join(part);
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Held while kernels, modules and images are prepared, so that several runs can start at once.
pub(crate) struct LabLock(#[expect(dead_code, reason = "closing it releases the lock")] File);

/// Waits for the lock on the lab's directory.
pub(crate) fn lock() -> Result<LabLock> {
    let path = lab("")?.join("lock");
    let file = File::create(&path).with_context(|| format!("opening {}", path.display()))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(LabLock(file))
}
