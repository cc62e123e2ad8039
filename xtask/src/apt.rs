//! Sources of Debian packages: the host's own, or those of a later or an earlier release.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::{paths, tools};

/// A release of Debian other than the host's.
struct Release {
    /// The lab's directory for its package lists.
    directory: &'static str,
    /// Suites on the mirror of Debian proper.
    suites: &'static str,
    /// Its suite on the mirror of security updates, which also has the updates of long-term support.
    security: Option<&'static str>,
}

impl Release {
    /// Its sources, on the mirrors in the host's package sources.
    fn sources(&self, targets: &str) -> Result<String> {
        let mirror = mirror_in(targets, "Debian")
            .ok_or_else(|| anyhow!("the host has no package source of Debian's"))?;
        let mut text = stanza(mirror, self.suites);
        // Without it the kernel is older, but still of the series.
        if let (Some(suite), Some(mirror)) = (self.security, mirror_in(targets, "Debian-Security"))
        {
            text.push_str(&stanza(mirror, suite));
        }
        Ok(text)
    }
}

/// Its backports have the newest kernels. The release itself has their dependencies.
const BACKPORTS: Release =
    Release { directory: "apt", suites: "trixie trixie-backports", security: None };

/// It has Linux 5.10.
const BULLSEYE: Release =
    Release { directory: "apt-bullseye", suites: "bullseye", security: Some("bullseye-security") };

/// Debian's keys, which its package `debian-archive-keyring` installs.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A set of package sources.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    options: Vec<OsString>,
    host: bool,
}

impl Sources {
    /// The sources that the host is installed from.
    pub(crate) fn host() -> Self {
        Self { options: Vec::new(), host: true }
    }

    /// Debian trixie with its backports.
    pub(crate) fn backports() -> Result<Self> {
        Self::release(&BACKPORTS)
    }

    /// Debian bullseye.
    pub(crate) fn bullseye() -> Result<Self> {
        Self::release(&BULLSEYE)
    }

    /// Another Debian release, in a configuration of the lab's own: the host never installs anything from it. The
    /// mirrors and network settings are the host's, and signatures are checked as usual.
    fn release(release: &Release) -> Result<Self> {
        if !Path::new(KEYRING).is_file() {
            bail!("no {KEYRING}: packages of another Debian cannot be checked");
        }
        let text = release.sources(&index_targets()?)?;
        let dir = paths::lab(release.directory)?;
        for part in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let sources = dir.join("lab.sources");
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

    /// One of apt's programs with these sources.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = tools::command(program);
        // As root, apt would download as its own user, who cannot write to the lab's directories.
        command.args(["-o", "APT::Sandbox::User=root"]).args(&self.options);
        command
    }

    /// Renews the package lists. Only root may renew those of the host.
    pub(crate) fn update(&self) -> Result<()> {
        if self.host && !rustix::process::geteuid().is_root() {
            bail!("the package lists may be out of date: run `apt-get update` as root");
        }
        tools::run(self.command("apt-get").args(["update", "-q"]))
    }
}

/// Suites on a mirror, in the format of apt's sources.
fn stanza(mirror: &str, suites: &str) -> String {
    // `Targets`: the host may be configured to fetch more than lists of packages. `Check-Valid-Until`: the lists of
    // a release without further updates have expired.
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\nTargets: Packages\n\
         Check-Valid-Until: no\nSigned-By: {KEYRING}\n\n"
    )
}

/// The package sources that the host is installed from, one per line: its label, then its mirror.
fn index_targets() -> Result<String> {
    let format = "$(LABEL) $(REPO_URI)";
    let args = ["indextargets", "--format", format, "Created-By: Packages"];
    tools::text(tools::command("apt-get").args(args))
}

/// The mirror of the first source with exactly this label.
fn mirror_in<'a>(targets: &'a str, label: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str =
        "Other tst://a/\nDebian-Security tst://b/\nDebian tst://c/\nDebian tst://d/\n";

    #[test]
    fn mirrors_are_found_by_their_label() {
        assert_eq!(mirror_in(TARGETS, "Debian"), Some("tst://c/"));
        assert_eq!(mirror_in(TARGETS, "Debian-Security"), Some("tst://b/"));
        assert_eq!(mirror_in("Other tst://a/\n", "Debian"), None);
    }

    /// The mirror and the suites of each stanza.
    fn places(release: &Release, targets: &str) -> Vec<(String, String)> {
        let text = release.sources(targets).unwrap_or_default();
        let field = |stanza: &str, name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned()
        };
        let stanzas = text.split("\n\n").filter(|stanza| !stanza.is_empty());
        stanzas
            .inspect(|stanza| assert!(field(stanza, "Signed-By: ").ends_with("keyring.gpg")))
            .map(|stanza| (field(stanza, "URIs: "), field(stanza, "Suites: ")))
            .collect()
    }

    #[test]
    fn each_suite_is_on_its_mirror() {
        let place = |mirror: &str, suites: &str| (mirror.to_owned(), suites.to_owned());
        let proper = place("tst://c/", "bullseye");
        let security = place("tst://b/", "bullseye-security");
        assert_eq!(places(&BULLSEYE, TARGETS), [proper.clone(), security]);
        assert_eq!(places(&BULLSEYE, "Debian tst://c/\n"), [proper]);
        let backports = place("tst://c/", "trixie trixie-backports");
        assert_eq!(places(&BACKPORTS, TARGETS), [backports]);
        assert!(BULLSEYE.sources("Other tst://a/\n").is_err());
    }
}
