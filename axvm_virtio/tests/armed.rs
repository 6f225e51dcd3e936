//! Devices with the fence on, on a host that fails: each system call of their threads gives each error that it may.
//!
//! ```text
//!   this program --for each row of FAULTS--> itself: devices -> a filter that answers with the errors -> arm -> requests
//! ```
//!
//! What a device does after an error is on no fair-weather path; a system call there that its thread's list does not
//! have would end AxVM with 159. A sandbox closes around a process with one thread and never opens again, so this is a
//! program of its own, and each row a process. An error is given for every call, not for one: what would go on for ever
//! then (EINTR) cannot be tried so; it repeats the call that it interrupted, nothing else.
//!
//! Source: seccomp(2) SECCOMP_RET_ERRNO; the pages of the calls say which errors there are.
#![allow(clippy::disallowed_methods, reason = "what is shared starts threads of its own")]

#[path = "it/common/mod.rs"]
mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use axvm_sandbox::Files;
use axvm_virtio::balloon::{Balloon, BalloonConfig};
use axvm_virtio::block::{Block, Cache, DiskConfig, DiskImage, Engine, OnFull};
use axvm_virtio::device::feature;
use axvm_virtio::rng::Rng;
use axvm_virtio::testing::{Buffer, FakeDriver};
use common::*;
use libc::{
    E2BIG, EAGAIN, EBADF, EBUSY, EDQUOT, EFAULT, EFBIG, EINVAL, EIO, ENOMEM, ENOSPC, ENOSYS, ENXIO, EOPNOTSUPP, EPERM,
    EROFS, ETXTBSY,
};
use libc::{
    SYS_fallocate, SYS_fdatasync, SYS_getrandom, SYS_io_uring_enter, SYS_madvise, SYS_preadv, SYS_pwritev, c_long,
};
use rustix::fs::{MemfdFlags, memfd_create};
use seccompiler::apply_filter;

/// A system call, and what it may answer.
const FAULTS: &[(c_long, &[i32])] = &[
    (SYS_preadv, &[EIO, EINVAL, EAGAIN, EFAULT, EBADF, ENOMEM, ENXIO]),
    (SYS_pwritev, &[EIO, ENOSPC, EDQUOT, EFBIG, EPERM, EINVAL, EAGAIN, EROFS, ENXIO]),
    (SYS_io_uring_enter, &[EIO, EAGAIN, EBUSY, EBADF, EFAULT, EINVAL, ENXIO, EOPNOTSUPP]),
    (SYS_fdatasync, &[EIO, ENOSPC, EDQUOT, EROFS, EINVAL]),
    (SYS_fallocate, &[EOPNOTSUPP, EINVAL, ENOSYS, EIO, ENOSPC, EPERM, EFBIG, ETXTBSY, E2BIG]),
    (SYS_getrandom, &[ENOSYS, EAGAIN, EPERM]),
    (SYS_madvise, &[EINVAL, ENOMEM, EAGAIN, EPERM, EIO]),
];
/// A balloon with all that it can do, and its feature bit for reports; without statistics they come on queue 2.
const BALLOON: BalloonConfig = BalloonConfig { deflate_on_oom: true, free_page_reporting: true };
const REPORTING: u64 = 1 << 5;
/// Says to a process of this program which call is to give which error; "0 0" is none.
const INSIDE: &str = "AXVM_FAULT";

fn main() {
    if let Ok(fault) = std::env::var(INSIDE) {
        let (call, errno) = fault.split_once(' ').expect("call and error");
        return serve_with(call.parse().unwrap(), errno.parse().unwrap());
    }
    let faults = FAULTS.iter().flat_map(|(call, errors)| errors.iter().map(move |errno| (*call, *errno)));
    let mut failed = Vec::new();
    for (call, errno) in std::iter::once((0, 0)).chain(faults) {
        let this = std::env::current_exe().unwrap();
        let output = Command::new(this).env(INSIDE, format!("{call} {errno}")).output().unwrap();
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            failed.push(format!("call {call} gives error {errno}: {}\n{why}", output.status));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

/// Every device gets every kind of request, and answers it, while `call` gives `errno` in every thread.
fn serve_with(call: c_long, errno: i32) {
    let memory = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    (&memory).write_all(&vec![0x5a; Disk::SIZE as usize]).unwrap();
    let (file, ring, other) = (Disk::file(), Disk::file(), Disk::file());
    let memory_path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    // On a file system that can make zeroes, if the host's is one, and on tmpfs, which cannot.
    let memory_path = Path::new(&memory_path);
    let configs = [
        (Cache::WriteThrough, memory_path, false, Engine::Sync),
        (Cache::WriteBack, file.path(), false, Engine::Sync),
        (Cache::WriteBack, ring.path(), false, Engine::IoUring),
        (Cache::WriteBack, other.path(), true, Engine::Sync),
    ];
    let disks = configs.map(|(cache, path, ephemeral, engine)| {
        // Kept requests have no answer.
        let config = DiskConfig { cache, on_full: OnFull::Report, ephemeral, engine, ..DiskConfig::new(path) };
        let image = DiskImage::open(&config).unwrap();
        // On a host without io_uring it is one more of the second kind.
        let _ = image.open_engines(1);
        (Machine::new(Box::new(Block::new(image.clone()))), image)
    });
    // Inside, no file can be removed.
    drop((file, ring, other));
    let rng = Machine::new(Box::new(Rng::default()));
    let balloon = Machine::new(Box::new(Balloon::new(BALLOON)));
    if call != 0 {
        apply_filter(&fault(call, errno)).unwrap();
    }
    axvm_sandbox::arm(&Files::default()).unwrap();
    for (machine, image) in disks {
        use_disk(&mut Disk::on(machine, image, !0), call == 0);
    }
    use_queue(&rng, 0, &[Buffer::writable(DATA, 4096)]);
    for (queue, pages) in [(0, Buffer::readable(HEADER, 4)), (1, Buffer::readable(HEADER, 4))] {
        use_queue(&balloon, queue, &[pages]);
    }
    use_queue(&balloon, 2, &[Buffer::writable(DATA, 1 << 20)]);
}

/// All that changes or reads a disk. On a good host it must succeed; on another one it must be answered.
fn use_disk(disk: &mut Disk, good: bool) {
    let mut answered = |kind, data: &[u8], room| {
        let (status, _) = disk.request(kind, 0, data, room);
        assert!(if good { status == OK } else { [OK, IOERR, UNSUPP].contains(&status) }, "{kind}: {status}");
    };
    answered(IN, &[], 8192);
    answered(OUT, &[7; 8192], 0);
    answered(FLUSH, &[], 0);
    for flags in [0, 1] {
        // 16 bytes, 8 sectors: what mkfs.ext4 sends. And more than is written at a time.
        answered(WRITE_ZEROES, &segment(0, 8, flags), 0);
        answered(WRITE_ZEROES, &segment(3, 400, flags), 0);
    }
    answered(DISCARD, &segment(8, 64, 0), 0);
    answered(GET_ID, &[], 20);
    assert_eq!(disk.machine.status(), LIVE);
}

/// One request on a queue of a device: it is answered, or the device asks for a reset.
fn use_queue(machine: &Machine, queue: u32, buffers: &[Buffer]) {
    let mut driver = FakeDriver::new(&machine.ram, RING, 64, false);
    machine.agree(feature::VERSION_1 | machine.offered() & REPORTING);
    machine.enable_queue(queue, &driver.layout());
    machine.set(reg::STATUS, LIVE);
    machine.ram.write(HEADER, &(DATA.0 as u32 / 4096).to_le_bytes()).unwrap();
    driver.add(buffers);
    driver.kick();
    machine.set(reg::QUEUE_NOTIFY, queue);
    assert!(wait_until(|| driver.take_used().is_some() || machine.status() & NEEDS_RESET != 0), "queue {queue}");
}
