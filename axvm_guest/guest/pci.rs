//! PCI: finding functions, their capabilities and BARs, and MSI-X; and the proof that all of it reads as it should.
//!
//! ```text
//!   MCFG --> ECAM, or ports 0xcf8, 0xcfc --> functions of bus 0 --> virtio's BAR, where its driver wants it
//!   MSI-X table: entry n --> vector of this processor
//! ```
//!
//! Spec: PCI Local Bus 3.0, 6 "Configuration Space"; virtio 1.2, 4.1 "Virtio Over PCI Bus".

use core::sync::atomic::{AtomicU64, Ordering};

use crate::acpi;
use crate::apic;
use crate::cpu::{input, output, read, write};
use crate::report::{Line, Verdict};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const VIRTIO: u32 = 0x1af4;
/// Device id of a virtio device of kind 0.
const FIRST: u32 = 0x1040;

const COMMAND: u16 = 0x04;
const REVISION: u16 = 0x08;
const HEADER: u16 = 0x0c;
const BAR: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;
const MEMORY_AND_MASTER: u32 = 6;
const MSIX: u32 = 0x11;
const VENDOR: u32 = 0x09;
pub const ENABLE: u32 = 1 << 31;
pub const FUNCTION_MASK: u32 = 1 << 30;

/// Where the driver puts BARs, and how far apart.
pub const BARS: u64 = 0xc000_0000;
pub const STRIDE: u64 = 0x1_0000;
const BAR_LEN: u32 = 0x8000;
/// In the BAR.
pub const MSIX_TABLE: u64 = 0x4000;
pub const MSIX_PENDING: u64 = 0x7000;
/// In the first two pages of the gigabyte above 4 GiB: RAM ends far below.
pub const HIGH: u64 = 1 << 32;

/// What [`ecam`] found; 1: none.
static ECAM: AtomicU64 = AtomicU64::new(0);

/// The ECAM, if the tables say where.
fn ecam() -> Option<u64> {
    if ECAM.load(Ordering::Relaxed) == 0 {
        let found = acpi::find(b"MCFG").map_or(1, |mcfg| read(mcfg + 44));
        ECAM.store(found, Ordering::Relaxed);
    }
    Some(ECAM.load(Ordering::Relaxed)).filter(|&base| base != 1)
}

/// Where the driver of device `number` has its BAR.
pub fn bar(number: u64) -> u64 {
    BARS + number * STRIDE
}

/// One function of bus 0.
#[derive(Clone, Copy, PartialEq)]
pub struct Function(u8);

impl Function {
    /// The bridge, which no driver wants: a device on MMIO.
    pub const NONE: Function = Function(0);

    /// Reads by the ports.
    fn read_by_ports(self, register: u16) -> u32 {
        output(ADDRESS, 1 << 31 | u32::from(self.0) << 8 | u32::from(register));
        input(DATA)
    }

    fn in_ecam(self, base: u64, register: u16) -> u64 {
        base + (u64::from(self.0) << 12) + u64::from(register)
    }

    pub fn read(self, register: u16) -> u32 {
        match ecam() {
            Some(base) => read(self.in_ecam(base, register)),
            None => self.read_by_ports(register),
        }
    }

    pub fn write(self, register: u16, value: u32) {
        match ecam() {
            Some(base) => write(self.in_ecam(base, register), value),
            None => {
                output(ADDRESS, 1 << 31 | u32::from(self.0) << 8 | u32::from(register));
                output(DATA, value);
            }
        }
    }

    /// The kind of its virtio device.
    pub fn kind(self) -> Option<u32> {
        let id = self.read(0);
        (id & 0xffff == VIRTIO).then(|| (id >> 16).wrapping_sub(FIRST))
    }

    /// The capabilities: where each is, and its first double word.
    fn capabilities(self) -> impl Iterator<Item = (u16, u32)> {
        let mut at = self.read(CAPABILITIES) as u16 & 0xfc;
        (0..48).map_while(move |_| {
            let (here, word) = (at, if at == 0 { 0 } else { self.read(at) });
            at = (word >> 8) as u16 & 0xfc;
            (here != 0).then_some((here, word))
        })
    }

    pub fn msix(self) -> Option<u16> {
        self.capabilities().find(|(_, word)| word & 0xff == MSIX).map(|(at, _)| at)
    }

    /// How many messages it has.
    fn vectors(self) -> u64 {
        self.msix().map_or(0, |at| u64::from(self.read(at) >> 16 & 0x7ff) + 1)
    }

    /// One that may not be there.
    pub fn any(devfn: u8) -> Function {
        Function(devfn)
    }

    /// Turns MSI-X on or off, and masks all of it, by the two upper bits.
    pub fn write_msix(self, bits: u32) {
        if let Some(msix) = self.msix() {
            self.write(msix, bits & (ENABLE | FUNCTION_MASK));
        }
    }

    /// The way to the BAR through configuration space.
    pub fn window(self) -> Option<u16> {
        self.capabilities().find(|(_, word)| word & 0xff == VENDOR && word >> 24 == 5).map(|(at, _)| at)
    }

    pub fn move_to(self, bar: u64) {
        self.write(BAR, bar as u32);
        self.write(BAR + 4, (bar >> 32) as u32);
        self.write(COMMAND, MEMORY_AND_MASTER);
    }
}

/// Whether there is a bus. On a machine with another bridge, no question is asked of any function.
pub fn is_there() -> bool {
    Function(0).read(0) & 0xffff == 0x1b36
}

/// The first function behind `last` that has a virtio device.
fn after(Function(last): Function) -> Option<Function> {
    let mut at = u16::from(last) + 1;
    while let Ok(devfn) = u8::try_from(at) {
        let alone = Function(devfn & !7).read(HEADER) >> 23 & 1 == 0;
        if devfn & 7 != 0 && alone {
            // Nothing more in this slot.
            at = (at | 7) + 1;
        } else if Function(devfn).kind().is_some() {
            return Some(Function(devfn));
        } else {
            at += 1;
        }
    }
    None
}

/// The functions with virtio devices, ascending.
fn functions() -> impl Iterator<Item = Function> {
    let mut last = Function::NONE;
    core::iter::from_fn(move || {
        last = next(last)?;
        Some(last)
    })
}

/// The function with a virtio device behind `last`, as functions ascend.
pub fn next(last: Function) -> Option<Function> {
    if is_there() { after(last) } else { None }
}

/// Puts the BAR of a device where its driver expects it, and lets every message go to a vector of this processor.
pub fn prepare(function: Function, bar: u64, vector: u8) {
    function.move_to(bar);
    let Some(msix) = function.msix() else { return };
    function.write(msix, ENABLE);
    for entry in 0..function.vectors() {
        program(bar, entry, vector);
    }
}

fn program(bar: u64, entry: u64, vector: u8) {
    let at = bar + MSIX_TABLE + entry * 16;
    write(at, 0xfee0_0000_u32 | u32::from(apic::id()) << 12);
    write(at + 4, 0_u32);
    write(at + 8, u32::from(vector));
    write(at + 12, 0_u32);
}

/// Every function reads the same in both ways, shows its size, and has the capabilities where the driver expects them.
pub fn config(line: &mut Line) -> Verdict {
    if functions().next().is_none() {
        return line.absent();
    }
    line.text(if ecam().is_some() { " ECAM" } else { " ports" }).text(" and ports agree on");
    let mut count = 0;
    for function in functions() {
        for register in (0..0x40).chain(0x80..0xc0).step_by(4) {
            if function.read(register) != function.read_by_ports(register) {
                line.text(" not ").hex(register.into());
                return line.failed("of a function");
            }
        }
        line.check(function.read(REVISION) & 0xff == 1, "revision of a legacy device")?;
        let bar = function.read(BAR) & !0xf;
        function.write(COMMAND, 0);
        function.write(BAR, u32::MAX);
        let size = !(function.read(BAR) & !0xf) + 1;
        function.write(BAR, bar);
        line.check(size == BAR_LEN, "a BAR of another length")?;
        let found = |structure: u32, offset: u32| {
            function
                .capabilities()
                .any(|(at, word)| word & 0xff == VENDOR && word >> 24 == structure && function.read(at + 8) == offset)
        };
        let all = [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000)];
        line.check(all.into_iter().all(|(kind, at)| found(kind, at)), "no capability of virtio, or elsewhere")?;
        line.check(function.vectors() > 1, "fewer than two messages")?;
        count += 1;
    }
    line.text(" ").decimal(count).text(" functions");
    Ok(())
}
