//! The system calls of AxVM: which threads make them, with which arguments, and why.
//!
//! A row is: name, threads besides main, condition on the arguments, reason. Main may use every row (see the crate's
//! head), so its name stands only where no other thread is. What is not here stops the process; what is in [`REFUSED`]
//! gets an error that the caller can live with.
//!
//! Every row was seen with strace in some thread, with a C library linked either way (glibc 2.36), but for those whose
//! reason begins with a bracket: `[older]`, `[newer]` glibc, `[musl]`, and `[rare]` for what no test brings about.
//! The rings of disks (io_uring) are set up, registered and limited before `arm`: a queue's thread only enters them.
//!
//! Spec: syscalls(2).

use libc::c_long;

use crate::{Role, kvm};

/// A set of roles, one bit each.
pub(crate) type Roles = u8;

const VCPU: Roles = 1 << Role::Vcpu as u8;
const QUEUE: Roles = 1 << Role::Queue as u8;
const CONSOLE: Roles = 1 << Role::Console as u8;
const API: Roles = 1 << Role::Api as u8;
const RAM: Roles = 1 << Role::Ram as u8;
const LINT: Roles = 1 << Role::Lint as u8;
const GDB: Roles = 1 << Role::Gdb as u8;

const MAIN: Roles = 1 << Role::Main as u8;
/// All but main.
const ALL: Roles = DATA | RAM | LINT | GDB;
/// Those that make the queue threads: a vCPU at DRIVER_OK, the control socket's at the end of a pause.
const MAKERS: Roles = VCPU | API;
/// What the queue threads may, their makers must.
const WORK: Roles = QUEUE | MAKERS;
const DATA: Roles = WORK | CONSOLE;

/// What must hold for the arguments.
pub(crate) enum When {
    Always,
    /// Of argument `.0`, the bits `.1` are `.2`.
    Bits(u8, u64, u64),
    /// Argument `.0` is one of these.
    OneOf(u8, &'static [u64]),
    /// The same on a machine with PCI; without, the row is not there.
    OnPci(u8, &'static [u64]),
    /// Argument `.0` is another number than `.1`.
    Not(u8, u64),
    /// Argument `.0`, a pointer, is null.
    Null(u8),
    /// Argument `.0` is the process itself.
    Own(u8),
}
use When::{Always, Bits, Not, Null, OnPci, OneOf, Own};

pub(crate) struct Row(pub c_long, pub Roles, pub When, #[allow(dead_code, reason = "for readers")] pub &'static str);

const UNIX: When = Bits(0, u64::MAX, libc::AF_UNIX as u64);
const NOT_EXEC: When = Bits(2, libc::PROT_EXEC as u64, 0);
const A_THREAD: When = Bits(0, THREAD, THREAD);
const THREAD: u64 = (libc::CLONE_VM | libc::CLONE_THREAD) as u64;
/// Not F_SETFL (an append-only file would be one no more), nor what sends signals (F_SETOWN, F_SETSIG, O_ASYNC).
const DESCRIPTOR: &[u64] =
    &[libc::F_DUPFD_CLOEXEC as u64, libc::F_GETFD as u64, libc::F_SETFD as u64, libc::F_GETFL as u64];
/// Flags of open(2) with which a file is changed or made.
const WRITE: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u64;
/// SO_RCVTIMEO and SO_SNDTIMEO, in both forms.
const TIME_LIMITS: &[u64] = &[20, 21, 66, 67];
const TERMINAL: &[u64] = &[
    number(libc::TCGETS),
    number(libc::TCSETS),
    number(libc::TCSETSW),
    number(libc::TCSETSF),
    number(libc::TCGETS2),
    number(libc::TCSETS2),
    number(libc::TCSETSW2),
    number(libc::TCSETSF2),
    number(libc::TIOCGWINSZ),
    number(libc::TIOCGPGRP),
    number(libc::FIONBIO),
    number(libc::FIONREAD),
    number(libc::FIOCLEX),
    number(libc::TCFLSH),
];
const PTY: &[u64] = &[number(libc::TIOCGPTN), number(libc::TIOCSPTLCK), TIOCGPTPEER];
/// TUNSETOFFLOAD: what the driver takes; TUNSETQUEUE: how many queues it uses. Not what attaches to an interface.
const TAP: &[u64] = &[0x4004_54d0, 0x4004_54d9];
/// A request of ioctl(2), whose type differs between C libraries.
const fn number(request: libc::Ioctl) -> u64 {
    request as u32 as u64
}
/// What goes to a ring, and waiting for it (IORING_ENTER_GETEVENTS); not other ways to name a ring, or what it holds.
const ENTER: &[u64] = &[0, 1];
/// IORING_REGISTER_FILES; not what enables a ring.
const REGISTER_FILES: u64 = 2;
/// Not in the libc crate for all C libraries.
const TIOCGPTPEER: u64 = 0x5441;
/// Thread name; PR_GET_AUXV; PR_SET_VMA, with which newer C libraries name their heaps.
const OWN: &[u64] = &[libc::PR_SET_NAME as u64, libc::PR_GET_NAME as u64, 0x4155_5856, 0x5356_4d41];
const FILTER: When = Bits(0, u64::MAX, libc::SECCOMP_SET_MODE_FILTER as u64);

/// Calls that get an error instead of an end, and in which threads. The C library then makes threads by clone, whose
/// flags a filter can read; allocators and backtraces live without the files they look into. tkill knows no process, so
/// it reaches those of others: musl's abort, which uses it, then ends by an instruction that is not allowed.
#[rustfmt::skip]
pub(crate) const REFUSED: &[(u32, Roles, &[c_long])] = &[
    (libc::ENOSYS as u32, MAIN | ALL, &[libc::SYS_clone3]),
    (libc::EACCES as u32, ALL & !API, &[libc::SYS_open, libc::SYS_openat]),
    (libc::EACCES as u32, MAIN | ALL, &[libc::SYS_readlink, libc::SYS_readlinkat, libc::SYS_getcwd, libc::SYS_access, libc::SYS_tkill]),
];

/// Longer than a function may be: it is only data.
#[rustfmt::skip]
pub(crate) const TABLE: &[Row] = &[
    // Bytes in and out of what is open.
    Row(libc::SYS_read, DATA | GDB, Always, "eventfds, timers, files"),
    Row(libc::SYS_write, ALL, Always, "eventfds, consoles, warnings"),
    Row(libc::SYS_writev, ALL, Always, "[rare] long frames, from RAM to a tap; last words of the C library"),
    Row(libc::SYS_pread64, CONSOLE, Always, "a console file at its limit, into its older generation"),
    Row(libc::SYS_ftruncate, CONSOLE, Always, "a console file at its limit starts over"),
    Row(libc::SYS_preadv, DATA | LINT | GDB, Always, "disks, kernel and initrd, straight into RAM; a look into the latter"),
    Row(libc::SYS_pwritev, WORK, Always, "disks, straight from RAM"),
    Row(libc::SYS_lseek, API | GDB, Always, "the size of a disk that grew; the list of mappings, for a backtrace"),
    Row(libc::SYS_io_uring_enter, WORK, OneOf(3, ENTER), "disks with an io_uring, which was told before what it may do"),
    Row(libc::SYS_fdatasync, WORK, Always, "flush"),
    Row(libc::SYS_fallocate, WORK | RAM, Always, "discard, write zeroes, clear RAM"),
    Row(libc::SYS_fstat, CONSOLE | API | GDB, Always, "[musl] what a descriptor is"),
    Row(libc::SYS_lstat, CONSOLE | API, Always, "[musl] the same as statx"),
    Row(libc::SYS_stat, CONSOLE | API, Always, "[musl] the same as statx"),
    Row(libc::SYS_newfstatat, CONSOLE | API, Always, "[rare] statx, where an outer filter forbids it"),
    Row(libc::SYS_fstatfs, API, Always, "room on the file system of a disk"),
    Row(libc::SYS_statx, CONSOLE | API | GDB, Always, "whether a socket is still ours, sizes of files"),
    Row(libc::SYS_fcntl, DATA | GDB, OneOf(1, DESCRIPTOR), "flags and copies of descriptors"),
    Row(libc::SYS_fcntl, API, OnPci(1, &[libc::F_SETLK as u64]), "the lock of an image that a client hands over"),
    Row(libc::SYS_fcntl, LINT, OneOf(1, &[libc::F_GETFD as u64]), "[debug] whether a descriptor is open, before it is closed"),
    Row(libc::SYS_close, DATA | LINT | GDB, Always, "ends of descriptors"),
    Row(libc::SYS_getrandom, DATA | GDB, Always, "entropy device, hash maps"),
    // Files by name, for reading. Landlock says which.
    Row(libc::SYS_open, API, Bits(1, WRITE, 0), "[musl] openat"),
    Row(libc::SYS_openat, API, Bits(2, WRITE, 0), "/proc/self/smaps: pages behind RAM; /proc and /sys of the libraries"),
    Row(libc::SYS_unlink, CONSOLE, Always, "sockets at the end"),
    // Waiting.
    Row(libc::SYS_ppoll, ALL, Always, "descriptors; whether standard error takes a line"),
    Row(libc::SYS_eventfd2, MAKERS, Always, "kicks, interrupts"),
    Row(libc::SYS_timerfd_create, MAIN, Always, "clock of the machine"),
    Row(libc::SYS_timerfd_settime, VCPU, Always, "alarms of the clock"),
    Row(libc::SYS_nanosleep, ALL, Always, "[older] pauses"),
    Row(libc::SYS_clock_nanosleep, ALL, Always, "pauses"),
    Row(libc::SYS_clock_gettime, ALL, Always, "[rare] where the vDSO cannot"),
    Row(libc::SYS_futex, ALL, Always, "locks, ends of threads"),
    Row(libc::SYS_sched_yield, ALL, Always, "[rare] waits for another vCPU or worker"),
    Row(libc::SYS_restart_syscall, ALL, Always, "[rare] a wait that a signal broke"),
    // Sockets: those that are connected or listen, and their clients.
    Row(libc::SYS_socketpair, MAIN, UNIX, "the self-test's console"),
    Row(libc::SYS_accept4, CONSOLE | WORK | GDB, Always, "clients"),
    Row(libc::SYS_recvfrom, CONSOLE | API, Always, "clients"),
    Row(libc::SYS_recvmsg, WORK, Always, "connections of a socket device, which another process has made"),
    Row(libc::SYS_sendto, DATA, Null(4), "clients, connections of a socket device, service manager"),
    Row(libc::SYS_shutdown, WORK, Always, "half-closes of a socket device's connections; clients that are turned away"),
    Row(libc::SYS_getsockopt, API, Always, "who the client is"),
    Row(libc::SYS_setsockopt, CONSOLE | API, OneOf(2, TIME_LIMITS), "time limits"),
    // KVM and terminals.
    Row(libc::SYS_ioctl, VCPU, OneOf(1, kvm::VCPU), "KVM_RUN first: the call that counts"),
    Row(libc::SYS_ioctl, VCPU, OnPci(1, kvm::PCI), "interrupt messages and doorbells that a guest changes"),
    Row(libc::SYS_ioctl, API, OnPci(1, kvm::HOTPLUG), "a device that comes while the guest runs"),
    Row(libc::SYS_ioctl, MAIN | CONSOLE | API | GDB, OneOf(1, kvm::BUTTON), "the power button's interrupt"),
    Row(libc::SYS_ioctl, ALL, OneOf(1, TERMINAL), "terminals as they were found; typing into one (TIOCSTI) is not here"),
    Row(libc::SYS_ioctl, CONSOLE, OneOf(1, PTY), "pseudo-terminals"),
    Row(libc::SYS_ioctl, WORK, OneOf(1, TAP), "a tap, as its driver wants it"),
    Row(libc::SYS_ioctl, MAIN, OneOf(1, kvm::MAKER), "the next machine"),
    Row(libc::SYS_io_uring_register, MAIN, OneOf(1, &[REGISTER_FILES]), "the last VM, to the ring that outlives the process; it is never enabled"),
    // Memory: never executable.
    Row(libc::SYS_mmap, ALL, NOT_EXEC, "heaps, stacks, RAM, kvm_run"),
    Row(libc::SYS_mprotect, ALL, NOT_EXEC, "heaps, guards of stacks"),
    Row(libc::SYS_munmap, ALL, Always, "heaps, stacks, RAM"),
    Row(libc::SYS_mremap, ALL, Always, "[rare] heaps"),
    Row(libc::SYS_brk, ALL, Always, "heaps"),
    Row(libc::SYS_madvise, ALL, Always, "heaps, stacks, balloon, RAM"),
    // Threads: made, named, told apart, ended; never a process.
    Row(libc::SYS_clone, MAKERS, A_THREAD, "threads"),
    Row(libc::SYS_set_robust_list, ALL, Always, "the C library, in each thread"),
    Row(libc::SYS_rseq, ALL, Always, "the C library, in each thread"),
    Row(libc::SYS_prctl, ALL, OneOf(0, OWN), "names of threads, the auxiliary vector, names of heaps"),
    Row(libc::SYS_seccomp, MAKERS, FILTER, "a new thread gets its filter"),
    Row(libc::SYS_sched_getaffinity, ALL, Always, "count of processors, size of a stack"),
    Row(libc::SYS_setpriority, LINT | CONSOLE | API, OneOf(1, &[0]), "the calling thread, behind the vCPUs; a trace that begins later has the limits of the API's, too"),
    Row(libc::SYS_sched_setaffinity, VCPU, OneOf(0, &[0]), "--pin: the calling thread"),
    Row(libc::SYS_gettid, ALL, Always, "names of threads"),
    Row(libc::SYS_getpid, ALL, Always, "signals to itself"),
    Row(libc::SYS_geteuid, API, Always, "whether a client is the user"),
    Row(libc::SYS_getpgrp, CONSOLE, Always, "whether the terminal is ours"),
    Row(libc::SYS_wait4, CONSOLE, Always, "how passt ended"),
    Row(libc::SYS_exit, ALL, Always, "end of a thread"),
    Row(libc::SYS_exit_group, ALL, Always, "end of the process"),
    // Signals.
    Row(libc::SYS_tgkill, ALL, Own(0), "kicks of vCPUs, abort"),
    Row(libc::SYS_rt_sigaction, ALL, Not(0, libc::SIGSYS as u64), "handlers, but for the filter's own signal"),
    Row(libc::SYS_rt_sigprocmask, ALL, Always, "handlers"),
    Row(libc::SYS_rt_sigreturn, ALL, Always, "end of a handler"),
    Row(libc::SYS_sigaltstack, ALL, Always, "stacks of handlers, in each thread"),
];

/// What the process that connects for a socket device may beside the rows of every thread.
#[rustfmt::skip]
pub(crate) const CONNECTOR: &[Row] = &[
    Row(libc::SYS_recvmsg, 0, Always, "the port that a guest wants"),
    Row(libc::SYS_socket, 0, UNIX, "a connection to a program of the host"),
    Row(libc::SYS_connect, 0, Always, "the same; no filter reads a path, and Landlock does not judge it"),
    Row(libc::SYS_sendmsg, 0, Always, "the connection, or that there is none"),
    Row(libc::SYS_close, 0, Always, "the copy that stays behind"),
    Row(libc::SYS_fcntl, 0, OneOf(1, &[libc::F_GETFD as u64]), "[debug] whether a descriptor is open, before it is closed"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_may_all_that_the_queue_threads_they_make_may() {
        for Row(call, roles, ..) in TABLE {
            assert!(roles & QUEUE == 0 || roles & MAKERS == MAKERS, "call {call}");
        }
    }

    #[test]
    fn no_call_is_both_without_condition_and_with_one() {
        for Row(call, ..) in TABLE.iter().filter(|row| matches!(row.2, Always)) {
            assert_eq!(TABLE.iter().filter(|row| row.0 == *call).count(), 1, "call {call}");
        }
    }
}
