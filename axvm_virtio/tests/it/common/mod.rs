//! What the tests of this directory share: a machine of one virtio device, and a disk in it.
//!
//! ```text
//!   test --set/get--> MmioTransport --> device --> worker
//!        --FakeDriver--> rings in RAM <-----------'
//!        <-- Irq (eventfd), Tape (events)
//! ```
#![allow(dead_code, unreachable_pub)] // every test binary uses its part of it

pub mod card;
pub mod guest;
pub mod line;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::rules::Violations;
use axvm_events::{Event, Events, Sink};
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::queue::QueueLayout;
use axvm_virtio::testing::{Buffer, FakeDriver};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};
use tempfile::NamedTempFile;

/// Register offsets, written down a second time, from the standard.
pub mod reg {
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC: u64 = 0x080;
    pub const QUEUE_DRIVER: u64 = 0x090;
    pub const QUEUE_DEVICE: u64 = 0x0a0;
    pub const QUEUE_RESET: u64 = 0x0c0;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// ACKNOWLEDGE, DRIVER.
pub const FOUND: u32 = 3;
/// ... and FEATURES_OK.
pub const AGREED: u32 = 11;
/// ... and DRIVER_OK.
pub const LIVE: u32 = 15;
/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u32 = 64;

/// Longer than anything takes that works.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for the next chain of a queue: the bytes written.
pub fn finished(driver: &mut FakeDriver) -> usize {
    let mut used = None;
    assert!(wait_until(|| {
        used = driver.take_used();
        used.is_some()
    }));
    used.unwrap().1 as usize
}

/// Waits until `done`; false if it takes too long.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// Keeps all events.
#[derive(Default)]
pub struct Tape(Mutex<Vec<Event>>);

impl Sink for Tape {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

impl Tape {
    /// How many events so far are like that.
    pub fn count(&self, like: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| like(event)).count()
    }

    /// The reasons for which the device asked for a reset.
    pub fn faults(&self) -> Vec<String> {
        let reason = |event: &Event| match event {
            Event::VirtioNeedsReset { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.0.lock().unwrap().iter().filter_map(reason).collect()
    }

    /// The warnings to the user.
    pub fn warnings(&self) -> Vec<String> {
        let text = |event: &Event| match event {
            Event::Warning { message, .. } => Some(message.clone()),
            _ => None,
        };
        self.0.lock().unwrap().iter().filter_map(text).collect()
    }
}

/// A machine with one virtio device, and what a driver does with it.
pub struct Machine {
    pub ram: Arc<GuestRam>,
    pub transport: MmioTransport,
    pub irq: Irq,
    pub tape: Arc<Tape>,
    pub rules: Arc<Violations>,
}

impl Machine {
    pub fn new(device: Box<dyn VirtioDevice>) -> Machine {
        Machine::over(GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap(), device)
    }

    /// A machine with RAM that another one has used.
    pub fn over(ram: Arc<GuestRam>, device: Box<dyn VirtioDevice>) -> Machine {
        Machine::named("vda", ram, device)
    }

    /// A machine whose device, and so its threads, have this name.
    pub fn named(name: &str, ram: Arc<GuestRam>, device: Box<dyn VirtioDevice>) -> Machine {
        let (irq, tape) = (Irq::new().unwrap(), Arc::<Tape>::default());
        let (line, events) = (irq.try_clone().unwrap(), Events::to(tape.clone()));
        let rules = Arc::<Violations>::default();
        let events = events.with_rules(rules.clone());
        let transport = MmioTransport::new(name, device, ram.clone(), line, events).unwrap();
        Machine { ram, transport, irq, tape, rules }
    }

    /// Pauses, and puts the state, as text, into a new machine over the same RAM, which is paused.
    pub fn carry(&self, device: Box<dyn VirtioDevice>) -> Machine {
        self.pause();
        let text = serde_json::to_string(&self.transport.state().expect("a paused device")).unwrap();
        let machine = Machine::over(self.ram.clone(), device);
        machine.pause();
        machine.transport.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(serde_json::to_string(&machine.transport.state().unwrap()).unwrap(), text);
        machine
    }

    /// The rules that drivers broke so far, by name.
    pub fn broken(&self) -> Vec<&'static str> {
        self.rules.all().iter().map(|violation| violation.rule.id).collect()
    }

    pub fn pause(&self) {
        self.transport.pause(Instant::now() + PATIENCE).unwrap();
    }

    pub fn resume(&self) {
        self.transport.resume(Instant::now() + PATIENCE).unwrap();
    }

    pub fn stop(&self) {
        self.transport.stop(Instant::now() + PATIENCE).unwrap();
    }

    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    pub fn status(&self) -> u32 {
        self.get(reg::STATUS)
    }

    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.set(reg::DEVICE_FEATURES_SEL, select);
            u64::from(self.get(reg::DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    pub fn accept(&self, features: u64) {
        for (select, half) in [(0, features), (1, features >> 32)] {
            self.set(reg::DRIVER_FEATURES_SEL, select);
            self.set(reg::DRIVER_FEATURES, half as u32);
        }
    }

    /// Resets and negotiates.
    pub fn agree(&self, features: u64) {
        self.set(reg::STATUS, 0);
        self.set(reg::STATUS, FOUND);
        self.accept(features);
        self.set(reg::STATUS, AGREED);
        assert_eq!(self.status(), AGREED, "features {features:#x}");
    }

    /// Claims and enables a queue.
    pub fn enable_queue(&self, index: u32, layout: &QueueLayout) {
        self.set(reg::QUEUE_SEL, index);
        self.set(reg::QUEUE_NUM, layout.size.into());
        let areas = [
            (reg::QUEUE_DESC, layout.descriptors),
            (reg::QUEUE_DRIVER, layout.avail),
            (reg::QUEUE_DEVICE, layout.used),
        ];
        for (register, Gpa(address)) in areas {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.set(reg::QUEUE_READY, 1);
    }

    /// Everything up to DRIVER_OK, with one queue.
    pub fn bring_up(&self, features: u64, layout: &QueueLayout) {
        self.agree(features);
        self.enable_queue(0, layout);
        self.set(reg::STATUS, LIVE);
    }

    /// Everything up to DRIVER_OK, with a new queue of `size` entries at each of these places.
    pub fn bring_up_all<const N: usize>(&self, features: u64, rings: [Gpa; N], size: u16) -> [FakeDriver; N] {
        self.agree(features);
        let event_idx = features & feature::EVENT_IDX != 0;
        let drivers = rings.map(|ring| FakeDriver::new(&self.ram, ring, size, event_idx));
        for (index, driver) in drivers.iter().enumerate() {
            self.enable_queue(index as u32, &driver.layout());
        }
        self.set(reg::STATUS, LIVE);
        assert_eq!(self.status(), LIVE);
        drivers
    }

    /// Shows what was added to a queue, and kicks if the device wants that.
    pub fn show(&self, queue: u32, driver: &mut FakeDriver) {
        if driver.kick() {
            self.set(reg::QUEUE_NOTIFY, queue);
        }
    }

    /// Waits for an interrupt.
    pub fn interrupted(&self) -> bool {
        wait_until(|| self.irq.event_fd().take())
    }

    pub fn bytes(&self, gpa: Gpa, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(gpa, &mut data).unwrap();
        data
    }
}

/// Nanoseconds of processor time of a thread of this process.
pub fn processor_time(thread: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let read = |path: &std::path::Path, file| std::fs::read_to_string(path.join(file)).unwrap_or_default();
    let task = tasks.into_iter().find(|path| read(path, "comm").trim() == thread).expect("a thread of that name");
    read(&task, "schedstat").split(' ').next().unwrap().parse().unwrap()
}

/// Runs `body` in a thread where every `call` answers with `errno`, and so in each thread that it starts; for ever.
pub fn failing<T: Send>(call: i64, errno: i32, body: impl FnOnce() -> T + Send) -> T {
    let filter = fault(call, errno);
    let run = move || {
        apply_filter(&filter).unwrap();
        body()
    };
    std::thread::scope(|scope| scope.spawn(run).join().unwrap())
}

/// A filter that lets `call` answer with `errno`.
pub fn fault(call: i64, errno: i32) -> BpfProgram {
    let rules = BTreeMap::from([(call, Vec::new())]);
    let errno = SeccompAction::Errno(errno as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64).unwrap().try_into().unwrap()
}

/// Where tests put rings and buffers.
pub const RING: Gpa = Gpa(0x10_0000);
pub const HEADER: Gpa = Gpa(0x20_0000);
pub const STATUS: Gpa = Gpa(0x20_1000);
pub const DATA: Gpa = Gpa(0x40_0000);
/// What the status byte holds before the device writes it.
pub const UNTOUCHED: u8 = 0xee;

/// Block request types.
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
/// Block status bytes.
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

/// A machine with one disk of [`Disk::SIZE`] bytes, its driver ready.
pub struct Disk {
    pub machine: Machine,
    pub driver: FakeDriver,
    pub image: Arc<DiskImage>,
}

impl Disk {
    pub const SIZE: u64 = 4 << 20;
    pub const SECTORS: u64 = Disk::SIZE / 512;

    /// An image full of `0x5a`.
    pub fn file() -> NamedTempFile {
        let file = NamedTempFile::new().unwrap();
        std::fs::write(file.path(), vec![0x5a; Disk::SIZE as usize]).unwrap();
        file
    }

    /// A disk over `path`, with all features that it offers.
    pub fn new(path: &Path) -> Disk {
        Disk::open(&DiskConfig::new(path), !0)
    }

    /// A disk with those of its features that are in `features`.
    pub fn open(config: &DiskConfig, features: u64) -> Disk {
        let image = DiskImage::open(config).unwrap();
        Disk::on(Machine::new(Box::new(Block::new(image.clone()))), image, features)
    }

    /// A disk in a machine that no driver has used.
    pub fn on(machine: Machine, image: Arc<DiskImage>, features: u64) -> Disk {
        let features = machine.offered() & (features | feature::VERSION_1);
        let driver = FakeDriver::new(&machine.ram, RING, 64, features & feature::EVENT_IDX != 0);
        machine.bring_up(features, &driver.layout());
        assert_eq!(machine.status(), LIVE);
        Disk { machine, driver, image }
    }

    /// Shows what was offered and kicks, as a register write.
    pub fn kick(&mut self) {
        if self.driver.kick() {
            self.machine.set(reg::QUEUE_NOTIFY, 0);
        }
    }

    /// Waits for the next request to come back: bytes written.
    pub fn finish(&mut self) -> Option<u32> {
        let mut used = None;
        wait_until(|| {
            used = self.driver.take_used();
            used.is_some()
        });
        used.map(|(_, written)| written)
    }

    pub fn write_header(&self, kind: u32, sector: u64) {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.machine.ram.write(HEADER, &header).unwrap();
        self.machine.ram.write(STATUS, &[UNTOUCHED]).unwrap();
    }

    /// One request of any shape; its status byte must lie at [`STATUS`]. Status and bytes written.
    pub fn submit(&mut self, buffers: &[Buffer]) -> (u8, u32) {
        self.driver.add(buffers);
        self.kick();
        let written = self.finish().expect("the device answers");
        (self.machine.bytes(STATUS, 1)[0], written)
    }

    /// One request in the usual shape; `data` for the device to read, or room at [`DATA`] to fill.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: u32) -> (u8, u32) {
        self.write_header(kind, sector);
        let mut buffers = vec![Buffer::readable(HEADER, 16)];
        if !data.is_empty() {
            self.machine.ram.write(DATA, data).unwrap();
            buffers.push(Buffer::readable(DATA, data.len() as u32));
        }
        if room > 0 {
            buffers.push(Buffer::writable(DATA, room));
        }
        buffers.push(Buffer::writable(STATUS, 1));
        self.submit(&buffers)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(OUT, sector, data, 0).0
    }

    pub fn read(&mut self, sector: u64, len: u32) -> (u8, Vec<u8>) {
        self.machine.ram.write(DATA, &vec![0xdd; len as usize]).unwrap();
        let (status, _) = self.request(IN, sector, &[], len);
        (status, self.machine.bytes(DATA, len as usize))
    }

    /// Asserts that the device still works.
    pub fn check_alive(&mut self) {
        assert_eq!(self.machine.status(), LIVE);
        assert_eq!(self.write(1, &[0x77; 512]), OK);
        assert_eq!(self.read(1, 512), (OK, vec![0x77; 512]));
    }
}

/// One segment of a discard or write-zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Bytes of host storage behind a file.
pub fn allocated(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().unwrap().blocks() * 512
}
