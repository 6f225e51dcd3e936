//! The registers of a virtio-mmio device: any access, of any width, in any order.
//!
//! ```text
//!   input --> reads and writes of the window, writes to RAM
//!   held:     no panic; reset always leads to status 0; a started device has proven queues, each once;
//!             a paused device has none, its state is what the registers say, and another device takes it
//! ```
//!
//! The device behind the window starts no thread, so a run is quick and always the same.
//!
//! Run: `cargo xtask fuzz virtio_mmio_registers`.
#![no_main]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axvm_arch::Gpa;
use axvm_devices::{BusDevice, Irq};
use axvm_events::Events;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::StillBusy;
use axvm_virtio::device::{Activation, DeviceId, LiveQueue, StartError, VirtioDevice};
use axvm_virtio::mmio::MmioTransport;
use axvm_virtio::queue::QueueState;
use axvm_virtio::state::{DeviceState, StateError};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const STATUS: u64 = 0x070;

static RAM: LazyLock<Arc<GuestRam>> = LazyLock::new(|| GuestRam::allocate(&RamConfig::new(2 << 20)).expect("2 MiB"));

/// A device that keeps its queues, takes one chain of each at the start, and does nothing.
#[derive(Default)]
struct Idle {
    queues: Vec<LiveQueue>,
    config: [u8; 8],
    /// How many queues it has, for all to see.
    count: Arc<AtomicUsize>,
}

impl VirtioDevice for Idle {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 16]
    }

    fn features(&self) -> u64 {
        0b101
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            *byte = self.config.get(at as usize).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (at, byte) in (offset..).zip(data) {
            self.config.get_mut(at as usize).into_iter().for_each(|place| *place = *byte);
        }
    }

    fn start(&mut self, live: Activation) -> Result<(), StartError> {
        assert!(self.queues.is_empty(), "started twice");
        assert!(live.queues.is_sorted_by(|a, b| a.index < b.index), "each queue once, in order");
        self.queues = live.queues;
        self.count.store(self.queues.len(), Ordering::SeqCst);
        for queue in &mut self.queues {
            assert!(queue.queue.size() <= [256, 16][usize::from(queue.index)]);
            if let Err(error) = queue.queue.pop() {
                live.fault.report(error);
            }
        }
        Ok(())
    }

    fn stop(&mut self, _: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        self.count.store(0, Ordering::SeqCst);
        let put_back = |mut live: LiveQueue| {
            let state = live.queue.state();
            if state.next_avail != state.next_used {
                live.queue.put_back();
            }
            live.queue.state()
        };
        Ok(self.queues.drain(..).map(put_back).collect())
    }

    fn reset(&mut self) {
        assert!(self.queues.is_empty(), "reset while it runs");
    }

    fn state(&self) -> DeviceState {
        DeviceState::Entropy(Default::default())
    }

    fn restore(&mut self, _: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A register, by its number.
    Set(u8, u32),
    /// An address of a queue, near the start of RAM.
    SetNear(u8, u16),
    Get(u8),
    /// A write and a read as a guest should not do them.
    Strange(u16, [u8; 8], u8),
    /// The steps of a driver, up to one of them.
    Negotiate(u8, u64),
    Ram(u16, Vec<u8>),
    Reset,
    ResetQueue(u8),
    Pause,
    Resume,
}

fn set(device: &MmioTransport, offset: u64, value: u32) {
    device.write(offset, &value.to_le_bytes());
}

fn get(device: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0xff; 4];
    device.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn negotiate(device: &MmioTransport, steps: u8, features: u64) {
    // Status, features (VERSION_1 is bit 0 of the high half), FEATURES_OK, a queue of 16, DRIVER_OK.
    let script = [
        (STATUS, 0),
        (STATUS, 3),
        (0x024, 1),
        (0x020, (features >> 32) as u32 | 1),
        (0x024, 0),
        (0x020, features as u32),
        (STATUS, 11),
        (0x030, (features % 3) as u32),
        (0x038, 16),
        (0x080, 0x1000),
        (0x090, 0x2000),
        (0x0a0, 0x3000),
        (0x044, 1),
        (STATUS, 15),
    ];
    script.iter().take(steps.into()).for_each(|&(offset, value)| set(device, offset, value));
}

fn reset(device: &MmioTransport) {
    set(device, STATUS, 0);
    assert_eq!(get(device, STATUS), 0, "reset did not finish");
}

/// The state of a paused device, seen through the registers.
fn compare(device: &MmioTransport) {
    let Some(state) = device.state() else { return };
    assert_eq!((state.status, state.interrupt_status), (get(device, STATUS), get(device, 0x060)));
    let selected = state.queue_sel;
    for (number, queue) in state.queues.iter().enumerate() {
        set(device, 0x030, number as u32);
        assert_eq!(u32::from(queue.ready), get(device, 0x044));
    }
    set(device, 0x030, selected);
    assert_eq!(device.state().as_ref(), Some(&state));
    let copy = idle(Box::default());
    copy.pause(Instant::now()).expect("no worker");
    copy.restore(&state).expect("a state that a driver led to");
    assert_eq!(copy.state(), Some(state));
}

fn idle(device: Box<Idle>) -> MmioTransport {
    let irq = Irq::new().expect("an eventfd");
    MmioTransport::new("idle", device, Arc::clone(&RAM), irq, Events::default()).expect("eventfds")
}

fuzz_target!(|steps: Vec<Step>| {
    let device = Box::new(Idle::default());
    let count = Arc::clone(&device.count);
    let device = idle(device);
    for step in steps {
        match step {
            Step::Set(register, value) => set(&device, u64::from(register) * 4, value),
            Step::SetNear(register, address) => set(&device, 0x080 + u64::from(register % 12) * 4, address.into()),
            Step::Get(register) => _ = get(&device, u64::from(register) * 4),
            Step::Strange(offset, mut bytes, len) => {
                let data = &mut bytes[..1 + usize::from(len) % 8];
                device.write(offset.into(), data);
                device.read(offset.into(), data);
            }
            Step::Negotiate(steps, features) => negotiate(&device, steps, features),
            Step::Ram(at, bytes) => RAM.write(Gpa(at.into()), &bytes).unwrap_or(()),
            Step::Reset => reset(&device),
            Step::ResetQueue(queue) => {
                set(&device, 0x030, u32::from(queue) % 3);
                set(&device, 0x0c0, 1);
            }
            Step::Pause => device.pause(Instant::now()).expect("no worker"),
            Step::Resume => device.resume(Instant::now()).expect("no worker"),
        }
        assert!(device.state().is_none() || count.load(Ordering::SeqCst) == 0, "a paused device has queues");
        compare(&device);
    }
    reset(&device);
    device.resume(Instant::now()).expect("no worker");
    assert_eq!(count.load(Ordering::SeqCst), 0, "a reset device has queues");
});
