//! Tests: the two handshakes of the rings, in every order that a processor may choose.
//!
//! ```text
//!   device:  payload, used.idx --fence--> used_event?        one of the two sees the other:
//!   driver:  used_event --fence--> used.idx, payload         no interrupt is lost, and no payload is old
//!
//!   driver:  payload, avail.idx --fence--> avail_event?      no kick is lost, and no payload is old
//!   device:  avail_event --fence--> avail.idx, payload
//! ```
//!
//! The device's side is the code of `rings` itself, on words of loom; loom runs both sides in every interleaving, and
//! gives each load every value that the memory model allows. Without one of the fences, or with a weaker order at one of
//! the indices, these tests fail; x86 alone would forgive most of that.
//!
//! Spec: virtio 1.2, 2.7.7 "Used Buffer Notification Suppression", 2.7.13.4 "Notifying The Device".

use std::sync::atomic::Ordering;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU16, fence};
use loom::thread;

use super::rings::{AvailRing, UsedRing, Words, passes};

const SIZE: usize = 1;
/// Places of words, from the standard.
const FLAGS: usize = 0;
const IDX: usize = 1;
const USED_EVENT: usize = 2 + SIZE;
const AVAIL_EVENT: usize = 2 + 4 * SIZE;
/// An event that the first chain does not pass: nothing is asked for.
const NEVER: u16 = 0x7fff;
/// NO_INTERRUPT, NO_NOTIFY: nothing is asked for.
const QUIET: u16 = 1;
const PAYLOAD: u16 = 0x55;

type Memory = Arc<Vec<AtomicU16>>;

impl Words for Memory {
    fn load(&self, index: usize, order: Ordering) -> u16 {
        self[index].load(order)
    }

    fn store(&self, index: usize, value: u16, order: Ordering) {
        self[index].store(value, order);
    }

    fn fence(order: Ordering) {
        fence(order);
    }
}

/// The rings before the first chain, and what they are about.
#[derive(Clone)]
struct Rings {
    avail: Memory,
    used: Memory,
    /// Stands for elements, entries, descriptors and data: memory that is no index.
    payload: Memory,
    event_idx: bool,
}

impl Rings {
    fn new(event_idx: bool) -> Rings {
        let words = |count: usize, event| {
            let value = |n| {
                if n == FLAGS && !event_idx {
                    QUIET
                } else if n == event {
                    NEVER
                } else {
                    0
                }
            };
            Arc::new((0..count).map(|n| AtomicU16::new(value(n))).collect())
        };
        let (avail, used) = (words(USED_EVENT + 1, USED_EVENT), words(AVAIL_EVENT + 1, AVAIL_EVENT));
        Rings { avail, used, payload: Arc::new(vec![AtomicU16::new(0)]), event_idx }
    }

    /// The device's ends.
    fn device(&self) -> (AvailRing<Memory>, UsedRing<Memory>) {
        let (avail, used) = (Arc::clone(&self.avail), Arc::clone(&self.used));
        (AvailRing { words: avail, size: SIZE }, UsedRing { words: used, size: SIZE })
    }

    fn write_payload(&self) {
        self.payload[0].store(PAYLOAD, Ordering::Relaxed);
    }

    fn read_payload(&self) -> u16 {
        self.payload[0].load(Ordering::Relaxed)
    }
}

/// Runs a device beside a driver in every order, with event indices and with flags.
fn explore(device: fn(&Rings) -> bool, driver: fn(&Rings) -> bool) {
    for event_idx in [true, false] {
        loom::model(move || {
            let rings = Rings::new(event_idx);
            let theirs = rings.clone();
            let driver = thread::spawn(move || driver(&theirs));
            let told = device(&rings);
            let saw = driver.join().unwrap();
            assert!(told || saw, "both sleep, and each waits for the other; event indices: {event_idx}");
        });
    }
}

#[test]
fn no_interrupt_is_lost_and_no_used_element_is_old() {
    fn device(rings: &Rings) -> bool {
        let (avail, used) = rings.device();
        rings.write_payload();
        used.publish(&avail, 0, 1, rings.event_idx)
    }
    // As Linux does before it sleeps: asks, then looks once more.
    fn driver(rings: &Rings) -> bool {
        match rings.event_idx {
            true => rings.avail[USED_EVENT].store(0, Ordering::Relaxed),
            false => rings.avail[FLAGS].store(0, Ordering::Relaxed),
        }
        fence(Ordering::SeqCst);
        let saw = rings.used[IDX].load(Ordering::Acquire) == 1;
        assert!(!saw || rings.read_payload() == PAYLOAD, "the driver reads an old element");
        saw
    }
    explore(device, driver);
}

#[test]
fn no_kick_is_lost_and_no_chain_is_old() {
    fn device(rings: &Rings) -> bool {
        let (avail, used) = rings.device();
        let saw = used.ask_for_kick(&avail, 0, rings.event_idx) == 1;
        assert!(!saw || rings.read_payload() == PAYLOAD, "the device reads an old chain");
        saw
    }
    // As Linux does: adds a chain, then looks whether to kick.
    fn driver(rings: &Rings) -> bool {
        rings.write_payload();
        rings.avail[IDX].store(1, Ordering::Release);
        fence(Ordering::SeqCst);
        match rings.event_idx {
            true => passes(rings.used[AVAIL_EVENT].load(Ordering::Relaxed), 0, 1),
            false => rings.used[FLAGS].load(Ordering::Relaxed) & QUIET == 0,
        }
    }
    explore(device, driver);
}
