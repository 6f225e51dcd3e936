//! Interrupts: the interrupt table, the local APIC (xAPIC mode) and the IOAPIC.
//!
//! ```text
//!   device --GSI--> IOAPIC pin --vector--> local APIC --> stub in entry.s --> COUNTS[vector] + 1
//! ```
//!
//! Spec: Intel SDM volume 3, 12 "Advanced Programmable Interrupt Controller"; Intel 82093AA datasheet.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::clock;
use crate::cpu;

const LOCAL: u64 = 0xfee0_0000;
const IO: u64 = 0xfec0_0000;
const VECTORS: usize = 64;

pub const ID: u64 = 0x20;
pub const VERSION: u64 = 0x30;
const SPURIOUS: u64 = 0xf0;
const COMMAND: u64 = 0x300;
const COMMAND_HIGH: u64 = 0x310;
pub const TIMER: u64 = 0x320;
pub const INITIAL_COUNT: u64 = 0x380;
pub const CURRENT_COUNT: u64 = 0x390;
pub const DIVIDE: u64 = 0x3e0;

pub const INIT: u32 = 0x4500;
pub const STARTUP: u32 = 0x4600;
pub const FIXED: u32 = 0x4000;
pub const MASKED: u32 = 1 << 16;

#[unsafe(export_name = "interrupt_counts")]
static COUNTS: [AtomicU32; VECTORS] = [const { AtomicU32::new(0) }; VECTORS];

unsafe extern "C" {
    safe static stubs: [[u8; 16]; VECTORS];
}

/// The interrupt table lies here, at 4 MiB: RAM that nothing else uses.
const TABLE: u64 = 0x40_0000;

/// Writes the interrupt table; once.
pub fn write_table() {
    for vector in 0..VECTORS as u64 {
        let handler = &raw const stubs as u64 + vector * 16;
        let gate = TABLE + vector * 16;
        cpu::write(gate, handler & 0xffff | 0x18 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48);
        cpu::write(gate + 8, handler >> 32);
    }
}

/// Makes this processor ready for interrupts; on each.
pub fn enable() {
    cpu::load_idt(&[VECTORS as u16 * 16 - 1, TABLE as u16, (TABLE >> 16) as u16, 0, 0]);
    write(SPURIOUS, 0x100 | (VECTORS as u32 - 1));
    cpu::enable_interrupts();
}

pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector) % VECTORS].load(Ordering::Relaxed)
}

pub fn read(register: u64) -> u32 {
    cpu::read(LOCAL + register)
}

pub fn write(register: u64, value: u32) {
    cpu::write(LOCAL + register, value);
}

pub fn id() -> u8 {
    (read(ID) >> 24) as u8
}

/// Sends an inter-processor interrupt. `command` is a kind and, for fixed and start-up, a vector.
pub fn send(target: u8, command: u32) {
    write(COMMAND_HIGH, u32::from(target) << 24);
    write(COMMAND, command);
    clock::wait(10_000, || read(COMMAND) & 1 << 12 == 0);
}

pub fn io_read(register: u32) -> u32 {
    cpu::write(IO, register);
    cpu::read(IO + 0x10)
}

pub fn io_write(register: u32, value: u32) {
    cpu::write(IO, register);
    cpu::write(IO + 0x10, value);
}

/// Sends an edge-triggered line to `vector` of this processor; vector 0 masks it.
pub fn route(pin: u32, vector: u8) {
    io_write(0x11 + pin * 2, u32::from(id()) << 24);
    io_write(0x10 + pin * 2, if vector == 0 { MASKED } else { vector.into() });
}
