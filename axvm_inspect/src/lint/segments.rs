//! Rules on segment and descriptor-table registers. A segment that is not present is not usable, and then most do not apply.
//!
//! ```text
//!                 selector  base              limit  type            S  DPL            D/B, L   G
//!   CS                      below 4 GiB         G    code, or 3      1  by SS          not both G
//!   SS, DS, ES              below 4 GiB         G    data (SS), ..   1  0 w/o PE (SS)           G
//!   FS, GS                  canonical           G    accessed        1                          G
//!   TR            GDT       canonical           G    busy TSS        0                          G
//!   LDTR          GDT       canonical           G    LDT             0                          G
//!   virtual-8086: base = selector * 16, limit 0xffff, type 3, S, DPL 3, present and nothing else
//! ```
//!
//! Spec: Intel SDM volume 3C, 27.3.1.2 "Checks on Guest Segment Registers", 27.3.1.3 "Checks on Guest Descriptor-Table
//! Registers"; AMD APM volume 2, 15.5.1. Left out: RPL and DPL rules of processors without unrestricted guests; reserved
//! bits of access rights, which a [`Segment`] does not have.

use axvm_arch::control::rflags;
use axvm_arch::registers::{Segment, cr0, cr4, efer};

use super::{CONSISTENCY, EntryState, Rule, Source, Wrong, must_be_canonical, must_be_clear, wrong};

const SECTION: &str = "27.3.1.2 \"Checks on Guest Segment Registers\"";
const INTEL: Source = Source::Intel(SECTION);
const TABLES: Source = Source::Intel("27.3.1.3 \"Checks on Guest Descriptor-Table Registers\"");
const UPPER: u64 = 0xffff_ffff_0000_0000;
/// Table indicator of a selector: the LDT.
const TI: u16 = 1 << 2;

pub(super) const RULES: &[Rule] = &[
    Rule {
        name: "tr-ti",
        source: INTEL,
        says: "The task register's segment is in the GDT",
        look: |s| in_gdt("TR", &s.system().tr),
    },
    Rule {
        name: "ldtr-ti",
        source: INTEL,
        says: "The LDT's segment is in the GDT",
        look: |s| in_gdt("LDTR", usable(&s.snapshot.ldt)?),
    },
    Rule {
        name: "v86-base",
        source: INTEL,
        says: "In virtual-8086 mode a segment begins at 16 times its selector",
        look: |s| {
            let right = |segment: &Segment| format!("base {:#x}", u64::from(segment.selector) << 4);
            any(v86(s)?, |segment| segment.base != u64::from(segment.selector) << 4, right)
        },
    },
    Rule {
        name: "v86-limit",
        source: INTEL,
        says: "In virtual-8086 mode a segment has 64 KiB",
        look: |s| any(v86(s)?, |segment| segment.limit != 0xffff, |_| "limit 0xffff".into()),
    },
    Rule {
        name: "v86-rights",
        source: INTEL,
        says: "In virtual-8086 mode a segment is accessed writable data of DPL 3",
        look: |s| {
            let right = |segment: &Segment| {
                let Segment { kind, code_or_data, dpl, present, .. } = *segment;
                let plain = !(segment.db || segment.long || segment.granularity || segment.available);
                (kind, code_or_data, dpl, present) == (3, true, 3, true) && plain
            };
            any(v86(s)?, |segment| !right(segment), |_| "type 3, S, DPL 3, P, and no other bit".into())
        },
    },
    Rule {
        name: "tr-base",
        source: INTEL,
        says: "The TSS begins at a canonical address",
        look: |s| must_be_canonical("TR's base", s.system().tr.base, s.processor.linear_bits),
    },
    Rule {
        name: "fs-gs-base",
        source: INTEL,
        says: "FS and GS begin at canonical addresses",
        look: |s| {
            let canonical = |name: &str, segment: &Segment| {
                must_be_canonical(&format!("{name}'s base"), segment.base, s.processor.linear_bits)
            };
            canonical("FS", &s.system().fs).or_else(|| canonical("GS", &s.system().gs))
        },
    },
    Rule {
        name: "ldtr-base",
        source: INTEL,
        says: "The LDT begins at a canonical address",
        look: |s| must_be_canonical("LDTR's base", usable(&s.snapshot.ldt)?.base, s.processor.linear_bits),
    },
    Rule {
        name: "cs-base",
        source: INTEL,
        says: "CS begins below 4 GiB",
        look: |s| must_be_clear("CS's base", s.system().cs.base, UPPER),
    },
    Rule {
        name: "data-base",
        source: INTEL,
        says: "SS, DS and ES begin below 4 GiB",
        look: |s| {
            let [ss, ds, es, ..] = data(s);
            any_usable([ss, ds, es], |segment| segment.base & UPPER != 0, |_| "a base below 4 GiB".into())
        },
    },
    Rule {
        name: "cs-type",
        source: INTEL,
        says: "CS is an accessed code segment, or accessed writable data",
        look: |s| {
            let broken = |cs: &Segment| !matches!(cs.kind, 3 | 9 | 11 | 13 | 15);
            any([("CS", &protected(s)?.cs)], broken, |_| "type 9, 11, 13 or 15, or 3".into())
        },
    },
    Rule {
        name: "ss-type",
        source: INTEL,
        says: "SS is an accessed writable data segment",
        look: |s| any_usable([("SS", &protected(s)?.ss)], |ss| !matches!(ss.kind, 3 | 7), |_| "type 3 or 7".into()),
    },
    Rule {
        name: "data-type",
        source: INTEL,
        says: "DS, ES, FS and GS are accessed, and readable if they are code",
        look: |s| {
            protected(s)?;
            let [_, rest @ ..] = data(s);
            let broken = |segment: &Segment| segment.kind & 1 == 0 || segment.kind & 0b1010 == 0b1000;
            any_usable(rest, broken, |_| "an odd type, with bit 1 if it has bit 3".into())
        },
    },
    Rule {
        name: "cs-present",
        source: INTEL,
        says: "CS is usable",
        look: |s| any([("CS", &protected(s)?.cs)], |cs| !cs.present, |_| "a code segment that is present".into()),
    },
    Rule {
        name: "code-or-data",
        source: INTEL,
        says: "CS, SS, DS, ES, FS and GS are code or data segments (S)",
        look: |s| {
            let cs = ("CS", &protected(s)?.cs);
            let broken = |segment: &Segment| !segment.code_or_data;
            any_usable(std::iter::once(cs).chain(data(s)), broken, |_| "set S".into())
        },
    },
    Rule {
        name: "cs-dpl",
        source: INTEL,
        says: "CS's DPL is SS's; that of a conforming segment is not above it; that of type 3 is 0",
        look: |s| {
            let system = protected(s)?;
            let (cs, ss) = (&system.cs, system.ss.dpl);
            let broken = match cs.kind {
                3 => cs.dpl != 0,
                13 | 15 => cs.dpl > ss,
                _ => cs.dpl != ss,
            };
            wrong(broken, format!("CS's DPL is {}, SS's {ss}", cs.dpl), "make them equal")
        },
    },
    Rule {
        name: "ss-dpl",
        source: INTEL,
        says: "SS's DPL is 0 in real mode, and where CS is of type 3",
        look: |s| {
            let ss = &s.system().ss;
            let must = !s.flag(rflags::VM) && (!s.has_protection() || s.system().cs.kind == 3);
            wrong(must && ss.dpl != 0, format!("SS's DPL is {}", ss.dpl), "DPL 0")
        },
    },
    Rule {
        name: "cs-l-db",
        source: Source::Both(SECTION, CONSISTENCY),
        says: "In long mode a code segment is of 64 bits (L) or of 32 (D/B), not of both",
        look: |s| {
            let long = s.is_long() || s.efer(efer::LME) && s.cr0(cr0::PG) && s.cr4(cr4::PAE);
            let cs = &s.system().cs;
            wrong(long && cs.long && cs.db, describe("CS", cs), "clear L or D/B")
        },
    },
    Rule {
        name: "granularity",
        source: INTEL,
        says: "G is set if a limit has bits 31 to 20, and clear if its lowest twelve are not all ones",
        look: |s| {
            let system = protected(s)?;
            let others = [("CS", &system.cs), ("TR", &system.tr), ("LDTR", &s.snapshot.ldt)];
            let broken = |segment: &Segment| match segment.granularity {
                true => segment.limit & 0xfff != 0xfff,
                false => segment.limit >> 20 != 0,
            };
            any_usable(others.into_iter().chain(data(s)), broken, |segment| {
                if segment.granularity { "clear G".into() } else { "set G".into() }
            })
        },
    },
    Rule {
        name: "tr-type",
        source: INTEL,
        says: "The task register holds a busy TSS; in long mode, one of 64 bits",
        look: |s| {
            let right = if s.is_long() { "type 11" } else { "type 11 (or 3, of 16 bits)" };
            let broken = |tr: &Segment| tr.kind != 11 && (tr.kind != 3 || s.is_long());
            any([("TR", &s.system().tr)], broken, |_| right.into())
        },
    },
    Rule {
        name: "tr-usable",
        source: INTEL,
        says: "The task register is usable, and a system segment",
        look: |s| any([("TR", &s.system().tr)], |tr| !tr.present || tr.code_or_data, |_| "P set, S clear".into()),
    },
    Rule {
        name: "ldtr-type",
        source: INTEL,
        says: "LDTR holds an LDT",
        look: |s| {
            let broken = |ldt: &Segment| ldt.kind != 2 || ldt.code_or_data;
            any_usable([("LDTR", &s.snapshot.ldt)], broken, |_| "type 2, S clear; or no LDT".into())
        },
    },
    Rule {
        name: "gdtr-base",
        source: TABLES,
        says: "The GDT begins at a canonical address",
        look: |s| must_be_canonical("GDTR's base", s.system().gdt.base, s.processor.linear_bits),
    },
    Rule {
        name: "idtr-base",
        source: TABLES,
        says: "The IDT begins at a canonical address",
        look: |s| must_be_canonical("IDTR's base", s.system().idt.base, s.processor.linear_bits),
    },
];

type Named<'a> = (&'static str, &'a Segment);

fn data<'a>(s: &EntryState<'a>) -> [Named<'a>; 5] {
    let system = &s.snapshot.cpu.system;
    [("SS", &system.ss), ("DS", &system.ds), ("ES", &system.es), ("FS", &system.fs), ("GS", &system.gs)]
}

/// The registers, unless in virtual-8086 mode, which has rules of its own.
fn protected<'a>(s: &EntryState<'a>) -> Option<&'a axvm_arch::registers::SystemRegisters> {
    (!s.flag(rflags::VM)).then_some(&s.snapshot.cpu.system)
}

/// All segments in virtual-8086 mode.
fn v86<'a>(s: &EntryState<'a>) -> Option<impl Iterator<Item = Named<'a>>> {
    let cs = ("CS", &s.snapshot.cpu.system.cs);
    s.flag(rflags::VM).then(|| std::iter::once(cs).chain(data(s)))
}

fn usable(segment: &Segment) -> Option<&Segment> {
    segment.present.then_some(segment)
}

fn in_gdt(name: &str, segment: &Segment) -> Option<Wrong> {
    let right = format!("clear bit 2 (TI): {:#x}", segment.selector & !TI);
    wrong(segment.selector & TI != 0, format!("{name}'s selector is {:#x}", segment.selector), right)
}

/// The first of `segments` that is broken.
fn any<'a>(
    segments: impl IntoIterator<Item = Named<'a>>,
    broken: impl Fn(&Segment) -> bool,
    right: impl Fn(&Segment) -> String,
) -> Option<Wrong> {
    let (name, segment) = segments.into_iter().find(|(_, segment)| broken(segment))?;
    wrong(true, describe(name, segment), right(segment))
}

/// The first of those that are usable.
fn any_usable<'a>(
    segments: impl IntoIterator<Item = Named<'a>>,
    broken: impl Fn(&Segment) -> bool,
    right: impl Fn(&Segment) -> String,
) -> Option<Wrong> {
    any(segments.into_iter().filter(|(_, segment)| segment.present), broken, right)
}

fn describe(name: &str, segment: &Segment) -> String {
    format!("{name} is {segment:?}")
}
