//! The configuration of a container for crun and runc, as an engine would write it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{FileType, major, minor, stat};
use serde_json::{Value, json};

use super::options::{Container, FIRST_ID, IDS, Network, Runtime};
use super::seccomp;

/// What podman's containers have.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// crun or runc. crun would look for systemd; runc has the guest's cgroups for its default.
pub(super) fn command(runtime: Runtime) -> Command {
    let mut command = Command::new(if runtime == Runtime::Runc { "runc" } else { "crun" });
    if runtime == Runtime::Crun {
        command.arg("--cgroup-manager=cgroupfs");
    }
    command
}

pub(super) fn config(container: &Container) -> Result<Value> {
    let bounding: &[&str] = if container.drops_capabilities { &[] } else { &CAPABILITIES };
    let effective: &[&str] = if container.uid == 0 { bounding } else { &[] };
    let mut env = vec!["PATH=/usr/bin".to_owned(), "HOME=/root".to_owned()];
    env.extend_from_slice(&container.env);
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": container.uid, "gid": container.uid },
            "args": container.command,
            "env": env,
            "cwd": "/",
            "capabilities": {
                "bounding": bounding, "effective": effective, "permitted": effective,
            },
        },
        "root": { "path": "rootfs", "readonly": container.read_only },
        "hostname": "container",
        "mounts": mounts(container),
        "linux": {
            "namespaces": namespaces(container),
            "devices": [],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
        "hooks": {},
    });
    if container.user_namespace {
        let map = json!([{ "containerID": 0, "hostID": FIRST_ID, "size": IDS }]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    }
    if container.seccomp {
        config["linux"]["seccomp"] = seccomp::profile(effective)?;
    }
    for path in &container.devices {
        add_device(&mut config, &json!({ "path": path, "fileMode": 0o666 }))?;
    }
    for hook in &container.hooks {
        let timeout = hook.timeout;
        let hook =
            json!({ "path": hook.path, "args": hook.args, "env": hook.env, "timeout": timeout });
        add_hook(&mut config, "createRuntime", hook)?;
    }
    Ok(config)
}

fn namespaces(container: &Container) -> Vec<Value> {
    let mut kinds = vec!["pid", "ipc", "uts", "mount", "cgroup"];
    if container.network == Network::Own {
        kinds.push("network");
    }
    if container.user_namespace {
        kinds.push("user");
    }
    kinds.into_iter().map(|kind| json!({ "type": kind })).collect()
}

fn mounts(container: &Container) -> Value {
    let safe = ["nosuid", "noexec", "nodev"];
    // The kernel lets a user namespace mount the sysfs of its own network namespace only.
    let sys = if container.user_namespace && container.network == Network::Host {
        json!({ "destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] })
    } else {
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"] })
    };
    json!([
        { "destination": "/proc", "type": "proc", "source": "proc", "options": safe },
        { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
        sys,
        { "destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"] },
        { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1777"] },
    ])
}

/// Adds a device node. The format is that of CDI: the number is that of the host's node unless it is given. A mode that
/// is not given is left to the runtime, so that a file without it shows what comes of that.
pub(super) fn add_device(config: &mut Value, node: &Value) -> Result<()> {
    let path = node["path"].as_str().context("a device node without a path")?;
    let host = node["hostPath"].as_str().unwrap_or(path);
    let (major, minor) = match (node["major"].as_u64(), node["minor"].as_u64()) {
        (Some(major), Some(minor)) => (major, minor),
        _ => device_number(Path::new(host))?,
    };
    let mut device = json!({ "path": path, "type": "c", "major": major, "minor": minor });
    for key in ["fileMode", "uid", "gid"] {
        if !node[key].is_null() {
            device[key] = node[key].clone();
        }
    }
    let access = node["permissions"].as_str().unwrap_or("rwm");
    let rule =
        json!({ "allow": true, "type": "c", "major": major, "minor": minor, "access": access });
    push(&mut config["linux"]["devices"], device)?;
    push(&mut config["linux"]["resources"]["devices"], rule)
}

/// Adds a hook of the kind that is named.
pub(super) fn add_hook(config: &mut Value, kind: &str, hook: Value) -> Result<()> {
    let hooks = &mut config["hooks"][kind];
    if hooks.is_null() {
        *hooks = json!([]);
    }
    push(hooks, hook)
}

/// Appends to an array.
pub(super) fn push(array: &mut Value, value: Value) -> Result<()> {
    array.as_array_mut().context("not an array")?.push(value);
    Ok(())
}

fn device_number(path: &Path) -> Result<(u64, u64)> {
    let stat = stat(path).with_context(|| path.display().to_string())?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    ensure!(kind == FileType::CharacterDevice, "{} is no character device", path.display());
    Ok((major(stat.st_rdev).into(), minor(stat.st_rdev).into()))
}
