//! Looking into a guest that runs or is paused: its registers, its memory, all of both as a file.
//!
//! ```text
//!   examine:  vCPUs to the gate --act, on the vCPU's own thread--> answers --> let go       a fraction of a millisecond
//!   dump:     of a paused machine: RAM, registers, page tables --CoreFile--> ELF core
//! ```
//!
//! Source: KVM API, `KVM_GET_REGS` and its brothers.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};

use axvm_arch::Gpa;
use axvm_arch::paging::{Mapping, Scheme};
use axvm_arch::registers::CpuState;
use axvm_inspect::core_file::{self, CoreFile, Region};
use axvm_inspect::hang::Seen;
use axvm_kvm::KvmVcpu;
use axvm_memory::GuestRam;

use crate::{Machine, hang};

/// Bytes that are written, or left out because they are zero, at once.
const PIECE: usize = 64 << 10;
/// Bytes between two looks whether to go on.
const STRIDE: u64 = 1 << 20;
/// Pages of a kernel that are looked up: 1 GiB in pages of 4 KiB, all that there is in larger ones.
const WALKS: usize = 1 << 18;

/// A file that was to hold a guest is of no use.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// It could not be written.
    #[error("it cannot be written: {0}")]
    File(#[from] io::Error),
    /// The guest ran, was reset or ended before all of it was written.
    #[error("the machine went on before all of it was written")]
    WentOn,
}

impl Machine {
    /// Each vCPU as it stands, held for a moment; none of one that does not come out of the host. `None` if the machine is on
    /// its way to an end.
    pub fn see_vcpus(&self) -> Option<Vec<Option<Seen>>> {
        let see = |index| self.visit_held(index, |vcpu| hang::see(vcpu, Vec::new())).flatten();
        let (seen, _) = self.holding_those_who_come(|| (0..self.vcpu_count()).map(see).collect())?;
        Some(seen)
    }

    /// What `act` finds on vCPU number `index`, while all are held for a moment; `None` if there is no such vCPU, it does not
    /// come out of the host, or the machine is on its way to an end.
    pub fn examine<T: Send + 'static>(
        &self,
        index: u32,
        act: impl FnOnce(&KvmVcpu) -> T + Send + 'static,
    ) -> Option<T> {
        self.holding_those_who_come(|| self.visit_held(index, act))?.0
    }

    /// Writes the memory and registers of a paused machine into `file`, from its first byte on, as an ELF core. Bytes that
    /// are zero are not written: a new file has holes there. `note` is told bytes of RAM that are done, and all.
    pub fn dump(&self, ram: &GuestRam, file: &File, mut note: impl FnMut(u64, u64)) -> Result<(), DumpError> {
        let seen = self.see_vcpus().filter(|_| self.is_paused()).ok_or(DumpError::WentOn)?;
        let cpus: Vec<CpuState> =
            seen.iter().map(|seen| seen.as_ref().map(|seen| seen.snapshot.cpu).unwrap_or_default()).collect();
        let mappings = seen.first().and_then(Option::as_ref).map(|seen| kernel(seen, ram)).unwrap_or_default();
        let regions: Vec<Region> = ram.regions().map(|region| Region { gpa: region.gpa, len: region.len }).collect();
        let (core, total) = (CoreFile::new(&regions, cpus.len(), &mappings), ram.size());
        let (mut done, mut buffer, mut said) = (0, vec![0; PIECE], None);
        for region in regions {
            for at in (0..region.len).step_by(PIECE) {
                if done % STRIDE == 0 {
                    note(done, total);
                    if !self.is_paused() {
                        return Err(DumpError::WentOn);
                    }
                }
                let len = (region.len - at).min(PIECE as u64);
                let gpa = Gpa(region.gpa.0 + at);
                write_piece(ram, &core, file, (gpa, len), &mut buffer)?;
                let pages = || buffer[..len as usize].chunks(4096);
                said = said.or_else(|| pages().find_map(core_file::vmcoreinfo).map(<[u8]>::to_vec));
                done += len;
            }
        }
        // The last byte makes the file as long as it is, whatever holes there are; the head comes last: without it, no core.
        for (at, bytes) in [(core.file_len() - 1, &last(ram)?[..]), (0, &core.head(&cpus, said.as_deref()))] {
            (&*file).seek(SeekFrom::Start(at))?;
            (&*file).write_all(bytes)?;
        }
        note(total, total);
        Ok(())
    }
}

/// Writes `len` bytes from `gpa`, of which `buffer` has a copy then, unless they are all zero.
fn write_piece(
    ram: &GuestRam,
    core: &CoreFile,
    file: &File,
    (gpa, len): (Gpa, u64),
    buffer: &mut [u8],
) -> Result<(), DumpError> {
    let no_ram = || io::Error::from(io::ErrorKind::InvalidInput);
    let range = ram.range(gpa, len).map_err(|_| no_ram())?;
    ram.copy_from(&range, buffer);
    if buffer[..range.len()].iter().fold(0, |all, byte| all | byte) != 0 {
        ram.write_all_at(file, &[range], core.offset(gpa).ok_or_else(no_ram)?)?;
    }
    Ok(())
}

/// The last byte of RAM.
fn last(ram: &GuestRam) -> io::Result<[u8; 1]> {
    let mut byte = [0];
    let end = ram.regions().last().map_or(0, |region| region.gpa.0 + region.len);
    ram.read(Gpa(end.saturating_sub(1)), &mut byte).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(byte)
}

/// What the kernel that a vCPU runs has mapped for itself: the upper half of a linear address space, in long mode.
fn kernel(seen: &Seen, ram: &GuestRam) -> Vec<Mapping> {
    let paging = seen.processor.paging(&seen.snapshot.cpu);
    let (first, last) = match paging.scheme {
        Scheme::Off => return Vec::new(),
        Scheme::Bits32 | Scheme::Pae => (0, u32::MAX.into()),
        Scheme::FourLevel | Scheme::FiveLevel => (u64::MAX << (paging.scheme.linear_bits() - 1), u64::MAX),
    };
    paging.mappings(first, last, WALKS, &|gpa, data| ram.read(gpa, data).is_ok())
}
