//! Rules on the state outside of registers: what holds interrupts off, what is being delivered, PAE's first level.
//!
//! ```text
//!   shadow   bit 0 MOV SS   bit 1 STI    for one instruction
//!   PDPTE    0 | ... | base | ... | 0 | 0 PCD PWT 0 0 P
//! ```
//!
//! Spec: Intel SDM volume 3C, 27.2.1.3 "VM-Entry Control Fields", 27.3.1.5 "Checks on Guest Non-Register State", 27.3.1.6
//! "Checks on Guest Page-Directory-Pointer-Table Entries"; AMD APM volume 2, 15.20 "Event Injection".
//! Left out: SMM, pending debug exceptions, activity states.

use axvm_arch::Gpa;
use axvm_arch::control::rflags;
use axvm_arch::exception::Vector;
use axvm_arch::paging::{Level, Scheme, entry};

use super::{EntryState, Rule, Source, Wrong, must_be_clear, wrong};

const INTEL: Source = Source::Intel("27.3.1.5 \"Checks on Guest Non-Register State\"");
const INJECTION: &str = "27.2.1.3 \"VM-Entry Control Fields\"";
const MOV_SS: u8 = 1 << 0;
const STI: u8 = 1 << 1;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "exception-vector",
        source: Source::Both(INJECTION, "15.20 \"Event Injection\""),
        says: "An exception has a vector below 32 that is not the NMI's",
        look: |s| {
            let exception = s.snapshot.events.exception;
            let broken = exception.injected && (exception.vector > 31 || exception.vector == 2);
            wrong(broken, format!("exception {} is being delivered", exception.vector), "an exception's vector")
        },
    },
    Rule {
        name: "exception-error-code",
        source: Source::Intel(INJECTION),
        says: "In protected mode, the exceptions that have an error code are delivered with one, and no others",
        look: |s| {
            let exception = s.snapshot.events.exception;
            let vector = Vector(exception.vector);
            let has = s.has_protection() && vector.exception().is_some_and(|exception| exception.has_error_code);
            let broken = exception.injected && has != exception.error_code.is_some();
            let found = format!("{vector} is being delivered with error code {:?}", exception.error_code);
            wrong(broken, found, if has { "add an error code" } else { "leave it out" })
        },
    },
    Rule {
        name: "shadow-reserved",
        source: INTEL,
        says: "Interrupts are held off by STI or by MOV SS",
        look: |s| must_be_clear("the interrupt shadow", shadow(s).into(), !u64::from(MOV_SS | STI)),
    },
    Rule {
        name: "shadow-both",
        source: INTEL,
        says: "Interrupts are held off by STI or by MOV SS, not by both",
        look: |s| held_off(s, shadow(s) & 3 == 3, "one of bit 0 (MOV SS) and bit 1 (STI)"),
    },
    Rule {
        name: "shadow-sti-if",
        source: INTEL,
        says: "STI holds interrupts off only while they are taken (RFLAGS.IF)",
        look: |s| held_off(s, shadow(s) & STI != 0 && !s.flag(rflags::IF), "set RFLAGS.IF or clear bit 1"),
    },
    Rule {
        name: "shadow-interrupt",
        source: INTEL,
        says: "No interrupt is delivered while STI or MOV SS hold them off",
        look: |s| {
            let interrupt = s.snapshot.events.interrupt;
            held_off(s, interrupt.injected && !interrupt.soft && shadow(s) & 3 != 0, "clear it, or deliver later")
        },
    },
    Rule {
        name: "shadow-nmi",
        source: INTEL,
        says: "No NMI is delivered while MOV SS holds it off",
        look: |s| {
            held_off(s, s.snapshot.events.nmi.injected && shadow(s) & MOV_SS != 0, "clear bit 0, or deliver later")
        },
    },
    Rule {
        name: "pdpte-reserved",
        source: Source::Intel("27.3.1.6 \"Checks on Guest Page-Directory-Pointer-Table Entries\""),
        says: "The four entries at CR3 that are present have no reserved bits (PAE paging)",
        look: pdptes,
    },
];

fn shadow(s: &EntryState<'_>) -> u8 {
    s.snapshot.events.interrupt.shadow
}

fn held_off(s: &EntryState<'_>, broken: bool, right: &str) -> Option<Wrong> {
    wrong(broken, format!("the interrupt shadow is {:#x}, RFLAGS {:#x}", shadow(s), s.regs().rflags), right)
}

fn pdptes(s: &EntryState<'_>) -> Option<Wrong> {
    let (paging, read) = (s.processor.paging(&s.snapshot.cpu), s.read?);
    if paging.scheme != Scheme::Pae {
        return None;
    }
    (0..4).find_map(|n| {
        let (at, mut bytes) = (Gpa(paging.root().0 + n * 8), [0; 8]);
        let raw = read(at, &mut bytes).then(|| u64::from_le_bytes(bytes))?;
        let reserved = if raw & entry::P != 0 { paging.reserved(Level::Pdpt, raw) } else { 0 };
        must_be_clear(&format!("PDPTE {n} at {at}"), raw, reserved)
    })
}
