//! How threads wake, wait for and exclude each other.
//!
//! ```text
//!   EventFd   signal() in one thread, KVM or a device --> readable --> take() or wait_any() in another
//!   wait_any  sleeps until one of several descriptors is readable, or until a deadline
//!   lock      a mutex, also after a thread panicked with it
//! ```
//!
//! Sources: eventfd(2), poll(2). Left out: semaphore mode, writability, counters other than "signalled or not".
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads of their own"))]

mod event_fd;
mod wait;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use event_fd::EventFd;
pub use wait::wait_any;

/// Locks `mutex`.
///
/// One that is poisoned, too: a thread that panics is reported where it is joined, and each structure here is sound
/// after every single step of a change. To refuse the lock would only turn one fault into a fault of every thread.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_lock_outlives_the_panic_of_its_owner() {
        let mutex = Mutex::new(1);
        let panicked = thread::scope(|scope| {
            scope
                .spawn(|| {
                    let mut value = lock(&mutex);
                    *value = 2;
                    panic!("on purpose");
                })
                .join()
        });
        assert!(panicked.is_err() && mutex.is_poisoned());
        assert_eq!(*lock(&mutex), 2);
    }
}
