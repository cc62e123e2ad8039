//! Kernels: finds the newest of a Debian series, unpacks it, and locates its parts.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

use crate::apt::Sources;
use crate::{packages, paths, toolchain, tools};

/// Which kernel to boot.
#[derive(Clone, Debug)]
pub(crate) enum KernelChoice {
    /// The newest Debian kernel of a series such as `6.12`.
    Series(String),
    /// The newest kernel that Debian's backports have.
    Newest,
    /// A directory with `boot/vmlinuz-*` and `lib/modules/*`.
    Directory(PathBuf),
}

impl FromStr for KernelChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let is_series = text.split('.').count() == 2
            && text
                .split('.')
                .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
        if is_series {
            return Ok(Self::Series(text.to_owned()));
        }
        if Path::new(text).is_dir() {
            return Ok(Self::Directory(PathBuf::from(text)));
        }
        bail!("neither a kernel series such as 6.12, nor `newest`, nor a directory");
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(series) => f.write_str(series),
            Self::Newest => f.write_str("newest"),
            Self::Directory(dir) => dir.display().fmt(f),
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// The output of `uname -r`, such as `6.1.0-56-amd64`.
    pub(crate) release: String,
    /// The image as packaged.
    pub(crate) vmlinuz: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
    /// Where to build modules for it, if its headers are available.
    pub(crate) headers: Option<PathBuf>,
}

/// Returns the kernel, from the network only if it is not here yet.
pub(crate) fn get(choice: &KernelChoice) -> Result<Kernel> {
    let prefix = match choice {
        KernelChoice::Directory(dir) => return open(dir),
        KernelChoice::Series(series) => format!("{series}."),
        KernelChoice::Newest => String::new(),
    };
    let kernels = paths::lab("kernels")?;
    match newest(&prefix) {
        Ok(package) => {
            let dir = kernels.join(&package.release);
            if !dir.is_dir() {
                fetch(&package, &dir)?;
            }
            open(&dir)
        }
        Err(error) => match newest_unpacked(&kernels, &prefix)? {
            Some(dir) => {
                eprintln!("xtask: {error:#}: taking {}", dir.display());
                open(&dir)
            }
            None => Err(error),
        },
    }
}

fn open(dir: &Path) -> Result<Kernel> {
    let (modules, release) = ["lib/modules", "usr/lib/modules"]
        .iter()
        .filter_map(|place| fs::read_dir(dir.join(place)).ok())
        .flatten()
        .filter_map(Result::ok)
        .find_map(|entry| Some((entry.path(), entry.file_name().into_string().ok()?)))
        .ok_or_else(|| anyhow!("no lib/modules/* in {}", dir.display()))?;
    // Debian's later kernels have the image with the modules.
    let vmlinuz = [dir.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")]
        .into_iter()
        .find(|path| path.is_file())
        .ok_or_else(|| anyhow!("no vmlinuz of {release} in {}", dir.display()))?;
    let headers = [dir.join(format!("usr/src/linux-headers-{release}")), modules.join("build")]
        .into_iter()
        .find(|path| path.join("Makefile").is_file());
    Ok(Kernel { release, vmlinuz, modules, headers })
}

/// A kernel whose image and headers are available in the same version.
struct Package {
    release: String,
    version: String,
    sources: Sources,
}

/// Creates a set of package sources.
type Source = fn() -> Result<Sources>;

/// Where a series is searched for, in this order.
const OF_A_SERIES: [Source; 3] = [|| Ok(Sources::host()), Sources::backports, Sources::bullseye];

/// Where the newest kernel is.
const OF_THE_NEWEST: [Source; 1] = [Sources::backports];

/// The newest kernel whose release has this prefix, from the first source that has one. With an empty prefix, the
/// newest of all.
fn newest(prefix: &str) -> Result<Package> {
    let sources: &[Source] = if prefix.is_empty() { &OF_THE_NEWEST } else { &OF_A_SERIES };
    let mut reasons = Vec::new();
    // Lists are renewed only if no source has the kernel: that takes seconds, and for the host's lists it needs
    // root.
    for renew in [false, true] {
        reasons.clear();
        for source in sources {
            let found = source().and_then(|sources| {
                if renew {
                    sources.update()?;
                }
                newest_listed(&sources, prefix)
            });
            match found {
                Ok(Some(package)) => return Ok(package),
                Ok(None) => {}
                Err(error) => reasons.push(format!("; {error:#}")),
            }
        }
    }
    bail!(
        "no linux-image-{prefix}*-amd64 with matching headers among the packages{}",
        reasons.concat()
    )
}

fn newest_listed(sources: &Sources, prefix: &str) -> Result<Option<Package>> {
    if tools::find("apt-cache").is_none() {
        bail!(
            "kernels come from Debian packages: without apt, name an unpacked one with --kernel DIR"
        );
    }
    let releases: Vec<String> = packages::names(sources, &format!("linux-image-{prefix}"))?
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| is_plain(release))
        .map(str::to_owned)
        .collect();
    let names: Vec<String> = releases
        .iter()
        .flat_map(|release| [format!("linux-image-{release}"), format!("linux-headers-{release}")])
        .collect();
    let versions = packages::versions(sources, &names)?;
    let mut best: Option<Package> = None;
    for release in releases {
        let image = versions.get(&format!("linux-image-{release}"));
        let headers = versions.get(&format!("linux-headers-{release}"));
        let (Some(image), Some(headers)) = (image, headers) else {
            continue;
        };
        for version in image.iter().filter(|version| headers.contains(version)) {
            if best.as_ref().is_none_or(|best| packages::is_newer(version, &best.version)) {
                let (release, version) = (release.clone(), version.clone());
                best = Some(Package { release, version, sources: sources.clone() });
            }
        }
    }
    Ok(best)
}

/// Whether this is the ordinary flavour: not the real-time or cloud one, nor an unsigned or debug package.
fn is_plain(release: &str) -> bool {
    // Without a leading number it is the package that depends on the newest kernel.
    release.starts_with(|first: char| first.is_ascii_digit())
        && release
            .strip_suffix("-amd64")
            .is_some_and(|base| !base.ends_with("-rt") && !base.ends_with("-cloud"))
}

/// Unpacks the image and what is needed to build modules for it. Nothing is installed: some kernels' headers
/// package depends on the image, which would become the host's next kernel.
fn fetch(package: &Package, dir: &Path) -> Result<()> {
    let Package { release, version, sources } = package;
    let partial = dir.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let (image, headers) = (format!("linux-image-{release}"), format!("linux-headers-{release}"));
    let mut wanted = vec![format!("{image}={version}"), format!("{headers}={version}")];
    for (package, parts) in [
        (&image, ["linux-binary-", "linux-modules-", "linux-base-"].as_slice()),
        (&headers, &["linux-headers-", "linux-kbuild-"]),
    ] {
        let needs = packages::dependencies(sources, package, version)?;
        wanted.extend(
            needs.into_iter().filter(|name| parts.iter().any(|part| name.starts_with(part))),
        );
    }
    packages::unpack(sources, &wanted, &partial)?;
    relocate(&partial.join("usr/src").join(&headers).join("Makefile"), dir)?;
    toolchain::adapt(sources, &partial, dir)?;
    fs::rename(&partial, dir)?;
    Ok(())
}

/// The headers' Makefile names the common one, and in later releases also itself, by the path of an installed
/// package.
fn relocate(makefile: &Path, dir: &Path) -> Result<()> {
    let text =
        fs::read_to_string(makefile).with_context(|| format!("reading {}", makefile.display()))?;
    let installed = "/usr/src/linux-headers-";
    let here = format!("{}{installed}", dir.display());
    if !text.contains(installed) {
        bail!("{}: unexpected {text:?}", makefile.display());
    }
    fs::write(makefile, text.replace(installed, &here))?;
    Ok(())
}

fn newest_unpacked(kernels: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let mut best: Option<String> = None;
    for entry in fs::read_dir(kernels)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        if name.starts_with(prefix)
            && is_plain(&name)
            && best.as_ref().is_none_or(|best| packages::is_newer(&name, best))
        {
            best = Some(name);
        }
    }
    Ok(best.map(|name| kernels.join(name)))
}

impl Kernel {
    /// The file for QEMU: the kernel proper, extracted from its compressed image if that has one of the two
    /// compressions that Debian uses. Booted through its PVH entry it starts seconds earlier under emulation.
    pub(crate) fn bootable(&self) -> Result<PathBuf> {
        let vmlinux = paths::lab("images")?.join(format!("vmlinux-{}", self.release));
        let fresh = match (vmlinux.metadata(), self.vmlinuz.metadata()) {
            (Ok(ours), Ok(theirs)) => ours.modified()? >= theirs.modified()?,
            _ => false,
        };
        if fresh {
            return Ok(vmlinux);
        }
        let packed = fs::read(&self.vmlinuz)
            .with_context(|| format!("reading {}", self.vmlinuz.display()))?;
        let Some(payload) = payload(&packed) else {
            return Ok(self.vmlinuz.clone());
        };
        let tool = match payload {
            [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
            [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
            _ => return Ok(self.vmlinuz.clone()),
        };
        let packed = vmlinux.with_extension("packed");
        fs::write(&packed, payload)?;
        let elf = tools::output(tools::command(tool).args(["-q", "-d", "-c"]).arg(&packed))?;
        fs::remove_file(&packed)?;
        if !elf.starts_with(b"\x7fELF") {
            return Ok(self.vmlinuz.clone());
        }
        fs::write(&vmlinux, elf)?;
        Ok(vmlinux)
    }
}

/// The compressed kernel inside a bzImage, according to its setup header (boot protocol 2.08).
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| -> Option<usize> {
        let bytes: [u8; 4] = image.get(at..at + 4)?.try_into().ok()?;
        usize::try_from(u32::from_le_bytes(bytes)).ok()
    };
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match *image.get(0x1f1)? {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the unpacked size.
    let length = word(0x24c)?.checked_sub(4)?;
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flavours() {
        assert!(is_plain("6.12.117+deb12-amd64"));
        assert!(is_plain("6.1.0-56-amd64"));
        for other in [
            "6.1.0-56-rt-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-56-amd64-unsigned",
            "6.1.0-56-amd64-dbg",
            "amd64",
            "cloud-amd64",
        ] {
            assert!(!is_plain(other), "{other}");
        }
    }

    #[test]
    fn choices() {
        for series in ["6.12", "5.10"] {
            assert!(matches!(series.parse(), Ok(KernelChoice::Series(_))), "{series}");
        }
        assert!(matches!("newest".parse(), Ok(KernelChoice::Newest)));
        assert!(matches!("/".parse(), Ok(KernelChoice::Directory(_))));
        assert!("6.x".parse::<KernelChoice>().is_err());
        assert!("6".parse::<KernelChoice>().is_err());
    }
}
