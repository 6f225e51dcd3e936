//! A disk that hangs in the host: the machine on it can be asked, held up and ended all the same.
//!
//! ```text
//!   guest: write --> vda-q0 --pwritev--> frozen file system ..............--> thawed: the write completes
//!   status, ps: at once, with its name      pause: refused with its name      stop: asked at once
//! ```
//!
//! Needs /dev/kvm, and root and a loop device to make a file system that can be frozen (`fsfreeze`); says aloud when it is
//! skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::{Place, has_kvm, skip, until};

/// Longer than a request that is only slow, on a crowded machine too.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A file system of its own, which can be frozen; gone, and thawed, with the test.
struct FileSystem(PathBuf);

impl FileSystem {
    fn make(place: &Place) -> Option<FileSystem> {
        let (image, at) = (place.path("fs.img"), place.path("fs"));
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        let made = run("mkfs.ext4", &["-q", "-F"], &image) && {
            let mount = Command::new("mount").args(["-o", "loop"]).args([&image, &at]).output();
            mount.is_ok_and(|output| output.status.success())
        };
        if !made {
            skip("a disk that hangs: no file system of its own can be mounted (needs root and a loop device)");
        }
        made.then_some(FileSystem(at))
    }

    fn freeze(&self) {
        assert!(run("fsfreeze", &["-f"], &self.0));
    }

    fn thaw(&self) {
        run("fsfreeze", &["-u"], &self.0);
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        self.thaw();
        run("umount", &["-l"], &self.0);
    }
}

fn run(program: &str, arguments: &[&str], on: &Path) -> bool {
    Command::new(program).args(arguments).arg(on).output().is_ok_and(|output| output.status.success())
}

#[test]
fn a_disk_that_hangs_holds_up_its_guest_and_no_one_else() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let Some(storage) = FileSystem::make(&place) else { return };
    fs::copy(place.path("disk.img"), storage.0.join("disk.img")).unwrap();
    let (axvm, mut talk) = place.shell("--disk fs/disk.img --name hangs --console stdio");
    talk.say("work 1000000\r");
    talk.hear("abcdefghi");
    storage.freeze();
    until("a request hangs", || axvm.status().busy.iter().any(|busy| busy.thread == "vda-q0" && busy.seconds > 1.5));

    // Each of these would wait for ever if it took what the hanging thread holds.
    let begin = Instant::now();
    let (code, status, _) = place.run("ctl hangs status");
    assert!(code == 0 && status.contains("waits    vda-q0 has had a request in the host for"), "{status}");
    let (code, told, _) = place.run("ctl hangs explain");
    assert!(code == 0 && told.contains("  1. Thread vda-q0 has had a request in the host for"), "{told}");
    let (code, listed, _) = place.run("ps");
    assert!(code == 0 && listed.contains("hangs"), "{listed}");
    let (code, _, refusal) = place.run("ctl hangs pause");
    assert!(code != 0 && refusal.contains("Cannot hold vda-q0 still"), "{refusal}");
    assert_eq!(place.run("ctl hangs stop").0, 0);
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    until("it is stopping", || place.run("ctl hangs status").1.contains("waits    vda-q0"));

    storage.thaw();
    axvm.ends_with(0);
}
