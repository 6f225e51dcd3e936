//! The guest: from the first 32-bit instruction to power off.
//!
//! ```text
//!   entry.s --> guest_main --+-- CPU 0: proofs, or with "hostile" on the command line attacks --> S5
//!                            |          with "shell" the command interpreter (console.rs); or with "journal" a journal on the disk
//!                            |          with "crash" an end that has to be explained (crash.rs)
//!                            |          with "sloppy" a driver with mistakes (sloppy.rs)
//!                            +-- others: count themselves, answer interrupts
//! ```
//!
//! Plain integer code: where the processor is interpreted, every instruction counts and some are missing.

#![no_std]
#![no_main]

mod acpi;
mod apic;
mod card;
mod chips;
mod clock;
mod console;
mod cpu;
mod crash;
mod devices;
mod disk;
mod hostile;
mod hotplug;
mod ipi;
mod journal;
mod messages;
mod mp;
mod pci;
mod pic;
mod processors;
mod report;
mod runtime;
mod sloppy;
mod start_info;
mod symbols;
mod virtio;
mod vsock;

use report::{Line, prove};

core::arch::global_asm!(include_str!("long_mode.s"), include_str!("entry.s"), options(att_syntax));

/// Where entry.s arrives, on each processor.
#[unsafe(no_mangle)]
extern "C" fn guest_main(first: u32) -> ! {
    if first == 0 {
        processors::arrive();
    }
    let clock = clock::find();
    let (hostile, shell) = (start_info::option("hostile"), start_info::option("shell"));
    let (journal, crash) = (start_info::option("journal"), start_info::option("crash"));
    let sloppy = start_info::option("sloppy");
    let mut line = Line::new();
    line.text("AXVM begin ").text(match (hostile, shell) {
        (Some(_), _) => "hostile",
        (_, Some(_)) => "shell",
        _ if journal.is_some() => "journal",
        _ if crash.is_some() => "crash",
        _ if sloppy.is_some() => "sloppy",
        _ => "selftest",
    });
    line.text(" 1").send();
    chips::mask_pics();
    apic::write_table();
    apic::enable();
    match (hostile, shell) {
        (Some(seed), _) => hostile::attack(seed),
        _ if crash.is_some() => crash::crash(crash.unwrap_or(0)),
        _ if sloppy.is_some() => prove("sloppy", sloppy::drive),
        _ if journal.is_some() => prove("journal", |line| journal::keep(journal.unwrap_or(0), line)),
        // `shell=hvc0` is no number.
        (_, Some(on_com1)) => console::interpret(on_com1 == 0),
        _ => selftest(clock),
    }
    report::end();
    acpi::power_off();
    prove("power-off", |line| line.failed("still running after S5 was written to PM1a control"));
    cpu::stop()
}

fn selftest(clock: &str) {
    if start_info::option("pci").is_some() {
        return prove_pci();
    }
    prove("modes", processors::modes);
    prove("cpuid", processors::cpuid);
    prove("clock", |line| {
        line.text(" TSC ").decimal(clock::tsc_per_microsecond()).text(" MHz from ").text(clock);
        Ok(())
    });
    prove("ram", start_info::ram);
    prove("acpi", acpi::walk);
    prove("mp-table", acpi::walk_mp);
    prove("uart", chips::uart);
    prove("lapic", processors::self_ipi);
    prove("lapic-timer", processors::timer);
    prove("tsc-deadline", processors::tsc_deadline);
    prove("ioapic", chips::ioapic);
    prove("pit", chips::pit);
    prove("rtc", chips::rtc);
    prove("pm-timer", chips::pm_timer);
    prove("pvpanic", chips::pvpanic);
    prove("smp", processors::start_all);
    devices::prove_all();
    if pci::is_there() {
        prove_pci();
    } else {
        prove("interrupt", disk::interrupt);
    }
}

fn prove_pci() {
    prove("pci", pci::config);
    prove("msi-x", messages::msix);
}
