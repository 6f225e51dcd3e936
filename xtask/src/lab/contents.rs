//! What every lab run finds in `/axvm`: the AxVM under test, kernels, initrd and root disk.

use std::path::PathBuf;

use anyhow::Result;

use crate::assets::{self, Kernel, Wanted};
use crate::program;

/// `bin/axvm`, `bzImage-SERIES` and `vmlinux-SERIES` for both series (and `bzImage`, the first), `initrd.img`, `disk.img`.
/// AxVM is built unless one is given.
pub fn standard_files(axvm: Option<PathBuf>) -> Result<Vec<(PathBuf, String)>> {
    let axvm = axvm.map_or_else(program::build, Ok)?;
    let agent = program::agent(&axvm)?;
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
    files.push((assets::initrd(&kernels.iter().collect::<Vec<_>>(), &agent)?, "initrd.img".to_owned()));
    Ok(files)
}
