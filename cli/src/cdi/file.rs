//! Writes the CDI file: whole or not at all, and never over a file of somebody else.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Deserialize;
use tempfile::Builder;

use super::spec::Kind;
use crate::output::Failure;

/// Far more than the file of 8,192 devices has, which is the kernel's limit.
const LENGTH_MAX: u64 = 32 << 20;

/// What was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The file was as it should be.
    Nothing,
    Written,
    Removed,
}

/// The file, and the kind of devices that it is for.
pub(super) struct Target {
    path: PathBuf,
    kind: String,
}

/// What every CDI file has.
#[derive(Deserialize)]
struct AnyFile {
    kind: String,
}

impl Target {
    /// # Errors
    /// Wrong usage: loaders would not read the file.
    pub(super) fn new(path: PathBuf, kind: &Kind) -> Result<Self, Failure> {
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        match is_json && path.file_stem().is_some_and(|name| !name.as_bytes().starts_with(b".")) {
            true => Ok(Self { path, kind: kind.to_string() }),
            false => Err(Failure::usage("a CDI file ends in .json, and does not begin with a dot")),
        }
    }

    pub(super) fn shown(&self) -> String {
        self.path.as_os_str().as_bytes().escape_ascii().to_string()
    }

    /// Writes the file, or removes it if there is nothing to write. Touches nothing if it is right.
    ///
    /// # Errors
    /// There is something else under its name, or a call failed. The file is then as it was.
    pub(super) fn put(&self, text: Option<&[u8]>) -> Result<Done, Failure> {
        let there = self.read()?;
        let failed = |what| {
            move |error| Failure::os(format_args!("cannot {what} \"{}\"", self.shown()), &error)
        };
        match (there, text) {
            (None, None) => Ok(Done::Nothing),
            (Some(there), Some(text)) if there == text => Ok(Done::Nothing),
            (Some(_), None) => {
                fs::remove_file(&self.path).map_err(failed("remove"))?;
                Ok(Done::Removed)
            }
            (_, Some(text)) => {
                self.write(text).map_err(failed("write"))?;
                Ok(Done::Written)
            }
        }
    }

    /// The file that is there. It has to be a CDI file of this kind, or it is not replaced.
    fn read(&self) -> Result<Option<Vec<u8>>, Failure> {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened =
            OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // A link is refused as such.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(self.foreign("it is a symbolic link"));
            }
            Err(error) => {
                return Err(Failure::os(format_args!("cannot read \"{}\"", self.shown()), &error));
            }
        };
        let is_file = file.metadata().is_ok_and(|found| found.is_file());
        if !is_file {
            return Err(self.foreign("it is not a regular file"));
        }
        let mut text = Vec::new();
        file.take(LENGTH_MAX).read_to_end(&mut text).map_err(|error| {
            Failure::os(format_args!("cannot read \"{}\"", self.shown()), &error)
        })?;
        match serde_json::from_slice::<AnyFile>(&text) {
            Ok(found) if found.kind == self.kind => Ok(Some(text)),
            _ => Err(self.foreign(&format!("it is no CDI file of the kind {}", self.kind))),
        }
    }

    fn foreign(&self, why: &str) -> Failure {
        let message =
            format!("\"{}\" is not replaced: {why}; remove it, or name another file", self.shown());
        Failure::new("os", message)
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        make_directory(directory)?;
        // Loaders read what ends in .json or .yaml, so the temporary file does not.
        let mut temporary =
            Builder::new().prefix(".uverbs-cdi-").suffix(".tmp").tempfile_in(directory)?;
        temporary.write_all(text)?;
        let file = temporary.as_file();
        // Set here, because an open applies the umask.
        file.set_permissions(Permissions::from_mode(0o644))?;
        file.sync_all()?;
        temporary.persist(&self.path)?;
        File::open(directory)?.sync_all()
    }
}

/// Makes the directory itself if it is missing, as after a reboot. Those above it have to exist.
fn make_directory(directory: &Path) -> io::Result<()> {
    match fs::create_dir(directory) {
        // Set afterwards, because the call applies the umask.
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::cdi::spec::kind;

    fn target(path: PathBuf) -> Target {
        Target::new(path, &kind("vendor.com/foo").expect("a kind")).expect("a target")
    }

    const OURS: &[u8] = br#"{"kind": "vendor.com/foo", "devices": []}"#;
    const NEXT: &[u8] = br#"{"kind": "vendor.com/foo", "devices": [1]}"#;

    #[test]
    fn a_file_is_written_once_and_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        // The directory is made, those above it are not.
        let path = directory.path().join("cdi/a.json");
        let target = target(path.clone());
        assert_eq!(target.put(None).expect("nothing"), Done::Nothing);
        assert_eq!(target.put(Some(OURS)).expect("written"), Done::Written);
        let before = fs::metadata(&path).expect("there");
        assert_eq!(before.permissions().mode() & 0o7777, 0o644);
        assert_eq!(target.put(Some(OURS)).expect("the same"), Done::Nothing);
        assert_eq!(before.modified().ok(), fs::metadata(&path).expect("there").modified().ok());
        assert_eq!(target.put(Some(NEXT)).expect("written"), Done::Written);
        assert_eq!(fs::read(&path).expect("read"), NEXT);
        assert_eq!(fs::read_dir(path.parent().expect("a directory")).expect("read").count(), 1);
        assert_eq!(target.put(None).expect("removed"), Done::Removed);
        assert!(!path.exists());
        let deep = directory.path().join("no/such/a.json");
        assert!(self::target(deep).put(Some(OURS)).is_err());
    }

    /// Engines that run as other users read the directory.
    #[test]
    fn the_umask_does_not_hide_the_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("cdi/a.json");
        let target = target(path.clone());
        // It is the whole process's. What other tests make meanwhile is their own user's all the same.
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        let done = target.put(Some(OURS));
        rustix::process::umask(before);
        assert_eq!(done.expect("written"), Done::Written);
        for (path, mode) in [(path.parent().expect("a directory"), 0o755), (&path, 0o644)] {
            let found = fs::metadata(path).expect("there").permissions().mode() & 0o7777;
            assert_eq!(found, mode, "{}", path.display());
        }
    }

    #[test]
    fn what_is_not_ours_is_neither_replaced_nor_removed() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a.json");
        let target = target(path.clone());
        for contents in [&b""[..], b"root:x:0:0", b"{}", br#"{"kind": "vendor.com/other"}"#, b"[[["]
        {
            fs::write(&path, contents).expect("written");
            for text in [None, Some(OURS)] {
                let error = target.put(text).expect_err("refused").to_string();
                assert!(error.contains("is not replaced"), "{error}");
            }
            assert_eq!(fs::read(&path).expect("read"), contents);
        }
        fs::remove_file(&path).expect("removed");
        let elsewhere = directory.path().join("elsewhere.json");
        fs::write(&elsewhere, OURS).expect("written");
        symlink(&elsewhere, &path).expect("a link");
        for text in [None, Some(NEXT)] {
            let error = target.put(text).expect_err("a link").to_string();
            assert!(error.contains("symbolic link"), "{error}");
        }
        assert_eq!(fs::read(&elsewhere).expect("read"), OURS);
        fs::remove_file(&path).expect("removed");
        fs::create_dir(&path).expect("made");
        assert!(target.put(Some(OURS)).is_err() && target.put(None).is_err());
    }

    #[test]
    fn loaders_read_what_ends_in_json() {
        let kind = kind("a/b").expect("a kind");
        for path in ["/run/cdi/a", "/run/cdi/a.yaml", "/run/cdi/.json", "/run/cdi/.a.json", "/", ""]
        {
            assert!(Target::new(path.into(), &kind).is_err(), "{path}");
        }
    }
}
