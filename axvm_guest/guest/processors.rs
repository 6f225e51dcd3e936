//! The processors: modes at entry and after, CPUID, the local APIC and its timer, the start of the others.
//!
//! Spec: Intel SDM volume 3, 2.5 "Control Registers", 11.4 "Multiple-Processor (MP) Initialization",
//! 12.5.4 "APIC Timer".

use core::sync::atomic::{AtomicU32, Ordering};

use crate::acpi;
use crate::apic::{self, CURRENT_COUNT, DIVIDE, FIXED, INIT, INITIAL_COUNT, MASKED, STARTUP, TIMER};
use crate::clock;
use crate::cpu::{self, read, write};
use crate::hostile::crowd;
use crate::ipi::{self, IPI_VECTOR};
use crate::report::{Line, Verdict};

const TIMER_VECTOR: u8 = 33;
const DEADLINE_VECTOR: u8 = 35;
const EFER: u32 = 0xc000_0080;
/// First leaf of AMD's range of CPUID.
const EXTENDED: u32 = 0x8000_0000;
const TSC_DEADLINE: u32 = 0x6e0;
/// The 16-bit code is copied here; the page number is the vector of the SIPI.
const TRAMPOLINE: u64 = 0x1_0000;

unsafe extern "C" {
    safe static trampoline: u8;
    safe static trampoline_end: u8;
    #[link_name = "entry_registers"]
    safe static ENTRY_REGISTERS: [AtomicU32; 3];
}

/// What each processor did, by APIC id. Each writes its own slot: not every interpreter of instructions
/// makes `lock` hold between processors.
static PROGRESS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];
const UP: u32 = 1;
const ANSWERED: u32 = 2;

/// PVH entry is 32-bit with paging off; now it is long mode with paging on.
pub fn modes(line: &mut Line) -> Verdict {
    let [cr0, cr4, efer] = [0, 1, 2].map(|at| ENTRY_REGISTERS[at].load(Ordering::Relaxed));
    line.text(" entry CR0 ").hex(cr0.into()).text(" CR4 ").hex(cr4.into()).text(" EFER ").hex(efer.into());
    line.check(cr0 & 0x8000_0001 == 1, "entered outside protected mode or with paging")?;
    line.check(cr4 & 0x20 == 0 && efer & 0x400 == 0, "entered with PAE or in long mode")?;
    let [now0, now4] = cpu::control_registers();
    line.text(", now EFER ").hex(cpu::read_msr(EFER));
    line.check(now0 & 0x8000_0001 == 0x8000_0001 && now4 & 0x20 != 0, "CR0 or CR4 lost what was written")?;
    line.check(cpu::read_msr(EFER) & 0x500 == 0x500, "EFER has no LME and LMA")
}

/// A hypervisor shows itself, and the number of processors is that of the MADT; what only some guests are told of is named.
pub fn cpuid(line: &mut Line) -> Verdict {
    let [_, ebx, ecx, edx] = cpu::cpuid(1);
    line.check(ecx & 1 << 31 != 0, "no hypervisor bit in leaf 1")?;
    let [_, b, c, d] = cpu::cpuid(0x4000_0000);
    line.byte(b' ');
    for byte in [b, c, d].into_iter().flat_map(u32::to_le_bytes).filter(u8::is_ascii_graphic) {
        line.byte(byte);
    }
    line.check(edx & 0x0600_0200 == 0x0600_0200, "leaf 1 lacks SSE, SSE2 or APIC")?;
    line.check(ebx >> 24 == apic::id().into(), "initial APIC id in leaf 1 is not the local APIC's")?;
    line.text(" logical ").decimal((ebx >> 16 & 0xff).into()).text(" per package,");
    let amd = if cpu::cpuid(EXTENDED)[0] > EXTENDED { cpu::cpuid(EXTENDED + 1)[2] } else { 0 };
    let counters = cpu::cpuid(0)[0] >= 0xa && cpu::cpuid(0xa)[0] & 0xff != 0;
    let parts =
        [(ecx & 1 << 5 != 0, " VMX"), (amd & 1 << 2 != 0, " SVM"), (counters || amd & 1 << 23 != 0, " counters")];
    parts.iter().filter(|(there, _)| *there).for_each(|(_, name)| {
        line.text(name);
    });
    if parts.iter().all(|(there, _)| !there) {
        line.text(" no VMX, SVM or counters");
    }
    Ok(())
}

/// An interrupt to itself arrives.
pub fn self_ipi(line: &mut Line) -> Verdict {
    let before = apic::count(IPI_VECTOR);
    line.text(" id ").decimal(apic::id().into()).text(" version ").hex((apic::read(apic::VERSION) & 0xff).into());
    apic::send(apic::id(), FIXED | u32::from(IPI_VECTOR));
    line.check(clock::wait(200_000, || apic::count(IPI_VECTOR) != before), "waited 200 ms for an IPI to itself")
}

/// The timer counts down once and interrupts.
pub fn timer(line: &mut Line) -> Verdict {
    let before = apic::count(TIMER_VECTOR);
    apic::write(DIVIDE, 0b1011); // by 1
    apic::write(TIMER, TIMER_VECTOR.into());
    // Four seconds: a host that holds the guest meanwhile does not see it through.
    apic::write(INITIAL_COUNT, u32::MAX);
    let current = apic::read(CURRENT_COUNT);
    apic::write(INITIAL_COUNT, 2_000_000);
    let fired = clock::wait(500_000, || apic::count(TIMER_VECTOR) != before);
    apic::write(TIMER, MASKED);
    line.check((1..u32::MAX).contains(&current), "the current count is not below the initial one")?;
    line.check(fired, "waited 500 ms for a one-shot of 2000000 ticks")
}

/// The timer interrupts when the TSC reaches a value.
pub fn tsc_deadline(line: &mut Line) -> Verdict {
    if cpu::cpuid(1)[2] & 1 << 24 == 0 {
        return line.absent();
    }
    let before = apic::count(DEADLINE_VECTOR);
    apic::write(TIMER, 0b10 << 17 | u32::from(DEADLINE_VECTOR));
    let deadline = cpu::rdtsc() + 2000 * clock::tsc_per_microsecond();
    cpu::write_msr(TSC_DEADLINE, deadline);
    let fired = clock::wait(500_000, || apic::count(DEADLINE_VECTOR) != before);
    let late = cpu::rdtsc().wrapping_sub(deadline);
    apic::write(TIMER, MASKED);
    line.check(fired, "waited 500 ms for a deadline in 2 ms")?;
    line.check(late < 1 << 62, "fired before the deadline")?;
    line.text(" late by ").decimal(late / clock::tsc_per_microsecond()).text("us");
    Ok(())
}

/// Where the other processors arrive: they say so, and that an interrupt woke them.
pub fn arrive() -> ! {
    apic::enable();
    let progress = &PROGRESS[usize::from(apic::id())];
    progress.store(UP, Ordering::Release);
    loop {
        cpu::halt();
        progress.store(ANSWERED, Ordering::Release);
        crowd::join();
    }
}

fn how_many(progress: u32) -> u32 {
    PROGRESS.iter().filter(|slot| slot.load(Ordering::Acquire) >= progress).count() as u32
}

/// Every processor of the MADT starts by an INIT and a SIPI that are addressed to it, and answers an interrupt.
pub fn start_all(line: &mut Line) -> Verdict {
    let expected = acpi::madt().processors.saturating_sub(1);
    if expected == 0 {
        return line.absent();
    }
    let code = &raw const trampoline as u64;
    for at in 0..&raw const trampoline_end as u64 - code {
        write(TRAMPOLINE + at, read::<u8>(code + at));
    }
    wake(3_000_000, expected, |command| {
        acpi::processor_ids(|id| {
            if id != apic::id() && PROGRESS[usize::from(id)].load(Ordering::Acquire) == 0 {
                apic::send(id, command);
            }
        });
    });
    line.text(" ").decimal(how_many(UP).into()).text(" of ").decimal(expected.into()).text(" others up");
    line.check(how_many(UP) == expected, "3 s after INIT, SIPI, SIPI")?;
    ipi::call_others();
    let answered = clock::wait(3_000_000, || how_many(ANSWERED) == expected);
    line.text(", IPIs answered ").decimal(how_many(ANSWERED).into());
    line.check(answered, "waited 3 s for the rest")
}

/// INIT, SIPI, SIPI by `send`; waits until all are up.
fn wake(microseconds: u64, expected: u32, send: impl Fn(u32)) {
    send(INIT);
    clock::sleep(10_000);
    for _ in 0..2 {
        send(STARTUP | (TRAMPOLINE >> 12) as u32);
        clock::sleep(200);
    }
    clock::wait(microseconds, || how_many(UP) == expected);
}
