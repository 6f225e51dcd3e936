//! What the threads of one console share, and what they call.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};

use axvm_sync::{EventFd, lock};

use crate::Key;
use crate::replay::Replay;

/// What a console calls. From threads of its own; none of these may wait for the console.
pub struct Hooks {
    /// The user pressed a key meant for AxVM.
    pub on_key: Box<dyn Fn(Key) + Send + Sync>,
    /// Something the user should know, as one sentence.
    pub on_warning: Box<dyn Fn(String) + Send + Sync>,
    /// The user asked for the keys: this is the answer, if the console's output is elsewhere.
    pub on_help: Box<dyn Fn(String) + Send + Sync>,
    /// What the key to quit does, for the help: `ends the machine`.
    pub quit: &'static str,
    /// Whether the other end is a serial line, where Ctrl-A b sends a BREAK.
    pub has_break: bool,
}

/// Clients on their way in at once, more than a console serves; the rest of a crowd is turned away at once.
pub const ARRIVALS_LIMIT: usize = 128;

/// A client on its way in.
pub struct Arrival {
    pub stream: UnixStream,
    /// What it sent already.
    pub typed: Vec<u8>,
}

/// What the threads of one console share.
pub struct ConsoleShared {
    pub hooks: Hooks,
    /// Set to make the hub look around.
    pub wake: EventFd,
    /// Set once no more output will come.
    pub closing: EventFd,
    /// Set once the user no longer waits for output.
    pub given_up: EventFd,
    /// Set by the hub when it has ended.
    pub ended: EventFd,
    arrivals: Mutex<Vec<Arrival>>,
    replay: Mutex<Replay>,
}

impl ConsoleShared {
    /// Nothing is set.
    pub fn new(hooks: Hooks) -> io::Result<ConsoleShared> {
        let (wake, closing, given_up, ended) = (EventFd::new()?, EventFd::new()?, EventFd::new()?, EventFd::new()?);
        let (arrivals, replay) = Default::default();
        Ok(ConsoleShared { hooks, wake, closing, given_up, ended, arrivals, replay })
    }

    /// Clients that came since the last call.
    pub fn arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut lock(&self.arrivals))
    }

    /// The guest's latest output.
    pub fn replay(&self) -> MutexGuard<'_, Replay> {
        lock(&self.replay)
    }
}

/// Adds clients to a console. Clones add to the same one.
#[derive(Clone)]
pub struct Attacher(Arc<ConsoleShared>);

impl Attacher {
    /// The way into this console.
    pub(crate) fn to(shared: &Arc<ConsoleShared>) -> Attacher {
        Attacher(Arc::clone(shared))
    }

    /// The last 64 KiB that the guest wrote, as far as the console has taken them.
    pub fn latest_output(&self) -> Vec<u8> {
        self.0.replay().bytes().into()
    }

    /// Adds a client, whatever the back end: it gets the last 64 KiB, then what the guest writes; what it sent (`typed`)
    /// and will send is typed. A console that has ended hangs up, and so does one on which a crowd waits already.
    pub fn attach(&self, stream: UnixStream, typed: Vec<u8>) {
        let mut arrivals = lock(&self.0.arrivals);
        if arrivals.len() < ARRIVALS_LIMIT {
            arrivals.push(Arrival { stream, typed });
        }
        drop(arrivals);
        self.0.wake.signal();
        if self.0.ended.is_signalled() {
            drop(self.0.arrivals());
        }
    }
}
