//! The guest: adding, removing and faking devices by the kernel's own means.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev};

/// The control device of the test HCA (`lab/hca/README.md`).
const HCA: &str = "/dev/uverbs_test_hca";

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
        _ => bail!("{release:?} is no kernel's release"),
    }
}

/// Whether the kernel lists contexts. Protection domains it lists from 5.10 on.
pub(crate) fn lists_contexts() -> Result<bool> {
    Ok(version()? >= (5, 13))
}

/// Runs a command to its end; an error unless it succeeds.
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

/// What a command prints.
pub(crate) fn stdout(program: &str, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(program, args)?.stdout).into_owned())
}

/// Waits for a child within bounds, and kills it when they are over.
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

/// Gives the test HCA one command.
pub(crate) fn hca(command: &str) -> Result<()> {
    if !Path::new(HCA).exists() {
        run("modprobe", &["uverbs_test_hca"])?;
    }
    let mut control = fs::OpenOptions::new().write(true).open(HCA).context(HCA)?;
    // One write is one command.
    control.write_all(command.as_bytes()).with_context(|| format!("test HCA: {command}"))
}

/// What the test HCA says of its devices, one a line.
pub(crate) fn hca_state() -> Result<String> {
    fs::read_to_string(HCA).context("reading the test HCA's state")
}

/// One value of the state line of the device of that name that is alive.
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

/// Adds a soft-RoCE device on a dummy network device of its own.
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

/// Makes the kernel drop the dentries and inodes that it caches, those of sysfs among them. What was used since
/// the last time gets a second chance, so it takes more than once. Pages stay: sysfs has no cached pages, and
/// dropping those of others takes 40 ms each time.
pub(crate) fn drop_caches() -> Result<()> {
    const DROP: &str = "/proc/sys/vm/drop_caches";
    (0..3).try_for_each(|_| fs::write(DROP, "2")).context("drop_caches")
}

/// Names in a directory, sorted; none where there is no such directory.
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
    // mknod goes by the umask.
    rustix::fs::chmodat(CWD, path.as_ref(), mode, rustix::fs::AtFlags::empty()).context("chmod")
}

/// A directory to stand for `/dev`, on a tmpfs as a container's is.
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

/// Waits until something holds, at most ten seconds.
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

/// A host without any RDMA device, with the modules loaded and no node left over.
pub(crate) fn clean() -> Result<()> {
    for module in ["ib_uverbs", "rdma_rxe"] {
        run("modprobe", &[module])?;
    }
    if Path::new(HCA).exists() {
        hca("del-all")?;
        hca("wait-idle")?;
    }
    // What is left is soft-RoCE.
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

/// Unloads and loads modules: the test HCA, rxe, ib_uverbs, and the core too when asked.
pub(crate) fn reload(core: bool) -> Result<()> {
    let _ = Command::new("rmmod").arg("uverbs_test_hca").output();
    for module in ["rdma_rxe", "ib_uverbs"] {
        run("rmmod", &[module])?;
    }
    if core {
        // What else uses ib_core goes first: whatever is loaded of it.
        for module in ["rdma_ucm", "rdma_cm", "iw_cm", "ib_umad", "ib_cm", "ib_uverbs_support"] {
            let _ = Command::new("rmmod").arg(module).output();
        }
        run("rmmod", &["ib_core"])?;
    }
    for module in ["ib_uverbs", "rdma_rxe"] {
        run("modprobe", &[module])?;
    }
    Ok(())
}

/// Lets this process have as many descriptors as a crowd takes.
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
    // The sweep itself has one.
    names("/proc/self/fd").len().saturating_sub(1)
}
