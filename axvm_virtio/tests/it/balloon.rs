//! The balloon at work: memory that really goes back to the host, and drivers that lie.

use crate::common;

use axvm_arch::Gpa;
use axvm_devices::BusDevice;
use axvm_virtio::balloon::{Balloon, BalloonConfig, BalloonError, Target};
use axvm_virtio::device::feature;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;

const MIB: u64 = 1 << 20;
const PAGE: u64 = 4096;
/// Where pages to give back lie, and how many bytes of them are in use.
const PAGES: Gpa = Gpa(8 << 20);
const IN_USE: u64 = 16 * MIB;
const FULL: u8 = 0x5a;

const INFLATE: u32 = 0;
const DEFLATE: u32 = 1;
/// The reporting queue: what Linux calls it, what the standard calls it.
const REPORTING: [u32; 2] = [2, 4];
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_POISON: u64 = 1 << 4;
const PAGE_REPORTING: u64 = 1 << 5;
const ALL: BalloonConfig = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };

/// A machine with a balloon, one of its queues in the driver's use, [`IN_USE`] bytes full.
struct Toy {
    machine: Machine,
    driver: FakeDriver,
    target: Target,
    queue: u32,
}

impl Toy {
    fn new(queue: u32) -> Toy {
        let balloon = Balloon::new(ALL);
        let target = balloon.target();
        let machine = Machine::new(Box::new(balloon));
        let driver = FakeDriver::new(&machine.ram, RING, 64, false);
        let toy = Toy { machine, driver, target, queue };
        toy.bring_up();
        toy.machine.ram.write(PAGES, &vec![FULL; IN_USE as usize]).unwrap();
        toy.machine.ram.write(HEADER, &[0; 8192]).unwrap();
        assert!(toy.resident() >= IN_USE);
        toy
    }

    fn bring_up(&self) {
        self.machine.agree(feature::VERSION_1 | PAGE_REPORTING | PAGE_POISON | DEFLATE_ON_OOM);
        self.machine.enable_queue(self.queue, &self.driver.layout());
        self.machine.set(reg::STATUS, LIVE);
        assert_eq!(self.machine.status(), LIVE);
    }

    fn resident(&self) -> u64 {
        self.machine.ram.backing().unwrap().resident()
    }

    /// Whether all of `len` bytes from `offset` into the pages are `value`.
    fn holds(&self, offset: u64, len: u64, value: u8) -> bool {
        self.machine.bytes(Gpa(PAGES.0 + offset), len as usize).iter().all(|&byte| byte == value)
    }

    fn kick(&mut self, buffers: &[Buffer]) {
        self.driver.add(buffers);
        if self.driver.kick() {
            self.machine.set(reg::QUEUE_NOTIFY, self.queue);
        }
    }

    /// One request that the device answers.
    fn request(&mut self, buffers: &[Buffer]) {
        self.kick(buffers);
        let mut used = None;
        assert!(wait_until(|| {
            used = self.driver.take_used();
            used.is_some()
        }));
        assert_eq!(used.unwrap().1, 0, "the device writes nothing");
    }

    /// One request with page numbers.
    fn name_pages(&mut self, pages: impl IntoIterator<Item = u64>) {
        let bytes: Vec<u8> = pages.into_iter().flat_map(|page| (page as u32).to_le_bytes()).collect();
        self.machine.ram.write(HEADER, &bytes).unwrap();
        self.request(&[Buffer::readable(HEADER, bytes.len() as u32)]);
    }

    /// The device asks for a reset, touched no page, and works after it.
    fn check_refused(mut self, buffers: &[Buffer], reason: &str) {
        self.kick(buffers);
        assert!(wait_until(|| self.machine.tape.faults().len() == 1));
        assert!(self.machine.tape.faults()[0].contains(reason), "{:?}", self.machine.tape.faults());
        assert_eq!(self.machine.status(), LIVE | NEEDS_RESET);
        assert!(self.holds(0, IN_USE, FULL));
        self.driver = FakeDriver::new(&self.machine.ram, RING, 64, false);
        self.bring_up();
        self.request(&[Buffer::readable(HEADER, 4)]);
    }
}

/// The number of the page `index` pages into [`PAGES`].
fn page(index: u64) -> u64 {
    PAGES.0 / PAGE + index
}

#[test]
fn the_device_is_a_balloon_that_offers_what_its_user_allows() {
    for (oom, reporting) in [(false, false), (true, false), (false, true), (true, true)] {
        let config = BalloonConfig { deflate_on_oom: oom, free_page_reporting: reporting };
        let machine = Machine::new(Box::new(Balloon::new(config)));
        assert_eq!(machine.get(0x008), 5);
        let own = machine.offered() & !feature::TRANSPORT;
        assert_eq!(own & DEFLATE_ON_OOM != 0, oom);
        assert_eq!(own & PAGE_REPORTING != 0, reporting);
        assert!(own & STATS_VQ != 0);
        assert_eq!(own & !(STATS_VQ | DEFLATE_ON_OOM | PAGE_REPORTING | PAGE_POISON), 0);
    }
}

#[test]
fn a_reported_range_leaves_the_host() {
    for queue in REPORTING {
        let mut toy = Toy::new(queue);
        let before = toy.resident();
        let parts = [(2 * MIB, 4 * MIB), (10 * MIB, 4 * MIB)];
        toy.request(&parts.map(|(offset, len)| Buffer::writable(Gpa(PAGES.0 + offset), len as u32)));
        let after = toy.resident();
        assert!(before - after >= 8 * MIB, "{before} bytes before, {after} after");
        assert!(toy.holds(0, 2 * MIB, FULL) && toy.holds(6 * MIB, 4 * MIB, FULL) && toy.holds(14 * MIB, 2 * MIB, FULL));
        assert!(toy.holds(2 * MIB, 4 * MIB, 0) && toy.holds(10 * MIB, 4 * MIB, 0));
        assert!(toy.machine.tape.warnings().is_empty());
        assert!(toy.machine.interrupted());
    }
}

#[test]
fn memory_is_there_again_when_the_guest_touches_it() {
    let mut toy = Toy::new(REPORTING[0]);
    for _ in 0..3 {
        toy.request(&[Buffer::writable(PAGES, IN_USE as u32)]);
        let empty = toy.resident();
        toy.machine.ram.write(PAGES, &vec![FULL; IN_USE as usize]).unwrap();
        assert!(toy.resident() >= empty + IN_USE);
        assert!(toy.holds(0, IN_USE, FULL));
    }
}

#[test]
fn poisoned_pages_stay() {
    let mut toy = Toy::new(REPORTING[0]);
    toy.machine.set(reg::CONFIG + 12, 0xaaaa_aaaa);
    toy.request(&[Buffer::writable(PAGES, IN_USE as u32)]);
    assert!(toy.holds(0, IN_USE, FULL));
    toy.machine.set(reg::CONFIG + 12, 0);
    toy.request(&[Buffer::writable(PAGES, IN_USE as u32)]);
    assert!(toy.holds(0, IN_USE, 0));
}

#[test]
fn a_driver_cannot_report_a_part_of_a_page() {
    let mut toy = Toy::new(REPORTING[0]);
    toy.request(&[Buffer::writable(Gpa(PAGES.0 + 1), 4095), Buffer::writable(Gpa(PAGES.0 + PAGE), 4095)]);
    assert!(toy.holds(0, IN_USE, FULL));
}

#[test]
fn inflated_pages_leave_the_host_in_any_order() {
    let orders: [&dyn Fn(u64) -> u64; 3] = [&|n| n, &|n| 2047 - n, &|n| n * 1021 % 2048];
    for order in orders {
        let mut toy = Toy::new(INFLATE);
        let before = toy.resident();
        toy.name_pages((0..2048).map(|n| page(order(n))));
        let after = toy.resident();
        assert!(before - after >= 8 * MIB, "{before} bytes before, {after} after");
        assert!(toy.holds(0, 8 * MIB, 0) && toy.holds(8 * MIB, 8 * MIB, FULL));
        assert!(toy.machine.tape.warnings().is_empty());
    }
}

#[test]
fn only_the_named_pages_leave() {
    let mut toy = Toy::new(INFLATE);
    toy.name_pages([1, 3, 4, 4, 3, 9].map(page));
    for index in 0..12 {
        let value = if [1, 3, 4, 9].contains(&index) { 0 } else { FULL };
        assert!(toy.holds(index * PAGE, PAGE, value), "page {index}");
    }
}

#[test]
fn page_numbers_may_be_cut_anywhere() {
    let mut toy = Toy::new(INFLATE);
    let bytes: Vec<u8> = [2, 7].iter().flat_map(|&n| (page(n) as u32).to_le_bytes()).collect();
    toy.machine.ram.write(HEADER, &bytes).unwrap();
    toy.request(&[(0, 1), (1, 5), (6, 2)].map(|(at, len)| Buffer::readable(Gpa(HEADER.0 + at), len)));
    assert!(toy.holds(2 * PAGE, PAGE, 0) && toy.holds(7 * PAGE, PAGE, 0) && toy.holds(8 * PAGE, MIB, FULL));
}

#[test]
fn deflating_changes_nothing() {
    let mut toy = Toy::new(DEFLATE);
    toy.name_pages([page(0), page(1), 0xffff_ffff]);
    assert!(toy.holds(0, IN_USE, FULL));
    assert!(toy.machine.tape.warnings().is_empty());
}

#[test]
fn pages_outside_ram_are_ignored_with_one_warning() {
    let mut toy = Toy::new(INFLATE);
    let end = 32 * MIB / PAGE;
    // The last page of RAM begins a run that leaves it.
    toy.name_pages([end, 0xffff_ffff, 0xffff_fffe, page(5), end - 1, end, end + 1, 0xc_0000, page(6)]);
    toy.name_pages((0..8192).map(|n| end + n));
    assert!(toy.holds(5 * PAGE, 2 * PAGE, 0) && toy.holds(7 * PAGE, MIB, FULL));
    let warnings = toy.machine.tape.warnings();
    assert!((1..=3).contains(&warnings.len()), "{warnings:?}");
    assert!(warnings[0].contains("does not have"), "{warnings:?}");
    assert_eq!(toy.machine.status(), LIVE);
}

#[test]
fn a_request_of_any_length_harms_nothing() {
    let mut toy = Toy::new(INFLATE);
    toy.request(&[Buffer::readable(HEADER, 0)]);
    toy.request(&[Buffer::writable(PAGES, 64)]);
    toy.machine.ram.write(HEADER, &[0xff; 8]).unwrap();
    toy.request(&[Buffer::readable(HEADER, 3)]);
    assert!(toy.holds(0, IN_USE, FULL));
    // As many page numbers as there may be, all of them of page 0.
    toy.request(&[Buffer::readable(Gpa(24 << 20), 65_536)]);
    toy.check_refused(&[Buffer::readable(PAGES, 65_537)], "more than");
    Toy::new(INFLATE).check_refused(&[Buffer::readable(PAGES, 16 << 20)], "more than");
    Toy::new(REPORTING[0]).check_refused(&[Buffer::writable(Gpa(31 << 20), 2 << 20)], "RAM");
    Toy::new(REPORTING[1]).check_refused(&[Buffer::writable(Gpa(1 << 40), 1 << 21)], "RAM");
}

#[test]
fn a_claimed_size_is_shown_and_believed_by_nothing() {
    let toy = Toy::new(INFLATE);
    toy.machine.set(reg::CONFIG + 4, u32::MAX);
    assert_eq!((toy.target.actual_mib(), toy.target.mib()), (u32::MAX / 256, 0));
    assert!(toy.holds(0, IN_USE, FULL));
    toy.target.set_mib(8).unwrap();
    assert_eq!((toy.machine.get(reg::CONFIG), toy.machine.status()), (8 * 256, LIVE));
}

#[test]
fn the_driver_is_told_a_new_target() {
    let toy = Toy::new(INFLATE);
    let generation = toy.machine.get(reg::CONFIG_GENERATION);
    toy.target.set_mib(8).unwrap();
    assert!(toy.machine.interrupted());
    assert_eq!(toy.machine.get(reg::INTERRUPT_STATUS), 2);
    assert_ne!(toy.machine.get(reg::CONFIG_GENERATION), generation);
    assert_eq!((toy.machine.get(reg::CONFIG), toy.target.mib()), (8 * 256, 8));
    toy.machine.set(reg::CONFIG + 4, 5 * 256 + 255);
    assert_eq!((toy.machine.get(reg::CONFIG + 4), toy.target.actual_mib()), (5 * 256 + 255, 5));
}

#[test]
fn a_target_above_the_guests_ram_is_refused() {
    let toy = Toy::new(INFLATE);
    assert_eq!(toy.target.set_mib(32), Ok(()));
    for mib in [33, 1 << 20, u32::MAX] {
        let refused = toy.target.set_mib(mib);
        assert_eq!(refused, Err(BalloonError::TooLarge { mib, ram_mib: 32 }));
        assert!(refused.unwrap_err().to_string().starts_with(&format!("Cannot ask the guest for {mib} MiB")));
    }
    assert_eq!((toy.machine.get(reg::CONFIG), toy.target.mib(), toy.target.pages()), (32 * 256, 32, 32 * 256));
    let nowhere = Balloon::new(ALL).target();
    assert!(nowhere.set_mib(1).is_err() && nowhere.set_mib(0).is_ok());
}

#[test]
fn a_driver_that_was_away_is_told_the_target_when_it_is_back() {
    let toy = Toy::new(INFLATE);
    toy.machine.set(reg::CONFIG + 4, 256);
    toy.machine.stop();
    toy.target.set_mib(3).unwrap();
    assert_eq!(toy.machine.get(reg::INTERRUPT_STATUS), 0, "nothing is said to a driver that is not there");
    toy.bring_up();
    assert_eq!(toy.machine.get(reg::INTERRUPT_STATUS), 2);
    assert_eq!((toy.machine.get(reg::CONFIG), toy.target.actual_mib()), (3 * 256, 0));
    toy.machine.set(reg::INTERRUPT_ACK, 2);
    toy.bring_up();
    assert_eq!(toy.machine.get(reg::INTERRUPT_STATUS), 0, "it is said once");
}

#[test]
fn the_driver_writes_only_what_is_its_own() {
    let toy = Toy::new(INFLATE);
    for offset in 0..20 {
        toy.machine.transport.write(reg::CONFIG + offset, &[0xff]);
        toy.machine.transport.write(reg::CONFIG + offset, &[0xff; 8]);
    }
    let mut space = [0xee; 24];
    toy.machine.transport.read(reg::CONFIG, &mut space);
    assert_eq!(space, [0; 24]);
    for offset in [0, 8, 16, 1 << 20] {
        toy.machine.set(reg::CONFIG + offset, 0xffff_ffff);
        assert_eq!(toy.machine.get(reg::CONFIG + offset), 0);
    }
}
