//! Lies to PCI: configuration spaces, BARs upon each other and nowhere, MSI-X tables, registers in odd widths.
//!
//! Messages keep to vectors that this program has handlers for: it would be its own end. A proof puts all to rights.
//!
//! Spec: PCI Local Bus 3.0, 6 "Configuration Space".

use super::noise::Noise;
use crate::cpu::write;
use crate::hotplug;
use crate::pci::{self, Function};
use crate::virtio::{self, Device};

const ACTS: u32 = 40;
/// In the BAR.
const MSIX_TABLE: u64 = 0x4000;

/// Nothing happens on a machine without the bus.
pub fn storm(noise: &mut Noise) {
    if !pci::is_there() {
        return;
    }
    for device in virtio::devices() {
        for _ in 0..ACTS {
            act(device, noise);
        }
    }
    for _ in 0..ACTS {
        // Where no function is, and the bridge.
        Function::any(noise.below(8) as u8 * 32 + 7).write(noise.below(0x400) as u16 * 4, noise.next() as u32);
        Function::NONE.write(noise.below(0x40) as u16 * 4, noise.next() as u32);
    }
    hotplug::storm(|| noise.next() as u32);
}

/// Any place before the table but those that enable a queue and say where it is: `rings` lies there.
fn register(noise: &mut Noise) -> u64 {
    let edge = [0, 0x1000, 0x2000, 0x3000, 0x3fff][noise.below(5) as usize];
    match edge + noise.below(0x40) {
        0x1c..0x38 => 0,
        at => at % MSIX_TABLE,
    }
}

fn act(device: Device, noise: &mut Noise) {
    let (function, value) = (device.function, noise.next() as u32);
    match noise.below(8) {
        0 => function.write(noise.below(0x10) as u16 * 4, value),
        1 => function.write(0x10, pci::bar(noise.below(4)) as u32 + (value & 0x8000)),
        2 => function.write(0x14, value & 3),
        3 => function.write(4, value & 7),
        4 => function.write_msix(value),
        5 => {
            let entry = device.base() + MSIX_TABLE + noise.below(0x300) * 16;
            match noise.below(4) {
                0 => write(entry, 0xfee0_0000 | value & 0x3_f00c),
                1 => write(entry + 4, value & 1),
                2 => write(entry + 8, 40 + value % 16),
                _ => write(entry + 12, value & 1),
            }
        }
        6 => {
            // The way through configuration space, with any length, but not to messages.
            let Some(window) = function.window() else { return };
            function.write(window + 4, value & 1);
            function.write(window + 8, register(noise) as u32);
            function.write(window + 12, noise.below(9) as u32);
            function.write(window + 16, noise.next() as u32);
            function.read(window + 16);
        }
        _ => {
            let at = device.base() + register(noise);
            match noise.below(4) {
                0 => write(at, value as u8),
                1 => write(at, value as u16),
                2 => write(at, value),
                _ => write(at, u64::from(value) << 32 | u64::from(value)),
            }
        }
    }
}
