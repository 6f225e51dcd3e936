//! Placement: a kernel whose header says anything, an initrd of any size, any command line, RAM of several sizes.
//!
//! ```text
//!   input --> bzImage with a hostile header, initrd length, command line --> prepare --> RAM
//!   held:     no panic; parts lie in RAM and do not overlap; RAM holds the very bytes; the zero page tells where
//! ```
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (protocol 2.15) and zero-page.rst, offsets written down a second time.
//!
//! Run: `cargo xtask fuzz initrd`.
#![no_main]

use std::sync::{Arc, LazyLock};

use axvm_arch::{Gpa, layout};
use axvm_boot::linux::{Entry, LinuxConfig, LinuxStart, Span, prepare};
use axvm_memory::{GuestRam, RamConfig};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const MIB: u64 = 1 << 20;
/// Where the bytes of the kernel's protected-mode part begin in a file with four setup sectors.
const CODE: usize = 5 * 512;

static MACHINES: LazyLock<[Arc<GuestRam>; 3]> =
    LazyLock::new(|| [2, 16, 64].map(|mib| GuestRam::allocate(&RamConfig::new(mib * MIB)).expect("some MiB")));

#[derive(Arbitrary, Debug)]
struct Input {
    machine: u8,
    entry: u8,
    /// 0x1f1 to 0x26f: the whole setup header.
    header: [u8; 0x7f],
    /// Fields that are not as they should be, bit by bit; lies are rarer than truth.
    lies: [u16; 3],
    code: Vec<u8>,
    code_len: u32,
    initrd_len: Option<u32>,
    initrd: Vec<u8>,
    command_line: String,
    command_line_repeats: u8,
    rsdp: Option<u64>,
}

impl Input {
    fn kernel(&self) -> Vec<u8> {
        let mut file = vec![0; CODE];
        file[0x1f1..0x270].copy_from_slice(&self.header);
        let code = stretched(&self.code, self.length(self.code_len));
        let lies = self.lies.iter().fold(!0, |lies, some| lies & some);
        let mut be_honest = |bit: u16, at: usize, bytes: &[u8]| {
            if lies & 1 << bit == 0 {
                file[at..at + bytes.len()].copy_from_slice(bytes);
            }
        };
        be_honest(0, 0x1f1, &[4]);
        be_honest(1, 0x1fe, &[0x55, 0xaa]);
        be_honest(1, 0x202, b"HdrS");
        be_honest(2, 0x206, &0x020f_u16.to_le_bytes());
        be_honest(3, 0x211, &[1]);
        be_honest(4, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
        be_honest(5, 0x236, &1_u16.to_le_bytes());
        be_honest(6, 0x238, &2047_u32.to_le_bytes());
        be_honest(7, 0x258, &MIB.to_le_bytes());
        be_honest(8, 0x1f4, &(code.len() as u32 / 16).to_le_bytes());
        be_honest(9, 0x230, &(MIB as u32).to_le_bytes());
        be_honest(10, 0x260, &(MIB as u32).to_le_bytes());
        be_honest(11, 0x234, &[1]);
        file.extend(code);
        file
    }

    /// A few KiB, now and then some MiB: as much as the small machine has, and more.
    fn length(&self, wish: u32) -> u32 {
        if self.machine & 0xf0 == 0xf0 { wish % (3 * MIB as u32) } else { wish % (16 << 10) }
    }

    fn config(&self) -> LinuxConfig {
        LinuxConfig {
            command_line: self.command_line.repeat(1 + usize::from(self.command_line_repeats)),
            initrd_len: self.initrd_len.map(|len| self.length(len).into()),
            entry: Some(Entry::ALL[usize::from(self.entry) % Entry::ALL.len()]),
            ..LinuxConfig::default()
        }
    }

    /// What an owner of the files does with the answer.
    fn load(&self, ram: &GuestRam, kernel: &[u8], start: &LinuxStart) {
        for piece in &start.pieces {
            let bytes = &kernel[piece.offset as usize..][..piece.to.len as usize];
            ram.write(piece.to.gpa, bytes).expect("a piece in RAM");
        }
        if let Some(at) = start.initrd_at {
            ram.write(at.gpa, &stretched(&self.initrd, at.len as u32)).expect("an initrd in RAM");
        }
    }
}

/// `bytes`, over and over, up to `len`.
fn stretched(bytes: &[u8], len: u32) -> Vec<u8> {
    let source = if bytes.is_empty() { &[0xa5] } else { bytes };
    let mut all = source.repeat(len as usize / source.len() + 1);
    all.truncate(len as usize);
    all
}

fn overlap(a: Span, b: Span) -> bool {
    a.len > 0 && b.len > 0 && a.gpa.0 < b.end().0 && b.gpa.0 < a.end().0
}

fn bytes(ram: &GuestRam, gpa: Gpa, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ram.read(gpa, &mut bytes).expect("a part in RAM");
    bytes
}

/// What `prepare` promises, looked up in RAM.
fn check(ram: &GuestRam, start: &LinuxStart, config: &LinuxConfig, input: &Input) {
    let within = |span: Span| span.gpa.0.checked_add(span.len).is_some_and(|end| end <= ram.size());
    assert!(within(start.kernel_at) && within(start.kernel_area));
    assert_eq!(start.initrd_at.is_some(), config.initrd_len.is_some());
    if let (Some(at), Some(len)) = (start.initrd_at, config.initrd_len) {
        let initrd = stretched(&input.initrd, len as u32);
        assert!(within(at) && !overlap(at, start.kernel_area), "the initrd lies in the kernel's memory: {at:?}");
        assert_eq!(at.len, len);
        assert!(bytes(ram, at.gpa, initrd.len()) == initrd, "the initrd is not what was given");
    }
    if matches!(start.entry, Entry::Pvh | Entry::Multiboot) {
        return;
    }
    let zero_page = bytes(ram, Gpa(start.state.regs.rsi), 4096);
    let field = |at: usize| u64::from(u32::from_le_bytes(zero_page[at..at + 4].try_into().expect("four bytes")));
    let initrd = start.initrd_at.unwrap_or(Span { gpa: Gpa(0), len: 0 });
    assert_eq!((field(0x218) | field(0x0c0) << 32, field(0x21c) | field(0x0c4) << 32), (initrd.gpa.0, initrd.len));
    let text = bytes(ram, Gpa(field(0x228) | field(0x0c8) << 32), config.command_line.len() + 1);
    assert_eq!(text.split_last(), Some((&0, config.command_line.as_bytes())));
    assert!(usize::from(zero_page[0x1e8]) == start.e820.len() && start.e820.len() <= 128);
}

fuzz_target!(|input: Input| {
    let ram = &MACHINES[usize::from(input.machine) % 3];
    let (kernel, config) = (input.kernel(), input.config());
    // The text ends where RAM is zero.
    ram.write(layout::COMMAND_LINE, &[0; layout::COMMAND_LINE_ROOM as usize]).expect("in RAM");
    match prepare(ram, &&kernel[..], &config, input.rsdp.map(Gpa)) {
        Ok(start) => {
            input.load(ram, &kernel, &start);
            check(ram, &start, &config, &input);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
