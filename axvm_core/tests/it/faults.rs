//! Faults of the host, injected while a guest keeps a journal on its disk: AxVM lives on, or says why not.
//!
//! ```text
//!   guest (journal=N): write entry --> flush --> "AXVM flushed n"       "AXVM refused n write 1 flush 0 read 0"
//!   host:              image cut short, deleted, on full storage, failing, limited; AxVM killed; odd surroundings
//! ```
//!
//! Needs /dev/kvm; what needs root, loop devices or tmpfs besides says aloud when it is skipped. Not tried, for a test
//! cannot bring it about: a clock set back, a host under memory pressure.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const AXVM: &str = env!("CARGO_BIN_EXE_axvm");
/// How long anything may take: it takes seconds at most, this is for crowded machines.
const PATIENCE: Duration = Duration::from_secs(90);
const SECTORS: u64 = 2048;
/// Where round n of the journal is: sector n * 9.
const STRIDE: u64 = 9;

/// Past libtest's capture, so that it is seen and counted.
fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// A directory with a guest and an empty disk; none, said aloud, where there is no KVM.
fn place() -> Option<TempDir> {
    if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
        skip(&format!("no /dev/kvm: {error}"));
        return None;
    }
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("guest.elf"), axvm_guest::selftest()).unwrap();
    empty_disk(&place.path().join("disk.img"));
    Some(place)
}

fn empty_disk(path: &Path) {
    File::create(path).unwrap().set_len(SECTORS * 512).unwrap();
}

/// A machine that keeps a journal; ended with the test.
struct Machine {
    child: Child,
    console: PathBuf,
    errors: PathBuf,
}

impl Machine {
    /// Starts AxVM by way of `launcher`, words that may be none, on the disk `disk`.
    fn start(place: &TempDir, launcher: &str, disk: &Path, more: &[&str]) -> Machine {
        let [console, errors] = ["console", "errors"].map(|name| {
            let file = tempfile::Builder::new().prefix(name).tempfile_in(place).unwrap();
            file.into_temp_path().keep().unwrap()
        });
        let mut words = launcher.split_whitespace().chain([AXVM, "run", "--memory", "64M", "--on-reboot", "exit"]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("--kernel").arg(place.path().join("guest.elf")).arg("--disk").arg(disk);
        command.args(more).stdin(Stdio::null());
        if !more.iter().any(|word| word.starts_with("--console=")) {
            command.arg(format!("--console=file={}", console.display()));
        }
        command.stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
        Machine { child: command.spawn().unwrap(), console, errors }
    }

    fn journal(place: &TempDir, launcher: &str, disk: &Path, rounds: u64) -> Machine {
        Machine::start(place, launcher, disk, &["--append", &format!("journal={rounds}")])
    }

    /// What the guest said in whole lines.
    fn said(&self) -> String {
        let mut said = String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned();
        said.truncate(said.rfind('\n').map_or(0, |end| end + 1));
        said
    }

    /// What AxVM said, but for what it says of this host.
    fn errors(&self) -> String {
        let text = fs::read_to_string(&self.errors).unwrap();
        text.lines().filter(|line| !line.contains("no virtualization")).map(|line| format!("{line}\n")).collect()
    }

    fn last_flushed(&self) -> u64 {
        let said = self.said();
        said.lines().rev().find_map(|line| line.strip_prefix("AXVM flushed ")?.trim().parse().ok()).unwrap_or(0)
    }

    #[track_caller]
    fn wait_for_round(&mut self, round: u64) {
        let start = Instant::now();
        while self.last_flushed() < round {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && start.elapsed() < PATIENCE, "{ended:?}\n{}{}", self.said(), self.errors());
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(!self.errors().contains("panicked at"), "{}", self.errors());
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "AxVM does not end\n{}{}", self.said(), self.errors());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The guest came to its end, with or without refused requests.
    #[track_caller]
    fn ends_well(&mut self) {
        let status = self.end();
        assert!(status.success() && self.said().contains("AXVM end ok"), "{status}\n{}{}", self.said(), self.errors());
    }

    /// The guest came to its end, was refused with `refusal`, and the user was told once, with `words`.
    #[track_caller]
    fn ends_with_refusals(&mut self, refusal: &str, words: &str) {
        self.ends_well();
        let (said, errors) = (self.said(), self.errors());
        assert!(said.lines().any(|line| line.starts_with("AXVM refused") && line.contains(refusal)), "{said}");
        assert!(errors.contains(words) && errors.lines().count() < 20, "{errors}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_image_cut_short_costs_the_guest_what_was_cut_off() {
    let Some(place) = place() else { return };
    let disk = place.path().join("disk.img");
    let mut machine = Machine::journal(&place, "", &disk, 60);
    machine.wait_for_round(5);
    File::options().write(true).open(&disk).unwrap().set_len(4096).unwrap();
    machine.ends_with_refusals("write 0 flush 0 read 1", "unexpected end of file");
}

#[test]
fn a_deleted_image_serves_to_the_end() {
    let Some(place) = place() else { return };
    let disk = place.path().join("disk.img");
    let mut machine = Machine::journal(&place, "", &disk, 40);
    machine.wait_for_round(5);
    fs::remove_file(&disk).unwrap();
    machine.ends_well();
    assert!(!machine.said().contains("refused"), "{}", machine.said());
}

#[test]
fn a_write_beyond_the_file_size_limit_is_refused() {
    let Some(place) = place() else { return };
    // The console's file stays small.
    let mut machine = Machine::journal(&place, "prlimit --fsize=65536", &place.path().join("disk.img"), 40);
    machine.ends_with_refusals("write 1", "File too large");
}

/// What is made for a test by root, and by which command it is unmade at the end.
struct Made(&'static str, PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        let option = match self.0 {
            "losetup" => Some("-d"),
            "umount" => Some("-l"),
            _ => None,
        };
        let _ = Command::new(self.0).args(option).arg(&self.1).status();
    }
}

/// A file system of 64 KiB.
fn small_file_system(place: &TempDir) -> Option<Made> {
    let at = place.path().join("small");
    fs::create_dir(&at).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&at).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        skip("a full file system: no tmpfs can be mounted (needs root)");
        return None;
    }
    Some(Made("umount", at))
}

#[test]
fn a_full_file_system_refuses_writes_and_keeps_the_rest() {
    let Some(place) = place() else { return };
    let Some(small) = small_file_system(&place) else { return };
    let disk = small.1.join("disk.img");
    empty_disk(&disk);
    let report = format!("{},on-full=report", disk.display());
    let mut machine = Machine::journal(&place, "", Path::new(&report), 40);
    machine.ends_with_refusals("write 1 flush 0 read 0", "No space left on device");
    assert_eq!(entry(&disk, 3), Some(3), "what was flushed before is gone");
}

/// A machine that keeps a journal where there is no room for it, and has paused; with its control socket.
fn full_machine(place: &TempDir, small: &Made, rounds: u64) -> (Machine, PathBuf, PathBuf) {
    let (disk, api) = (small.1.join("disk.img"), place.path().join("api"));
    empty_disk(&disk);
    let [journal, socket] = [format!("journal={rounds}"), format!("--api-sock={}", api.display())];
    let machine = Machine::start(place, "", &disk, &["--append", &journal, &socket, "--grace=0"]);
    (machine, disk, api)
}

/// Waits until the machine has paused for want of room `times` times; what `axvm ctl status` says then.
#[track_caller]
fn is_full(machine: &Machine, api: &Path, times: usize) -> String {
    let start = Instant::now();
    loop {
        let told = machine.errors().matches("vda: no room to write in").count();
        let status = ctl(api, &["status"]).1;
        if told == times && status.contains(": paused for") && status.contains("full     vda has no room to write in") {
            return status;
        }
        assert!(start.elapsed() < PATIENCE, "{told}\n{status}{}{}", machine.said(), machine.errors());
        thread::sleep(Duration::from_millis(20));
    }
}

/// `axvm ctl`: whether it succeeded, and all it said.
fn ctl(api: &Path, words: &[&str]) -> (bool, String) {
    let output = Command::new(AXVM).arg("ctl").arg(api).args(words).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

#[test]
fn a_machine_on_a_full_file_system_pauses_and_goes_on_when_there_is_room() {
    let Some(place) = place() else { return };
    let Some(small) = small_file_system(&place) else { return };
    let (mut machine, disk, api) = full_machine(&place, &small, 40);
    let status = is_full(&machine, &api, 1);
    assert!(status.contains("No space left on device (os error 28); 0 KiB are free; make room"), "{status}");
    let (flushed, console) = (machine.last_flushed(), machine.said());
    assert!(flushed >= 3, "{console}");
    thread::sleep(Duration::from_millis(100));
    assert_eq!(machine.said(), console, "the guest runs");

    // Without room it pauses again, and says so again. A pause that is asked for is none more.
    assert_eq!(ctl(&api, &["resume"]), (true, String::new()));
    is_full(&machine, &api, 2);
    assert_eq!(ctl(&api, &["pause"]), (true, String::new()));
    is_full(&machine, &api, 2);
    assert_eq!(machine.last_flushed(), flushed);

    let grown = Command::new("mount").args(["-o", "remount,size=8m"]).arg(&small.1).status();
    assert!(grown.unwrap().success());
    assert_eq!(ctl(&api, &["resume"]), (true, String::new()));
    machine.ends_well();
    let (said, errors) = (machine.said(), machine.errors());
    assert!(!said.contains("refused") && errors.lines().count() == 2, "{said}{errors}");
    assert!(errors.contains("on-full=report"), "{errors}");
    for round in 1..=40 {
        assert_eq!(entry(&disk, round), Some(round), "round {round} is lost");
        assert_eq!(said.matches(&format!("AXVM flushed {round}\n")).count(), 1, "{said}");
    }
}

#[test]
fn a_self_test_without_room_for_its_disk_fails_and_does_not_wait() {
    let Some(place) = place() else { return };
    let Some(small) = small_file_system(&place) else { return };
    fs::write(small.1.join("ballast"), vec![0; 64 << 10]).unwrap();
    let output = Command::new(AXVM).args(["selftest", "--cpus", "1"]).env("TMPDIR", &small.1).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("No space left on device"), "{said}");
    assert!(!said.contains("The machine is paused"), "{said}");
}

#[test]
fn a_machine_that_waits_for_room_can_be_ended_in_each_way() {
    let Some(place) = place() else { return };
    let Some(small) = small_file_system(&place) else { return };
    for way in ["stop", "reset", "signal"] {
        let (mut machine, disk, api) = full_machine(&place, &small, 40);
        is_full(&machine, &api, 1);
        let flushed = machine.last_flushed();
        let expected = match way {
            "signal" => {
                let pid = rustix::process::Pid::from_child(&machine.child);
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
                128 + 15
            }
            _ => {
                assert_eq!(ctl(&api, &[way]), (true, String::new()));
                if way == "stop" { 0 } else { 3 }
            }
        };
        assert_eq!(machine.end().code(), Some(expected), "{way}: {}", machine.errors());
        for round in 1..=flushed {
            assert_eq!(entry(&disk, round), Some(round), "{way}: round {round} is lost");
        }
        fs::remove_file(&disk).unwrap();
    }
}

#[test]
fn a_console_file_on_a_full_file_system_does_not_stop_the_guest() {
    let Some(place) = place() else { return };
    let Some(small) = small_file_system(&place) else { return };
    fs::write(small.1.join("ballast"), vec![0; 60 << 10]).unwrap();
    let full = format!("--console=file={}", small.1.join("console").display());
    let disk = place.path().join("disk.img");
    // 400 rounds say more than there is room for.
    let mut machine = Machine::start(&place, "", &disk, &["--append", "journal=400", &full]);
    let status = machine.end();
    assert!(status.success(), "{status}\n{}", machine.errors());
    assert_eq!(entry(&disk, 400), Some(400), "the guest did not get to its end");
}

#[test]
fn a_failing_disk_is_an_io_error_of_the_guest() {
    let Some(place) = place() else { return };
    let backing = place.path().join("disk.img");
    let made = Command::new("losetup").args(["--find", "--show"]).arg(&backing).output();
    let Some(output) = made.ok().filter(|output| output.status.success()) else {
        return skip("a failing disk: no loop device can be made (needs root and the driver)");
    };
    let disk = Made("losetup", String::from_utf8(output.stdout).unwrap().trim().into());
    File::options().write(true).open(&backing).unwrap().set_len(64 << 10).unwrap();
    let mut machine = Machine::journal(&place, "", &disk.1, 40);
    machine.ends_with_refusals("write 1", "os error 5");
}

/// What the image says in the place of a round, if all of the sector says the same.
fn entry(image: &Path, round: u64) -> Option<u64> {
    let image = fs::read(image).unwrap();
    let at = (round * STRIDE % SECTORS * 512) as usize;
    let mut words = image[at..at + 512].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let first = words.next()?;
    words.all(|word| word == first).then_some(first)
}

#[test]
fn whatever_kills_axvm_what_was_flushed_is_in_the_image() {
    let Some(place) = place() else { return };
    for round in 1..=20 {
        let disk = place.path().join(format!("disk{round}.img"));
        empty_disk(&disk);
        let mut machine = Machine::journal(&place, "", &disk, 1500);
        machine.wait_for_round(1 + round * 3 % 17);
        machine.child.kill().unwrap();
        machine.end();
        let last = machine.last_flushed();
        assert!((1..1500).contains(&last), "not killed in the middle: {last}");
        for flushed in 1..=last {
            assert_eq!(entry(&disk, flushed), Some(flushed), "kill {round}: round {flushed} of {last} is lost");
        }
        // No lock stays behind.
        let mut next = Machine::journal(&place, "", &disk, 1);
        next.ends_well();
    }
}

#[test]
fn a_second_machine_on_an_image_is_refused_and_the_first_goes_on() {
    let Some(place) = place() else { return };
    let disk = place.path().join("disk.img");
    // Longer than a lock is waited for.
    let mut first = Machine::journal(&place, "", &disk, 1_000_000);
    first.wait_for_round(3);
    let mut second = Machine::journal(&place, "", &disk, 5);
    assert_eq!(second.end().code(), Some(1));
    assert!(second.errors().contains("is in use"), "{}", second.errors());
    let seen = first.last_flushed();
    first.wait_for_round(seen + 10);
    assert!(!first.said().contains("refused"), "{}", first.said());
}

#[test]
fn a_control_socket_whose_directory_is_gone_does_not_matter() {
    let Some(place) = place() else { return };
    let directory = place.path().join("run");
    fs::create_dir(&directory).unwrap();
    let socket = format!("--api-sock={}", directory.join("socket").display());
    let mut machine = Machine::start(&place, "", &place.path().join("disk.img"), &["--append", "journal=40", &socket]);
    machine.wait_for_round(2);
    fs::remove_dir_all(&directory).unwrap();
    machine.ends_well();
}

/// A limit is raised step by step: AxVM refuses in words, until it runs.
fn sweep(place: &TempDir, launchers: impl Iterator<Item = String>, remedy: &str) {
    let (mut refused, mut ran) = (0, 0);
    for launcher in launchers {
        let arguments = ["--append", "journal=1", "--cpus", "2"];
        let mut machine = Machine::start(place, &launcher, &place.path().join("disk.img"), &arguments);
        let (status, errors) = (machine.end(), machine.errors());
        match status.code() {
            Some(0) => ran += 1,
            // The dynamic loader's own refusal.
            Some(127) => {}
            Some(1) => {
                refused += 1;
                let clear = errors.lines().count() == 1 && errors.starts_with("axvm: ") && errors.contains(remedy);
                assert!(clear, "{launcher}: {errors}");
            }
            _ => panic!("{launcher}: {status}\n{errors}"),
        }
    }
    assert!(refused > 0 && ran > 0, "refused {refused} times, ran {ran} times");
}

#[test]
fn too_few_descriptors_are_told_at_the_start() {
    let Some(place) = place() else { return };
    sweep(&place, (3..140).step_by(7).map(|count| format!("prlimit --nofile={count}")), "ulimit -n");
}

#[test]
fn too_little_address_space_for_guest_ram_is_told() {
    let Some(place) = place() else { return };
    // Not between: there the standard library itself gives up when a thread starts. Nor with less than the program is
    // long, some 20 MiB where it has what a debugger wants.
    let (too_little, enough) = ((32..=64_u64).step_by(8), 512);
    let launcher = |mib| format!("prlimit --as={}", mib << 20);
    sweep(&place, too_little.chain([enough]).map(launcher), "ulimit -v");
}

#[test]
fn too_few_threads_are_told_and_nothing_hangs() {
    let Some(place) = place() else { return };
    let name = format!("axvm-test-{}", std::process::id());
    // cgroup v1, then v2.
    let groups = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&name));
    let made = |group: &&PathBuf| fs::create_dir(group).is_ok() && group.join("pids.max").exists();
    let Some(group) = groups.iter().find(made) else {
        return skip("too few threads: no cgroup with a limit of processes can be made (needs root)");
    };
    let group = Made("rmdir", group.clone());
    let launchers = (1..16).map(|count| {
        let file = place.path().join(format!("limit{count}.sh"));
        let at = group.1.display();
        fs::write(&file, format!("echo {count} > {at}/pids.max && echo $$ > {at}/cgroup.procs && exec \"$@\""))
            .unwrap();
        format!("bash {}", file.display())
    });
    sweep(&place, launchers, "Resource temporarily unavailable");
}

#[test]
fn odd_surroundings_do_not_matter() {
    let Some(place) = place() else { return };
    let disk = place.path().join("disk.img");
    let shells = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"].map(|closed| format!("exec \"$@\" {closed}"));
    let gone = format!("mkdir {0} && cd {0} && rmdir {0} && exec \"$@\"", place.path().join("gone").display());
    for script in shells.iter().chain([&gone]) {
        let file = place.path().join("launcher.sh");
        fs::write(&file, script).unwrap();
        empty_disk(&disk);
        let launcher = format!("bash {}", file.display());
        let mut machine = Machine::start(&place, &launcher, &disk, &["--append", "journal=3", "--console=stdio"]);
        assert!(machine.end().success(), "{script}: {}", machine.errors());
        assert_eq!(entry(&disk, 3), Some(3), "{script}: the guest did not run");
    }
    for launcher in ["env --block-signal", "env --ignore-signal", "env --ignore-signal=CHLD,PIPE", "setsid --wait"] {
        let mut machine = Machine::journal(&place, launcher, &disk, 3);
        machine.ends_well();
    }
    let huge = format!("env {}", (0..1000).map(|n| format!("V{n}={} ", "x".repeat(1000))).collect::<String>());
    Machine::journal(&place, &huge, &disk, 3).ends_well();
}
