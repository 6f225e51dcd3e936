//! Rules on RIP and RFLAGS.
//!
//! ```text
//!   RFLAGS   63 ... 22 | 21 ... | 15 | ... | 5 | ... | 3 | ... | 1 |
//!            zero                 zero       zero      zero     one
//! ```
//!
//! Spec: Intel SDM volume 3C, 27.3.1.4 "Checks on Guest RIP, RFLAGS, and SSP". AMD's VMRUN does not look at them.
//! Left out: SSP.

use axvm_arch::control::rflags;
use axvm_arch::registers::RFLAGS_RESERVED;

use super::{Rule, Source, must_be_canonical, must_be_clear, wrong};

const INTEL: Source = Source::Intel("27.3.1.4 \"Checks on Guest RIP, RFLAGS, and SSP\"");
/// Bits 63 to 22, 15, 5 and 3.
const MUST_BE_ZERO: u64 = !0x3f_ffff | 1 << 15 | 1 << 5 | 1 << 3;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "rip-upper",
        source: INTEL,
        says: "Outside of 64-bit code RIP has 32 bits",
        look: |s| {
            let is_64 = s.is_long() && s.system().cs.long;
            must_be_clear("RIP", s.regs().rip, if is_64 { 0 } else { 0xffff_ffff_0000_0000 })
        },
    },
    Rule {
        name: "rip-canonical",
        source: INTEL,
        says: "In 64-bit code RIP is a canonical address",
        look: |s| {
            let is_64 = s.is_long() && s.system().cs.long;
            is_64.then(|| must_be_canonical("RIP", s.regs().rip, s.processor.linear_bits)).flatten()
        },
    },
    Rule {
        name: "rflags-reserved",
        source: INTEL,
        says: "Bits 3, 5, 15 and 22 to 63 of RFLAGS are zero",
        look: |s| must_be_clear("RFLAGS", s.regs().rflags, MUST_BE_ZERO),
    },
    Rule {
        name: "rflags-one",
        source: INTEL,
        says: "Bit 1 of RFLAGS is one",
        look: |s| wrong(!s.flag(RFLAGS_RESERVED), format!("RFLAGS is {:#x}", s.regs().rflags), "set bit 1"),
    },
    Rule {
        name: "rflags-vm",
        source: INTEL,
        says: "Virtual-8086 mode (RFLAGS.VM) is a part of protected mode, and not of long mode",
        look: |s| {
            let broken = s.flag(rflags::VM) && (s.is_long() || !s.has_protection());
            wrong(broken, format!("RFLAGS is {:#x}", s.regs().rflags), "clear VM")
        },
    },
    Rule {
        name: "rflags-if",
        source: INTEL,
        says: "An interrupt is delivered to a guest that takes interrupts (RFLAGS.IF)",
        look: |s| {
            let interrupt = s.snapshot.events.interrupt;
            let broken = interrupt.injected && !interrupt.soft && !s.flag(rflags::IF);
            let found =
                format!("interrupt {:#x} is being delivered, RFLAGS is {:#x}", interrupt.vector, s.regs().rflags);
            wrong(broken, found, "set IF, or deliver it later")
        },
    },
];
