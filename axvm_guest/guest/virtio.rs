//! virtio over MMIO or PCI: an honest driver.
//!
//! ```text
//!   window n at 0xd0000000 + n * 4 KiB, interrupt line GSIS[n]      (where AxVM puts them, in order)
//!   or the BAR of function n at 0xc0000000 + n * 64 KiB, MSI-X      registers have MMIO's names, and are translated
//!   queue q of window n at 8 MiB + n * 512 KiB + q * 32 KiB: descriptors | avail | used | buffers
//! ```
//!
//! One chain at a time, queues of 8. Spec: virtio 1.2, 2.7 "Split Virtqueues", 3.1 "Device
//! Initialization", 4.1 "Virtio Over PCI Bus", 4.2 "Virtio Over MMIO".

use crate::apic;
use crate::clock;
use crate::cpu::{read, write};
use crate::pci::{self, Function};
use crate::report::{Line, Verdict};

const WINDOWS: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1000;
const GSIS: [u8; 14] = [5, 10, 11, 12, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23];
const ARENA: u64 = 8 << 20;
const MAGIC: u32 = 0x7472_6976;
pub const QUEUE_LEN: u16 = 8;
/// Patience with a device, in microseconds that this processor ran ([`clock::wait`]). Measured at loads of 10 to 16 on two
/// processors, paused all the time or never, the longest of some 50 000 interrupts took 0.13 s and none was lost: `raise`
/// comes after the used index, KVM injects at least once after each `raise`, and the line is masked only before the first
/// request.
pub const PATIENCE: u64 = 2_000_000;

/// Registers (4.2.2), and what has their meaning on PCI.
pub mod register {
    pub const DEVICE_ID: u64 = 0x08;
    pub const DEVICE_FEATURES: u64 = 0x10;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub const DRIVER_FEATURES: u64 = 0x20;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub const QUEUE_SELECT: u64 = 0x30;
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    pub const QUEUE_SIZE: u64 = 0x38;
    pub const QUEUE_READY: u64 = 0x44;
    pub const QUEUE_NOTIFY: u64 = 0x50;
    pub const INTERRUPT_STATUS: u64 = 0x60;
    pub const INTERRUPT_ACK: u64 = 0x64;
    pub const STATUS: u64 = 0x70;
    pub const QUEUE_DESCRIPTORS: u64 = 0x80;
    pub const QUEUE_AVAIL: u64 = 0x90;
    pub const QUEUE_USED: u64 = 0xa0;
    pub const QUEUE_RESET: u64 = 0xc0;
    pub const CONFIG: u64 = 0x100;
}
use register::*;

/// Device types (5).
pub mod kind {
    pub const NET: u32 = 1;
    pub const BLOCK: u32 = 2;
    pub const CONSOLE: u32 = 3;
    pub const RNG: u32 = 4;
    pub const BALLOON: u32 = 5;
    pub const VSOCK: u32 = 19;
}

/// Block features (5.2.3), VERSION_1 (6).
pub const READ_ONLY: u64 = 1 << 5;
pub const FLUSH: u64 = 1 << 9;
/// Several queues.
pub const MQ: u64 = 1 << 12;
pub const VERSION_1: u64 = 1 << 32;

/// A part of guest memory that the device may read, or write.
#[derive(Clone, Copy)]
pub struct Buffer {
    pub address: u64,
    pub len: u32,
    pub device_writes: bool,
}

/// One device, on either bus.
#[derive(Clone, Copy)]
pub struct Device {
    pub number: u64,
    pub kind: u32,
    /// Its function, if it is on PCI.
    pub function: Function,
}

/// Where in the BAR of PCI a register of this name is, and its width in bytes; 0: there is none.
fn in_bar(register: u64) -> (u64, u64) {
    match register {
        DEVICE_FEATURES_SELECT => (0x00, 4),
        DEVICE_FEATURES => (0x04, 4),
        DRIVER_FEATURES_SELECT => (0x08, 4),
        DRIVER_FEATURES => (0x0c, 4),
        STATUS => (0x14, 1),
        QUEUE_SELECT => (0x16, 2),
        QUEUE_SIZE_MAX | QUEUE_SIZE => (0x18, 2),
        QUEUE_READY => (0x1c, 2),
        QUEUE_DESCRIPTORS..=0x87 => (0x20 + register - QUEUE_DESCRIPTORS, 4),
        QUEUE_AVAIL..=0x97 => (0x28 + register - QUEUE_AVAIL, 4),
        QUEUE_USED..=0xa7 => (0x30 + register - QUEUE_USED, 4),
        QUEUE_RESET => (0x3a, 2),
        INTERRUPT_STATUS => (0x1000, 1),
        CONFIG.. => (0x2000 + register - CONFIG, 4),
        _ => (0, 0),
    }
}
/// The vectors of PCI in the common configuration, and the doorbells.
const CONFIG_VECTOR: u64 = 0x10;
const QUEUE_VECTOR: u64 = 0x1a;
const DOORBELLS: u64 = 0x3000;

/// The devices, in order.
pub fn devices() -> impl Iterator<Item = Device> {
    let mut last = None;
    core::iter::from_fn(move || {
        last = if read::<u32>(WINDOWS) == MAGIC { next_window(last) } else { next_function(last) };
        last
    })
}

/// The device in the window behind `last`.
fn next_window(last: Option<Device>) -> Option<Device> {
    let number = last.map_or(0, |last| last.number + 1);
    let window = WINDOWS + number * STRIDE;
    let is_there = number < GSIS.len() as u64 && read::<u32>(window) == MAGIC;
    is_there.then(|| Device { number, kind: read(window + DEVICE_ID), function: Function::NONE })
}

/// The device of the function behind that of `last`.
fn next_function(last: Option<Device>) -> Option<Device> {
    let (number, from) = last.map_or((0, Function::NONE), |last| (last.number + 1, last.function));
    let function = pci::next(from)?;
    Some(Device { number, kind: function.kind().unwrap_or(0), function })
}

impl Device {
    pub fn base(self) -> u64 {
        if self.is_on_pci() { pci::bar(self.number) } else { WINDOWS + self.number * STRIDE }
    }

    pub fn is_on_pci(self) -> bool {
        self.function != Function::NONE
    }

    pub fn read(self, register: u64) -> u32 {
        let (at, width) = if self.is_on_pci() { in_bar(register) } else { (register, 4) };
        let at = self.base() + at;
        match width {
            0 => 0,
            1 => read::<u8>(at).into(),
            2 => read::<u16>(at).into(),
            _ => read(at),
        }
    }

    pub fn write(self, register: u64, value: u32) {
        let (at, width) = match (self.is_on_pci(), register) {
            (false, _) => (register, 4),
            (true, QUEUE_NOTIFY) => (DOORBELLS + u64::from(value % 0x400) * 4, 2),
            (true, _) => in_bar(register),
        };
        let at = self.base() + at;
        match width {
            0 => {}
            1 => write(at, value as u8),
            2 => write(at, value as u16),
            _ => write(at, value),
        }
    }

    /// Takes note of its interrupts. A message says all by itself.
    pub fn acknowledge(self) {
        if !self.is_on_pci() {
            self.write(INTERRUPT_ACK, self.read(INTERRUPT_STATUS));
        }
    }

    pub fn write_address(self, register: u64, address: u64) {
        self.write(register, address as u32);
        self.write(register + 4, (address >> 32) as u32);
    }

    /// How many queues it has.
    pub fn queues(self) -> u16 {
        let there = |number: &u16| {
            self.write(QUEUE_SELECT, u32::from(*number));
            self.read(QUEUE_SIZE_MAX) != 0
        };
        (0..16).take_while(there).count() as u16
    }

    pub fn vector(self) -> u8 {
        40 + (self.number % 16) as u8
    }

    pub fn offered(self) -> u64 {
        let [low, high] = [0, 1].map(|half| {
            self.write(DEVICE_FEATURES_SELECT, half);
            u64::from(self.read(DEVICE_FEATURES))
        });
        low | high << 32
    }

    /// Makes its registers answer, on PCI.
    pub fn prepare(self) {
        if self.is_on_pci() {
            pci::prepare(self.function, self.base(), self.vector());
        }
    }

    pub fn accept(self, features: u64) {
        for half in [0, 1] {
            self.write(DRIVER_FEATURES_SELECT, half);
            self.write(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
    }

    /// Reset, features, queues, DRIVER_OK. Gives the features taken.
    pub fn start(self, wanted: u64, queues: u16, line: &mut Line) -> Result<u64, crate::report::Fault> {
        self.prepare();
        self.write(STATUS, 0);
        line.check(clock::wait(PATIENCE, || self.read(STATUS) == 0), "waited for status 0 after a reset")?;
        self.write(STATUS, 1);
        self.write(STATUS, 3);
        let taken = self.offered() & (wanted | VERSION_1);
        self.accept(taken);
        self.write(STATUS, 11);
        line.check(self.read(STATUS) & 8 != 0, "FEATURES_OK refused")?;
        for queue in 0..queues {
            self.place_queue(queue, line)?;
        }
        self.write(STATUS, 15);
        line.check(self.read(STATUS) == 15, "DRIVER_OK refused")?;
        if !self.is_on_pci() {
            apic::route(GSIS[self.number as usize % GSIS.len()].into(), self.vector());
        }
        Ok(taken)
    }

    pub fn place_queue(self, number: u16, line: &mut Line) -> Verdict {
        let queue = Queue::of(self, number);
        for at in (0..0x400).step_by(8) {
            write(queue.base + at, 0_u64);
        }
        self.write(QUEUE_SELECT, number.into());
        line.check(self.read(QUEUE_SIZE_MAX) >= QUEUE_LEN.into(), "QueueSizeMax below 8")?;
        self.write(QUEUE_SIZE, QUEUE_LEN.into());
        self.write_address(QUEUE_DESCRIPTORS, queue.base);
        self.write_address(QUEUE_AVAIL, queue.avail());
        self.write_address(QUEUE_USED, queue.used());
        if self.is_on_pci() {
            // The vector of the configuration is the last.
            write(self.base() + CONFIG_VECTOR, self.queues());
            self.write(QUEUE_SELECT, number.into());
            write(self.base() + QUEUE_VECTOR, number);
            line.check(read::<u16>(self.base() + QUEUE_VECTOR) == number, "a vector refused")?;
        }
        self.write(QUEUE_READY, 1);
        line.check(self.read(QUEUE_READY) == 1, "QueueReady refused")
    }
}

/// One queue, by address.
#[derive(Clone, Copy)]
pub struct Queue {
    pub device: Device,
    pub number: u16,
    pub base: u64,
}

impl Queue {
    pub fn of(device: Device, number: u16) -> Queue {
        Queue { device, number, base: ARENA + device.number * 0x8_0000 + u64::from(number) * 0x8000 }
    }

    pub fn avail(self) -> u64 {
        self.base + 0x100
    }

    pub fn used(self) -> u64 {
        self.base + 0x200
    }

    /// Room for buffers: 28 KiB.
    pub fn room(self) -> u64 {
        self.base + 0x1000
    }

    pub fn describe(self, number: u16, buffer: Buffer, next: Option<u16>) {
        let at = self.base + u64::from(number) * 16;
        let flags = u16::from(next.is_some()) | u16::from(buffer.device_writes) << 1;
        write(at, buffer.address);
        write(at + 8, buffer.len);
        write(at + 12, flags);
        write(at + 14, next.unwrap_or(0));
    }

    /// Makes the chain that starts at descriptor `head` available, and kicks.
    pub fn offer(self, head: u16) {
        let index: u16 = read(self.avail() + 2);
        write(self.avail() + 4 + u64::from(index % QUEUE_LEN) * 2, head);
        write(self.avail() + 2, index.wrapping_add(1));
        self.device.write(QUEUE_NOTIFY, self.number.into());
    }

    /// Sends one chain; waits until it is used and the interrupt is here. Gives the bytes written by the device.
    pub fn ask(self, buffers: &[Buffer], line: &mut Line) -> Result<u32, crate::report::Fault> {
        let used: u16 = read(self.used() + 2);
        let interrupts = apic::count(self.device.vector());
        for (number, &buffer) in buffers.iter().enumerate() {
            let next = (number + 1 < buffers.len()).then_some(number as u16 + 1);
            self.describe(number as u16, buffer, next);
        }
        self.offer(0);
        let back = clock::wait(PATIENCE, || read::<u16>(self.used() + 2) != used);
        line.check(back, "waited 2 s for the chain to come back")?;
        let arrived = clock::wait(PATIENCE, || apic::count(self.device.vector()) != interrupts);
        line.check(arrived, "waited 2 s for the interrupt")?;
        self.device.acknowledge();
        Ok(read(self.used() + 8 + u64::from(used % QUEUE_LEN) * 8))
    }
}
