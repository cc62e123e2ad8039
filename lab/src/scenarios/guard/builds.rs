//! Other builds of libibverbs: linked so that its own calls stay inside it, and with a private interface that the guard
//! does not know. Each scenario changes a few bytes in a copy of the guest's files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::caller::{CLASSES, Caller, LAZY, Under, opened, refused};
use super::hca::{add, replace};
use crate::guest;

const DIRECTORY: &str = "/usr/lib/x86_64-linux-gnu";

/// Another file in the place of one, until this is dropped.
struct InPlace(PathBuf);

impl InPlace {
    fn put(path: &Path, bytes: &[u8]) -> Result<Self> {
        let other = Path::new("/tmp").join(path.file_name().context("a name")?);
        fs::write(&other, bytes)?;
        let mode = fs::metadata(path)?.permissions();
        fs::set_permissions(&other, mode)?;
        let (from, to) = (other.display().to_string(), path.display().to_string());
        guest::run("busybox", &["mount", "-o", "bind", &from, &to])?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for InPlace {
    fn drop(&mut self) {
        let _ = guest::run("busybox", &["umount", &self.0.display().to_string()]);
    }
}

/// libibverbs, and its provider for rxe.
fn files() -> Result<[PathBuf; 2]> {
    let library = fs::canonicalize(Path::new(DIRECTORY).join("libibverbs.so.1"))?;
    let providers = guest::names(Path::new(DIRECTORY).join("libibverbs"));
    let provider =
        providers.iter().find(|name| name.starts_with("librxe")).context("no provider")?;
    Ok([library, Path::new(DIRECTORY).join("libibverbs").join(provider)])
}

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).context("past the end")?;
    Ok(u64::from_le_bytes(word.try_into()?))
}

/// The position of the dynamic section in the file, from the program headers (`elf(5)`).
fn dynamic(bytes: &[u8]) -> Result<usize> {
    const PT_DYNAMIC: u64 = 2;
    let (table, count) = (word(bytes, 0x20)? as usize, word(bytes, 0x38)? & 0xffff);
    for number in 0..count as usize {
        let at = table + number * 56;
        if word(bytes, at)? & 0xffff_ffff == PT_DYNAMIC {
            return Ok(word(bytes, at + 8)? as usize);
        }
    }
    anyhow::bail!("no dynamic section")
}

/// As linked with `-Bsymbolic`: the library's own references are resolved in the library first (`DF_SYMBOLIC`).
fn symbolic(bytes: &mut [u8]) -> Result<()> {
    const DT_FLAGS: u64 = 30;
    const DF_SYMBOLIC: u8 = 2;
    let mut at = dynamic(bytes)?;
    while word(bytes, at)? != DT_FLAGS {
        ensure!(word(bytes, at)? != 0, "libibverbs has no DT_FLAGS");
        at += 16;
    }
    bytes[at + 8] |= DF_SYMBOLIC;
    Ok(())
}

/// The hash of a version's name (`System V ABI`, "Hash Table").
fn hash(name: &[u8]) -> u32 {
    name.iter().fold(0, |hash: u32, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(*byte));
        let high = hash & 0xf000_0000;
        (hash ^ (high >> 24)) & !high
    })
}

/// Replaces each occurrence. Returns how many there were.
fn substitute(bytes: &mut [u8], from: &[u8], to: &[u8]) -> usize {
    let places: Vec<_> =
        (0..bytes.len() - from.len()).filter(|at| bytes[*at..].starts_with(from)).collect();
    for &at in &places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    places.len()
}

/// With another private interface, of the same length.
fn renumbered(bytes: &mut [u8], from: &[u8], to: &[u8]) -> Result<()> {
    let names = substitute(bytes, from, to);
    let hashes = substitute(bytes, &hash(from).to_le_bytes(), &hash(to).to_le_bytes());
    ensure!(names == 1 && hashes == 1, "{names} names and {hashes} hashes");
    Ok(())
}

/// Calls inside libibverbs cannot be interposed there. The guard does not rely on them.
pub(in crate::scenarios) fn symbolic_library() -> Result<()> {
    let [library, _] = files()?;
    let mut bytes = fs::read(&library)?;
    symbolic(&mut bytes)?;
    let _in_place = InPlace::put(&library, &bytes)?;
    for class in CLASSES {
        add("tst", 0xa0)?;
        let mut caller = Caller::start(class, Under::Guard(&[]), "tst")?;
        let first = caller.open()?;
        replace(0xa0)?;
        let (second, third) = (caller.open()?, caller.list_and_open()?);
        let found = [first, second, third];
        let expected = [opened(0xa0), refused(), opened(0xa0)];
        ensure!(found == expected, "{}: {found:?}: {}", class.name, caller.end()?);
        caller.end()?;
        guest::hca("del-sync name=tst")?;
    }
    Ok(())
}

/// A provider beside those of the guest, until this is dropped.
struct Beside(PathBuf);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The files of Debian 11, with an older private interface, in the place of the guest's.
pub(in crate::scenarios) fn older_library() -> Result<()> {
    let file = |directory: &str, start: &str| {
        let names = guest::names(directory);
        let name = names.iter().find(|name| name.starts_with(start));
        name.map(|name| Path::new(directory).join(name)).with_context(|| format!("no {start}*"))
    };
    let older = file("/usr/bin", "libibverbs.so.1.")?;
    let provider = file("/add", "librxe-rdmav")?;
    let [library, _] = files()?;
    let name = provider.file_name().context("a name")?;
    let beside = Path::new(DIRECTORY).join("libibverbs").join(name);
    ensure!(!beside.exists(), "{} is there: these files are not older", beside.display());
    fs::copy(&provider, &beside)?;
    let _beside = Beside(beside);
    let _in_place = InPlace::put(&library, &fs::read(older)?)?;
    for class in CLASSES {
        add("tst", 0xa0)?;
        let mut guarded = Caller::start(class, Under::Guard(&[]), "tst")?;
        let mut control = Caller::start(class, Under::Nothing, "tst")?;
        let mut found = Vec::new();
        for caller in [&mut guarded, &mut control] {
            found.push(caller.open()?);
        }
        replace(0xb0)?;
        found.extend([control.open()?, guarded.open()?, guarded.list_and_open()?]);
        let expected = [opened(0xa0), opened(0xa0), opened(0xb0), refused(), opened(0xb0)];
        ensure!(found[..] == expected, "{}: {found:?}: {}", class.name, guarded.end()?);
        ensure!(guarded.end()?.lines().count() == 1, "{}", class.name);
        control.end()?;
        guest::hca("del-sync name=tst")?;
    }
    println!("    {} classes of callers on {}", CLASSES.len(), name.display());
    Ok(())
}

/// A private interface that the guard does not know is refused, with the reason. Without the guard it works.
pub(in crate::scenarios) fn unknown_interface() -> Result<()> {
    const PREFIX: &[u8] = b"IBVERBS_PRIVATE_";
    let files = files()?;
    let mut in_place = Vec::new();
    for path in &files {
        let mut bytes = fs::read(path)?;
        let at = bytes.windows(PREFIX.len()).position(|window| window == PREFIX);
        let at = at.context("no private interface")?;
        let known = bytes[at..at + PREFIX.len() + 2].to_vec();
        let unknown = [PREFIX, b"99"].concat();
        renumbered(&mut bytes, &known, &unknown)?;
        in_place.push(InPlace::put(path, &bytes)?);
    }
    add("tst", 0xa0)?;
    let mut control = Caller::start(LAZY, Under::Nothing, "tst")?;
    let mut caller = Caller::start(LAZY, Under::Guard(&[]), "tst")?;
    let found = [control.open()?, caller.open()?];
    control.end()?;
    let messages = caller.end()?;
    ensure!(found == [opened(0xa0), refused()], "{found:?}: {messages}");
    ensure!(messages.lines().count() == 1 && messages.contains("private interface"), "{messages}");
    print!("    {messages}");
    Ok(())
}
