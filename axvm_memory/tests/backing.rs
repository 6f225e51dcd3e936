//! RAM of every kind on this host: what is behind it, when, and what happens where the host has none.
//!
//! The tests of pools make a pool for themselves, one test at a time, and put its size back.
#![allow(clippy::disallowed_methods, reason = "no sandbox is closed around this test")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axvm_arch::Gpa;
use axvm_memory::{Backing, GuestRam, PageSize, RamConfig, RamError};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn config(size: u64, pages: PageSize) -> RamConfig {
    RamConfig { pages, ..RamConfig::new(size) }
}

fn ram(config: RamConfig) -> Arc<GuestRam> {
    GuestRam::allocate(&config).unwrap()
}

fn backing(ram: &GuestRam) -> Backing {
    ram.backing().unwrap()
}

/// Says past the test harness that this test did not run, and why.
macro_rules! skip {
    ($($why:tt)*) => {{
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(std::io::stderr(), "skipped: {test}: {}", format_args!($($why)*));
    }};
}

/// The memory behind `ram` is zero where `touch` wrote.
fn assert_zero(ram: &GuestRam) {
    for gpa in (0..ram.size()).step_by(MIB as usize) {
        let mut byte = [1];
        ram.read(Gpa(gpa), &mut byte).unwrap();
        assert_eq!(byte, [0], "at {gpa:#x}");
    }
}

/// Writes to every MiB.
fn touch(ram: &GuestRam) {
    (0..ram.size()).step_by(MIB as usize).for_each(|gpa| ram.write(Gpa(gpa), &[7]).unwrap());
}

/// The pool of `page_kib` pages, with at least `count` of them free while this lives.
struct Pool {
    path: String,
    before: u64,
    /// Locked, so that no other test, of this run or another, changes a pool now.
    _alone: File,
}

impl Pool {
    fn with_free(page_kib: u64, count: u64) -> Option<Pool> {
        let Some(alone) = File::open("/sys/kernel/mm/hugepages").ok().filter(|pools| pools.lock().is_ok()) else {
            skip!("this kernel has no pools of huge pages");
            return None;
        };
        let directory = format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB");
        let read = |name: &str| fs::read_to_string(format!("{directory}/{name}")).ok()?.trim().parse::<u64>().ok();
        let Some(before) = read("nr_hugepages") else {
            skip!("this kernel has no pages of {page_kib} KiB");
            return None;
        };
        let pool = Pool { path: format!("{directory}/nr_hugepages"), before, _alone: alone };
        if let Err(error) = fs::write(&pool.path, (before + count).to_string()) {
            skip!("cannot make a pool of {page_kib} KiB pages: {error}");
            return None;
        }
        if read("nr_hugepages") != Some(before + count) {
            skip!("no free memory for {count} pages of {page_kib} KiB");
            return None;
        }
        Some(pool)
    }

    /// Takes every page back that no program uses or has reserved.
    fn drain(&self) {
        fs::write(&self.path, "0").unwrap();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, self.before.to_string());
    }
}

#[test]
fn ram_is_backed_when_it_is_touched() {
    let ram = ram(config(64 * MIB, PageSize::Small));
    assert_eq!(backing(&ram), Backing::default());
    ram.write(Gpa(5 * MIB), &[1; 8192]).unwrap();
    assert_eq!(backing(&ram), Backing { small: 8192, ..Backing::default() });
}

#[test]
fn preallocated_ram_is_backed_at_once() {
    let size = 160 * MIB;
    let ram = ram(RamConfig { prealloc: true, ..config(size, PageSize::Small) });
    assert_eq!(backing(&ram), Backing { small: size, ..Backing::default() });
    assert_zero(&ram);
}

#[test]
fn one_machine_does_not_count_the_ram_of_another() {
    let config = RamConfig { prealloc: true, ..config(4 * MIB, PageSize::Small) };
    let rams = [ram(config), ram(config), ram(config)];
    for ram in &rams {
        assert_eq!(backing(ram).resident(), 4 * MIB);
    }
}

#[test]
fn transparent_huge_pages_are_told_apart() {
    let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or("[never]".into());
    if mode.contains("[never]") {
        return skip!("this kernel makes no transparent huge pages");
    }
    let ram = ram(RamConfig { prealloc: true, ..config(16 * MIB, PageSize::Thp) });
    let now = backing(&ram);
    assert_eq!(now.resident(), 16 * MIB);
    assert!(now.thp > 0, "{now:?}");
}

#[test]
fn shared_ram_is_a_file_that_others_can_map() {
    let ram = ram(RamConfig { shared: true, ..config(4 * MIB, PageSize::Small) });
    ram.write(Gpa(MIB), b"hello").unwrap();
    let region = ram.memory().iter().next().unwrap();
    let file = region.file_offset().expect("shared RAM names its memfd").file();
    let mut data = [0; 5];
    file.read_exact_at(&mut data, MIB).unwrap();
    assert_eq!(&data, b"hello");
    assert_eq!(backing(&ram).resident(), 4096);
    assert!(file.set_len(0).is_err(), "it cannot be shrunk under the guest");
}

#[test]
fn private_ram_has_no_file() {
    let ram = ram(RamConfig::new(4 * MIB));
    assert!(ram.memory().iter().next().unwrap().file_offset().is_none());
}

#[test]
fn clearing_gives_back_what_was_not_promised() {
    for shared in [false, true] {
        for pages in [PageSize::Small, PageSize::Thp] {
            let ram = ram(RamConfig { shared, ..config(8 * MIB, pages) });
            touch(&ram);
            assert!(backing(&ram).resident() >= 8 * 4096);
            ram.clear().unwrap();
            assert_eq!(backing(&ram).resident(), 0, "{pages:?}, shared {shared}");
            assert_zero(&ram);
        }
    }
}

#[test]
fn clearing_keeps_promised_memory() {
    for shared in [false, true] {
        let ram = ram(RamConfig { shared, prealloc: true, ..config(8 * MIB, PageSize::Small) });
        touch(&ram);
        ram.clear().unwrap();
        assert_eq!(backing(&ram).resident(), 8 * MIB, "shared {shared}");
        assert_zero(&ram);
    }
}

#[test]
fn locked_ram_is_backed_locked_and_can_be_cleared() {
    let locked = |ram: &GuestRam| {
        let first = format!("{:x}-", ram.regions().next().unwrap().hva);
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mapping = smaps.lines().skip_while(|line| !line.starts_with(&first));
        mapping.skip(1).find_map(|line| line.strip_prefix("Locked:")).unwrap().trim().to_owned()
    };
    // Within the limit that distributions set.
    for shared in [false, true] {
        let ram = match GuestRam::allocate(&RamConfig { shared, lock: true, ..config(2 * MIB, PageSize::Small) }) {
            Err(error @ RamError::Lock { .. }) => return skip!("{error}"),
            result => result.unwrap(),
        };
        assert_eq!((backing(&ram).resident(), locked(&ram)), (2 * MIB, "2048 kB".into()));
        touch(&ram);
        ram.clear().unwrap();
        assert_zero(&ram);
        assert_eq!(locked(&ram), "2048 kB");
    }
}

#[test]
fn a_limit_of_locked_memory_is_an_error_that_tells_it() {
    let size = 64 * MIB;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure that it is given.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    if limit.rlim_cur >= size {
        return skip!("this process may lock {} MiB", limit.rlim_cur >> 20);
    }
    // Without capabilities, on this thread only, the limit holds for root too.
    let header = [0x2008_0522_u32, 0];
    let nothing = [0_u32; 6];
    // SAFETY: the structures of capset(2), version 3, in the form that the kernel reads.
    unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) };
    let error = GuestRam::allocate(&RamConfig { lock: true, ..config(size, PageSize::Small) }).unwrap_err();
    let text = format!("Cannot lock 64 MiB of guest RAM: this process may lock {} KiB. Raise it", limit.rlim_cur >> 10);
    assert!(error.to_string().starts_with(&text), "{error}");
}

#[test]
fn more_memory_than_the_host_has_is_refused() {
    for shared in [false, true] {
        let huge = RamConfig { shared, ..RamConfig::new(1 << 42) };
        let error = GuestRam::allocate(&huge).unwrap_err();
        assert!(matches!(error, RamError::MoreThanHost { size_mib: 0x40_0000, .. }), "{error}");
        for refused in [RamConfig { prealloc: true, ..huge }, RamConfig { lock: true, ..huge }] {
            let error = GuestRam::allocate(&refused).unwrap_err();
            assert!(matches!(error, RamError::NotEnough { size_mib: 0x40_0000, .. }), "{error}");
        }
    }
}

#[test]
fn ram_from_a_pool_is_whole_pages() {
    for (size, pages, text) in [
        (3 * MIB, PageSize::Huge2M, "Guest RAM of 3 MiB is not made of 2 MiB pages"),
        (512 * MIB, PageSize::Huge1G, "Guest RAM of 512 MiB is not made of 1 GiB pages"),
    ] {
        let error = GuestRam::allocate(&config(size, pages)).unwrap_err();
        assert!(error.to_string().starts_with(text), "{error}");
    }
}

#[test]
fn a_pool_too_small_is_an_error_that_gives_the_command() {
    let Some(_pool) = Pool::with_free(2048, 2) else { return };
    let error = GuestRam::allocate(&config(1 << 42, PageSize::Huge2M)).unwrap_err();
    let RamError::Pool { needed, free, total, ref path, .. } = error else { panic!("{error}") };
    assert_eq!(needed, 2 << 20);
    assert!(free >= 2 && total >= free, "{error}");
    let command = format!("As root: echo {} > {path},", total + needed - free);
    assert!(error.to_string().contains(&command), "{error}");
    assert!(fs::metadata(path).is_ok(), "{path}");
}

#[test]
fn pages_from_a_pool_are_kept_for_the_guest_until_it_touches_them() {
    for shared in [false, true] {
        let Some(pool) = Pool::with_free(2048, 8) else { return };
        let ram = ram(RamConfig { shared, ..config(16 * MIB, PageSize::Huge2M) });
        assert_eq!(backing(&ram), Backing::default());
        assert_eq!(ram.memory().iter().next().unwrap().file_offset().is_some(), shared);
        pool.drain();
        let error = GuestRam::allocate(&config(16 * MIB, PageSize::Huge2M)).unwrap_err();
        assert!(matches!(error, RamError::Pool { needed: 8, free: 0, .. }), "{error}");
        touch(&ram);
        let full = Backing { huge_2m: 16 * MIB, ..Backing::default() };
        assert_eq!(backing(&ram), full);
        ram.clear().unwrap();
        assert_zero(&ram);
        assert_eq!(backing(&ram), full);
    }
}

#[test]
fn a_pool_gets_its_pages_back() {
    let Some(pool) = Pool::with_free(2048, 8) else { return };
    for _ in 0..3 {
        let config = RamConfig { prealloc: true, lock: true, ..config(16 * MIB, PageSize::Huge2M) };
        assert_eq!(backing(&ram(config)).huge_2m, 16 * MIB);
    }
    drop(pool);
}

#[test]
fn pages_of_1_gib_back_ram() {
    let Some(_pool) = Pool::with_free(1 << 20, 1) else { return };
    let ram = ram(RamConfig { prealloc: true, ..config(GIB, PageSize::Huge1G) });
    assert_eq!(backing(&ram), Backing { huge_1g: GIB, ..Backing::default() });
    assert!(ram.regions().all(|region| region.hva.is_multiple_of(GIB)));
    touch(&ram);
    ram.clear().unwrap();
    assert_zero(&ram);
}
