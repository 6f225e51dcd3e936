//! A pseudo-terminal for the console: a terminal program opens it, leaves, and comes again.
//!
//! ```text
//!   AxVM: master <--> /dev/pts/N :picocom, screen
//!   inotify ------> "a program opened or closed it"
//! ```
//!
//! The kernel says on the master when the last program has left, not when one comes; inotify does. So AxVM
//! sleeps while no program is there.
//!
//! Spec: POSIX.1-2024, `posix_openpt`; Linux `ioctl_tty(2)` for TIOCGPTPEER.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags, chmod, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, QueueSelector, tcflush, tcgetattr, tcsetattr};

/// The master.
pub struct Pty {
    master: Arc<OwnedFd>,
    watch: OwnedFd,
    path: PathBuf,
}

impl Pty {
    /// A new one: raw, for this user alone, no program attached.
    pub fn open() -> io::Result<Pty> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
        let path = PathBuf::from(OsStr::from_bytes(ptsname(&master, Vec::new())?.as_bytes()));
        chmod(&path, Mode::RUSR | Mode::WUSR)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, &path, WatchFlags::OPEN | WatchFlags::CLOSE)?;
        let pty = Pty { master: Arc::new(master), watch, path };
        pty.clear();
        Ok(pty)
    }

    /// What to open.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The master's descriptor; it does not block.
    pub fn master(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.master)
    }

    /// Whether a program has it open now, or has left and what it typed is still to be read; if neither, it is made
    /// ready for the next. To be asked whenever the descriptor is readable: a program opened or closed it, or did both
    /// (`echo > /dev/pts/N`).
    pub fn is_attached(&self) -> bool {
        self.is_in_use() || {
            self.clear();
            self.is_in_use()
        }
    }

    fn is_in_use(&self) -> bool {
        let mut events = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(&self.watch, &mut events);
        while events.next().is_ok() {}
        let mut master = [PollFd::new(&self.master, PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let asked = poll(&mut master, Some(&now)).is_ok();
        let found = master[0].revents();
        asked && (found.contains(PollFlags::IN) || !found.contains(PollFlags::HUP))
    }

    /// Raw mode, and nothing left of what the last program did not read; what a program typed stays. The kernel knows
    /// "no program is there" only after a first program left: this is one.
    fn clear(&self) {
        if let Ok(mut mode) = tcgetattr(&self.master) {
            mode.make_raw();
            let _ = tcsetattr(&self.master, OptionalActions::Now, &mode);
        }
        if let Some(program) = self.program() {
            let _ = tcflush(program, QueueSelector::IFlush);
        }
    }

    /// Waits, for `limit` at most, until the program has read what the master wrote: the kernel forgets it with
    /// the master.
    pub fn drain(&self, limit: Duration) {
        let start = Instant::now();
        let Some(program) = self.program() else { return };
        // A moment is due in any case: the kernel carries bytes to the other side on a thread of its own.
        std::thread::sleep(Duration::from_millis(20));
        while start.elapsed() < limit && rustix::io::ioctl_fionread(&program).is_ok_and(|unread| unread > 0) {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn program(&self) -> Option<OwnedFd> {
        ioctl_tiocgptpeer(&self.master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).ok()
    }
}

impl AsFd for Pty {
    /// What to wait for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}
