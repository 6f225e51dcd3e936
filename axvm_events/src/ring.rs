//! A ring of records for one thread that must not wait: it overwrites, and the reader finds out what it missed.
//!
//! ```text
//!            head - capacity           head
//!   reader: ----|---- can be read -------|
//!   writer:     '- is overwritten now    '- next
//! ```
//!
//! The writer says that a slot's record is gone before it writes into the slot: with the head that it stored last. So it
//! may write a draft there, and the record when all of it is known: the memory has come to its processor meanwhile. A
//! reader copies, looks at the head again, and throws away what the writer may have touched meanwhile. So neither waits
//! for the other, no record is half of one and half of another, and what is lost is counted.
//!
//! No specification. Left out: several writers; each thread has a ring of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// Words of a record.
pub const WORDS: usize = 5;

/// Memory that two threads share, a word of it: the processor's, or that of a model.
pub(crate) trait Word {
    fn zero() -> Self;
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    fn fence(order: Ordering);
}

impl Word for AtomicU64 {
    fn zero() -> AtomicU64 {
        AtomicU64::new(0)
    }

    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        AtomicU64::load(self, order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        AtomicU64::store(self, value, order);
    }

    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}

/// What both ends share.
struct Ring<W, const N: usize> {
    /// Records written so far.
    head: W,
    /// A power of two of them.
    slots: Box<[[W; N]]>,
}

/// The writing end: one thread's.
pub(crate) struct RingWriter<W, const N: usize = WORDS> {
    ring: Arc<Ring<W, N>>,
    /// The ring's head, which only this end moves.
    head: u64,
}

/// The reading end.
pub(crate) struct RingReader<W, const N: usize = WORDS> {
    ring: Arc<Ring<W, N>>,
    /// Records read or missed so far.
    next: u64,
}

/// A ring of at least `capacity` records of `N` words: its two ends.
pub(crate) fn ring<W: Word, const N: usize>(capacity: usize) -> (RingWriter<W, N>, RingReader<W, N>) {
    let slot = |_| std::array::from_fn(|_| W::zero());
    let slots = (0..capacity.max(2).next_power_of_two()).map(slot).collect();
    let ring = Arc::new(Ring { head: W::zero(), slots });
    (RingWriter { ring: Arc::clone(&ring), head: 0 }, RingReader { ring, next: 0 })
}

impl<W: Word, const N: usize> Ring<W, N> {
    #[inline]
    fn slot(&self, number: u64) -> &[W; N] {
        // A power of two, and not more than memory has room for.
        &self.slots[number as usize & (self.slots.len() - 1)]
    }
}

impl<W: Word, const N: usize> RingWriter<W, N> {
    /// Adds a record; where the ring is full, over the oldest.
    #[inline]
    pub(crate) fn push(&mut self, record: [u64; N]) {
        self.draft(record);
        self.head += 1;
        // Release: a reader that sees this head sees the whole record.
        self.ring.head.store(self.head, Ordering::Release);
    }

    /// Writes the next record where no reader reads it yet. Its memory comes to the processor meanwhile: to push it later
    /// waits for none.
    #[inline]
    pub(crate) fn draft(&mut self, record: [u64; N]) {
        // A reader that sees one of these words sees the head that says so, too.
        W::fence(Ordering::Release);
        for (word, value) in self.ring.slot(self.head).iter().zip(record) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// The last records, at most `limit` of them, the oldest first: for the thread that wrote them.
    pub(crate) fn last(&self, limit: usize) -> Vec<[u64; N]> {
        let count = self.head.min(limit as u64).min(self.ring.slots.len() as u64);
        let slot = |number| self.ring.slot(number).each_ref().map(|word: &W| word.load(Ordering::Relaxed));
        (self.head - count..self.head).map(slot).collect()
    }
}

impl<W: Word, const N: usize> RingReader<W, N> {
    /// Whether the writing end is gone. What it wrote before can still be read.
    pub(crate) fn is_abandoned(&self) -> bool {
        let is_abandoned = Arc::strong_count(&self.ring) == 1;
        // With its last record: that came before its end of the ring went.
        W::fence(Ordering::Acquire);
        is_abandoned
    }

    /// Whether all is read that was written so far.
    pub(crate) fn is_empty(&self) -> bool {
        self.ring.head.load(Ordering::Acquire) == self.next
    }

    /// Begins again at the oldest record that is there: none before it is missed.
    pub(crate) fn rewind(&mut self) {
        let head = self.ring.head.load(Ordering::Acquire);
        self.next = (head + 1).saturating_sub(self.ring.slots.len() as u64);
    }

    /// Reads up to `limit` records into `to`, the oldest first; how many were overwritten before they could be read.
    pub(crate) fn read(&mut self, to: &mut Vec<[u64; N]>, limit: usize) -> u64 {
        let ring = &*self.ring;
        let capacity = ring.slots.len() as u64;
        let head = ring.head.load(Ordering::Acquire);
        // The slot of the oldest is the one that the writer writes next.
        let first = self.next.max((head + 1).saturating_sub(capacity));
        let end = head.min(first.saturating_add(limit as u64));
        let start = to.len();
        to.extend((first..end).map(|number| ring.slot(number).each_ref().map(|word| word.load(Ordering::Relaxed))));
        W::fence(Ordering::Acquire);
        let oldest = (ring.head.load(Ordering::Relaxed) + 1).saturating_sub(capacity);
        // What the writer came to meanwhile.
        let spoilt = oldest.clamp(first, end) - first;
        to.drain(start..start + spoilt as usize);
        let missed = first - self.next + spoilt;
        self.next = end;
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record that shows whether it is of one piece.
    fn record(number: u64) -> [u64; WORDS] {
        [number, !number, number << 32, number.wrapping_mul(7), number ^ 1]
    }

    #[test]
    fn records_come_in_order_and_once() {
        let (mut writer, mut reader) = ring::<AtomicU64, WORDS>(8);
        let mut read = Vec::new();
        for round in 0..5 {
            (0..5).for_each(|n| writer.push(record(round * 5 + n)));
            assert_eq!(reader.read(&mut read, usize::MAX), 0);
        }
        assert_eq!(reader.read(&mut read, usize::MAX), 0);
        assert_eq!(read, (0..25).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn a_slow_reader_gets_the_latest_and_the_number_of_those_that_are_lost() {
        let (mut writer, mut reader) = ring::<AtomicU64, WORDS>(8);
        (0..100).for_each(|n| writer.push(record(n)));
        let mut read = Vec::new();
        assert_eq!(reader.read(&mut read, 3), 93);
        assert_eq!(reader.read(&mut read, 100), 0);
        assert_eq!(writer.last(3), (97..100).map(record).collect::<Vec<_>>());
        assert_eq!(writer.last(100).len(), 8);
        assert_eq!(read, (93..100).map(record).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_there_can_be_read_again() {
        let (mut writer, mut reader) = ring::<AtomicU64, WORDS>(8);
        for count in [3, 100] {
            (0..count).for_each(|n| writer.push(record(n)));
            let mut first = Vec::new();
            reader.rewind();
            assert_eq!(reader.read(&mut first, usize::MAX), 0);
            let mut again = Vec::new();
            reader.rewind();
            assert_eq!((reader.read(&mut again, usize::MAX), &again), (0, &first));
            assert_eq!(first.last(), Some(&record(count - 1)));
        }
    }

    #[test]
    fn a_draft_is_not_read_and_the_record_it_overwrites_is_gone() {
        let (mut writer, mut reader) = ring::<AtomicU64, WORDS>(4);
        (0..4).for_each(|n| writer.push(record(n)));
        writer.draft(record(9));
        let mut read = Vec::new();
        assert_eq!((reader.read(&mut read, 9), &read), (1, &(1..4).map(record).collect()));
        writer.push(record(4));
        assert_eq!((reader.read(&mut read, 9), read.last()), (0, Some(&record(4))));
    }

    #[test]
    fn what_was_written_outlives_its_writer() {
        let (mut writer, mut reader) = ring::<AtomicU64, WORDS>(4);
        writer.push(record(1));
        assert!(!reader.is_abandoned());
        drop(writer);
        let mut read = Vec::new();
        assert_eq!((reader.is_abandoned(), reader.read(&mut read, 9), read), (true, 0, vec![record(1)]));
    }

    #[test]
    fn a_reader_beside_a_busy_writer_sees_whole_records_and_misses_none_unsaid() {
        const COUNT: u64 = 200_000;
        let (mut writer, mut reader) = ring::<AtomicU64, WORDS>(64);
        let thread = std::thread::spawn(move || (0..COUNT).for_each(|n| writer.push(record(n))));
        let (mut read, mut next) = (Vec::new(), 0);
        while next < COUNT {
            next += reader.read(&mut read, 16);
            for found in read.drain(..) {
                assert_eq!(found, record(next));
                next += 1;
            }
        }
        thread.join().unwrap();
    }

    /// Records of two words: enough to tell one of one piece from one of two.
    mod model {
        use super::*;

        impl Word for loom::sync::atomic::AtomicU64 {
            fn zero() -> Self {
                Self::new(0)
            }
            fn load(&self, order: Ordering) -> u64 {
                Self::load(self, order)
            }
            fn store(&self, value: u64, order: Ordering) {
                Self::store(self, value, order);
            }
            fn fence(order: Ordering) {
                loom::sync::atomic::fence(order);
            }
        }

        /// A dump begins at the oldest record, wherever the writer is.
        #[test]
        fn a_dump_beside_a_writer_has_whole_records() {
            loom::model(|| {
                let (mut writer, mut reader) = ring::<loom::sync::atomic::AtomicU64, 2>(2);
                writer.push([1; 2]);
                let thread = loom::thread::spawn(move || (2..=3).for_each(|n| writer.push([n; 2])));
                let mut read = Vec::new();
                reader.rewind();
                reader.read(&mut read, usize::MAX);
                assert!(read.iter().all(|[first, last]| first == last), "a record of two");
                thread.join().unwrap();
            });
        }

        /// A draft is in the slot of the oldest record.
        #[test]
        fn no_draft_is_read() {
            loom::model(|| {
                let (mut writer, mut reader) = ring::<loom::sync::atomic::AtomicU64, 2>(2);
                (1..=2).for_each(|n| writer.push([n; 2]));
                let thread = loom::thread::spawn(move || {
                    writer.draft([9; 2]);
                    writer.push([3; 2]);
                });
                let mut read = Vec::new();
                let mut next = reader.read(&mut read, 2);
                for record in read {
                    next += 1;
                    assert_eq!(record, [next; 2], "a draft");
                }
                thread.join().unwrap();
            });
        }

        /// In every order of memory accesses: without either fence, or with a weaker order at the head, this fails.
        #[test]
        fn no_order_of_accesses_mixes_two_records() {
            loom::model(|| {
                let (mut writer, mut reader) = ring::<loom::sync::atomic::AtomicU64, 2>(2);
                let thread = loom::thread::spawn(move || (1..=3).for_each(|n| writer.push([n; 2])));
                let mut read = Vec::new();
                let mut next = reader.read(&mut read, 2);
                for [first, last] in read {
                    next += 1;
                    assert_eq!((first, last), (next, next), "a record of two");
                }
                thread.join().unwrap();
            });
        }
    }
}
