//! What every lab run finds in `/axvm`: the AxVM under test, kernels, initrd, root disk, and passt; and what some find.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Files;
use crate::assets::{self, Kernel, Wanted};
use crate::program;
use crate::tool::{self, output, tool};

/// What passt needs of a system, as it lies in packages, and where the outer machine has it.
const PASST: [(&str, &str, &str); 3] = [
    ("passt", "usr/bin/passt", "host/bin/passt"),
    ("libc6", "lib/x86_64-linux-gnu/libc.so.6", "host/lib/x86_64-linux-gnu/libc.so.6"),
    ("libc6", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "host/lib64/ld-linux-x86-64.so.2"),
];

/// A small server and client of SSH; the libraries of the C library are those of passt.
const SSH: [(&str, &str, &str); 8] = [
    ("dropbear-bin", "usr/sbin/dropbear", "host/bin/dropbear"),
    ("dropbear-bin", "usr/bin/dropbearkey", "host/bin/dropbearkey"),
    ("dropbear-bin", "usr/bin/dbclient", "host/bin/dbclient"),
    ("libtomcrypt1", "usr/lib/x86_64-linux-gnu/libtomcrypt.so.1", "host/lib/x86_64-linux-gnu/libtomcrypt.so.1"),
    ("libtommath1", "usr/lib/x86_64-linux-gnu/libtommath.so.1", "host/lib/x86_64-linux-gnu/libtommath.so.1"),
    ("libgmp10", "usr/lib/x86_64-linux-gnu/libgmp.so.10", "host/lib/x86_64-linux-gnu/libgmp.so.10"),
    ("zlib1g", "lib/x86_64-linux-gnu/libz.so.1", "host/lib/x86_64-linux-gnu/libz.so.1"),
    ("libcrypt1", "lib/x86_64-linux-gnu/libcrypt.so.1", "host/lib/x86_64-linux-gnu/libcrypt.so.1"),
];

/// The packages of what a guest fetches, with all they depend on.
const LSPCI: [&str; 9] =
    ["pciutils", "libpci3", "libkmod2", "libudev1", "zlib1g", "libzstd1", "liblzma5", "libssl3", "libc6"];
const PYTHON: [&str; 5] = ["python3.11-minimal", "libpython3.11-minimal", "libexpat1", "zlib1g", "libc6"];

const QEMU: &str = "qemu-system-x86_64";
const FIRMWARE: [&str; 2] = ["bios-microvm.bin", "linuxboot_dma.bin"];

/// passt, for `--net user`. The caller holds the cache's lock.
pub fn passt() -> Result<Files> {
    packaged(&PASST)
}

/// passt and SSH. The caller holds the cache's lock.
pub fn ssh() -> Result<Files> {
    Ok([passt()?, packaged(&SSH)?].concat())
}

/// passt, and what a guest fetches for `lspci`. The caller holds the cache's lock.
pub fn lspci() -> Result<Files> {
    served("lspci", &LSPCI)
}

/// passt, and a Python for a guest. The caller holds the cache's lock.
pub fn python() -> Result<Files> {
    served("python", &PYTHON)
}

/// passt, by which a guest reaches the server beside AxVM, and the packages there as `NAME.tar`.
fn served(name: &str, packages: &[&str]) -> Result<Files> {
    Ok([passt()?, vec![(assets::bundle(name, packages)?, format!("www/{name}.tar"))]].concat())
}

/// The QEMU that runs the lab, its libraries, and the firmware of its `microvm`.
pub fn qemu() -> Result<Files> {
    let program = tool::find(QEMU).with_context(|| format!("no {QEMU} here"))?;
    let directories = output(tool(QEMU).args(["-L", "help"]))?;
    let firmware = |name: &&str| directories.lines().map(|dir| Path::new(dir).join(name)).find(|file| file.exists());
    let firmware = FIRMWARE.iter().filter_map(firmware);
    Ok([with_libraries(program, "qemu")?, firmware.map(|file| named(file, "qemu")).collect::<Result<_>>()?].concat())
}

/// gdb without Python. Its libraries are this machine's, where a gdb is installed. The caller holds the cache's lock.
pub fn gdb() -> Result<Files> {
    with_libraries(assets::packaged("gdb-minimal", "usr/bin/gdb")?, "gdb")
}

/// A program of this machine with what it is linked with, all in one directory of the lab.
fn with_libraries(program: PathBuf, dir: &str) -> Result<Files> {
    let libraries = output(tool("ldd").arg(&program))?;
    if let Some(missing) = libraries.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks {}", program.display(), missing.trim());
    }
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    [program].into_iter().chain(libraries).map(|file| named(file, dir)).collect()
}

/// A file, and its name in the lab. A link in the payload would lead nowhere.
fn named(file: PathBuf, dir: &str) -> Result<(PathBuf, String)> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((file.canonicalize()?, format!("{dir}/{name}")))
}

fn packaged(files: &[(&str, &str, &str)]) -> Result<Files> {
    files.iter().map(|(package, path, name)| Ok((assets::packaged(package, path)?, (*name).to_owned()))).collect()
}

/// `bin/axvm`, `bzImage-SERIES` and `vmlinux-SERIES` for both series (and `bzImage`, the first), `initrd.img`, `disk.img`.
/// AxVM is built unless one is given.
pub fn standard_files(axvm: Option<PathBuf>) -> Result<Files> {
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
