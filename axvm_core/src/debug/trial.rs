//! What stops a guest on this host's KVM: tried out once, when the first breakpoint wants to know.
//!
//! ```text
//!   thread gdb:   found --event--> ... waits ............ --> answer, kept
//!   main thread:  serve --event--> a small VM, a few instructions --^
//! ```
//!
//! The main thread does it, for the filters of all others refuse to make a VM.
//!
//! No specification: this is AxVM's own.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use axvm_kvm::{DebugSupport, Kvm};
use axvm_sync::{EventFd, lock};

/// How long the main thread may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(2);

/// One trial for all sessions.
pub struct Trial {
    kvm: Arc<Kvm>,
    wanted: EventFd,
    found: Mutex<Option<Result<DebugSupport, String>>>,
    told: Condvar,
}

impl Trial {
    /// To be made on this KVM.
    pub fn open(kvm: &Arc<Kvm>) -> io::Result<Trial> {
        let (found, told) = Default::default();
        Ok(Trial { kvm: Arc::clone(kvm), wanted: EventFd::new()?, found, told })
    }

    /// Readable when the main thread is to [answer](Trial::answer).
    pub fn wanted(&self) -> &EventFd {
        &self.wanted
    }

    /// On the main thread: makes the trial, if it is wanted.
    pub fn answer(&self) {
        if self.wanted.take() && lock(&self.found).is_none() {
            let support = self.kvm.try_debugging().map_err(|error| error.to_string());
            *lock(&self.found) = Some(support);
            self.told.notify_all();
        }
    }

    /// On another thread: what was found; why nothing was.
    pub fn found(&self) -> Result<DebugSupport, String> {
        let mut found = lock(&self.found);
        if found.is_none() {
            self.wanted.signal();
            let waited = self.told.wait_timeout_while(found, PATIENCE, |found| found.is_none());
            found = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let found = found.clone().unwrap_or_else(|| Err("the machine is about to end or to start again".into()));
        found.map_err(|why| format!("AxVM cannot try out what stops a guest here: {why}"))
    }
}
