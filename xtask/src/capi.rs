//! The C library: links libuverbs, and builds the C programs of the lab.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{paths, tools};

/// The version of the library, and of its interface (`SONAME`).
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");
pub(crate) const SONAME: &str = "libuverbs.so.0";

/// What Rust's standard library needs (`--print native-static-libs`).
const LIBRARIES: [&str; 7] = ["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"];

/// A directory with the built library: libuverbs.so with its links, and libuverbs.a.
pub(crate) struct Library {
    pub(crate) directory: PathBuf,
}

impl Library {
    pub(crate) fn shared(&self) -> PathBuf {
        self.directory.join(format!("libuverbs.so.{VERSION}"))
    }

    pub(crate) fn archive(&self) -> PathBuf {
        self.directory.join("libuverbs.a")
    }
}

/// The directory of the package.
pub(crate) fn package() -> PathBuf {
    paths::workspace().join("capi")
}

/// Builds the library. rustc cannot link a shared library with versions of symbols, so the C compiler does.
pub(crate) fn build() -> Result<Library> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let args = ["build", "--quiet", "--release", "--package", "uverbs-capi"];
    tools::run(Command::new(cargo).current_dir(paths::workspace()).args(args))?;
    let directory = paths::target().join("capi");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let library = Library { directory };
    let made = paths::target().join("release/libuverbs_capi.a");
    fs::copy(&made, library.archive()).with_context(|| format!("copying {}", made.display()))?;
    let map = package().join("libuverbs.map");
    tools::run(
        tools::command("cc")
            .args(["-shared", "-o"])
            .arg(library.shared())
            .arg(format!("-Wl,--version-script={}", map.display()))
            .arg(format!("-Wl,-soname,{SONAME}"))
            .args(["-Wl,-z,defs", "-Wl,-z,relro,-z,now", "-Wl,--gc-sections", "-Wl,--strip-debug"])
            .arg("-Wl,--whole-archive")
            .arg(&made)
            .arg("-Wl,--no-whole-archive")
            .args(LIBRARIES),
    )?;
    link(&library.directory)?;
    Ok(library)
}

/// Makes the links through which the loader and the linker find the library.
pub(crate) fn link(directory: &Path) -> Result<()> {
    let names = [(SONAME, format!("libuverbs.so.{VERSION}")), ("libuverbs.so", SONAME.to_owned())];
    for (name, to) in names {
        let link = directory.join(name);
        let _ = fs::remove_file(&link);
        symlink(to, &link).with_context(|| format!("making {}", link.display()))?;
    }
    Ok(())
}

/// The examples that run in the lab, each also with AddressSanitizer: name, source, compiler, and what else it links.
const PROGRAMS: [(&str, &str, &str, &[&str]); 4] = [
    ("capi-list", "list.c", "gcc", &[]),
    ("capi-open", "open.c", "gcc", &[]),
    ("capi-watch", "watch.cc", "g++", &[]),
    ("capi-verify", "verify.c", "gcc", &["-libverbs"]),
];
const SANITIZED: &str = "-asan";

/// Builds the library, and the examples against it.
pub(crate) fn build_programs() -> Result<()> {
    let library = build()?;
    let directory = programs_directory();
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for (name, source, compiler, libraries) in PROGRAMS {
        let source = package().join("examples").join(source);
        for (suffix, option) in [("", "-O2"), (SANITIZED, ASAN)] {
            let program = directory.join(format!("{name}{suffix}"));
            compile(&library, compiler, option, &source, &program, libraries)?;
        }
    }
    let list = package().join("examples/list.c");
    let text = fs::read_to_string(&list).with_context(|| format!("reading {}", list.display()))?;
    let leaking = text.replace("    uverbs_list_unref(list);\n", "");
    ensure!(leaking != text, "{}: no list is dropped", list.display());
    let source = directory.join("leaks.c");
    fs::write(&source, leaking).with_context(|| format!("writing {}", source.display()))?;
    compile(&library, "gcc", ASAN, &source, &directory.join(LEAKS), &[])
}

const ASAN: &str = "-fsanitize=address";
/// The control: an example that drops no list.
const LEAKS: &str = "capi-leaks-asan";

fn compile(
    library: &Library,
    compiler: &str,
    option: &str,
    source: &Path,
    program: &Path,
    libraries: &[&str],
) -> Result<()> {
    tools::run(
        tools::command(compiler)
            .args([option, "-g", "-Wall", "-Wextra", "-Werror", "-o"])
            .arg(program)
            .arg(source)
            .arg("-I")
            .arg(package().join("include"))
            .arg("-L")
            .arg(&library.directory)
            // The guest has the library in the same directory.
            .arg(format!("-Wl,-rpath,{}", library.directory.display()))
            .arg("-luverbs")
            .args(libraries),
    )
}

fn programs_directory() -> PathBuf {
    paths::target().join("capi/programs")
}

/// The examples that have been built.
pub(crate) fn programs() -> Vec<PathBuf> {
    let names = PROGRAMS.iter().flat_map(|(name, ..)| ["", SANITIZED].map(|it| (*name, it)));
    names
        .map(|(name, suffix)| format!("{name}{suffix}"))
        .chain([LEAKS.to_owned()])
        .map(|name| programs_directory().join(name))
        .filter(|program| tools::is_executable(program))
        .collect()
}
