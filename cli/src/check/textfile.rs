//! Writes a file for node_exporter's textfile collector: whole, or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tempfile::Builder;

use crate::output::Failure;

/// Replaces a file by one with this text, which everybody may read.
///
/// The collector reads files that end in `.prom`, so the temporary one does not. It is in the same directory, because
/// a rename is atomic only within a file system.
///
/// # Errors
/// The path is that of something else than a file, or the file cannot be written. The file is then as it was.
pub(super) fn replace(path: &Path, text: &str) -> Result<(), Failure> {
    let shown = path.as_os_str().as_bytes().escape_ascii();
    // A rename would put a file in place of /dev/null.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let message = format!(
            "\"{shown}\" is not a regular file: name one in an existing directory, or - for stdout"
        );
        return Err(Failure::new("os", message));
    }
    write(path, text).map_err(|error| Failure::os(format_args!("cannot write \"{shown}\""), &error))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut temporary = Builder::new().prefix(".uverbs-").suffix(".tmp").tempfile_in(directory)?;
    temporary.write_all(text.as_bytes())?;
    let file = temporary.as_file();
    // Set here, because an open applies the umask.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.sync_all()?;
    temporary.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("uverbs.prom");
        for text in ["a 1\n", "b 2\n"] {
            replace(&path, text).expect("written");
            assert_eq!(fs::read_to_string(&path).expect("read"), text);
            assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o644);
        }
        let names: Vec<_> = fs::read_dir(directory.path()).expect("read").collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn what_is_not_a_file_is_not_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("uverbs.prom");
        replace(directory.path(), "a 1\n").expect_err("a directory");
        symlink("elsewhere", &path).expect("a link");
        let error = replace(&path, "a 1\n").expect_err("a link").to_string();
        assert!(error.contains("not a regular file"), "{error}");
        let error = replace(&directory.path().join("no/such"), "").expect_err("no directory");
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).expect("read").count(), 1);
    }
}
