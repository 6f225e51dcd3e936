//! What the guest says: one line for each proof, on COM1. No `core::fmt`: it is large, and slow where
//! the processor is interpreted.

use core::sync::atomic::{AtomicU32, Ordering};

use crate::clock;
use crate::cpu::{self, input, output};

pub const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const FIFO: usize = 16;

/// How a proof ended other than well. What was seen stands in the line.
pub enum Fault {
    Failed,
    Absent,
}

pub type Verdict = Result<(), Fault>;

/// Words of one line; what does not fit is lost.
pub struct Line {
    bytes: [u8; 200],
    len: usize,
}

impl Line {
    pub const fn new() -> Line {
        Line { bytes: [0; 200], len: 0 }
    }

    pub fn text(&mut self, text: &str) -> &mut Line {
        for &byte in text.as_bytes() {
            self.byte(byte);
        }
        self
    }

    pub fn byte(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    pub fn decimal(&mut self, value: u64) -> &mut Line {
        if value >= 10 {
            self.decimal(value / 10);
        }
        self.byte(b'0' + (value % 10) as u8);
        self
    }

    pub fn hex(&mut self, value: u64) -> &mut Line {
        self.text("0x");
        let digits = (64 - value.leading_zeros()).div_ceil(4).max(1);
        for digit in (0..digits).rev() {
            self.byte(b"0123456789abcdef"[(value >> (digit * 4)) as usize & 15]);
        }
        self
    }

    /// The end of a proof that did not hold.
    pub fn failed(&mut self, why: &str) -> Verdict {
        self.text(" ").text(why);
        Err(Fault::Failed)
    }

    /// Fails with `why` unless `condition` holds.
    pub fn check(&mut self, condition: bool, why: &str) -> Verdict {
        if condition { Ok(()) } else { self.failed(why) }
    }

    pub fn absent(&mut self) -> Verdict {
        self.text(" not there");
        Err(Fault::Absent)
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Sends the line to COM1. A transmitter that never empties is not waited for.
    pub fn send(&self) {
        for part in self.bytes().chunks(FIFO) {
            clock::wait(10_000, || input::<u8>(LINE_STATUS) & 0x20 != 0);
            for &byte in part {
                output(COM1, byte);
            }
        }
        output(COM1, b'\n');
    }
}

static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Runs a proof and reports it.
pub fn prove(name: &str, proof: impl FnOnce(&mut Line) -> Verdict) {
    let mut detail = Line::new();
    let start = cpu::rdtsc();
    let verdict = proof(&mut detail);
    let microseconds = cpu::rdtsc().wrapping_sub(start) / clock::tsc_per_microsecond();
    let word = match verdict {
        Ok(()) => " ok ",
        Err(Fault::Absent) => " skip ",
        Err(Fault::Failed) => {
            FAILURES.fetch_add(1, Ordering::Relaxed);
            " FAILED "
        }
    };
    let mut line = Line::new();
    line.text("AXVM ").text(name).text(word).decimal(microseconds).text("us");
    for &byte in detail.bytes() {
        line.byte(byte);
    }
    line.send();
}

/// The last line.
pub fn end() {
    let mut line = Line::new();
    match FAILURES.load(Ordering::Relaxed) {
        0 => line.text("AXVM end ok"),
        failures => line.text("AXVM end FAILED ").decimal(failures.into()),
    };
    line.send();
}
