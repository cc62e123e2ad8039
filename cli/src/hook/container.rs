//! The nodes of a container that is about to start. Its root may hold anything: what is looked at in it is resolved as
//! the container will resolve it, and never opened.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::Value;
use uverbs::DeviceNumber;

use super::state::State;

/// A configuration has some hundred KiB at most in practice.
const CONFIG_MAX: u64 = 16 << 20;
/// How often a path is resolved again that somebody keeps renaming.
const ATTEMPTS: u32 = 100;
/// Absolute links and `..` lead to the root that is given, as in a chroot.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// A container that is about to start.
pub(super) struct Container {
    /// Its root directory, if it can be seen. Where it is not certain which one it is, all that are there.
    roots: Vec<OwnedFd>,
    /// Where its root was looked for.
    looked: Vec<String>,
    /// `linux.devices` of its configuration, if it can be read.
    devices: Option<Vec<ListedDevice>>,
}

/// Without a root, it is something else that has the name.
#[derive(Debug, Deserialize)]
struct Config {
    root: Root,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
struct Root {
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
struct Linux {
    #[serde(default)]
    devices: Option<Vec<ListedDevice>>,
}

#[derive(Debug, Deserialize)]
struct ListedDevice {
    path: String,
    #[serde(rename = "type", default)]
    kind: Option<String>,
    #[serde(default)]
    major: Option<i64>,
    #[serde(default)]
    minor: Option<i64>,
}

impl Container {
    /// # Errors
    /// Why the container cannot be looked at.
    pub(super) fn find(state: &State) -> Result<Self, String> {
        let above = open_above(state.pid)?;
        let mut bundles: Vec<_> =
            state.bundle.iter().cloned().chain(directory_of(state.pid)).collect();
        // With a user namespace, crun passes `/` as the bundle. Its process has not left the right one.
        if state.bundle.as_deref() == Some(Path::new("/")) {
            bundles.reverse();
        }
        bundles.dedup();
        let mut config = None;
        for (at, bundle) in bundles.iter().enumerate() {
            match read_config(bundle) {
                Ok(None) => continue,
                Ok(found) => config = found,
                Err(why) if at == 0 => return Err(why),
                // Not the bundle, but a directory that happens to have a file of the name.
                Err(_) => continue,
            }
            break;
        }
        let configured = config.as_ref().map(|config| &config.root.path);
        // The root of the configuration is relative to the bundle. crun passes it on as it is there.
        let roots = state.root.iter().chain(configured);
        let mut paths: Vec<PathBuf> = Vec::new();
        for root in roots.filter(|root| !root.as_os_str().is_empty()) {
            // An absolute path takes the place of the bundle.
            let mut beneath: Vec<_> = bundles.iter().map(|bundle| bundle.join(root)).collect();
            beneath.extend(root.is_absolute().then(|| root.clone()));
            for path in beneath {
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        let mut container = Self { roots: Vec::new(), looked: Vec::new(), devices: None };
        for path in paths {
            container.looked.push(path.as_os_str().as_bytes().escape_ascii().to_string());
            match resolve(&above, &path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(found) => container.roots.push(found),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(errno) => {
                    let root = container.looked.join(", ");
                    return Err(format!("its root {root} cannot be looked at: {errno}"));
                }
            }
        }
        container.devices = config.and_then(|config| config.linux).and_then(|linux| linux.devices);
        Ok(container)
    }

    /// Whether its node of this path has this number, wherever it can be seen. The list of devices alone is enough only
    /// where no root can be seen.
    ///
    /// # Errors
    /// It has another one, or cannot be seen.
    pub(super) fn check_node(&self, path: &str, expected: DeviceNumber) -> Result<(), String> {
        let mut is_seen = false;
        for root in &self.roots {
            match number_at(root, path)? {
                Some(found) if found != expected => {
                    let text =
                        format!("expected {path} as {expected} in the container, found {found}");
                    return Err(text);
                }
                found => is_seen |= found.is_some(),
            }
        }
        let listed = self.devices.iter().flatten().rfind(|device| device.path == path);
        let looked = self.looked.join(", ");
        match listed {
            Some(device) if !device.is(expected) => Err(format!(
                "expected {path} as {expected} in linux.devices of config.json, found {}",
                device.number()
            )),
            _ if is_seen => Ok(()),
            Some(_) if self.roots.is_empty() => Ok(()),
            Some(_) => Err(format!(
                "its node {path} was not found in its root ({looked}), but only in linux.devices of config.json"
            )),
            None => Err(format!(
                "its node {path} was found neither in its root ({looked}) nor in linux.devices of config.json"
            )),
        }
    }
}

impl ListedDevice {
    fn is(&self, expected: DeviceNumber) -> bool {
        // "u" is another word for it in the specification.
        matches!(self.kind.as_deref(), Some("c" | "u"))
            && self.major == Some(expected.major.into())
            && self.minor == Some(expected.minor.into())
    }

    fn number(&self) -> String {
        let number =
            |number: Option<i64>| number.map_or("?".to_owned(), |number| number.to_string());
        let kind = self.kind.as_deref().unwrap_or("?");
        format!("{} {}:{}", kind.as_bytes().escape_ascii(), number(self.major), number(self.minor))
    }
}

/// The directory that the container's root is beneath: the root of its first process, which has not entered it yet.
fn open_above(pid: Option<i64>) -> Result<OwnedFd, String> {
    let path = match pid {
        Some(pid @ 1..) => format!("/proc/{pid}/root"),
        Some(0) | None => "/".to_owned(),
        Some(pid) => return Err(format!("its state has {pid} as the number of a process")),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, &path, flags, Mode::empty())
        .map_err(|errno| format!("{path} cannot be opened: {errno}"))
}

/// The directory that a process is in; `None` if it cannot be seen.
fn directory_of(pid: Option<i64>) -> Option<PathBuf> {
    let link = format!("/proc/{}/cwd", pid.filter(|pid| *pid > 0)?);
    let path = readlinkat(CWD, &link, Vec::new()).ok()?;
    Some(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

fn resolve(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    for _ in 0..ATTEMPTS {
        match openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), IN_ROOT) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            found => return found,
        }
    }
    Err(Errno::AGAIN)
}

/// The number of a character device in the root; `None` if there is nothing.
fn number_at(root: &OwnedFd, path: &str) -> Result<Option<DeviceNumber>, String> {
    let failed = |errno| format!("its node {path} cannot be looked at: {errno}");
    let node = match resolve(root, Path::new(path), OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(node) => node,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    let stat = fstat(&node).map_err(failed)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => {
            Ok(Some((rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)).into()))
        }
        kind => Err(format!("its node {path} is no character device ({kind:?})")),
    }
}

/// The configuration; `None` if there is none, as where the bundle of the state is wrong.
fn read_config(bundle: &Path) -> Result<Option<Config>, String> {
    let path = bundle.join("config.json");
    let shown = path.as_os_str().as_bytes().escape_ascii().to_string();
    // A FIFO in its place must not make this wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match openat(CWD, &path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(format!("{shown} cannot be read: {errno}")),
    };
    let mut text = Vec::new();
    let read = file.take(CONFIG_MAX).read_to_end(&mut text);
    read.map_err(|error| format!("{shown} cannot be read: {error}"))?;
    let object = serde_json::from_slice::<serde_json::Map<_, _>>(&text);
    let config = object.and_then(|object| serde_json::from_value(Value::Object(object)));
    config.map(Some).map_err(|error| {
        format!("{shown} is no configuration: {}", error.to_string().as_bytes().escape_ascii())
    })
}
