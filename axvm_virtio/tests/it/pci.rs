//! Devices behind functions of PCI: a driver that finds its registers through capabilities, and interrupts by MSI-X.
//!
//! ```text
//!   test --ECAM--> PciHost --> PciFunction --BAR--> registers --> device --> worker
//!        <--eventfd of the vector that the queue has <-- Msix <---------------'
//! ```

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_arch::msi::MsiRoute;
use axvm_devices::pci::{Bridge, MsiRouter, Msix, MsixVector};
use axvm_devices::{BusDevice, Irq, PciHost, StopSwitch};
use axvm_events::Events;
use axvm_events::rules::Violations;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::console::Console;
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::rng::Rng;
use axvm_virtio::testing::{Buffer, FakeDriver};
use axvm_virtio::{Transport, pci};

use crate::common::*;

/// 00:01.0 in the ECAM.
const FUNCTION: u64 = 8 << 12;
const WINDOW: u64 = 0xc000_0000;
const BAR: u64 = WINDOW + 0x10_0000;
/// Fields of the common configuration, written down a second time, from the standard.
const FEATURE_SELECT: u64 = 0x00;
const FEATURES: u64 = 0x04;
const DRIVER_SELECT: u64 = 0x08;
const DRIVER_FEATURES: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const STATUS: u64 = 0x14;
const GENERATION: u64 = 0x15;
const SELECT: u64 = 0x16;
const SIZE: u64 = 0x18;
const VECTOR: u64 = 0x1a;
const ENABLE: u64 = 0x1c;
const NOTIFY_OFF: u64 = 0x1e;
const ADDRESSES: u64 = 0x20;
const RESET: u64 = 0x3a;
const NO_VECTOR: u64 = 0xffff;

#[derive(Default)]
struct Routes(Mutex<usize>);

impl MsiRouter for Routes {
    fn route(&self, routes: &[MsiRoute]) {
        *self.0.lock().unwrap() += routes.len();
    }
}

/// A deadline that no good device misses.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Where the registers were, and where they are.
type Move = (Option<u64>, Option<u64>);

struct Bench {
    ram: Arc<GuestRam>,
    transport: Arc<Transport>,
    host: Arc<PciHost>,
    ecam: Arc<dyn BusDevice>,
    window: Arc<dyn BusDevice>,
    irqs: Vec<Irq>,
    moved: Arc<Mutex<Vec<Move>>>,
    rules: Arc<Violations>,
}

/// The rules that a driver breaks which writes this to the common configuration: offset, length, value.
pub fn broken_on_pci(act: impl FnOnce(&dyn Fn(u64, usize, u64))) -> Vec<&'static str> {
    let bench = Bench::new(Box::new(Rng::default()));
    act(&|at, len, value| bench.set(at, len, value));
    bench.rules.all().iter().map(|violation| violation.rule.id).collect()
}

impl Bench {
    fn new(device: Box<dyn VirtioDevice>) -> Bench {
        Bench::over(GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap(), device)
    }

    fn over(ram: Arc<GuestRam>, device: Box<dyn VirtioDevice>) -> Bench {
        let irqs: Vec<_> = (0..pci::vector_count(device.queue_sizes().len())).map(|_| Irq::new().unwrap()).collect();
        let vector = |(irq, gsi): (&Irq, u32)| MsixVector { irq: irq.try_clone().unwrap(), gsi };
        let vectors = irqs.iter().zip(24..).map(vector).collect();
        let msix = Arc::new(Msix::new(vectors, Arc::new(Routes::default())));
        let rules = Arc::<Violations>::default();
        let events = Events::default().with_rules(rules.clone());
        let transport = Arc::new(pci::transport("vda", device, ram.clone(), &msix, events).unwrap());
        let moved = Arc::<Mutex<Vec<_>>>::default();
        let tape = Arc::clone(&moved);
        let function = pci::function(&transport, msix, BAR, move |from, to| tape.lock().unwrap().push((from, to)));
        function.check().unwrap();
        let host = Arc::new(PciHost::new(Arc::new(StopSwitch::new().unwrap()), Bridge::Express));
        host.add(8, "vda", function).unwrap();
        let (ecam, window) = (PciHost::ecam(&host), PciHost::window(&host, WINDOW, 1 << 28));
        let bench = Bench { ram, transport, host, ecam, window, irqs, moved, rules };
        bench.set_config(4, 2, 6);
        bench
    }

    fn config<const N: usize>(&self, register: u64) -> [u8; N] {
        let mut data = [0; N];
        self.ecam.read(FUNCTION + register, &mut data);
        data
    }

    fn set_config(&self, register: u64, len: usize, value: u32) {
        self.ecam.write(FUNCTION + register, &value.to_le_bytes()[..len]);
    }

    fn get(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.window.read(BAR - WINDOW + at, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn set(&self, at: u64, len: usize, value: u64) {
        self.window.write(BAR - WINDOW + at, &value.to_le_bytes()[..len]);
    }

    /// Where each capability is: its id, and for those of virtio their kind, and where the structure is.
    fn capabilities(&self) -> Vec<(u8, u8, u64)> {
        let ([mut at], mut all) = (self.config(0x34), Vec::new());
        while at != 0 {
            let [id, next, _, kind] = self.config(at.into());
            all.push((id, kind, u32::from_le_bytes(self.config(u64::from(at) + 8)).into()));
            at = next;
        }
        all
    }

    /// MSI-X on, every entry open, a vector for each queue and the last for the configuration.
    fn enable_msix(&self) {
        let at = self.msix();
        self.set_config(at + 2, 2, 1 << 15);
        for entry in 0..self.irqs.len() as u64 {
            self.set(0x4000 + entry * 16, 8, 0xfee0_0000);
            self.set(0x4000 + entry * 16 + 8, 8, 0x40 + entry);
        }
    }

    /// Where MSI-X is in the configuration space.
    fn msix(&self) -> u64 {
        let [mut at] = self.config(0x34);
        loop {
            let [id, next] = self.config(at.into());
            if id == 0x11 {
                return at.into();
            }
            at = next;
        }
    }

    /// Everything up to DRIVER_OK, with these queues.
    fn bring_up(&self, drivers: &[&FakeDriver]) {
        self.set(STATUS, 1, 0);
        assert_eq!(self.get(STATUS, 1), 0);
        self.set(STATUS, 1, FOUND.into());
        self.set(DRIVER_SELECT, 4, 1);
        self.set(DRIVER_FEATURES, 4, (feature::VERSION_1 | feature::RING_RESET) >> 32);
        self.set(STATUS, 1, AGREED.into());
        assert_eq!(self.get(STATUS, 1), u64::from(AGREED));
        self.set(CONFIG_VECTOR, 2, drivers.len() as u64);
        for (queue, driver) in drivers.iter().enumerate() {
            self.enable(queue as u64, driver);
        }
        self.set(STATUS, 1, LIVE.into());
        assert_eq!(self.get(STATUS, 1), u64::from(LIVE));
    }

    fn enable(&self, queue: u64, driver: &FakeDriver) {
        let layout = driver.layout();
        self.set(SELECT, 2, queue);
        self.set(SIZE, 2, layout.size.into());
        self.set(VECTOR, 2, queue);
        assert_eq!(self.get(VECTOR, 2), queue);
        for (n, Gpa(address)) in [layout.descriptors, layout.avail, layout.used].into_iter().enumerate() {
            self.set(ADDRESSES + n as u64 * 8, 4, address & 0xffff_ffff);
            self.set(ADDRESSES + n as u64 * 8 + 4, 4, address >> 32);
        }
        self.set(ENABLE, 2, 1);
        assert_eq!(self.get(ENABLE, 2), 1);
    }

    /// One request for random numbers, from kick to used buffer.
    fn ask(&self, driver: &mut FakeDriver) {
        driver.add(&[Buffer::writable(DATA, 16)]);
        driver.kick();
        self.set(pci::doorbell(0), 2, 0);
        assert_eq!(finished(driver), 16);
    }

    fn came(&self, vector: usize) -> bool {
        wait_until(|| self.irqs[vector].event_fd().take())
    }
}

#[test]
fn a_driver_finds_registers_and_interrupts_through_capabilities() {
    let bench = Bench::new(Box::new(Rng::default()));
    assert_eq!(bench.config(0), [0xf4, 0x1a, 0x44, 0x10], "1af4:1044");
    assert_eq!(bench.config(8), [1, 0, 0, 0xff], "revision 1, no class");
    let [pin] = bench.config(0x3d);
    assert_eq!(pin, 0);
    let virtio: Vec<_> = bench.capabilities().into_iter().filter(|(id, ..)| *id == 9).collect();
    assert_eq!(virtio, [(9, 1, 0), (9, 2, 0x3000), (9, 3, 0x1000), (9, 4, 0x2000), (9, 5, 0)]);
    let msix = bench.msix();
    assert_eq!(u16::from_le_bytes(bench.config(msix + 2)), 1, "two vectors");
    assert_eq!(u32::from_le_bytes(bench.config(msix + 4)), 0x4000);
    assert_eq!(u32::from_le_bytes(bench.config(msix + 8)), 0x7000);
    assert_eq!((bench.get(NUM_QUEUES, 2), bench.get(SIZE, 2), bench.get(NOTIFY_OFF, 2)), (1, 64, 0));
    bench.set(FEATURE_SELECT, 4, 1);
    assert_eq!(bench.get(FEATURES, 4), feature::TRANSPORT >> 32);
    assert_eq!(bench.get(VECTOR, 2), NO_VECTOR);
}

#[test]
fn each_queue_interrupts_by_its_own_vector() {
    let bench = Bench::new(Box::new(Console::new(axvm_console::Port::new().unwrap())));
    bench.enable_msix();
    let mut drivers = [0, 0x8000].map(|at| FakeDriver::new(&bench.ram, Gpa(RING.0 + at), 8, false));
    bench.bring_up(&[&drivers[0], &drivers[1]]);
    drivers[1].add(&[Buffer::readable(DATA, 4)]);
    drivers[1].kick();
    bench.set(pci::doorbell(1), 2, 1);
    assert!(bench.came(1));
    assert!(!bench.irqs[0].event_fd().take() && !bench.irqs[2].event_fd().take());
    assert_eq!(bench.get(0x1000, 1), 0, "the ISR status is for INTx");
    // A broken ring is told by the vector of the configuration.
    drivers[1].set_avail_idx(100);
    bench.set(pci::doorbell(1), 4, 0xffff_ffff);
    assert!(bench.came(2));
    assert_eq!(bench.get(STATUS, 1), u64::from(LIVE | NEEDS_RESET));
}

#[test]
fn without_msix_a_driver_polls_and_reading_the_isr_status_clears_it() {
    let bench = Bench::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&bench.ram, RING, 8, false);
    bench.bring_up(&[&driver]);
    bench.ask(&mut driver);
    assert!(wait_until(|| bench.get(0x1000, 1) == 1));
    assert_eq!(bench.get(0x1000, 1), 0);
    assert!(!bench.irqs[0].event_fd().take());
}

#[test]
fn vectors_that_there_are_not_read_back_as_none_and_a_reset_forgets_all() {
    let bench = Bench::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&bench.ram, RING, 8, false);
    bench.enable_msix();
    bench.bring_up(&[&driver]);
    for field in [CONFIG_VECTOR, VECTOR] {
        bench.set(field, 2, 2);
        assert_eq!(bench.get(field, 2), NO_VECTOR);
        bench.set(field, 2, 1);
        assert_eq!(bench.get(field, 2), 1);
    }
    bench.ask(&mut driver);
    assert!(bench.came(1));
    bench.set(RESET, 2, 1);
    assert_eq!((bench.get(RESET, 2), bench.get(ENABLE, 2), bench.get(VECTOR, 2)), (0, 0, NO_VECTOR));
    assert_eq!(bench.get(SIZE, 2), 64, "as at power-on");
    driver = FakeDriver::new(&bench.ram, RING, 8, false);
    bench.enable(0, &driver);
    bench.ask(&mut driver);
    assert!(bench.came(0));
    bench.set(STATUS, 1, 0);
    assert_eq!((bench.get(CONFIG_VECTOR, 2), bench.get(VECTOR, 2)), (NO_VECTOR, NO_VECTOR));
    bench.set(SELECT, 2, 7);
    bench.set(VECTOR, 2, 0);
    assert_eq!([SIZE, VECTOR, ENABLE, NOTIFY_OFF].map(|field| bench.get(field, 2)), [0, NO_VECTOR, 0, 0]);
}

#[test]
fn fields_have_their_width_and_addresses_halves() {
    let bench = Bench::new(Box::new(Rng::default()));
    bench.set(ADDRESSES, 8, 0x1_2345_6789_abcd);
    assert_eq!(bench.get(ADDRESSES, 8), 0x1_2345_6789_abcd);
    assert_eq!((bench.get(ADDRESSES, 4), bench.get(ADDRESSES + 4, 4)), (0x6789_abcd, 0x1_2345));
    for (field, len) in [(STATUS, 4), (SIZE, 1), (SIZE, 4), (FEATURE_SELECT, 2), (ADDRESSES, 2), (ADDRESSES + 2, 4)] {
        bench.set(field, len, 0x0f0f_0f0f);
        assert_eq!(bench.get(field, len), 0, "{field:#x} in {len} bytes");
    }
    assert_eq!((bench.get(STATUS, 1), bench.get(SIZE, 2)), (0, 64));
    for at in (0..0x8000).step_by(3) {
        for len in [1, 2, 4, 8] {
            bench.get(at, len);
        }
    }
    assert_eq!(bench.get(GENERATION, 1), 0);
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let bench = Bench::new(Box::new(Rng::default()));
    let at = bench.capabilities().iter().position(|(_, kind, _)| *kind == 5).map(|_| {
        let [mut at] = bench.config(0x34);
        while bench.config::<4>(at.into())[3] != 5 {
            [_, at] = bench.config(at.into());
        }
        u64::from(at)
    });
    let at = at.unwrap();
    let access = |bar: u32, offset: u64, len: u32| {
        bench.set_config(at + 4, 1, bar);
        bench.set_config(at + 8, 4, offset as u32);
        bench.set_config(at + 12, 4, len);
    };
    // Memory decoding may be off.
    bench.set_config(4, 2, 0);
    access(0, STATUS, 1);
    bench.set_config(at + 16, 4, 1);
    assert_eq!(bench.config(at + 16), [1, 0, 0, 0]);
    access(0, NUM_QUEUES, 2);
    assert_eq!(bench.config(at + 16), [1, 0, 0, 0]);
    for (bar, offset, len) in [(1, STATUS, 1), (0, STATUS, 3), (0, STATUS, 0), (0, 0x8000, 4), (0, STATUS + 1, 4)] {
        access(bar, offset, len);
        bench.set_config(at + 16, 4, 0xffff_ffff);
        bench.config::<4>(at + 16);
    }
    bench.set_config(4, 2, 6);
    assert_eq!(bench.get(STATUS, 1), 1, "no other access came through");
}

#[test]
fn doorbells_move_with_the_bar_and_leave_with_it() {
    let bench = Bench::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&bench.ram, RING, 8, false);
    bench.enable_msix();
    bench.bring_up(&[&driver]);
    bench.ask(&mut driver);
    let elsewhere = BAR + 0x8000;
    bench.set_config(0x10, 4, elsewhere as u32);
    bench.set_config(4, 2, 4);
    bench.set_config(0x10, 4, 0x1000);
    bench.set_config(4, 2, 6);
    bench.set_config(0x10, 4, BAR as u32);
    let moves =
        [(None, Some(BAR)), (Some(BAR), None), (None, Some(elsewhere)), (Some(elsewhere), None), (None, Some(BAR))];
    assert_eq!(*bench.moved.lock().unwrap(), moves, "nowhere outside of the windows");
    bench.ask(&mut driver);
}

#[test]
fn a_device_goes_on_in_another_machine_with_its_vectors() {
    let old = Bench::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&old.ram, RING, 8, false);
    old.enable_msix();
    old.bring_up(&[&driver]);
    old.ask(&mut driver);
    old.transport.pause(soon()).unwrap();
    let texts = [
        serde_json::to_string(&old.host.state()).unwrap(),
        serde_json::to_string(&old.transport.state().unwrap()).unwrap(),
    ];
    let new = Bench::over(old.ram.clone(), Box::new(Rng::default()));
    new.set_config(4, 2, 0);
    new.transport.pause(soon()).unwrap();
    new.host.restore(&serde_json::from_str(&texts[0]).unwrap()).unwrap();
    new.transport.restore(&serde_json::from_str(&texts[1]).unwrap()).unwrap();
    assert_eq!(serde_json::to_string(&new.host.state()).unwrap(), texts[0]);
    assert_eq!(serde_json::to_string(&new.transport.state().unwrap()).unwrap(), texts[1]);
    new.transport.resume(soon()).unwrap();
    assert!(new.came(0), "one too many, but none lost");
    new.ask(&mut driver);
    assert!(new.came(0));
    // And none that does not fit.
    let mmio = Machine::new(Box::new(Rng::default()));
    mmio.pause();
    let state = serde_json::from_str(&texts[1]).unwrap();
    let why = mmio.transport.restore(&state).unwrap_err();
    let why = std::error::Error::source(&why).unwrap().to_string();
    assert!(why.contains("was on PCI, and this one is on MMIO"), "{why}");
    let fresh = Bench::new(Box::new(Rng::default()));
    fresh.transport.pause(soon()).unwrap();
    let damaged: axvm_virtio::state::TransportState =
        serde_json::from_str(&texts[1].replace("\"queues\":[0]", "\"queues\":[2]")).unwrap();
    assert!(fresh.transport.restore(&damaged).is_err(), "a vector that there is not");
    assert!(fresh.transport.restore(&mmio.transport.state().unwrap()).is_err(), "another bus");
}
