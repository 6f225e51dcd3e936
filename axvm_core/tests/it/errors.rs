//! What a user reads when something is wrong: `axvm` itself, run with bad input.
//!
//! ```text
//!   bad input --> axvm --> exit code 1 (host, set-up) or 2 (usage)
//!                      --> stderr: one line with object, cause and remedy; no panic, no Debug dump
//! ```
//!
//! Every run ends before a guest starts; one that does not is killed and fails. Cases that get as far as
//! opening /dev/kvm are skipped where there is none.

use crate::images;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use images::{bzimage, elf, segments};

pub const AXVM: &str = env!("CARGO_BIN_EXE_axvm");
/// How long a run may take: bad input is refused in milliseconds, this is for crowded machines.
const LIMIT: Duration = Duration::from_secs(60);
/// Host or set-up error.
pub const HOST: i32 = 1;
/// Wrong usage.
pub const USAGE: i32 = 2;

/// `(arguments, words that the message must have)`. Arguments are split at spaces.
type Case<'a> = (&'a str, &'a [&'a str]);

/// Runs a table in `directory`; reports every case that fails, not only the first.
pub fn check(directory: &Path, code: i32, cases: &[Case]) {
    // Usage is judged before /dev/kvm is opened.
    if code == HOST && !can_run(&format!("{} of set-up", cases.len())) {
        return;
    }
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(arguments, words)| {
            let output = run(Command::new(AXVM).arg("run").args(arguments.split(' ')).current_dir(directory));
            judge(&output, code, words).err().map(|why| format!("axvm run {arguments}\n    {why}"))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} messages are bad:\n  {}",
        failures.len(),
        cases.len(),
        failures.join("\n  ")
    );
}

fn can_run(what: &str) -> bool {
    let opened = File::options().read(true).write(true).open("/dev/kvm");
    opened.inspect_err(|error| skip(&format!("no /dev/kvm: {what}: {error}"))).is_ok()
}

/// Past libtest's capture, so that it is seen and counted.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Runs a command without input; kills it when it does not end.
pub fn run(command: &mut Command) -> Output {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be started");
    let started = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        if started.elapsed() > LIMIT {
            child.kill().expect("it can be killed");
            break;
        }
        thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("its output can be read")
}

/// Exit code and message of a run that must fail.
pub fn judge(output: &Output, code: i32, words: &[&str]) -> Result<(), String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let complain = |why: String| Err(format!("{why}; stderr: {}", text.trim_end()));
    if output.status.code() != Some(code) {
        return complain(format!("{} and not {code}", output.status));
    }
    if let Some(dump) =
        ["panicked", "Os {", "Error(", "Error {", "Some(", "RUST_BACKTRACE"].iter().find(|d| text.contains(**d))
    {
        return complain(format!("a dump ({dump})"));
    }
    if text.lines().count() != 1 || !text.starts_with("axvm: ") {
        return complain(format!("{} lines and not one of AxVM's", text.lines().count()));
    }
    if has_cause_at_its_end(text.trim_end()) {
        return complain("what to do comes before why".into());
    }
    match words.iter().find(|word| !text.contains(**word)) {
        Some(word) => complain(format!("the message lacks '{word}'")),
        None => Ok(()),
    }
}

/// What was tried, why it failed, what to do: in this order. The kernel's words end with `(os error 2)`.
fn has_cause_at_its_end(text: &str) -> bool {
    let Some(at) = text.rfind("(os error ") else { return false };
    let before = &text[..at];
    text[at..].find(')').is_some_and(|end| at + end + 1 == text.len())
        && (before.contains("; ") || before.contains(". "))
}

#[test]
fn usage_errors_name_option_value_and_what_would_be_right() {
    let directory = tempfile::tempdir().unwrap();
    check(
        directory.path(),
        USAGE,
        &[
            ("--cpus 4", &["No kernel", "./bzImage", "--kernel FILE", "cargo xtask boot"]),
            ("--frobnicate", &["no option --frobnicate", "axvm run --help"]),
            ("--kernel", &["--kernel: ", "a value is missing; write --kernel <FILE>"]),
            ("-k k --entry 16", &["--entry 16: not one of 32, 64, pvh, multiboot"]),
            ("-k k --cpu pentium", &["--cpu pentium: 'pentium' is not one of host, ivybridge"]),
            ("-k k --cpu host,vmx=on", &["--cpu host,vmx=on: 'vmx=on' is unknown", "nested=on|off, pmu=on|off"]),
            ("-k k --cpu host,pmu=1", &["--cpu host,pmu=1: 'pmu=1' is unknown", "nested=on|off, pmu=on|off"]),
            ("-k k --cpu host,pmu=on,pmu=off", &["pmu= is given twice; say it once"]),
            ("-k k --grace soon", &["--grace soon", "not a whole number"]),
            ("-k k --grace -1", &["--grace -1", "0..=4294967295"]),
            ("-k k --timeout soon", &["--timeout soon", "not a time", "90s or 5m"]),
            ("-k k --timeout 0", &["--timeout 0", "no time at all", "5m"]),
            ("-k k --cpus 0", &["--cpus 0", "at least one vCPU"]),
            ("-k k --cpus many", &["--cpus many", "'many' is not a number", "try --cpus 4"]),
            ("-k k --cpus -1", &["-1"]),
            ("-k k --cpus 99999999999", &["--cpus 99999999999", "not a number of vCPUs"]),
            ("-k k --cpus 20,sockets=3", &["--cpus 20,sockets=3", "3 sockets x 6 cores x 1 threads make 18", "not 20"]),
            ("-k k --cpus 4,cores=0", &["--cpus 4,cores=0", "cores= needs a number from 1"]),
            ("-k k --cpus 4,dies=2", &["'dies' is unknown", "sockets=, cores=, threads="]),
            ("-k k --memory lots", &["--memory lots", "not a size", "512M or 4G"]),
            ("-k k --memory 1.5G", &["--memory 1.5G", "not a size", "512M or 4G"]),
            ("-k k --memory 99999999999G", &["--memory 99999999999G", "too large", "64 TiB", "4G"]),
            ("-k k --memory 1000000G", &["--memory 1000000G", "too large", "64 TiB"]),
            ("-k k --memory 0", &["--memory 0", "too small", "at least 2 MiB", "512M"]),
            ("-k k --memory 2049K", &["--memory 2049K", "multiple of 1 MiB", "512M or 4G"]),
            ("-k k --memory 1G,private", &["--memory 1G,private", "'private' is unknown", ",shared"]),
            ("-k k --memory 513M --hugepages 2M", &["--memory 513M", "not made of 2M pages", "multiple of 2M"]),
            ("-k k --hugepages 4M", &["--hugepages 4M: not one of thp, 2M, 1G, off"]),
            ("-k k --cpus 2 --pin 0", &["--pin 0", "1 host CPUs for 2 vCPUs", "one for each"]),
            ("-k k --cpus 2 --pin a,b", &["--pin a,b", "'a' is no host CPU", "0-3,8"]),
            ("-k k --cpus 2 --pin 3-1", &["--pin 3-1", "'3-1' is no host CPU or range", "0-3,8"]),
            ("-k k --cpus 1 --pin 4096", &["--pin 4096", "no host CPU"]),
            ("-k k --cpus 1 --pin 1023", &["--pin 1023", "no CPU 1023 online", "it has 0"]),
            ("-k k kernel", &["--kernel: does not go together with KERNEL"]),
            ("-kernel k -initrd i", &["There is no option -kernel", "--kernel FILE"]),
            ("-k k -initrd i", &["There is no option -initrd", "--initrd FILE"]),
            ("-k k -cpu host", &["There is no option -cpu", "--cpu host", "--cpus N"]),
            ("-k k -drive file=a.img", &["There is no option -drive", "--disk FILE"]),
            ("-hda a.img", &["There is no option -hda", "--disk FILE"]),
            ("-k k --disk a.img,readonly=on", &["'readonly=on' is unknown", "ro is what attaches an image read-only"]),
            ("-k k --disk a.img,snapshot=on", &["'snapshot=on' is unknown", "ephemeral is what keeps the image"]),
            ("-k k --disk a.img,rw", &["--disk a.img,rw", "'rw' is unknown", "path=FILE, ro, ephemeral, direct"]),
            ("-k k --disk ,ro", &["--disk ,ro", "no file named", "--disk path=FILE"]),
            (
                "-k k --disk a,format=qcow2",
                &["--disk a,format=qcow2", "AxVM takes raw images", "qemu-img convert -O raw"],
            ),
            ("-k k --disk a,block=1024", &["--disk a,block=1024", "no block size", "512 or 4096"]),
            ("-k k --disk a,cache=none", &["--disk a,cache=none", "cache=none is unknown", "writethrough"]),
            ("-k k --disk a,queues=0", &["--disk a,queues=0", "no number of queues", "1 to 16"]),
            ("-k k --disk a,serial=123456789012345678901", &["--disk a,serial=", "21 bytes", "room for 20"]),
            ("-k k --console tty", &["--console tty", "unknown", "stdio, file=PATH, pty, unix=PATH or none"]),
            ("-k k --console file=", &["--console file=", "unknown", "file=PATH"]),
            (
                "-k k --console file=log,limit=7",
                &["--console file=log,limit=7", "limit=64M", "64K at least", "limit=none"],
            ),
            ("-k k --console file=s --virtio-console file=s,limit=none", &["--console goes there too"]),
            ("-k k --virtio-console hvc0", &["--virtio-console hvc0", "unknown", "unix=PATH or none"]),
            ("-k k --console stdio --virtio-console stdio", &["--virtio-console stdio", "--console goes there too"]),
            ("-k k --console unix=s --api-sock s", &["--api-sock s", "a console has this path too"]),
            ("-k k --name a/b", &["--name a/b", "'/' cannot be in a name", "A-Z a-z 0-9"]),
            ("-k k --name 42", &["--name 42", "begins with a letter", "web-1"]),
            ("-k k --sandbox maybe", &["--sandbox maybe: not one of on, off"]),
            ("-k k --prealloc=2", &["--prealloc 2: not one of on, off"]),
            (
                "-k k -d 1 -d 2 -d 3 -d 4 -d 5 -d 6 -d 7 --no-acpi --bus mmio",
                &["9 devices", "vdg, rng, balloon", "has 6 for them", "without ACPI", "Leave out 3, or say --bus pci"],
            ),
            ("-k k --bus pcie", &["--bus pcie", "auto, mmio, pci"]),
            ("-k k --bus pci --acpi cpus", &["PCI needs its root in the ACPI tables", "--acpi full", "or --bus mmio"]),
        ],
    );
}

#[test]
fn a_socket_device_that_cannot_be_says_why() {
    let directory = tempfile::tempdir().unwrap();
    check(
        directory.path(),
        USAGE,
        &[
            ("-k k --vsock 3", &["--vsock 3: '3' is unknown", "cid=N and then socket=PATH"]),
            ("-k k --vsock cid=2", &["--vsock cid=2: cid=2 is the host's own", "3 to 4294967294"]),
            ("-k k --vsock cid=4294967295", &["cid=4294967295 means any", "3 to 4294967294"]),
            ("-k k --vsock socket=", &["--vsock socket=: socket= needs a path", "leave it out"]),
            ("-k k --vsock socket=a --api-sock ./a", &["--vsock socket=/", "--api-sock has this path too", "its own"]),
            ("-k k --agent-port ./a --api-sock a", &["--agent-port /", "/a: --api-sock has this path too", "its own"]),
            ("-k k --agent-port a --console unix=a", &["--agent-port /", "--console has this path too"]),
            ("-k k --vsock socket=a --agent-port a", &["--agent-port /", "--vsock has this path too"]),
            ("-k k --guest-cid 3", &["There is no option --guest-cid", "--vsock cid=N,socket=PATH"]),
            ("-k k -device vhost-vsock-pci", &["There is no option -device", "--vsock cid=N"]),
        ],
    );
}

#[test]
fn commands_that_only_print_say_what_they_lack() {
    let cases: &[Case] = &[
        ("config", &["axvm config: ", "--from-args|--example|--schema", "is missing", "axvm config --help"]),
        ("config --schema -k k", &["--schema: does not go together with --kernel"]),
        ("config --schema --config k", &["--schema: does not go together with --config"]),
        ("config --example --lock", &["--example: does not go together with --lock"]),
        ("config --from-args --memory lots", &["--memory lots", "not a size"]),
        ("completions tcsh", &["SHELL tcsh: not one of bash, elvish, fish, powershell, zsh"]),
        ("config --from-args -k k -- make", &["-- make: a settings file has no command", "axvm run --config"]),
        ("inspect -k k --walk ten", &["--walk ten: not an address", "say 0x100000, or 1048576"]),
        ("inspect -k k --only ram", &["--only ram: not one of machine, lacks, memory, boot_params"]),
        ("inspect -k k --format xml", &["--format xml: not one of text, json, html"]),
        ("inspect --diff a", &["--diff"]),
        ("inspect --diff a b --config c", &["--diff: does not go together with --config"]),
        ("man frobnicate", &["axvm man frobnicate", "no such command", "there are run, ctl"]),
        ("frobnicate", &["There is no command frobnicate", "there are run, ctl", "nor is it a kernel", "--help"]),
        ("sefltest", &["There is no command sefltest", "did you mean axvm selftest?"]),
        ("start", &["There is no command start", "axvm run --kernel FILE"]),
        ("stop web", &["There is no command stop", "axvm ctl web shutdown", "axvm ctl web stop"]),
        ("list", &["There is no command list", "axvm ps"]),
        ("status", &["There is no command status", "axvm ctl MACHINE status"]),
        ("version", &["There is no command version", "axvm --version"]),
        ("-hda a.img", &["There is no option -hda", "--disk FILE"]),
        ("-k k config --schema", &["There is no place here for config", "a command comes first"]),
        ("-v ps", &["There is no place here for ps", "a command comes first"]),
    ];
    for (arguments, words) in cases {
        let output = run(Command::new(AXVM).args(arguments.split(' ')));
        judge(&output, USAGE, words).unwrap_or_else(|why| panic!("axvm {arguments}: {why}"));
    }
}

#[test]
fn settings_errors_name_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &[u8]| fs::write(directory.path().join(name), text).unwrap();
    write("key", b"# ours\nkernal = 'k'\n");
    write("far", b"frobnicate = 1");
    write("table", b"kernel = 'k'\nhugepages = '2M'");
    write("inner", b"[memory]\nsize = '4G'\nhugpages = '2M'");
    write("disk", b"kernel = 'k'\n[[disk]]\nfile = 'a'");
    write("type", b"kernel = 'k'\nmemory = '4G'");
    write("list", b"disk = 'disk.img'");
    write("enum", b"cpu = 'pentium'");
    write("part", b"cpu = 'host,pmu=1'");
    write("number", b"entry = 32");
    write("bool", b"sandbox = 'on'");
    write("size", b"[memory]\nsize = '4X'");
    write("cpus", b"[cpus]\ncount = 20\nsockets = 3");
    write("console", b"console = 'tty'");
    write("path", b"[[disk]]\nro = true");
    write("quote", b"kernel = 'k\n");
    write("twice", b"kernel = 'k'\nkernel = 'l'");
    write("fc.json", b"\n  {\"boot-source\": {\"kernel_image_path\": \"k\"}}");
    write("some.json", b"{}");
    write("latin", b"# caf\xe9\nkernel = 'k'");
    check(
        directory.path(),
        USAGE,
        &[
            ("--config latin", &["settings latin:1:6", "not UTF-8", "TOML"]),
            (
                "--config fc.json",
                &["settings fc.json:2:3", "JSON, perhaps Firecracker's", "TOML", "axvm config --example"],
            ),
            ("--config some.json", &["settings some.json:1:1", "JSON, perhaps another program's", "TOML"]),
            ("--config key", &["settings key:2:1", "unknown key 'kernal'", "did you mean 'kernel'?"]),
            ("--config far", &["settings far:1:1", "unknown key 'frobnicate'", "known are acpi, agent-port, api-sock"]),
            ("--config table", &["settings table:2:1", "unknown key 'hugepages'", "belongs to [memory]"]),
            ("--config inner", &["settings inner:3:1", "'hugpages' in [memory]", "did you mean 'hugepages'?"]),
            ("--config disk", &["settings disk:3:1", "'file' in [[disk]]; path = \"FILE\" is what names the image"]),
            ("--config type", &["settings type:2:10", "string \"4G\"", "[memory] with size = \"4G\""]),
            ("--config list", &["settings list:1:8", "[[disk]]", "path = "]),
            ("--config part", &["settings part:1:7", "'pmu=1' is unknown", "nested=on|off, pmu=on|off"]),
            ("--config enum", &["settings enum:1:7", "'pentium'", "host", "ivybridge"]),
            ("--config number", &["settings number:1:9", "\"32\", \"64\", \"pvh\", \"multiboot\""]),
            ("--config bool", &["settings bool:1:11", "string \"on\"", "boolean"]),
            ("--config size", &["settings size:2:8", "\"4X\"", "not a size", "512M or 4G"]),
            ("--config cpus", &["settings cpus:1:1", "3 sockets x 6 cores x 1 threads make 18", "not 20"]),
            ("--config console", &["settings console:1:11", "\"tty\"", "unix=PATH or none"]),
            ("--config path", &["settings path:1:1", "missing field 'path'"]),
            ("--config quote", &["settings quote:1:12", "string"]),
            ("--config twice", &["settings twice:2:1", "duplicate key"]),
        ],
    );
}

#[test]
fn a_settings_file_that_cannot_be_read_says_why() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("folder")).unwrap();
    File::create(directory.path().join("huge")).unwrap().set_len(2 << 20).unwrap();
    check(
        directory.path(),
        HOST,
        &[
            ("--config gone", &["settings gone", "no such file", "--config"]),
            ("--config folder", &["settings folder", "directory", "give --config the file itself"]),
            ("--config huge", &["settings huge", "longer than 1 MiB"]),
            ("--config /dev/zero", &["settings /dev/zero", "longer than 1 MiB"]),
        ],
    );
}

#[test]
fn a_page_that_cannot_be_printed_says_why_and_a_closed_pipe_is_none() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(AXVM).arg("man").stdout(full).output().unwrap();
    judge(&output, HOST, &["Cannot print the manual", "No space left", "can be written"]).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(AXVM).arg("man").stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn kernel_errors_say_what_the_file_is_and_what_to_give_instead() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    write("empty", b"");
    write("whole", &bzimage());
    write("cut", &bzimage()[..0x3000]);
    write("cut-header", &bzimage()[..0x230]);
    write("k.gz", b"\x1f\x8b\x08\0\0\0\0\0\0\x03");
    write("k.xz", b"\xfd7zXZ\0\0\x04");
    write("arm", &elf(2, 183));
    write("i386", &elf(1, 3));
    write("headless", &elf(2, 62)[..40]);
    write("noise", &noise());
    write("text", b"#include <linux/kernel.h>\n");
    write("over", &segments(&[2 << 20, 2 << 20]));
    write("again", &segments(&[2 << 20, 4 << 20, 8 << 20]));
    write("many", &segments(&[2 << 20; 65_534]));
    write("upper", &segments(&[0xffff_ffff_8010_0000]));
    write("folk", &segments(&[0xc010_0000]));
    fs::create_dir(directory.path().join("folder")).unwrap();
    check(
        directory.path(),
        HOST,
        &[
            ("-k gone", &["Cannot read kernel gone", "No such file", "path given to --kernel"]),
            ("-k folder", &["Cannot read kernel folder", "directory", "give --kernel the file itself"]),
            ("-k empty", &["Cannot boot empty", "is empty", "give a bzImage or a vmlinux"]),
            ("-k cut", &["Cannot boot cut", "truncated", "12288 bytes", "fetch it again"]),
            ("-k cut-header", &["Cannot boot cut-header", "truncated", "560 bytes", "fetch it again"]),
            ("-k k.gz", &["Cannot boot k.gz", "compressed by gzip", "unpack it first"]),
            ("-k k.xz", &["Cannot boot k.xz", "compressed by xz", "unpack it first"]),
            ("-k arm", &["Cannot boot arm", "64-bit ARM", "x86-64 is needed"]),
            ("-k i386", &["Cannot boot i386", "32-bit x86", "XEN_ELFNOTE_PHYS32_ENTRY", "x86-64 is needed"]),
            ("-k over", &["Cannot boot over", "program header 1 (at 0x200000) lies over program header 0 in memory"]),
            ("-k again", &["program header 2 (at 0x800000) loads bytes of the file again", "12288 so far"]),
            ("-k many", &["Cannot boot many", "more than 128 program headers"]),
            ("-k upper --entry 64", &["Program header 0", "0xffffffff80100000", "virtual address", "p_paddr"]),
            ("-k folk --entry 64", &["Program header 0", "0xc0100000", "below 3 GiB", "p_paddr"]),
            ("-k headless", &["Cannot boot headless", "truncated", "40 bytes", "fetch it again"]),
            ("-k noise", &["Cannot boot noise", "no format we know", "usually called bzImage, vmlinuz or vmlinux"]),
            ("-k text", &["Cannot boot text", "text file", "usually called bzImage"]),
            ("-k whole --entry pvh", &["--entry pvh", "is a bzImage", "extract-vmlinux", "--entry 32 or --entry 64"]),
            ("-k whole --entry 64", &["no 64-bit entry point", "use --entry 32"]),
        ],
    );
}

#[test]
fn initrd_command_line_and_memory_errors_give_the_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("whole"), bzimage()).unwrap();
    fs::write(path("empty"), b"").unwrap();
    fs::create_dir(path("folder")).unwrap();
    File::create(path("huge")).unwrap().set_len(40 << 20).unwrap();
    let long = format!("-k whole --append {}", "a".repeat(300));
    check(
        directory.path(),
        HOST,
        &[
            ("-k whole -i gone", &["Cannot read initrd gone", "No such file", "path given to --initrd"]),
            ("-k whole -i folder", &["Cannot read initrd folder", "directory", "give --initrd the file itself"]),
            ("-k whole -i empty", &["initrd is empty", "cpio archive"]),
            ("-k whole -i huge -m 32M", &["initrd has 41943040 bytes", "--memory", "smaller initrd"]),
            (&long, &["command line has", "at most 255", "shorten it"]),
            ("-k whole -m 2M", &["kernel needs 4 MiB", "RAM ends at 2 MiB", "at least 5 MiB (--memory)"]),
        ],
    );
}

/// The size is looked at before the first byte is read: AxVM has no room for such an initrd itself.
#[test]
fn an_initrd_larger_than_ram_is_refused_unread() {
    let directory = tempfile::tempdir().unwrap();
    if !can_run("an_initrd_larger_than_ram_is_refused_unread") {
        return;
    }
    fs::write(directory.path().join("whole"), bzimage()).unwrap();
    File::create(directory.path().join("sparse")).unwrap().set_len(3 << 30).unwrap();
    let script = r#"ulimit -v 1000000 && exec "$1" run -k whole -i sparse -m 32M"#;
    let mut axvm = Command::new("sh");
    let output = run(axvm.args(["-c", script, "sh", AXVM]).current_dir(directory.path()));
    judge(&output, HOST, &["initrd has 3221225472 bytes", "--memory", "smaller initrd"]).unwrap();
}

#[test]
fn disk_errors_name_the_image_and_how_to_mend_it() {
    let directory = tempfile::tempdir().unwrap();
    let create = |name: &str, size: u64| {
        let file = File::create(directory.path().join(name)).unwrap();
        file.set_len(size).unwrap();
        file
    };
    let locked = create("locked", 4096);
    for (name, size) in [("odd", 1000), ("empty", 0), ("twice", 4096)] {
        create(name, size);
    }
    locked.try_lock().unwrap();
    for (name, at, magic) in [("copy", 0, &b"QFI\xfb"[..]), ("packed", 0, b"\x1f\x8b\x08\0"), ("cd", 32769, b"CD001")] {
        fs::write(directory.path().join(name), [&vec![0; at], magic, &[0; 1000]].concat()).unwrap();
    }
    fs::create_dir(directory.path().join("folder")).unwrap();
    check(
        directory.path(),
        HOST,
        &[
            ("-k k -d gone", &["disk image gone", "no such file", "truncate -s 1G gone"]),
            ("-k k -d folder", &["Cannot use folder", "a directory", "Give a regular file or a block device"]),
            ("-k k -d /dev/null", &["Cannot use /dev/null", "a character device", "Give a regular file"]),
            ("-k k -d odd", &["disk image odd", "1000 bytes", "multiple of 512", "truncate -s %512 odd"]),
            ("-k k -d twice,direct,ephemeral", &["disk image twice", "both direct and ephemeral", "Leave one out"]),
            ("-k k -d twice,ro,ephemeral", &["disk image twice", "both read-only (ro) and ephemeral", "Leave one out"]),
            ("-k k -d empty", &["disk image empty", "0 bytes", "multiple of 512"]),
            ("-k k -d locked", &["image locked is in use by process ", "lsof locked", "read-only (ro)"]),
            ("-k k -d locked,ro", &["image locked is in use", "Stop that one"]),
            (
                "-k k -d copy",
                &["copy is a qcow2 image", "qemu-img convert -f qcow2 -O raw copy copy.raw", "format=raw"],
            ),
            ("-k k -d packed,ro", &["packed is packed with gzip", "zcat packed > packed.raw", "format=raw"]),
            ("-k k -d cd", &["cd is an ISO 9660 image", "Attach it read-only (ro)"]),
            ("-k k -d copy,format=raw", &["disk image copy", "1004 bytes", "multiple of 512"]),
            ("-k k -d twice -d twice", &["image twice is in use by another disk", "read-only (ro)"]),
        ],
    );
}

#[test]
fn a_disk_that_may_only_be_read_asks_for_ro() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    File::create(&image).unwrap().set_len(4096).unwrap();
    let mut permissions = fs::metadata(&image).unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&image, permissions).unwrap();
    // Modes do not bind root; the immutable flag does, on file systems that have it.
    let chattr = |flag: &str| Command::new("chattr").arg(flag).arg(&image).stderr(Stdio::null()).status();
    let is_writable = || File::options().write(true).open(&image).is_ok();
    if is_writable() && (chattr("+i").is_err() || is_writable()) {
        return skip("root writes to read-only files here: a_disk_that_may_only_be_read_asks_for_ro");
    }
    let judged = std::panic::catch_unwind(|| {
        let words: &[&str] = &["disk image image", "permission denied", "attach it read-only (ro)"];
        check(directory.path(), HOST, &[("-k k -d image", words)]);
    });
    let _ = chattr("-i");
    judged.unwrap();
}

#[test]
fn host_limits_are_named() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("whole"), bzimage()).unwrap();
    check(
        directory.path(),
        HOST,
        &[
            ("-k whole --cpus 65536", &["--cpus 65536", "at most", "vCPUs in one machine"]),
            ("-k whole -m 60T", &["62914560 MiB", "can never be backed", "Ask for less"]),
            ("-k /dev/zero", &["kernel /dev/zero", "no regular file", "give --kernel the file itself"]),
            ("-k whole -i /dev/random", &["initrd /dev/random", "no regular file"]),
        ],
    );
}

/// Bytes without meaning, the same every time.
fn noise() -> Vec<u8> {
    let next = |state: &u32| Some(state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
    std::iter::successors(Some(7), next).take(8192).map(|state| (state >> 24) as u8).collect()
}
