//! Where Debian packages come from: the host's own sources, or those of a later release.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::{paths, tools};

/// The release whose backports have the newest kernels, and itself, for what those need.
const SUITES: &str = "trixie trixie-backports";

/// Debian's keys, which its package `debian-archive-keyring` installs.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A set of package sources.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    options: Vec<OsString>,
    host: bool,
}

impl Sources {
    /// What the host itself is installed from.
    pub(crate) fn host() -> Self {
        Self { options: Vec::new(), host: true }
    }

    /// A later Debian, in a configuration of the lab's own: the host never installs anything of it.
    /// The mirror and the way to it are the host's, and signatures are checked as ever.
    pub(crate) fn backports() -> Result<Self> {
        if !Path::new(KEYRING).is_file() {
            bail!("no {KEYRING}: packages of a later Debian cannot be checked");
        }
        let mirror = mirror()?;
        let dir = paths::lab("apt")?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let sources = dir.join("lab.sources");
        // `Targets`: the host may be configured to fetch more than lists of packages.
        let text = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {SUITES}\nComponents: main\nTargets: Packages\nSigned-By: {KEYRING}\n"
        );
        fs::write(&sources, text).with_context(|| format!("writing {}", sources.display()))?;
        let mut options = Vec::new();
        for (name, value) in [
            ("Dir::Etc::sourcelist=", sources),
            ("Dir::Etc::sourceparts=", "/dev/null".into()),
            ("Dir::State=", dir.join("state")),
            ("Dir::Cache=", dir.join("cache")),
        ] {
            let mut option = OsString::from(name);
            option.push(value);
            options.extend(["-o".into(), option]);
        }
        options.extend(["-o", "Acquire::Languages=none"].map(OsString::from));
        Ok(Self { options, host: false })
    }

    /// One of apt's programs on these sources.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = tools::command(program);
        // As root apt would download as its own user, who cannot write in the lab's directories.
        command.args(["-o", "APT::Sandbox::User=root"]).args(&self.options);
        command
    }

    /// Renews the package lists. Those of the host only root may renew.
    pub(crate) fn update(&self) -> Result<()> {
        if self.host && !rustix::process::geteuid().is_root() {
            bail!("the package lists may be out of date: run `apt-get update` as root");
        }
        tools::run(self.command("apt-get").args(["update", "-q"]))
    }
}

/// The mirror of Debian proper that the host is installed from.
fn mirror() -> Result<String> {
    let format = "$(LABEL) $(REPO_URI)";
    let args = ["indextargets", "--format", format, "Created-By: Packages"];
    let text = tools::text(tools::command("apt-get").args(args))?;
    mirror_in(&text).ok_or_else(|| anyhow!("none of the host's package sources is Debian's"))
}

/// The first that calls itself `Debian`, and not, say, `Debian-Security`.
fn mirror_in(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| line.strip_prefix("Debian ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debian_proper() {
        let targets =
            "Other tst://a/\nDebian-Security tst://b/\nDebian tst://c/\nDebian tst://d/\n";
        assert_eq!(mirror_in(targets).as_deref(), Some("tst://c/"));
        assert_eq!(mirror_in("Other tst://a/\n"), None);
    }
}
