//! `cargo xtask install`: the command, the C library and what belongs to them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{capi, guest, job, paths, tools};

/// Where to.
pub(crate) struct Places {
    pub(crate) prefix: PathBuf,
    /// Put before every path, for packages. The files do not refer to it.
    pub(crate) destdir: Option<PathBuf>,
    /// Default: PREFIX/lib.
    pub(crate) libdir: Option<PathBuf>,
}

impl Places {
    fn libdir(&self) -> PathBuf {
        self.libdir.clone().unwrap_or_else(|| self.prefix.join("lib"))
    }

    /// The directory of the host for one of the installed system, created if it is missing.
    fn directory(&self, path: &Path) -> Result<PathBuf> {
        let directory = match &self.destdir {
            Some(destdir) => destdir.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        };
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(directory)
    }
}

/// Builds everything and installs it.
pub(crate) fn run(places: &Places) -> Result<u8> {
    for path in [Some(&places.prefix), places.libdir.as_ref()].into_iter().flatten() {
        ensure!(path.is_absolute(), "{}: the path has to be absolute", path.display());
    }
    // Without the simulated kernel, in a directory of its own: the lab takes the command from the usual one.
    let ships = paths::target().join("ships");
    let args =
        ["build", "--quiet", "--release", "--package", "uverbs-cli", "--no-default-features"];
    tools::run(job::cargo().args(args).arg("--target-dir").arg(&ships))?;
    guest::build_guard()?;
    let library = capi::build()?;
    let command = ships.join("release/uverbs");

    copy(&command, &places.directory(&places.prefix.join("bin"))?, 0o755)?;
    let libdir = places.directory(&places.libdir())?;
    copy(&library.shared(), &libdir, 0o755)?;
    copy(&library.archive(), &libdir, 0o644)?;
    capi::link(&libdir)?;
    // Where `uverbs guard` looks for it, beside the command.
    let guarding = places.directory(&places.prefix.join("lib/uverbs"))?;
    copy(&guest::guard(), &guarding, 0o755)?;

    let include = places.prefix.join("include");
    let headers = capi::package().join("include");
    copy(&headers.join("uverbs.h"), &places.directory(&include)?, 0o644)?;
    let header = headers.join("uverbs/ibverbs.h");
    copy(&header, &places.directory(&include.join("uverbs"))?, 0o644)?;
    let pkgconfig = places.directory(&places.libdir().join("pkgconfig"))?;
    write(&pkgconfig.join("uverbs.pc"), &pkg_config(places)?)?;

    let man = places.prefix.join("share/man");
    let man1 = places.directory(&man.join("man1"))?;
    tools::run(Command::new(&command).args(["man", "--dir"]).arg(man1))?;
    for page in pages()? {
        let section = page.extension().unwrap_or_default().to_string_lossy().into_owned();
        let directory = places.directory(&man.join(format!("man{section}")))?;
        copy(&page, &directory, 0o644)?;
        let file = page.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for name in names(&page)? {
            let alias = format!("{name}.{section}");
            if alias != file {
                write(&directory.join(alias), &format!(".so man{section}/{file}\n"))?;
            }
        }
    }
    Ok(0)
}

/// The manual pages of the C interface.
fn pages() -> Result<Vec<PathBuf>> {
    let directory = capi::package().join("man");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// The functions that a page describes, by its section NAME. Each can be looked up.
fn names(page: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))?;
    let section = text.lines().take_while(|line| !line.starts_with(".Nd"));
    let names = section.filter_map(|line| line.strip_prefix(".Nm "));
    Ok(names.map(|name| name.trim_end_matches(" ,").to_owned()).collect())
}

fn pkg_config(places: &Places) -> Result<String> {
    let template = capi::package().join("uverbs.pc.in");
    let text =
        fs::read_to_string(&template).with_context(|| format!("reading {}", template.display()))?;
    Ok(text
        .replace("@prefix@", &places.prefix.to_string_lossy())
        .replace("@libdir@", &places.libdir().to_string_lossy())
        .replace("@version@", capi::VERSION))
}

/// Copies a file into a directory. It is replaced, not overwritten: a program may have it mapped.
fn copy(file: &Path, directory: &Path, mode: u32) -> Result<()> {
    let to = directory.join(file.file_name().unwrap_or_default());
    let data = fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let _ = fs::remove_file(&to);
    fs::write(&to, data).with_context(|| format!("writing {}", to.display()))?;
    fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
    println!("{}", to.display());
    Ok(())
}

fn write(to: &Path, text: &str) -> Result<()> {
    fs::write(to, text).with_context(|| format!("writing {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(0o644))?;
    println!("{}", to.display());
    Ok(())
}
