//! Kernels: finding the newest of a Debian series, unpacking it, and getting at its parts.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

use crate::{packages, paths, tools};

/// Which kernel to boot.
#[derive(Clone, Debug)]
pub(crate) enum KernelChoice {
    /// The newest Debian kernel of a series such as `6.12`.
    Series(String),
    /// A directory with `boot/vmlinuz-*` and `lib/modules/*`.
    Directory(PathBuf),
}

impl FromStr for KernelChoice {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
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
        bail!("neither a kernel series such as 6.12 nor a directory");
    }
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Series(series) => f.write_str(series),
            Self::Directory(dir) => dir.display().fmt(f),
        }
    }
}

/// An unpacked kernel.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` says, such as `6.1.0-56-amd64`.
    pub(crate) release: String,
    /// The image as it is packed.
    pub(crate) vmlinuz: PathBuf,
    /// `lib/modules/RELEASE`.
    pub(crate) modules: PathBuf,
    /// Where to build modules for it, if its headers are at hand.
    pub(crate) headers: Option<PathBuf>,
}

/// Gets the kernel, from the network only if it is not here yet.
pub(crate) fn get(choice: &KernelChoice) -> Result<Kernel> {
    match choice {
        KernelChoice::Directory(dir) => open(dir),
        KernelChoice::Series(series) => {
            let kernels = paths::lab("kernels")?;
            match newest(series) {
                Ok(package) => {
                    let dir = kernels.join(&package.release);
                    if !dir.is_dir() {
                        fetch(&package, &dir)?;
                    }
                    open(&dir)
                }
                Err(error) => match newest_unpacked(&kernels, series)? {
                    Some(dir) => open(&dir),
                    None => Err(error),
                },
            }
        }
    }
}

fn open(dir: &Path) -> Result<Kernel> {
    let boot = dir.join("boot");
    let (vmlinuz, release) = fs::read_dir(&boot)
        .with_context(|| format!("reading {}", boot.display()))?
        .filter_map(Result::ok)
        .find_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let release = name.strip_prefix("vmlinuz-")?.to_owned();
            Some((entry.path(), release))
        })
        .ok_or_else(|| anyhow!("no vmlinuz-* in {}", boot.display()))?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .map(|place| dir.join(place).join(&release))
        .into_iter()
        .find(|path| path.is_dir())
        .ok_or_else(|| anyhow!("no lib/modules/{release} in {}", dir.display()))?;
    let headers = [dir.join(format!("usr/src/linux-headers-{release}")), modules.join("build")]
        .into_iter()
        .find(|path| path.join("Makefile").is_file());
    Ok(Kernel { release, vmlinuz, modules, headers })
}

/// A kernel of which both image and headers can be had, in one version.
struct Package {
    release: String,
    version: String,
}

fn newest(series: &str) -> Result<Package> {
    if let Some(package) = newest_listed(series)? {
        return Ok(package);
    }
    packages::update()?;
    newest_listed(series)?.ok_or_else(|| {
        anyhow!("no linux-image-{series}.*-amd64 with matching headers among the packages")
    })
}

fn newest_listed(series: &str) -> Result<Option<Package>> {
    if tools::find("apt-cache").is_none() {
        bail!(
            "kernels come from Debian packages: without apt, name an unpacked one with --kernel DIR"
        );
    }
    let releases: Vec<String> = packages::names(&format!("linux-image-{series}."))?
        .iter()
        .filter_map(|name| name.strip_prefix("linux-image-"))
        .filter(|release| is_plain(release))
        .map(str::to_owned)
        .collect();
    let names: Vec<String> = releases
        .iter()
        .flat_map(|release| [format!("linux-image-{release}"), format!("linux-headers-{release}")])
        .collect();
    let versions = packages::versions(&names)?;
    let mut best: Option<Package> = None;
    for release in releases {
        let image = versions.get(&format!("linux-image-{release}"));
        let headers = versions.get(&format!("linux-headers-{release}"));
        let (Some(image), Some(headers)) = (image, headers) else {
            continue;
        };
        for version in image.iter().filter(|version| headers.contains(version)) {
            if best.as_ref().is_none_or(|best| packages::is_newer(version, &best.version)) {
                best = Some(Package { release: release.clone(), version: version.clone() });
            }
        }
    }
    Ok(best)
}

/// Whether this is the ordinary flavour: not the real-time or cloud one, nor an unsigned or debug package.
fn is_plain(release: &str) -> bool {
    release
        .strip_suffix("-amd64")
        .is_some_and(|base| !base.ends_with("-rt") && !base.ends_with("-cloud"))
}

/// Unpacks the image and what is needed to build modules for it. Nothing is installed: the headers' package of some
/// kernels depends on the image, which would become the host's next kernel.
fn fetch(package: &Package, dir: &Path) -> Result<()> {
    let Package { release, version } = package;
    let partial = dir.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    let headers = format!("linux-headers-{release}");
    let mut wanted =
        vec![format!("linux-image-{release}={version}"), format!("{headers}={version}")];
    wanted.extend(
        packages::dependencies(&headers, version)?
            .into_iter()
            .filter(|name| name.starts_with("linux-headers-") || name.starts_with("linux-kbuild-")),
    );
    packages::unpack(&wanted, &partial)?;
    // The package's Makefile includes the common one by the path of an installed package.
    let makefile = partial.join("usr/src").join(&headers).join("Makefile");
    let text =
        fs::read_to_string(&makefile).with_context(|| format!("reading {}", makefile.display()))?;
    let common = text
        .rsplit('/')
        .nth(1)
        .ok_or_else(|| anyhow!("{}: unexpected {text:?}", makefile.display()))?;
    let common = dir.join("usr/src").join(common).join("Makefile");
    fs::write(&makefile, format!("include {}\n", common.display()))?;
    fs::rename(&partial, dir)?;
    Ok(())
}

fn newest_unpacked(kernels: &Path, series: &str) -> Result<Option<PathBuf>> {
    let mut best: Option<String> = None;
    for entry in fs::read_dir(kernels)? {
        let Ok(name) = entry?.file_name().into_string() else {
            continue;
        };
        if name.starts_with(&format!("{series}."))
            && is_plain(&name)
            && best.as_ref().is_none_or(|best| packages::is_newer(&name, best))
        {
            best = Some(name);
        }
    }
    Ok(best.map(|name| kernels.join(name)))
}

impl Kernel {
    /// What to give to QEMU: the kernel proper, taken out of its compressed image, if it is one of the two
    /// compressions Debian uses. Booted through its PVH entry it starts seconds earlier under emulation.
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

/// The compressed kernel inside a bzImage, as its setup header (boot protocol 2.08) tells.
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
        ] {
            assert!(!is_plain(other), "{other}");
        }
    }

    #[test]
    fn choices() {
        assert!(matches!("6.12".parse(), Ok(KernelChoice::Series(_))));
        assert!(matches!("/".parse(), Ok(KernelChoice::Directory(_))));
        assert!("6.x".parse::<KernelChoice>().is_err());
        assert!("6".parse::<KernelChoice>().is_err());
    }
}
