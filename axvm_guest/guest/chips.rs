//! The PC's own chips: UART, PIT, IOAPIC, RTC, PM timer, pvpanic.
//!
//! Spec: National PC16550D; Intel 8254; Intel 82093AA; Motorola MC146818A; QEMU docs/specs/pvpanic.rst.

use crate::clock::{self, PIT_HZ, channel_2, start_channel_2};
use crate::cpu::{self, input, output};
use crate::report::{COM1, Line, Verdict};
use crate::{acpi, apic};

const UART_VECTOR: u8 = 36;
const PIT_VECTOR: u8 = 34;
pub const RTC_VECTOR: u8 = 38;

/// Masks both 8259s: the IOAPIC delivers everything here.
pub fn mask_pics() {
    output(0x21, 0xff_u8);
    output(0xa1, 0xff_u8);
}

/// Loops a byte back, and has the transmitter's interrupt arrive on GSI 4.
pub fn uart(line: &mut Line) -> Verdict {
    output(COM1 + 4, 0x1e_u8); // MCR: loopback, OUT2, RTS
    output(COM1, 0xa5_u8);
    let arrived = clock::wait(100_000, || input::<u8>(COM1 + 5) & 1 != 0);
    let byte: u8 = input(COM1);
    output(COM1 + 4, 0x08_u8); // OUT2: interrupts pass
    line.check(arrived && byte == 0xa5, "loopback: waited for the byte 0xa5")?;
    let before = apic::count(UART_VECTOR);
    apic::route(4, UART_VECTOR);
    output(COM1 + 1, 2_u8); // IER: transmitter empty
    let interrupted = clock::wait(200_000, || apic::count(UART_VECTOR) != before);
    output(COM1 + 1, 0_u8);
    let _: u8 = input(COM1 + 2);
    apic::route(4, 0);
    line.text(" loopback");
    line.check(interrupted, "waited for an interrupt on GSI 4")?;
    line.text(", interrupt");
    Ok(())
}

pub fn ioapic(line: &mut Line) -> Verdict {
    let version = apic::io_read(1);
    let pins = (version >> 16 & 0xff) + 1;
    line.text(" version ").hex((version & 0xff).into()).text(" pins ").decimal(pins.into());
    line.check(pins >= 24, "too few pins")?;
    apic::route(9, 50);
    let routed = apic::io_read(0x10 + 9 * 2) & 0xff;
    apic::route(9, 0);
    line.check(routed == 50 && apic::io_read(0x10 + 9 * 2) & apic::MASKED != 0, "a route is not what was written")
}

/// Channel 0 interrupts where the MADT says; channel 2 counts down.
pub fn pit(line: &mut Line) -> Verdict {
    let pin = acpi::madt().timer_gsi;
    let before = apic::count(PIT_VECTOR);
    apic::route(pin, PIT_VECTOR);
    output(0x43, 0x34_u8); // channel 0, mode 2
    output(0x40, (PIT_HZ / 500) as u8);
    output(0x40, ((PIT_HZ / 500) >> 8) as u8);
    let fired = clock::wait(500_000, || apic::count(PIT_VECTOR).wrapping_sub(before) >= 3);
    apic::route(pin, 0);
    output(0x43, 0x30_u8); // mode 0 without a count: silent
    line.text(" pin ").decimal(pin.into());
    line.check(fired, "waited 500 ms for three interrupts of channel 0 at 500 Hz")?;
    start_channel_2();
    let first = channel_2();
    line.check(clock::wait(100_000, || channel_2() != first), "channel 2 stands still")
}

fn cmos(register: u8) -> u64 {
    output(0x70, register);
    let value: u8 = input(0x71);
    value.into()
}

/// The date is one of this century.
pub fn rtc(line: &mut Line) -> Verdict {
    line.check(clock::wait(100_000, || cmos(0x0a) & 0x80 == 0), "update in progress for 100 ms")?;
    let binary = cmos(0x0b) & 4 != 0;
    let value = |register| match cmos(register) {
        value if binary => value,
        value => (value >> 4) * 10 + (value & 15),
    };
    let [year, month, day, hour, minute] = [9, 8, 7, 4, 2].map(value);
    for (mark, part) in [(" 20", year), ("-", month), ("-", day), (" ", hour), (":", minute)] {
        line.text(mark).decimal(part);
    }
    let plausible = (24..100).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day) && minute < 60;
    line.check(plausible, "not a date")
}

/// The clock interrupts each second on its line, IRQ 8.
pub fn alarm_each_second() {
    apic::route(8, RTC_VECTOR);
    for register in [5, 3, 1] {
        cmos_write(register, 0xff); // any hour, any minute, any second
    }
    cmos_write(0x0b, 0x22); // alarm interrupt, 24 hours
    cmos(0x0c);
}

/// Its interrupt arrives no more, and is not acknowledged at the chip.
pub fn mask_alarm() {
    apic::route(8, 0);
}

fn cmos_write(register: u8, value: u8) {
    output(0x70, register);
    output(0x71, value);
}

/// 3.579545 MHz by the TSC, within a tenth.
pub fn pm_timer(line: &mut Line) -> Verdict {
    let Some(port) = acpi::timer_port() else { return line.absent() };
    let look = || (cpu::rdtsc(), input::<u32>(port), cpu::rdtsc());
    let per_ms = clock::tsc_per_microsecond() * 1000;
    let mut ticks = 0;
    // Again if the machine was paused meanwhile: the TSC may go on then.
    for _ in 0..20 {
        let (first, start, second) = look();
        clock::sleep(2000);
        let (third, end, last) = look();
        ticks = end.wrapping_sub(start).into();
        let expected = |tsc: u64| tsc * 3580 / per_ms;
        if (expected(third - second) * 9 / 10..=expected(last - first) * 11 / 10).contains(&ticks) {
            line.text(" port ").hex(port.into()).text(" 32 bits");
            return Ok(());
        }
    }
    line.text(" ").decimal(ticks);
    line.failed("ticks in 2 ms, and not 7160")
}

/// Reads which events pvpanic takes; sends none.
pub fn pvpanic(line: &mut Line) -> Verdict {
    match input::<u8>(0x505) {
        0xff | 0 => line.absent(),
        events => {
            line.text(" events ").hex(events.into());
            line.check(events & 1 != 0, "takes no panic event")
        }
    }
}
