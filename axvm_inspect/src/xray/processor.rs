//! The first processor: its registers bit by bit, the mode that follows, and the way of an address.
//!
//! ```text
//!   CpuState --registers--> each register, its bits by name     --paging--> walk of an address, entry by entry
//! ```
//!
//! Spec: Intel SDM volume 3, chapters 2 to 4. Left out: the other processors, which wait for INIT and SIPI.

use axvm_arch::paging::{Scheme, Walk};
use axvm_arch::registers::Segment;

use super::{Facts, Row, Section, read};
use crate::registers::{Control, Explained, SegmentRegister};
use crate::snapshot::{Processor, Snapshot};

pub(super) fn registers(facts: &Facts) -> Section {
    let explained = Explained::of(&Snapshot::from(facts.start.state));
    let mode = explained.mode;
    let mut rows = vec![Row::new("mode").text(mode.to_string()).source("SDM 3, 2.2")];
    let regs = &explained.general;
    let general = [
        ("RIP", regs.rip, "the first instruction"),
        ("RSP", regs.rsp, "the stack"),
        ("RAX", regs.rax, "Multiboot: the loader's magic number"),
        ("RBX", regs.rbx, "PVH, Multiboot: where the information is"),
        ("RCX", regs.rcx, ""),
        ("RDX", regs.rdx, ""),
        ("RSI", regs.rsi, "Linux: where the zero page is"),
        ("RDI", regs.rdi, ""),
        ("RBP", regs.rbp, ""),
    ];
    rows.extend(
        general
            .iter()
            .filter(|(name, value, _)| *value != 0 || *name == "RIP")
            .map(|(name, value, means)| Row::new(*name).value(*value).means(*means)),
    );
    rows.push(Row::new("others").value(0).means("all general registers that are not listed are zero"));
    rows.extend(explained.control.iter().map(control));
    rows.extend(explained.segments.iter().map(|segment| segment_row(facts, segment)));
    let tables = [("GDTR", explained.gdtr, "the GDT"), ("IDTR", explained.idtr, "no IDT yet: an exception is a crash")];
    rows.extend(tables.map(|(name, table, means)| {
        let limit = Row::new("limit").value(table.limit.into()).means("its length in bytes, minus one");
        Row::new(name).value(table.base).means(means).rows(vec![limit])
    }));
    let about = "The first processor before its first instruction; the others wait for INIT and SIPI.".into();
    Section { id: "registers", title: "Registers", about, rows }
}

/// A register, and each of its bits that is set.
fn control(control: &Control) -> Row {
    let bits = control.bits;
    let mut rows: Vec<Row> = bits
        .set()
        .map(|bit| {
            let (first, last) = (bit.mask.trailing_zeros(), 63 - bit.mask.leading_zeros());
            let (value, means) = (bit.of(bits.value), bit.means);
            match first == last {
                true => Row::new(bit.name).means(format!("bit {first}: {means}")),
                false => Row::new(bit.name).value(value).means(format!("bits {last} to {first}: {means}")),
            }
        })
        .collect();
    if control.name == "CR3" && bits.value != 0 {
        rows.insert(0, Row::new("base").value(bits.value & !0xfff).means("the first page table"));
    }
    Row::new(control.name).value(bits.value).rows(rows)
}

fn segment_row(facts: &Facts, SegmentRegister { name, register, words }: &SegmentRegister) -> Row {
    let Segment { base, limit, selector, .. } = *register;
    let row = Row::new(*name).value(selector.into()).means(format!("base {base:#x}, limit {limit:#x}, {words}"));
    let table = facts.start.state.system.gdt;
    let at = u64::from(selector & !7);
    let descriptor = (at != 0 && at + 7 <= table.limit.into()).then(|| read(facts, table.base + at, 8)).flatten();
    match descriptor {
        Some(bytes) => {
            let row_of = Row::new("descriptor").at(table.base + at).len(8).bytes(&bytes);
            row.rows(vec![row_of.means(format!("entry {} of the GDT", at / 8)).source("SDM 3, 3.4.5")])
        }
        None => row,
    }
}

pub(super) fn walks(facts: &Facts) -> Section {
    let state = &facts.start.state;
    let paging = Processor::default().paging(state);
    let addresses: Vec<u64> = match facts.walks {
        [] => vec![state.linear_rip()],
        said => said.to_vec(),
    };
    let rows = addresses.iter().map(|&address| walk(&paging.walk(address, facts.read))).collect();
    let about = match paging.scheme {
        Scheme::Off => "Paging is off at power-on: each linear address is a physical one.".into(),
        scheme => format!("How an address is translated at power-on, by {scheme}: entry by entry."),
    };
    Section { id: "walk", title: "Page walk", about, rows }
}

pub(super) fn walk(walk: &Walk) -> Row {
    let end = walk.to_string();
    let end = end.lines().last().unwrap_or_default();
    let steps = walk.steps.iter().map(|step| {
        let row = Row::new(step.level.to_string()).at(step.at.0).len(8).means(format!(
            "entry {}: {}",
            step.index,
            step.bits().names()
        ));
        match step.raw {
            Some(raw) => row.value(raw).bytes(&raw.to_le_bytes()),
            None => row,
        }
    });
    Row::new(format!("{:#x}", walk.address)).means(end).rows(steps.collect())
}
