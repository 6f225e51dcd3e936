//! The ring against an independent judge: rust-vmm's `virtio-queue`, on the same random rings.
//!
//! Whatever the memory holds, both must see the same chains, ask for the same interrupts and kicks, and
//! leave the same used ring. The judge is laxer, so a chain that we refuse must either have been cut
//! short by it too, or break a rule that it does not check, and those are all:
//!
//! * a buffer outside RAM, or a readable one after a writable one (the judge leaves both to the device);
//! * an indirect table that lies only partly in RAM, or has more than 32768 entries;
//! * INDIRECT together with NEXT;
//! * more chains in flight than the queue has entries (the judge bounds one look, not the sum).
//!
//! And we accept two things that it does not: a chain of exactly 2^32 bytes, and `NO_INTERRUPT`.

use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::queue::{Chain, QueueError, QueueFeatures, QueueLayout, QueueState, VirtQueue};
use axvm_virtio::testing::{Buffer, FakeDriver, INDIRECT, NEXT, RawDescriptor, WRITE};
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};

const RAM: u64 = 2 << 20;
const RING: Gpa = Gpa(0x1000);
const TABLE: u64 = 0x8003;
const DATA: u64 = 0x1_0000;

fn ram() -> Arc<GuestRam> {
    GuestRam::allocate(&RamConfig::new(RAM)).unwrap()
}

fn judge(layout: &QueueLayout, event_idx: bool, index: u16) -> Queue {
    let mut queue = Queue::new(layout.size).unwrap();
    let halves = |gpa: Gpa| (Some(gpa.0 as u32), Some((gpa.0 >> 32) as u32));
    let ((low, high), (avail_low, avail_high)) = (halves(layout.descriptors), halves(layout.avail));
    queue.set_desc_table_address(low, high);
    queue.set_avail_ring_address(avail_low, avail_high);
    let (low, high) = halves(layout.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(event_idx);
    queue.set_next_avail(index);
    queue.set_next_used(index);
    queue.set_ready(true);
    queue
}

/// A descriptor that is often good, and bad in every way now and then.
fn descriptor(indirect: u32) -> impl Strategy<Value = RawDescriptor> {
    let addr = prop_oneof![
        40 => DATA..DATA + 0x100,
        1 => RAM - 40..RAM + 8,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![40 => 0..40u32, 1 => any::<u32>()];
    let flags = prop_oneof![
        10 => Just(NEXT), 6 => Just(0), 4 => Just(NEXT | WRITE), 4 => Just(WRITE),
        1 => any::<u16>().prop_map(|flags| flags & !INDIRECT),
    ];
    let next = prop_oneof![20 => 0..8u16, 1 => any::<u16>()];
    let buffer = (addr, len, flags, next).prop_map(|(addr, len, flags, next)| RawDescriptor { addr, len, flags, next });
    let table = (prop_oneof![8 => Just(TABLE), 1 => RAM - 40..RAM], prop_oneof![12 => 0..7u32, 1 => 32760..32780u32])
        .prop_flat_map(|(addr, count)| (Just(addr), prop_oneof![12 => Just(count * 16), 1 => any::<u32>()]))
        .prop_flat_map(|(addr, len)| (Just(addr), Just(len), prop_oneof![6 => Just(0), 1 => 0..4u16]))
        .prop_map(|(addr, len, flags)| RawDescriptor { addr, len, flags: flags | INDIRECT, next: 0 });
    prop_oneof![12 => buffer, indirect => table]
}

/// Whether what the judge yielded is a chain that the standard allows.
fn is_legal(ram: &GuestRam, seen: &[Descriptor]) -> bool {
    let complete = seen.last().is_some_and(|last| !last.has_next());
    let in_ram = |d: &Descriptor| d.len() == 0 || ram.range(Gpa(d.addr().0), d.len().into()).is_ok();
    complete && seen.iter().all(in_ram) && seen.is_sorted_by_key(|d| d.is_write_only())
}

/// Whether we refuse on purpose what the judge lets pass.
fn is_stricter(ram: &GuestRam, error: &QueueError) -> bool {
    match *error {
        QueueError::IndirectNext { .. } => true,
        QueueError::IndirectLen { len, .. } => len > 16 * 32768,
        QueueError::Buffer { gpa, len, .. } => ram.range(gpa, len.into()).is_err(),
        _ => false,
    }
}

fn assert_same(chain: &Chain<'_>, head: u16, seen: &[Descriptor]) {
    let expected = |writable| {
        let part = seen.iter().filter(move |d| d.len() > 0 && d.is_write_only() == writable);
        part.map(|d| (d.addr().0, d.len() as usize)).collect::<Vec<_>>()
    };
    let ours = |ranges: &[axvm_memory::GuestRange]| {
        ranges.iter().map(|range| (range.gpa().0, range.len())).collect::<Vec<_>>()
    };
    assert_eq!(chain.head, head);
    assert_eq!(ours(chain.readable), expected(false));
    assert_eq!(ours(chain.writable), expected(true));
    let sum = |ranges: &[axvm_memory::GuestRange]| ranges.iter().map(|range| range.len() as u64).sum::<u64>();
    assert_eq!((chain.readable_len, chain.writable_len), (sum(chain.readable), sum(chain.writable)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_see_the_same_chains_in_any_memory(
        bits in 0..4u32,
        entries in prop::collection::vec(descriptor(4), 8),
        table in prop::collection::vec(descriptor(1), 8),
        heads in prop::collection::vec(prop_oneof![12 => 0..8u16, 1 => any::<u16>()], 8),
        start in prop_oneof![Just(0), 65528..=65535u16],
        ahead in prop_oneof![12 => 0..9u16, 1 => any::<u16>()],
    ) {
        let (ram, size) = (ram(), 1 << bits);
        let mut driver = FakeDriver::new(&ram, RING, size, false);
        driver.start_at(start);
        for (index, entry) in entries.iter().take(size.into()).enumerate() {
            driver.write_descriptor(index as u16, *entry);
        }
        let bytes: Vec<_> = table.iter().flat_map(|entry| entry.to_bytes()).collect();
        ram.write(Gpa(TABLE), &bytes).unwrap();
        for &head in heads.iter().take(size.into()) {
            driver.offer(head);
        }
        driver.set_avail_idx(start.wrapping_add(ahead));

        let features = QueueFeatures { event_idx: false, indirect: true };
        let state = QueueState { next_avail: start, next_used: start };
        let mut ours = VirtQueue::new(&ram, &driver.layout(), features, state).unwrap();
        let mut theirs = judge(&driver.layout(), false, start);
        if let Err(error) = theirs.iter(ram.memory()) {
            prop_assert!(matches!(ours.pop(), Err(QueueError::AvailIndex { .. })), "{error}");
            return Ok(());
        }
        loop {
            let next = theirs.pop_descriptor_chain(ram.memory());
            match (ours.pop(), next) {
                (Ok(None), None) => break,
                (Ok(Some(chain)), Some(next)) => {
                    let (head, seen) = (next.head_index(), next.collect::<Vec<_>>());
                    prop_assert!(is_legal(&ram, &seen), "accepted {chain:?}, saw {seen:?}");
                    assert_same(&chain, head, &seen);
                }
                (Err(error), Some(next)) => {
                    let seen = next.collect::<Vec<_>>();
                    prop_assert!(!is_legal(&ram, &seen) || is_stricter(&ram, &error), "{error}; saw {seen:?}");
                    break;
                }
                (ours, theirs) => panic!("we: {ours:?}, the judge: {theirs:?}"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_accept_good_chains_of_any_shape(
        readable in prop::collection::vec((DATA..RAM - 5000, 0..5000u32), 0..20),
        writable in prop::collection::vec((DATA..RAM - 5000, 0..5000u32), 1..20),
        indirect: bool,
    ) {
        let ram = ram();
        let mut driver = FakeDriver::new(&ram, RING, 64, false);
        let features = QueueFeatures { event_idx: false, indirect };
        let mut ours = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
        let mut theirs = judge(&driver.layout(), false, 0);
        let part = |lens: &[(u64, u32)], writable| {
            lens.iter().map(|&(gpa, len)| Buffer { gpa: Gpa(gpa), len, writable }).collect::<Vec<_>>()
        };
        let buffers = [part(&readable, false), part(&writable, true)].concat();
        let head = if indirect { driver.add_indirect(Gpa(TABLE), &buffers) } else { driver.add(&buffers) };
        driver.kick();
        let seen = theirs.pop_descriptor_chain(ram.memory()).unwrap().collect::<Vec<_>>();
        prop_assert_eq!(seen.len(), buffers.len());
        assert_same(&ours.pop().unwrap().unwrap(), head, &seen);
    }
}

/// What happens next to two queues in step.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The driver adds a chain.
    Add,
    /// The driver shows what it added.
    Kick,
    /// The device takes a chain.
    Pop,
    /// The device returns the oldest chain.
    Push(u32),
    /// The device publishes.
    Publish,
    /// The driver takes back a chain.
    Take,
    /// The driver asks for an interrupt at an entry some way from where it stands.
    UsedEvent(u16),
    /// The device asks for kicks.
    EnableKicks,
    /// The device asks for quiet.
    DisableKicks,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Add),
        2 => Just(Step::Kick),
        4 => Just(Step::Pop),
        4 => any::<u32>().prop_map(Step::Push),
        2 => Just(Step::Publish),
        4 => Just(Step::Take),
        2 => prop_oneof![0..6u16, 65530..=65535u16, any::<u16>()].prop_map(Step::UsedEvent),
        1 => Just(Step::EnableKicks),
        1 => Just(Step::DisableKicks),
    ]
}

/// A driver with its RAM and, on it, one of the two devices.
struct Side {
    ram: Arc<GuestRam>,
    driver: FakeDriver,
}

fn side(size: u16, event_idx: bool, start: u16) -> Side {
    let ram = ram();
    let mut driver = FakeDriver::new(&ram, RING, size, event_idx);
    driver.start_at(start);
    Side { ram, driver }
}

impl Side {
    fn used_ring(&self) -> Vec<u8> {
        let layout = self.driver.layout();
        let mut bytes = vec![0; 6 + 8 * usize::from(layout.size)];
        self.ram.read(layout.used, &mut bytes).unwrap();
        bytes
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_notify_alike_and_leave_the_same_used_ring(
        bits in 0..4u32,
        event_idx: bool,
        start in prop_oneof![Just(0), 65500..=65535u16],
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let size = 1 << bits;
        let mut sides = [side(size, event_idx, start), side(size, event_idx, start)];
        let layout = sides[0].driver.layout();
        let features = QueueFeatures { event_idx, indirect: false };
        let state = QueueState { next_avail: start, next_used: start };
        let mut ours = VirtQueue::new(&sides[0].ram, &layout, features, state).unwrap();
        let mut theirs = judge(&layout, event_idx, start);
        let (mut in_flight, mut pushed, mut taken) = (Vec::new(), Vec::new(), start);

        for step in steps {
            match step {
                Step::Add if sides[0].driver.free_count() > 0 => {
                    let heads = sides.each_mut().map(|side| side.driver.add(&[Buffer::writable(Gpa(DATA), 9)]));
                    prop_assert_eq!(heads[0], heads[1]);
                }
                Step::Kick => {
                    let wanted = sides.each_mut().map(|side| side.driver.kick());
                    prop_assert_eq!(wanted[0], wanted[1]);
                }
                Step::Pop => {
                    let head = ours.pop().unwrap().map(|chain| chain.head);
                    let other = theirs.pop_descriptor_chain(sides[1].ram.memory()).map(|chain| chain.head_index());
                    prop_assert_eq!(head, other);
                    in_flight.extend(head);
                }
                Step::Push(written) if !in_flight.is_empty() => {
                    let head = in_flight.remove(0);
                    ours.push_used(head, written);
                    pushed.push((head, written));
                }
                Step::Publish => {
                    // The judge shows each chain at once, so it gets them only now.
                    let memory = sides[1].ram.memory();
                    pushed.drain(..).for_each(|(head, written)| theirs.add_used(memory, head, written).unwrap());
                    let interrupt = ours.publish();
                    let expected = theirs.needs_notification(memory).unwrap();
                    if event_idx {
                        prop_assert_eq!(interrupt, expected);
                    }
                    prop_assert_eq!(sides[0].used_ring(), sides[1].used_ring());
                }
                Step::Take => {
                    let back = sides.each_mut().map(|side| side.driver.take_used());
                    prop_assert_eq!(back[0], back[1]);
                    taken = taken.wrapping_add(back[0].is_some().into());
                }
                Step::UsedEvent(ahead) if event_idx => {
                    sides.iter_mut().for_each(|side| side.driver.set_used_event(taken.wrapping_add(ahead)));
                }
                Step::EnableKicks => {
                    let more = theirs.enable_notification(sides[1].ram.memory()).unwrap();
                    prop_assert_eq!(ours.enable_kicks(), more);
                }
                Step::DisableKicks => {
                    ours.disable_kicks();
                    theirs.disable_notification(sides[1].ram.memory()).unwrap();
                }
                Step::Add | Step::Push(_) | Step::UsedEvent(_) => {}
            }
        }
    }
}

/// The strategy above must not miss what it is there for.
#[test]
fn random_rings_reach_every_rule_and_many_good_chains() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let (mut good, mut indirect, mut kinds) = (0, 0, std::collections::BTreeSet::new());
    for _ in 0..2000 {
        let (ram, size) = (ram(), 8);
        let mut driver = FakeDriver::new(&ram, RING, size, false);
        let mut sample = |links| descriptor(links).new_tree(&mut runner).unwrap().current();
        let entries: Vec<_> = (0..size).map(|_| sample(4)).collect();
        let table: Vec<_> = (0..size).flat_map(|_| sample(1).to_bytes()).collect();
        (0..size).for_each(|index| driver.write_descriptor(index, entries[usize::from(index)]));
        ram.write(Gpa(TABLE), &table).unwrap();
        driver.offer(0);
        driver.kick();
        let features = QueueFeatures { event_idx: false, indirect: true };
        let mut queue = VirtQueue::new(&ram, &driver.layout(), features, QueueState::default()).unwrap();
        match queue.pop() {
            Ok(chain) => {
                let chain = chain.unwrap();
                good += usize::from(chain.readable.len() + chain.writable.len() > 2);
                indirect += usize::from(entries[0].flags & (INDIRECT | NEXT | WRITE) == INDIRECT);
            }
            Err(error) => {
                kinds.insert(format!("{error:?}").split(' ').next().unwrap().to_owned());
            }
        }
    }
    assert!(good > 40 && indirect > 100, "{good} chains of three or more, {indirect} indirect ones");
    let expected = ["Buffer", "Index", "IndirectLen", "IndirectNested", "IndirectNext", "Loop", "Order"];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}
