//! What a container is made of, whoever runs it.

use std::path::PathBuf;

/// Where this host's programs write CDI files.
pub(crate) const CDI_DIRECTORY: &str = "/var/run/cdi";

/// The host's ids that a user namespace has as 0 to 65535.
pub(super) const FIRST_ID: u32 = 100_000;
pub(super) const IDS: u32 = 65_536;

/// Who runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runtime {
    Crun,
    Runc,
    /// The engine, with crun.
    Podman,
}

impl Runtime {
    pub(crate) const ALL: [Self; 3] = [Self::Crun, Self::Runc, Self::Podman];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Network {
    /// A network namespace of its own, with nothing but `lo`.
    Own,
    Host,
}

/// A hook of the OCI runtime specification, of the kind `createRuntime`: it runs on the host before the container's
/// root is entered, and gets the container's state on its standard input.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    /// The program on the host.
    pub(crate) path: PathBuf,
    /// Its arguments, beginning with its name.
    pub(crate) args: Vec<String>,
    /// Its environment, as `KEY=value`.
    pub(crate) env: Vec<String>,
    /// In seconds.
    pub(crate) timeout: u32,
}

/// A container. The defaults are those of podman, except that the system calls are not filtered.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) runtime: Runtime,
    /// The program and its arguments.
    pub(crate) command: Vec<String>,
    /// Further environment, as `KEY=value`.
    pub(crate) env: Vec<String>,
    pub(crate) network: Network,
    /// Whether it has a user namespace, in which its root is nobody on the host (podman: `--uidmap`).
    pub(crate) user_namespace: bool,
    /// Whether its root has no capabilities. Other users never have any.
    pub(crate) drops_capabilities: bool,
    /// Whether podman's profile filters its system calls.
    pub(crate) seccomp: bool,
    /// Whether its root directory is read-only.
    pub(crate) read_only: bool,
    /// The user and the group that it runs as.
    pub(crate) uid: u32,
    /// Device nodes of the host, which it gets under the same path.
    pub(crate) devices: Vec<PathBuf>,
    /// CDI devices, as `VENDOR/CLASS=NAME`.
    pub(crate) cdi: Vec<String>,
    pub(crate) hooks: Vec<Hook>,
}

impl Container {
    pub(crate) fn new(runtime: Runtime, command: &[&str]) -> Self {
        Self {
            runtime,
            command: command.iter().map(|&word| word.to_owned()).collect(),
            env: Vec::new(),
            network: Network::Own,
            user_namespace: false,
            drops_capabilities: false,
            seccomp: false,
            read_only: false,
            uid: 0,
            devices: Vec::new(),
            cdi: Vec::new(),
            hooks: Vec::new(),
        }
    }
}
