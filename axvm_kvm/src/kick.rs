//! Kicking: how another thread makes a vCPU come back from guest code.
//!
//! A signal alone is not enough: sent just before `KVM_RUN`, it is handled and forgotten, and the
//! vCPU runs on. So a kick is two things in this order, a flag that stays and a signal that hurries:
//!
//! ```text
//!   kicking thread                       vCPU thread
//!   1  immediate_exit = 1                     |                 arrives      KVM_RUN then
//!   2  tgkill(SIGRTMIN) -----+------> in user space             here: sees the flag, returns EINTR at once
//!                            |            KVM_RUN(checks the flag ...
//!                            +------>         ... signal pending?)  here: sees the signal, EINTR
//!                            +------>     guest code                here: leaves the guest, EINTR
//! ```
//!
//! A signal that comes after KVM looked at the flag is still pending when KVM looks for signals,
//! for handlers run on the way back to user space only. So there is no moment at which a kick is lost.
//!
//! The flag lies in the page that KVM shares for the vCPU; the kicker maps it a second time, so it
//! needs no access to the vCPU itself. The handler does nothing, and is installed without
//! `SA_RESTART`. The same race between "who am I" ([`Kicker::attach`]) and the first kick is closed
//! by order: the vCPU thread stores its id and then looks at the flag, the kicker sets the flag and then
//! looks for the id, so at least one sees the other.
//!
//! Spec: KVM API chapter 5, `immediate_exit`; signal(7), tgkill(2). Left out: `KVM_SET_SIGNAL_MASK`, the older way.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::run_page::RunPage;

/// The other end of a running vCPU: makes it return [`Exit::Interrupted`](crate::Exit::Interrupted).
///
/// It holds the vCPU's file open through its mapping, so the VM's kernel side goes away only when its
/// kickers are gone, too.
#[derive(Debug)]
pub struct Kicker {
    page: RunPage,
    /// The thread that runs the vCPU, as `gettid` says; 0 before [`Kicker::attach`].
    thread: AtomicI32,
}

impl Kicker {
    /// A kicker for the vCPU behind `vcpu`, of which KVM shares `len` bytes.
    pub(crate) fn new(vcpu: &impl AsRawFd, len: usize) -> io::Result<Kicker> {
        install_handler()?;
        Ok(Kicker { page: RunPage::map(vcpu, len)?, thread: AtomicI32::new(0) })
    }

    /// Says that the calling thread runs the vCPU; call it there, before the first run.
    pub fn attach(&self) {
        unblock_signal();
        // SAFETY: takes nothing, always succeeds.
        let thread = unsafe { libc::gettid() };
        // SeqCst here and where `kick` loads, as for the flag that each side looks at (`run_page.rs`): each stores one and
        // then loads the other, and only one order of all four forbids that both miss the other's store.
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// Makes the current run, or else the next one, end; and all following until [`Kicker::clear`].
    ///
    /// Do not kick a vCPU whose thread has ended: another thread of this process may have got its id, and
    /// would see a signal (which does nothing but interrupt a blocking call).
    pub fn kick(&self) {
        self.page.set_immediate_exit(true);
        // SeqCst: see `attach`.
        let thread = self.thread.load(Ordering::SeqCst);
        if thread != 0 {
            // SAFETY: sends a signal with a handler to a thread of this very process; no memory is involved.
            unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), thread, libc::SIGRTMIN()) };
        }
    }

    /// Takes the kick back: the vCPU runs again.
    pub fn clear(&self) {
        self.page.set_immediate_exit(false);
    }
}

/// Gives `SIGRTMIN` a handler, once in the life of the process.
fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: all zeroes is a valid sigaction: default handler, no flags, empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as libc::sighandler_t;
        // SAFETY: the handler does nothing, so it may run anywhere at any time.
        match unsafe { libc::sigaction(libc::SIGRTMIN(), &action, ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
        }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// Lets the signal through to the calling thread: the program that started this process may have blocked it.
fn unblock_signal() {
    // SAFETY: all zeroes is a valid signal set: the empty one.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid signal set of ours.
    unsafe { libc::sigaddset(&mut set, libc::SIGRTMIN()) };
    // SAFETY: changes only the calling thread's mask; cannot fail with these arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut()) };
}
