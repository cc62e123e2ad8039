//! The workspace's programs that go into the guest.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

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

/// The ways in which lab/callers/caller.c is built, each a program on libibverbs of another kind.
const CALLERS: [(&str, &[&str]); 6] = [
    ("ibv-lazy", &["-Wl,-z,lazy"]),
    ("ibv-now", &["-Wl,-z,now"]),
    ("ibv-noplt", &["-fno-plt", "-Wl,-z,now"]),
    ("ibv-dynamic", &["-DDYNAMIC"]),
    ("ibv-plugin.so", &["-DPLUGIN", "-shared", "-fPIC"]),
    ("static-true", &["-static", "-DSTATIC"]),
];

/// Builds the programs on libibverbs. There need be no headers of it.
fn build_callers() -> Result<()> {
    let directory = paths::lab("callers")?;
    let source = paths::workspace().join("lab/callers/caller.c");
    for (name, options) in CALLERS {
        let is_linked = !options.contains(&"-DDYNAMIC") && !options.contains(&"-DSTATIC");
        let mut gcc = tools::command("gcc");
        gcc.args(["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"]).args(options);
        gcc.arg(&source).arg("-o").arg(directory.join(name));
        gcc.args(is_linked.then_some("-l:libibverbs.so.1"));
        tools::run(&mut gcc)?;
    }
    Ok(())
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

/// The programs that have been built: of release and debug builds, the most recent one.
pub(crate) fn programs() -> Vec<PathBuf> {
    let profiles = ["release", "debug"].map(|profile| paths::target().join(profile));
    let mut programs: Vec<PathBuf> = Vec::new();
    for name in ["uverbs", "uverbs-lab"] {
        programs.extend(latest(profiles.iter().map(|dir| dir.join(name))));
    }
    programs.extend(latest([paths::target().join("lsan").join(WITH_LEAK_SANITIZER)].into_iter()));
    programs.extend(latest([guard()].into_iter()));
    if let Ok(directory) = paths::lab("callers") {
        programs.extend(
            CALLERS.iter().filter_map(|(name, _)| latest([directory.join(name)].into_iter())),
        );
    }
    programs.extend(capi::programs());
    programs.extend(latest([paths::target().join("leave-out").join(LEAVING_OUT)].into_iter()));
    for name in examples() {
        programs.extend(latest(profiles.iter().map(|dir| dir.join("examples").join(&name))));
    }
    programs
}

fn latest(files: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    files
        .filter(|file| tools::is_executable(file))
        .max_by_key(|file| file.metadata().and_then(|meta| meta.modified()).ok())
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
