//! What threads record while a machine runs: exits and requests, each with its time.
//!
//! ```text
//!   vcpu0:  [clock] exit, answered [clock] --Tape--> ring --+
//!   vda-q0: [clock] pop ...                --Tape--> ring --+--> TapeReader, in the thread that writes them down
//! ```
//!
//! A record is 32 bytes. Recording waits for no lock, asks the host for nothing and allocates nothing: it costs two
//! readings of the clock and five stores. [`Tapes`] hands a tape to each thread that asks for one, and names the registers.
//!
//! No specification. Left out: what is recorded of a guest's memory, which is nothing.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ring::{RingReader, RingWriter, WORDS, ring};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The guest read a port; `address`, and the first bytes of the answer as `value`.
    PortRead,
    /// The guest wrote a port.
    PortWrite,
    /// The guest read an address where no RAM is.
    MmioRead,
    /// The guest wrote one.
    MmioWrite,
    /// HLT, where it comes to AxVM.
    Halt,
    /// The vCPU was kicked: a pause, a stop, or a signal.
    Kick,
    /// An exit that ends the machine.
    End,
    /// A driver's kick woke the worker of a queue.
    Doorbell,
    /// A chain was taken from its ring; `address` is its head.
    Pop,
    /// A chain was given back; `value` bytes were written to it.
    Complete,
    /// The driver was interrupted, for the chains since the last time.
    Interrupt,
}

impl Kind {
    const ALL: [Kind; 11] = [
        Kind::PortRead,
        Kind::PortWrite,
        Kind::MmioRead,
        Kind::MmioWrite,
        Kind::Halt,
        Kind::Kick,
        Kind::End,
        Kind::Doorbell,
        Kind::Pop,
        Kind::Complete,
        Kind::Interrupt,
    ];

    /// Whether the guest wrote, where it accessed something.
    pub fn is_write(self) -> bool {
        matches!(self, Kind::PortWrite | Kind::MmioWrite)
    }
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it began, in ticks of the clock.
    pub at: u64,
    /// How long AxVM took to answer, in ticks; the most that there is room for, if longer.
    pub took: u32,
    /// What it is about.
    pub kind: Kind,
    /// Width of one access, in bytes.
    pub size: u8,
    /// Accesses of one instruction (`rep outsb`): 1, but for those.
    pub count: u16,
    /// Port, guest-physical address, or head of a chain.
    pub address: u64,
    /// The value, as far as it fits.
    pub value: u64,
}

impl Record {
    #[inline]
    fn pack(self) -> [u64; WORDS] {
        let about = u64::from(self.took) << 32 | u64::from(self.count) << 16 | u64::from(self.size) << 8;
        [self.at, about | self.kind as u64, self.address, self.value]
    }

    /// `None` for what no writer wrote.
    fn unpack([at, about, address, value]: [u64; WORDS]) -> Option<Record> {
        let kind = *Kind::ALL.get(usize::from(about as u8))?;
        let (took, count, size) = ((about >> 32) as u32, (about >> 16) as u16, (about >> 8) as u8);
        Some(Record { at, took, kind, size, count, address, value })
    }
}

/// A number from bytes, the lowest first; as many as fit.
#[inline]
pub fn value(data: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    bytes.iter_mut().zip(data).for_each(|(byte, &read)| *byte = read);
    u64::from_le_bytes(bytes)
}

/// A clock for records: it counts up, alike in all threads, and asks the host for nothing.
pub type Clock = fn() -> u64;

/// A thread's own end: it writes records.
pub struct Tape {
    clock: Clock,
    ring: RingWriter<AtomicU64>,
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tape")
    }
}

impl Tape {
    /// What the clock says.
    #[inline]
    pub fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Adds a record; where the ring is full, over the oldest.
    #[inline]
    pub fn push(&mut self, record: Record) {
        self.ring.push(record.pack());
    }

    /// The last records of this thread, at most `limit` of them, the oldest first.
    pub fn last(&self, limit: usize) -> Vec<Record> {
        self.ring.last(limit).into_iter().filter_map(Record::unpack).collect()
    }

    /// Adds one that took no time: it is now.
    pub fn mark(&mut self, kind: Kind, address: u64, value: u64) {
        let at = self.now();
        self.push(Record { at, took: 0, kind, size: 0, count: 1, address, value });
    }
}

/// The other end: it reads them.
pub struct TapeReader {
    name: Arc<str>,
    ring: RingReader<AtomicU64>,
    words: Vec<[u64; WORDS]>,
}

impl TapeReader {
    /// What its thread is called, such as `vcpu0`.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Whether its thread is gone, and all is read that it wrote.
    pub fn is_over(&self) -> bool {
        // In this order: a thread that is gone writes no more.
        self.ring.is_abandoned() && self.ring.is_empty()
    }

    /// Takes up to `limit` records, the oldest first; how many were lost before them.
    pub fn read(&mut self, limit: usize, mut take: impl FnMut(Record)) -> u64 {
        let missed = self.ring.read(&mut self.words, limit);
        self.words.drain(..).filter_map(Record::unpack).for_each(&mut take);
        missed
    }
}

/// Tells what the guest accessed: the name of the part, and of its register where it has one.
pub type Names = Arc<dyn Fn(Kind, u64) -> Option<String> + Send + Sync>;

/// How many records a tape holds.
#[derive(Clone, Copy, Debug)]
pub enum Capacity {
    /// A vCPU's: 1 MiB.
    Thread = 32 << 10,
    /// A queue's: 128 KiB.
    Queue = 4 << 10,
}

/// Tapes that wait for their reader; a machine does not start with more.
const WAITING: usize = 1024;

/// All tapes of a process.
pub struct Tapes {
    clock: Clock,
    new: Mutex<Vec<TapeReader>>,
    names: Mutex<Option<Names>>,
}

impl Tapes {
    /// Tapes whose records have their times from `clock`.
    pub fn new(clock: Clock) -> Tapes {
        Tapes { clock, new: Mutex::default(), names: Mutex::default() }
    }

    /// A tape for the thread, or the queue, that is called `name`. None while too many wait for their reader: a guest that
    /// has a device start again and again shall cost no memory.
    pub fn tape(&self, name: &str, capacity: Capacity) -> Option<Tape> {
        let mut new = lock(&self.new);
        if new.len() >= WAITING {
            return None;
        }
        let (writer, reader) = ring(capacity as usize);
        new.push(TapeReader { name: name.into(), ring: reader, words: Vec::new() });
        Some(Tape { clock: self.clock, ring: writer })
    }

    /// The readers of tapes that are new since the last call.
    pub fn take_new(&self) -> Vec<TapeReader> {
        std::mem::take(&mut lock(&self.new))
    }

    /// From now on registers have these names.
    pub fn set_names(&self, names: Names) {
        *lock(&self.names) = Some(names);
    }

    /// How registers are called now.
    pub fn names(&self) -> Option<Names> {
        lock(&self.names).clone()
    }
}

/// A thread that panicked in here leaves a list that is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_went() {
        let tapes = Tapes::new(|| 42);
        let mut tape = tapes.tape("vcpu7", Capacity::Queue).unwrap();
        let record = |kind| Record {
            at: u64::MAX,
            took: u32::MAX,
            kind,
            size: u8::MAX,
            count: u16::MAX,
            address: u64::MAX - 1,
            value: value(&[1, 2, 3]),
        };
        Kind::ALL.into_iter().for_each(|kind| tape.push(record(kind)));
        tape.mark(Kind::Pop, 3, 4);
        assert_eq!(tape.last(2).first(), Some(&record(Kind::Interrupt)));
        drop(tape);
        let mut reader = tapes.take_new().pop().unwrap();
        let mut read = Vec::new();
        assert_eq!(reader.read(100, |record| read.push(record)), 0);
        let mark = Record { at: 42, took: 0, kind: Kind::Pop, size: 0, count: 1, address: 3, value: 4 };
        assert_eq!(read, Kind::ALL.map(record).into_iter().chain([mark]).collect::<Vec<_>>());
        assert_eq!((&**reader.name(), reader.is_over(), tapes.take_new().len()), ("vcpu7", true, 0));
    }

    #[test]
    fn tapes_that_are_not_read_come_to_an_end() {
        let tapes = Tapes::new(|| 0);
        let count = (0..WAITING + 9).filter_map(|_| tapes.tape("vda-q0", Capacity::Queue)).count();
        assert_eq!((count, tapes.take_new().len()), (WAITING, WAITING));
        assert!(tapes.tape("vda-q0", Capacity::Queue).is_some());
    }

    #[test]
    fn values_are_little_endian_and_no_longer_than_a_register() {
        assert_eq!((value(&[]), value(&[0x41]), value(&[0xff; 20])), (0, 0x41, u64::MAX));
    }
}
