//! Containers, run by the real crun, runc and podman of a guest that is started with `--containers`.
//!
//! A [`Container`] is a command with options. Its root directory is empty but for the host's `/usr`, read-only, so
//! every program of the guest can be the command. [`Container::run`] runs it to its end, bounded in time, and returns
//! its status and output, also where the runtime refuses. [`Container::prepare`] freezes what an engine freezes when
//! it *creates* a container (the numbers of its devices, the edits of its CDI devices), and [`Prepared::run`] starts
//! it. In between, a scenario changes the host:
//!
//! ```ignore
//! let container = Container::new(Runtime::Crun, &["uverbs", "open", "--json", "hca_1"]);
//! let container = Container { devices: vec!["/dev/infiniband/uverbs1".into()], ..container };
//! let prepared = container.prepare()?;
//! functions::unbind(&first)?;
//! functions::bind(&second)?;
//! let output = prepared.run()?;
//! ```
//!
//! A CDI device is one more word of `cdi`. Its file is any in `/var/run/cdi` ([`CDI_DIRECTORY`]) or `/etc/cdi`, and a
//! program that writes one is run on the host first. podman resolves the device. crun and runc know nothing of CDI:
//! there the file's edits are made in `config.json`, as their engines would make them ([`cdi`]).
//!
//! ```ignore
//! guest::run("uverbs", &["cdi", "--output", "/var/run/cdi/uverbs.json"])?;
//! let container = Container::new(runtime, &["env"]);
//! let output = Container { cdi: vec!["example.org/rdma=0000:3b:00.1".into()], ..container }.run()?;
//! ```
//!
//! Hooks of a CDI file need nothing more. Another hook is a [`Hook`] in `hooks`: crun and runc get it in
//! `config.json`, podman by `--hooks-dir`. `createRuntime` hooks run within [`Prepared::run`], also with podman. When
//! one refuses, [`Output::status`] is not 0, and the command has not run. What the hook printed is in `stderr` with
//! runc, and nowhere with crun, so let it log ([`crate::syslog`]). The `/proc` and `/dev` of a hook are the host's, so
//! a scenario can mount another boot id over `/proc/sys/kernel/random/boot_id`.

mod cdi;
mod oci;
mod options;
mod podman;
mod seccomp;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub(crate) use options::{CDI_DIRECTORY, Container, Hook, Network, Runtime};

use crate::guest;

/// The longest that anything here takes, under emulation on a busy host.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether this guest was started for containers.
pub(crate) fn is_possible() -> bool {
    Path::new("/lab/containers").exists()
}

/// How a command ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    /// Its exit status; `None` if a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// Its standard output, if it succeeded.
    pub(crate) fn success(&self) -> Result<&str> {
        ensure!(self.status == Some(0), "{self:?}");
        Ok(&self.stdout)
    }
}

/// A container that was created.
pub(crate) struct Prepared {
    container: Container,
    id: String,
    /// The directory of its root, its configuration and its output.
    bundle: PathBuf,
    /// Whether its runtime may still have it.
    is_left: bool,
}

impl Container {
    /// Runs it to its end.
    pub(crate) fn run(self) -> Result<Output> {
        let mut container = Prepared::bundle(self)?;
        match container.container.runtime {
            // In one step, which is the faster one.
            Runtime::Podman => {
                let output = container.podman(&["run", "--rm"])?;
                container.is_left = false;
                Ok(output)
            }
            Runtime::Crun | Runtime::Runc => {
                container.configure()?;
                container.run()
            }
        }
    }

    /// Creates it. With podman this fails where the engine refuses a device.
    pub(crate) fn prepare(self) -> Result<Prepared> {
        let mut container = Prepared::bundle(self)?;
        match container.container.runtime {
            Runtime::Podman => {
                container.podman(&["create"])?.success().context("podman create")?;
            }
            Runtime::Crun | Runtime::Runc => container.configure()?,
        }
        Ok(container)
    }
}

impl Prepared {
    /// Starts it, and waits for its end.
    pub(crate) fn run(mut self) -> Result<Output> {
        let runtime = self.container.runtime;
        let mut command = match runtime {
            Runtime::Podman => {
                let mut command = podman::command(&self.container, &self.bundle)?;
                command.args(["start", "--attach"]);
                command
            }
            Runtime::Crun | Runtime::Runc => {
                let mut command = oci::command(runtime);
                command.arg("run").arg("--bundle").arg(&self.bundle);
                command
            }
        };
        self.is_left = true;
        let output = bounded(command.arg(&self.id), &self.bundle)?;
        // crun and runc remove it when it ends.
        self.is_left = runtime == Runtime::Podman;
        Ok(output)
    }

    /// Makes podman create it.
    fn podman(&mut self, verb: &[&str]) -> Result<Output> {
        let mut command = podman::command(&self.container, &self.bundle)?;
        command.args(verb).args(["--name", &self.id]);
        command.args(podman::options(&self.container, &self.bundle));
        self.is_left = true;
        bounded(&mut command, &self.bundle)
    }

    /// Makes its root directory.
    fn bundle(container: Container) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(is_possible(), "start the guest with --containers");
        let id = format!("lab-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let bundle = Path::new("/tmp").join(&id);
        let root = bundle.join("rootfs");
        for name in ["usr", "proc", "sys", "dev", "tmp", "etc", "run", "root", "var"] {
            fs::create_dir_all(root.join(name))?;
        }
        for (name, to) in [("bin", "bin"), ("sbin", "bin"), ("lib", "lib"), ("lib64", "lib64")] {
            symlink(Path::new("usr").join(to), root.join(name))?;
        }
        // The root of a user namespace makes the files that engines mount over.
        if container.user_namespace {
            let owner = options::FIRST_ID.to_string();
            guest::run("chown", &["-hR", &format!("{owner}:{owner}"), &root.to_string_lossy()])?;
        }
        Ok(Self { container, id, bundle, is_left: false })
    }

    fn remove(&self) -> Result<()> {
        let mut command = match self.container.runtime {
            Runtime::Podman => {
                let mut command = podman::command(&self.container, &self.bundle)?;
                command.args(["rm", "--force", "--time", "0"]);
                command
            }
            runtime => {
                let mut command = oci::command(runtime);
                command.args(["delete", "--force"]);
                command
            }
        };
        bounded(command.arg(&self.id), &self.bundle).map(drop)
    }

    /// Writes the configuration for crun and runc.
    fn configure(&self) -> Result<()> {
        let mut config = oci::config(&self.container)?;
        for edit in cdi::edits(&self.container.cdi)? {
            cdi::apply(&mut config, &edit)?;
        }
        fs::write(self.bundle.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(())
    }
}

impl Drop for Prepared {
    /// Nothing is left, even if it never ran or was killed.
    fn drop(&mut self) {
        if self.is_left {
            let _ = self.remove();
        }
    }
}

/// Runs a command to its end, or kills it when the time is over. Its output goes through files, because what it leaves
/// behind may keep a pipe open.
fn bounded(command: &mut Command, directory: &Path) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let (stdout, stderr) = (directory.join("stdout"), directory.join("stderr"));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(fs::File::create(&stdout)?)
        .stderr(fs::File::create(&stderr)?)
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let status = guest::wait(&mut child, LIMIT);
    let read = |path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let (stdout, stderr) = (read(&stdout)?, read(&stderr)?);
    let status = status.with_context(|| format!("{name} printed: {stdout}{stderr}"))?;
    Ok(Output { status: status.code(), stdout, stderr })
}

/// Runs `promtool check metrics` on a file. Its status is 0 if the file is clean, 1 if it cannot be parsed, and 3 if
/// only its style is wrong.
pub(crate) fn promtool(metrics: &Path) -> Result<Output> {
    let output = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(fs::File::open(metrics).with_context(|| metrics.display().to_string())?)
        .output()
        .context("promtool: start the guest with --containers")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Output {
        status: output.status.code(),
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    })
}
