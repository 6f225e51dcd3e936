//! A closed sandbox, tried from inside. It cannot be opened again, so each test runs in a process of its own: this
//! program, started once more for that one test.
#![allow(clippy::disallowed_methods, reason = "a test starts threads of its own")]
#![allow(unsafe_code, reason = "the forbidden calls are made as an attacker makes them")]

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Output};
use std::thread;

use axvm_sandbox::{Availability, Files, Role, SandboxError, allow_pci, arm, arm_connector, enter, probe};

const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
const INSIDE: &str = "AXVM_SANDBOX_TEST_INSIDE";
const ATTACK: &str = "AXVM_SANDBOX_TEST_CONNECTOR";

/// Runs `body` in a process of its own and returns how that ended.
fn apart(test: &str, body: fn()) -> Output {
    if std::env::var(INSIDE).is_ok_and(|name| name == test) {
        end_as_a_fork(body);
    }
    let this = std::env::current_exe().unwrap();
    Command::new(this).args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, test).output().unwrap()
}

/// The test runner has a thread already; a fork of it has one, which `arm` asks for.
fn end_as_a_fork(body: impl FnOnce() + std::panic::UnwindSafe) -> ! {
    // SAFETY: the runner's other thread only waits for this one: it holds no lock that the child needs.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ended = std::panic::catch_unwind(body);
        // SAFETY: _exit takes any code.
        unsafe { libc::_exit(if ended.is_ok() { 42 } else { 101 }) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the answer.
    unsafe { libc::waitpid(child, &mut status, 0) };
    std::process::exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 1 });
}

/// `body` must come to its end.
fn works(test: &str, body: fn()) {
    let output = apart(test, body);
    assert_eq!(output.status.code(), Some(42), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `body` must be stopped at `call`, and told so with the thread's name.
fn stopped(test: &str, thread: &str, call: &str, body: fn()) {
    let output = apart(test, body);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(128 + libc::SIGSYS), "{told}");
    let line = told.lines().find(|line| line.starts_with("axvm: The sandbox stopped")).expect(&told);
    assert!(line.contains(&format!("thread {thread}: ")) && line.contains(&format!("({call})")), "{line}");
    assert!(line.ends_with("works without"), "{line}");
}

fn armed() {
    arm(&Files::default()).unwrap();
}

/// Runs `body` on an armed thread of `role`.
fn on(role: Role, name: &str, body: impl FnOnce() + Send + 'static) {
    let run = move || {
        enter(role);
        body();
    };
    thread::Builder::new().name(name.into()).spawn(run).unwrap().join().unwrap();
}

/// The answer does not matter: there is none.
fn ignore(_: i64) {}

fn call<const COUNT: usize>(number: i64, arguments: [u64; COUNT]) -> i64 {
    let mut all = [0; 6];
    all[..COUNT].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: the calls that are tried here take numbers, null pointers, or live and fitting places.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

#[test]
fn every_thread_is_filtered_and_has_no_capability() {
    works("every_thread_is_filtered_and_has_no_capability", || {
        armed();
        for role in [Role::Vcpu, Role::Queue, Role::Console, Role::Api, Role::Ram, Role::Lint, Role::Gdb] {
            let (tell, told) = std::sync::mpsc::channel();
            let (end, ended) = std::sync::mpsc::channel::<()>();
            let run = move || {
                enter(role);
                // SAFETY: gettid takes nothing and cannot fail.
                tell.send(unsafe { libc::gettid() }).unwrap();
                let _ = ended.recv();
            };
            let thread = thread::spawn(run);
            let status = fs::read_to_string(format!("/proc/self/task/{}/status", told.recv().unwrap())).unwrap();
            let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
            assert_eq!(field("Seccomp:"), "2");
            assert_eq!(field("NoNewPrivs:"), "1");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{set}");
            }
            drop(end);
            thread.join().unwrap();
        }
    });
}

#[test]
fn each_role_does_its_work() {
    works("each_role_does_its_work", || {
        let (socket, _other) = UnixStream::pair().unwrap();
        let (manager, heard) = UnixDatagram::pair().unwrap();
        let disk = File::open(std::env::current_exe().unwrap()).unwrap();
        let kernel = disk.try_clone().unwrap();
        armed();
        let big = || drop(std::hint::black_box(vec![1u8; 3 << 20]));
        on(Role::Ram, "ram", big);
        on(Role::Console, "console", move || {
            big();
            socket.set_nonblocking(true).unwrap();
        });
        let packed = disk.try_clone().unwrap();
        on(Role::Lint, "lint", move || {
            big();
            rustix::process::setpriority_process(None, 19).unwrap();
            rustix::io::preadv(&packed, &mut [io::IoSliceMut::new(&mut [0; 512])], 512).unwrap();
        });
        on(Role::Api, "api", || drop(fs::read("/proc/self/smaps").unwrap()));
        on(Role::Vcpu, "vcpu0", move || {
            thread::available_parallelism().unwrap();
            on(Role::Queue, "vda-q0", move || {
                let mut sector = [0; 512];
                rustix::io::preadv(&disk, &mut [io::IoSliceMut::new(&mut sector)], 512).unwrap();
                let small: Vec<_> = (0..1000).map(|len| vec![0u8; len * 100]).collect();
                drop(small);
                thread::sleep(std::time::Duration::from_millis(1));
            });
        });
        let (len, mut header) = (kernel.metadata().unwrap().len(), [0; 512]);
        rustix::io::preadv(&kernel, &mut [io::IoSliceMut::new(&mut header)], len - 512).unwrap();
        manager.send(b"READY=1").unwrap();
        assert_eq!(heard.recv(&mut [0; 16]).unwrap(), 7);
        assert!(fs::read_to_string("/proc/self/status").unwrap().contains("Seccomp"));
    });
}

/// The backtrace looks for its own program and libraries, and is refused them.
#[test]
fn a_panic_of_any_thread_is_told_and_survived() {
    works("a_panic_of_any_thread_is_told_and_survived", || {
        armed();
        let told = || std::panic::catch_unwind(|| panic!("{:?}", std::backtrace::Backtrace::force_capture())).is_err();
        assert!(told());
        for role in [Role::Vcpu, Role::Queue, Role::Console, Role::Api, Role::Ram, Role::Lint, Role::Gdb] {
            on(role, "panics", move || assert!(told()));
        }
    });
}

#[test]
fn a_queue_thread_cannot_open_files_and_lives() {
    works("a_queue_thread_cannot_open_files_and_lives", || {
        armed();
        on(Role::Queue, "vda-q0", || {
            assert_eq!(File::open("/proc/self/status").unwrap_err().raw_os_error(), Some(libc::EACCES));
        });
    });
}

#[test]
fn only_the_files_given_can_be_opened() {
    if probe().0.iter().any(|one| one.name == "files" && matches!(one.state, Availability::Missing(_))) {
        println!("skipped: this kernel has no Landlock");
        return;
    }
    works("only_the_files_given_can_be_opened", || {
        arm(&Files { read: vec!["/etc/hostname".into()], ..Files::default() }).unwrap();
        File::open("/etc/hostname").unwrap();
        assert_eq!(File::open("/etc/passwd").unwrap_err().raw_os_error(), Some(libc::EACCES));
    });
}

#[test]
fn files_are_removed_only_where_sockets_are() {
    if probe().0.iter().any(|one| one.name == "files" && matches!(one.state, Availability::Missing(_))) {
        println!("skipped: this kernel has no Landlock");
        return;
    }
    works("files_are_removed_only_where_sockets_are", || {
        let (sockets, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (socket, file) = (sockets.path().join("a.sock"), other.path().join("letter"));
        File::create(&socket).unwrap();
        File::create(&file).unwrap();
        arm(&Files { sockets_in: vec![sockets.path().into()], ..Files::default() }).unwrap();
        assert_eq!(std::fs::remove_file(&file).unwrap_err().raw_os_error(), Some(libc::EACCES));
        std::fs::remove_file(&socket).unwrap();
        // What is left is the test's: this process may not remove it any more.
        std::mem::forget((sockets, other));
    });
}

#[test]
fn a_second_arming_and_one_beside_threads_are_refused() {
    works("a_second_arming_and_one_beside_threads_are_refused", || {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || ended.recv());
        assert!(arm(&Files::default()).unwrap_err().to_string().contains("2 threads"));
        drop(end);
        let _ = thread.join();
        assert!(arm(&Files::default()).is_ok(), "a thread that has ended does not count");
        assert!(matches!(arm(&Files::default()), Err(SandboxError::Twice)));
    });
}

#[test]
fn execve_is_stopped() {
    stopped("execve_is_stopped", "vcpu0", "execve", || {
        armed();
        on(Role::Vcpu, "vcpu0", || ignore(call(libc::SYS_execve, [0; 3])));
    });
}

#[test]
fn the_internet_is_out_of_reach() {
    stopped("the_internet_is_out_of_reach", "api", "socket", || {
        armed();
        on(Role::Api, "api", || ignore(call(libc::SYS_socket, [libc::AF_INET as u64, 1, 0])));
    });
}

#[test]
fn another_process_cannot_be_traced() {
    stopped("another_process_cannot_be_traced", "vda-q0", "ptrace", || {
        armed();
        on(Role::Queue, "vda-q0", || ignore(call(libc::SYS_ptrace, [16, 1, 0])));
    });
}

#[test]
fn memory_never_becomes_executable() {
    stopped("memory_never_becomes_executable", "vcpu3", "mprotect", || {
        armed();
        on(Role::Vcpu, "vcpu3", || ignore(call(libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC as u64])));
    });
}

#[test]
fn a_foreign_ioctl_is_stopped() {
    stopped("a_foreign_ioctl_is_stopped", "vcpu0", "ioctl", || {
        armed();
        on(Role::Vcpu, "vcpu0", || ignore(call(libc::SYS_ioctl, [0, libc::TIOCSTI, 0])));
    });
}

#[test]
fn kvm_is_for_vcpus_not_for_queues() {
    stopped("kvm_is_for_vcpus_not_for_queues", "vda-q0", "ioctl", || {
        armed();
        on(Role::Vcpu, "vcpu0", || assert_eq!(call(libc::SYS_ioctl, [u64::MAX, 0xae80, 0]), -1));
        on(Role::Queue, "vda-q0", || ignore(call(libc::SYS_ioctl, [u64::MAX, 0xae80, 0])));
    });
}

/// KVM_SET_GSI_ROUTING, KVM_IOEVENTFD.
const OF_PCI: [u64; 2] = [0x4008_ae6a, 0x4040_ae79];

#[test]
fn vcpus_route_interrupts_and_move_doorbells_where_there_is_pci() {
    works("vcpus_route_interrupts_and_move_doorbells_where_there_is_pci", || {
        allow_pci();
        armed();
        for request in OF_PCI {
            on(Role::Vcpu, "vcpu0", move || assert_eq!(call(libc::SYS_ioctl, [u64::MAX, request, 0]), -1));
        }
    });
}

#[test]
fn where_there_is_none_a_vcpu_routes_nothing() {
    stopped("where_there_is_none_a_vcpu_routes_nothing", "vcpu0", "ioctl", || {
        armed();
        on(Role::Vcpu, "vcpu0", || ignore(call(libc::SYS_ioctl, [u64::MAX, OF_PCI[0], 0])));
    });
}

#[test]
fn a_queue_thread_routes_nothing_either() {
    stopped("a_queue_thread_routes_nothing_either", "vda-q0", "ioctl", || {
        allow_pci();
        armed();
        on(Role::Queue, "vda-q0", || ignore(call(libc::SYS_ioctl, [u64::MAX, OF_PCI[1], 0])));
    });
}

#[test]
fn a_queue_thread_makes_no_thread() {
    stopped("a_queue_thread_makes_no_thread", "vda-q0", "clone", || {
        armed();
        on(Role::Queue, "vda-q0", || ignore(call(libc::SYS_clone, [THREAD, 0, 0])));
    });
}

#[test]
fn no_thread_makes_a_process() {
    stopped("no_thread_makes_a_process", "vcpu0", "clone", || {
        armed();
        on(Role::Vcpu, "vcpu0", || ignore(call(libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0])));
    });
}

#[test]
fn signals_go_to_this_process_only() {
    stopped("signals_go_to_this_process_only", "vcpu0", "tgkill", || {
        armed();
        on(Role::Vcpu, "vcpu0", || ignore(call(libc::SYS_tgkill, [1, 1, 0])));
    });
}

/// The process that connects for a socket device: it does that, and stays alone.
#[test]
fn the_connector_connects_and_passes_on() {
    works("the_connector_connects_and_passes_on", || {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("v_5000");
        let listener = UnixListener::bind(&path).unwrap();
        let (pair, other) = UnixStream::pair().unwrap();
        arm_connector().unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        assert_eq!(call(libc::SYS_sendmsg, [pair.as_raw_fd() as u64, 0, 0]), -1, "allowed, and a bad address");
        assert_eq!(call(libc::SYS_recvmsg, [pair.as_raw_fd() as u64, 0, 0]), -1, "allowed, and a bad address");
        drop((stream, pair, other));
        // What it may not: to remove the directory.
        std::mem::forget((listener, directory));
    });
}

#[test]
fn the_connector_can_do_nothing_else() {
    // Calls that AxVM's other threads may, and those of a program that looks for more.
    let attacks: [(&str, fn()); 6] = [
        ("socket", || ignore(call(libc::SYS_socket, [libc::AF_INET as u64, 1, 0]))),
        ("openat", || ignore(call(libc::SYS_openat, [libc::AT_FDCWD as u64, 0, 0]))),
        ("execve", || ignore(call(libc::SYS_execve, [0; 3]))),
        ("clone", || ignore(call(libc::SYS_clone, [THREAD, 0, 0]))),
        ("accept4", || ignore(call(libc::SYS_accept4, [0; 4]))),
        ("unlink", || ignore(call(libc::SYS_unlink, [0]))),
    ];
    const NAME: &str = "the_connector_can_do_nothing_else";
    if let Some(attack) = std::env::var(ATTACK).ok().and_then(|number| attacks.get(number.parse::<usize>().ok()?)) {
        end_as_a_fork(|| {
            arm_connector().unwrap();
            attack.1();
        });
    }
    for (number, (name, _)) in attacks.iter().enumerate() {
        let this = std::env::current_exe().unwrap();
        let mut command = Command::new(this);
        command.args([NAME, "--exact", "--nocapture", "--test-threads=1"]).env(ATTACK, number.to_string());
        let output = command.output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        let is_stopped = output.status.code() == Some(128 + libc::SIGSYS) && told.contains(&format!("({name})"));
        // Files get an error, as everywhere: the C library opens some on its own.
        assert!(is_stopped || *name == "openat" && output.status.code() == Some(42), "{name}: {told}");
    }
}

#[test]
fn not_armed_means_not_limited() {
    enter(Role::Queue);
    File::open("/proc/self/status").unwrap();
}
