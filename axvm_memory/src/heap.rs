//! AxVM's own heap: one for all threads, and small.
//!
//! ```text
//!   usual:  main's heap, and one more for each thread       each of its own pages, most of them empty
//!   here:   one heap for all --> set-up: 300 KB --> give_back() --> 40 KB while the guest runs
//! ```
//!
//! Threads that run take nothing from the heap for each exit, request or packet: so they need no heap of their own to
//! stay out of each other's way. What set-up took and gave back (the command line's grammar above all) lies between what
//! stays, and the C library keeps it.
//!
//! Source: mallopt(3), malloc_trim(3). Left out: other C libraries than glibc, which have neither and need it less.

/// Has all threads share one heap. Call it before the first is made.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes numbers; a C library that does not know this one says so and changes nothing.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1)
    };
}

/// Gives the host back what is free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and locks the heap as every allocation does.
    unsafe {
        libc::malloc_trim(0)
    };
}
