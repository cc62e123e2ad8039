//! An initramfs archive: the `newc` format of cpio, written without a staging directory and without root.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// Writes one archive. Several archives can follow one another in one file; later entries win.
pub(crate) struct Archive<W> {
    out: W,
    written: u64,
    next_inode: u32,
    directories: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, written: 0, next_inode: 1, directories: BTreeSet::new() }
    }

    /// A directory, and all directories above it.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.contains(path) {
            return Ok(());
        }
        self.parents(path)?;
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, (0, 0), b"")
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, REGULAR | mode, (0, 0), data)
    }

    pub(crate) fn symlink(&mut self, path: &str, to: &str) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, SYMLINK | 0o777, (0, 0), to.as_bytes())
    }

    pub(crate) fn character_device(
        &mut self,
        path: &str,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.parents(path)?;
        self.entry(path, CHARACTER | 0o600, (major, minor), b"")
    }

    /// Ends the archive. The output is aligned so that another archive may follow.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), b"")?;
        let rest = (512 - self.written % 512) % 512;
        self.bytes(&vec![0; rest as usize])?;
        Ok(self.out)
    }

    fn parents(&mut self, path: &str) -> io::Result<()> {
        match Path::new(path).parent().and_then(Path::to_str) {
            Some(parent) => self.directory(parent),
            None => Ok(()),
        }
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> io::Result<()> {
        let name = path.trim_start_matches('/');
        let size = u32::try_from(data.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, path.to_owned()))?;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let fields = [
            self.next_inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime
            size,
            0, // device of the file
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum
        ];
        self.next_inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.bytes(header.as_bytes())?;
        self.bytes(name.as_bytes())?;
        self.bytes(b"\0")?;
        self.align()?;
        self.bytes(data)?;
        self.align()
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    fn align(&mut self) -> io::Result<()> {
        let rest = (4 - self.written % 4) % 4;
        self.bytes(&[0; 3][..rest as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_come_first_and_once() -> io::Result<()> {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a/b/one", 0o644, b"1")?;
        archive.file("/a/b/two", 0o755, b"22")?;
        let bytes = archive.finish()?;
        let text = String::from_utf8_lossy(&bytes);
        let names: Vec<_> = ["a\0", "a/b\0", "a/b/one\0", "a/b/two\0", "TRAILER!!!\0"]
            .iter()
            .map(|name| text.find(name))
            .collect();
        assert!(names.iter().all(Option::is_some), "{names:?}");
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(text.matches("070701").count(), 5);
        assert_eq!(bytes.len() % 512, 0);
        Ok(())
    }
}
