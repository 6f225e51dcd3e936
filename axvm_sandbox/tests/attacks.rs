//! What a guest that took over a thread would try, from inside a closed sandbox: each attack in a process of its own,
//! with all that this kernel has, and again with Landlock hidden, as on a kernel that has none.
//!
//! ```text
//!   this program --again, for one attack--> a fork: (hide Landlock) --> arm --> thread of a role --> the attack
//!                                              '--> how it ended: 159 and one line, or an error
//! ```
#![allow(clippy::disallowed_methods, reason = "a test starts threads of its own")]
#![allow(unsafe_code, reason = "the forbidden calls are made as an attacker makes them")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use axvm_sandbox::Role::{Api, Console, Main, Queue, Vcpu};
use axvm_sandbox::{Files, Role, arm, enter, on_violation};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// The attack that this process is for: its number, and whether Landlock is hidden.
const INSIDE: &str = "AXVM_SANDBOX_ATTACK";
/// Ended as an attack ends that was answered with the expected error.
const REFUSED: i32 = 42;
/// Ended as an attack ends that found nothing in its way.
const SUCCEEDED: i32 = 43;

/// What must happen.
enum Answer {
    /// The process ends, and says that it was this call.
    Stopped(&'static str),
    /// The call fails with this error.
    Error(i32),
}
use Answer::{Error, Stopped};

struct Attack {
    what: &'static str,
    role: Role,
    answer: Answer,
    /// Gives what the call gave.
    act: fn() -> i64,
}

const fn attack(what: &'static str, role: Role, answer: Answer, act: fn() -> i64) -> Attack {
    Attack { what, role, answer, act }
}

/// Request codes: a new VM, more memory for one, its registers, and a system management interrupt.
const KVM: [u64; 4] = [0xae01, 0x4020_ae46, 0x4138_ae84, 0xaeb7];
/// Not in the libc crate.
const F_SETSIG: libc::c_int = 10;
const F_SETOWN_EX: libc::c_int = 15;
const WRITES: [libc::c_int; 5] = [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC, libc::O_TMPFILE];

#[rustfmt::skip]
const ATTACKS: &[Attack] = &[
    attack("kill a thread of another process", Vcpu, Error(libc::EACCES), || call(libc::SYS_tkill, [1, 0])),
    attack("kill a thread of another process, from main", Main, Error(libc::EACCES), || call(libc::SYS_tkill, [1, 0])),
    attack("signal another process", Queue, Stopped("tgkill"), || call(libc::SYS_tgkill, [1, 1, 0])),
    attack("kill another process", Main, Stopped("kill"), || call(libc::SYS_kill, [1, 0])),
    attack("let a descriptor signal another process", Vcpu, Stopped("fcntl"), || fcntl(libc::F_SETOWN, 1)),
    attack("the same in its newer form", Vcpu, Stopped("fcntl"), || fcntl(F_SETOWN_EX, 0)),
    attack("choose a descriptor's signal", Console, Stopped("fcntl"), || fcntl(F_SETSIG, libc::SIGKILL as u64)),
    attack("turn a descriptor's signal on", Main, Stopped("fcntl"), || fcntl(libc::F_SETFL, libc::O_ASYNC as u64)),
    attack("turn it on by ioctl", Console, Stopped("ioctl"), || call(libc::SYS_ioctl, [0, libc::FIOASYNC, 0])),
    attack("own a descriptor's signals by ioctl", Main, Stopped("ioctl"), || call(libc::SYS_ioctl, [0, 0x8901, 0])),
    attack("make an append-only file an ordinary one", Main, Stopped("fcntl"), || fcntl(libc::F_SETFL, 0)),
    attack("ask for signals about a directory", Api, Stopped("fcntl"), || fcntl(libc::F_NOTIFY, 0)),
    attack("take a lock that others wait for", Api, Stopped("fcntl"), || fcntl(libc::F_SETLK, 0)),
    attack("move another process to one processor", Vcpu, Stopped("sched_setaffinity"), || {
        call(libc::SYS_sched_setaffinity, [1, 8, (&raw const ONE).addr() as u64])
    }),
    attack("answer the filter's signal", Queue, Stopped("rt_sigaction"), || {
        call(libc::SYS_rt_sigaction, [libc::SIGSYS as u64, 0, 0, 8])
    }),
    attack("ignore the filter's signal, from main", Main, Stopped("rt_sigaction"), || {
        // SAFETY: SIG_IGN is a valid handler.
        unsafe { libc::signal(libc::SIGSYS, libc::SIG_IGN) as i64 }
    }),
    attack("make a virtual machine", Vcpu, Stopped("ioctl"), || kvm(KVM[0])),
    attack("give the guest AxVM's memory as RAM", Vcpu, Stopped("ioctl"), || kvm(KVM[1])),
    attack("change a vCPU's system registers", Vcpu, Stopped("ioctl"), || kvm(KVM[2])),
    attack("an ioctl of KVM that no thread needs", Main, Stopped("ioctl"), || kvm(KVM[3])),
    attack("run a vCPU from the control socket's thread", Api, Stopped("ioctl"), || kvm(0xae80)),
    attack("make a socket", Main, Stopped("socket"), || call(libc::SYS_socket, [libc::AF_UNIX as u64, 2, 0])),
    attack("reach a socket file", Main, Stopped("connect"), || call(libc::SYS_connect, [0, 0, 0])),
    attack("send a datagram to any socket file", Main, Stopped("sendto"), send_to_any),
    attack("the same by a message", Main, Stopped("sendmsg"), || call(libc::SYS_sendmsg, [0, 0, 0])),
    attack("give the kernel a program for a socket", Api, Stopped("setsockopt"), || {
        call(libc::SYS_setsockopt, [0, libc::SOL_SOCKET as u64, libc::SO_ATTACH_FILTER as u64, 0, 0])
    }),
    attack("write into AxVM's memory past its protection", Main, Stopped("openat"), || open(c"/proc/self/mem", WRITES[0])),
    attack("the same with reading", Api, Stopped("openat"), || open(c"/proc/self/mem", WRITES[1])),
    attack("make a file", Main, Stopped("openat"), || open(c"/tmp/axvm-attack", WRITES[2])),
    attack("empty a file", Main, Stopped("openat"), || open(c"/dev/null", WRITES[3])),
    attack("make a file without a name", Main, Stopped("openat"), || open(c"/tmp", WRITES[4])),
    attack("write a file by the older call", Main, Stopped("open"), || {
        call(libc::SYS_open, [c"/proc/self/mem".as_ptr().addr() as u64, libc::O_RDWR as u64, 0])
    }),
    attack("open a file by the newer call", Main, Stopped("openat2"), || call(libc::SYS_openat2, [0, 0, 0, 0])),
    attack("write into another process", Main, Stopped("process_vm_writev"), || call(libc::SYS_process_vm_writev, [1])),
    attack("take a descriptor of another process", Main, Stopped("pidfd_getfd"), || call(libc::SYS_pidfd_getfd, [0, 0, 0])),
    attack("get a way around the filter", Vcpu, Stopped("io_uring_setup"), || call(libc::SYS_io_uring_setup, [1, 0])),
    attack("enable a ring", Main, Stopped("io_uring_register"), || call(libc::SYS_io_uring_register, [0, 12, 0, 0])),
    attack("enter a ring that is registered, not open", Queue, Stopped("io_uring_enter"), || {
        call(libc::SYS_io_uring_enter, [0, 1, 0, 1 << 4])
    }),
    attack("hand a request to a ring from a console's thread", Console, Stopped("io_uring_enter"), || {
        call(libc::SYS_io_uring_enter, [0, 1, 0, 0])
    }),
    attack("give it a file from a vCPU", Vcpu, Stopped("io_uring_register"), || {
        call(libc::SYS_io_uring_register, [0, 2, 0, 0])
    }),
    attack("load a program into the kernel", Main, Stopped("bpf"), || call(libc::SYS_bpf, [0, 0, 0])),
    attack("leave the user's namespace", Main, Stopped("unshare"), || call(libc::SYS_unshare, [libc::CLONE_NEWUSER as u64])),
    attack("debug another process", Main, Stopped("ptrace"), || call(libc::SYS_ptrace, [16, 1, 0])),
    attack("become another program", Main, Stopped("execve"), || call(libc::SYS_execve, [0, 0, 0])),
];

static ONE: u64 = 1;

fn call<const COUNT: usize>(number: i64, arguments: [u64; COUNT]) -> i64 {
    let mut all = [0; 6];
    all[..COUNT].copy_from_slice(&arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: numbers, null pointers, or places that live and fit.
    unsafe { libc::syscall(number, a, b, c, d, e, f) }
}

fn fcntl(command: libc::c_int, argument: u64) -> i64 {
    call(libc::SYS_fcntl, [2, command as u64, argument])
}

fn kvm(request: u64) -> i64 {
    call(libc::SYS_ioctl, [u64::MAX, request, 0])
}

fn open(path: &std::ffi::CStr, flags: libc::c_int) -> i64 {
    call(libc::SYS_openat, [libc::AT_FDCWD as u64, path.as_ptr().addr() as u64, flags as u64, 0o600])
}

/// An address whose lower half is zero must not pass for none.
fn send_to_any() -> i64 {
    call(libc::SYS_sendto, [0, 0, 0, 0, 1 << 32, 110])
}

/// Hides Landlock, closes the sandbox, and acts.
fn inside(attack: &Attack, hidden: bool) -> i32 {
    if hidden {
        hide_landlock();
    }
    arm(&Files::default()).unwrap();
    let act = attack.act;
    let run = move || {
        let result = act();
        (result, io::Error::last_os_error().raw_os_error())
    };
    let (result, error) = match attack.role {
        Main => run(),
        role => thread::Builder::new()
            .name("attacker".into())
            .spawn(move || {
                enter(role);
                run()
            })
            .unwrap()
            .join()
            .unwrap(),
    };
    match attack.answer {
        Error(expected) if result == -1 && error == Some(expected) => REFUSED,
        _ => SUCCEEDED,
    }
}

/// As a kernel that does not know it.
fn hide_landlock() {
    let rules = BTreeMap::from([(libc::SYS_landlock_create_ruleset, Vec::new())]);
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, unknown, TargetArch::x86_64).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// The test runner has a thread already; a fork of it has one, which `arm` asks for. Its exit code, or 128 and the
/// signal that ended it.
fn as_a_fork(body: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the runner's other thread only waits for this one: it holds no lock that the child needs.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
        // SAFETY: _exit takes any code.
        unsafe { libc::_exit(ended.unwrap_or(101)) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the answer.
    unsafe { libc::waitpid(child, &mut status, 0) };
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 128 + libc::WTERMSIG(status) }
}

/// This program once more, for `test` alone, told `what` to do.
fn again(test: &str, what: &str) -> Output {
    let this = std::env::current_exe().unwrap();
    Command::new(this).args([test, "--exact", "--nocapture", "--test-threads=1"]).env(INSIDE, what).output().unwrap()
}

#[test]
fn every_attack_is_answered_with_landlock_and_without() {
    if let Ok(what) = std::env::var(INSIDE) {
        let (number, hidden) = what.split_once(' ').unwrap();
        let attack = &ATTACKS[number.parse::<usize>().unwrap()];
        std::process::exit(as_a_fork(|| inside(attack, hidden == "hidden")));
    }
    let mut wrong = Vec::new();
    for (number, Attack { what, role, answer, .. }) in ATTACKS.iter().enumerate() {
        for landlock in ["shown", "hidden"] {
            let output = again("every_attack_is_answered_with_landlock_and_without", &format!("{number} {landlock}"));
            let (code, told) = (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
            let good = match answer {
                Error(_) => code == Some(REFUSED),
                Stopped(call) => {
                    code == Some(128 + libc::SIGSYS)
                        && told.contains(&format!("({call}) is not on its list"))
                        && told.contains("works without\n")
                        && (*role == Main || told.contains("thread attacker: "))
                }
            };
            if !good {
                wrong.push(format!("{what}, Landlock {landlock}: {code:?} {told}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// How often the handler of SIGSYS ran.
static PROBES: AtomicU32 = AtomicU32::new(0);

/// An attacker writes into AxVM's memory what the handler is to call, and so gets control back after each call that was
/// stopped: here it makes the next one. That works once.
#[test]
fn an_attacker_that_survives_the_first_call_ends_with_the_second() {
    if std::env::var(INSIDE).is_ok() {
        let code = as_a_fork(|| {
            on_violation(|| {
                // As the kernel has it: bit n-1 is signal n.
                let set = 1u64 << (libc::SIGSYS - 1);
                call(libc::SYS_rt_sigprocmask, [libc::SIG_UNBLOCK as u64, (&raw const set).addr() as u64, 0, 8]);
                if PROBES.fetch_add(1, Ordering::Relaxed) == 3 {
                    // SAFETY: _exit takes any code.
                    unsafe { libc::_exit(SUCCEEDED) };
                }
                call(libc::SYS_ptrace, [0; 3]);
            });
            arm(&Files::default()).unwrap();
            call(libc::SYS_execve, [0; 3]);
            SUCCEEDED
        });
        std::process::exit(code);
    }
    let output = again("an_attacker_that_survives_the_first_call_ends_with_the_second", "probe");
    assert_eq!(output.status.code(), Some(128 + libc::SIGSYS), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `exec 9</etc/shadow; axvm run ...`: what has no close-on-exec flag came from outside.
#[test]
fn descriptors_that_the_starter_left_open_are_closed() {
    if std::env::var(INSIDE).is_ok() {
        let code = as_a_fork(|| {
            let own = File::open("/etc/passwd").unwrap();
            // SAFETY: `dup` takes a number, and clears the flag of the copy.
            let left = unsafe { libc::dup(own.as_raw_fd()) };
            let report = arm(&Files::default()).unwrap().to_string();
            assert!(report.contains("descriptors: on (closed those that AxVM was started with: "), "{report}");
            assert!(report.contains(&left.to_string()), "{report}");
            let flags = |fd: i32| call(libc::SYS_fcntl, [fd as u64, libc::F_GETFD as u64, 0]);
            assert_eq!(flags(left), -1, "it is closed");
            assert_eq!([flags(0), flags(1), flags(2)], [0; 3], "the standard ones stay");
            assert_eq!(flags(own.as_raw_fd()), i64::from(libc::FD_CLOEXEC), "what AxVM opened stays");
            REFUSED
        });
        std::process::exit(code);
    }
    let output = again("descriptors_that_the_starter_left_open_are_closed", "left");
    assert_eq!(output.status.code(), Some(REFUSED), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The socket that AxVM connected before reaches the service manager, and the same call with an address does not pass.
#[test]
fn a_connected_datagram_socket_goes_on_to_work() {
    if std::env::var(INSIDE).is_ok() {
        let code = as_a_fork(|| {
            let directory = tempfile::tempdir().unwrap();
            let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
            let socket = UnixDatagram::unbound().unwrap();
            socket.connect(directory.path().join("notify")).unwrap();
            arm(&Files { sockets_in: vec![directory.path().into()], ..Files::default() }).unwrap();
            socket.send(b"READY=1").unwrap();
            assert_eq!(manager.recv(&mut [0; 16]).unwrap(), 7);
            std::fs::remove_file(directory.path().join("notify")).unwrap();
            std::mem::forget(directory);
            REFUSED
        });
        std::process::exit(code);
    }
    let output = again("a_connected_datagram_socket_goes_on_to_work", "notify");
    assert_eq!(output.status.code(), Some(REFUSED), "{}", String::from_utf8_lossy(&output.stderr));
}
