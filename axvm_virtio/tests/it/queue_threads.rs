//! Driver and device on two threads: no kick, no interrupt and no byte may be lost.
//!
//! Each side sleeps as soon as it has nothing to do, so a store that is seen too late (a missing fence in
//! `publish` or `enable_kicks`) ends in two sleepers, and the test in its time limit. Sleeping is spinning
//! here, and work takes a varying time: so the two meet in the dangerous moment thousands of times a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::queue::{QueueFeatures, QueueState, VirtQueue};
use axvm_virtio::testing::{Buffer, FakeDriver};

const CHAINS: u32 = 200_000;
const LIMIT: Duration = Duration::from_secs(20);

/// A kick or an interrupt: two that no thread has seen are one.
#[derive(Default)]
struct Notifier(AtomicBool);

impl Notifier {
    fn ring(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn wait(&self, who: &str) {
        let mut start = None;
        for spin in 1u32.. {
            if self.0.swap(false, Ordering::Acquire) {
                return;
            }
            if spin.is_multiple_of(1000) {
                // Perhaps both threads share one processor.
                thread::yield_now();
                assert!(start.get_or_insert_with(Instant::now).elapsed() < LIMIT, "{who} was never woken");
            }
        }
    }
}

/// Work of a length that changes from call to call.
fn work(seed: u32) {
    (0..seed.wrapping_mul(2_654_435_761) >> 25).for_each(|_| std::hint::spin_loop());
}

/// Reads a number from each chain and answers with the next one.
fn device(ram: &GuestRam, mut queue: VirtQueue, kicked: &Notifier, interrupt: &Notifier) {
    let mut served = 0;
    while served < CHAINS {
        queue.disable_kicks();
        while let Some(chain) = queue.pop().unwrap() {
            let mut number = [0; 4];
            ram.copy_from(&chain.readable[0], &mut number);
            let answer = u32::from_le_bytes(number) + 1;
            ram.copy_to(&chain.writable[0], &answer.to_le_bytes());
            let head = chain.head;
            work(served);
            queue.push_used(head, 4);
            served += 1;
            if queue.publish() {
                interrupt.ring();
            }
        }
        if !queue.enable_kicks() && served < CHAINS {
            kicked.wait("the device");
        }
    }
}

/// Keeps the queue as full as a changing limit allows, and checks every answer.
fn drive(ram: &GuestRam, mut driver: FakeDriver, kick: &Notifier, interrupted: &Notifier) {
    let place = |head: u16| Gpa(0x10_0000 + u64::from(head) * 8);
    let (mut sent, mut got) = (0, 0);
    let mut numbers = [0; 16];
    while got < CHAINS {
        let depth = 1 + sent / 7 % 8;
        while sent < CHAINS && sent - got < depth && driver.free_count() >= 2 {
            let slot = sent as u16 % 16;
            let gpa = place(slot);
            ram.write(gpa, &sent.to_le_bytes()).unwrap();
            let head = driver.add(&[Buffer::readable(gpa, 4), Buffer::writable(Gpa(gpa.0 + 4), 4)]);
            numbers[usize::from(head)] = sent;
            sent += 1;
            work(!sent);
            if driver.kick() {
                kick.ring();
            }
        }
        let mut idle = true;
        while let Some((head, written)) = driver.take_used() {
            let number = numbers[usize::from(head)];
            let mut answer = [0; 4];
            ram.read(Gpa(place(number as u16 % 16).0 + 4), &mut answer).unwrap();
            assert_eq!((u32::from_le_bytes(answer), written), (number + 1, 4));
            got += 1;
            idle = false;
        }
        if idle && !driver.enable_interrupts() {
            interrupted.wait("the driver");
        }
    }
}

fn race(event_idx: bool) {
    let ram = GuestRam::allocate(&RamConfig::new(2 << 20)).unwrap();
    let driver = FakeDriver::new(&ram, Gpa(0x1000), 16, event_idx);
    let features = QueueFeatures { event_idx, indirect: false };
    let queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
    let (kick, interrupt) = (Notifier::default(), Notifier::default());
    thread::scope(|scope| {
        scope.spawn(|| device(&ram, queue, &kick, &interrupt));
        drive(&ram, driver, &kick, &interrupt);
    });
}

#[test]
fn nothing_is_lost_with_event_indices() {
    race(true);
}

#[test]
fn nothing_is_lost_with_flags() {
    race(false);
}
