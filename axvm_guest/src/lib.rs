//! Tiny guests of our own: a freestanding program that proves, device by device, what a machine can do.
//!
//! ```text
//!   PVH entry, 32 bits --> long mode --> proofs, one line each on COM1 --> power off by ACPI S5
//! ```
//!
//! | line on COM1 | means |
//! |---|---|
//! | `AXVM begin selftest 1` | the guest runs; protocol version 1 |
//! | `AXVM name ok 123us detail` | proved, in 123 microseconds |
//! | `AXVM name FAILED 123us detail` | disproved; the detail says what was seen or waited for |
//! | `AXVM name skip 0us detail` | the machine has no such device |
//! | `AXVM panic detail` | the guest's own fault or an exception; pvpanic follows |
//! | `AXVM end ok`, `AXVM end FAILED 2` | the last line, with the number of failures; power off follows |
//!
//! The guest needs 16 MiB of RAM, an ELF loader with PVH entry and nothing else. It never waits without
//! a limit. A disk is left as it was found: what a proof overwrites, it writes back.
//!
//! Spec: Xen "x86/HVM direct boot ABI". Left out: anything at CPL3, where only the bench guest works ([`bench()`]).

#![forbid(unsafe_code)]

mod bench;

pub use bench::{Phase, QUEUES, bench};

/// The word on the guest's command line that makes it lie to every device instead: `hostile` or `hostile=SEED`.
///
/// Its lines are the same; a device counts as `ok` when it still works after it was lied to and reset.
/// It discards and overwrites sectors at random: give it a scratch disk.
/// With `suicide` beside it, it has a device overwrite the guest itself.
pub const HOSTILE: &str = "hostile";

/// The word on the guest's command line that has it expect its network card's frames back.
pub const LOOP: &str = "loop";

/// The word on the guest's command line that makes it keep a journal on its first disk: `journal=ROUNDS`. Each entry that
/// it tells of, `AXVM flushed 7`, was flushed.
pub const JOURNAL: &str = "journal";

/// The word on the guest's command line that makes it crash in one of seven ways: `crash=1` an undefined instruction, 2 a
/// page that is not present, 3 a reserved bit, 4 an instruction that is not emulated, 5 EFER against CR0, 6 a jump outside
/// of RAM, 7 a page without execution. It has no IDT then.
pub const CRASH: &str = "crash";

/// The word on the guest's command line that makes it a driver with mistakes, which AxVM's devices forgive.
pub const SLOPPY: &str = "sloppy";

/// The word on the guest's command line that leaves it with what only a machine with PCI can prove.
pub const PCI: &str = "pci";

/// The word on the guest's command line that makes it a command interpreter: `shell` on COM1, `shell=hvc0` on the
/// virtio console. Its commands stand at the head of `guest/console.rs`; each answer begins with `= `.
pub const SHELL: &str = "shell";

/// The ELF file of the guest, for PVH entry: the self-test, or what a word on its command line makes of it.
pub fn selftest() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"))
}

/// A kernel with both Multiboot headers, an ELF file of 64 bits whose one segment begins with them. It says on COM1 which
/// it was entered by and what its loader told it, and ends by debug exit at port 0xf4: 0x10 is good.
pub fn multiboot() -> &'static [u8] {
    include_bytes!(concat!(env!("OUT_DIR"), "/multiboot.elf"))
}

// Never compiled here (build.rs does it): it is how cargo fmt finds the guest's files.
#[cfg(any())]
#[path = "../guest/bench.rs"]
mod bench_guest;
#[cfg(any())]
#[path = "../guest/main.rs"]
mod guest;
