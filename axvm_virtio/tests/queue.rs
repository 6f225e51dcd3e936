//! The ring as a driver and a device see it, chain by chain.

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, GuestRange, RamConfig};
use axvm_virtio::queue::{QueueFeatures, QueueState, VirtQueue};
use axvm_virtio::testing::{Buffer, FakeDriver};

const SIZE: u16 = 8;

fn ram() -> Arc<GuestRam> {
    GuestRam::allocate(&RamConfig { size: 4 << 20, huge_pages: false }).unwrap()
}

fn pair(event_idx: bool) -> (FakeDriver, VirtQueue) {
    let ram = ram();
    let driver = FakeDriver::new(&ram, Gpa(0x1000), SIZE, event_idx);
    let features = QueueFeatures { event_idx, indirect: true };
    let queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
    (driver, queue)
}

fn pairs(ranges: &[GuestRange]) -> Vec<(u64, usize)> {
    ranges.iter().map(|range| (range.gpa().0, range.len())).collect()
}

#[test]
fn a_chain_travels_to_the_device_and_back() {
    let (mut driver, mut queue) = pair(false);
    assert_eq!(queue.pop(), Ok(None));
    let head = driver.add(&[Buffer::readable(Gpa(0x10000), 16), Buffer::writable(Gpa(0x20000), 512)]);
    assert_eq!(queue.pop(), Ok(None), "not yet shown");
    assert!(driver.kick());

    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.head, head);
    assert_eq!((pairs(chain.readable), chain.readable_len), (vec![(0x10000, 16)], 16));
    assert_eq!((pairs(chain.writable), chain.writable_len), (vec![(0x20000, 512)], 512));
    assert_eq!(queue.pop(), Ok(None));

    queue.push_used(head, 512);
    assert_eq!(driver.take_used(), None, "not yet published");
    assert!(queue.publish());
    assert_eq!(driver.take_used(), Some((head, 512)));
    assert_eq!(driver.take_used(), None);
    assert_eq!(driver.free_count(), usize::from(SIZE));
}
