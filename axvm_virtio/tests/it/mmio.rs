//! The registers of virtio-mmio, one rule at a time, in front of a device that only keeps its queues.

use crate::common;

use std::sync::{Arc, Mutex};
use std::time::Instant;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_virtio::device::{Activation, DeviceId, LiveQueue, StartError, VirtioDevice, feature};
use axvm_virtio::queue::{QueueLayout, QueueState};
use axvm_virtio::state::{DeviceState, StateError};
use axvm_virtio::testing::{Buffer, FakeDriver};
use axvm_virtio::{FaultReporter, StillBusy};
use common::*;

/// What the test may see of the device.
#[derive(Default)]
struct Kept {
    queues: Vec<LiveQueue>,
    fault: Option<FaultReporter>,
    negotiated: Vec<u64>,
    features: u64,
    starts: usize,
    resets: usize,
    config: [u8; 16],
}

/// A device of two queues, 8 and 16 entries, that only keeps its queues.
struct Keeper(Arc<Mutex<Kept>>);

const SPARE_FEATURE: u64 = 1 << 3;

impl VirtioDevice for Keeper {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 16]
    }
    fn features(&self) -> u64 {
        SPARE_FEATURE
    }
    fn negotiated(&mut self, features: u64) {
        self.0.lock().unwrap().negotiated.push(features);
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.0.lock().unwrap().config;
        data.iter_mut().zip(config.iter().skip(offset as usize)).for_each(|(to, from)| *to = *from);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let config = &mut self.0.lock().unwrap().config;
        config.iter_mut().skip(offset as usize).zip(data).for_each(|(to, from)| *to = *from);
    }
    fn start(&mut self, live: Activation) -> Result<(), StartError> {
        let mut kept = self.0.lock().unwrap();
        kept.starts += 1;
        (kept.queues, kept.fault, kept.features) = (live.queues, Some(live.fault), live.features);
        Ok(())
    }
    fn stop(&mut self, _: Option<Instant>) -> Result<Vec<QueueState>, StillBusy> {
        let mut kept = self.0.lock().unwrap();
        kept.fault = None;
        Ok(kept.queues.drain(..).map(|live| live.queue.state()).collect())
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
    fn state(&self) -> DeviceState {
        DeviceState::Entropy(Default::default())
    }
    fn restore(&mut self, _: &DeviceState) -> Result<(), StateError> {
        Ok(())
    }
}

fn machine() -> (Machine, Arc<Mutex<Kept>>) {
    let kept = Arc::<Mutex<Kept>>::default();
    (Machine::new(Box::new(Keeper(kept.clone()))), kept)
}

fn queues(machine: &Machine) -> [FakeDriver; 2] {
    [(RING, 8), (Gpa(RING.0 + 0x1_0000), 16)].map(|(base, size)| FakeDriver::new(&machine.ram, base, size, false))
}

/// Brings the machine up with both queues and all features.
fn live() -> (Machine, Arc<Mutex<Kept>>, [FakeDriver; 2]) {
    let (machine, kept) = machine();
    let drivers = queues(&machine);
    machine.agree(machine.offered() & !feature::EVENT_IDX);
    machine.enable_queue(0, &drivers[0].layout());
    machine.enable_queue(1, &drivers[1].layout());
    machine.set(reg::STATUS, LIVE);
    assert_eq!(machine.status(), LIVE);
    (machine, kept, drivers)
}

fn indices(kept: &Mutex<Kept>) -> Vec<u16> {
    kept.lock().unwrap().queues.iter().map(|live| live.index).collect()
}

/// The device takes a chain of queue `slot` and returns it.
fn serve_one(kept: &Mutex<Kept>, slot: usize) {
    let live = &mut kept.lock().unwrap().queues[slot];
    let head = live.queue.pop().unwrap().expect("a chain").head;
    live.queue.push_used(head, 0);
    if live.queue.publish() {
        live.irq.raise();
    }
}

#[test]
fn the_device_introduces_itself() {
    let (machine, _) = machine();
    assert_eq!([0, 4, 8].map(|offset| machine.get(offset)), [0x7472_6976, 2, 4]);
    assert_eq!(machine.offered(), SPARE_FEATURE | 1 << 28 | 1 << 29 | 1 << 32 | 1 << 40);
    machine.set(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(machine.get(reg::DEVICE_FEATURES), 0);
    let max = |queue| {
        machine.set(reg::QUEUE_SEL, queue);
        machine.get(reg::QUEUE_NUM_MAX)
    };
    assert_eq!([0, 1, 2, u32::MAX].map(max), [8, 16, 0, 0]);
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|offset| machine.get(offset)), [u32::MAX; 4], "no shared memory");
    assert_eq!((machine.transport.name(), machine.transport.queue_count()), ("vda", 2));
}

#[test]
fn registers_answer_to_aligned_32_bit_accesses_only() {
    let (machine, _) = machine();
    for (offset, width) in [(0u64, 1usize), (0, 2), (0, 8), (1, 4), (2, 4), (0x71, 1), (0xfe, 4)] {
        let mut data = vec![0xff; width];
        machine.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; width], "{offset:#x}/{width}");
    }
    machine.transport.write(reg::STATUS, &[1]);
    machine.transport.write(reg::STATUS, &[1, 0]);
    machine.transport.write(reg::STATUS, &[1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(machine.status(), 0);
}

#[test]
fn write_only_registers_and_gaps_read_as_zero() {
    let (machine, _) = machine();
    for offset in [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0x94, 0xa4, 0xac, 0x28, 0x54, 0xf8] {
        machine.set(offset, u32::MAX);
        assert_eq!(machine.get(offset), 0, "{offset:#x}");
    }
}

#[test]
fn the_configuration_space_takes_every_width() {
    let (machine, kept) = machine();
    for width in [1, 2, 4, 8] {
        let data: Vec<u8> = (1..=width).collect();
        machine.transport.write(reg::CONFIG + 3, &data);
        let mut back = vec![0xff; data.len()];
        machine.transport.read(reg::CONFIG + 3, &mut back);
        assert_eq!(back, data);
    }
    assert_eq!(kept.lock().unwrap().config[2..12], [0, 1, 2, 3, 4, 5, 6, 7, 8, 0]);
    let mut past = [0xff; 8];
    machine.transport.read(reg::CONFIG + 12, &mut past);
    assert_eq!(past, [0; 8]);
    machine.transport.read(u64::MAX, &mut past);
    machine.transport.write(u64::MAX, &past);
}

#[test]
fn wrong_features_are_not_agreed_to() {
    let (machine, kept) = machine();
    for features in [0, SPARE_FEATURE, feature::VERSION_1 | 1, feature::VERSION_1 | 1 << 34] {
        machine.set(reg::STATUS, 0);
        machine.set(reg::STATUS, FOUND);
        machine.accept(features);
        machine.set(reg::STATUS, AGREED);
        assert_eq!(machine.status(), FOUND, "{features:#x}");
        machine.set(reg::STATUS, LIVE);
        assert_eq!(machine.status(), FOUND, "no way around it");
    }
    machine.agree(feature::VERSION_1 | SPARE_FEATURE);
    machine.set(reg::STATUS, AGREED);
    assert_eq!(kept.lock().unwrap().negotiated, [feature::VERSION_1 | SPARE_FEATURE], "told once");
}

#[test]
fn driver_ok_hands_the_enabled_queues_over() {
    let (machine, kept) = machine();
    let drivers = queues(&machine);
    machine.agree(feature::VERSION_1 | SPARE_FEATURE);
    machine.enable_queue(1, &drivers[1].layout());
    assert_eq!(kept.lock().unwrap().starts, 0);
    machine.set(reg::STATUS, LIVE);
    let kept = kept.lock().unwrap();
    assert_eq!((kept.starts, kept.features), (1, feature::VERSION_1 | SPARE_FEATURE));
    assert_eq!(kept.queues.len(), 1);
    assert_eq!(kept.queues[0].index, 1);
    assert_eq!(*kept.queues[0].queue.layout(), drivers[1].layout());
}

#[test]
fn an_enabled_queue_cannot_be_moved() {
    let (machine, _) = machine();
    let drivers = queues(&machine);
    machine.agree(feature::VERSION_1);
    machine.enable_queue(0, &drivers[0].layout());
    machine.set(reg::QUEUE_NUM, 3);
    machine.set(reg::QUEUE_DESC, 1);
    machine.set(reg::QUEUE_DEVICE + 4, 1);
    machine.set(reg::STATUS, LIVE);
    assert_eq!(machine.status(), LIVE);
}

#[test]
fn bad_queues_need_a_reset_and_nothing_else() {
    let (machine, kept) = machine();
    let good = queues(&machine)[0].layout();
    let far = Gpa(1 << 40);
    let end = Gpa((32 << 20) - 16);
    let bad = [
        QueueLayout { size: 0, ..good },
        QueueLayout { size: 3, ..good },
        QueueLayout { size: 16, ..good },
        QueueLayout { size: u16::MAX, ..good },
        QueueLayout { descriptors: Gpa(good.descriptors.0 + 1), ..good },
        QueueLayout { avail: Gpa(good.avail.0 + 1), ..good },
        QueueLayout { used: Gpa(good.used.0 + 2), ..good },
        QueueLayout { descriptors: far, ..good },
        QueueLayout { avail: far, ..good },
        QueueLayout { used: Gpa(u64::MAX - 3), ..good },
        QueueLayout { descriptors: end, ..good },
    ];
    for layout in bad {
        machine.bring_up(feature::VERSION_1, &layout);
        assert_eq!(machine.status(), LIVE | NEEDS_RESET, "{layout:?}");
        assert_eq!(machine.get(reg::INTERRUPT_STATUS), 2, "a configuration change");
        assert!(machine.interrupted());
        assert_eq!(kept.lock().unwrap().starts, 0);
        machine.set(reg::STATUS, 0);
        assert_eq!((machine.status(), machine.get(reg::INTERRUPT_STATUS)), (0, 0));
    }
    let faults = machine.tape.faults();
    assert_eq!(faults.len(), 1, "one event a second: {faults:?}");
    assert!(faults[0].starts_with("Queue 0"), "{faults:?}");
    machine.bring_up(feature::VERSION_1, &good);
    assert_eq!(machine.status(), LIVE);
}

#[test]
fn a_size_beyond_16_bits_is_not_cut_to_a_good_one() {
    let (machine, _) = machine();
    let good = queues(&machine)[0].layout();
    machine.agree(feature::VERSION_1);
    machine.set(reg::QUEUE_NUM, 0x1_0008);
    let size = QueueLayout { size: 8, ..good };
    machine.enable_queue(0, &size);
    machine.set(reg::QUEUE_READY, 0);
    machine.set(reg::QUEUE_NUM, 0x1_0008);
    machine.set(reg::QUEUE_READY, 1);
    machine.set(reg::STATUS, LIVE);
    assert_eq!(machine.status(), LIVE | NEEDS_RESET);
}

#[test]
fn a_worker_asks_for_a_reset_once() {
    let (machine, kept, _) = live();
    let fault = kept.lock().unwrap().fault.clone().unwrap();
    fault.report("first");
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 2);
    machine.set(reg::INTERRUPT_ACK, 2);
    fault.report("second");
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 0, "said once is enough");
    assert_eq!(machine.status(), LIVE | NEEDS_RESET);
    assert_eq!(machine.tape.faults(), ["first"]);
    machine.set(reg::STATUS, LIVE | NEEDS_RESET);
    assert_eq!(machine.status(), LIVE | NEEDS_RESET, "only a reset clears it");
    machine.set(reg::STATUS, 0);
    assert_eq!(machine.status(), 0);
}

#[test]
fn a_reset_takes_everything_back() {
    let (machine, kept, _) = live();
    kept.lock().unwrap().queues[0].irq.raise();
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 1);
    machine.set(reg::STATUS, 0);
    assert!(kept.lock().unwrap().queues.is_empty());
    assert_eq!((machine.status(), machine.get(reg::INTERRUPT_STATUS)), (0, 0));
    for queue in [0, 1] {
        machine.set(reg::QUEUE_SEL, queue);
        assert_eq!(machine.get(reg::QUEUE_READY), 0);
    }
    // The old features are forgotten too.
    machine.set(reg::STATUS, AGREED);
    assert_eq!(machine.status(), FOUND);
}

#[test]
fn interrupts_stay_until_acknowledged() {
    let (machine, kept, _) = live();
    kept.lock().unwrap().queues[1].irq.raise();
    kept.lock().unwrap().fault.as_ref().unwrap().report("broken");
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 3);
    machine.set(reg::INTERRUPT_ACK, 1);
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 2);
    machine.set(reg::INTERRUPT_ACK, 4);
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 2);
    machine.set(reg::INTERRUPT_ACK, u32::MAX);
    assert_eq!(machine.get(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_kick_goes_to_its_queue() {
    let (machine, kept, _) = live();
    machine.set(reg::QUEUE_NOTIFY, 1);
    machine.set(reg::QUEUE_NOTIFY, 2);
    machine.set(reg::QUEUE_NOTIFY, u32::MAX);
    machine.transport.kick(1).signal();
    assert!(kept.lock().unwrap().queues[1].kick.take());
    assert!(!kept.lock().unwrap().queues[0].kick.is_signalled());
    machine.set(reg::QUEUE_NOTIFY, 0);
    assert!(kept.lock().unwrap().queues[0].kick.take());
}

#[test]
fn one_queue_is_reset_while_the_other_goes_on() {
    let (machine, kept, [mut first, mut second]) = live();
    for driver in [&mut first, &mut second] {
        driver.add(&[Buffer::writable(DATA, 16)]);
        driver.kick();
    }
    serve_one(&kept, 0);
    serve_one(&kept, 1);

    machine.set(reg::QUEUE_SEL, 0);
    machine.set(reg::QUEUE_RESET, 1);
    assert_eq!((machine.get(reg::QUEUE_RESET), machine.get(reg::QUEUE_READY)), (0, 0));
    assert_eq!(indices(&kept), [1]);
    second.add(&[Buffer::writable(DATA, 16)]);
    second.kick();
    serve_one(&kept, 0);
    assert_eq!([second.take_used(), second.take_used()].map(|used| used.is_some()), [true, true]);

    // Elsewhere, smaller, from index 0.
    let mut moved = FakeDriver::new(&machine.ram, Gpa(RING.0 + 0x2_0000), 4, false);
    machine.enable_queue(0, &moved.layout());
    assert_eq!(machine.get(reg::QUEUE_READY), 1);
    assert_eq!(indices(&kept), [0, 1]);
    moved.add(&[Buffer::writable(DATA, 16)]);
    moved.kick();
    second.add(&[Buffer::writable(DATA, 16)]);
    second.kick();
    serve_one(&kept, 0);
    serve_one(&kept, 1);
    assert!(moved.take_used().is_some() && second.take_used().is_some());
    assert_eq!(machine.status(), LIVE);
}

#[test]
fn a_queue_that_comes_back_starts_at_index_zero() {
    let (machine, kept, [mut first, _]) = live();
    first.add(&[Buffer::writable(DATA, 16)]);
    first.kick();
    serve_one(&kept, 0);
    machine.set(reg::QUEUE_SEL, 0);
    machine.set(reg::QUEUE_READY, 0);
    machine.set(reg::QUEUE_READY, 1);
    let live = &kept.lock().unwrap().queues[0];
    assert_eq!(live.queue.state(), QueueState::default());
    assert_eq!(*live.queue.layout(), first.layout(), "where it was");
}

#[test]
fn a_queue_reset_forgets_place_and_size() {
    let (machine, kept, _) = live();
    machine.set(reg::QUEUE_SEL, 1);
    machine.set(reg::QUEUE_RESET, 1);
    machine.set(reg::QUEUE_NUM, 4);
    machine.set(reg::QUEUE_RESET, 1);
    machine.set(reg::QUEUE_READY, 1);
    let layout = *kept.lock().unwrap().queues[1].queue.layout();
    assert_eq!((layout.size, layout.descriptors, layout.used), (16, Gpa(0), Gpa(0)));
}

#[test]
fn a_queue_reset_must_be_negotiated() {
    let (machine, kept) = machine();
    let drivers = queues(&machine);
    machine.bring_up(feature::VERSION_1, &drivers[0].layout());
    machine.set(reg::QUEUE_RESET, 1);
    assert_eq!(machine.get(reg::QUEUE_READY), 1);
    assert_eq!(indices(&kept), [0]);
}

#[test]
fn a_disabled_queue_is_out_of_use_at_once() {
    let (machine, kept, _) = live();
    machine.set(reg::QUEUE_SEL, 1);
    machine.set(reg::QUEUE_READY, 0);
    assert_eq!(machine.get(reg::QUEUE_READY), 0);
    assert_eq!(indices(&kept), [0]);
    machine.set(reg::QUEUE_SEL, 7);
    machine.set(reg::QUEUE_READY, 1);
    machine.set(reg::QUEUE_RESET, 1);
    assert_eq!(machine.get(reg::QUEUE_READY), 0);
}

#[test]
fn after_a_fault_no_queue_comes_back_without_a_reset() {
    let (machine, kept, _) = live();
    kept.lock().unwrap().fault.clone().unwrap().report("broken");
    let starts = kept.lock().unwrap().starts;
    machine.set(reg::QUEUE_SEL, 0);
    machine.set(reg::QUEUE_RESET, 1);
    machine.set(reg::QUEUE_READY, 1);
    assert_eq!(kept.lock().unwrap().starts, starts);
    assert_eq!(machine.status(), LIVE | NEEDS_RESET);
}

#[test]
fn stopping_is_a_reset() {
    let (machine, kept, _) = live();
    machine.stop();
    assert!(kept.lock().unwrap().queues.is_empty());
    assert_eq!(machine.status(), 0);
    machine.stop();
}

#[test]
fn status_changes_are_events() {
    let (machine, _, _) = live();
    use axvm_events::Event::VirtioStatus;
    let change = |from, to| {
        let expected = VirtioStatus { device: "vda".into(), from, to };
        machine.tape.count(|event| *event == expected)
    };
    assert_eq!([change(0, FOUND), change(FOUND, AGREED), change(AGREED, LIVE)], [1, 1, 1]);
}
