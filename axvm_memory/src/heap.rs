//! AxVM's own heap: one for all threads, and small.
//!
//! ```text
//!   C library:  main's heap, and one more for each thread   each of its own pages, most of them empty; or a page or more
//!                                                           from the kernel for each larger block
//!   here:       one heap for all --> set-up --> give_back() --> what stays while the guest runs
//! ```
//!
//! Threads that run take nothing from the heap for each exit, request or packet: so they need no heap of their own to
//! stay out of each other's way. And it is the same one whatever the C library.
//!
//! Source: D. Lea, "A Memory Allocator"; the crate `dlmalloc`.
#![allow(unsafe_code, reason = "a global allocator is one")]

use std::alloc::{GlobalAlloc, Layout};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlmalloc::Dlmalloc;

/// The heap of a program: make it its `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

static HEAP: Mutex<Dlmalloc> = Mutex::new(Dlmalloc::new());

/// A thread that panicked in here left nothing half done: there is nothing that could panic.
fn heap() -> MutexGuard<'static, Dlmalloc> {
    HEAP.lock().unwrap_or_else(PoisonError::into_inner)
}

// SAFETY: blocks are what the allocator behind gives, which is asked by one thread at a time.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: any size and alignment may be asked for.
        unsafe { heap().malloc(layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the same.
        unsafe { heap().calloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller has the block from here, with this layout.
        unsafe { heap().free(block, layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller has the block from here, with this layout.
        unsafe { heap().realloc(block, layout.size(), layout.align(), new_size) }
    }
}

/// Gives the host back what is free at the heap's end.
pub fn give_back() {
    // SAFETY: takes a number.
    unsafe { heap().trim(0) };
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    /// All tests of this crate use it.
    #[global_allocator]
    static HEAP: Heap = Heap;

    #[repr(align(256))]
    struct Aligned([u8; 300]);

    #[test]
    fn blocks_of_many_sizes_keep_what_they_hold_while_they_grow() {
        let mut blocks: Vec<Vec<u8>> = (1..400).map(|n| vec![n as u8; n * 37 % 5000]).collect();
        let aligned: Vec<Box<Aligned>> = (0..50).map(|n| Box::new(Aligned([n; 300]))).collect();
        blocks.retain(|block| block.len() % 3 > 0);
        blocks.iter_mut().for_each(|block| block.extend_from_within(..));
        give_back();
        for block in &blocks {
            assert!(block.len() % 2 == 0 && block.iter().all(|byte| *byte == block[0]));
        }
        for (n, block) in aligned.iter().enumerate() {
            assert!(block.0.iter().all(|&byte| usize::from(byte) == n));
            assert!(std::ptr::from_ref(&**block).addr().is_multiple_of(256));
        }
    }

    #[test]
    fn zeroed_blocks_are_where_others_were_too() {
        for len in [100, 3000, 300_000] {
            drop(vec![0xff_u8; len]);
            assert!(vec![0_u8; len].iter().all(|&byte| byte == 0), "{len}");
        }
    }

    #[test]
    fn threads_share_it() {
        let make = |n: u8| move || (0..2000).map(|len| vec![n; len % 300]).collect::<Vec<_>>();
        #[allow(clippy::disallowed_methods, reason = "no sandbox in a test")]
        let threads: Vec<_> = (0..4).map(|n| std::thread::spawn(make(n))).collect();
        let threads = threads.into_iter().map(|thread| thread.join().unwrap());
        for (n, blocks) in threads.enumerate() {
            assert!(blocks.iter().flatten().all(|&byte| usize::from(byte) == n));
        }
    }
}
