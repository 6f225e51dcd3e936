//! A driver that lies: to every virtio device, then to the chips. After each storm the device must still work.
//!
//! ```text
//!   storm: reset, half a set-up, one lie --> kick --> noise        (as often as ROUNDS says)
//!   proof: reset, the honest driver of virtio.rs, verified data
//! ```
//!
//! Values that would end the machine (S5, the reset registers, pvpanic) are never written. The noise comes
//! from a xorshift generator: the same seed gives the same attack.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues", what a driver must not do there.

use crate::cpu::{self, input, output, read, write};
use crate::report::{COM1, Line, Verdict, prove};
use crate::virtio::{self, Buffer, Device, QUEUE_LEN, Queue, kind, register::*};

/// How often each storm of a kind blows.
const ROUNDS: u32 = 4;
/// Words of noise in one storm.
const NOISE: u32 = 40;
const RAM: u64 = 9 << 20;

/// xorshift64 (Marsaglia 2003).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 16) % end
    }

    /// An address that is wrong in one of the ways a guest can think of.
    fn bad_address(&mut self) -> u64 {
        match self.below(8) {
            0 => 16 << 20,
            1 => 0xd000_0000 + self.below(0x2000),
            2 => 0xfee0_0000,
            3 => u64::MAX - self.below(0x100),
            4 => 1 << 63,
            5 => 0xc000_0000 - self.below(64),
            6 => RAM + self.below(16),
            _ => self.next(),
        }
    }
}

type Storm = fn(Device, &mut Noise);

const STORMS: [(&str, Storm); 10] = [
    ("ring-address", ring_addresses),
    ("ring-size", ring_sizes),
    ("descriptor", descriptors),
    ("loop", loops),
    ("index", indices),
    ("used-over-descriptors", used_over_descriptors),
    ("notify", notifications),
    ("status", status),
    ("features-config", features_and_config),
    ("reset-in-flight", reset_in_flight),
];

type ChipStorm = fn(&mut Noise);

const CHIP_STORMS: [(&str, ChipStorm); 3] = [("mmio-noise", mmio), ("port-noise", ports), ("uart-flood", uart_flood)];

/// Every storm on every device, then the chips; every device is proved afterwards.
pub fn attack(seed: u64) {
    let mut noise = Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for device in virtio::devices() {
        for (name, storm) in STORMS {
            prove(name, |line| {
                line.text(" device type ").decimal(device.kind.into());
                for _ in 0..ROUNDS {
                    storm(device, &mut noise);
                }
                works(device, line)
            });
        }
        prove("requests", |line| {
            wild_requests(device, &mut noise);
            works(device, line)
        });
    }
    for (name, storm) in CHIP_STORMS {
        prove(name, |line| {
            storm(&mut noise);
            virtio::devices().try_for_each(|device| works(device, line))
        });
    }
}

/// The honest driver's proof.
fn works(device: Device, line: &mut Line) -> Verdict {
    match device.kind {
        kind::BLOCK => virtio::block(device, line),
        kind::RNG => virtio::rng(device, line),
        kind::BALLOON => virtio::balloon(device, line),
        kind::CONSOLE => virtio::console(device, line),
        _ => Ok(()),
    }
}

/// Reset and FEATURES_OK, as an honest driver does it.
fn begin(device: Device) {
    for status in [0, 1, 3] {
        device.write(STATUS, status);
    }
    device.write(DRIVER_FEATURES_SELECT, 1);
    device.write(DRIVER_FEATURES, 1);
    device.write(STATUS, 11);
}

/// A set-up that works, with whatever lies in the rings.
fn place(device: Device, size: u32, [descriptors, avail, used]: [u64; 3]) {
    device.write(QUEUE_SELECT, 0);
    device.write(QUEUE_SIZE, size);
    device.write_address(QUEUE_DESCRIPTORS, descriptors);
    device.write_address(QUEUE_AVAIL, avail);
    device.write_address(QUEUE_USED, used);
    device.write(QUEUE_READY, 1);
    device.write(STATUS, 15);
}

fn honest(queue: Queue) -> [u64; 3] {
    [queue.base, queue.avail(), queue.used()]
}

/// A started device with empty rings.
fn live(device: Device) -> Queue {
    let queue = Queue::of(device, 0);
    begin(device);
    for at in (0..0x400).step_by(8) {
        write(queue.base + at, 0_u64);
    }
    place(device, QUEUE_LEN.into(), honest(queue));
    queue
}

fn kick(device: Device) {
    device.write(QUEUE_NOTIFY, 0);
    cpu::sleep(200);
}

fn ring_addresses(device: Device, noise: &mut Noise) {
    begin(device);
    let mut rings = honest(Queue::of(device, 0));
    rings[noise.below(3) as usize] = noise.bad_address();
    place(device, QUEUE_LEN.into(), rings);
    kick(device);
}

fn ring_sizes(device: Device, noise: &mut Noise) {
    begin(device);
    let size = [0, 3, 7, 0x8000, 0xffff, 0x1_0000, u32::MAX, noise.next() as u32][noise.below(8) as usize];
    place(device, size, honest(Queue::of(device, 0)));
    kick(device);
}

fn descriptors(device: Device, noise: &mut Noise) {
    let queue = live(device);
    for number in 0..QUEUE_LEN {
        let buffer = Buffer { address: noise.bad_address(), len: noise.next() as u32, device_writes: number % 2 == 0 };
        queue.describe(number, buffer, Some(noise.below(20) as u16));
        write(queue.base + u64::from(number) * 16 + 12, noise.next() as u16);
    }
    for _ in 0..QUEUE_LEN {
        queue.offer(noise.below(12) as u16);
    }
    kick(device);
}

fn loops(device: Device, noise: &mut Noise) {
    let queue = live(device);
    let len = 1 + noise.below(4) as u16;
    for number in 0..len {
        let buffer = Buffer { address: queue.room(), len: 16, device_writes: noise.below(2) == 0 };
        queue.describe(number, buffer, Some((number + 1) % len));
    }
    queue.offer(0);
    kick(device);
}

fn indices(device: Device, noise: &mut Noise) {
    let queue = live(device);
    for _ in 0..NOISE {
        write(queue.avail() + 2, noise.next() as u16);
        write(queue.avail() + 4, noise.next() as u16);
        device.write(QUEUE_NOTIFY, 0);
    }
    kick(device);
}

fn used_over_descriptors(device: Device, noise: &mut Noise) {
    begin(device);
    let queue = Queue::of(device, 0);
    let [descriptors, avail, _] = honest(queue);
    place(device, QUEUE_LEN.into(), [descriptors, avail, descriptors + noise.below(4) * 4]);
    let buffer = Buffer { address: queue.room(), len: 64, device_writes: true };
    for number in 0..QUEUE_LEN {
        queue.describe(number, buffer, None);
        queue.offer(number);
    }
    kick(device);
}

fn notifications(device: Device, noise: &mut Noise) {
    live(device);
    for _ in 0..NOISE {
        device.write(QUEUE_NOTIFY, if noise.below(2) == 0 { 0 } else { noise.next() as u32 });
    }
}

fn status(device: Device, noise: &mut Noise) {
    for _ in 0..NOISE {
        device.write(STATUS, noise.next() as u32 & 0xff);
    }
    device.write(STATUS, 0);
    device.write(STATUS, 15); // DRIVER_OK with nothing before it
    kick(device);
}

fn features_and_config(device: Device, noise: &mut Noise) {
    for _ in 0..NOISE {
        let select = noise.next() as u32;
        device.write(DRIVER_FEATURES_SELECT, select % 4);
        device.write(DRIVER_FEATURES, noise.next() as u32);
        device.write(CONFIG + noise.below(0x100), noise.next() as u32);
        device.read(CONFIG + noise.below(0x100));
    }
    device.write(STATUS, 15);
    kick(device);
}

fn reset_in_flight(device: Device, noise: &mut Noise) {
    let queue = live(device);
    let buffer = Buffer { address: queue.room(), len: 4096, device_writes: true };
    queue.describe(0, Buffer { len: 16, device_writes: false, ..buffer }, Some(1));
    queue.describe(1, Buffer { address: queue.room() + 0x1000, ..buffer }, Some(2));
    queue.describe(2, Buffer { address: queue.room() + 16, len: 1, ..buffer }, None);
    queue.offer(0);
    if noise.below(2) == 0 {
        device.write(QUEUE_SELECT, 0);
        device.write(QUEUE_READY, 0);
    }
    device.write(STATUS, 0);
}

/// Requests in order, with nonsense in them: sectors, commands, segments of a discard, page numbers.
fn wild_requests(device: Device, noise: &mut Noise) {
    let queue = live(device);
    for _ in 0..NOISE {
        let command = [0, 1, 4, 8, 11, 13, 99, noise.next()][noise.below(8) as usize];
        for at in (0..256).step_by(8) {
            write(queue.room() + at, noise.next());
        }
        write(queue.room(), command);
        let data = Buffer { address: queue.room() + 32, len: noise.below(300) as u32, device_writes: command != 1 };
        queue.describe(0, Buffer { address: queue.room(), len: 16, device_writes: false }, Some(1));
        queue.describe(1, data, Some(2));
        queue.describe(2, Buffer { address: queue.room() + 24, len: 1, device_writes: true }, None);
        queue.offer(0);
        cpu::sleep(100);
    }
}

/// Reads and writes of all sizes over the windows of all devices and behind the last.
fn mmio(noise: &mut Noise) {
    for _ in 0..NOISE * 8 {
        let address = 0xd000_0000 + noise.below(0x4000);
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
}

/// Ports of i8042, RTC, PM1a event and PCI: any size, no value that resets or powers off.
fn ports(noise: &mut Noise) {
    const BASES: [u16; 8] = [0x60, 0x64, 0x70, 0x71, 0x600, 0x602, 0xcf8, 0xcfc];
    for _ in 0..NOISE * 4 {
        let port = BASES[noise.below(8) as usize];
        match noise.below(6) {
            0 => drop(input::<u8>(port)),
            1 => drop(input::<u16>(port)),
            2 => drop(input::<u32>(port)),
            3 if port != 0x64 => output(port, noise.next() as u8),
            // A wide write at 0x602 would spill into PM1a control, one at 0xcf8 is no write to 0xcf9.
            4 if port == 0x600 || port == 0x70 => output(port, noise.next() as u16),
            5 if port >= 0xcf8 => output(port, noise.next() as u32),
            _ => output(0x64, 0x20 | noise.below(16) as u8),
        }
    }
}

/// Every register of COM1 but the data; then set to rights.
fn uart_flood(noise: &mut Noise) {
    for _ in 0..NOISE * 4 {
        let register = 1 + noise.below(7) as u16;
        output(COM1 + register, noise.next() as u8);
        let _: u8 = input(COM1 + noise.below(8) as u16);
    }
    for (register, value) in [(3, 3_u8), (1, 0), (2, 7), (4, 8)] {
        output(COM1 + register, value);
    }
}
