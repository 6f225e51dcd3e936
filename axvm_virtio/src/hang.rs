//! Tests: a device whose host hangs, seen through its transport.
//!
//! ```text
//!   request --> worker --> the host: until the test lets it go
//!   vCPU: reset .......... waits for the worker, and holds the register lock
//!   others: begin_stop, busy: at once; pause, stop, resume: until their deadline
//! ```

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_memory::{GuestRam, RamConfig};

use crate::device::{Activation, DeviceId, StartError, VirtioDevice, feature};
use crate::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::queue::{Chain, QueueState};
use crate::state::{DeviceState, StateError};
use crate::testing::{Buffer, FakeDriver};
use crate::worker::{Serve, Served, Serving, StillBusy, Worker, WorkerStatus};

const PATIENCE: Duration = Duration::from_secs(10);
const STATUS: u64 = 0x070;

/// A host that answers each request when the test says so.
struct Hanging(Arc<Mutex<Receiver<()>>>);

impl Serve for Hanging {
    fn serve(&mut self, _: &Chain<'_>, _: &WorkerStatus) -> Result<Served, &'static str> {
        let _ = self.0.lock().unwrap().recv();
        Ok(Served::Used(1))
    }
}

struct HangingDevice {
    host: Arc<Mutex<Receiver<()>>>,
    worker: Option<Worker<Serving<Hanging>>>,
}

impl VirtioDevice for HangingDevice {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _: u64, _: &mut [u8]) {}

    fn write_config(&mut self, _: u64, _: &[u8]) {}

    fn start(&mut self, mut live: Activation) -> Result<(), StartError> {
        let queues = std::mem::take(&mut live.queues);
        self.worker = live.spawn("vda-q0".into(), queues, Serving::new(Hanging(Arc::clone(&self.host))))?;
        Ok(())
    }

    fn stop(&mut self, deadline: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        Ok(Worker::take(&mut self.worker, deadline)?.queues)
    }

    fn reset(&mut self) {}

    fn state(&self) -> DeviceState {
        DeviceState::Entropy(Default::default())
    }

    fn restore(&mut self, _: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}

/// A machine with such a device, and what its driver and its host do.
struct Toy {
    transport: MmioTransport,
    driver: FakeDriver,
    host: Sender<()>,
}

impl Toy {
    fn new() -> Toy {
        let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
        let (host, answers) = channel();
        let device = HangingDevice { host: Arc::new(Mutex::new(answers)), worker: None };
        let irq = Irq::new().unwrap();
        let transport = MmioTransport::new("vda", Box::new(device), Arc::clone(&ram), irq, Default::default()).unwrap();
        let driver = FakeDriver::new(&ram, Gpa(0x1000), 8, false);
        let toy = Toy { transport, driver, host };
        toy.bring_up();
        toy
    }

    fn bring_up(&self) {
        let layout = self.driver.layout();
        let version_1 = (feature::VERSION_1 >> 32) as u32;
        let script = [(STATUS, 0), (STATUS, 3), (0x024, 1), (0x020, version_1), (STATUS, 11), (0x038, 8)];
        let areas = [(0x080, layout.descriptors), (0x090, layout.avail), (0x0a0, layout.used)];
        script.into_iter().for_each(|(offset, value)| self.set(offset, value));
        areas.into_iter().for_each(|(offset, gpa)| self.set(offset, gpa.0 as u32));
        [(0x044, 1), (STATUS, 15)].into_iter().for_each(|(offset, value)| self.set(offset, value));
    }

    fn set(&self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Offers a request, and waits until it is in the host.
    fn hang(&mut self) {
        self.offer();
        wait_until(|| self.transport.busy().iter().any(|busy| busy.duration > Duration::from_millis(20)));
    }

    fn offer(&mut self) {
        self.driver.add(&[Buffer::writable(Gpa(0x8000), 1)]);
        self.driver.kick();
        self.set(QUEUE_NOTIFY, 0);
    }

    fn finish(&mut self) {
        self.host.send(()).unwrap();
        wait_until(|| self.driver.take_used().is_some());
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn late() -> Instant {
    Instant::now() + PATIENCE
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "it takes too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_pause_gives_up_and_can_be_taken_up_again() {
    let mut toy = Toy::new();
    toy.hang();
    toy.transport.begin_stop();
    for _ in 0..2 {
        let busy = toy.transport.pause(soon()).unwrap_err();
        assert_eq!(busy.thread, "vda-q0");
        assert!(busy.to_string().contains("Cannot hold vda-q0 still"), "{busy}");
        assert_eq!(toy.transport.state(), None, "it does not stand still");
    }
    // What comes now waits for the end of the pause.
    toy.offer();
    toy.finish();
    toy.transport.pause(late()).unwrap();
    let indices = toy.transport.state().unwrap().queues[0].indices;
    assert_eq!(indices, QueueState { next_avail: 1, next_used: 1 });
    toy.transport.resume(late()).unwrap();
    toy.finish();
}

#[test]
fn a_pause_that_gave_up_is_ended_at_once_and_the_worker_goes_on() {
    let mut toy = Toy::new();
    for _ in 0..3 {
        toy.hang();
        toy.transport.pause(soon()).unwrap_err();
        toy.transport.resume(soon()).unwrap();
        assert_eq!(toy.transport.busy().len(), 1, "the request is still in the host");
        toy.finish();
    }
    toy.offer();
    toy.finish();
}

#[test]
fn workers_that_were_only_asked_to_stop_go_on_or_start_again() {
    for pause in [0, 1, 20] {
        let mut toy = Toy::new();
        toy.transport.begin_stop();
        std::thread::sleep(Duration::from_millis(pause));
        toy.transport.resume(late()).unwrap();
        toy.offer();
        toy.finish();
    }
}

#[test]
fn a_vcpu_that_waits_for_a_reset_holds_up_no_other() {
    let mut toy = Toy::new();
    toy.hang();
    std::thread::scope(|scope| {
        let transport = &toy.transport;
        let vcpu = scope.spawn(|| transport.write(STATUS, &0_u32.to_le_bytes()));
        std::thread::sleep(Duration::from_millis(30));
        assert!(!vcpu.is_finished());
        let start = Instant::now();
        transport.begin_stop();
        let busy = transport.busy();
        assert_eq!((busy.len(), busy[0].thread.as_str()), (1, "vda-q0"));
        assert_eq!(transport.pause(soon()).unwrap_err().thread, "vda-q0");
        assert_eq!(transport.stop(soon()).unwrap_err().thread, "vda-q0");
        assert_eq!(transport.resume(soon()).unwrap_err().thread, "vda-q0", "the register lock is the vCPU's");
        assert!(start.elapsed() < PATIENCE / 2);
        toy.host.send(()).unwrap();
        vcpu.join().unwrap();
        transport.pause(late()).unwrap();
    });
    assert_eq!(toy.transport.state().unwrap().status, 0);
    assert_eq!(toy.transport.busy(), []);
}

#[test]
fn a_stop_that_gave_up_changes_nothing_yet() {
    let mut toy = Toy::new();
    toy.hang();
    toy.transport.stop(soon()).unwrap_err();
    let mut status = [0; 4];
    toy.transport.read(STATUS, &mut status);
    assert_eq!(status, [15, 0, 0, 0]);
    toy.finish();
    toy.transport.stop(late()).unwrap();
    toy.transport.read(STATUS, &mut status);
    assert_eq!(status, [0; 4]);
}
