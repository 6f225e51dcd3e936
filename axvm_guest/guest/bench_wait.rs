//! How the bench guest waits: it polls, or sleeps at CPL0 until an interrupt.
//!
//! ```text
//!   CPL3: int3 --> sleep_gate: has the index moved? sti, hlt, cli --iretq--> CPL3 looks again
//!                                   WAKE --> wake_gate: EOI
//! ```
//!
//! A breakpoint, for not every interpreter of instructions has `int n` in long mode. Interrupts are off elsewhere: one that comes while the guest works is pending until it sleeps, and ends that sleep at once.
//! Spec: Intel SDM volume 3, 7.14 "Exception and Interrupt Handling in 64-Bit Mode", 12.8 "Handling Interrupts".

use core::arch::asm;

use crate::cpu::{output, read, write};

/// The vector of every device.
pub const WAKE: u8 = 0x40;
/// The vector of int3.
const SLEEP: u64 = 3;
/// Polls until a request counts as lost: seconds at least.
const PATIENCE: u32 = 1 << 31;
/// The spurious vector, and the local APIC on.
const SPURIOUS: u64 = 0xfee0_00f0;
/// The masks of both.
const PICS: [u16; 2] = [0x21, 0xa1];

unsafe extern "C" {
    safe static idt: u8;
    safe static sleep_gate: u8;
    safe static wake_gate: u8;
}

/// Makes this processor ready for interrupts.
pub fn prepare() {
    gate(SLEEP, &raw const sleep_gate as u64, 0xee);
    gate(WAKE.into(), &raw const wake_gate as u64, 0x8e);
    // The interrupt lines lead to the PIC, too.
    PICS.into_iter().for_each(|port| output(port, 0xff_u8));
    write(SPURIOUS, 0x141_u32);
}

fn gate(vector: u64, handler: u64, kind: u64) {
    let at = &raw const idt as u64 + vector * 16;
    write(at, handler & 0xffff | 0x18 << 16 | kind << 40 | (handler >> 16 & 0xffff) << 48);
    write(at + 8, handler >> 32);
}

/// Until the 16 bits at `at` are no longer `before`. False: never.
pub fn poll(at: u64, before: u16) -> bool {
    (0..PATIENCE).any(|_| {
        core::hint::spin_loop();
        read::<u16>(at) != before
    })
}

/// As [`poll`], asleep; once awake, it may not be so yet.
pub fn sleep(at: u64, before: u16) {
    // SAFETY: the gate keeps all registers, and reads two bytes that are mapped.
    unsafe { asm!("int3", in("rdi") at, in("esi") u32::from(before)) };
}
