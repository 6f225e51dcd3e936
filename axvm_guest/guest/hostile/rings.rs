//! Lies of one driver: in rings, descriptors and registers, on a queue that chance picks.
//!
//! Spec: virtio 1.2, 2.7 "Split Virtqueues", what a driver must not do there; 2.7.5.3 "Indirect Descriptors",
//! 2.7.10 "Available Buffer Notification Suppression".

use super::noise::{Noise, one_of};
use crate::clock;
use crate::cpu::{read, write};
use crate::virtio::{Buffer, Device, QUEUE_LEN, Queue, kind, register::*};

/// Words of noise in one storm.
const NOISE: u32 = 40;
const INDIRECT: u16 = 4;
/// VIRTIO_F_VERSION_1, in the upper half.
const VERSION_1: u32 = 1;

pub type Storm = fn(Device, &mut Noise);

pub const STORMS: [(&str, Storm); 18] = [
    ("ring-address", ring_addresses),
    ("ring-size", ring_sizes),
    ("descriptor", descriptors),
    ("over-this-program", over_this_program),
    ("loop", loops),
    ("indirect", indirect_tables),
    ("index", indices),
    ("index-jump", index_jumps),
    ("event-index", event_indices),
    ("used-over-descriptors", used_over_descriptors),
    ("used-over-avail", used_over_avail),
    ("notify", notifications),
    ("status", status),
    ("features-config", features_and_config),
    ("queue-reset", queue_resets),
    ("acknowledge", acknowledgements),
    ("reset-in-flight", reset_in_flight),
    ("requests", wild_requests),
];

/// Reset and FEATURES_OK: with no feature, with all, or with some.
pub fn begin(device: Device, noise: &mut Noise) {
    for status in [0, 1, 3] {
        device.write(STATUS, status);
    }
    let wanted = device.offered()
        & match noise.below(4) {
            0 => 0,
            1 => noise.next(),
            _ => u64::MAX,
        };
    for (half, value) in [(0, wanted as u32), (1, (wanted >> 32) as u32 | VERSION_1)] {
        device.write(DRIVER_FEATURES_SELECT, half);
        device.write(DRIVER_FEATURES, value);
    }
    device.write(STATUS, 11);
}

/// A queue set up, with whatever lies in the rings.
pub fn place(queue: Queue, size: u32, [descriptors, avail, used]: [u64; 3]) {
    let device = queue.device;
    device.write(QUEUE_SELECT, queue.number.into());
    device.write(QUEUE_SIZE, size);
    device.write_address(QUEUE_DESCRIPTORS, descriptors);
    device.write_address(QUEUE_AVAIL, avail);
    device.write_address(QUEUE_USED, used);
    device.write(QUEUE_READY, 1);
}

fn pick(device: Device, noise: &mut Noise) -> Queue {
    Queue::of(device, noise.below(device.queues().max(1).into()) as u16)
}

pub fn honest(queue: Queue) -> [u64; 3] {
    [queue.base, queue.avail(), queue.used()]
}

/// A started device with empty rings, and one of its queues.
pub fn live(device: Device, noise: &mut Noise) -> Queue {
    begin(device, noise);
    for number in 0..device.queues() {
        let queue = Queue::of(device, number);
        for at in (0..0x400).step_by(8) {
            write(queue.base + at, 0_u64);
        }
        place(queue, QUEUE_LEN.into(), honest(queue));
    }
    device.write(STATUS, 15);
    pick(device, noise)
}

fn start_and_kick(queue: Queue) {
    queue.device.write(STATUS, 15);
    kick(queue);
}

fn kick(queue: Queue) {
    queue.device.write(QUEUE_NOTIFY, queue.number.into());
    clock::sleep(200);
}

fn ring_addresses(device: Device, noise: &mut Noise) {
    begin(device, noise);
    let queue = pick(device, noise);
    let mut rings = honest(queue);
    rings[noise.below(3) as usize] = noise.bad_address();
    place(queue, QUEUE_LEN.into(), rings);
    start_and_kick(queue);
}

fn ring_sizes(device: Device, noise: &mut Noise) {
    begin(device, noise);
    let queue = pick(device, noise);
    let size = one_of([0, 3, 7, 0x8000, 0xffff, 0x1_0000, u32::MAX, noise.next() as u32 | 1], noise);
    place(queue, size, honest(queue));
    start_and_kick(queue);
}

fn descriptors(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    for number in 0..QUEUE_LEN {
        let buffer = Buffer { address: noise.bad_address(), len: noise.next() as u32, device_writes: number % 2 == 0 };
        queue.describe(number, buffer, Some(noise.below(20) as u16));
        write(queue.base + u64::from(number) * 16 + 12, noise.next() as u16);
    }
    for _ in 0..QUEUE_LEN {
        queue.offer(noise.below(12) as u16);
    }
    kick(queue);
}

/// The device may read this program; it may write to the note that its file begins with, which is no longer needed.
/// A balloon would be right to take such pages away.
fn over_this_program(device: Device, noise: &mut Noise) {
    if device.kind == kind::BALLOON {
        return;
    }
    let queue = live(device, noise);
    let program = Buffer { address: 1 << 20, len: 4096, device_writes: false };
    queue.describe(0, program, Some(1));
    queue.describe(1, Buffer { len: 16, device_writes: true, ..program }, None);
    queue.offer(0);
    kick(queue);
}

fn loops(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    let len = 1 + noise.below(4) as u16;
    for number in 0..len {
        let buffer = Buffer { address: queue.room(), len: 16, device_writes: noise.below(2) == 0 };
        queue.describe(number, buffer, Some((number + 1) % len));
    }
    queue.offer(0);
    kick(queue);
}

/// Tables in tables, tables of themselves, of odd length, endless, empty, nowhere.
fn indirect_tables(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    let table = queue.room();
    for number in 0..8 {
        let (at, inner) = (table + number * 16, table + noise.below(4) * 32);
        write(at, one_of([inner, noise.bad_address(), queue.base], noise));
        write(at + 8, one_of([16, 32, 48, 128, 4096], noise));
        write(at + 12, noise.next() as u16 & 7);
        write(at + 14, noise.below(10) as u16);
    }
    for number in 0..QUEUE_LEN {
        let address = one_of([table, table, queue.base, noise.bad_address()], noise);
        let len = one_of([0, 1, 16, 24, 128, 1 << 20, 0xffff_fff0, u32::MAX], noise);
        queue.describe(number, Buffer { address, len, device_writes: noise.below(4) == 0 }, None);
        write(queue.base + u64::from(number) * 16 + 12, INDIRECT | noise.next() as u16 & 3);
        queue.offer(number);
    }
    kick(queue);
}

fn indices(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    for _ in 0..NOISE {
        write(queue.avail() + 2, noise.next() as u16);
        write(queue.avail() + 4, noise.next() as u16);
        device.write(QUEUE_NOTIFY, queue.number.into());
    }
    kick(queue);
}

/// One step back is 65535 forward; and a step beyond the ring.
fn index_jumps(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    queue.describe(0, Buffer { address: queue.room(), len: 64, device_writes: true }, None);
    queue.offer(0);
    let index: u16 = read(queue.avail() + 2);
    let jump = one_of([u16::MAX, QUEUE_LEN + 1, 0x8000, 2 * QUEUE_LEN], noise);
    write(queue.avail() + 2, index.wrapping_add(jump));
    kick(queue);
}

/// What the driver says about when to interrupt it is noise.
fn event_indices(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    for number in 0..QUEUE_LEN {
        queue.describe(number, Buffer { address: queue.room(), len: 4, device_writes: number % 2 == 0 }, None);
        write(queue.avail(), noise.next() as u16);
        write(queue.avail() + 4 + u64::from(QUEUE_LEN) * 2, noise.next() as u16);
        // The device's own fields are RAM, too.
        write(queue.used() + noise.below(QUEUE_LEN.into()) * 8, noise.next() as u16);
        queue.offer(number);
    }
    kick(queue);
}

fn used_over_descriptors(device: Device, noise: &mut Noise) {
    begin(device, noise);
    let queue = pick(device, noise);
    let [descriptors, avail, _] = honest(queue);
    place(queue, QUEUE_LEN.into(), [descriptors, avail, descriptors + noise.below(4) * 4]);
    offer_all(queue);
}

fn used_over_avail(device: Device, noise: &mut Noise) {
    begin(device, noise);
    let queue = pick(device, noise);
    let [descriptors, avail, _] = honest(queue);
    place(queue, QUEUE_LEN.into(), [descriptors, avail, avail + noise.below(4) * 4]);
    offer_all(queue);
}

fn offer_all(queue: Queue) {
    queue.device.write(STATUS, 15);
    for number in 0..QUEUE_LEN {
        queue.describe(number, Buffer { address: queue.room(), len: 64, device_writes: true }, None);
        queue.offer(number);
    }
    kick(queue);
}

/// Doorbells of queues that are and that are not.
fn notifications(device: Device, noise: &mut Noise) {
    live(device, noise);
    for _ in 0..NOISE {
        device.write(QUEUE_NOTIFY, one_of([0, 1, 4, 5, 16, 0x1_0000, noise.next() as u32], noise));
    }
}

fn status(device: Device, noise: &mut Noise) {
    for _ in 0..NOISE {
        device.write(STATUS, noise.next() as u32 & 0xff);
    }
    device.write(STATUS, 0);
    start_and_kick(Queue::of(device, 0)); // DRIVER_OK with nothing before it
}

fn features_and_config(device: Device, noise: &mut Noise) {
    for _ in 0..NOISE {
        let select = noise.next() as u32;
        device.write(DRIVER_FEATURES_SELECT, select % 4);
        device.write(DRIVER_FEATURES, noise.next() as u32);
        device.write(CONFIG + noise.below(0x100), noise.next() as u32);
        device.read(CONFIG + noise.below(0x100));
    }
    start_and_kick(Queue::of(device, 0));
}

/// Queues go and come, and change their addresses, while the device works.
fn queue_resets(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    for _ in 0..8 {
        queue.describe(0, Buffer { address: queue.room(), len: 512, device_writes: true }, None);
        queue.offer(0);
        device.write(QUEUE_SELECT, one_of([0, 1, u32::from(queue.number), 77], noise));
        match noise.below(4) {
            0 => device.write(QUEUE_RESET, 1),
            1 => device.write(QUEUE_READY, 0),
            2 => device.write_address(QUEUE_USED, noise.bad_address()),
            _ => place(queue, QUEUE_LEN.into(), honest(queue)),
        }
    }
    kick(queue);
}

fn acknowledgements(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    queue.describe(0, Buffer { address: queue.room(), len: 16, device_writes: true }, None);
    for _ in 0..NOISE {
        queue.offer(0);
        device.write(INTERRUPT_ACK, noise.next() as u32);
        device.write(INTERRUPT_STATUS, noise.next() as u32);
    }
}

fn reset_in_flight(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    let buffer = Buffer { address: queue.room(), len: 4096, device_writes: true };
    queue.describe(0, Buffer { len: 16, device_writes: false, ..buffer }, Some(1));
    queue.describe(1, Buffer { address: queue.room() + 0x1000, ..buffer }, Some(2));
    queue.describe(2, Buffer { address: queue.room() + 16, len: 1, ..buffer }, None);
    queue.offer(0);
    if noise.below(2) == 0 {
        device.write(QUEUE_SELECT, queue.number.into());
        device.write(QUEUE_READY, 0);
    }
    device.write(STATUS, 0);
}

/// Requests in order, with nonsense in them: sectors, commands, segments of a discard, page numbers.
fn wild_requests(device: Device, noise: &mut Noise) {
    let queue = live(device, noise);
    if device.kind == kind::VSOCK {
        return wild_packets(device, noise);
    }
    for _ in 0..NOISE / 4 {
        let command = one_of([0, 1, 4, 8, 11, 13, 99, noise.next() | 0x8000_0000], noise);
        for at in (0..256).step_by(8) {
            write(queue.room() + at, noise.next() | 0x8000_0000_8000_0000);
        }
        write(queue.room(), command);
        write(queue.room() + 8, one_of([0, 1, 2047, 2048, noise.next()], noise));
        let data = Buffer { address: queue.room() + 32, len: noise.below(300) as u32, device_writes: command != 1 };
        queue.describe(0, Buffer { address: queue.room(), len: 16, device_writes: false }, Some(1));
        queue.describe(1, data, Some(2));
        queue.describe(2, Buffer { address: queue.room() + 24, len: 1, device_writes: true }, None);
        queue.offer(0);
        clock::sleep(100);
    }
}

/// Packets with the right addresses, few ports, and else anything; answers have few buffers, or none.
fn wild_packets(device: Device, noise: &mut Noise) {
    let [incoming, outgoing] = [0, 1].map(|number| Queue::of(device, number));
    let cid = u64::from(device.read(CONFIG)) | u64::from(device.read(CONFIG + 4)) << 32;
    for number in 0..noise.below(3) as u16 {
        let address = incoming.room() + u64::from(number) * 0x1000;
        incoming.describe(number, Buffer { address, len: 44 + noise.below(100) as u32, device_writes: true }, None);
        incoming.offer(number);
    }
    for round in 0..NOISE {
        let at = outgoing.room();
        write(at, one_of([cid, cid, cid, 2, noise.next()], noise));
        write(at + 8, one_of([2, 2, 2, cid, noise.next()], noise));
        write(at + 16, noise.below(3) as u32);
        write(at + 20, noise.below(3) as u32);
        write(at + 24, one_of([0, 0, 1, 100, 0x1_0000, noise.next() as u32], noise));
        write(at + 28, one_of([1, 1, 1, 2, noise.next() as u16], noise));
        write(at + 30, noise.below(9) as u16);
        write(at + 32, noise.below(5) as u32);
        write(at + 36, one_of([0, 1, 0x1_0000, u32::MAX, noise.next() as u32], noise));
        write(at + 40, noise.next() as u32);
        let len = 40 + noise.below(4096) as u32;
        outgoing.describe(round as u16 % QUEUE_LEN, Buffer { address: at, len, device_writes: false }, None);
        outgoing.offer(round as u16 % QUEUE_LEN);
        clock::sleep(noise.below(100));
    }
}
