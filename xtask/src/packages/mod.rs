//! Packages: what an installed AxVM consists of, in the forms that users install.
//!
//! ```text
//!   program --man, completions--> Contents --> axvm_VERSION_amd64.deb      below /usr
//!   packaging/, docs, LICENSE                  axvm-VERSION-x86_64.tar.gz  below /usr/local, or anywhere
//!                                              axvm                        alone: for a container from scratch
//! ```
//!
//! The same commit gives the same bytes: times in the archives are the commit's, or `SOURCE_DATE_EPOCH`.

mod contents;
mod trial;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::project::{root, target};
use crate::tool::{find, output, tool};

pub use trial::try_out;

use contents::{Contents, Place};

/// What was made.
pub struct Packages {
    /// For Debian and Ubuntu.
    pub deb: PathBuf,
    /// For any other Linux.
    pub tarball: PathBuf,
    /// The program alone.
    pub program: PathBuf,
}

/// Makes all of them from the program `axvm`, in `target/package`.
pub fn make(axvm: &Path) -> Result<Packages> {
    ensure!(
        find("dpkg-deb").is_some(),
        "Cannot make a .deb without dpkg-deb; install dpkg (Debian and Ubuntu have it)"
    );
    let dir = target().join("package");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    let said = output(tool(&axvm.to_string_lossy()).arg("--version"))?;
    let version = version(&said).with_context(|| format!("Cannot read a version in {said:?}"))?;
    let program = dir.join("axvm");
    fs::copy(axvm, &program).with_context(|| format!("Cannot copy {}", axvm.display()))?;
    let contents = Contents::gather(&program)?;
    let (deb, tarball) = (deb(&dir, &contents, &version)?, tarball(&dir, &contents, &version)?);
    Ok(Packages { deb, tarball, program })
}

/// `axvm 0.1.0 (5a094a4a1b2c 2026-11-27)` is version 0.1.0+git20261127.5a094a4a1b2c.
fn version(said: &str) -> Option<String> {
    let mut words = said.split_whitespace().skip(1);
    let version = words.next()?;
    Some(match (words.next(), words.next()) {
        (Some(commit), Some(date)) => {
            let date: String = date.chars().filter(char::is_ascii_digit).collect();
            format!("{version}+git{date}.{}", commit.trim_start_matches('('))
        }
        _ => version.to_owned(),
    })
}

/// Seconds since 1970 that files in archives have.
fn epoch() -> String {
    let commit = || output(tool("git").arg("-C").arg(root()).args(["log", "-1", "--format=%ct"])).ok();
    let said = env::var("SOURCE_DATE_EPOCH").ok().or_else(commit);
    said.map_or_else(|| "0".to_owned(), |seconds| seconds.trim().to_owned())
}

fn deb(dir: &Path, contents: &Contents, version: &str) -> Result<PathBuf> {
    let tree = dir.join("deb");
    contents.write(&tree.join("usr"), Place::Usr)?;
    let len = contents.len().div_ceil(1024);
    let control = format!(
        "Package: axvm\nVersion: {version}\nArchitecture: amd64\nMaintainer: The AxVM developers\nSection: admin\n\
         Priority: optional\nInstalled-Size: {len}\nRecommends: systemd\nDescription: hypervisor on Linux KVM\n \
         AxVM boots a stock Linux kernel on virtual CPUs, with disks, a console and a control socket.\n \
         It is small enough to read. `axvm selftest` tells whether this host can run it.\n"
    );
    let debian = tree.join("DEBIAN");
    fs::create_dir_all(&debian).with_context(|| format!("Cannot create {}", debian.display()))?;
    fs::write(debian.join("control"), control)?;
    for script in ["postinst", "prerm", "postrm"] {
        let from = root().join("packaging/debian").join(script);
        output(tool("install").args(["-m", "0755"]).arg(&from).arg(debian.join(script)))?;
    }
    let deb = dir.join(format!("axvm_{version}_amd64.deb"));
    let mut build = tool("dpkg-deb");
    build.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&deb).env("SOURCE_DATE_EPOCH", epoch());
    output(&mut build)?;
    fs::remove_dir_all(&tree)?;
    Ok(deb)
}

fn tarball(dir: &Path, contents: &Contents, version: &str) -> Result<PathBuf> {
    let name = format!("axvm-{version}");
    let tree = dir.join(&name);
    contents.write(&tree, Place::UsrLocal)?;
    let tarball = dir.join(format!("{name}-x86_64.tar.gz"));
    let mut tar = tool("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "-I", "gzip -9n"]);
    tar.arg(format!("--mtime=@{}", epoch())).arg("-C").arg(dir).arg("-cf").arg(&tarball).arg(&name);
    output(&mut tar)?;
    fs::remove_dir_all(&tree)?;
    Ok(tarball)
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn a_commit_is_part_of_the_version() {
        let said = "axvm 0.1.0 (5a094a4a1b2c 2026-11-27)\n";
        assert_eq!(version(said).as_deref(), Some("0.1.0+git20261127.5a094a4a1b2c"));
        assert_eq!(version("axvm 0.1.0\n").as_deref(), Some("0.1.0"));
        assert_eq!(version("axvm"), None);
    }
}
