//! The person's terminal while it belongs to a command in the lab: raw, and given back on every way out.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGQUIT, SIGTERM};

/// Typed three times in a row it ends the lab, whatever the command does (Ctrl-]).
const WAY_OUT: u8 = 0x1d;

/// Stdin in raw mode until dropped.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Takes the terminal; signals that would end us give it back first.
    pub(super) fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("Cannot read the terminal's settings")?;
        let restore = before.clone();
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGQUIT, SIGTERM])?;
        thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                let _ = tcsetattr(io::stdin(), OptionalActions::Now, &restore);
                std::process::exit(128 + signal);
            }
        });
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("Cannot set the terminal raw")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Whether a person sits at stdin and stdout.
pub fn attended() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Rows and columns, or those of an old terminal.
pub fn size() -> (u16, u16) {
    tcgetwinsize(io::stdout()).ok().filter(|size| size.ws_row > 0).map_or((24, 80), |size| (size.ws_row, size.ws_col))
}

/// Passes stdin on to the lab until it ends.
pub(super) fn feed(mut job: UnixStream) {
    thread::spawn(move || {
        let (mut chunk, mut ways_out) = ([0; 4096], 0);
        while let Ok(len @ 1..) = io::stdin().lock().read(&mut chunk) {
            for &byte in &chunk[..len] {
                ways_out = if byte == WAY_OUT { ways_out + 1 } else { 0 };
            }
            if ways_out >= 3 {
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM);
            }
            if job.write_all(&chunk[..len]).is_err() {
                break;
            }
        }
    });
}

/// Collects what the command prints, and shows it if wanted; the thread ends with the lab.
pub(super) fn collect(mut job: UnixStream, show: bool) -> (Arc<Mutex<Vec<u8>>>, JoinHandle<()>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&said);
    let thread = thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(len @ 1..) = job.read(&mut chunk) {
            keep.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend_from_slice(&chunk[..len]);
            if show {
                let mut out = io::stdout().lock();
                let _ = out.write_all(&chunk[..len]).and_then(|()| out.flush());
            }
        }
    });
    (said, thread)
}
