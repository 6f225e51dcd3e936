//! What a measurement needs: programs built, guests and disk made, in a directory of its own below the build's output.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::kernel::{stub_bzimage, stub_vmlinux};
use super::subject::{Kind, Peer, Subject, peers};
use crate::assets::{self, Kernel, Wanted};
use crate::tool::{output, tool};
use crate::{program, project};

const DISK_LEN: usize = 256 << 20;

/// What experiments share: guests, disk, and where AxVM's examples are.
#[derive(Clone)]
pub struct Bench {
    /// For files that come and go.
    pub scratch: PathBuf,
    /// Raw, in the page cache.
    pub disk: PathBuf,
    /// Of `axvm_kvm`.
    pub cpu_time: PathBuf,
    /// Ticks of the TSC in a millisecond.
    pub tsc_khz: f64,
    /// Prepared by [`super::kernel`], if there is a stock kernel.
    pub vmlinux: Option<PathBuf>,
    /// Likewise.
    pub bzimage: Option<PathBuf>,
    /// Where machines are recorded.
    pub trace: Option<PathBuf>,
}

/// AxVM, the floor, and peers: named, found, or none.
pub fn subjects(named: Option<&[Peer]>) -> Result<Vec<Subject>> {
    ensure!(Path::new("/dev/kvm").exists(), "Cannot measure: this machine has no /dev/kvm");
    let peers = peers(named)?;
    let axvm = program::build()?;
    let ours = [(Kind::Axvm, axvm.clone()), (Kind::AxvmPci, axvm), (Kind::Floor, program::example("floor")?)];
    let ours = ours.into_iter().map(|(kind, path)| Subject::of(kind, path));
    let subjects: Vec<Subject> = ours.chain(peers.into_iter().map(Ok)).collect::<Result<_>>()?;
    subjects.iter().try_for_each(|subject| settle(&subject.path))?;
    Ok(subjects)
}

/// Puts a file on the medium. A page of a program that was just built would count as one that the process had written,
/// and writing back what is dirty would go on beside the first rounds.
pub fn settle(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| format!("Cannot open {}", path.display()))?;
    file.sync_all().with_context(|| format!("Cannot put {} on the medium", path.display()))
}

/// Has the page cache keep nothing of a file.
pub fn forget(path: &Path) -> Result<()> {
    settle(path)?;
    let file = File::open(path).with_context(|| format!("Cannot open {}", path.display()))?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
        .with_context(|| format!("Cannot drop {} from the page cache", path.display()))
}

/// The rest. Without `kernels`, or where none can be had, those experiments are left out.
pub fn bench(kernels: bool) -> Result<Bench> {
    let scratch = project::target().join("bench");
    fs::create_dir_all(&scratch).with_context(|| format!("Cannot create {}", scratch.display()))?;
    let disk = scratch.join("disk.img");
    make_disk(&disk).with_context(|| format!("Cannot write {}", disk.display()))?;
    let [vmlinux, bzimage] = match kernels.then(|| stubs(&scratch)) {
        Some(Ok(paths)) => paths.map(Some),
        Some(Err(error)) => {
            eprintln!("Left out: stock kernels: {error:#}");
            [None, None]
        }
        None => [None, None],
    };
    let tsc = output(tool(&program::example("floor")?.to_string_lossy()).arg("tsc"))?;
    let tsc_khz = tsc.trim().parse().with_context(|| format!("The floor said {tsc:?} of the TSC"))?;
    Ok(Bench { cpu_time: program::example("cpu_time")?, tsc_khz, scratch, disk, vmlinux, bzimage, trace: None })
}

/// Written, not sparse: the page cache has all of it from now on. In small pieces: where the host's file system keeps what
/// was written at once as one folio, a guest's write of 4 KiB into it costs a walk over all of that folio's blocks.
fn make_disk(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    (0..DISK_LEN / 4096).try_for_each(|_| file.write_all(&[0xa5; 4096]))?;
    file.sync_all()
}

fn stubs(scratch: &Path) -> Result<[PathBuf; 2]> {
    let lock = assets::lock()?;
    let kernel = Kernel::get(&Wanted::STOCK)?;
    let vmlinux = kernel.vmlinux()?;
    drop(lock);
    let stub = |from: &Path, name, change: fn(&mut [u8]) -> Result<()>| -> Result<PathBuf> {
        let mut image = fs::read(from).with_context(|| format!("Cannot read {}", from.display()))?;
        change(&mut image)?;
        let path = scratch.join(name);
        fs::write(&path, image).with_context(|| format!("Cannot write {}", path.display()))?;
        settle(&path)?;
        Ok(path)
    };
    Ok([stub(&vmlinux, "vmlinux", stub_vmlinux)?, stub(&kernel.image, "bzImage", stub_bzimage)?])
}
