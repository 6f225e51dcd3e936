//! The vCPU loop's recorder: what each exit was, and how long its answer took.
//!
//! ```text
//!   KVM_RUN --> exit, RIP --begin--> Recording --answered(data)--> dropped: onto the tape
//! ```
//!
//! The loop is compiled twice, with [`Off`] and with a [`Tape`]; which one runs is chosen when the thread starts, and after
//! each pause. `Off` is nothing: no branch, no clock.
//!
//! The host has had the caches since the last exit, so nothing here is called: the clock is read in place (all tapes of a
//! machine count by [`tsc`]), and a draft fetches the record's memory while the exit is answered.
//!
//! KVM leaves RIP behind at each exit while something is recorded, and all registers with it (KVM_CAP_SYNC_REGS).

use std::io;

use axvm_events::tape::{Kind, Record, Tape, value};
use axvm_kvm::{Exit, Vcpu, tsc};

/// Where a loop records.
pub(crate) trait ExitTape {
    /// One exit, from its beginning on.
    type Recording<'a>: Recording
    where
        Self: 'a;

    /// Runs the guest until it exits: at which address, if that is recorded.
    fn run<'a>(&self, vcpu: &'a mut dyn Vcpu) -> io::Result<(Exit<'a>, u64)>;

    /// An exit of this kind came: an access to this address, `size` bytes at a time, with `data` where the guest writes.
    fn begin(&mut self, kind: Kind, address: u64, size: usize, data: &[u8], rip: u64) -> Self::Recording<'_>;
}

/// An exit that is being answered. Dropped, it is recorded.
pub(crate) trait Recording {
    /// What the guest reads.
    fn answered(&mut self, data: &[u8]);
    /// The exits before this one, as far as they are known, the latest last.
    fn before(&self) -> Vec<Record>;
}

/// Exits that a report of a crash shows.
const LAST: usize = 8;

/// Records nothing.
pub(crate) struct Off;

/// Of nothing.
pub(crate) struct Nothing;

impl ExitTape for Off {
    type Recording<'a> = Nothing;

    #[inline(always)]
    fn run<'a>(&self, vcpu: &'a mut dyn Vcpu) -> io::Result<(Exit<'a>, u64)> {
        Ok((vcpu.run()?, 0))
    }

    #[inline(always)]
    fn begin(&mut self, _: Kind, _: u64, _: usize, _: &[u8], _: u64) -> Nothing {
        Nothing
    }
}

impl Recording for Nothing {
    #[inline(always)]
    fn answered(&mut self, _: &[u8]) {}

    fn before(&self) -> Vec<Record> {
        Vec::new()
    }
}

/// A record whose time runs.
pub(crate) struct Running<'a> {
    tape: &'a mut Tape,
    record: Record,
}

impl ExitTape for Tape {
    type Recording<'a> = Running<'a>;

    #[inline]
    fn run<'a>(&self, vcpu: &'a mut dyn Vcpu) -> io::Result<(Exit<'a>, u64)> {
        vcpu.run_and_locate()
    }

    #[inline]
    fn begin(&mut self, kind: Kind, address: u64, size: usize, data: &[u8], rip: u64) -> Running<'_> {
        // A division takes as long as the rest.
        let count = if data.len() > size { u16::try_from(data.len() / size).unwrap_or(u16::MAX) } else { 1 };
        let value = if kind.is_write() { value(data) } else { 0 };
        let (size, at) = (size as u8, tsc());
        let record = Record { at, took: 0, kind, size, count, address, value, rip };
        self.draft(record);
        Running { tape: self, record }
    }
}

impl Recording for Running<'_> {
    #[inline]
    fn answered(&mut self, data: &[u8]) {
        self.record.value = value(data);
    }

    #[cold]
    fn before(&self) -> Vec<Record> {
        let mut last = self.tape.last(2 * LAST);
        // To be held is none of the guest's doings.
        last.retain(|record| record.kind != Kind::Kick);
        last.drain(..last.len().saturating_sub(LAST));
        last
    }
}

impl Drop for Running<'_> {
    #[inline]
    fn drop(&mut self) {
        let took = tsc().saturating_sub(self.record.at);
        self.tape.push(Record { took: u32::try_from(took).unwrap_or(u32::MAX), ..self.record });
    }
}
