//! A device carried into another machine in the middle of its work: nothing is lost, nothing is done twice.
//!
//! ```text
//!   old transport --pause, state--> JSON --restore--> new transport, paused --resume--> goes on
//!        RAM and image, or port, are the same; the driver knows nothing
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use crate::common::line::*;
use crate::common::*;
use axvm_arch::Gpa;
use axvm_virtio::balloon::{Balloon, BalloonConfig};
use axvm_virtio::block::{Block, DiskConfig, DiskImage};
use axvm_virtio::console::Console;
use axvm_virtio::device::{VirtioDevice, feature};
use axvm_virtio::rng::Rng;
use axvm_virtio::state::DeviceState;
use axvm_virtio::testing::{Buffer, FakeDriver};

const MOVES: u64 = 20;
const WRITEBACK: u64 = reg::CONFIG + 32;
const ALL: BalloonConfig = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };

/// Takes back all that is returned, and says how many more there are to come.
fn collect(driver: &mut FakeDriver, in_flight: &mut HashMap<u16, u64>, mut seen: impl FnMut(u64, u32)) -> usize {
    while let Some((head, written)) = driver.take_used() {
        seen(in_flight.remove(&head).expect("each request comes back once"), written);
    }
    in_flight.len()
}

#[test]
fn a_disk_goes_on_in_another_machine() {
    for features in [0, feature::EVENT_IDX] {
        let file = Disk::file();
        let mut disk = Disk::open(&DiskConfig::new(file.path()), features | 1 << 9 | 1 << 11);
        assert_eq!(disk.machine.get(WRITEBACK) & 1, 1);
        axvm_devices::BusDevice::write(&disk.machine.transport, WRITEBACK, &[0]);
        let place = |n: u64, offset: u64| Gpa(DATA.0 + n % 16 * 4096 + offset);
        let mut in_flight = HashMap::new();
        for n in 0..16 * MOVES {
            let mut header = [0; 16];
            (header[0], header[8]) = (OUT as u8, (n % 16) as u8);
            disk.machine.ram.write(place(n, 0), &header).unwrap();
            disk.machine.ram.write(place(n, 512), &[n as u8; 512]).unwrap();
            disk.machine.ram.write(place(n, 1024), &[UNTOUCHED]).unwrap();
            let [head, data] = [(0, 16), (512, 512)].map(|(at, len)| Buffer::readable(place(n, at), len));
            in_flight.insert(disk.driver.add(&[head, data, Buffer::writable(place(n, 1024), 1)]), n);
            disk.kick();
            if n % 16 == 15 {
                let image = disk.image.clone();
                disk.machine = disk.machine.carry(Box::new(Block::new(image)));
                disk.machine.resume();
                let answered = |n, written| {
                    assert_eq!(written, 1);
                    let disk = std::fs::read(file.path()).unwrap();
                    assert_eq!(disk[(n % 16) as usize * 512..][..512], [n as u8; 512]);
                };
                assert!(wait_until(|| collect(&mut disk.driver, &mut in_flight, answered) == 0));
            }
        }
        assert_eq!(disk.machine.get(WRITEBACK) & 1, 0, "the cache mode that the driver chose");
        disk.check_alive();
    }
}

#[test]
fn an_entropy_source_goes_on_in_another_machine() {
    let mut machine = Machine::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&machine.ram, RING, 64, true);
    machine.bring_up(feature::VERSION_1 | feature::EVENT_IDX, &driver.layout());
    let mut in_flight = HashMap::new();
    for n in 0..MOVES {
        for slot in 0..16 {
            in_flight.insert(driver.add(&[Buffer::writable(Gpa(DATA.0 + 4096 * slot), 4096)]), n);
        }
        if driver.kick() {
            machine.set(reg::QUEUE_NOTIFY, 0);
        }
        machine = machine.carry(Box::new(Rng::default()));
        machine.resume();
        assert!(wait_until(|| collect(&mut driver, &mut in_flight, |_, written| assert_eq!(written, 4096)) == 0));
    }
    assert_eq!(machine.status(), LIVE);
}

#[test]
fn a_half_sent_chain_of_a_console_goes_on_in_another_machine() {
    let mut line = Line::new(!0);
    line.port.resize(axvm_console::Size { columns: 80, rows: 25 });
    let text = text(400_000);
    line.print(&text);
    let mut got = Vec::new();
    for _ in 0..MOVES {
        assert!(wait_until(|| line.port.room() == 0 || got.len() + line.port.take(&mut got) >= text.len()));
        line.machine = line.machine.carry(Box::new(Console::new(line.port.clone())));
        line.port.take(&mut got);
        line.machine.resume();
    }
    assert!(wait_until(|| line.port.take(&mut got) == 0 && got.len() == text.len()), "{} bytes", got.len());
    assert!(got == text);
    assert_eq!(line.finish(TRANSMIT), 0);
    // The size was told to the old device's driver, which is the new one's.
    let state = line.machine.carry(Box::new(Console::new(line.port.clone()))).transport.state().unwrap().device;
    let DeviceState::Console(console) = state else { panic!("{state:?}") };
    assert_eq!((console.sent, console.told_columns, console.told_rows, console.had_output), (0, 80, 25, true));
    line.machine.resume();
    line.check_alive();
}

#[test]
fn a_balloon_goes_on_in_another_machine() {
    let balloon = Balloon::new(ALL);
    let mut target = balloon.target();
    let mut machine = Machine::new(Box::new(balloon));
    let mut inflate = FakeDriver::new(&machine.ram, RING, 64, false);
    let mut statistics = FakeDriver::new(&machine.ram, Gpa(RING.0 + 0x8000), 8, false);
    machine.agree(feature::VERSION_1 | 1 << 1);
    machine.enable_queue(0, &inflate.layout());
    machine.enable_queue(2, &statistics.layout());
    machine.set(reg::STATUS, LIVE);
    machine.set(reg::CONFIG + 4, 77);
    let report = |machine: &Machine, statistics: &mut FakeDriver, free: u64| {
        let bytes = [&4_u16.to_le_bytes()[..], &free.to_le_bytes()].concat();
        machine.ram.write(HEADER, &bytes).unwrap();
        statistics.add(&[Buffer::readable(HEADER, 10)]);
        statistics.kick();
        machine.set(reg::QUEUE_NOTIFY, 2);
    };
    report(&machine, &mut statistics, 5);
    let free =
        |target: &axvm_virtio::balloon::Target| target.statistics().and_then(|report| report.statistics.free_memory);
    assert!(wait_until(|| free(&target) == Some(5)));
    // What lies in the buffer that the device holds is no news.
    machine.ram.write(Gpa(HEADER.0 + 2), &9_u64.to_le_bytes()).unwrap();
    for n in 0..MOVES {
        let page = DATA.0 / 4096 + n;
        machine.ram.write(Gpa(page * 4096), &[0x5a; 4096]).unwrap();
        machine.ram.write(Gpa(HEADER.0 + 64), &(page as u32).to_le_bytes()).unwrap();
        inflate.add(&[Buffer::readable(Gpa(HEADER.0 + 64), 4)]);
        if inflate.kick() {
            machine.set(reg::QUEUE_NOTIFY, 0);
        }
        machine.pause();
        target.set_mib(n as u32).unwrap();
        let balloon = Balloon::new(ALL);
        target = balloon.target();
        machine = machine.carry(Box::new(balloon));
        assert_eq!(machine.get(reg::INTERRUPT_STATUS) & 2, 0);
        machine.resume();
        assert!(machine.interrupted(), "the driver is told of the target that changed in the pause");
        assert_eq!(machine.get(reg::INTERRUPT_STATUS) & 2, 2);
        machine.set(reg::INTERRUPT_ACK, 3);
        assert!(wait_until(|| inflate.take_used().is_some()));
        assert_eq!(machine.bytes(Gpa(page * 4096), 4096), [0; 4096]);
        assert_eq!((target.mib(), target.actual_pages(), free(&target)), (n as u32, 77, Some(5)));
    }
    target.set_statistics_interval(Duration::from_millis(10));
    let balloon = Balloon::new(ALL);
    let moved = balloon.target();
    let machine = machine.carry(Box::new(balloon));
    assert_eq!(moved.statistics_interval(), Duration::from_millis(10));
    machine.resume();
    assert!(wait_until(|| statistics.take_used().is_some()), "the buffer comes back when it is time");
    report(&machine, &mut statistics, 8);
    assert!(wait_until(|| free(&moved) == Some(8)));
}

#[test]
fn a_driver_in_the_middle_of_its_setup_finds_every_register_as_it_left_it() {
    let old = Machine::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&old.ram, RING, 8, false);
    old.agree(feature::VERSION_1);
    old.enable_queue(0, &driver.layout());
    [(reg::DEVICE_FEATURES_SEL, 1), (reg::DRIVER_FEATURES_SEL, 9), (reg::QUEUE_SEL, 5)]
        .into_iter()
        .for_each(|(offset, value)| old.set(offset, value));
    old.set(reg::QUEUE_NOTIFY, 0);
    let new = old.carry(Box::new(Rng::default()));
    let state = new.transport.state().unwrap();
    assert_eq!((state.device_features_sel, state.driver_features_sel, state.queue_sel), (1, 9, 5));
    assert_eq!((state.queues[0].layout, state.queues[0].kicked, state.status), (driver.layout(), true, AGREED));
    new.resume();
    driver.add(&[Buffer::writable(DATA, 16)]);
    driver.kick();
    new.set(reg::STATUS, LIVE);
    assert!(wait_until(|| driver.take_used().is_some()));
}

#[test]
fn an_interrupt_that_was_not_acknowledged_comes_again() {
    let old = Machine::new(Box::new(Rng::default()));
    let mut driver = FakeDriver::new(&old.ram, RING, 8, false);
    old.bring_up(feature::VERSION_1, &driver.layout());
    driver.add(&[Buffer::writable(DATA, 16)]);
    driver.kick();
    old.set(reg::QUEUE_NOTIFY, 0);
    assert!(old.interrupted());
    let new = old.carry(Box::new(Rng::default()));
    assert_eq!(new.get(reg::INTERRUPT_STATUS), 1);
    assert!(new.irq.event_fd().read().is_err(), "not before it goes on");
    new.resume();
    assert!(new.interrupted());
}

#[test]
fn a_device_that_waits_for_a_reset_still_does_in_another_machine() {
    let mut disk = Disk::new(Disk::file().path());
    disk.driver.add(&[Buffer::readable(DATA, 16)]);
    disk.kick();
    assert!(wait_until(|| disk.machine.status() == LIVE | NEEDS_RESET));
    let image = disk.image.clone();
    disk.machine = disk.machine.carry(Box::new(Block::new(image)));
    disk.machine.resume();
    disk.driver.add(&[Buffer::writable(DATA, 16)]);
    disk.kick();
    sleep(Duration::from_millis(20));
    assert_eq!((disk.machine.status(), disk.driver.take_used()), (LIVE | NEEDS_RESET, None));
    disk.driver = FakeDriver::new(&disk.machine.ram, RING, 64, false);
    disk.machine.bring_up(feature::VERSION_1, &disk.driver.layout());
    disk.check_alive();
}

/// The refusal of what `change` makes of the state of a running `old` device, by `new`, which is unharmed.
fn refusal(old: Machine, new: Box<dyn VirtioDevice>, change: impl FnOnce(&mut serde_json::Value)) -> String {
    old.pause();
    let mut state = serde_json::to_value(old.transport.state().unwrap()).unwrap();
    change(&mut state);
    let new = Machine::over(old.ram.clone(), new);
    new.pause();
    let fresh = new.transport.state();
    let error = new.transport.restore(&serde_json::from_value(state).unwrap()).unwrap_err();
    assert_eq!(new.transport.state(), fresh, "a refusal changes nothing");
    assert_eq!(error.to_string(), "Cannot restore vda from its saved state");
    error.source.to_string()
}

fn running_rng() -> Machine {
    let machine = Machine::new(Box::new(Rng::default()));
    let driver = FakeDriver::new(&machine.ram, RING, 8, false);
    machine.bring_up(feature::VERSION_1, &driver.layout());
    machine
}

#[test]
fn a_state_that_does_not_fit_is_refused_with_the_reason() {
    type Change = fn(&mut serde_json::Value);
    let changes: [(Change, &str); 8] = [
        (
            |state| state["device"] = serde_json::json!({"console": {"sent": 0, "at": 0, "told_columns": 0, "told_rows": 0, "had_output": false}}),
            "another kind of device (console) than this one (entropy source)",
        ),
        (|state| state["queues"] = serde_json::json!([]), "The number of queues is 1 here, but was 0"),
        (
            |state| state["driver_features"] = (1_u64 << 32 | 1).into(),
            "feature bits 0x1, which this device does not offer",
        ),
        (|state| state["status"] = 13.into(), "The device status of 0xd is not possible"),
        (|state| state["interrupt_status"] = 4.into(), "The interrupt status of 0x4 is not possible"),
        (|state| state["queues"][0]["indices"]["next_avail"] = 3.into(), "Queue 0 has 3 requests in flight"),
        (|state| state["queues"][0]["layout"]["size"] = 128.into(), "Queue 0 has 128 entries, at most 64 are possible"),
        (|state| state["queues"][0]["layout"]["used"] = (1_u64 << 40).into(), "Queue 0 is not usable"),
    ];
    for (change, expected) in changes {
        let reason = refusal(running_rng(), Box::new(Rng::default()), change);
        assert!(reason.contains(expected), "{reason:?} is not {expected:?}");
    }
    let file = Disk::file();
    let disk = Disk::new(file.path());
    let other = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(other.path(), [0; 1024]).unwrap();
    let other = DiskImage::open(&DiskConfig::new(other.path())).unwrap();
    let reason = refusal(disk.machine, Box::new(Block::new(Arc::clone(&other))), |_| ());
    assert!(reason.contains("size of the disk in bytes is 1024 here, but was 4194304"), "{reason}");
    let balloon = || Box::new(Balloon::new(ALL));
    let reason =
        refusal(Machine::new(balloon()), balloon(), |state| state["device"]["balloon"]["target_pages"] = 8193.into());
    assert!(reason.contains("target"), "{reason}");
    let console = || Box::new(Console::new(axvm_console::Port::new().unwrap()));
    let reason =
        refusal(Machine::new(console()), console(), |state| state["device"]["console"]["sent"] = u64::MAX.into());
    assert!(reason.contains("bytes sent"), "{reason}");
}

#[test]
fn only_a_paused_device_that_no_driver_touched_takes_a_state() {
    let old = running_rng();
    old.pause();
    let state = old.transport.state().unwrap();
    assert!(old.transport.restore(&state).unwrap_err().source.to_string().contains("in use"));
    let new = Machine::new(Box::new(Rng::default()));
    assert!(new.transport.restore(&state).is_err(), "it is not paused");
}
