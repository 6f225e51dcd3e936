//! The ring as a well-behaved driver sees it: chains, notifications, stop and resume.

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, GuestRange, RamConfig};
use axvm_virtio::queue::{MAX_SIZE, QueueFeatures, QueueLayout, QueueState, VirtQueue};
use axvm_virtio::testing::{Buffer, FakeDriver, INDIRECT, NEXT, RawDescriptor, WRITE};

const SIZE: u16 = 8;
const DATA: Gpa = Gpa(0x10_0000);
const TABLE: Gpa = Gpa(0x8_0001); // tables need no alignment

fn ram() -> Arc<GuestRam> {
    GuestRam::allocate(&RamConfig::new(4 << 20)).unwrap()
}

/// A driver and a device whose indices both stand at `index`.
fn pair_at(size: u16, event_idx: bool, index: u16) -> (FakeDriver, VirtQueue) {
    let ram = ram();
    let mut driver = FakeDriver::new(&ram, Gpa(0x1000), size, event_idx);
    driver.start_at(index);
    let features = QueueFeatures { event_idx, indirect: true };
    let state = QueueState { next_avail: index, next_used: index };
    let queue = VirtQueue::new(&ram, &driver.layout(), features, state).unwrap();
    (driver, queue)
}

fn pair(event_idx: bool) -> (FakeDriver, VirtQueue) {
    pair_at(SIZE, event_idx, 0)
}

fn pairs(ranges: &[GuestRange]) -> Vec<(u64, usize)> {
    ranges.iter().map(|range| (range.gpa().0, range.len())).collect()
}

/// One small chain, shown to the device.
fn offer(driver: &mut FakeDriver) -> u16 {
    let head = driver.add(&[Buffer::readable(DATA, 1)]);
    driver.kick();
    head
}

/// Takes all chains and pushes them back, unpublished; how many.
fn serve(queue: &mut VirtQueue) -> u16 {
    let mut count = 0;
    while let Some(chain) = queue.pop().unwrap() {
        let head = chain.head;
        queue.push_used(head, 0);
        count += 1;
    }
    count
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

    queue.push_used(head, 0x12345);
    assert_eq!(driver.take_used(), None, "not yet published");
    assert!(queue.publish());
    assert_eq!(driver.take_used(), Some((head, 0x12345)));
    assert_eq!(driver.take_used(), None);
    assert_eq!(driver.free_count(), usize::from(SIZE));
}

#[test]
fn buffers_keep_the_order_of_the_chain() {
    let (mut driver, mut queue) = pair(false);
    let buffer = |n: u64, writable| Buffer { gpa: Gpa(DATA.0 - n * 16), len: n as u32, writable };
    let buffers: Vec<_> = (1..=8).map(|n| buffer(n, n > 3)).collect();
    driver.add(&buffers);
    driver.kick();
    let chain = queue.pop().unwrap().unwrap();
    let expected = |from: u64, to: u64| (from..=to).map(|n| (DATA.0 - n * 16, n as usize)).collect::<Vec<_>>();
    assert_eq!((pairs(chain.readable), chain.readable_len), (expected(1, 3), 6));
    assert_eq!((pairs(chain.writable), chain.writable_len), (expected(4, 8), 30));
}

#[test]
fn an_indirect_table_is_one_descriptor_and_may_be_longer_than_the_queue() {
    let (mut driver, mut queue) = pair(false);
    for count in [1, 3, 100] {
        let buffers: Vec<_> = (0..count).map(|n| Buffer::readable(Gpa(DATA.0 + n * 8), 8)).collect();
        let head = driver.add_indirect(TABLE, &buffers);
        assert_eq!(driver.free_count(), usize::from(SIZE) - 1);
        driver.kick();
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.head, chain.readable.len() as u64, chain.readable_len), (head, count, 8 * count));
        assert!(chain.writable.is_empty());
        queue.push_used(head, 0);
        queue.publish();
        driver.take_used().unwrap();
    }
}

#[test]
fn an_indirect_table_may_end_a_direct_chain_and_its_write_flag_means_nothing() {
    let ram = ram();
    let mut driver = FakeDriver::new(&ram, Gpa(0x1000), SIZE, false);
    let features = QueueFeatures { event_idx: false, indirect: true };
    let mut queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
    driver.write_descriptor(5, RawDescriptor { addr: DATA.0, len: 1, flags: NEXT, next: 6 });
    driver.write_descriptor(6, RawDescriptor { addr: TABLE.0, len: 32, flags: INDIRECT | WRITE, next: 0 });
    // The table goes backwards: from entry 0 it could not; here 0 -> 1.
    let table = [
        RawDescriptor { addr: DATA.0 + 1, len: 2, flags: NEXT, next: 1 },
        RawDescriptor { addr: DATA.0 + 3, len: 4, flags: WRITE, next: 0 },
    ];
    ram.write(TABLE, &table.map(RawDescriptor::to_bytes).concat()).unwrap();
    driver.offer(5);
    driver.kick();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(pairs(chain.readable), [(DATA.0, 1), (DATA.0 + 1, 2)]);
    assert_eq!(pairs(chain.writable), [(DATA.0 + 3, 4)]);
    assert_eq!((chain.head, chain.readable_len, chain.writable_len), (5, 3, 4));
}

#[test]
fn empty_buffers_leave_no_trace() {
    let (mut driver, mut queue) = pair(false);
    let nowhere = Gpa(u64::MAX);
    driver.add(&[
        Buffer::readable(nowhere, 0),
        Buffer::readable(DATA, 4),
        Buffer::writable(nowhere, 0),
        Buffer::writable(DATA, 2),
    ]);
    driver.add(&[Buffer::writable(nowhere, 0)]);
    driver.kick();
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((pairs(chain.readable), pairs(chain.writable)), (vec![(DATA.0, 4)], vec![(DATA.0, 2)]));
    let chain = queue.pop().unwrap().unwrap();
    assert!(chain.readable.is_empty() && chain.writable.is_empty());
}

#[test]
fn a_chain_may_take_the_whole_table_and_a_queue_may_have_any_size() {
    for size in (0..16).map(|bit| 1 << bit) {
        let (mut driver, mut queue) = pair_at(size, false, 0);
        let head = driver.add(&vec![Buffer::writable(DATA, 1); usize::from(size)]);
        driver.kick();
        assert_eq!(queue.pop().unwrap().unwrap().writable_len, u64::from(size));
        queue.push_used(head, 1);
        queue.publish();
        assert_eq!(driver.take_used(), Some((head, 1)));
        (0..size).for_each(|_| _ = driver.add(&[Buffer::readable(DATA, 1)]));
        driver.kick();
        assert_eq!(serve(&mut queue), size);
    }
    assert_eq!(MAX_SIZE, 1 << 15);
}

#[test]
fn a_buffer_may_fill_ram_and_the_parts_of_a_ring_may_lie_in_any_order() {
    let ram = ram();
    let end = ram.size();
    // Used ring first, descriptors in the middle, available ring up to the last byte of RAM.
    let layout = QueueLayout { size: 4, used: Gpa(4), descriptors: Gpa(0x30), avail: Gpa(end - 14) };
    let mut driver = FakeDriver::at(&ram, layout, false);
    let mut queue = VirtQueue::new(&ram, &layout, QueueFeatures::default(), QueueState::default()).unwrap();
    driver.add(&[Buffer::readable(Gpa(0), end as u32)]);
    driver.kick();
    assert_eq!(queue.pop().unwrap().unwrap().readable_len, end);
    assert_eq!((queue.size(), queue.layout()), (4, &layout));
}

#[test]
fn without_event_indices_flags_say_who_wants_to_be_woken() {
    let (mut driver, mut queue) = pair(false);
    for (kicks, interrupts) in [(false, false), (true, false), (false, true), (true, true)] {
        if kicks {
            assert!(!queue.enable_kicks());
        } else {
            queue.disable_kicks();
        }
        if interrupts {
            driver.enable_interrupts();
        } else {
            driver.disable_interrupts();
        }
        driver.add(&[Buffer::readable(DATA, 1)]);
        assert_eq!(driver.kick(), kicks);
        assert_eq!(serve(&mut queue), 1);
        assert_eq!(queue.publish(), interrupts);
        driver.take_used().unwrap();
    }
}

#[test]
fn nothing_published_is_nothing_to_interrupt_for() {
    for event_idx in [false, true] {
        let (mut driver, mut queue) = pair(event_idx);
        assert!(!queue.publish());
        offer(&mut driver);
        serve(&mut queue);
        assert!(queue.publish());
        assert!(!queue.publish());
    }
}

#[test]
fn with_event_indices_an_interrupt_comes_when_its_entry_is_written() {
    // Around the wrap of the 16-bit indices as well as at the start.
    for start in [0, 65533, 65534, 65535] {
        for (event, pushed, wanted) in [(0, 1, true), (1, 1, false), (1, 2, true), (4, 4, false), (4, 5, true)] {
            let (mut driver, mut queue) = pair_at(SIZE, true, start);
            driver.set_used_event(start.wrapping_add(event));
            (0..pushed).for_each(|_| _ = offer(&mut driver));
            assert_eq!(serve(&mut queue), pushed);
            assert_eq!(queue.publish(), wanted, "start {start}, event {event}, pushed {pushed}");
            // The entry is behind us now: no interrupt until the indices come round.
            if wanted {
                offer(&mut driver);
                serve(&mut queue);
                assert!(!queue.publish());
            }
        }
    }
}

#[test]
fn with_event_indices_flags_are_ignored_and_not_written() {
    let ram = ram();
    let mut driver = FakeDriver::new(&ram, Gpa(0x1000), SIZE, true);
    let features = QueueFeatures { event_idx: true, indirect: false };
    let mut queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
    ram.write(driver.layout().avail, &[1, 0]).unwrap();
    queue.disable_kicks();
    offer(&mut driver);
    serve(&mut queue);
    assert!(queue.publish());
    let mut flags = [9; 2];
    ram.read(driver.layout().used, &mut flags).unwrap();
    assert_eq!(flags, [0, 0]);
}

#[test]
fn with_event_indices_a_kick_is_asked_for_the_next_chain_only() {
    for start in [0, 65534, 65535] {
        let (mut driver, mut queue) = pair_at(SIZE, true, start);
        assert!(!queue.enable_kicks());
        let mut add = || {
            driver.add(&[Buffer::readable(DATA, 1)]);
            driver.kick()
        };
        assert!(add());
        assert!(!add(), "the device was already told");
        assert_eq!(serve(&mut queue), 2);
        queue.disable_kicks();
        assert!(!add());
        serve(&mut queue);
        assert!(!queue.enable_kicks());
        assert!(add());
    }
}

#[test]
fn asking_for_kicks_tells_of_chains_that_came_before() {
    for event_idx in [false, true] {
        let (mut driver, mut queue) = pair(event_idx);
        assert!(!queue.enable_kicks());
        offer(&mut driver);
        assert!(queue.enable_kicks());
        offer(&mut driver);
        assert!(queue.pop().unwrap().is_some());
        assert!(queue.enable_kicks(), "one is left");
        assert!(queue.pop().unwrap().is_some());
        assert!(!queue.enable_kicks());
    }
}

#[test]
fn chains_return_in_any_order() {
    let (mut driver, mut queue) = pair(false);
    let heads: Vec<_> = (0..4).map(|_| offer(&mut driver)).collect();
    (0..4).for_each(|_| _ = queue.pop().unwrap().unwrap());
    for (length, &head) in heads.iter().enumerate().rev() {
        queue.push_used(head, length as u32);
    }
    queue.publish();
    let back: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
    assert_eq!(back, [(heads[3], 3), (heads[2], 2), (heads[1], 1), (heads[0], 0)]);
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let (mut driver, mut queue) = pair(true);
    let ram = Arc::clone(queue.ram());
    for round in 0..10 {
        offer(&mut driver);
        offer(&mut driver);
        assert_eq!(serve(&mut queue), 2);
        queue.publish();
        let state = queue.state();
        assert_eq!(state, QueueState { next_avail: 2 * round + 2, next_used: 2 * round + 2 });
        let features = QueueFeatures { event_idx: true, indirect: true };
        queue = VirtQueue::new(&ram, &driver.layout(), features, state).unwrap();
        assert_eq!(queue.pop(), Ok(None));
        while driver.take_used().is_some() {}
        assert_eq!(driver.free_count(), usize::from(SIZE));
    }
}

#[test]
fn unpublished_chains_still_count_as_in_flight() {
    let (mut driver, mut queue) = pair(false);
    offer(&mut driver);
    serve(&mut queue);
    assert_eq!(queue.state(), QueueState { next_avail: 1, next_used: 0 });
}

#[test]
fn indices_wrap_twice_without_losing_a_chain() {
    for event_idx in [false, true] {
        let (mut driver, mut queue) = pair(event_idx);
        for round in 0..150_000u32 {
            let head = driver.add(&[Buffer::writable(DATA, 4)]);
            driver.enable_interrupts();
            driver.kick();
            assert_eq!(queue.pop().unwrap().unwrap().head, head);
            queue.push_used(head, round);
            assert!(queue.publish());
            assert_eq!(driver.take_used(), Some((head, round)));
        }
    }
}

#[test]
#[should_panic(expected = "no chain in flight")]
fn returning_more_than_was_taken_is_our_bug() {
    let (mut driver, mut queue) = pair(false);
    let head = offer(&mut driver);
    queue.pop().unwrap();
    queue.push_used(head, 0);
    queue.push_used(head, 0);
}

#[test]
fn a_chain_put_back_is_popped_again() {
    for index in [0, 0xffff] {
        let (mut driver, mut queue) = pair_at(SIZE, true, index);
        let (first, second) = (offer(&mut driver), offer(&mut driver));
        assert_eq!(queue.pop().unwrap().unwrap().head, first);
        queue.put_back();
        assert_eq!(queue.state(), QueueState { next_avail: index, next_used: index });
        assert_eq!(queue.pop().unwrap().unwrap().head, first);
        assert_eq!(queue.pop().unwrap().unwrap().head, second);
        queue.put_back();
        queue.push_used(first, 0);
        queue.publish();
        assert_eq!((serve(&mut queue), driver.take_used()), (1, Some((first, 0))));
    }
}

#[test]
#[should_panic(expected = "no chain in flight")]
fn putting_back_what_was_not_taken_is_our_bug() {
    pair(false).1.put_back();
}
