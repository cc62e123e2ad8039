//! The workspace's programs that go into the guest.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::apt::Sources;
use crate::{capi, packages, paths, tools};

/// Builds them, one package at a time: built together, features of one would affect another.
pub(crate) fn build() -> Result<()> {
    // With the compilers.
    packages::ensure_tools()?;
    for args in [
        ["--package", "uverbs-cli"].as_slice(),
        ["--package", "uverbs-lab"].as_slice(),
        ["--package", "uverbs", "--examples"].as_slice(),
    ] {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
        tools::run(
            std::process::Command::new(cargo)
                .current_dir(paths::workspace())
                .args(["build", "--quiet", "--release"])
                .args(args),
        )?;
    }
    build_guard()?;
    build_callers()?;
    unpack_older()?;
    capi::build_programs()?;
    build_with_leak_sanitizer()
}

/// The profile of the library that is preloaded, and its directory in the target directory.
const SMALL: &str = "small";
const GUARD: &str = "libuverbs_guard.so";

/// Builds the library that is preloaded.
pub(crate) fn build_guard() -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    tools::run(std::process::Command::new(cargo).current_dir(paths::workspace()).args([
        "build",
        "--quiet",
        "--profile",
        SMALL,
        "--package",
        "uverbs-guard",
    ]))
}

/// The library that is preloaded, once it is built.
pub(crate) fn guard() -> PathBuf {
    paths::target().join(SMALL).join(GUARD)
}

/// The programs on libibverbs, each with its source in lab/callers and options. caller.c is built in several ways, in which
/// programs reach libibverbs.
const CALLERS: [(&str, &str, &[&str]); 8] = [
    ("ibv-lazy", "caller.c", &["-Wl,-z,lazy", LIBIBVERBS]),
    ("ibv-now", "caller.c", &["-Wl,-z,now", LIBIBVERBS]),
    ("ibv-noplt", "caller.c", &["-fno-plt", "-Wl,-z,now", LIBIBVERBS]),
    ("ibv-dynamic", "caller.c", &["-DDYNAMIC"]),
    ("ibv-plugin.so", "caller.c", &["-DPLUGIN", "-shared", "-fPIC", LIBIBVERBS]),
    ("static-true", "caller.c", &["-static", "-DSTATIC"]),
    ("ibv-threads", "threads.c", &["-pthread", LIBIBVERBS]),
    ("ibv-rdmacm", "rdmacm.c", &["-pthread", "-l:librdmacm.so.1", LIBIBVERBS]),
];
/// The library as it is on any host that has the programs of rdma-core.
const LIBIBVERBS: &str = "-l:libibverbs.so.1";

/// Builds the programs on libibverbs. There need be no headers of it.
fn build_callers() -> Result<()> {
    let directory = paths::lab("callers")?;
    for (name, source, options) in CALLERS {
        let mut gcc = tools::command("gcc");
        gcc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]);
        // A library is searched for what the sources before it need.
        gcc.arg(paths::workspace().join("lab/callers").join(source)).args(options);
        gcc.arg("-o").arg(directory.join(name));
        tools::run(&mut gcc)?;
    }
    Ok(())
}

/// libibverbs and its providers of Debian 11 (rdma-core 33), unpacked. Their private interface is another one.
const OLDER: &str = "rdma-core-33";

fn unpack_older() -> Result<()> {
    let directory = paths::lab(OLDER)?;
    if older_files()?.is_empty() {
        let packages = ["libibverbs1/bullseye", "ibverbs-providers/bullseye"].map(str::to_owned);
        packages::unpack(&Sources::bullseye()?, &packages, &directory)?;
    }
    let [library, _provider] = &older_files()?[..] else {
        bail!("no libibverbs or no provider in {}", directory.display())
    };
    // So it is one of the programs, which come into the guest with the libraries that they need.
    fs::set_permissions(library, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The library, and its provider for rxe.
fn older_files() -> Result<Vec<PathBuf>> {
    let directory = paths::lab(OLDER)?.join("usr/lib/x86_64-linux-gnu");
    let find = |directory: &Path, start: &str| {
        let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let mut files = entries.map(|entry| entry.path()).filter(|path| !path.is_symlink());
        files.find(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(start.as_bytes()))
        })
    };
    let library = find(&directory, "libibverbs.so.1.");
    let provider = find(&directory.join("libibverbs"), "librxe-rdmav");
    Ok(library.into_iter().chain(provider).collect())
}

/// Files that the guest has in /add, or, if they are executable, in /usr/bin.
pub(crate) fn files() -> Result<Vec<PathBuf>> {
    older_files()
}

/// Builds the lab's program again, with leak reports. The sanitizer is in the stable toolchain, but its switch is
/// not stable.
fn build_with_leak_sanitizer() -> Result<()> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let directory = paths::target().join("lsan");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    tools::run(
        std::process::Command::new(cargo)
            .current_dir(paths::workspace())
            .args(["build", "--quiet", "--release", "--package", "uverbs-lab", "--target", TARGET])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-Zsanitizer=leak"),
    )?;
    fs::copy(
        directory.join(TARGET).join("release/uverbs-lab"),
        directory.join(WITH_LEAK_SANITIZER),
    )?;
    Ok(())
}

/// Its name in the guest.
const WITH_LEAK_SANITIZER: &str = "uverbs-lab-leaks";

/// Builds the lab's program again, with a library that can leave out essential checks.
pub(crate) fn build_leaving_out() -> Result<()> {
    let directory = paths::target().join("leave-out");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    tools::run(
        std::process::Command::new(cargo)
            .current_dir(paths::workspace())
            .args(["build", "--quiet", "--release", "--package", "uverbs-lab"])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTFLAGS", "--cfg uverbs_leave_out"),
    )?;
    fs::copy(directory.join("release/uverbs-lab"), directory.join(LEAVING_OUT))?;
    Ok(())
}

/// Its name in the guest.
pub(crate) const LEAVING_OUT: &str = "uverbs-lab-leave-out";

/// Builds the programs of examples/other-crates. Returns their paths.
pub(crate) fn build_other_crates() -> Result<Vec<String>> {
    let directory = paths::target().join("other-crates");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    tools::run(
        std::process::Command::new(cargo)
            .current_dir(paths::workspace().join("examples/other-crates"))
            .args(["build", "--quiet", "--release", "--locked"])
            .arg("--target-dir")
            .arg(&directory),
    )?;
    let path = |name: &str| directory.join("release").join(name).display().to_string();
    Ok(["on-ibverbs", "on-sideway"].map(path).to_vec())
}

/// The programs that [`build`] has built. Others, such as a later debug build, are slower and are not taken.
pub(crate) fn programs() -> Vec<PathBuf> {
    let target = paths::target();
    let release = target.join("release");
    let mut programs = ["uverbs", "uverbs-lab"].map(|name| release.join(name)).to_vec();
    programs.extend([target.join("lsan").join(WITH_LEAK_SANITIZER), guard()]);
    if let Ok(directory) = paths::lab("callers") {
        programs.extend(CALLERS.iter().map(|(name, ..)| directory.join(name)));
    }
    programs.extend(capi::programs());
    programs.push(target.join("leave-out").join(LEAVING_OUT));
    programs.extend(examples().into_iter().map(|name| release.join("examples").join(name)));
    programs.retain(|program| tools::is_executable(program));
    programs
}

/// The names of the root package's examples, from its sources: the build directory keeps deleted ones.
fn examples() -> Vec<String> {
    let Ok(entries) = fs::read_dir(paths::workspace().join("examples")) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.extension().is_some_and(|ext| ext == "rs") || path.join("main.rs").is_file()
        })
        .filter_map(|path| Some(Path::new(path.file_stem()?).to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}
