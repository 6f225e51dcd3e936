//! The processor and the bare machine, as functions: ports, memory by physical address, MSRs.
//!
//! Everything below 4 GiB is mapped by identity, so an address is a number here, never a reference. All
//! `unsafe` of the guest that is no entry point lives in this file.
//!
//! Spec: Intel SDM volume 2.

use core::arch::asm;

/// A value that fits a port or a register.
pub trait Word: Copy {
    fn input(port: u16) -> Self;
    fn output(self, port: u16);
}

macro_rules! word {
    ($word:ty, $register:tt) => {
        impl Word for $word {
            fn input(port: u16) -> Self {
                let value;
                // SAFETY: the program owns the whole machine; a port read touches no memory of it.
                unsafe { asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value, options(nomem, nostack)) };
                value
            }
            fn output(self, port: u16) {
                // SAFETY: the program owns the whole machine; no device here reaches memory by a port.
                unsafe { asm!(concat!("out dx, ", $register), in("dx") port, in($register) self, options(nostack)) };
            }
        }
    };
}
word!(u8, "al");
word!(u16, "ax");
word!(u32, "eax");

pub fn input<W: Word>(port: u16) -> W {
    W::input(port)
}

pub fn output<W: Word>(port: u16, value: W) {
    value.output(port);
}

/// Reads `count` bytes from a port into RAM.
pub fn input_bytes(port: u16, address: u64, count: u64) {
    // SAFETY: mapped as for `read`; callers name RAM that no Rust object occupies.
    unsafe { asm!("rep insb", in("dx") port, inout("rdi") address => _, inout("rcx") count => _, options(nostack)) };
}

/// Reads RAM or a register at a physical address.
pub fn read<W: Copy>(address: u64) -> W {
    // SAFETY: all of the first 4 GiB (and the window) is mapped, x86 reads unaligned, any bits are a valid integer.
    unsafe { core::ptr::with_exposed_provenance::<W>(address as usize).read_volatile() }
}

/// Writes RAM or a register at a physical address.
pub fn write<W: Copy>(address: u64, value: W) {
    // SAFETY: mapped as for `read`; callers write to registers and to RAM that no Rust object occupies.
    unsafe { core::ptr::with_exposed_provenance_mut::<W>(address as usize).write_volatile(value) }
}

pub fn rdtsc() -> u64 {
    // SAFETY: every processor with long mode has a TSC.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// `[eax, ebx, ecx, edx]`.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let result = core::arch::x86_64::__cpuid_count(leaf, 0);
    [result.eax, result.ebx, result.ecx, result.edx]
}

pub fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: callers name MSRs that every machine with long mode and a local APIC has.
    unsafe { asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

pub fn write_msr(number: u32, value: u64) {
    // SAFETY: as for `read_msr`; the values change no mapping and no mode.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

/// `[CR0, CR4]`.
pub fn control_registers() -> [u64; 2] {
    let (cr0, cr4);
    // SAFETY: the guest runs at CPL0.
    unsafe { asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack)) };
    [cr0, cr4]
}

/// Takes `table` (limit and base) as the interrupt table.
pub fn load_idt(table: &[u16; 5]) {
    // SAFETY: the table is static and names handlers that keep every register.
    unsafe { asm!("lidt [{}]", in(reg) table, options(readonly, nostack)) };
}

pub fn enable_interrupts() {
    // SAFETY: the interrupt table is loaded before the first call.
    unsafe { asm!("sti", options(nostack)) };
}

pub fn disable_interrupts() {
    // SAFETY: nothing but interrupts changes.
    unsafe { asm!("cli", options(nostack)) };
}

/// Sleeps until the next interrupt; disabled before and after. One that waits already ends the sleep at once.
pub fn sleep_with_interrupts() {
    // SAFETY: the interrupt table is loaded, and its handlers keep every register.
    unsafe { asm!("sti", "hlt", "cli") };
}

/// Shuts the processor down: an exception for which there is no handler, nor one for that.
pub fn triple_fault() {
    load_idt(&[0; 5]);
    undefined()
}

/// Sleeps until the next interrupt.
pub fn halt() {
    // SAFETY: interrupts are enabled, and their handlers keep every register.
    unsafe { asm!("hlt", options(nostack)) };
}

pub fn stop() -> ! {
    loop {
        // SAFETY: this processor has nothing more to do.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Flushes the TLB entry of an address.
pub fn forget_page(address: u64) {
    // SAFETY: forgetting a translation is always allowed.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Writes `count` bytes from `address` to one port, by one instruction.
pub fn output_string(port: u16, address: u64, count: usize) {
    // SAFETY: a port write reads memory only.
    unsafe { asm!("rep outsb", in("dx") port, inout("rsi") address => _, inout("rcx") count => _, options(nostack)) };
}

/// Reads `count` bytes of one port to `address`, by one instruction.
pub fn input_string(port: u16, address: u64, count: usize) {
    // SAFETY: callers name RAM that no Rust object occupies.
    unsafe { asm!("rep insb", in("dx") port, inout("rdi") address => _, inout("rcx") count => _, options(nostack)) };
}

/// An exception on purpose.
pub fn undefined() -> ! {
    // SAFETY: the program is done; what handles the exception, or the lack of a handler, ends the machine.
    unsafe { asm!("ud2", options(noreturn)) };
}

/// Goes where its caller says, for good.
pub fn jump(to: u64) {
    // SAFETY: the program is done; what is there, or is not, ends the machine.
    unsafe { asm!("jmp {}", in(reg) to, options(noreturn)) };
}

/// Reads an address by an instruction that hypervisors do not carry out themselves.
pub fn unusual_access(address: u64) {
    // SAFETY: the register is the program's own, and a read changes no RAM.
    unsafe { asm!("pcmpeqb xmm0, [{}]", in(reg) address, out("xmm0") _, options(readonly, nostack)) };
}

/// Lets entries of page tables forbid execution (EFER.NXE).
pub fn enable_no_execution() {
    write_msr(0xc000_0080, read_msr(0xc000_0080) | 1 << 11);
}
