//! What every lab run finds in `/axvm`: the AxVM under test, kernels, initrd and root disk.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::assets::{self, Kernel, Wanted};
use crate::progress::Progress;
use crate::project;
use crate::tool::{output, tool};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds AxVM as one static program: the outer machine has no C library.
pub fn build_axvm() -> Result<PathBuf> {
    let _progress = Progress::spinner("Building a static AxVM for the lab");
    let target = project::target().join("lab");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let mut command = tool(&cargo);
    command.args(["build", "--release", "--quiet", "-p", "axvm_core", "--target", TARGET]).current_dir(project::root());
    // A directory of its own: other flags in the shared one would rebuild everything each time.
    command.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", "-C target-feature=+crt-static");
    output(&mut command)?;
    let dir = target.join(TARGET).join("release");
    let found = ["axvm", "axvm_core"].map(|name| dir.join(name)).into_iter().find(|file| file.exists());
    found.with_context(|| format!("No program axvm in {}", dir.display()))
}

/// `bin/axvm`, `bzImage-SERIES` and `vmlinux-SERIES` for both series (and `bzImage`, the first), `initrd.img`, `disk.img`.
/// AxVM is built unless one is given.
pub fn standard_files(axvm: Option<PathBuf>) -> Result<Vec<(PathBuf, String)>> {
    let axvm = axvm.map_or_else(build_axvm, Ok)?;
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
