//! Disks while their machine runs: images that grow, and writes that are gone at the end.
//!
//! Needs /dev/kvm; without it each test says that it was skipped. The sandbox is on, as for users.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::{Place, has_kvm, skip};

fn set_len(path: &Path, len: u64) {
    File::options().write(true).open(path).unwrap().set_len(len).unwrap();
}

#[test]
fn a_disk_that_grew_is_told_to_the_guest() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let (axvm, mut talk) = place.shell("--disk disk.img");
    let resize = || place.run("ctl ./api disk vda resize");
    assert_eq!(resize(), (0, "vda: 1048576 bytes, as before\n".into(), String::new()));
    talk.say("sectors\n");
    talk.hear("sectors 2048\n");
    set_len(&place.path("disk.img"), 3 << 20);
    assert_eq!(resize(), (0, "vda: 3145728 bytes, 1048576 before\n".into(), String::new()));
    talk.hear("= 6144 sectors done\n> ");
    assert_eq!(axvm.status().disks[0].size, 3 << 20);

    set_len(&place.path("disk.img"), 1 << 20);
    let (code, _, errors) = resize();
    assert!(code == 1 && errors.contains("A disk only grows while its machine runs"), "{errors}");
    set_len(&place.path("disk.img"), (4 << 20) + 100);
    let (code, _, errors) = resize();
    assert!(code == 1 && errors.contains("truncate -s %512 disk.img"), "{errors}");
    let (code, _, errors) = place.run("ctl ./api disk vdb resize");
    assert!(code == 1 && errors.contains("There is no disk vdb"), "{errors}");
    assert_eq!(axvm.status().disks[0].size, 3 << 20);

    // A guest that starts again finds what the last one was told.
    talk.say("reset\n");
    talk.hear("ready\n> ");
    talk.say("sectors\n");
    talk.hear("sectors 6144\n");
    assert_eq!(place.run("ctl ./api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn the_api_looks_at_a_disk_again_and_gives_it_no_other_image() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    fs::copy(place.path("disk.img"), place.path("other.img")).unwrap();
    let (axvm, _talk) = place.shell("--disk disk.img");
    let mut control = axvm.control();
    let mut patch = |path: Option<&str>| {
        let update = axvm_api::types::DriveUpdate {
            drive_id: "vda".into(),
            path_on_host: path.map(Into::into),
            rate_limiter: None,
        };
        control.patch("/drives/vda", &update).map_err(|error| error.to_string())
    };
    set_len(&place.path("disk.img"), 2 << 20);
    patch(Some("disk.img")).unwrap();
    patch(None).unwrap();
    let error = patch(Some("other.img")).unwrap_err();
    assert!(error.contains("A disk keeps its image while the machine runs"), "{error}");
    assert_eq!(axvm.status().disks[0].size, 2 << 20);
}

#[test]
fn a_disk_is_as_fast_as_it_may_be_and_that_can_change() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words = "run --kernel guest.elf --memory 32M --cpus 1 --append journal=30 --on-reboot exit --disk disk.img";
    let start = Instant::now();
    let (code, said, errors) = place.run(&format!("{words},rate=10ops/200ms"));
    assert!(code == 0 && said.contains("AXVM flushed 30"), "{code} {said} {errors}");
    // Thirty writes at least, and ten at once.
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());

    let (axvm, mut talk) = place.shell("--disk disk.img,rate=1ops/10000s");
    assert_eq!(axvm.status().disks[0].rate.as_deref(), Some("1ops/10000s"));
    let mut control = axvm.control();
    let mut patch = |rate: &str| {
        let body = format!("{{\"drive_id\": \"vda\", \"rate_limiter\": {rate}}}");
        control.patch("/drives/vda", &serde_json::from_str::<serde_json::Value>(&body).unwrap()).unwrap();
        axvm.status().disks[0].rate.clone()
    };
    let both = patch("{\"bandwidth\": {\"size\": 1048576, \"refill_time\": 100, \"one_time_burst\": 7}}");
    assert_eq!(both.as_deref(), Some("1M/100ms+7:1ops/10000s"));
    assert_eq!(patch("{\"ops\": {\"size\": 0, \"refill_time\": 100}}").as_deref(), Some("1M/100ms+7"));
    assert_eq!(place.run("ctl ./api disk vda rate none").0, 0);
    assert_eq!(axvm.status().disks[0].rate, None);
    talk.say("sectors\n");
    talk.hear("sectors 2048\n");
    assert_eq!(place.run("ctl ./api stop").0, 0);
    axvm.ends_with(0);
}

#[test]
fn each_engine_reads_and_writes_behind_the_sandbox() {
    if !has_kvm() {
        return;
    }
    let mut images = Vec::new();
    let options = [
        "engine=sync",
        "engine=io_uring",
        "engine=io_uring,queues=4",
        "engine=io_uring,rate=100M/s",
        "direct",
        "direct,engine=sync,queues=2",
    ];
    for options in options {
        let place = Place::new();
        let words = "run --kernel guest.elf --memory 32M --cpus 1 --append journal=30 --on-reboot exit --disk disk.img";
        let (code, said, errors) = place.run(&format!("{words},{options}"));
        if errors.contains("has no way past the page cache") {
            skip(&format!("{options}: temporary files are where there is no O_DIRECT"));
            continue;
        }
        assert!(code == 0 && said.contains("AXVM flushed 30"), "{options}: {code} {said} {errors}");
        images.push(fs::read(place.path("disk.img")).unwrap());
        // Over a pause, a reset and a resize, with a guest that reads what it wrote.
        let (axvm, mut talk) = place.shell(&format!("--disk disk.img,{options}"));
        for word in ["pause", "resume", "reset"] {
            assert_eq!(place.run(&format!("ctl ./api {word}")).0, 0, "{options}: {word}");
        }
        talk.hear("ready\n> ");
        talk.say("sectors\n");
        talk.hear("sectors 2048\n");
        assert_eq!(place.run("ctl ./api stop").0, 0);
        axvm.ends_with(0);
    }
    assert!(images.iter().all(|image| *image == images[0]), "the engines differ");
    assert_ne!(images[0], vec![0; images[0].len()]);
}

#[test]
fn what_a_guest_writes_to_an_ephemeral_disk_is_gone_at_the_end() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let bytes: Vec<u8> = (0..1_u32 << 20).map(|n| (n / 512) as u8).collect();
    fs::write(place.path("disk.img"), &bytes).unwrap();
    let words =
        "run --kernel guest.elf --memory 32M --cpus 1 --append journal=30 --on-reboot exit --disk disk.img,ephemeral";
    // Beside one that reads the image, and one more that writes.
    let (reader, _one) = place.shell("--disk disk.img,ro");
    let (writer, _two) = place
        .talking(place.axvm(
            "run --kernel guest.elf --memory 32M --cpus 1 --append shell --name other --disk disk.img,ephemeral",
        ));
    let (code, said, errors) = place.run(words);
    assert!(code == 0 && said.contains("AXVM flushed 30") && !said.contains("refused"), "{code} {said} {errors}");
    assert!(place.run("ctl other status").1.contains("vda      disk.img (ephemeral)"));
    let (code, _, errors) = place.run("ctl other disk vda resize");
    assert!(code == 1 && errors.contains("attached as ephemeral"), "{errors}");
    let (code, _, errors) = place.run(&words.replace(",ephemeral", ""));
    assert!(code == 1 && errors.contains("is in use"), "{errors}");
    drop((reader, writer));
    assert!(fs::read(place.path("disk.img")).unwrap() == bytes, "the image has changed");
}

#[test]
fn the_temporary_file_of_an_ephemeral_disk_is_where_the_user_says() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let words =
        "run --kernel guest.elf --memory 32M --cpus 1 --append journal=3 --on-reboot exit --disk disk.img,ephemeral";
    let run = |directory: &str| {
        let output = place.axvm(words).env("TMPDIR", place.path(directory)).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, errors) = run("nowhere");
    assert!(code == 1 && errors.contains("Cannot make a temporary file in") && errors.contains("nowhere"), "{errors}");
    assert!(errors.contains("TMPDIR=DIRECTORY"), "{errors}");
    fs::create_dir(place.path("somewhere")).unwrap();
    assert_eq!(run("somewhere").0, 0);
    assert_eq!(fs::read_dir(place.path("somewhere")).unwrap().count(), 0);
}

#[test]
fn names_of_files_may_be_any_bytes() {
    if !has_kvm() {
        return;
    }
    let place = Place::new();
    let odd = |name: &str| OsString::from_vec([name.as_bytes(), b"\xff,=\xfe"].concat());
    for name in ["guest.elf", "disk.img"] {
        fs::rename(place.path(name), place.path("").join(odd(name))).unwrap();
    }
    fs::write(place.path("").join(odd("initrd")), "a small thing").unwrap();
    // On the command line a comma in the name of a disk is written twice.
    let disk = OsString::from_vec(b"disk.img\xff,,=\xfe".to_vec());
    let start = |kernel_first: bool| {
        let mut command = place.axvm(if kernel_first { "" } else { "run --append shell" });
        if kernel_first {
            command.arg(odd("guest.elf")).args(["--append", "shell"]);
        } else {
            command.arg("-k").arg(odd("guest.elf"));
        }
        command.args(["--memory", "32M", "--cpus", "1", "--grace", "0"]);
        command.arg("--initrd").arg(odd("initrd")).arg("--api-sock").arg(odd("socket")).arg("--disk").arg(&disk);
        place.talking(command)
    };
    for kernel_first in [false, true] {
        let (axvm, mut talk) = start(kernel_first);
        talk.say("work 1\n");
        talk.hear("1 of 1 work done");
        let status = place.axvm("ctl").arg(odd("socket")).arg("status").output().unwrap();
        assert!(String::from_utf8(status.stdout).unwrap().contains("vda      disk.img\u{fffd},=\u{fffd}\n"));
        let socket = OsString::from_vec([b"./", odd("socket").as_bytes()].concat());
        assert!(place.axvm("ctl").arg(socket).arg("stop").status().unwrap().success());
        axvm.ends_with(0);
    }
}

#[test]
fn what_must_be_text_is_refused_with_its_option() {
    let place = Place::new();
    for (words, option) in [
        ("run -k guest.elf --console", "--console"),
        ("run guest.elf -p", "-p"),
        ("config --from-args --name", "--name"),
    ] {
        let output = place.axvm(words).arg(OsStr::from_bytes(b"none\xff")).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        let told = format!("axvm: {option} none\u{fffd}: not UTF-8; only the file names of --kernel");
        assert!(output.status.code() == Some(2) && errors.starts_with(&told), "{errors}");
    }
    let output = place.axvm("config --from-args -d").arg(OsStr::from_bytes(b"\xff")).output().unwrap();
    assert!(String::from_utf8(output.stderr).unwrap().contains("use names in UTF-8"));
}
