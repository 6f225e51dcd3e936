//! The user's terminal: raw while a machine has it, as it was before in every other moment.
//!
//! ```text
//!   cooked --open, fg--> raw --drop, panic, restore_terminal--> cooked, for good
//!     ^                   |
//!     +--- the shell does this when AxVM is stopped (kill -STOP)
//! ```
//!
//! A process in the background must not touch its terminal: reading stops it (SIGTTIN), and so does setting the mode
//! (SIGTTOU). So AxVM leaves the terminal alone until it is in the foreground: `axvm ... &` runs on, prints, and takes
//! the keyboard at `fg`.
//!
//! Spec: POSIX.1-2024, XBD 11 "General Terminal Interface".

use std::io::IsTerminal;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, Weak};

use axvm_sync::lock;
use rustix::process::{Pid, getpgrp};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

use crate::Size;

/// The terminals that are or were raw.
static TERMINALS: Mutex<Vec<Weak<Terminal>>> = Mutex::new(Vec::new());

/// Gives every terminal back the mode it had before. To be called from anywhere, at any time, as often as you like; a
/// terminal given back stays so.
pub fn restore_terminal() {
    terminals().iter().for_each(|terminal| terminal.leave());
}

/// The first terminal that became raw, for where no lock may be taken: it, our process group, its mode before.
static FIRST: OnceLock<(OwnedFd, Pid, Termios)> = OnceLock::new();

/// Like [`restore_terminal`], for the first terminal that became raw; takes no lock and no memory, and makes no system
/// calls but ioctl(2), so that a signal handler may call it.
pub fn restore_terminal_in_handler() {
    // In the background, setting the mode would stop the process.
    if let Some((fd, group, before)) = FIRST.get()
        && !matches!(tcgetpgrp(fd), Ok(foreground) if foreground != *group)
    {
        let _ = tcsetattr(fd, OptionalActions::Now, before);
    }
}

/// Whether a terminal is raw now: a message then needs `\r\n` at the ends of its lines.
pub fn is_raw() -> bool {
    terminals().iter().any(|terminal| terminal.state().raw)
}

fn terminals() -> Vec<Arc<Terminal>> {
    lock(&TERMINALS).iter().filter_map(Weak::upgrade).collect()
}

/// A terminal with a keyboard.
pub struct Terminal {
    fd: OwnedFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    before: Option<Termios>,
    raw: bool,
    given_back: bool,
}

impl Terminal {
    /// The terminal that `fd` is; none if it is none. A panic anywhere gives it back before the message is printed.
    pub fn new(fd: BorrowedFd<'_>) -> Option<Arc<Terminal>> {
        if !fd.is_terminal() {
            return None;
        }
        let terminal = Arc::new(Terminal { fd: fd.try_clone_to_owned().ok()?, state: Mutex::default() });
        let mut all = lock(&TERMINALS);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&terminal));
        drop(all);
        restore_on_panic();
        Some(terminal)
    }

    /// Whether AxVM has the keyboard. If the terminal is not controlled by a session, everyone has it.
    pub fn is_ours(&self) -> bool {
        !matches!(tcgetpgrp(&self.fd), Ok(foreground) if foreground != getpgrp())
    }

    /// Raw mode, if AxVM has the keyboard; whether it has. Again after the shell had the terminal: it set a mode of
    /// its own meanwhile.
    pub fn enter(&self) -> bool {
        let mut state = self.state();
        if state.given_back || !self.is_ours() {
            state.raw = false;
            return false;
        }
        if state.before.is_none() {
            state.before = tcgetattr(&self.fd).ok();
            if let (Some(before), Ok(fd)) = (&state.before, self.fd.try_clone()) {
                let _ = FIRST.set((fd, getpgrp(), before.clone()));
            }
        }
        if let Some(mut mode) = state.before.clone() {
            mode.make_raw();
            state.raw = tcsetattr(&self.fd, OptionalActions::Now, &mode).is_ok();
        }
        true
    }

    /// Like [`Terminal::enter`], at the cost of one system call if the terminal is raw already.
    pub fn enter_unless_raw(&self) -> bool {
        if self.state().raw && self.is_ours() { true } else { self.enter() }
    }

    /// The mode before, for good.
    pub fn leave(&self) {
        let mut state = self.state();
        state.given_back = true;
        if std::mem::take(&mut state.raw)
            && self.is_ours()
            && let Some(before) = &state.before
        {
            let _ = tcsetattr(&self.fd, OptionalActions::Now, before);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The size of the terminal that `fd` is; zero columns mean that it does not know.
pub fn size(fd: impl AsFd) -> Option<Size> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_col > 0).then_some(Size { columns: size.ws_col, rows: size.ws_row })
}

fn restore_on_panic() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let next = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore_terminal();
            next(panic);
        }));
    });
}
