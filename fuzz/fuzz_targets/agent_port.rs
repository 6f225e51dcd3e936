//! The agent's port, whole: transport, four rings, worker and clients, against any control messages, chains and clients.
//!
//! ```text
//!   input --> messages of the driver, chains on all queues, clients that come, talk and go, pauses, descriptors
//!   held:     no panic, no hang, nothing in flight in a pause; what a client gets was written after its "OK 0"
//! ```
//!
//! Run: `cargo +nightly fuzz run agent_port`.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::agent_port::{AgentPort, AgentPortHost};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::testing::{Buffer, FakeDriver, RawDescriptor};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const RING_SIZE: u16 = 16;
const RINGS: [Gpa; 4] = [Gpa(0x1000), Gpa(0x3000), Gpa(0x5000), Gpa(0x7000)];
const DATA: u64 = 0x10_0000;
const DATA_LEN: u64 = 1 << 20;

const QUEUE_NOTIFY: u64 = 0x050;
const STATUS: u64 = 0x070;
const NEEDS_RESET: u32 = 0x40;
const LIMIT: Duration = Duration::from_secs(10);
/// Most clients at a time.
const CLIENTS: usize = 4;

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| {
    let ram = GuestRam::allocate(&RamConfig::new(4 << 20)).expect("4 MiB");
    // What the guest writes to a client never begins as an answer of the device does.
    ram.write(Gpa(DATA), &vec![0x5a; DATA_LEN as usize]).expect("in RAM");
    ram
});

#[derive(Arbitrary, Debug)]
enum Step {
    /// A control message, most often one that means something.
    Message { port: bool, event: u8, value: u8 },
    /// Room for messages, or for input.
    Room { control: bool, len: u16 },
    /// Output.
    Write(u16),
    Connect { good: bool, half: bool },
    Say { client: u8, len: u8 },
    Leave(u8),
    Pause,
    Reset,
    Raw { queue: u8, index: u8, addr: u32, len: u32, flags: u16, next: u16, head: u16 },
}

struct Run {
    device: MmioTransport,
    drivers: [FakeDriver; 4],
    path: PathBuf,
    clients: Vec<(UnixStream, Vec<u8>)>,
    at: u64,
}

impl Run {
    fn new(number: u32) -> Run {
        let path = std::env::temp_dir().join(format!("axvm-fuzz-{}-{number}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let host = AgentPortHost::new(UnixListener::bind(&path).expect("a socket")).expect("a listener");
        let irq = Irq::new().expect("an eventfd");
        let port = Box::new(AgentPort::new(&host));
        let device = MmioTransport::new("fuzz", port, Arc::clone(&RAM), irq, Events::default()).expect("eventfds");
        let drivers = RINGS.map(|ring| FakeDriver::new(&RAM, ring, RING_SIZE, false));
        let mut run = Run { device, drivers, path, clients: Vec::new(), at: 0 };
        run.start();
        run
    }

    /// Reset, and everything up to DRIVER_OK.
    fn start(&mut self) {
        self.set(STATUS, 0);
        self.drivers = RINGS.map(|ring| FakeDriver::new(&RAM, ring, RING_SIZE, false));
        let begin = [(STATUS, 3), (0x024, 0), (0x020, 2), (0x024, 1), (0x020, 1), (STATUS, 11)];
        begin.into_iter().for_each(|(register, value)| self.set(register, value));
        for (index, driver) in self.drivers.iter().enumerate() {
            let layout = driver.layout();
            let areas = [layout.descriptors, layout.avail, layout.used].map(|Gpa(address)| address as u32);
            let script = [(0x030, index as u32), (0x038, RING_SIZE.into())];
            let script = script.into_iter().chain([0x080, 0x090, 0x0a0].into_iter().zip(areas)).chain([(0x044, 1)]);
            script.for_each(|(register, value)| self.set(register, value));
        }
        self.set(STATUS, 15);
        assert_eq!(self.get(STATUS), 15);
    }

    fn set(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn offer(&mut self, queue: usize, buffer: Buffer) {
        let driver = &mut self.drivers[queue];
        while driver.take_used().is_some() {}
        if driver.free_count() == 0 {
            return;
        }
        driver.add(&[buffer]);
        if driver.kick() {
            self.set(QUEUE_NOTIFY, queue as u32);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Message { port, event, value } => {
                self.at = (self.at + 8) % 0x1000;
                let message = [u8::from(*port), 0, 0, 0, event % 8, 0, value % 3, 0];
                // Beside what the guest writes to clients, and what they say.
                let place = Gpa(0x9000 + self.at);
                RAM.write(place, &message).expect("in RAM");
                self.offer(3, Buffer::readable(place, 8));
            }
            Step::Room { control, len } => {
                let place = Gpa(0x20_0000);
                self.offer(if *control { 2 } else { 0 }, Buffer::writable(place, u32::from(*len) % 5000));
            }
            Step::Write(len) => self.offer(1, Buffer::readable(Gpa(DATA), u32::from(*len))),
            Step::Connect { good, half } => {
                if self.clients.len() < CLIENTS
                    && let Ok(mut client) = UnixStream::connect(&self.path)
                {
                    client.set_nonblocking(true).expect("a socket");
                    let line = if *good { &b"CONNECT 348\n"[..] } else { b"GET /\n" };
                    let _ = client.write(if *half { &line[..3] } else { line });
                    self.clients.push((client, Vec::new()));
                }
            }
            Step::Say { client, len } => {
                let count = self.clients.len().max(1);
                if let Some((client, _)) = self.clients.get_mut(usize::from(*client) % count) {
                    let _ = client.write(&vec![b'x'; (*len).into()]);
                }
            }
            Step::Leave(client) => {
                if !self.clients.is_empty() {
                    self.clients.remove(usize::from(*client) % self.clients.len());
                }
            }
            Step::Pause => {
                self.device.pause(Instant::now() + LIMIT).expect("it stops");
                let state = self.device.state().expect("it is paused");
                let idle = state.queues.iter().all(|queue| queue.indices.next_avail == queue.indices.next_used);
                assert!(idle || state.status & NEEDS_RESET != 0, "a chain is in flight: {state:?}");
                self.device.resume(Instant::now() + LIMIT).expect("it goes on");
            }
            Step::Reset => self.start(),
            Step::Raw { queue, index, addr, len, flags, next, head } => {
                // Not where the guest's words to clients lie.
                let addr = 0x20_0000 + u64::from(*addr) % (8 << 20);
                let raw = RawDescriptor { addr, len: *len, flags: *flags & !1, next: *next };
                let queue = [0, 2, 3][usize::from(queue % 3)];
                self.drivers[queue].write_descriptor(u16::from(*index) % RING_SIZE, raw);
                self.drivers[queue].offer(head % (RING_SIZE + 1));
                self.drivers[queue].kick();
                self.set(QUEUE_NOTIFY, queue as u32);
            }
        }
        self.collect();
    }

    /// Whatever a client gets begins with the answer, and goes on with what the guest wrote.
    fn collect(&mut self) {
        let mut piece = [0; 4096];
        for (client, got) in &mut self.clients {
            while let Ok(count @ 1..) = client.read(&mut piece) {
                got.extend_from_slice(&piece[..count]);
                let known = got.len().min(5);
                assert_eq!(got[..known], b"OK 0\n"[..known], "an answer first");
                assert!(got.iter().skip(5).all(|byte| *byte == 0x5a), "only what the guest wrote");
                got.truncate(5);
            }
        }
    }
}

fuzz_target!(|input: (u32, Vec<Step>)| {
    let (number, steps) = input;
    let mut run = Run::new(number % 8);
    steps.iter().take(100).for_each(|step| run.step(step));
    run.device.stop(Instant::now() + LIMIT).expect("it stops");
    assert_eq!(run.get(STATUS), 0);
    run.collect();
    let _ = std::fs::remove_file(&run.path);
});
