//! Packages tried: unpacked into an empty root, and run there.
//!
//! ```text
//!   .deb --dpkg -x--> DIR --chroot--> /usr/bin/axvm --version, axvm selftest   nothing else is there: no C library
//!   axvm@.service  --> what it names (program, user, groups, directories) is in the package
//! ```
//!
//! The root is entered in a mount namespace; root makes one, and so may a user where the kernel allows it. Left out: the
//! scripts of the package, for an empty root has no shell to run them.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Packages;
use crate::project::target;
use crate::tool::{output, tool};

/// `/proc` and `/dev/kvm` are what a container has, too.
const SCRIPT: &str = r#"
set -e
cd "$1"
mkdir -p proc dev tmp
mount --rbind /proc proc
if [ -c /dev/kvm ]; then
    : > dev/kvm
    mount --bind /dev/kvm dev/kvm
fi
chroot . "$2" --version
if [ -e dev/kvm ]; then
    chroot . "$2" selftest
fi"#;

/// What held, a line for each thing.
pub fn try_out(packages: &Packages) -> Result<Vec<String>> {
    let dir = target().join("package/trial");
    let _ = fs::remove_dir_all(&dir);
    let (deb, tarball, alone) = (dir.join("deb"), dir.join("tarball"), dir.join("alone"));
    for dir in [&deb, &tarball, &alone] {
        fs::create_dir_all(dir).with_context(|| format!("Cannot create {}", dir.display()))?;
    }
    output(tool("dpkg").arg("-x").arg(&packages.deb).arg(&deb))?;
    output(tool("tar").arg("-xzf").arg(&packages.tarball).args(["--strip-components=1", "-C"]).arg(&tarball))?;
    fs::copy(&packages.program, alone.join("axvm"))?;
    let mut held = vec![
        format!("the .deb in an empty root: {}", run(&deb, "/usr/bin/axvm")?),
        format!("the tarball in an empty root: {}", run(&tarball, "/bin/axvm")?),
        format!("the program alone, as in a container: {}", run(&alone, "/axvm")?),
    ];
    held.push(named(&deb)?);
    for page in ["axvm.1.gz", "axvm-run.1.gz"] {
        output(tool("gzip").arg("-t").arg(deb.join("usr/share/man/man1").join(page)))?;
    }
    fs::remove_dir_all(&dir).with_context(|| format!("Cannot remove {}", dir.display()))?;
    Ok(held)
}

/// The first and the last line of what it said there.
fn run(root: &Path, program: &str) -> Result<String> {
    let mut namespace = tool("unshare");
    if !rustix::process::geteuid().is_root() {
        namespace.arg("--map-root-user");
    }
    let said = output(namespace.args(["--mount", "sh", "-c", SCRIPT, "sh"]).arg(root).arg(program))?;
    let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).collect();
    ensure!(lines.first().is_some_and(|line| line.starts_with("axvm ")), "{program} --version said {said:?}");
    Ok(lines.join("\n").lines().last().unwrap_or_default().to_owned())
}

/// The unit names what the package brings.
fn named(root: &Path) -> Result<String> {
    let read = |name: &str| {
        let path = root.join(name);
        fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))
    };
    let unit = read("usr/lib/systemd/system/axvm@.service")?;
    let users = read("usr/lib/sysusers.d/axvm.conf")?;
    let directories = read("usr/lib/tmpfiles.d/axvm.conf")?;
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().trim();
    let program = value("ExecStart=").split(' ').next().unwrap_or_default();
    ensure!(root.join(program.trim_start_matches('/')).is_file(), "The unit starts {program}, which the package lacks");
    let (user, group) = (value("User="), value("SupplementaryGroups="));
    ensure!(users.contains(&format!("u {user} ")), "The unit's user {user:?} is in no sysusers.d");
    ensure!(users.contains(&format!("m {user} {group}")), "{user} is not in group {group:?}");
    for directory in ["/etc/axvm", "/var/lib/axvm"] {
        ensure!(directories.contains(&format!("d {directory} ")), "{directory} is in no tmpfiles.d");
    }
    verify(root)
}

/// What systemd says of the unit, where it is installed.
fn verify(root: &Path) -> Result<String> {
    if crate::tool::find("systemd-analyze").is_none() {
        return Ok("the unit: what it names is in the package (no systemd here to verify it)".into());
    }
    let unit = root.join("usr/lib/systemd/system/axvm@.service");
    let text = fs::read_to_string(&unit)?.replace("/usr/bin/axvm", &root.join("usr/bin/axvm").display().to_string());
    let copy = root.join("axvm@trial.service");
    fs::write(&copy, text)?;
    let mut analyze: Command = tool("systemd-analyze");
    output(analyze.args(["verify", "--man=no"]).arg(&copy))?;
    Ok("the unit: what it names is in the package, and systemd takes it".into())
}
