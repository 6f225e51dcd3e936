//! What threads record while a machine runs: exits and requests, each with its time.
//!
//! ```text
//!   vcpu0:  [clock] exit, answered [clock] --Tape--> ring --+
//!   vda-q0: [clock] pop ...                --Tape--> ring --+--> TapeReader, in the thread that writes them down
//! ```
//!
//! Recording is on or off, and may change while the machine runs: a tape is of one recording. A thread that has one asks for it
//! again where it may have changed, which is after each pause.
//!
//! A record is 40 bytes. Recording waits for no lock, asks the host for nothing and allocates nothing: it costs two
//! readings of the clock, and stores. [`Tapes`] hands a tape to each thread that asks for one, and names the registers.
//!
//! No specification. Left out: what is recorded of a guest's memory, which is nothing.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// The vCPU stops: `address` is the guest's entry for system calls, by which it is known where its kernel is.
    Entry,
    /// Letters that the guest prints: `count` of them, in `value` and then in `address`.
    Print,
}

impl Kind {
    const ALL: [Kind; 13] = [
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
        Kind::Entry,
        Kind::Print,
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
    /// Where the guest was: at the instruction that exited or just behind it; 0 if that is not known.
    pub rip: u64,
}

impl Record {
    #[inline]
    fn pack(self) -> [u64; WORDS] {
        let about = u64::from(self.took) << 32 | u64::from(self.count) << 16 | u64::from(self.size) << 8;
        [self.at, about | self.kind as u64, self.address, self.value, self.rip]
    }

    /// `None` for what no writer wrote.
    fn unpack([at, about, address, value, rip]: [u64; WORDS]) -> Option<Record> {
        let kind = *Kind::ALL.get(usize::from(about as u8))?;
        let (took, count, size) = ((about >> 32) as u32, (about >> 16) as u16, (about >> 8) as u8);
        Some(Record { at, took, kind, size, count, address, value, rip })
    }
}

/// A number from bytes, the lowest first; as many as fit.
#[inline]
pub fn value(data: &[u8]) -> u64 {
    // What one access is wide, without a call: an exit leaves the caches to the host.
    match *data {
        [byte] => byte.into(),
        [a, b] => u16::from_le_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => value_of_any(data),
    }
}

#[cold]
fn value_of_any(data: &[u8]) -> u64 {
    data.iter().take(size_of::<u64>()).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// A clock for records: it counts up, alike in all threads, and asks the host for nothing.
pub type Clock = fn() -> u64;

/// A thread's own end: it writes records.
pub struct Tape {
    clock: Clock,
    /// The number of the recording that it is of.
    recording: u64,
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
    fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Adds a record; where the ring is full, over the oldest.
    #[inline]
    pub fn push(&mut self, record: Record) {
        self.ring.push(record.pack());
    }

    /// Writes what is known of the next record already, for [`Self::push`] to find its memory at hand; no reader sees it.
    #[inline]
    pub fn draft(&mut self, record: Record) {
        self.ring.draft(record.pack());
    }

    /// The last records of this thread, at most `limit` of them, the oldest first.
    pub fn last(&self, limit: usize) -> Vec<Record> {
        self.ring.last(limit).into_iter().filter_map(Record::unpack).collect()
    }

    /// Adds one that took no time: it is now.
    pub fn mark(&mut self, kind: Kind, address: u64, value: u64) {
        let at = self.now();
        self.push(Record { at, took: 0, kind, size: 0, count: 1, address, value, rip: 0 });
    }

    /// Adds letters that the guest prints now.
    pub fn print(&mut self, text: &[u8]) {
        let at = self.now();
        for piece in text.chunks(PIECE) {
            let (first, rest) = piece.split_at(piece.len().min(PIECE / 2));
            let (count, value, address) = (piece.len() as u16, value(first), value(rest));
            self.push(Record { at, took: 0, kind: Kind::Print, size: 1, count, address, value, rip: 0 });
        }
    }
}

/// Letters that a record has room for.
const PIECE: usize = 16;

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

    /// Begins again at the oldest record that is there.
    pub fn rewind(&mut self) {
        self.ring.rewind();
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
    /// A vCPU's: 2.5 MiB.
    Thread = 64 << 10,
    /// A queue's: 160 KiB.
    Queue = 4 << 10,
}

/// Tapes that wait for their reader; a machine does not start with more.
const WAITING: usize = 1024;

/// All tapes of a process.
pub struct Tapes {
    clock: Clock,
    /// Odd while recording is on; each recording has another number.
    recording: AtomicU64,
    /// Readers wait for a time at which what is there is wanted, and that may be never.
    keeps: bool,
    new: Mutex<Vec<TapeReader>>,
    names: Mutex<Option<Names>>,
}

impl Tapes {
    /// Tapes whose records have their times from `clock`; recording is off.
    pub fn new(clock: Clock) -> Tapes {
        Tapes { clock, recording: AtomicU64::new(0), keeps: false, new: Mutex::default(), names: Mutex::default() }
    }

    /// Recording is on, for a reader that comes late or never: of threads of one name that are gone, the last is kept.
    pub fn keeping(clock: Clock) -> Tapes {
        Tapes { recording: AtomicU64::new(1), keeps: true, ..Tapes::new(clock) }
    }

    /// Switches recording on or off, for those that ask for a tape from now on.
    pub fn switch(&self, on: bool) {
        let change = |now: u64| (now % 2 != u64::from(on)).then_some(now + 1);
        let _ = self.recording.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
    }

    /// Whether recording is on.
    pub fn is_on(&self) -> bool {
        self.recording.load(Ordering::Relaxed) % 2 == 1
    }

    /// A tape for the thread, or the queue, that is called `name`. None while recording is off, or while too many wait for
    /// their reader: a guest that has a device start again and again shall cost no memory.
    pub fn tape(&self, name: &str, capacity: Capacity) -> Option<Tape> {
        let recording = self.recording.load(Ordering::Relaxed);
        let mut new = lock(&self.new);
        if self.keeps {
            new.retain(|reader| &*reader.name != name || !reader.ring.is_abandoned());
        }
        if recording.is_multiple_of(2) || new.len() >= WAITING {
            return None;
        }
        let (writer, reader) = ring(capacity as usize);
        new.push(TapeReader { name: name.into(), ring: reader, words: Vec::new() });
        Some(Tape { clock: self.clock, recording, ring: writer })
    }

    /// The same tape, if it is of the recording that is on.
    pub fn still(&self, tape: Tape) -> Option<Tape> {
        (tape.recording == self.recording.load(Ordering::Relaxed)).then_some(tape)
    }

    /// Gives readers back, for the next who wants to know.
    pub fn give_back(&self, readers: Vec<TapeReader>) {
        lock(&self.new).extend(readers);
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
        tapes.switch(true);
        let mut tape = tapes.tape("vcpu7", Capacity::Queue).unwrap();
        let record = |kind| Record {
            at: u64::MAX,
            took: u32::MAX,
            kind,
            size: u8::MAX,
            count: u16::MAX,
            address: u64::MAX - 1,
            value: value(&[1, 2, 3]),
            rip: 5,
        };
        Kind::ALL.into_iter().for_each(|kind| tape.push(record(kind)));
        tape.mark(Kind::Pop, 3, 4);
        assert_eq!(tape.last(2).first(), Some(&record(Kind::Print)));
        drop(tape);
        let mut reader = tapes.take_new().pop().unwrap();
        let mut read = Vec::new();
        assert_eq!(reader.read(100, |record| read.push(record)), 0);
        let mark = Record { at: 42, took: 0, kind: Kind::Pop, size: 0, count: 1, address: 3, value: 4, rip: 0 };
        assert_eq!(read, Kind::ALL.map(record).into_iter().chain([mark]).collect::<Vec<_>>());
        assert_eq!((&**reader.name(), reader.is_over(), tapes.take_new().len()), ("vcpu7", true, 0));
    }

    #[test]
    fn tapes_that_are_not_read_come_to_an_end() {
        let tapes = Tapes::new(|| 0);
        tapes.switch(true);
        let count = (0..WAITING + 9).filter_map(|_| tapes.tape("vda-q0", Capacity::Queue)).count();
        assert_eq!((count, tapes.take_new().len()), (WAITING, WAITING));
        assert!(tapes.tape("vda-q0", Capacity::Queue).is_some());
    }

    #[test]
    fn a_tape_is_of_one_recording() {
        let tapes = Tapes::new(|| 0);
        let tape = || tapes.tape("vcpu0", Capacity::Queue);
        assert!(!tapes.is_on() && tape().is_none());
        (0..2).for_each(|_| tapes.switch(true));
        let first = tape().and_then(|tape| tapes.still(tape)).expect("it is on");
        (0..2).for_each(|_| tapes.switch(false));
        assert!(tape().is_none());
        tapes.switch(true);
        assert!(tapes.still(first).is_none() && tape().is_some(), "another recording");
    }

    #[test]
    fn where_no_reader_comes_one_tape_of_each_name_is_kept() {
        let tapes = Tapes::keeping(|| 0);
        let lives = tapes.tape("vcpu0", Capacity::Queue);
        for _ in 0..3 * WAITING {
            tapes.tape("vda-q0", Capacity::Queue).expect("there is room").mark(Kind::Pop, 0, 0);
        }
        let names: Vec<_> = tapes.take_new().iter().map(|reader| Arc::clone(reader.name())).collect();
        assert_eq!(names, ["vcpu0".into(), "vda-q0".into()]);
        drop(lives);
    }

    #[test]
    fn letters_go_sixteen_to_a_record() {
        let tapes = Tapes::keeping(|| 7);
        let mut tape = tapes.tape("hvc0-q1", Capacity::Queue).unwrap();
        tape.print(b"0123456789abcdefgh");
        let letters = |record: Record| [record.value.to_le_bytes(), record.address.to_le_bytes()].concat();
        let read: Vec<_> = tape.last(9).into_iter().map(|record| (record.count, letters(record))).collect();
        assert_eq!(read[0], (16, b"0123456789abcdef".to_vec()));
        assert_eq!((read[1].0, &read[1].1[..2], read.len()), (2, &b"gh"[..], 2));
    }

    #[test]
    fn values_are_little_endian_and_no_longer_than_a_register() {
        assert_eq!((value(&[]), value(&[0x41]), value(&[0xff; 20])), (0, 0x41, u64::MAX));
        for width in 1..=8 {
            let bytes: Vec<u8> = (1..=width).collect();
            let wanted = bytes.iter().enumerate().map(|(place, &byte)| u64::from(byte) << (8 * place)).sum();
            assert_eq!(value(&bytes), wanted, "{width} bytes");
        }
    }
}
