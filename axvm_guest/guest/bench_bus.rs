//! The bench guest's devices, on the bus that is there: virtio-mmio or virtio-pci, behind the same few functions.
//!
//! ```text
//!   find    windows on the command line (virtio_mmio.device=4K@0xd0000000:5) --> those that AxVM has --> functions of PCI bus 0
//!   start   reset .. features .. queues .. ready           an interrupt: IOAPIC pin, or entry 0 of the MSI-X table --> WAKE
//! ```
//!
//! On PCI the capabilities say where registers are, and BARs stay where they are; one above 4 GiB is seen through a page of
//! its own. Ports 0xcf8 and 0xcfc, for every machine with PCI has them.
//! Spec: virtio 1.2, 4.1 "Virtio Over PCI Bus", 4.2 "Virtio Over MMIO"; PCI Local Bus 3.0, 6.7 "Capabilities List".

use crate::bench_wait::WAKE;
use crate::cpu::{input, output, read, write};

/// Where AxVM puts its windows, and their interrupt lines.
const WINDOWS: u64 = 0xd000_0000;
const LINES: [u32; 14] = [5, 10, 11, 12, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const MAGIC: u32 = 0x7472_6976;
const IO_APIC: u64 = 0xfec0_0000;
const MESSAGES: u32 = 0xfee0_0000;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
/// The vendor, and the device id of a virtio device of kind 0.
const VIRTIO: u32 = 0x1040_1af4;
/// Where a BAR above 4 GiB is seen: 2 MiB for each.
const SEEN: u64 = 0xa000_0000;

/// Kinds of devices.
pub const NET: u32 = 1;
pub const BLOCK: u32 = 2;

/// A register: its place on MMIO, its place in the common configuration of PCI, its width there.
#[derive(Clone, Copy)]
struct Register(u64, u64, u32);

const OFFERED_HALF: Register = Register(0x14, 0x00, 4);
const OFFERED: Register = Register(0x10, 0x04, 4);
const TAKEN_HALF: Register = Register(0x24, 0x08, 4);
const TAKEN: Register = Register(0x20, 0x0c, 4);
const STATUS: Register = Register(0x70, 0x14, 1);
const QUEUE: Register = Register(0x30, 0x16, 2);
const QUEUE_MOST: Register = Register(0x34, 0x18, 2);
const QUEUE_LEN: Register = Register(0x38, 0x18, 2);
const QUEUE_ON: Register = Register(0x44, 0x1c, 2);
const DESCRIPTORS: Register = Register(0x80, 0x20, 4);
const AVAIL: Register = Register(0x90, 0x28, 4);
const USED: Register = Register(0xa0, 0x30, 4);
/// On PCI alone.
const CONFIG_VECTOR: u64 = 0x10;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_NOTIFIER: u64 = 0x1e;
const NO_VECTOR: u16 = 0xffff;

unsafe extern "C" {
    #[link_name = "directories"]
    safe static DIRECTORIES: u64;
}

#[derive(Clone, Copy)]
enum Bus {
    Mmio {
        line: u32,
    },
    /// Where doorbells are, how far apart, and the MSI-X table.
    Pci {
        notifiers: u64,
        apart: u64,
        function: u32,
    },
}

/// One device.
#[derive(Clone, Copy)]
pub struct Device {
    bus: Bus,
    /// MMIO's window, or the common configuration.
    pub registers: u64,
    config: u64,
}

impl Device {
    /// The first of this kind.
    pub fn find(kind: u32, info: u64) -> Option<Device> {
        let line: u64 = read(info + 24);
        let end = if line == 0 { 0 } else { line + 4096 };
        let named = (line..end).take_while(|&at| read::<u8>(at) != 0).filter(|&at| starts(at, b"@0x"));
        let named = named.map(|at| {
            let (base, behind) = number(at + 3, 16);
            (base, number(behind + 1, 10).0 as u32)
        });
        let ours = (WINDOWS..).step_by(0x1000).zip(LINES);
        let window = named.chain(ours).find(|&(base, _)| read::<u32>(base) == MAGIC && read::<u32>(base + 8) == kind);
        match window {
            Some((base, line)) => Some(Device { bus: Bus::Mmio { line }, registers: base, config: base + 0x100 })
                .filter(|_| read::<u32>(base + 4) == 2),
            None => (0..32).find_map(|slot| on_pci(slot << 11, kind)),
        }
    }

    fn get(self, Register(window, common, width): Register) -> u32 {
        match (self.bus, width) {
            (Bus::Mmio { .. }, _) => read(self.registers + window),
            (_, 1) => read::<u8>(self.registers + common).into(),
            (_, 2) => read::<u16>(self.registers + common).into(),
            _ => read(self.registers + common),
        }
    }

    fn set(self, Register(window, common, width): Register, value: u32) {
        match (self.bus, width) {
            (Bus::Mmio { .. }, _) => write(self.registers + window, value),
            (_, 1) => write(self.registers + common, value as u8),
            (_, 2) => write(self.registers + common, value as u16),
            _ => write(self.registers + common, value),
        }
    }

    fn set_address(self, Register(window, common, width): Register, value: u64) {
        self.set(Register(window, common, width), value as u32);
        self.set(Register(window + 4, common + 4, width), (value >> 32) as u32);
    }

    /// A word of the device's own configuration.
    pub fn config<W: Copy>(self, at: u64) -> W {
        read(self.config + at)
    }

    /// Resets it, and takes what it offers of the features that are wanted; gives those taken.
    pub fn start(self, wanted: u64) -> Option<u64> {
        self.set(STATUS, 0);
        (0..1000).find(|_| self.get(STATUS) == 0)?;
        [1, 3].into_iter().for_each(|status| self.set(STATUS, status));
        let [low, high] = [0, 1].map(|half| {
            self.set(OFFERED_HALF, half);
            u64::from(self.get(OFFERED))
        });
        let taken = (low | high << 32) & (wanted | 1 << 32);
        for half in [0, 1] {
            self.set(TAKEN_HALF, half);
            self.set(TAKEN, (taken >> (32 * half)) as u32);
        }
        self.set(STATUS, 11);
        if let Bus::Pci { .. } = self.bus {
            write(self.registers + CONFIG_VECTOR, NO_VECTOR);
        }
        (self.get(STATUS) & 8 != 0).then_some(taken)
    }

    /// Places a queue, as long as it may be but for `most`; gives its length and its doorbell. It interrupts, or never does.
    pub fn queue(
        self,
        number: u16,
        most: u16,
        [descriptors, avail, used]: [u64; 3],
        wakes: bool,
    ) -> Option<(u16, Notifier)> {
        self.set(QUEUE, number.into());
        let len = (self.get(QUEUE_MOST) as u16).min(most);
        if len == 0 {
            return None;
        }
        self.set(QUEUE_LEN, len.into());
        self.set_address(DESCRIPTORS, descriptors);
        self.set_address(AVAIL, avail);
        self.set_address(USED, used);
        let notifier = match self.bus {
            Bus::Mmio { line } => {
                if wakes {
                    route(line);
                }
                Notifier { at: self.registers + 0x50, number, window: Some(self.registers) }
            }
            Bus::Pci { notifiers, apart, function } => {
                let vector = if wakes { message(function)? } else { NO_VECTOR };
                write(self.registers + QUEUE_VECTOR, vector);
                let at = notifiers + u64::from(read::<u16>(self.registers + QUEUE_NOTIFIER)) * apart;
                Notifier { at, number, window: None }
            }
        };
        self.set(QUEUE_ON, 1);
        Some((len, notifier))
    }

    /// Off it goes.
    pub fn ready(self) -> bool {
        self.set(STATUS, 15);
        self.get(STATUS) == 15
    }
}

/// What is rung for a queue, and how its interrupts are acknowledged.
#[derive(Clone, Copy)]
pub struct Notifier {
    at: u64,
    number: u16,
    window: Option<u64>,
}

impl Notifier {
    pub fn notify(self) {
        match self.window {
            Some(_) => write(self.at, u32::from(self.number)),
            None => write(self.at, self.number),
        }
    }

    /// A message says all by itself.
    pub fn acknowledge(self) {
        if let Some(window) = self.window {
            write(window + 0x64, read::<u32>(window + 0x60));
        }
    }
}

/// An edge on this line wakes this processor.
fn route(line: u32) {
    for (register, value) in [(0x11 + line * 2, 0), (0x10 + line * 2, u32::from(WAKE))] {
        write(IO_APIC, register);
        write(IO_APIC + 0x10, value);
    }
}

/// Entry 0 of a function's MSI-X table wakes this processor; gives its number.
fn message(function: u32) -> Option<u16> {
    let (at, head) = capabilities(function).find(|(_, head)| head & 0xff == 0x11)?;
    let table = read_config(function, at + 4);
    let entry = bar(function, table & 7)? + u64::from(table & !7);
    for (word, value) in (0..).step_by(4).zip([MESSAGES, 0, WAKE.into(), 0]) {
        write(entry + word, value);
    }
    write_config(function, at, head & 0x3fff_ffff | 1 << 31);
    Some(0)
}

fn read_config(function: u32, register: u32) -> u32 {
    output(ADDRESS, 1 << 31 | function | register);
    input(DATA)
}

fn write_config(function: u32, register: u32, value: u32) {
    output(ADDRESS, 1 << 31 | function | register);
    output(DATA, value);
}

/// Place and first double word of each.
fn capabilities(function: u32) -> impl Iterator<Item = (u32, u32)> {
    let mut at = read_config(function, 0x34) & 0xfc;
    (0..48).map_while(move |_| {
        let (here, head) = (at, read_config(function, at));
        at = head >> 8 & 0xfc;
        (here != 0).then_some((here, head))
    })
}

fn on_pci(function: u32, kind: u32) -> Option<Device> {
    // Older devices have 0x1000 and so on, with another order of kinds.
    let id = read_config(function, 0);
    let older = 0x1000_1af4 | if kind == BLOCK { 1 << 16 } else { 0 };
    if id != VIRTIO + (kind << 16) && id != older {
        return None;
    }
    write_config(function, 4, 6); // memory, bus master
    let part = |wanted: u32| {
        let (at, _) = capabilities(function).find(|(_, head)| head & 0xff == 9 && head >> 24 == wanted)?;
        Some((at, bar(function, read_config(function, at + 4) & 7)? + u64::from(read_config(function, at + 8))))
    };
    let ((_, registers), (notify, notifiers), (_, config)) = (part(1)?, part(2)?, part(4)?);
    let apart = read_config(function, notify + 16).into();
    Some(Device { bus: Bus::Pci { notifiers, apart, function }, registers, config })
}

/// Where a BAR can be reached.
fn bar(function: u32, number: u32) -> Option<u64> {
    let low = read_config(function, 0x10 + number * 4);
    let high = if low & 6 == 4 { read_config(function, 0x14 + number * 4) } else { 0 };
    let (low, high) = (u64::from(low & !15), u64::from(high) << 32);
    if high == 0 {
        return (low != 0).then_some(low);
    }
    // A page that was not touched yet: no translation of it is remembered. Two devices at most, in slots of their own.
    let (page, slot) = (SEEN >> 21, u64::from(function >> 11));
    write(&raw const DIRECTORIES as u64 + (page + slot) * 8, (high | low) & !0x1f_ffff | 0x87);
    Some(((page + slot) << 21) + (low & 0x1f_ffff))
}

fn starts(at: u64, with: &[u8]) -> bool {
    (at..).zip(with).all(|(at, &byte)| read::<u8>(at) == byte)
}

/// The number at `at`, and what is behind it.
fn number(mut at: u64, base: u64) -> (u64, u64) {
    let mut value = 0_u64;
    while let Some(digit) = char::from(read::<u8>(at)).to_digit(base as u32) {
        (value, at) = (value * base + u64::from(digit), at + 1);
    }
    (value, at)
}
