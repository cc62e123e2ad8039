//! The guest: adding, removing and faking devices with the kernel's own means.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev};

/// The control device of the test HCA (`lab/hca/README.md`).
const HCA: &str = "/dev/uverbs_test_hca";

/// The guard's library in the guest.
pub(crate) const GUARD: &str = "/usr/bin/libuverbs_guard.so";

/// The running kernel's release.
pub(crate) fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The running kernel's version: the first two numbers of its release.
pub(crate) fn version() -> Result<(u32, u32)> {
    let release = release();
    let mut numbers = release.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("{release:?} is not a kernel's release"),
    }
}

/// Whether the kernel lists contexts. It lists protection domains from 5.10 on.
pub(crate) fn lists_contexts() -> Result<bool> {
    Ok(version()? >= (5, 13))
}

/// Runs a command to its end. It is an error unless it succeeds.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<Output> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {args:?}: {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    Ok(output)
}

/// The standard output of a command.
pub(crate) fn stdout(program: &str, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(program, args)?.stdout).into_owned())
}

/// Waits for a child up to a limit, then kills it.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if Instant::now() > end {
            child.kill()?;
            child.wait()?;
            bail!("not done after {} s: killed", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends the test HCA one command.
pub(crate) fn hca(command: &str) -> Result<()> {
    if !Path::new(HCA).exists() {
        run("modprobe", &["uverbs_test_hca"])?;
    }
    let mut control = fs::OpenOptions::new().write(true).open(HCA).context(HCA)?;
    // One write is one command.
    control.write_all(command.as_bytes()).with_context(|| format!("test HCA: {command}"))
}

/// The test HCA's description of its devices, one per line.
pub(crate) fn hca_state() -> Result<String> {
    fs::read_to_string(HCA).context("reading the test HCA's state")
}

/// One value from the state line of the live device with that name.
pub(crate) fn hca_value(name: &str, key: &str) -> Result<String> {
    let state = hca_state()?;
    let name = format!("name={name}");
    let line = state
        .lines()
        .find(|line| {
            let mut words = line.split_whitespace();
            words.clone().any(|word| word == name) && words.any(|word| word == "state=live")
        })
        .with_context(|| format!("no live {name} in: {state}"))?;
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(&format!("{key}=")));
    Ok(value.with_context(|| format!("no {key} in: {line}"))?.to_owned())
}

/// Adds a soft-RoCE device on a new dummy network device.
pub(crate) fn add_rxe(name: &str, netdev: &str) -> Result<()> {
    if !Path::new("/sys/class/net").join(netdev).exists() {
        run("ip", &["link", "add", netdev, "type", "dummy"])?;
    }
    run("ip", &["link", "set", netdev, "up"])?;
    run("rdma", &["link", "add", name, "type", "rxe", "netdev", netdev])?;
    Ok(())
}

/// Removes a soft-RoCE device. It waits for open descriptors.
pub(crate) fn delete_rxe(name: &str) -> Result<()> {
    run("rdma", &["link", "delete", name]).map(drop)
}

/// Renames a device.
pub(crate) fn rename(from: &str, to: &str) -> Result<()> {
    run("rdma", &["dev", "set", from, "name", to]).map(drop)
}

/// Makes the kernel drop the dentries and inodes that it caches, including those of sysfs. Entries that were used
/// since the last time get a second chance, so it takes several passes. Pages are kept: sysfs has no cached pages,
/// and dropping those of others takes 40 ms each time.
pub(crate) fn drop_caches() -> Result<()> {
    const DROP: &str = "/proc/sys/vm/drop_caches";
    (0..3).try_for_each(|_| fs::write(DROP, "2")).context("drop_caches")
}

/// Names in a directory, sorted; empty if there is no such directory.
pub(crate) fn names(directory: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut names: Vec<_> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Makes a character device node.
pub(crate) fn mknod(path: impl AsRef<Path>, (major, minor): (u32, u32)) -> Result<()> {
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, path.as_ref(), FileType::CharacterDevice, mode, makedev(major, minor))
        .with_context(|| format!("mknod {}", path.as_ref().display()))?;
    // mknod applies the umask.
    rustix::fs::chmodat(CWD, path.as_ref(), mode, rustix::fs::AtFlags::empty()).context("chmod")
}

/// A directory that stands for `/dev`, on a tmpfs as in a container.
pub(crate) fn container_dev() -> Result<PathBuf> {
    let path = PathBuf::from(format!("/tmp/dev-{}", std::process::id()));
    fs::create_dir_all(path.join("infiniband"))?;
    Ok(path)
}

/// The device number of uverbsN, from sysfs.
pub(crate) fn device_number(uverbs: &str) -> Result<(u32, u32)> {
    let text = fs::read_to_string(format!("/sys/class/infiniband_verbs/{uverbs}/dev"))?;
    let (major, minor) = text.trim().split_once(':').context("dev")?;
    Ok((major.parse()?, minor.parse()?))
}

/// The name of uverbsN, from sysfs.
pub(crate) fn ibdev(uverbs: &str) -> Result<String> {
    let path = format!("/sys/class/infiniband_verbs/{uverbs}/ibdev");
    Ok(fs::read_to_string(path)?.trim_end().to_owned())
}

/// Waits until a condition holds, at most ten seconds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds() {
        if Instant::now() > end {
            bail!("waited 10 s for: {what}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Waits until uverbsN is there, or gone, in /sys and in /dev.
pub(crate) fn until_uverbs(uverbs: &str, there: bool) -> Result<()> {
    let sys = PathBuf::from("/sys/class/infiniband_verbs").join(uverbs);
    until(&format!("{uverbs} to be there: {there}"), || sys.exists() == there)
}

/// Adds a test HCA in place of one whose removal has begun, as uverbs0. The kernel frees the number shortly after the
/// device has gone from /sys, so that it may take several attempts.
pub(crate) fn take_over(name: &str, options: &str) -> Result<()> {
    until_uverbs("uverbs0", false)?;
    until(&format!("{name} to be uverbs0"), || {
        let added = hca(&format!("add name={name} {options}"));
        added.is_ok()
            && (ibdev("uverbs0").is_ok_and(|found| found == name)
                || hca(&format!("del-sync name={name}")).is_err())
    })?;
    ensure!(ibdev("uverbs0")? == name);
    Ok(())
}

/// Restores a host without RDMA devices, with the modules loaded and no node left over.
pub(crate) fn clean() -> Result<()> {
    for module in ["ib_uverbs", "rdma_rxe"] {
        run("modprobe", &[module])?;
    }
    if Path::new(HCA).exists() {
        hca("del-all")?;
        hca("wait-idle")?;
    }
    // The remaining devices are soft-RoCE.
    for link in names("/sys/class/infiniband") {
        delete_rxe(&link)?;
    }
    until("no device left", || {
        !names("/sys/class/infiniband_verbs").iter().any(|name| name.starts_with("uverbs"))
    })?;
    for node in names("/dev/infiniband").iter().filter(|name| name.starts_with("uverbs")) {
        fs::remove_file(Path::new("/dev/infiniband").join(node))?;
    }
    for entry in names("/tmp") {
        let path = Path::new("/tmp").join(entry);
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
    Ok(())
}

/// Reloads modules: the test HCA, rxe, ib_uverbs, and with `core` also the core.
pub(crate) fn reload(core: bool) -> Result<()> {
    // On 5.10, rdma_ucm uses ib_uverbs.
    for module in ["uverbs_test_hca", "rdma_ucm"] {
        let _ = Command::new("rmmod").arg(module).output();
    }
    for module in ["rdma_rxe", "ib_uverbs"] {
        run("rmmod", &[module])?;
    }
    if core {
        // Everything else that uses ib_core goes first, if it is loaded.
        for module in ["rdma_cm", "iw_cm", "ib_umad", "ib_cm", "ib_uverbs_support"] {
            let _ = Command::new("rmmod").arg(module).output();
        }
        run("rmmod", &["ib_core"])?;
    }
    for module in ["ib_uverbs", "rdma_rxe"] {
        run("modprobe", &[module])?;
    }
    Ok(())
}

/// Raises this process' descriptor limit to what a crowd needs.
pub(crate) fn raise_descriptor_limit() -> Result<()> {
    let limit = Some(16384);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit, maximum: limit },
    )?;
    Ok(())
}

/// The descriptors of this process.
pub(crate) fn open_descriptors() -> usize {
    // One of them is the sweep's own.
    names("/proc/self/fd").len().saturating_sub(1)
}
