//! Lies to the chips: ports of every kind, string I/O, registers at the edges of their windows, interrupts.
//!
//! Values that end the machine are avoided one by one, so that wrong ones can be written right beside them.

use super::noise::{Noise, one_of};
use super::pci;
use crate::apic;
use crate::cpu::{input, input_string, output, output_string, read, write};
use crate::ipi;
use crate::report::COM1;
use crate::virtio;

const ROUNDS: u32 = 160;
const PM1A_CONTROL: u16 = 0x604;
const SLEEP_ENABLE: u16 = 1 << 13;
/// SLP_TYP of S5, as the DSDT says.
const SOFT_OFF: u16 = 5;
/// RAM that nothing else uses.
const SCRATCH: u64 = 32 << 20;
/// What every chip answers at, and some addresses without a chip.
const PORTS: [u16; 17] = [
    0x60,
    0x64,
    0x70,
    0x71,
    0x80,
    0x92,
    0x3f9,
    0x3fb,
    0x3ff,
    0x505,
    0x600,
    0x602,
    PM1A_CONTROL,
    0x608,
    0xcf8,
    0xcf9,
    0xcfc,
];

pub type Storm = fn(&mut Noise);

pub const STORMS: [(&str, Storm); 9] = [
    ("mmio-noise", mmio),
    ("mmio-edges", edges),
    ("port-noise", ports),
    ("all-ports", all_ports),
    ("power-noise", power),
    ("string-io", strings),
    ("interrupts", interrupts),
    ("uart-flood", uart_flood),
    ("pci-noise", pci::storm),
];

/// UART, RTC and PIT as the proofs expect them.
pub fn set_to_rights() {
    for (register, value) in [(3, 3_u8), (1, 0), (2, 7), (4, 8)] {
        output(COM1 + register, value);
    }
    for (register, value) in [(0x0a_u8, 0x26_u8), (0x0b, 0x02)] {
        output(0x70, register);
        output(0x71, value);
    }
    output(0x43, 0x30_u8);
    apic::route(8, 0);
    apic::route(4, 0);
    crate::chips::mask_pics();
}

fn access(address: u64, noise: &mut Noise) {
    match noise.below(8) {
        0 => drop(read::<u8>(address)),
        1 => drop(read::<u16>(address)),
        2 => drop(read::<u32>(address)),
        3 => drop(read::<u64>(address)),
        4 => write(address, noise.next() as u8),
        5 => write(address, noise.next() as u16),
        6 => write(address, noise.next() as u32),
        _ => write(address, noise.next()),
    }
}

/// Reads and writes of all sizes over the windows of all devices and behind the last.
fn mmio(noise: &mut Noise) {
    for _ in 0..2 * ROUNDS {
        access(0xd000_0000 + noise.below(0x6000), noise);
    }
}

/// Around the doorbell, which KVM answers; around the configuration space; across the ends of windows and pages.
fn edges(noise: &mut Noise) {
    for device in virtio::devices() {
        for edge in [0x50, 0x70, 0x100, 0x200, 0x1000] {
            for _ in 0..12 {
                access(device.base() + edge - 9 + noise.below(16), noise);
            }
        }
    }
    for _ in 0..ROUNDS / 8 {
        access(one_of([0xc000_0000, 0xcfff_fffc, 0xd000_efff, 0xfebf_fffc], noise), noise);
    }
}

/// A byte that ends no machine.
fn harmless(port: u16, byte: u8) -> u8 {
    match port {
        0x64 => byte & 0x7f,
        0x92 => byte & !1,
        0x505 => byte & !1,
        0xcf9 => byte & !4,
        0x605 => byte & !(SLEEP_ENABLE >> 8) as u8,
        _ => byte,
    }
}

fn ports(noise: &mut Noise) {
    for _ in 0..ROUNDS {
        let port = one_of(PORTS, noise) + noise.below(2) as u16;
        let byte = harmless(port, noise.next() as u8);
        match noise.below(6) {
            0 => drop(input::<u8>(port)),
            1 => drop(input::<u16>(port)),
            2 => drop(input::<u32>(port)),
            3 => output(port, byte),
            4 => output(port, u16::from(byte)),
            _ => output(port, u32::from(byte)),
        }
        // Configuration of PCI functions that are and are not there.
        output(0xcf8, noise.next() as u32);
        output(0xcfc, noise.next() as u32);
        input::<u16>(0xcfc + noise.below(4) as u16);
    }
}

/// A part of all 65536 ports is read, at every width.
fn all_ports(noise: &mut Noise) {
    for _ in 0..ROUNDS * 2 {
        let port = noise.next() as u16;
        match noise.below(3) {
            0 => drop(input::<u8>(port)),
            1 => drop(input::<u16>(port)),
            _ => drop(input::<u32>(port)),
        }
    }
    input::<u32>(0xffff);
}

/// Sleep types that there are not, halves of the write that powers off, resets that are none.
fn power(noise: &mut Noise) {
    for _ in 0..ROUNDS {
        let kind = one_of([1, 2, 3, 4, 6, 7], noise);
        output(PM1A_CONTROL, kind << 10 | SLEEP_ENABLE);
        output(PM1A_CONTROL, SOFT_OFF << 10);
        output(PM1A_CONTROL, 0_u16);
        output(0x600, noise.next() as u16);
        output(0x602, noise.next() as u16);
        for port in [0x64, 0x92, 0x505, 0xcf9] {
            output(port, harmless(port, noise.next() as u8));
        }
        output(0x505, 2_u8);
    }
    output(0x602, 0_u16);
}

/// Thousands of bytes by one instruction.
fn strings(noise: &mut Noise) {
    for port in PORTS {
        for at in 0..1024 {
            write(SCRATCH + at, harmless(port, noise.next() as u8));
        }
        output_string(port, SCRATCH, 1024);
        input_string(port, SCRATCH, 1024);
        input_string(noise.next() as u16, SCRATCH, 64);
    }
}

/// To oneself, to all, from the RTC, the PIT and the UART at their fastest.
fn interrupts(noise: &mut Noise) {
    apic::route(4, 36);
    apic::route(8, 37);
    output(0x70, 0x0a_u8);
    output(0x71, 0x23_u8); // 8192 times a second
    output(0x70, 0x0b_u8);
    output(0x71, 0x42_u8); // periodic
    for byte in [0x34_u8, 2, 0] {
        output(if byte == 0x34 { 0x43 } else { 0x40 }, byte);
    }
    for _ in 0..ROUNDS {
        apic::send(apic::id(), apic::FIXED | 32 + noise.below(16) as u32);
        output(COM1 + 1, noise.next() as u8 & 0x0f);
        output(0x70, 0x0c_u8);
        let _: u8 = input(0x71);
    }
    ipi::call_others();
}

/// Every register of COM1 but the data.
fn uart_flood(noise: &mut Noise) {
    for _ in 0..ROUNDS {
        let register = 1 + noise.below(7) as u16;
        output(COM1 + register, noise.next() as u8);
        let _: u8 = input(COM1 + noise.below(8) as u16);
    }
}
