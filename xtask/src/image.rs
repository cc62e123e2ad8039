//! The initramfs: a base that is kept (tools, libraries, modules) and an overlay for each run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::{module, packages, paths, tools};

/// The guest's first process.
const INIT: &str = include_str!("../../lab/guest/init");

/// A command of the guest that controls the test HCA.
const HCA: &str = include_str!("../../lab/guest/hca");

/// Tools that must be in the guest, and optional ones, which are included if the host has them.
const TOOLS: [&str; 13] = [
    "busybox",
    "dash",
    "kmod",
    "ip",
    "rdma",
    "ibv_devices",
    "ibv_devinfo",
    "ibv_rc_pingpong",
    "ibv_ud_pingpong",
    "ibv_asyncwatch",
    "rping",
    "ib_write_bw",
    "strace",
];
const OPTIONAL_TOOLS: [&str; 4] = ["setpriv", "unshare", "nsenter", "prlimit"];

/// The names under which kmod is called.
const KMOD_NAMES: [&str; 6] = ["modprobe", "rmmod", "insmod", "lsmod", "modinfo", "depmod"];

/// Modules to include with everything that they depend on. Those without a file are built in, or missing from this
/// kernel.
const MODULES: [&str; 13] = [
    "virtio_pci",
    "virtio_console",
    "crc32_generic",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "ib_core",
    "ib_uverbs",
    "rdma_rxe",
    "siw",
    "dummy",
    "veth",
    "ib_umad",
    "rdma_ucm",
];

/// Stands for this program in the list of an image's files.
const PROGRAM: &str = "xtask";

/// Files of the guest by their path there, with the host's file that each comes from.
pub(crate) type Files = BTreeMap<String, PathBuf>;

/// The base image for a kernel. It is rebuilt if anything in it has changed.
pub(crate) fn base(kernel: &Kernel) -> Result<PathBuf> {
    let mut files = Files::new();
    for name in TOOLS {
        let tool = tools::find(name).ok_or_else(|| anyhow!("{name} is not installed"))?;
        add_program(&mut files, &format!("/usr/bin/{name}"), &tool)?;
    }
    for name in OPTIONAL_TOOLS {
        if let Some(tool) = tools::find(name) {
            add_program(&mut files, &format!("/usr/bin/{name}"), &tool)?;
        }
    }
    let provider =
        packages::rxe_provider().ok_or_else(|| anyhow!("no rxe provider of libibverbs"))?;
    add_program(&mut files, guest_path(&provider)?.as_str(), &provider)?;
    add_modules(&mut files, kernel)?;

    let mut hasher = DefaultHasher::new();
    // This program counts, too: it decides what else is in the image.
    let program = std::env::current_exe().context("finding this program")?;
    files.insert(PROGRAM.to_owned(), program);
    for (path, file) in &files {
        let meta = file.metadata().with_context(|| format!("looking at {}", file.display()))?;
        (path, meta.len(), meta.mtime(), meta.mtime_nsec(), meta.mode()).hash(&mut hasher);
    }
    let dir = paths::lab("images")?;
    files.remove(PROGRAM);
    let image = dir.join(format!("base-{}-{:016x}.cpio", kernel.release, hasher.finish()));
    if image.is_file() {
        return Ok(image);
    }
    remove_older(&dir, &format!("base-{}-", kernel.release))?;
    let partial = image.with_extension("partial");
    let out =
        fs::File::create(&partial).with_context(|| format!("making {}", partial.display()))?;
    let mut archive = Archive::new(BufWriter::new(out));
    write_skeleton(&mut archive, &files)?;
    write_files(&mut archive, &files)?;
    archive.finish()?.flush()?;
    fs::rename(&partial, &image)?;
    Ok(image)
}

/// The complete initramfs of one run: the base, further layers, the workspace's programs, the caller's files, and the
/// command.
pub(crate) fn with_overlay(
    layers: &[PathBuf],
    into: &Path,
    programs: &[PathBuf],
    add: &[PathBuf],
    command: &[OsString],
    limit_seconds: u64,
) -> Result<()> {
    let mut out = fs::File::create(into)?;
    for layer in layers {
        let copied = fs::File::open(layer).and_then(|mut from| io::copy(&mut from, &mut out));
        copied.with_context(|| format!("copying {}", layer.display()))?;
    }
    let mut files = Files::new();
    for file in programs.iter().chain(add) {
        let name = file
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| anyhow!("{}: no name to put in the guest", file.display()))?;
        let meta = file.metadata().with_context(|| format!("adding {}", file.display()))?;
        if !meta.is_file() {
            bail!("{}: only files can be added", file.display());
        }
        if meta.permissions().mode() & 0o111 != 0 {
            add_program(&mut files, &format!("/usr/bin/{name}"), file)?;
        } else {
            files.insert(format!("/add/{name}"), file.clone());
        }
    }
    let mut archive = Archive::new(BufWriter::new(out));
    write_files(&mut archive, &files)?;
    archive.file("/lab/command", 0o755, &script(command)?)?;
    archive.file("/lab/limit", 0o644, format!("{limit_seconds}\n").as_bytes())?;
    archive.finish()?.flush()?;
    Ok(())
}

/// A shell script that runs exactly these arguments.
fn script(command: &[OsString]) -> Result<Vec<u8>> {
    let mut text = b"exec".to_vec();
    for word in command {
        if word.as_bytes().contains(&0) {
            bail!("an argument contains a zero byte");
        }
        text.extend_from_slice(b" '");
        for &byte in word.as_bytes() {
            match byte {
                b'\'' => text.extend_from_slice(b"'\\''"),
                byte => text.push(byte),
            }
        }
        text.push(b'\'');
    }
    text.push(b'\n');
    Ok(text)
}

fn write_skeleton<W: Write>(archive: &mut Archive<W>, files: &Files) -> Result<()> {
    for (link, to) in [
        ("/bin", "usr/bin"),
        ("/sbin", "usr/bin"),
        ("/lib", "usr/lib"),
        ("/lib64", "usr/lib64"),
        ("/usr/sbin", "bin"),
    ] {
        archive.symlink(link, to)?;
    }
    for dir in ["/dev", "/proc", "/sys", "/tmp", "/run", "/root", "/etc", "/lab", "/add", "/mnt"] {
        archive.directory(dir)?;
    }
    archive.character_device("/dev/console", 5, 1)?;
    archive.character_device("/dev/null", 1, 3)?;
    archive.file("/init", 0o755, INIT.as_bytes())?;
    archive.file("/usr/bin/hca", 0o755, HCA.as_bytes())?;
    archive.file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    )?;
    archive.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    // libibverbs would warn about every other provider.
    archive.file("/etc/libibverbs.d/rxe.driver", 0o644, b"driver rxe\n")?;
    // Not busybox's `sh`, which runs its own applets instead of the programs on the path.
    archive.symlink("/usr/bin/sh", "dash")?;
    for name in KMOD_NAMES {
        archive.symlink(&format!("/usr/bin/{name}"), "kmod")?;
    }
    for applet in tools::text(tools::command("busybox").arg("--list"))?.lines() {
        let path = format!("/usr/bin/{applet}");
        if !files.contains_key(&path)
            && !KMOD_NAMES.contains(&applet)
            && !["sh", "init"].contains(&applet)
        {
            archive.symlink(&path, "busybox")?;
        }
    }
    Ok(())
}

pub(crate) fn write_files<W: Write>(archive: &mut Archive<W>, files: &Files) -> Result<()> {
    for (path, file) in files {
        let data = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
        let mode = file.metadata()?.permissions().mode() & 0o777;
        archive.file(path, mode, &data)?;
    }
    Ok(())
}

/// Where Debian's packages have shared libraries.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// A program with the shared libraries that it needs, as the dynamic loader finds them.
fn add_program(files: &mut Files, path: &str, program: &Path) -> Result<()> {
    add_program_with(files, path, program, None)
}

/// The same for a program of a package that was only unpacked: its libraries may be there, too.
pub(crate) fn add_program_with(
    files: &mut Files,
    path: &str,
    program: &Path,
    unpacked: Option<&Path>,
) -> Result<()> {
    files.insert(path.to_owned(), program.to_owned());
    let mut ldd = tools::command("ldd");
    ldd.arg(program);
    if let Some(unpacked) = unpacked {
        let directories = LIBRARIES.map(|directory| unpacked.join(directory));
        ldd.env("LD_LIBRARY_PATH", std::env::join_paths(directories)?);
    }
    // For a static program or a script this fails.
    let Ok(text) = tools::text(&mut ldd) else {
        return Ok(());
    };
    for line in text.lines() {
        if line.contains("not found") {
            bail!("{}: {}", program.display(), line.trim());
        }
        if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
            let library = Path::new(library);
            let installed = unpacked.and_then(|unpacked| library.strip_prefix(unpacked).ok());
            let installed = installed.map(|path| Path::new("/").join(path));
            files.insert(guest_path(installed.as_deref().unwrap_or(library))?, library.to_owned());
        }
    }
    Ok(())
}

/// The same path in the guest, where `/lib` and the like are links into `/usr`.
fn guest_path(path: &Path) -> Result<String> {
    let text =
        path.to_str().ok_or_else(|| anyhow!("{}: not a name for the guest", path.display()))?;
    let moved = ["/lib/", "/lib64/", "/bin/", "/sbin/"].iter().any(|dir| text.starts_with(dir));
    Ok(if moved { format!("/usr{text}") } else { text.to_owned() })
}

/// The modules in a separate tree, with `modules.dep` and the like for exactly these.
fn add_modules(files: &mut Files, kernel: &Kernel) -> Result<()> {
    let root = paths::lab("modules")?.join(&kernel.release);
    let tree = root.join("lib/modules").join(&kernel.release);
    fs::create_dir_all(&tree)?;
    let mut changed = false;
    for file in with_dependencies(kernel)? {
        let name = tree.join(file.file_name().unwrap_or_default());
        let plain = match name.extension().and_then(|ext| ext.to_str()) {
            Some("xz" | "zst" | "gz") => name.with_extension(""),
            _ => name.clone(),
        };
        if plain.is_file() && plain.metadata()?.mtime() >= file.metadata()?.mtime() {
            continue;
        }
        let data = match name.extension().and_then(|ext| ext.to_str()) {
            Some("xz") => tools::output(tools::command("xz").arg("-dc").arg(&file))?,
            Some("zst") => tools::output(tools::command("zstd").arg("-dc").arg(&file))?,
            Some("gz") => tools::output(tools::command("gzip").arg("-dc").arg(&file))?,
            _ => fs::read(&file)?,
        };
        fs::write(&plain, data)?;
        changed = true;
    }
    for name in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        let (from, to) = (kernel.modules.join(name), tree.join(name));
        if from.is_file() && !to.is_file() {
            fs::copy(&from, &to)?;
        }
    }
    if let Some(built) = module::build(kernel)? {
        let to = tree.join("uverbs_test_hca.ko");
        let data = fs::read(&built)?;
        if fs::read(&to).ok().as_ref() != Some(&data) {
            fs::write(&to, data)?;
            changed = true;
        }
    }
    if changed || !tree.join("modules.dep").is_file() {
        tools::run(tools::command("depmod").arg("-b").arg(&root).arg(&kernel.release))?;
    }
    for entry in fs::read_dir(&tree)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        files.insert(format!("/usr/lib/modules/{}/{name}", kernel.release), path.clone());
    }
    Ok(())
}

/// The files of the wanted modules and of everything that they depend on, according to the kernel's `modules.dep`.
fn with_dependencies(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let listed = kernel.modules.join("modules.dep");
    if !listed.is_file() {
        // A package that was only unpacked has none.
        let root = kernel
            .modules
            .ancestors()
            .nth(3)
            .ok_or_else(|| anyhow!("{}: too short", kernel.modules.display()))?;
        tools::run(tools::command("depmod").arg("-b").arg(root).arg(&kernel.release))?;
    }
    let text =
        fs::read_to_string(&listed).with_context(|| format!("reading {}", listed.display()))?;
    let mut wanted: Vec<PathBuf> = Vec::new();
    for line in text.lines() {
        let Some((file, needs)) = line.split_once(':') else {
            continue;
        };
        if MODULES.contains(&module_name(file).as_str()) {
            wanted.extend(
                std::iter::once(file)
                    .chain(needs.split_whitespace())
                    .map(|file| kernel.modules.join(file)),
            );
        }
    }
    wanted.sort();
    wanted.dedup();
    Ok(wanted)
}

fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

pub(crate) fn remove_older(dir: &Path, prefix: &str) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
