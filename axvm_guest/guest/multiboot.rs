//! A kernel that enters by Multiboot: 32-bit code in assembly, and what the compiler wants of every program.

#![no_std]
#![no_main]

core::arch::global_asm!(include_str!("multiboot.s"), options(att_syntax));

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
