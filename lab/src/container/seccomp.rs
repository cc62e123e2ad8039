//! The default filter of system calls, for crun and runc. Its file is in the format of engines, which depends on the
//! container's capabilities and the machine.

use std::fs;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// The file of the package golang-github-containers-common, which podman reads, too.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

const ARCHITECTURE: &str = "amd64";

/// The filter, in the format of runtimes, for a container with these capabilities.
pub(super) fn profile(capabilities: &[&str]) -> Result<Value> {
    let file: Value = serde_json::from_slice(&fs::read(PROFILE).context(PROFILE)?)?;
    let rules = file["syscalls"].as_array().context("no syscalls")?;
    let applies = |rule: &&Value| {
        let holds = |name: &Value| name.as_str().is_some_and(|name| capabilities.contains(&name));
        let list = |set: &str, key: &str| rule[set][key].as_array().cloned().unwrap_or_default();
        let machines = list("includes", "arches");
        (machines.is_empty() || machines.iter().any(|name| name == ARCHITECTURE))
            && list("includes", "caps").iter().all(holds)
            && !list("excludes", "caps").iter().any(holds)
    };
    let syscalls: Vec<Value> = rules
        .iter()
        .filter(applies)
        .map(|rule| {
            let mut syscall = json!({ "names": rule["names"], "action": rule["action"] });
            for key in ["errnoRet", "args"] {
                if !rule[key].is_null() {
                    syscall[key] = rule[key].clone();
                }
            }
            syscall
        })
        .collect();
    Ok(json!({
        "defaultAction": file["defaultAction"],
        "defaultErrnoRet": file["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": syscalls,
    }))
}
