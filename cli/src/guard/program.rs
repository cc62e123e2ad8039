//! The program that is to be run: which file it is, and whether a preloaded library gets into it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use object::read::elf::{FileHeader, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSymbol as _, elf};

use super::show;
use crate::output::Failure;

/// How many interpreters the kernel follows (`exec_binprm`, `fs/exec.c`).
const DEPTH: usize = 5;
/// The length of the line that names an interpreter (`BINPRM_BUF_SIZE`).
const LINE: usize = 256;
/// Where execvp(3) searches if there is no PATH.
const PATH: &str = "/bin:/usr/bin";

/// A program, and the interpreters that the kernel starts for it.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) file: PathBuf,
    /// The file itself, its interpreter, and so on. The last one is a binary.
    pub(super) chain: Vec<Link>,
}

#[derive(Debug)]
pub(super) struct Link {
    pub(super) file: PathBuf,
    /// The dynamic loader, where this is a binary that has one.
    pub(super) loader: Option<PathBuf>,
    is_binary: bool,
}

impl Program {
    /// Finds it as execvp(3) does, and follows its interpreters.
    pub(super) fn find(name: &OsStr, path: Option<&OsStr>) -> Result<Self, Failure> {
        let file = resolve(name, path)?;
        let mut chain = Vec::new();
        let mut next = file.clone();
        loop {
            let link = Link::read(&next)?;
            let interpreter = if link.is_binary { None } else { Some(interpreter(&next)?) };
            chain.push(link);
            let Some(interpreter) = interpreter else { break };
            if chain.len() > DEPTH {
                return Err(refused(&file, "it has more interpreters than the kernel follows"));
            }
            next = interpreter;
        }
        Ok(Self { file, chain })
    }

    pub(super) fn show(&self) -> String {
        show(self.file.as_os_str())
    }

    /// Requires that the loader of the last binary preloads what it is told to.
    pub(super) fn require_guardable(&self) -> Result<(), Failure> {
        let Some(last) = self.chain.last() else { return Ok(()) };
        let file = &last.file;
        let Some(loader) = &last.loader else {
            return Err(refused(file, "it is a static program, into which nothing is preloaded"));
        };
        let name = loader.file_name().map(OsStr::as_bytes).unwrap_or_default();
        // Others, such as musl's, would run the program when they are asked what it loads.
        if !name.starts_with(b"ld-linux") && !name.starts_with(b"ld64.so") {
            let text = format!("its loader is {}, not that of glibc", show(loader.as_os_str()));
            return Err(refused(file, &text));
        }
        let meta = fs::metadata(file).map_err(|error| failed(file, &error))?;
        if meta.mode() & 0o6000 != 0 {
            let text = "it is setuid or setgid, and the loader preloads nothing into it";
            return Err(refused(file, text));
        }
        match rustix::fs::getxattr(file, "security.capability", &mut [0; 64][..]) {
            Ok(_) => Err(refused(
                file,
                "it has file capabilities, and the loader preloads nothing into it",
            )),
            Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
            Err(errno) => Err(failed(file, &errno.into())),
        }
    }
}

impl Link {
    fn read(file: &Path) -> Result<Self, Failure> {
        let bytes = read(file)?;
        let (file, is_binary) = (file.to_owned(), bytes.starts_with(&elf::ELFMAG));
        let loader = match bytes.get(4) {
            Some(&elf::ELFCLASS64) if is_binary => loader::<elf::FileHeader64<Endianness>>(&bytes),
            Some(&elf::ELFCLASS32) if is_binary => loader::<elf::FileHeader32<Endianness>>(&bytes),
            _ => Ok(None),
        };
        let loader =
            loader.map_err(|error| refused(&file, &format!("it is malformed: {error}")))?;
        Ok(Self { file, loader, is_binary })
    }
}

/// Longer than any program that somebody runs.
const LONGEST: u64 = 4 << 30;

/// The contents of a regular file.
fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    let meta = fs::metadata(file).map_err(|error| failed(file, &error))?;
    if !meta.is_file() || meta.len() > LONGEST {
        return Err(refused(file, "it is no regular file, or too long to look into"));
    }
    fs::read(file).map_err(|error| failed(file, &error))
}

/// Whether other libraries' calls at the border between libibverbs and its providers would come to this file.
pub(super) fn defines_the_border(file: &Path) -> Result<bool, Failure> {
    const BORDER: [&[u8]; 3] =
        [b"_verbs_init_and_alloc_context", b"ibv_cmd_get_context", b"ibv_cmd_query_context"];
    let bytes = read(file)?;
    let parsed = object::File::parse(&*bytes);
    let parsed = parsed.map_err(|error| refused(file, &format!("it is malformed: {error}")))?;
    let mut defined = parsed.dynamic_symbols().filter(|symbol| symbol.is_definition());
    Ok(defined.any(|symbol| symbol.name_bytes().is_ok_and(|name| BORDER.contains(&name))))
}

/// Whether the file has libibverbs in it: a warning of libibverbs, which stripping leaves there.
pub(super) fn contains_libibverbs(file: &Path) -> Result<bool, Failure> {
    const WARNING: &[u8] = b"libibverbs: Warning: couldn't allocate driver";
    let bytes = read(file)?;
    // Most positions begin with another byte.
    let starts = bytes.iter().enumerate().filter(|(_, byte)| **byte == WARNING[0]);
    Ok(starts.into_iter().any(|(at, _)| bytes[at..].starts_with(WARNING)))
}

/// The text of PT_INTERP.
fn loader<Elf: FileHeader<Endian = Endianness>>(bytes: &[u8]) -> object::Result<Option<PathBuf>> {
    let header = Elf::parse(bytes)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, bytes)? {
        if let Some(text) = segment.interpreter(endian, bytes)? {
            return Ok(Some(PathBuf::from(OsStr::from_bytes(text))));
        }
    }
    Ok(None)
}

/// The interpreter of a file that is no binary: that of its first line, or, as execvp(3) has it, the shell.
fn interpreter(file: &Path) -> Result<PathBuf, Failure> {
    let mut line = Vec::new();
    if !fs::metadata(file).map_err(|error| failed(file, &error))?.is_file() {
        return Err(refused(file, "it is no regular file"));
    }
    let read = File::open(file).and_then(|open| open.take(LINE as u64).read_to_end(&mut line));
    read.map_err(|error| failed(file, &error))?;
    let Some(line) = line.strip_prefix(b"#!") else { return Ok(PathBuf::from("/bin/sh")) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
    match words.next() {
        Some(word) => Ok(PathBuf::from(OsString::from_vec(word.to_vec()))),
        None => Err(refused(file, "its first line names no interpreter")),
    }
}

fn resolve(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, Failure> {
    if name.as_bytes().contains(&b'/') {
        let file = PathBuf::from(name);
        return match runnable(&file) {
            Ok(()) => Ok(file),
            Err(error) => Err(failed(&file, &error)),
        };
    }
    let path = path.unwrap_or(OsStr::new(PATH)).as_bytes();
    // As execvp does, goes on after a file that may not be run, and reports that if there is no other.
    let mut denied = None;
    for directory in path.split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let file = Path::new(OsStr::from_bytes(directory)).join(name);
        match runnable(&file) {
            Ok(()) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                denied.get_or_insert(failed(&file, &error));
            }
            Err(_) => {}
        }
    }
    let text = || format!("{} is in no directory of PATH", show(name));
    Err(denied.unwrap_or_else(|| Failure::new("not_found", text()).not_run(true)))
}

fn runnable(file: &Path) -> io::Result<()> {
    let meta = fs::metadata(file)?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    rustix::fs::access(file, rustix::fs::Access::EXEC_OK)?;
    Ok(())
}

fn failed(file: &Path, error: &io::Error) -> Failure {
    let what = format!("cannot run {}", show(file.as_os_str()));
    Failure::os(what, error).not_run(error.kind() == io::ErrorKind::NotFound)
}

pub(super) fn refused(file: &Path, reason: &str) -> Failure {
    let text = format!("{} was not run: {reason}", show(file.as_os_str()));
    Failure::new("unsupported", text).not_run(false)
}
