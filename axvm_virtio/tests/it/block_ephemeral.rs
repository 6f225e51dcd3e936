//! An ephemeral disk: the guest writes what it likes, and the image is what it was.

use crate::common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use axvm_virtio::block::{Block, Cache, DiskConfig, DiskImage};
use common::*;
use libc::{EIO, ENOSPC, EOPNOTSUPP, SYS_fallocate, SYS_fdatasync, SYS_pwritev};
use proptest::prelude::*;

fn ephemeral(path: &Path) -> DiskConfig {
    DiskConfig { ephemeral: true, ..DiskConfig::new(path) }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        count: u64,
        byte: u8,
    },
    Zero {
        sector: u64,
        count: u64,
        flags: u32,
    },
    Discard {
        sector: u64,
        count: u64,
    },
    Read {
        sector: u64,
        count: u64,
    },
    Flush,
    /// The guest starts anew.
    Reset,
}

/// Near each other, so that they overlap in every way.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let place = || (60_u64..140, 1_u64..80);
    let step = prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|((sector, count), byte)| Step::Write { sector, count, byte }),
        2 => (place(), 0_u32..2).prop_map(|((sector, count), flags)| Step::Zero { sector, count, flags }),
        1 => place().prop_map(|(sector, count)| Step::Discard { sector, count }),
        4 => place().prop_map(|(sector, count)| Step::Read { sector, count }),
        1 => Just(Step::Flush),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..30)
}

/// Sectors of a disk that say what they are.
fn numbered() -> Vec<u8> {
    (0..Disk::SECTORS).flat_map(|sector| [sector as u8; 512]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn a_guest_reads_what_it_wrote_and_the_image_keeps_its_bytes(steps in steps()) {
        let (file, mut expected) = (Disk::file(), numbered());
        fs::write(file.path(), &expected).unwrap();
        let mut disk = Disk::open(&ephemeral(file.path()), !0);
        for step in steps {
            let bytes = |sector: u64, count: u64| (sector * 512) as usize..((sector + count) * 512) as usize;
            match step {
                Step::Write { sector, count, byte } => {
                    assert_eq!(disk.write(sector, &vec![byte; count as usize * 512]), OK);
                    expected[bytes(sector, count)].fill(byte);
                }
                Step::Zero { sector, count, flags } => {
                    let request = segment(sector, count as u32, flags);
                    assert_eq!(disk.request(WRITE_ZEROES, 0, &request, 0).0, OK);
                    expected[bytes(sector, count)].fill(0);
                }
                Step::Discard { sector, count } => {
                    assert_eq!(disk.request(DISCARD, 0, &segment(sector, count as u32, 0), 0).0, OK);
                    expected[bytes(sector, count)].fill(0);
                }
                Step::Read { sector, count } => {
                    assert_eq!(disk.read(sector, count as u32 * 512), (OK, expected[bytes(sector, count)].to_vec()));
                }
                Step::Flush => assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK),
                Step::Reset => disk = Disk::on(Machine::new(Box::new(Block::new(disk.image.clone()))), disk.image, !0),
            }
        }
        prop_assert_eq!(disk.read(0, 300 * 512).1, &expected[..300 * 512]);
        drop(disk);
        prop_assert_eq!(fs::read(file.path()).unwrap(), numbered());
    }
}

#[test]
fn an_image_that_may_only_be_read_serves_many() {
    use std::os::unix::fs::PermissionsExt;
    let file = Disk::file();
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o444)).unwrap();
    let mut disks = [Disk::open(&ephemeral(file.path()), !0), Disk::open(&ephemeral(file.path()), !0)];
    let reader = DiskConfig { read_only: true, ..DiskConfig::new(file.path()) };
    let mut reader = Disk::open(&reader, !0);
    for (byte, disk) in [1, 2].into_iter().zip(&mut disks) {
        assert_eq!(disk.write(5, &[byte; 512]), OK);
        assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK);
    }
    for (byte, disk) in [1, 2].into_iter().zip(&mut disks) {
        assert_eq!(disk.read(4, 1024).1, [[0x5a; 512], [byte; 512]].concat());
    }
    assert_eq!(reader.read(5, 512).1, [0x5a; 512]);
    // Who would change the image is refused.
    let refusal = DiskImage::open(&DiskConfig::new(file.path())).unwrap_err().to_string();
    assert!(refusal.contains("in use"), "{refusal}");
    drop((disks, reader));
    // And the other way round.
    let _writer = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    let refusal = DiskImage::open(&ephemeral(file.path())).unwrap_err().to_string();
    assert!(refusal.contains("in use"), "{refusal}");
}

#[test]
fn the_temporary_file_takes_what_is_written_and_no_more() {
    let file = Disk::file();
    let mut disk = Disk::open(&ephemeral(file.path()), !0);
    let temporary = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let name = fs::read_link(&path).ok()?;
        (name.starts_with("/var/tmp") && name.to_string_lossy().ends_with("(deleted)")).then_some(path)
    });
    let temporary: Vec<_> = temporary.collect();
    if std::env::var_os("TMPDIR").is_none() {
        assert!(!temporary.is_empty(), "it is not in /var/tmp, or has a name there");
    }
    assert_eq!(disk.write(0, &[1; 4096]), OK);
    let total = |paths: &[std::path::PathBuf]| -> u64 {
        use std::os::unix::fs::MetadataExt;
        paths.iter().filter_map(|path| Some(fs::metadata(path).ok()?.blocks() * 512)).sum()
    };
    assert!(total(&temporary) < Disk::SIZE, "{}", total(&temporary));
}

#[test]
fn a_flush_needs_nothing_of_the_host() {
    for cache in Cache::ALL {
        let file = Disk::file();
        let image = DiskImage::open(&DiskConfig { cache, ..ephemeral(file.path()) }).unwrap();
        let machine = Machine::new(Box::new(Block::new(image.clone())));
        let mut disk = failing(SYS_fdatasync, EIO, || Disk::on(machine, image, !0));
        assert_eq!(disk.write(0, &[1; 512]), OK);
        assert_eq!(disk.request(FLUSH, 0, &[], 0).0, OK);
        assert_eq!(disk.machine.tape.warnings(), Vec::<String>::new());
    }
}

#[test]
fn what_the_host_refuses_is_not_taken_for_written() {
    let file = Disk::file();
    let image = DiskImage::open(&ephemeral(file.path())).unwrap();
    let machine = Machine::new(Box::new(Block::new(image.clone())));
    let mut disk = failing(SYS_pwritev, EIO, || Disk::on(machine, image, !0));
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    let told = disk.machine.tape.warnings();
    assert!(told.len() == 1 && !told[0].contains(&file.path().display().to_string()), "{told:?}");
    assert_eq!(disk.read(0, 512), (OK, vec![0x5a; 512]));

    // A discard that is not done leaves what there was, in whichever place.
    for (errno, answer) in [(ENOSPC, OK), (EOPNOTSUPP, UNSUPP)] {
        let image = DiskImage::open(&ephemeral(file.path())).unwrap();
        let machine = Machine::new(Box::new(Block::new(image.clone())));
        let mut disk = failing(SYS_fallocate, errno, || Disk::on(machine, image, !0));
        assert_eq!(disk.write(1, &[1; 512]), OK);
        assert_eq!(disk.request(DISCARD, 0, &segment(0, 2, 0), 0).0, answer);
        assert_eq!(disk.read(0, 1024).1, [[0x5a; 512], [1; 512]].concat());
        assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(0, 2, 1), 0).0, OK);
        assert_eq!(disk.read(0, 1536).1, [[0; 512], [0; 512], [0x5a; 512]].concat());
    }
}

#[test]
fn a_kept_request_names_the_directory_of_the_temporary_file() {
    let file = Disk::file();
    let image = DiskImage::open(&ephemeral(file.path())).unwrap();
    let block = Block::new(Arc::clone(&image));
    let handle = block.handle();
    let mut disk = failing(SYS_pwritev, ENOSPC, || Disk::on(Machine::new(Box::new(block)), image, !0));
    disk.write_header(OUT, 0);
    let buffers = [
        axvm_virtio::testing::Buffer::readable(HEADER, 16),
        axvm_virtio::testing::Buffer::readable(DATA, 512),
        axvm_virtio::testing::Buffer::writable(STATUS, 1),
    ];
    disk.driver.add(&buffers);
    disk.kick();
    assert!(wait_until(|| handle.full().is_some()));
    let full = handle.full().unwrap();
    assert!(full.path.is_dir() && full.free.is_some(), "{full:?}");
    disk.machine.pause();
    disk.machine.resume();
    assert!(disk.finish().is_some());
    assert_eq!(disk.machine.bytes(STATUS, 1), [OK]);
}

#[test]
fn what_does_not_go_together_is_refused_in_words() {
    let file = Disk::file();
    let both = DiskConfig { read_only: true, ..ephemeral(file.path()) };
    let refusal = DiskImage::open(&both).unwrap_err().to_string();
    assert!(refusal.contains("Leave one out"), "{refusal}");
    let image = DiskImage::open(&ephemeral(file.path())).unwrap();
    let refusal = Block::new(image).handle().resize().unwrap_err().to_string();
    assert!(refusal.contains("attached as ephemeral"), "{refusal}");
}
