//! What every lab run finds in `/axvm`: the AxVM under test, kernels, initrd and root disk.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::assets::{self, Kernel, Wanted};
use crate::progress::Progress;
use crate::project;
use crate::tool::{output, tool};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds AxVM: for this host, or as one static program for the lab, whose outer machine has no C library.
pub fn build(for_lab: bool) -> Result<PathBuf> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = tool(&cargo);
    command.args(["build", "--release", "-p", "axvm_core"]).current_dir(project::root());
    let mut dir = project::target();
    if for_lab {
        // A directory of its own: other flags in the shared one would rebuild everything each time.
        dir = dir.join("lab");
        command.args(["--target", TARGET]);
        command.env("CARGO_TARGET_DIR", &dir).env("RUSTFLAGS", "-C target-feature=+crt-static");
        dir = dir.join(TARGET);
    }
    if std::io::stderr().is_terminal() {
        // Cargo has a bar of its own.
        let status = command.status().context("Cannot start cargo")?;
        anyhow::ensure!(status.success(), "Building AxVM failed");
    } else {
        let _progress = Progress::spinner("Building AxVM");
        output(command.arg("--quiet"))?;
    }
    let axvm = dir.join("release/axvm");
    anyhow::ensure!(axvm.exists(), "No program {} after the build", axvm.display());
    Ok(axvm)
}

/// `bin/axvm`, `bzImage-SERIES` and `vmlinux-SERIES` for both series (and `bzImage`, the first), `initrd.img`, `disk.img`.
/// AxVM is built unless one is given.
pub fn standard_files(axvm: Option<PathBuf>) -> Result<Vec<(PathBuf, String)>> {
    let axvm = axvm.map_or_else(|| build(true), Ok)?;
    let _lock = assets::lock()?;
    let mut files = vec![(axvm, "bin/axvm".to_owned()), (assets::root_disk()?, "disk.img".to_owned())];
    let mut kernels = Vec::new();
    for wanted in [Wanted::V6_1, Wanted::V6_12] {
        match Kernel::get(&wanted) {
            Ok(kernel) => {
                files.push((kernel.image.clone(), format!("bzImage-{}", wanted.name)));
                files.push((kernel.vmlinux()?, format!("vmlinux-{}", wanted.name)));
                kernels.push(kernel);
            }
            Err(error) => eprintln!("The lab goes without kernel {}: {error:#}", wanted.name),
        }
    }
    if kernels.is_empty() {
        kernels.push(Kernel::get(&Wanted::STOCK)?);
    }
    files.push((kernels[0].image.clone(), "bzImage".to_owned()));
    files.push((assets::initrd(&kernels.iter().collect::<Vec<_>>())?, "initrd.img".to_owned()));
    Ok(files)
}
