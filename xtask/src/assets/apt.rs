//! Debian and Ubuntu packages, fetched and unpacked without installing them.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use crate::progress::Progress;
use crate::tool::{self, output, tool};

/// Whether this machine has apt at all.
pub(super) fn present() -> bool {
    tool::find("apt-get").is_some() && tool::find("apt-cache").is_some() && tool::find("dpkg-deb").is_some()
}

/// The real package that the first known one of `metas` stands for, where its name begins and ends so:
/// `linux-image-cloud-amd64` is `linux-image-6.1.0-56-cloud-amd64`.
pub(super) fn real_package(metas: &[&str], prefix: &str, suffix: &str) -> Option<String> {
    let look = || {
        metas.iter().find_map(|meta| {
            let list = output(tool("apt-cache").args(["depends", "--important", meta])).ok()?;
            dependency(&list, prefix, suffix)
        })
    };
    look().or_else(|| {
        let _progress = Progress::spinner("Fetching the package lists (apt-get update)");
        tool::apt_update().ok()?;
        look()
    })
}

fn dependency(list: &str, prefix: &str, suffix: &str) -> Option<String> {
    let names = list.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    names.map(str::to_owned).find(|name| name.starts_with(prefix) && name.ends_with(suffix))
}

/// Whether apt knows the package.
pub(super) fn knows(package: &str) -> bool {
    output(tool("apt-cache").args(["show", "--no-all-versions", package])).is_ok_and(|text| !text.trim().is_empty())
}

/// Downloads the package and unpacks it into `dir`. Lists that went stale are fetched anew, once.
pub(super) fn unpack(package: &str, dir: &Path) -> Result<()> {
    let debs = dir.join("debs");
    fs::create_dir_all(&debs).with_context(|| format!("Cannot create {}", debs.display()))?;
    if download(package, &debs).is_err() {
        let _progress = Progress::spinner("Fetching the package lists (apt-get update)");
        tool::apt_update()?;
        download(package, &debs).with_context(|| format!("Cannot download the package {package}"))?;
    }
    let deb = debs.read_dir()?.next().context("apt-get download left no file")??.path();
    let _progress = Progress::spinner(&format!("Unpacking {package}"));
    output(tool("dpkg-deb").arg("-x").arg(&deb).arg(dir))?;
    fs::remove_dir_all(&debs).with_context(|| format!("Cannot remove {}", debs.display()))
}

fn download(package: &str, debs: &Path) -> Result<()> {
    let facts = output(tool("apt-cache").args(["show", "--no-all-versions", package]))?;
    let size = facts.lines().find_map(|line| line.strip_prefix("Size: ")?.parse().ok()).unwrap_or(0);
    let progress = Progress::bytes(&format!("Downloading {package}"), size);
    let mut command = tool("apt-get");
    command.args(["download", "-q", "-o", "APT::Sandbox::User=root", package]).current_dir(debs);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("Cannot start apt-get")?;
    progress.follow(debs, || !matches!(child.try_wait(), Ok(None)));
    let end = child.wait_with_output()?;
    anyhow::ensure!(
        end.status.success(),
        "apt-get download {package}: {}",
        String::from_utf8_lossy(&end.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::dependency;

    #[test]
    fn meta_package_leads_to_the_kernel_of_the_wanted_series() {
        let list = "linux-image-cloud-amd64\n  Depends: linux-base\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(
            dependency(list, "linux-image-6.1.", "-cloud-amd64").as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(dependency(list, "linux-image-6.12.", ""), None);
        assert_eq!(dependency(list, "linux-image-6.1.", "-rt-amd64"), None);
    }
}
