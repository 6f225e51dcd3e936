//! The one way to start a thread: named, and in its role before it does anything else.
//!
//! ```text
//!   spawn(role, name, body):   new thread --> enter(role) --> body
//! ```
//!
//! Clippy forbids the standard library's own functions everywhere else, so no thread can forget its filter.
//!
//! Source: pthread_setname(3): Linux keeps the first 15 bytes of a name.
#![allow(clippy::disallowed_methods, reason = "this is the one way")]

use std::io;
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use crate::{Role, enter};

/// Starts a thread in `role`. Fails where the host gives no more threads.
pub fn spawn<T, F>(role: Role, name: impl Into<String>, body: F) -> io::Result<JoinHandle<T>>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    Builder::new().name(name.into()).spawn(move || {
        enter(role);
        body()
    })
}

/// Starts a thread in `role` that ends before `scope` does. Fails where the host gives no more threads.
pub fn spawn_scoped<'scope, 'env, T, F>(
    scope: &'scope Scope<'scope, 'env>,
    role: Role,
    name: impl Into<String>,
    body: F,
) -> io::Result<ScopedJoinHandle<'scope, T>>
where
    T: Send + 'scope,
    F: FnOnce() -> T + Send + 'scope,
{
    Builder::new().name(name.into()).spawn_scoped(scope, move || {
        enter(role);
        body()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_its_name() {
        let name = || std::thread::current().name().map(str::to_owned);
        assert_eq!(spawn(Role::Queue, "vda-q0", name).unwrap().join().unwrap().as_deref(), Some("vda-q0"));
        let scoped = std::thread::scope(|scope| spawn_scoped(scope, Role::Ram, "ram", name).unwrap().join().unwrap());
        assert_eq!(scoped.as_deref(), Some("ram"));
    }
}
