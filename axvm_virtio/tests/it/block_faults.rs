//! A host whose storage fails in a moment, and works again: what the guest is told then.
//!
//! ```text
//!   driver: DRIVER_OK in a thread whose system calls fail --> worker that fails
//!           reset, DRIVER_OK in another one               --> worker that does not
//! ```
//!
//! Source: fdatasync(2), seccomp(2) SECCOMP_RET_ERRNO.

use crate::common;

use axvm_virtio::block::{Block, Cache, DiskConfig, DiskImage};
use common::*;
use libc::{EINVAL, EIO, ENOSPC, SYS_fallocate, SYS_fdatasync};

#[test]
fn a_failed_flush_fails_every_later_one_across_resets_and_is_told_once() {
    for (cache, written) in [(Cache::WriteBack, OK), (Cache::WriteThrough, IOERR)] {
        for errno in [EIO, ENOSPC] {
            let file = Disk::file();
            let image = DiskImage::open(&DiskConfig { cache, ..DiskConfig::new(file.path()) }).unwrap();
            let machine = Machine::new(Box::new(Block::new(image.clone())));
            let mut disk = failing(SYS_fdatasync, errno, || Disk::on(machine, image, !0));
            assert_eq!(disk.write(0, &[1; 512]), written, "{cache}");
            let check = |disk: &mut Disk| {
                // What was lost, the host does not say; and it says so only once.
                assert_eq!(disk.request(FLUSH, 0, &[], 0).0, IOERR, "{cache}: flush");
                assert_eq!(disk.write(1, &[2; 512]), written, "{cache}: write");
                assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(8, 8, 0), 0).0, written, "{cache}: zeroes");
                assert_eq!(disk.read(0, 512), (OK, vec![1; 512]), "{cache}: read");
            };
            check(&mut disk);
            let mut disk = Disk::on(disk.machine, disk.image, !0);
            check(&mut disk);
            let told = disk.machine.tape.warnings();
            assert!(told.len() == 1 && told[0].contains("until AxVM ends"), "{told:?}");
            // A machine that was reset is a new one over the same image.
            let machine = Machine::new(Box::new(Block::new(disk.image.clone())));
            let mut next = Disk::on(machine, disk.image, !0);
            check(&mut next);
            assert_eq!(next.machine.tape.warnings(), Vec::<String>::new());
        }
    }
}

#[test]
fn a_failed_flush_is_told_however_much_was_said_before() {
    let file = Disk::file();
    let mut disk = failing(SYS_fdatasync, EIO, || Disk::new(file.path()));
    file.as_file().set_len(1024).unwrap();
    assert_eq!(disk.read(2, 512).0, IOERR);
    assert_eq!(disk.request(FLUSH, 0, &[], 0).0, IOERR);
    let told = disk.machine.tape.warnings();
    assert!(told.iter().any(|line| line.contains("cannot flush")), "{told:?}");
}

#[test]
fn a_discard_that_the_host_cannot_do_at_this_place_is_a_hint() {
    let file = Disk::file();
    let mut disk = failing(SYS_fallocate, EINVAL, || Disk::new(file.path()));
    assert_eq!(disk.request(DISCARD, 0, &segment(3, 5, 0), 0).0, OK);
    assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(3, 5, 0), 0).0, OK);
    assert_eq!(disk.read(3, 5 * 512), (OK, vec![0; 5 * 512]));
}
