//! States from a damaged file: refused, or harmless. Never a panic, and the device works after a reset in any case.
//!
//! ```text
//!   any numbers, some near the truth --> TransportState --> restore --refused--> the device is as new
//!                                                             '----- taken ----> resume, kick, pause, reset --> serves
//! ```

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use crate::common::card::{CONFIG, Peer};
use crate::common::*;
use axvm_arch::Gpa;
use axvm_console::Port;
use axvm_memory::{GuestRam, RamConfig};
use axvm_virtio::agent_port::{AgentPort, AgentPortHost};
use axvm_virtio::balloon::{Balloon, BalloonConfig, Statistics};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::console::Console;
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::net::{Link, LinkKind, MAX_FRAME, MIN_FRAME, Net, NetHandle};
use axvm_virtio::queue::{QueueLayout, QueueState};
use axvm_virtio::rng::Rng;
use axvm_virtio::state::*;
use axvm_virtio::testing::{Buffer, FakeDriver};
use axvm_virtio::vsock::{PathConnector, Vsock, VsockHost};
use proptest::prelude::*;

/// One for each property: they run side by side.
static RAM: [LazyLock<Arc<GuestRam>>; 2] = [const { LazyLock::new(ram) }; 2];
static IMAGE: LazyLock<(tempfile::NamedTempFile, Arc<DiskImage>)> = LazyLock::new(|| {
    let file = Disk::file();
    let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    (file, image)
});

fn ram() -> Arc<GuestRam> {
    GuestRam::allocate(&RamConfig::new(32 << 20)).unwrap()
}

/// The devices, by number: each with its queues.
fn device(kind: usize) -> (Box<dyn VirtioDevice>, usize) {
    match kind {
        0 => (Box::new(Block::new(IMAGE.1.clone())), 1),
        1 => (Box::new(Console::new(Port::new().unwrap())), 2),
        2 => (Box::new(Rng::default()), 1),
        3 => {
            let (ours, theirs) = Peer::pair(LinkKind::Stream);
            // It takes what the card sends, for as long as the card has it.
            // Left open, or the link would be at its end.
            std::mem::forget(theirs);
            let link = Link::new(LinkKind::Stream, ours).unwrap();
            (Box::new(Net::new(NetHandle::new(link).unwrap(), CONFIG)), 2)
        }
        4 => (Box::new(Balloon::new(BalloonConfig { deflate_on_oom: true, free_page_reporting: true })), 5),
        5 => (Box::new(socket_device()), 3),
        _ => (Box::new(agent_port()), 4),
    }
}

/// No client finds it.
fn agent_port() -> AgentPort {
    let directory = tempfile::TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.path().join("a")).unwrap();
    AgentPort::new(&AgentPortHost::new(listener).unwrap())
}

/// Nor this.
fn socket_device() -> Vsock {
    let directory = tempfile::TempDir::new().unwrap();
    let listener = UnixListener::bind(directory.path().join("v")).unwrap();
    Vsock::new(3, &VsockHost::new(listener, PathConnector::new(Path::new("/nowhere/v")).unwrap()).unwrap())
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..70_u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

/// An address in RAM, most often one that a ring can have.
fn address() -> impl Strategy<Value = Gpa> {
    prop_oneof![8 => (0..1000_u64).prop_map(|n| Gpa(0x10_0000 + n * 0x1000)), 1 => any::<u64>().prop_map(Gpa)]
}

prop_compose! {
    fn queue()(
        size in prop_oneof![6 => Just(8_u16), 1 => any::<u16>()],
        [descriptors, avail, used] in [address(), address(), address()],
        (ready, kicked) in any::<(bool, bool)>(),
        next_avail in any::<u16>(),
        in_flight in prop_oneof![8 => Just(0_u16), 1 => any::<u16>()],
    ) -> QueueSnapshot {
        let indices = QueueState { next_avail, next_used: next_avail.wrapping_sub(in_flight) };
        QueueSnapshot { layout: QueueLayout { size, descriptors, avail, used }, ready, indices, kicked }
    }
}

prop_compose! {
    fn reports()(
        interval_ms in number(),
        latest in proptest::option::of(number()),
        known_age_ms in proptest::option::of(number()),
    ) -> ReportsState {
        let statistics = Statistics { free_memory: latest, ..Statistics::default() };
        let latest = latest.map(|age_ms| SavedReport { statistics, age_ms });
        ReportsState { interval_ms, latest, known_age_ms }
    }
}

prop_compose! {
    fn net_state()(
        mac in prop_oneof![8 => Just(CONFIG.mac), 1 => any::<[u8; 6]>()],
        mtu in prop_oneof![8 => Just(CONFIG.mtu), 1 => any::<Option<u16>>()],
        (wanted, up, missed) in any::<(bool, bool, bool)>(),
        (chosen_mac, active) in (any::<[u8; 6]>(), prop_oneof![8 => Just(1), 1 => any::<u16>()]),
        offloads in prop_oneof![8 => Just(0), 1 => any::<u64>()],
        pairs in prop_oneof![8 => Just(1), 1 => 0..4_usize],
        lengths in proptest::collection::vec(frame_len(), 0..4),
        unsent in proptest::option::of(frame_len()),
        bucket in bucket(),
    ) -> DeviceState {
        let [received, unsent] = [lengths, unsent.into_iter().collect()]
            .map(|lengths: Vec<usize>| lengths.into_iter().map(|len| Frame(vec![0x5a; len])).collect::<Vec<_>>());
        let pairs = vec![PairState { received, unsent: unsent.into_iter().next() }; pairs];
        let (rx, tx) = (LimiterState { bytes: bucket, ops: None }, LimiterState { bytes: None, ops: bucket });
        DeviceState::Net(Box::new(NetState {
            mac,
            mtu,
            chosen_mac,
            active,
            offloads,
            wanted,
            up,
            missed,
            rx,
            tx,
            pairs,
        }))
    }
}

/// Of a rate that is no matter here, or none.
fn bucket() -> impl Strategy<Value = Option<BucketState>> {
    let tokens = prop_oneof![8 => -(1_i64 << 20)..1 << 20, 1 => any::<i64>()];
    let refill_ms = prop_oneof![8 => Just(1), 1 => any::<u64>()];
    let state = (refill_ms, 0..3_u64, tokens).prop_map(|(refill_ms, burst, tokens)| {
        let size = if refill_ms == 1 { 1 << 20 } else { 0 };
        BucketState { size, refill_ms, one_time_burst: 1, burst, tokens }
    });
    proptest::option::of(state)
}

fn frame_len() -> impl Strategy<Value = usize> {
    prop_oneof![8 => MIN_FRAME..2000, 1 => Just(MAX_FRAME), 1 => Just(MAX_FRAME + 1), 1 => 0..MIN_FRAME]
}

fn device_state(kind: usize) -> BoxedStrategy<DeviceState> {
    let size = prop_oneof![8 => Just(Disk::SIZE), 1 => any::<u64>()];
    match kind {
        0 => (size, any::<bool>(), bucket())
            .prop_map(|(size, writeback, bucket)| {
                let rate = LimiterState { bytes: bucket, ops: bucket };
                DeviceState::Block(BlockState { size, block_size: 512, writeback, missed: !writeback, rate })
            })
            .boxed(),
        1 => (number(), any::<(u16, u16, u16, bool)>())
            .prop_map(|(sent, (at, told_columns, told_rows, had_output))| {
                DeviceState::Console(ConsoleState { sent, at, told_columns, told_rows, had_output })
            })
            .boxed(),
        2 => Just(DeviceState::Entropy(Default::default())).boxed(),
        3 => net_state().boxed(),
        4 => (number(), any::<(u32, u32, bool)>(), reports())
            .prop_map(|(target, (actual_pages, poison, missed), reports)| {
                let target_pages = target as u32;
                DeviceState::Balloon(Box::new(BalloonState { target_pages, actual_pages, poison, missed, reports }))
            })
            .boxed(),
        6 => (any::<[bool; 8]>(), number(), any::<u16>())
            .prop_map(|([add_owed, name_owed, ready, open, closed, told_open, talking, ending], sent, at)| {
                DeviceState::AgentPort(AgentPortState {
                    add_owed,
                    name_owed,
                    ready,
                    open,
                    closed,
                    told_open,
                    talking,
                    ending,
                    sent,
                    at,
                })
            })
            .boxed(),
        _ => (1_u32 << 30..u32::MAX, any::<u32>(), 0..8_u32)
            .prop_map(|(good, any, rare)| {
                DeviceState::Vsock(VsockState { next_port: if rare == 0 { any } else { good } })
            })
            .boxed(),
    }
}

fn state(kind: usize) -> impl Strategy<Value = TransportState> {
    let queues = prop_oneof![20 => Just(device(kind).1), 1 => 0..6_usize];
    let status = prop_oneof![6 => Just(LIVE), 2 => Just(LIVE | NEEDS_RESET), 2 => Just(AGREED), 1 => any::<u32>()];
    let features = prop_oneof![8 => Just(feature::VERSION_1 | feature::EVENT_IDX), 1 => any::<u64>()];
    let queues = queues.prop_flat_map(|count| proptest::collection::vec(queue(), count));
    let device = prop_oneof![20 => device_state(kind), 1 => (0..7_usize).prop_flat_map(device_state)];
    (status, features, any::<[u32; 4]>(), 0..5_u32, queues, device).prop_map(
        |(status, driver_features, selectors, interrupt_status, queues, device)| {
            let [device_features_sel, driver_features_sel, queue_sel, config_generation] = selectors;
            TransportState {
                status,
                driver_features,
                device_features_sel,
                driver_features_sel,
                queue_sel,
                interrupt_status,
                config_generation,
                vectors: None,
                queues,
                device,
            }
        },
    )
}

/// The device serves a driver of its own, after a reset.
fn check_usable(machine: &Machine) {
    let mut driver = FakeDriver::new(&machine.ram, RING, 8, false);
    machine.bring_up(feature::VERSION_1, &driver.layout());
    assert_eq!(machine.status(), LIVE);
    if let DeviceState::Entropy(_) = device_of(machine) {
        driver.add(&[Buffer::writable(DATA, 16)]);
        driver.kick();
        machine.set(reg::QUEUE_NOTIFY, 0);
        assert!(wait_until(|| driver.take_used().is_some()));
    }
}

fn device_of(machine: &Machine) -> DeviceState {
    machine.pause();
    let device = machine.transport.state().unwrap().device;
    machine.resume();
    device
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_damaged_state_is_refused_or_harmless((kind, state) in (0..7_usize).prop_flat_map(|kind| (Just(kind), state(kind)))) {
        RAM[0].write(Gpa(0), &[0; 8 << 20]).unwrap();
        let machine = Machine::over(RAM[0].clone(), device(kind).0);
        machine.pause();
        let fresh = machine.transport.state();
        let text = serde_json::to_string(&state).unwrap();
        let state: TransportState = serde_json::from_str(&text).unwrap();
        match machine.transport.restore(&state) {
            Ok(()) => {
                let taken = machine.transport.state().unwrap();
                prop_assert_eq!(&taken.queues, &state.queues);
                prop_assert_eq!(taken.status, state.status);
            }
            Err(error) => {
                prop_assert!(!error.source.to_string().is_empty());
                prop_assert_eq!(machine.transport.state(), fresh);
            }
        }
        machine.resume();
        (0..5).for_each(|queue| machine.set(reg::QUEUE_NOTIFY, queue));
        machine.pause();
        machine.resume();
        check_usable(&machine);
    }
}

/// What a driver may do to the registers, sensible or not.
#[derive(Clone, Copy, Debug)]
enum Access {
    Set(u64, u32),
    Negotiate(u32, u64),
    /// A queue and its size, with rings where rings can be.
    Enable(u32, u16),
    Pause,
    Resume,
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![
        4 => (0..0x40_u64, prop_oneof![3 => 0..20_u32, 1 => any::<u32>()]).prop_map(|(n, value)| Access::Set(4 * n, value)),
        3 => (0..6_u32, any::<u64>()).prop_map(|(steps, features)| Access::Negotiate(steps, features)),
        3 => (0..3_u32, prop_oneof![4 => Just(8_u16), 1 => any::<u16>()]).prop_map(|(queue, size)| Access::Enable(queue, size)),
        1 => Just(Access::Pause),
        1 => Just(Access::Resume),
    ]
}

fn perform(machine: &Machine, access: Access) {
    match access {
        Access::Set(offset, value) => machine.set(offset, value),
        Access::Negotiate(steps, features) => {
            machine.set(reg::STATUS, 0);
            machine.set(reg::STATUS, FOUND);
            machine.accept((features & machine.offered()) | feature::VERSION_1);
            [AGREED, LIVE].iter().take(steps as usize / 2).for_each(|&status| machine.set(reg::STATUS, status));
        }
        Access::Enable(queue, size) => {
            let base = RING.0 + 0x1_0000 * u64::from(queue);
            let [descriptors, avail, used] = [0, 0x4000, 0x8000].map(|offset| Gpa(base + offset));
            machine.enable_queue(queue, &QueueLayout { size, descriptors, avail, used });
        }
        Access::Pause => machine.pause(),
        Access::Resume => machine.resume(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_state_that_a_driver_leads_to_can_be_restored(
        kind in 0..6_usize,
        accesses in proptest::collection::vec(access(), 0..30),
    ) {
        RAM[1].write(Gpa(0), &[0; 8 << 20]).unwrap();
        let old = Machine::over(RAM[1].clone(), device(kind).0);
        accesses.into_iter().for_each(|access| perform(&old, access));
        old.pause();
        let state = old.transport.state().unwrap();
        let new = Machine::over(RAM[1].clone(), device(kind).0);
        new.pause();
        let restored = new.transport.restore(&state);
        prop_assert!(restored.is_ok(), "{restored:?}: {state:?}");
        prop_assert_eq!(new.transport.state(), Some(state));
        new.resume();
        check_usable(&new);
    }
}

#[test]
fn text_that_is_no_state_is_refused() {
    let machine = Machine::new(Box::new(Rng::default()));
    machine.pause();
    let state = serde_json::to_value(machine.transport.state().unwrap()).unwrap();
    let fields: Vec<String> = state.as_object().unwrap().keys().cloned().collect();
    for field in &fields {
        let mut without = state.clone();
        without.as_object_mut().unwrap().remove(field);
        assert!(serde_json::from_value::<TransportState>(without).is_err(), "{field} is missing");
    }
    let mut more = state.clone();
    more["colour"] = 1.into();
    assert!(serde_json::from_value::<TransportState>(more).unwrap_err().to_string().contains("colour"));
    assert!(serde_json::from_value::<TransportState>(state).is_ok());
}
