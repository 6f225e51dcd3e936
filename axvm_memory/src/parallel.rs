//! Work on all of guest RAM, by as many threads as the host has processors.
//!
//! ```text
//!   chunks:   | 0 | 1 | 2 | 3 | 4 | ...        a thread that is done takes the next one
//! ```
//!
//! No specification. Left out: a choice of processors or NUMA nodes; the kernel places the threads.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use axvm_sandbox::Role;

use crate::mapping::Mapping;

/// Length of one piece of work in bytes, unless a page is longer: small enough to share evenly.
const CHUNK: usize = 64 << 20;

/// Calls `work` once for every byte of `maps`, in chunks of whole pages; returns the first error.
pub(crate) fn for_each_chunk(maps: &[&Mapping], work: fn(&Mapping, Range<usize>) -> io::Result<()>) -> io::Result<()> {
    let chunks: Vec<_> = maps.iter().flat_map(|map| chunks(map).map(move |range| (map, range))).collect();
    let next = AtomicUsize::new(0);
    let run = || {
        // Relaxed: each chunk has to be taken once, and joining the threads orders what they wrote.
        while let Some((map, range)) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(map, range.clone())?;
        }
        Ok(())
    };
    let count = thread::available_parallelism().map_or(1, usize::from).min(chunks.len());
    thread::scope(|scope| {
        // A thread that the host does not give is not missed: the others take its chunks.
        let start = |_| axvm_sandbox::spawn_scoped(scope, Role::Ram, "ram", run).ok();
        let others: Vec<_> = (1..count).filter_map(start).collect();
        let mine = run();
        others.into_iter().map(|thread| thread.join().expect("work on RAM does not panic")).fold(mine, Result::and)
    })
}

/// The ranges that `map` is worked on in, none of which splits a page.
fn chunks(map: &Mapping) -> impl Iterator<Item = Range<usize>> {
    let (len, step) = (map.len(), map.page_len().max(CHUNK));
    (0..len).step_by(step).map(move |first| first..len.min(first + step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageSize, RamConfig};

    fn map(len: usize) -> Mapping {
        Mapping::new(len, &RamConfig::new(len as u64), None).unwrap()
    }

    #[test]
    fn chunks_cover_every_byte_once() {
        let ranges: Vec<_> = chunks(&map(2 * CHUNK + 4096)).collect();
        assert_eq!(ranges, [0..CHUNK, CHUNK..2 * CHUNK, 2 * CHUNK..2 * CHUNK + 4096]);
        assert!(chunks(&map(4096)).eq(std::iter::once(0..4096)));
    }

    #[test]
    fn threads_do_not_meet_in_one_page() {
        let config = RamConfig { pages: PageSize::Huge1G, ..RamConfig::new(2 << 30) };
        let map = Mapping::new(2 << 30, &config, None).unwrap();
        assert!(chunks(&map).eq([0..1 << 30, 1 << 30..2 << 30]));
    }

    #[test]
    fn the_first_error_comes_back() {
        let maps = [map(5 * CHUNK), map(4096)];
        let maps = [&maps[0], &maps[1]];
        assert!(for_each_chunk(&maps, |_, _| Ok(())).is_ok());
        let last = |_: &Mapping, range: Range<usize>| match range.start {
            start if start == 4 * CHUNK => Err(io::ErrorKind::OutOfMemory.into()),
            _ => Ok(()),
        };
        assert_eq!(for_each_chunk(&maps, last).unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }
}
