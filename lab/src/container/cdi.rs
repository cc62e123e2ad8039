//! CDI devices for crun and runc: what an engine makes of a CDI file. podman does it itself.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::oci;
use super::options::CDI_DIRECTORY;
use crate::guest;

/// The edits of these devices, in the order in which they apply: those of a file before those of its devices.
pub(super) fn edits(names: &[String]) -> Result<Vec<Value>> {
    let mut files = Vec::new();
    for directory in ["/etc/cdi", CDI_DIRECTORY] {
        for name in guest::names(directory).iter().filter(|name| name.ends_with(".json")) {
            let path = Path::new(directory).join(name);
            let file: Value = serde_json::from_slice(&fs::read(&path)?)
                .with_context(|| path.display().to_string())?;
            files.push(file);
        }
    }
    let mut edits = Vec::new();
    let mut wanted: Vec<&String> = names.iter().collect();
    for file in &files {
        let kind = file["kind"].as_str().context("a CDI file without a kind")?;
        let mut of_devices = Vec::new();
        for device in file["devices"].as_array().into_iter().flatten() {
            let name = format!("{kind}={}", device["name"].as_str().context("no name")?);
            if names.contains(&name) {
                let before = wanted.len();
                wanted.retain(|&wanted| *wanted != name);
                ensure!(wanted.len() < before, "{name} is in several files");
                of_devices.push(device["containerEdits"].clone());
            }
        }
        if !of_devices.is_empty() {
            edits.push(file["containerEdits"].clone());
            edits.extend(of_devices);
        }
    }
    ensure!(wanted.is_empty(), "unresolvable CDI devices {wanted:?}");
    Ok(edits)
}

/// Applies edits to a configuration.
pub(super) fn apply(config: &mut Value, edit: &Value) -> Result<()> {
    let list = |key: &str| edit[key].as_array().cloned().unwrap_or_default();
    for variable in list("env") {
        oci::push(&mut config["process"]["env"], variable)?;
    }
    for node in list("deviceNodes") {
        oci::add_device(config, &node)?;
    }
    for mut hook in list("hooks") {
        let kind = hook["hookName"].as_str().context("a hook without a name")?.to_owned();
        hook.as_object_mut().context("a hook")?.remove("hookName");
        oci::add_hook(config, &kind, hook)?;
    }
    for mount in list("mounts") {
        let mount = json!({
            "destination": mount["containerPath"], "source": mount["hostPath"], "type": "bind",
            "options": mount["options"],
        });
        oci::push(&mut config["mounts"], mount)?;
    }
    Ok(())
}
