//! The block device, whole: transport, ring, worker and a real file, against chains of any content.
//!
//! ```text
//!   input --> chains (headers, buffers anywhere in RAM, any order of sizes)
//!   held:     no panic, no hang; each chain comes back once, with a status, however often the device is paused;
//!             the image keeps its size; memory changes only where a writable buffer or the used ring is
//! ```
//!
//! Run: `cargo xtask fuzz block_request`.
#![no_main]

use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tempfile::NamedTempFile;

const RING: Gpa = Gpa(0x1000);
const RING_SIZE: u16 = 64;
const TABLE: Gpa = Gpa(0x4000);
/// Requests are made of this part of RAM.
const DATA: u64 = 0x1_0000;
const DATA_LEN: usize = 64 << 10;
const DISK_LEN: u64 = 256 << 10;

const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const NEEDS_RESET: u32 = 0x40;
const LIMIT: Duration = Duration::from_secs(10);

/// The disk that all runs share: its file, which stays as long as it does.
struct Disk {
    file: NamedTempFile,
    image: Arc<DiskImage>,
}

static DISK: LazyLock<Disk> = LazyLock::new(|| {
    // In memory if the host has such a place: this is about requests, not about a disk's speed.
    let file = NamedTempFile::new_in("/dev/shm").or_else(|_| NamedTempFile::new()).expect("a temporary file");
    file.as_file().set_len(DISK_LEN).expect("room for a small disk");
    let image = DiskImage::open(&DiskConfig::new(file.path())).expect("a good image");
    Disk { file, image }
});
static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(2 << 20)).expect("2 MiB"));

#[derive(Arbitrary, Debug)]
struct Piece {
    at: u16,
    len: u16,
}

#[derive(Arbitrary, Debug)]
struct Request {
    /// Type, sector; at `header`.
    kind: u8,
    sector: u16,
    header: u16,
    readable: Vec<Piece>,
    writable: Vec<Piece>,
    indirect: bool,
    /// Whether the header is where the first readable piece is, and a status byte follows the last writable one.
    proper: bool,
}

#[derive(Arbitrary, Debug)]
struct Input {
    features: u32,
    memory: Vec<u8>,
    requests: Vec<Request>,
    /// Pauses while the requests are in work.
    pauses: u8,
}

impl Request {
    fn buffers(&self) -> Vec<Buffer> {
        let place = |piece: &Piece| {
            let len = usize::from(piece.len).min(DATA_LEN - usize::from(piece.at));
            (Gpa(DATA + u64::from(piece.at)), len as u32)
        };
        let mut buffers = Vec::new();
        if self.proper {
            let header = usize::from(self.header).min(DATA_LEN - 16) as u64;
            buffers.push(Buffer::readable(Gpa(DATA + header), 16));
        }
        let half = usize::from(RING_SIZE) / 8;
        buffers.extend(self.readable.iter().take(half).map(place).map(|(gpa, len)| Buffer::readable(gpa, len)));
        buffers.extend(self.writable.iter().take(half).map(place).map(|(gpa, len)| Buffer::writable(gpa, len)));
        if self.proper {
            buffers.push(Buffer::writable(Gpa(DATA + u64::from(self.header)), 1));
        }
        buffers
    }

    fn write_header(&self) {
        let header = usize::from(self.header).min(DATA_LEN - 16) as u64;
        let mut bytes = [0; 16];
        bytes[0] = self.kind;
        bytes[8..10].copy_from_slice(&self.sector.to_le_bytes());
        RAM.write(Gpa(DATA + header), &bytes).expect("in RAM");
    }
}

fn set(device: &MmioTransport, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

fn get(device: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn start(features: u32) -> (MmioTransport, FakeDriver) {
    let event_idx = features & 1 << 29 != 0;
    let driver = FakeDriver::new(&RAM, RING, RING_SIZE, event_idx);
    let block = Box::new(Block::new(Arc::clone(&DISK.image)));
    let irq = Irq::new().expect("an eventfd");
    let device = MmioTransport::new("fuzz", block, Arc::clone(&RAM), irq, Events::default()).expect("eventfds");
    let offered = get(&device, 0x010);
    let layout = driver.layout();
    let script = [
        (STATUS, 3),
        (0x024, 1),
        (0x020, 1),
        (0x024, 0),
        // Indirect tables always, as the chains use them.
        (0x020, offered & (features | 1 << 28)),
        (STATUS, 11),
        (0x038, RING_SIZE.into()),
        (0x080, layout.descriptors.0 as u32),
        (0x090, layout.avail.0 as u32),
        (0x0a0, layout.used.0 as u32),
        (0x044, 1),
        (STATUS, 15),
    ];
    script.iter().for_each(|&(offset, value)| set(&device, offset, value));
    assert_eq!(get(&device, STATUS), 15);
    (device, driver)
}

/// Offers as many of the requests as the ring holds, and waits for each to come back.
fn serve(device: &MmioTransport, driver: &mut FakeDriver, requests: &[Request], pauses: u8) {
    let (mut offered, mut writable) = (0, Vec::new());
    for (number, request) in requests.iter().take(16).enumerate() {
        let buffers = request.buffers();
        if buffers.is_empty() || buffers.len() > driver.free_count() {
            continue;
        }
        let total: u64 = buffers.iter().filter(|buffer| buffer.writable).map(|buffer| u64::from(buffer.len)).sum();
        let head = match request.indirect {
            true => driver.add_indirect(Gpa(TABLE.0 + 0x400 * number as u64), &buffers),
            false => driver.add(&buffers),
        };
        writable.push((head, total));
        offered += 1;
    }
    driver.kick();
    set(device, QUEUE_NOTIFY, 0);
    for _ in 0..pauses % 4 {
        device.pause(Instant::now() + LIMIT).expect("it stops");
        let state = device.state().expect("a paused device");
        let indices = state.queues[0].indices;
        assert!(indices.next_avail == indices.next_used || state.status & NEEDS_RESET != 0, "a request in flight");
        device.resume(Instant::now() + LIMIT).expect("it goes on");
    }
    let (begin, mut back) = (Instant::now(), 0);
    while back < offered && get(device, STATUS) & NEEDS_RESET == 0 {
        let Some((head, written)) = driver.take_used() else {
            assert!(begin.elapsed() < LIMIT, "the device hangs: {back} of {offered} requests came back");
            std::thread::yield_now();
            continue;
        };
        let place = writable.iter().position(|(known, _)| *known == head).expect("a chain that the device has");
        let (_, total) = writable.swap_remove(place);
        assert!(u64::from(written) <= total, "{written} bytes written to {total}");
        back += 1;
    }
}

/// Where a byte of the data area may change.
fn may_change(requests: &[Request]) -> Vec<bool> {
    let mut mask = vec![false; DATA_LEN];
    for buffer in requests.iter().flat_map(Request::buffers).filter(|buffer| buffer.writable) {
        let from = (buffer.gpa.0 - DATA) as usize;
        mask[from..from + buffer.len as usize].fill(true);
    }
    mask
}

fn data() -> Vec<u8> {
    let mut bytes = vec![0; DATA_LEN];
    RAM.read(Gpa(DATA), &mut bytes).expect("in RAM");
    bytes
}

fuzz_target!(|input: Input| {
    let mut memory = input.memory;
    memory.resize(DATA_LEN, 0);
    RAM.write(Gpa(DATA), &memory).expect("in RAM");
    input.requests.iter().for_each(Request::write_header);
    let before = data();
    let (device, mut driver) = start(input.features);
    serve(&device, &mut driver, &input.requests, input.pauses);
    device.stop(Instant::now() + LIMIT).expect("it stops");
    assert_eq!(get(&device, STATUS), 0);
    let mask = may_change(&input.requests);
    let same = before.iter().zip(data()).zip(mask).all(|((&old, new), may)| may || old == new);
    assert!(same, "the device wrote outside the writable buffers");
    assert_eq!(DISK.file.as_file().metadata().expect("a file").len(), DISK_LEN);
});
