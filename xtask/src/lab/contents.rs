//! What every lab run finds in `/axvm`: the AxVM under test, kernels, initrd, root disk, and passt.

use std::path::PathBuf;

use anyhow::Result;

use crate::assets::{self, Kernel, Wanted};
use crate::program;

/// What passt needs of a system, as it lies in packages, and where the outer machine has it.
const PASST: [(&str, &str, &str); 3] = [
    ("passt", "usr/bin/passt", "host/bin/passt"),
    ("libc6", "lib/x86_64-linux-gnu/libc.so.6", "host/lib/x86_64-linux-gnu/libc.so.6"),
    ("libc6", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "host/lib64/ld-linux-x86-64.so.2"),
];

/// passt, for `--net user`. The caller holds the cache's lock.
pub fn passt() -> Result<Vec<(PathBuf, String)>> {
    PASST.iter().map(|(package, path, name)| Ok((assets::packaged(package, path)?, (*name).to_owned()))).collect()
}

/// `bin/axvm`, `bzImage-SERIES` and `vmlinux-SERIES` for both series (and `bzImage`, the first), `initrd.img`, `disk.img`.
/// AxVM is built unless one is given.
pub fn standard_files(axvm: Option<PathBuf>) -> Result<Vec<(PathBuf, String)>> {
    let axvm = axvm.map_or_else(program::build, Ok)?;
    let agent = program::agent(&axvm)?;
    let _lock = assets::lock()?;
    let mut files = vec![(axvm, "bin/axvm".to_owned()), (assets::root_disk()?, "disk.img".to_owned())];
    match passt() {
        Ok(passt) => files.extend(passt),
        Err(error) => eprintln!("The lab goes without passt: {error:#}"),
    }
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
