//! Debian packages: finds missing ones, installs them, and unpacks packages without installing them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::apt::Sources;
use crate::tools;

/// Programs of the host and of the guest, and the package of each.
const NEEDED: [(&str, &str); 18] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("dash", "dash"),
    ("ip", "iproute2"),
    ("rdma", "iproute2"),
    ("ibv_devices", "ibverbs-utils"),
    ("ibv_devinfo", "ibverbs-utils"),
    ("ibv_rc_pingpong", "ibverbs-utils"),
    ("rping", "rdmacm-utils"),
    ("ib_write_bw", "perftest"),
    ("strace", "strace"),
    ("kmod", "kmod"),
    ("depmod", "kmod"),
    ("make", "make"),
    ("gcc", "gcc"),
    ("g++", "g++"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Makes sure that every program that the lab runs is installed.
pub(crate) fn ensure_tools() -> Result<()> {
    let mut missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(program, _)| tools::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if rxe_provider().is_none() {
        missing.push("ibverbs-providers");
    }
    if !Path::new("/usr/include/infiniband/verbs.h").exists() {
        missing.push("libibverbs-dev");
    }
    missing.sort_unstable();
    missing.dedup();
    ensure(&missing)
}

/// libibverbs' provider for rxe. Its name contains the version of the private interface.
pub(crate) fn rxe_provider() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = ["/usr/lib/x86_64-linux-gnu/libibverbs", "/usr/lib64/libibverbs"]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"librxe-rdmav"))
        })
        .collect();
    found.sort();
    found.pop()
}

/// Installs packages as root. Otherwise fails, and names the packages to install.
pub(crate) fn ensure(missing: &[&str]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if tools::find("apt-get").is_none() {
        bail!("the lab needs the contents of these Debian packages: {list}");
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "the lab needs packages that are not installed: run `apt-get install --no-install-recommends {list}` as root"
        );
    }
    eprintln!("xtask: installing {list}");
    if install(missing).is_err() {
        Sources::host().update()?;
        install(missing)?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    tools::run(
        tools::command("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages),
    )
}

/// The names of all packages with this prefix.
pub(crate) fn names(sources: &Sources, prefix: &str) -> Result<Vec<String>> {
    let text = tools::text(sources.command("apt-cache").args(["pkgnames", prefix]))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The versions in which each of these packages can be downloaded.
pub(crate) fn versions(
    sources: &Sources,
    names: &[String],
) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    if names.is_empty() {
        return Ok(found);
    }
    let text = tools::text(sources.command("apt-cache").arg("madison").args(names))?;
    for line in text.lines().filter(|line| line.ends_with("Packages")) {
        let mut fields = line.split('|').map(str::trim);
        if let (Some(name), Some(version)) = (fields.next(), fields.next()) {
            found.entry(name.to_owned()).or_default().push(version.to_owned());
        }
    }
    Ok(found)
}

/// Whether the first version is later than the second, by Debian's rules.
pub(crate) fn is_newer(version: &str, than: &str) -> bool {
    tools::command("dpkg")
        .args(["--compare-versions", version, "gt", than])
        .status()
        .is_ok_and(|status| status.success())
}

/// The direct dependencies of a package, without alternatives and versions.
pub(crate) fn dependencies(sources: &Sources, name: &str, version: &str) -> Result<Vec<String>> {
    let text = tools::text(
        sources
            .command("apt-cache")
            .args(["show", "--no-all-versions"])
            .arg(format!("{name}={version}")),
    )?;
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends:")).unwrap_or_default();
    Ok(depends
        .split(',')
        .filter_map(|one| one.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Downloads packages (`name`, `name=version` or `name/suite`) and unpacks them into a directory, without installing them.
pub(crate) fn unpack(sources: &Sources, packages: &[String], into: &Path) -> Result<()> {
    let debs = into.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("making {}", debs.display()))?;
    eprintln!("xtask: downloading {}", packages.join(" "));
    let download = || {
        tools::run(
            sources.command("apt-get").current_dir(&debs).args(["-q", "download"]).args(packages),
        )
    };
    if let Err(first) = download() {
        sources.update().context(first)?;
        download()?;
    }
    for deb in fs::read_dir(&debs)? {
        let args: [OsString; 3] = ["-x".into(), deb?.path().into(), into.into()];
        tools::run(tools::command("dpkg-deb").args(args))?;
    }
    fs::remove_dir_all(&debs)?;
    Ok(())
}
