//! What a debugger needs and only the main thread may do.
//!
//! ```text
//!   thread gdb:   ask(act) --event--> ... waits ... --> what act returned
//!   main thread:  serve ----------------> act() -------^
//! ```
//!
//! The filter of the thread that answers gdb is small: it makes no thread, as the end of a pause does for each queue of a
//! device, and no VM, as the trial of breakpoints does.
//!
//! No specification: this is AxVM's own.

use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use axvm_kvm::{DebugSupport, Kvm};
use axvm_sync::{EventFd, lock};

/// How long the main thread may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(3);

type Errand = Box<dyn FnOnce() + Send>;

/// What the main thread is asked for.
pub struct Errands {
    kvm: Arc<Kvm>,
    wanted: EventFd,
    todo: Mutex<Vec<Errand>>,
    support: OnceLock<Result<DebugSupport, String>>,
}

impl Errands {
    /// None yet.
    pub fn open(kvm: &Arc<Kvm>) -> io::Result<Errands> {
        let (todo, support) = Default::default();
        Ok(Errands { kvm: Arc::clone(kvm), wanted: EventFd::new()?, todo, support })
    }

    /// Readable when the main thread is to [serve](Errands::serve).
    pub fn wanted(&self) -> &EventFd {
        &self.wanted
    }

    /// On the main thread: does what is asked for.
    pub fn serve(&self) {
        if self.wanted.take() {
            let todo = std::mem::take(&mut *lock(&self.todo));
            todo.into_iter().for_each(|act| act());
        }
    }

    /// On another thread: has `act` done. None if the main thread does not come to it, as on the way to an end; then it is
    /// not done later either.
    pub fn ask<T: Send + 'static>(&self, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.ask_within(PATIENCE, act)
    }

    fn ask_within<T: Send + 'static>(&self, limit: Duration, act: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (answer, answered) = sync_channel(1);
        let act = Arc::new(Mutex::new(Some(act)));
        let own = Arc::clone(&act);
        lock(&self.todo).push(Box::new(move || {
            let act = lock(&own).take();
            let _ = act.map(|act| answer.try_send(act()));
        }));
        self.wanted.signal();
        match answered.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(_) if lock(&act).take().is_some() => None,
            // It was begun.
            Err(_) => answered.recv().ok(),
        }
    }

    /// What stops a guest on this host's KVM: tried out once, when the first breakpoint wants to know.
    pub fn support(&self) -> Result<DebugSupport, String> {
        if let Some(support) = self.support.get() {
            return support.clone();
        }
        let kvm = Arc::clone(&self.kvm);
        let tried = self.ask(move || kvm.try_debugging().map_err(|error| error.to_string()));
        let cannot = |why: String| format!("AxVM cannot try out what stops a guest here: {why}");
        match tried {
            Some(tried) => self.support.get_or_init(|| tried.map_err(cannot)).clone(),
            None => Err(cannot("the machine is about to end or to start again".into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    #[test]
    fn an_errand_is_done_on_the_thread_that_serves_or_not_at_all() {
        let Ok(kvm) = Kvm::open() else {
            eprintln!("skipped: no /dev/kvm");
            return;
        };
        let errands = Errands::open(&Arc::new(kvm)).unwrap();
        let late = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&late);
        let none = errands.ask_within(Duration::from_millis(1), move || counted.fetch_add(1, Ordering::Relaxed));
        assert_eq!(none, None, "no thread serves");
        errands.serve();
        assert_eq!(late.load(Ordering::Relaxed), 0, "its client does not wait any more");
        thread::scope(|scope| {
            let ask = || errands.ask(|| thread::current().id());
            let asked = axvm_sandbox::spawn_scoped(scope, axvm_sandbox::Role::Gdb, "asks", ask).unwrap();
            while !asked.is_finished() {
                errands.serve();
                thread::yield_now();
            }
            assert_eq!(asked.join().unwrap(), Some(thread::current().id()));
        });
    }
}
