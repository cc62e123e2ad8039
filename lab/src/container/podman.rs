//! podman's options.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::options::{Container, FIRST_ID, IDS, Network};

/// podman, without what the guest lacks: overlayfs in its root, systemd, a journal.
pub(super) fn command(container: &Container, bundle: &Path) -> Result<Command> {
    let mut command = Command::new("podman");
    command.args(["--storage-driver=vfs", "--cgroup-manager=cgroupfs", "--events-backend=none"]);
    command.args(["--runtime", "/usr/bin/crun"]);
    // Before the verb, and whenever the container is started.
    if !container.hooks.is_empty() {
        command.arg("--hooks-dir").arg(hooks(container, bundle)?);
    }
    Ok(command)
}

/// What follows `podman run` and `podman create`.
pub(super) fn options(container: &Container, bundle: &Path) -> Vec<String> {
    let mut words = vec!["--pull=never".to_owned(), "--volume=/usr:/usr:ro".to_owned()];
    words.push(match container.network {
        Network::Own => "--network=none".to_owned(),
        Network::Host => "--network=host".to_owned(),
    });
    if container.user_namespace {
        words.push(format!("--uidmap=0:{FIRST_ID}:{IDS}"));
        words.push(format!("--gidmap=0:{FIRST_ID}:{IDS}"));
    }
    if container.drops_capabilities {
        words.push("--cap-drop=all".to_owned());
    }
    if !container.seccomp {
        words.push("--security-opt=seccomp=unconfined".to_owned());
    }
    if container.read_only {
        words.push("--read-only".to_owned());
    }
    words.push(format!("--user={0}:{0}", container.uid));
    words.extend(container.env.iter().map(|variable| format!("--env={variable}")));
    let devices = container.devices.iter().map(|path| path.display().to_string());
    words.extend(devices.chain(container.cdi.clone()).map(|name| format!("--device={name}")));
    words.push("--rootfs".to_owned());
    words.push(bundle.join("rootfs").display().to_string());
    words.extend_from_slice(&container.command);
    words
}

/// Writes hooks as files that podman reads. Returns their directory.
fn hooks(container: &Container, bundle: &Path) -> Result<PathBuf> {
    let directory = bundle.join("hooks.d");
    fs::create_dir_all(&directory)?;
    for (number, hook) in container.hooks.iter().enumerate() {
        let file = json!({
            "version": "1.0.0",
            "hook": {
                "path": hook.path, "args": hook.args, "env": hook.env, "timeout": hook.timeout,
            },
            "when": { "always": true },
            "stages": ["createRuntime"],
        });
        fs::write(directory.join(format!("{number}.json")), serde_json::to_vec(&file)?)?;
    }
    Ok(directory)
}
