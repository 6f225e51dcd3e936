//! The way of an exception: its gate in the IDT.
//!
//! ```text
//!   IDTR base + vector * 16 (8 without long mode) --> Gate --> fault, or a handler whose address has a page
//! ```
//!
//! Spec: Intel SDM volume 3, 6.11 "IDT Descriptors", 6.12 "Exception and Interrupt Handling". Left out: the handler's
//! code segment, stacks of the TSS.

use axvm_arch::descriptor::Gate;
use axvm_arch::exception::Vector;
use axvm_arch::mode::CpuMode;
use serde::Serialize;

use super::place::Linear;
use crate::snapshot::Snapshot;

/// A vector's entry in the IDT.
#[derive(Clone, Debug, Serialize)]
pub struct GateWords {
    /// Whose.
    pub vector: Vector,
    /// Linear address of the entry.
    pub at: u64,
    /// What is there, or why it cannot be read.
    pub words: String,
    /// Why an event cannot take this way, if so.
    pub fault: Option<String>,
}

/// The gate of `vector`; none in real mode, which has a table of addresses.
pub(super) fn look(snapshot: &Snapshot, vector: Vector, linear: &Linear<'_>) -> Option<GateWords> {
    let (mode, idt) = (snapshot.cpu.mode().cpu, snapshot.cpu.system.idt);
    if mode == CpuMode::Real {
        return None;
    }
    let len = Gate::len(mode.is_long());
    let offset = usize::from(vector.0) * len;
    let at = idt.base.wrapping_add(offset as u64);
    let bad = |words: String| Some(GateWords { vector, at, fault: Some(words.clone()), words });
    if offset + len - 1 > usize::from(idt.limit) {
        return bad(format!("the IDT ends before it (IDTR: base {:#x}, limit {:#x})", idt.base, idt.limit));
    }
    let walk = linear.walk(at);
    if let Err(fault) = walk.end {
        return bad(format!("it cannot be read: {fault}"));
    }
    let upper = if mode.is_long() { linear.word(at.wrapping_add(8)).map(Some) } else { Some(None) };
    let (Some(lower), Some(upper)) = (linear.word(at), upper) else { return bad("it is not in RAM".into()) };
    let gate = Gate::decode(lower, upper);
    let no_handler = || {
        let fault = linear.walk(gate.offset).end.err()?;
        Some(format!("its handler {:#x} has no page: {fault}", gate.offset))
    };
    let fault = gate.fault(mode.is_long()).map(str::to_owned).or_else(no_handler);
    Some(GateWords { vector, at, words: gate.to_string(), fault })
}
