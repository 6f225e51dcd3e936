//! States that a processor enters, and in which a guest cannot get far.
//!
//! ```text
//!   RIP --page walk--> no page, no RAM, no execution    the first instruction faults
//!   IF=1 with an IDT that has no gate for it            the first interrupt is a triple fault
//! ```
//!
//! Spec: Intel SDM volume 3A, 4.5 to 4.7, 6.10 "Interrupt Descriptor Table (IDT)". Left out: stacks, which code sets up
//! first.

use axvm_arch::Gpa;
use axvm_arch::control::rflags;
use axvm_arch::descriptor::Gate;
use axvm_arch::paging::Scheme;

use super::{EntryState, Rule, Source, Wrong, wrong};

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "first-instruction",
        source: Source::Advice("4.7 \"Page-Fault Exceptions\""),
        says: "The first instruction is in RAM that may be executed",
        look: first_instruction,
    },
    Rule {
        name: "idt-too-short",
        source: Source::Advice("6.10 \"Interrupt Descriptor Table (IDT)\""),
        says: "A guest that takes interrupts (RFLAGS.IF) has an IDT with gates for them",
        look: |s| {
            let gate = if s.has_protection() { Gate::len(s.is_long()) } else { 4 };
            let limit = s.system().idt.limit;
            let short = s.flag(rflags::IF) && usize::from(limit) < 33 * gate - 1;
            let found = format!("RFLAGS is {:#x}, IDTR's limit {limit:#x}", s.regs().rflags);
            wrong(short, found, format!("clear IF, or give it an IDT of more than {} bytes", 32 * gate))
        },
    },
];

fn first_instruction(s: &EntryState<'_>) -> Option<Wrong> {
    let (read, cpu) = (s.read?, &s.snapshot.cpu);
    let paging = s.processor.paging(cpu);
    let rip = cpu.linear_rip();
    let found = |why: String| format!("RIP is {rip:#x}, {why}");
    let page = match paging.walk(rip, read).end {
        Ok(page) => page,
        Err(fault) => return wrong(true, found(fault.to_string()), "map it, or start elsewhere"),
    };
    if !page.rights.execute {
        return wrong(true, found("in a page that forbids execution (XD)".into()), "clear XD in its entries");
    }
    let in_ram = read(page.gpa, &mut [0]);
    let place = match paging.scheme {
        Scheme::Off => String::new(),
        _ => format!("physical {}, ", Gpa(page.gpa.0)),
    };
    wrong(!in_ram, found(format!("{place}where no RAM is")), "start where the code is")
}
