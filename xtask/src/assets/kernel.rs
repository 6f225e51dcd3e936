//! Stock kernels: from the distribution's packages, or the one this machine runs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::modules::ModuleTree;
use super::{apt, place};
use crate::archive::bzimage::BzImage;
use crate::progress::Progress;
use crate::project;
use crate::tool::{output, tool};

/// Which kernel one would like to have.
pub struct Wanted {
    /// What we call it.
    pub name: &'static str,
    metas: &'static [&'static str],
    /// How the real package's name goes on, and where it ends.
    prefix: &'static str,
    suffix: &'static str,
}

impl Wanted {
    /// Whatever the distribution holds for its stock kernel for virtual machines.
    pub const STOCK: Wanted = Wanted {
        name: "stock",
        metas: &["linux-image-cloud-amd64", "linux-image-virtual"],
        prefix: "linux-image-",
        suffix: "",
    };
    /// Debian 12's own series.
    pub const V6_1: Wanted = Self::debian_12("6.1", &["linux-image-cloud-amd64"], "-cloud-amd64");
    /// The series of Debian 13, which Debian 12 has as a backport.
    pub const V6_12: Wanted =
        Self::debian_13("6.12", &["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64"], "-cloud-amd64");
    /// The kernels for all PCs, and those that can be preempted everywhere: they have more built in than the two above.
    pub const OTHERS: [Wanted; 4] = [
        Self::debian_12("6.1-generic", &["linux-image-amd64"], "-amd64"),
        Self::debian_12("6.1-rt", &["linux-image-rt-amd64"], "-rt-amd64"),
        Self::debian_13("6.12-generic", &["linux-image-6.12-amd64", "linux-image-amd64"], "-amd64"),
        Self::debian_13("6.12-rt", &["linux-image-6.12-rt-amd64", "linux-image-rt-amd64"], "-rt-amd64"),
    ];

    const fn debian_12(name: &'static str, metas: &'static [&'static str], suffix: &'static str) -> Self {
        Self { name, metas, prefix: "linux-image-6.1.", suffix }
    }

    const fn debian_13(name: &'static str, metas: &'static [&'static str], suffix: &'static str) -> Self {
        Self { name, metas, prefix: "linux-image-6.12.", suffix }
    }
}

/// A kernel in the cache, or the user's own.
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// Its modules; a kernel without a directory of them is taken to have all built in.
    pub modules: Option<ModuleTree>,
}

impl Kernel {
    /// The wanted kernel: from the cache, else from apt, else (for [`Wanted::STOCK`]) the host's own.
    pub fn get(wanted: &Wanted) -> Result<Kernel> {
        let dir = project::cache().join("kernels");
        let note = dir.join(format!("{}.release", wanted.name));
        if let Ok(release) = fs::read_to_string(&note)
            && let Ok(kernel) = Self::in_cache(&dir.join(release.trim()))
        {
            return Ok(kernel);
        }
        let Some(package) =
            apt::present().then(|| apt::real_package(wanted.metas, wanted.prefix, wanted.suffix)).flatten()
        else {
            return if wanted.name == Wanted::STOCK.name { Self::of_host() } else { Err(no_kernel(wanted.name)) };
        };
        let release = package.trim_start_matches("linux-image-");
        if !dir.join(release).exists() {
            fetch(&package, release, &dir.join(release))?;
        }
        place(&note, release.as_bytes())?;
        Self::in_cache(&dir.join(release))
    }

    /// A kernel that the user named, with the modules of the same release: from the cache, the host, or apt.
    pub fn of_file(image: &Path) -> Result<Kernel> {
        let bytes = fs::read(image).with_context(|| format!("Cannot read kernel {}", image.display()))?;
        let release = match BzImage::parse(&bytes) {
            Ok(kernel) => kernel.release().with_context(|| format!("In {}", image.display()))?.to_owned(),
            Err(_) if bytes.starts_with(b"\x7fELF") => elf_release(&bytes).unwrap_or_else(|| "unknown".to_owned()),
            Err(error) => return Err(error.context(format!("Cannot use {} as a kernel", image.display()))),
        };
        let kept = project::cache().join("kernels").join(&release);
        let package = format!("linux-image-{release}");
        let host = Path::new("/lib/modules").join(&release);
        if !kept.exists() && !host.is_dir() && apt::present() && apt::knows(&package) {
            fetch(&package, &release, &kept)?;
        }
        let places = [kept.join("lib/modules").join(&release), host];
        let modules = places.iter().find(|dir| dir.is_dir()).map(|dir| ModuleTree::scan(dir)).transpose()?;
        if modules.is_none() {
            eprintln!("No modules of kernel {release} found: virtio_mmio, virtio_blk and ext4 must be built in");
        }
        Ok(Kernel { release, image: image.to_owned(), modules })
    }

    /// The ELF inside the bzImage, unpacked once.
    pub fn vmlinux(&self) -> Result<PathBuf> {
        let path = project::cache().join("kernels").join(&self.release).join("vmlinux");
        if !path.exists() {
            let _progress = Progress::spinner(&format!("Unpacking vmlinux {}", self.release));
            let bytes = fs::read(&self.image).with_context(|| format!("Cannot read {}", self.image.display()))?;
            place(&path, &BzImage::parse(&bytes)?.vmlinux()?)?;
        }
        Ok(path)
    }

    fn in_cache(dir: &Path) -> Result<Kernel> {
        let release = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let image = dir.join("vmlinuz");
        let modules = Some(ModuleTree::scan(&dir.join("lib/modules").join(&release))?);
        anyhow::ensure!(image.exists(), "No kernel at {}", image.display());
        Ok(Kernel { release, image, modules })
    }

    fn of_host() -> Result<Kernel> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let image = Path::new("/boot").join(format!("vmlinuz-{release}"));
        if fs::File::open(&image).is_err() {
            return Err(no_kernel("stock"));
        }
        eprintln!("No apt here: taking this machine's own kernel {release}");
        Self::of_file(&image)
    }
}

/// The word after "Linux version" in a vmlinux.
fn elf_release(elf: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let at = elf.windows(BANNER.len()).position(|window| window == BANNER)? + BANNER.len();
    let word = elf[at..].split(|&byte| byte == b' ' || byte == 0).next()?;
    (word.len() < 100).then(|| String::from_utf8_lossy(word).into_owned())
}

fn no_kernel(name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "Cannot find a {name} kernel: no package of apt's and no readable /boot/vmlinuz-$(uname -r). \
         Give a bzImage with virtio and ext4 by --kernel FILE"
    )
}

/// Fetches the package, and Ubuntu's second one with the modules; leaves `vmlinuz` and `lib/modules/RELEASE` in `dir`.
fn fetch(package: &str, release: &str, dir: &Path) -> Result<()> {
    let unfinished = dir.with_extension("unfinished");
    let _ = fs::remove_dir_all(&unfinished);
    apt::unpack(package, &unfinished)?;
    let modules = format!("linux-modules-{release}");
    if apt::knows(&modules) {
        apt::unpack(&modules, &unfinished)?;
    }
    let image = unfinished.join("boot").join(format!("vmlinuz-{release}"));
    fs::rename(&image, unfinished.join("vmlinuz")).with_context(|| format!("No {} in {package}", image.display()))?;
    if !unfinished.join("lib/modules").join(release).is_dir() {
        output(tool("mv").arg(unfinished.join("usr/lib")).arg(unfinished.join("lib")))?;
    }
    if !unfinished.join("lib/modules").join(release).is_dir() {
        bail!("No modules in {package}");
    }
    fs::rename(&unfinished, dir).with_context(|| format!("Cannot put {} in place", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::elf_release;

    #[test]
    fn vmlinux_tells_its_release() {
        assert_eq!(elf_release(b"\x7fELF..Linux version 6.1.0-56 (gcc)").as_deref(), Some("6.1.0-56"));
        assert_eq!(elf_release(b"\x7fELF"), None);
    }
}
