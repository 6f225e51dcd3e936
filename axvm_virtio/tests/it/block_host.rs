//! When the host fails: images that cannot be opened, and images that fail in use.

use crate::common;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use axvm_virtio::block::{DiskConfig, DiskError, DiskImage, Format, OnFull};
use common::*;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

fn refusal(config: &DiskConfig) -> DiskError {
    DiskImage::open(config).expect_err("an image that cannot be used")
}

#[test]
fn a_missing_image_is_named_with_a_way_out() {
    let error = refusal(&DiskConfig::new("/nonexistent/disk.img"));
    assert!(matches!(error, DiskError::Missing(_)));
    assert!(error.to_string().contains("truncate -s 1G /nonexistent/disk.img"), "{error}");
}

#[test]
fn only_files_and_block_devices_are_disks() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RWXU).unwrap();
    for (path, what) in [(dir.path(), "a directory"), (&pipe, "a pipe"), (Path::new("/dev/null"), "a character device")]
    {
        for read_only in [false, true] {
            let error = refusal(&DiskConfig { read_only, ..DiskConfig::new(path) });
            assert!(matches!(&error, DiskError::NotADisk(_, kind) if *kind == what), "{error}");
        }
    }
}

#[test]
fn sizes_must_be_whole_blocks() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (size, block_size, fits) in [
        (0, 512, false),
        (511, 512, false),
        (513, 512, false),
        (512, 512, true),
        (512, 4096, false),
        (8192, 4096, true),
    ] {
        file.as_file().set_len(size).unwrap();
        let config = DiskConfig { block_size: Some(block_size), ..DiskConfig::new(file.path()) };
        match DiskImage::open(&config) {
            Ok(image) => assert!(fits && image.size() == size),
            Err(error) => assert!(!fits && matches!(error, DiskError::Size { .. }), "{error}"),
        }
    }
    let error = refusal(&DiskConfig { block_size: Some(1024), ..DiskConfig::new(file.path()) });
    assert!(matches!(error, DiskError::BlockSize { block_size: 1024, .. }));
}

#[test]
fn serials_have_twenty_printable_characters() {
    let file = Disk::file();
    for serial in ["123456789012345678901", "tab\t", "é"] {
        let error = refusal(&DiskConfig { serial: Some(serial.into()), ..DiskConfig::new(file.path()) });
        assert!(matches!(error, DiskError::Serial { .. }), "{error}");
    }
}

#[test]
fn a_writer_has_the_image_alone() {
    let file = Disk::file();
    let (rw, ro) = (DiskConfig::new(file.path()), DiskConfig { read_only: true, ..DiskConfig::new(file.path()) });
    let writer = DiskImage::open(&rw).unwrap();
    for config in [&rw, &ro] {
        let error = refusal(config);
        assert!(matches!(error, DiskError::Locked { .. }), "{error}");
        assert!(error.to_string().contains("in use"), "{error}");
    }
    drop(writer);
    let readers = [DiskImage::open(&ro).unwrap(), DiskImage::open(&ro).unwrap()];
    assert!(matches!(refusal(&rw), DiskError::Locked { .. }));
    drop(readers);
    DiskImage::open(&rw).unwrap();
}

#[test]
fn the_lock_lives_as_long_as_the_device() {
    let file = Disk::file();
    let Disk { machine, image, .. } = Disk::new(file.path());
    drop(image);
    assert!(matches!(refusal(&DiskConfig::new(file.path())), DiskError::Locked { .. }));
    drop(machine);
    DiskImage::open(&DiskConfig::new(file.path())).unwrap();
}

#[test]
fn a_truncated_image_gives_io_errors_and_one_warning() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    file.as_file().set_len(1024).unwrap();
    assert_eq!(disk.read(0, 1024).0, OK);
    for _ in 0..100 {
        assert_eq!(disk.read(2, 512).0, IOERR);
    }
    let warnings = disk.machine.tape.warnings();
    assert!((1..=3).contains(&warnings.len()), "rate-limited: {warnings:?}");
    assert!(
        warnings[0].contains("vda: cannot read") && warnings[0].contains(file.path().to_str().unwrap()),
        "{warnings:?}"
    );
    file.as_file().set_len(0).unwrap();
    assert_eq!(disk.read(0, 512).0, IOERR);
    disk.check_alive();
}

#[test]
fn a_deleted_image_goes_on() {
    let file = Disk::file();
    let mut disk = Disk::new(file.path());
    fs::remove_file(file.path()).unwrap();
    disk.check_alive();
}

#[test]
fn a_host_that_refuses_writes_gives_io_errors() {
    // A sealed memory file: writing fails although it is open for writing.
    let memory = File::from(memfd_create("disk", MemfdFlags::ALLOW_SEALING).unwrap());
    (&memory).write_all(&vec![0x5a; Disk::SIZE as usize]).unwrap();
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let mut disk = Disk::new(Path::new(&path));
    disk.check_alive();
    fcntl_add_seals(&memory, SealFlags::WRITE).unwrap();
    assert_eq!(disk.write(0, &[1; 512]), IOERR);
    assert_eq!(disk.request(DISCARD, 0, &segment(0, 8, 0), 0).0, IOERR);
    assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(0, 8, 1), 0).0, IOERR);
    assert_eq!(disk.read(8, 512), (OK, vec![0x5a; 512]));
    assert_eq!(disk.machine.status(), LIVE);
    assert!(disk.machine.tape.warnings()[0].contains("cannot write"));
}

#[test]
fn zeroes_are_written_where_the_file_system_makes_none() {
    // tmpfs has no ZERO_RANGE, and it is what memory files live on.
    let memory = File::from(memfd_create("disk", MemfdFlags::ALLOW_SEALING).unwrap());
    (&memory).write_all(&vec![0x5a; Disk::SIZE as usize]).unwrap();
    let mut disk = Disk::new(Path::new(&format!("/proc/self/fd/{}", memory.as_raw_fd())));
    assert_eq!(disk.request(WRITE_ZEROES, 0, &segment(1, 400, 0), 0), (OK, 1));
    let (status, data) = disk.read(0, 402 * 512);
    assert_eq!(status, OK);
    assert_eq!(data[..512], [0x5a; 512]);
    assert_eq!(data[512..401 * 512], [0; 400 * 512]);
    assert_eq!(data[401 * 512..], [0x5a; 512]);
}

/// A tmpfs of one megabyte, gone when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_host_disk_gives_io_errors() {
    let Some(small) = SmallDisk::mount() else {
        println!("skipped: mounting a small tmpfs needs root");
        return;
    };
    let path = small.0.path().join("disk.img");
    File::create(&path).unwrap().set_len(Disk::SIZE).unwrap();
    let mut disk = Disk::open(&DiskConfig { on_full: OnFull::Report, ..DiskConfig::new(&path) }, !0);
    assert_eq!(disk.write(0, &[1; 512]), OK);
    assert_eq!(disk.write(0, &vec![1; 2 << 20]), IOERR);
    assert!(disk.machine.tape.warnings()[0].contains("No space left"), "{:?}", disk.machine.tape.warnings());
    assert_eq!(disk.request(DISCARD, 0, &segment(0, 4096, 0), 0).0, OK);
    disk.check_alive();
}

#[test]
fn an_image_of_another_format_is_refused_with_the_command_that_converts() {
    let place = tempfile::tempdir().unwrap();
    let path = |name: &str| place.path().join(name);
    let write = |name: &str, at: usize, magic: &[u8]| {
        let mut image = vec![0; at];
        image.extend_from_slice(magic);
        // No multiple of a block, as most of them: the advice to make it one would destroy it.
        image.resize(at + 1234, 0x5a);
        fs::write(path(name), image).unwrap();
    };
    for (name, at, magic, words) in [
        ("q.img", 0, &b"QFI\xfb\0\0\0\x03"[..], ["a qcow2 image", "qemu-img convert -f qcow2 -O raw"]),
        ("v.vmdk", 0, b"KDMV\x01", ["a VMDK image", "qemu-img convert -f vmdk"]),
        ("v.vdi", 64, b"\x7f\x10\xda\xbe", ["a VDI image", "qemu-img convert -f vdi"]),
        ("v.vhdx", 0, b"vhdxfile", ["a VHDX image", "qemu-img convert -f vhdx"]),
        ("d.img.gz", 0, b"\x1f\x8b\x08\0", ["packed with gzip", "zcat"]),
        ("d.img.xz", 0, b"\xfd7zXZ\0", ["packed with xz", "xzcat"]),
        ("d.img.zst", 0, b"\x28\xb5\x2f\xfd", ["packed with zstd", "zstdcat"]),
    ] {
        write(name, at, magic);
        let before = fs::read(path(name)).unwrap();
        for read_only in [false, true] {
            let error = refusal(&DiskConfig { read_only, ..DiskConfig::new(path(name)) }).to_string();
            assert!(words.iter().all(|word| error.contains(word)), "{error}");
            assert!(error.contains("format=raw") && !error.contains("truncate"), "{error}");
        }
        // What the user insists on is raw, and has a raw image's mistakes.
        let insisting = DiskConfig { format: Some(Format::Raw), ..DiskConfig::new(path(name)) };
        assert!(matches!(refusal(&insisting), DiskError::Size { .. }));
        fs::write(path(name), [before, vec![0; 4096 - 1234 - at]].concat()).unwrap();
        DiskImage::open(&insisting).unwrap();
    }
    // A disk for reading, but not for writing.
    write("cd.iso", 32769, b"CD001");
    File::options().write(true).open(path("cd.iso")).unwrap().set_len(64 << 10).unwrap();
    let error = refusal(&DiskConfig::new(path("cd.iso"))).to_string();
    assert!(error.contains("ISO 9660") && error.contains("Attach it read-only (ro)"), "{error}");
    DiskImage::open(&DiskConfig { read_only: true, ..DiskConfig::new(path("cd.iso")) }).unwrap();
}

#[test]
fn a_lock_that_is_held_for_a_moment_is_waited_for() {
    let file = Disk::file();
    // As udev does with a new device.
    let mut udev = Command::new("flock").arg("-s").arg(file.path()).args(["sleep", "0.3"]).spawn().unwrap();
    assert!(wait_until(|| file.as_file().try_lock().is_err() || file.as_file().unlock().is_err()));
    DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    udev.wait().unwrap();
}

#[test]
fn the_holder_of_a_lock_is_named_and_no_machine_is_blamed_for_another_program() {
    let file = Disk::file();
    let mut holder = Command::new("flock").arg("-o").arg(file.path()).args(["sleep", "5"]).spawn().unwrap();
    assert!(wait_until(|| file.as_file().try_lock().is_err() || file.as_file().unlock().is_err()));
    let error = refusal(&DiskConfig::new(file.path())).to_string();
    holder.kill().unwrap();
    holder.wait().unwrap();
    // Where the host's /proc does not list locks, it is another program.
    assert!(
        error.contains(&format!("in use by process {}", holder.id())) || error.contains("another program"),
        "{error}"
    );
    assert!(!error.contains("machine"), "{error}");

    let first = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    let error = refusal(&DiskConfig::new(file.path())).to_string();
    assert!(error.contains("another disk of this machine") || error.contains("another program"), "{error}");
    drop(first);
}

/// One test at a time makes loop devices: one that is free must stay so for a moment.
static LOOPS: Mutex<()> = Mutex::new(());

/// A loop device; gone when dropped.
struct Loop(String);

impl Loop {
    fn over(words: &[&str]) -> Option<Loop> {
        let made = Command::new("losetup").args(["--find", "--show"]).args(words).output().ok()?;
        made.status.success().then(|| Loop(String::from_utf8(made.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn block_devices_say_whether_they_can_be_written_how_large_a_block_is_and_that_they_are_empty() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    let file = Disk::file();
    let Some(device) = Loop::over(&["-r", file.path().to_str().unwrap()]) else {
        println!("skipped: a loop device needs root and the driver");
        return;
    };
    let read_only = DiskConfig { read_only: true, ..DiskConfig::new(&device.0) };
    let error = refusal(&DiskConfig::new(&device.0)).to_string();
    assert!(error.contains("read-only") && error.contains("(ro)"), "{error}");
    assert_eq!(DiskImage::open(&read_only).unwrap().size(), Disk::SIZE);

    let large = Disk::file();
    if let Some(large) = Loop::over(&["--sector-size", "4096", large.path().to_str().unwrap()]) {
        let block_size =
            |block_size| DiskImage::open(&DiskConfig { block_size, ..DiskConfig::new(&large.0) }).unwrap().block_size();
        assert_eq!(
            (block_size(None), block_size(Some(512))),
            (4096, 512),
            "a device of 4096-byte sectors says so itself"
        );
    }
    assert_eq!(DiskImage::open(&read_only).unwrap().block_size(), 512);

    let free = Command::new("losetup").arg("--find").output().unwrap();
    let path = String::from_utf8(free.stdout).unwrap().trim().to_owned();
    for read_only in [false, true] {
        let error = refusal(&DiskConfig { read_only, ..DiskConfig::new(&path) }).to_string();
        assert!(
            error.contains("nothing behind") && error.contains("losetup") && !error.contains("truncate"),
            "{error}"
        );
    }
}

/// A mounted device; unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn at<'a>(device: &str, at: &'a Path) -> Option<Mounted<'a>> {
        Command::new("mount").arg(device).arg(at).output().unwrap().status.success().then_some(Mounted(at))
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn what_the_host_has_mounted_is_not_written_to_under_it() {
    let _alone = LOOPS.lock().unwrap_or_else(PoisonError::into_inner);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(file.path()).status();
    let device = Loop::over(&[file.path().to_str().unwrap()]);
    let (true, Some(device)) = (made.is_ok_and(|status| status.success()), device) else {
        println!("skipped: a mounted image needs root, mkfs.ext4 and a loop device");
        return;
    };
    let disks = [(file.path(), "losetup -d"), (Path::new(&device.0), "lsblk")];
    let error = refusal(&DiskConfig::new(file.path())).to_string();
    assert!(error.contains(&device.0) && error.contains("(ro)"), "{error}");
    // As long as nothing is mounted, the device itself may be used; and then it cannot be mounted.
    let at = tempfile::tempdir().unwrap();
    let mount = || Mounted::at(&device.0, at.path());
    let image = DiskImage::open(&DiskConfig::new(&device.0)).unwrap();
    assert!(mount().is_none(), "mounted under the guest");
    drop(image);
    let mounted = mount().expect("a device that is free can be mounted");
    let seen = disks.map(|(path, _)| DiskImage::open(&DiskConfig::new(path)).err().map(|error| error.to_string()));
    let readable = DiskImage::open(&DiskConfig { read_only: true, ..DiskConfig::new(&device.0) }).is_ok();
    drop(mounted);
    for ((_, word), error) in disks.iter().zip(seen) {
        let error = error.expect("a mounted disk was opened for writing");
        assert!(error.contains(word) && error.contains("mounted"), "{error}");
    }
    assert!(readable);
}

/// QEMU and qemu-img lock single bytes of an image, by locks that belong to the open file.
#[test]
fn locks_of_ranges_as_qemu_takes_them_are_seen_and_made() {
    let file = Disk::file();
    let qemu = File::options().read(true).write(true).open(file.path()).unwrap();
    let byte = |kind: i32| lock_byte(&qemu, kind);
    assert!(byte(libc::F_RDLCK));
    let error = refusal(&DiskConfig::new(file.path())).to_string();
    assert!(error.contains("in use by another program") && !error.contains("machine"), "{error}");
    assert!(byte(libc::F_UNLCK));
    let image = DiskImage::open(&DiskConfig::new(file.path())).unwrap();
    assert!(!byte(libc::F_RDLCK), "qemu-img would change a disk in use");
    drop(image);
    assert!(byte(libc::F_RDLCK));
    // Readers share.
    DiskImage::open(&DiskConfig { read_only: true, ..DiskConfig::new(file.path()) }).unwrap();
}

#[allow(unsafe_code, reason = "no safe wrapper has locks of ranges")]
fn lock_byte(file: &File, kind: i32) -> bool {
    // SAFETY: all zeroes is a valid flock, which is filled below.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    (range.l_type, range.l_whence, range.l_start, range.l_len) = (kind as i16, libc::SEEK_SET as i16, 100, 1);
    // SAFETY: the call reads the range, which lives until it returns.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &range) == 0 }
}
