//! Every rule of the ring that a driver can break, one test each: an error, never a hang or a panic.

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_memory::{AccessError, GuestRam, RamConfig};
use axvm_virtio::queue::{QueueError, QueueFeatures, QueueLayout, QueueState, VirtQueue};
use axvm_virtio::testing::{Buffer, FakeDriver, INDIRECT, NEXT, RawDescriptor, WRITE};

const SIZE: u16 = 4;
const DATA: u64 = 0x10_0000;
const TABLE: u64 = 0x8_0000;
const RAM: u64 = 4 << 20;

fn ram(size: u64) -> Arc<GuestRam> {
    GuestRam::allocate(&RamConfig::new(size)).unwrap()
}

fn start(ram: &Arc<GuestRam>, indirect: bool) -> (FakeDriver, VirtQueue) {
    let driver = FakeDriver::new(ram, Gpa(0x1000), SIZE, false);
    let features = QueueFeatures { event_idx: false, indirect };
    let queue = VirtQueue::new(ram, &driver.layout(), features, QueueState::default()).unwrap();
    (driver, queue)
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor { addr, len, flags, next }
}

/// What `pop` makes of head 0 with these entries in the ring's table.
fn popped(ring: &[RawDescriptor]) -> Result<u16, QueueError> {
    popped_indirect(ring, &[])
}

/// As `popped`, with an indirect table at `TABLE`.
fn popped_indirect(ring: &[RawDescriptor], table: &[RawDescriptor]) -> Result<u16, QueueError> {
    let ram = ram(RAM);
    let (mut driver, mut queue) = start(&ram, true);
    for (index, entry) in ring.iter().enumerate() {
        driver.write_descriptor(index as u16, *entry);
    }
    for (index, entry) in table.iter().enumerate() {
        ram.write(Gpa(TABLE + 16 * index as u64), &entry.to_bytes()).unwrap();
    }
    driver.offer(0);
    driver.kick();
    queue.pop().map(|chain| chain.unwrap().head)
}

#[test]
fn a_size_must_be_a_power_of_two() {
    let ram = ram(RAM);
    for size in [0, 3, 5, 6, 12, 255, 257, 32767, 32769, 49152, 65535] {
        let layout = QueueLayout { size, descriptors: Gpa(0), avail: Gpa(0x10_0000), used: Gpa(0x20_0000) };
        let result = VirtQueue::new(&ram, &layout, QueueFeatures::default(), QueueState::default());
        assert_eq!(result.unwrap_err(), QueueError::Size(size));
    }
}

#[test]
fn each_part_must_be_aligned_and_end_inside_ram() {
    let ram = ram(RAM);
    let place = |descriptors, avail, used| {
        let layout = QueueLayout { size: 4, descriptors: Gpa(descriptors), avail: Gpa(avail), used: Gpa(used) };
        VirtQueue::new(&ram, &layout, QueueFeatures::default(), QueueState::default()).map(|_| ()).map_err(|error| {
            match error {
                QueueError::Placement { part, reason: AccessError::Unaligned { align, .. } } => (part, align),
                QueueError::Placement { part, reason: AccessError::NotRam { .. } } => (part, 0),
                other => panic!("{other}"),
            }
        })
    };
    let (good, far) = (0x1000, !0xf);
    assert_eq!(place(RAM - 64, RAM - 14, RAM - 40), Ok(()));
    for bad in [RAM - 48, RAM, far] {
        assert_eq!(place(bad, good, good), Err(("descriptor table", 0)));
    }
    for bad in [RAM - 12, RAM, far + 14] {
        assert_eq!(place(good, bad, good), Err(("available ring", 0)));
    }
    for bad in [RAM - 36, RAM, far + 12] {
        assert_eq!(place(good, good, bad), Err(("used ring", 0)));
    }
    assert_eq!(place(good + 8, good, good), Err(("descriptor table", 16)));
    assert_eq!(place(good, good + 1, good), Err(("available ring", 2)));
    assert_eq!(place(good, good, good + 2), Err(("used ring", 4)));
}

#[test]
fn a_saved_state_must_fit_the_queue() {
    let ram = ram(RAM);
    let (driver, _) = start(&ram, false);
    let resume = |next_avail, next_used| {
        let state = QueueState { next_avail, next_used };
        VirtQueue::new(&ram, &driver.layout(), QueueFeatures::default(), state).map(|_| ())
    };
    assert_eq!(resume(3, 65535), Ok(()));
    assert_eq!(resume(4, 65535), Err(QueueError::State { size: SIZE, in_flight: 5 }));
    assert_eq!(resume(0, 1), Err(QueueError::State { size: SIZE, in_flight: 65535 }));
}

#[test]
fn the_available_index_may_not_run_ahead_of_the_ring() {
    let ram = ram(RAM);
    let (mut driver, mut queue) = start(&ram, false);
    driver.add(&[Buffer::readable(Gpa(DATA), 1)]);
    driver.set_avail_idx(SIZE);
    assert!(queue.pop().unwrap().is_some());

    let (mut driver, mut queue) = start(&ram, false);
    driver.set_avail_idx(SIZE + 1);
    assert_eq!(queue.pop(), Err(QueueError::AvailIndex { from: 0, to: SIZE + 1, room: SIZE }));
}

#[test]
fn the_available_index_may_not_go_back() {
    let ram = ram(RAM);
    let (mut driver, mut queue) = start(&ram, false);
    driver.add(&[Buffer::readable(Gpa(DATA), 1)]);
    driver.add(&[Buffer::readable(Gpa(DATA), 1)]);
    driver.kick();
    while queue.pop().unwrap().is_some() {}
    driver.set_avail_idx(1);
    assert_eq!(queue.pop(), Err(QueueError::AvailIndex { from: 2, to: 1, room: SIZE - 2 }));
}

#[test]
fn chains_in_flight_leave_less_room_until_they_are_published() {
    let ram = ram(RAM);
    let (mut driver, mut queue) = start(&ram, false);
    for _ in 0..SIZE {
        driver.add(&[Buffer::readable(Gpa(DATA), 1)]);
    }
    driver.kick();
    (0..SIZE).for_each(|_| assert!(queue.pop().unwrap().is_some()));
    queue.push_used(0, 0);
    queue.publish();
    driver.set_avail_idx(SIZE + 1);
    assert!(queue.pop().unwrap().is_some(), "one came back");
    queue.push_used(0, 0);
    driver.set_avail_idx(SIZE + 2);
    assert_eq!(queue.pop(), Err(QueueError::AvailIndex { from: SIZE + 1, to: SIZE + 2, room: 0 }));
}

#[test]
fn a_head_must_be_inside_the_table() {
    for head in [SIZE, SIZE + 1, 65535] {
        let (mut driver, mut queue) = start(&ram(RAM), false);
        driver.offer(head);
        driver.kick();
        assert_eq!(queue.pop(), Err(QueueError::Index { index: head, count: SIZE.into() }));
    }
}

#[test]
fn a_next_must_be_inside_its_table() {
    let ring = [descriptor(DATA, 1, NEXT, SIZE)];
    assert_eq!(popped(&ring), Err(QueueError::Index { index: SIZE, count: SIZE.into() }));
    // In an indirect table its own length counts, not the queue's.
    let link = [descriptor(TABLE, 32, INDIRECT, 0)];
    let table = [descriptor(DATA, 1, NEXT, 2), descriptor(DATA, 1, 0, 0), descriptor(DATA, 1, 0, 0)];
    assert_eq!(popped_indirect(&link, &table), Err(QueueError::Index { index: 2, count: 2 }));
    // Without NEXT the field means nothing.
    assert_eq!(popped(&[descriptor(DATA, 1, 0, 65535)]), Ok(0));
}

#[test]
fn loops_end() {
    assert_eq!(popped(&[descriptor(DATA, 1, NEXT, 0)]), Err(QueueError::Loop { head: 0 }));
    let ring = [descriptor(DATA, 1, NEXT, 1), descriptor(DATA, 1, NEXT, 2), descriptor(DATA, 0, NEXT, 1)];
    assert_eq!(popped(&ring), Err(QueueError::Loop { head: 0 }));
    let link = [descriptor(TABLE, 16, INDIRECT, 0)];
    assert_eq!(popped_indirect(&link, &[descriptor(DATA, 1, NEXT, 0)]), Err(QueueError::Loop { head: 0 }));
}

#[test]
fn buffers_may_not_exceed_four_gib_in_total() {
    const GIB: u32 = 1 << 30;
    let ram = ram(2 << 30);
    for (last, writable, expected) in [
        (GIB, false, Ok(1 << 32)),
        (GIB, true, Ok(1 << 32)),
        (GIB + 1, false, Err(QueueError::Bytes { head: 0 })),
        (GIB + 1, true, Err(QueueError::Bytes { head: 0 })),
    ] {
        let (mut driver, mut queue) = start(&ram, false);
        let (gpa, third) = (Gpa(0), Buffer::readable(Gpa(0), GIB));
        let head = driver.add(&[third, third, third, Buffer { gpa, len: last, writable }]);
        assert_eq!(head, 0, "the expected errors name head 0");
        driver.kick();
        let total = queue.pop().map(|chain| chain.map(|chain| chain.readable_len + chain.writable_len).unwrap());
        assert_eq!(total, expected);
    }
}

#[test]
fn readable_buffers_come_before_writable_ones() {
    let order = Err(QueueError::Order { head: 0 });
    let ring = [descriptor(DATA, 1, NEXT | WRITE, 1), descriptor(DATA, 1, 0, 0)];
    assert_eq!(popped(&ring), order);
    let ring = [descriptor(DATA, 0, NEXT | WRITE, 1), descriptor(DATA, 0, 0, 0)];
    assert_eq!(popped(&ring), order, "empty buffers too");
    let ring = [descriptor(DATA, 1, NEXT | WRITE, 1), descriptor(TABLE, 16, INDIRECT, 0)];
    assert_eq!(popped_indirect(&ring, &[descriptor(DATA, 1, 0, 0)]), order, "across tables too");
    assert_eq!(popped_indirect(&ring, &[descriptor(DATA, 1, WRITE, 0)]), Ok(0));
}

#[test]
fn buffers_must_be_ram() {
    for (addr, len) in [(RAM, 1), (RAM - 1, 2), (0, RAM as u32 + 1), (u64::MAX, 1), (u64::MAX - 7, 8), (1, u32::MAX)] {
        for flags in [0, WRITE] {
            let expected = Err(QueueError::Buffer { head: 0, gpa: Gpa(addr), len });
            assert_eq!(popped(&[descriptor(addr, len, flags, 0)]), expected);
        }
    }
}

#[test]
fn buffers_may_not_cross_the_hole() {
    let (ram, hole) = (ram(4 << 30), 3 << 30);
    for (gpa, len, good) in [(hole - 1, 1, true), (hole - 1, 2, false), (4 << 30, 1, true), ((4 << 30) - 1, 2, false)] {
        let (mut driver, mut queue) = start(&ram, false);
        driver.add(&[Buffer::readable(Gpa(gpa), len)]);
        driver.kick();
        assert_eq!(queue.pop().is_ok(), good, "{len} bytes at {gpa:#x}");
    }
}

#[test]
fn indirect_tables_must_be_negotiated() {
    let (mut driver, mut queue) = start(&ram(RAM), false);
    let head = driver.add_indirect(Gpa(TABLE), &[Buffer::readable(Gpa(DATA), 1)]);
    driver.kick();
    assert_eq!(queue.pop(), Err(QueueError::IndirectUnasked { head }));
}

#[test]
fn a_chain_ends_with_its_indirect_table() {
    let ring = [descriptor(TABLE, 16, INDIRECT | NEXT, 1), descriptor(DATA, 1, 0, 0)];
    let table = [descriptor(DATA, 1, 0, 0)];
    assert_eq!(popped_indirect(&ring, &table), Err(QueueError::IndirectNext { head: 0 }));
}

#[test]
fn indirect_tables_do_not_nest() {
    let ring = [descriptor(TABLE, 32, INDIRECT, 0)];
    let nested = Err(QueueError::IndirectNested { head: 0 });
    assert_eq!(popped_indirect(&ring, &[descriptor(TABLE, 16, INDIRECT, 0)]), nested);
    let table = [descriptor(DATA, 1, NEXT, 1), descriptor(TABLE, 16, INDIRECT, 0)];
    assert_eq!(popped_indirect(&ring, &table), nested);
}

#[test]
fn an_indirect_table_holds_whole_descriptors_and_not_too_many() {
    let table = [descriptor(DATA, 1, 0, 0)];
    for len in [0, 1, 15, 17, 16 * 32769] {
        let ring = [descriptor(TABLE, len, INDIRECT, 0)];
        assert_eq!(popped_indirect(&ring, &table), Err(QueueError::IndirectLen { head: 0, len }));
    }
    assert_eq!(popped_indirect(&[descriptor(TABLE, 16 * 32768, INDIRECT, 0)], &table), Ok(0));
}

#[test]
fn an_indirect_table_must_be_ram() {
    for (addr, len) in [(RAM, 16), (RAM - 16, 32), (u64::MAX, 16)] {
        let expected = Err(QueueError::Buffer { head: 0, gpa: Gpa(addr), len });
        assert_eq!(popped(&[descriptor(addr, len, INDIRECT, 0)]), expected);
    }
    // Sixteen zero bytes at the end of RAM are an empty readable buffer.
    assert_eq!(popped(&[descriptor(RAM - 16, 16, INDIRECT, 0)]), Ok(0));
}

#[test]
fn after_an_error_the_queue_stays_dead_but_gives_back_what_it_took() {
    let (mut driver, mut queue) = start(&ram(RAM), false);
    let good = driver.add(&[Buffer::writable(Gpa(DATA), 8)]);
    driver.offer(SIZE);
    driver.add(&[Buffer::readable(Gpa(DATA), 1)]);
    driver.kick();
    assert_eq!(queue.pop().unwrap().unwrap().head, good);
    let error = QueueError::Index { index: SIZE, count: SIZE.into() };
    assert_eq!(queue.pop(), Err(error));
    assert_eq!(queue.pop(), Err(error));
    assert!(!queue.enable_kicks(), "or the worker would spin");
    assert_eq!(queue.state().next_avail, 1, "it stands at the bad chain");
    queue.push_used(good, 8);
    assert!(queue.publish());
    assert_eq!(driver.take_used(), Some((good, 8)));
}

#[test]
fn errors_name_the_rule_its_section_and_the_place() {
    let message = popped(&[descriptor(DATA, 1, NEXT, 0)]).unwrap_err().to_string();
    assert_eq!(message, "The chain at descriptor 0 loops (virtio 1.2, 2.7.5.2)");
    let layout = QueueLayout { size: 4, descriptors: Gpa(0), avail: Gpa(0x41), used: Gpa(0x80) };
    let result = VirtQueue::new(&ram(RAM), &layout, QueueFeatures::default(), QueueState::default());
    let expected = "The available ring is misplaced (virtio 1.2, 2.7): 0x41 is not aligned to 2 bytes";
    assert_eq!(result.unwrap_err().to_string(), expected);
}
