//! The floor of the benchmarks: the fewest calls that run a guest on KVM, and nothing of AxVM.
//!
//! ```text
//!   floor GUEST MEMORY_MIB VCPUS          floor tsc: ticks of the TSC in a millisecond, as KVM knows them
//!
//!   mmap --> read ELF into RAM --> KVM_CREATE_VM --> slot --> irqchip --> vCPUs (CPUID, registers) --> KVM_RUN ..
//!   OUT 0x3f8: a byte on standard output     OUT 0x64: end     reads give 0; but line status: empty
//! ```
//!
//! What a VMM takes longer than this is its own. Entered as PVH, in 32-bit protected mode. One thread for each vCPU.
//! Left out: all devices, the PIT, memory above 3 GiB, and all care for bad input: it is ours.

use std::fs::File;
use std::io::{self, Error, Read, Seek, SeekFrom, Write};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

const START_INFO: usize = 0x6000;
const COMMAND_LINE: usize = 0x7000;
const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const I8042: u16 = 0x64;
/// XEN_ELFNOTE_PHYS32_ENTRY is where the ELF entry is, too: the bench guest's linker script says so.
const MAGIC: u32 = 0x336e_c578;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments == ["tsc"] {
        println!("{}", Kvm::new()?.create_vm()?.create_vcpu(0)?.get_tsc_khz()?);
        return Ok(());
    }
    let [guest, memory_mib, vcpus] = &arguments[..] else {
        return Err(Error::other("Cannot start: give GUEST MEMORY_MIB VCPUS"));
    };
    let number = |word: &str| word.parse().map_err(|error| Error::other(format!("{word} is no number: {error}")));
    let (memory, vcpus): (usize, usize) = (number(memory_mib)? << 20, number(vcpus)?);
    let ram = map(memory)?;
    let entry = load(&mut File::open(guest)?, ram)?;

    let vm = Kvm::new()?.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory as u64,
        userspace_addr: ram.as_ptr().addr() as u64,
    };
    // SAFETY: the mapping is never taken back, and touched by the guest alone from here on.
    unsafe { vm.set_user_memory_region(slot) }?;
    vm.create_irq_chip()?;
    let cpuid = Kvm::new()?.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
    for id in (1..vcpus as u64).rev() {
        let mut vcpu = vm.create_vcpu(id)?;
        vcpu.set_cpuid2(&cpuid)?;
        #[allow(clippy::disallowed_methods, reason = "no sandbox, so no role in it")]
        std::thread::spawn(move || run(&mut vcpu));
    }
    let mut first = vm.create_vcpu(0)?;
    first.set_cpuid2(&cpuid)?;
    enter_pvh(&first, entry)?;
    run(&mut first)
}

/// Guest RAM; no page of it is there before it is touched.
fn map(len: usize) -> io::Result<&'static mut [u8]> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new mapping touches no existing one.
    let address = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if address == libc::MAP_FAILED {
        return Err(Error::last_os_error());
    }
    // SAFETY: the mapping has this length, nothing else refers to it, and it is never taken back.
    Ok(unsafe { std::slice::from_raw_parts_mut(address.cast(), len) })
}

/// Reads each loadable segment to its place, and writes what the PVH entry expects. Gives the entry.
fn load(file: &mut File, ram: &mut [u8]) -> io::Result<u64> {
    let mut head = [0; 0x400];
    file.read_exact(&mut head)?;
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    let (headers, count) = (number(0x20) as usize, number(0x38) as u16);
    for at in (0..count.into()).map(|index: usize| headers + index * 56) {
        if number(at) as u32 == 1 {
            let (start, len) = (number(at + 24) as usize, number(at + 32) as usize);
            file.seek(SeekFrom::Start(number(at + 8)))?;
            file.read_exact(&mut ram[start..start + len])?;
        }
    }
    ram[START_INFO..START_INFO + 4].copy_from_slice(&MAGIC.to_le_bytes());
    ram[START_INFO + 24..START_INFO + 32].copy_from_slice(&(COMMAND_LINE as u64).to_le_bytes());
    Ok(number(0x18))
}

fn enter_pvh(vcpu: &VcpuFd, entry: u64) -> io::Result<()> {
    let mut system = vcpu.get_sregs()?;
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, db: 1, g: 1, ..Default::default() };
    let data = kvm_segment { type_: 3, selector: 0x10, ..flat };
    system.cs = kvm_segment { type_: 11, selector: 0x08, ..flat };
    [system.ds, system.es, system.fs, system.gs, system.ss] = [data; 5];
    system.tr = kvm_segment { limit: 0x67, type_: 11, present: 1, ..Default::default() };
    system.cr0 = 0x11;
    vcpu.set_sregs(&system)?;
    vcpu.set_regs(&kvm_regs { rip: entry, rbx: START_INFO as u64, rflags: 2, ..Default::default() })?;
    Ok(())
}

fn run(vcpu: &mut VcpuFd) -> io::Result<()> {
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(COM1, data) => io::stdout().write_all(data).and_then(|()| io::stdout().flush())?,
            VcpuExit::IoOut(I8042, _) | VcpuExit::Shutdown => std::process::exit(0),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            VcpuExit::IoIn(LINE_STATUS, data) => data.fill(0x60),
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0),
            other => return Err(Error::other(format!("The guest stopped: {other:?}"))),
        }
    }
}
