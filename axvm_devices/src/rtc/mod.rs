//! The real-time clock and CMOS RAM: a MC146818 at ports 0x70 and 0x71.
//!
//! ```text
//!  OUT 0x70, index --> which of 128 bytes          IN/OUT 0x71 --> that byte
//!
//!  guest time = host UTC + offset (0 until the guest sets the clock)
//!  alarm, update-ended --> timer_fd (once a second while enabled) --> tick() --> IRQ 8
//!  alarm ------------------------------------------------------------------> ACPI's RTC_STS, which wakes
//! ```
//!
//! Time is BCD, 24 h, with the century at 0x32 (the FADT says so). Bit 7 of the index is the NMI
//! mask of a PC and is ignored.
//!
//! Spec: Motorola MC146818A datasheet (1988), "Real-Time Clock Plus RAM"; ACPI 6.5, table 5.9,
//! CENTURY. Left out: periodic interrupt and square wave, binary and 12-hour formats (those bits of
//! register B are read-only), daylight saving, a backup file for the RAM.

mod calendar;
mod registers;
mod state;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::time::{ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::{BusDevice, ChipStateError, Irq, RegisterNames};
use registers::{NANOS, Nanos, Registers};
pub use state::RtcState;

/// Offset of the index register; the data register is at 1.
const INDEX: u64 = 0;
const DATA: u64 = 1;

/// A clock that follows the host's, at a distance the guest may choose.
pub struct Rtc {
    chip: Mutex<Chip>,
    timer: OwnedFd,
    irq: Irq,
    on_alarm: Box<dyn Fn() + Send + Sync>,
}

struct Chip {
    index: u8,
    registers: Registers,
}

impl Rtc {
    /// A clock that shows the host's UTC and interrupts through `irq`. `on_alarm` is called for each alarm whose interrupt
    /// is enabled; it must not block.
    pub fn new(irq: Irq, on_alarm: impl Fn() + Send + Sync + 'static) -> io::Result<Rtc> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Realtime, flags)?;
        let registers = Registers::new(host_time());
        Ok(Rtc { chip: Mutex::new(Chip { index: 0, registers }), timer, irq, on_alarm: Box::new(on_alarm) })
    }

    /// Readable when [`Rtc::tick`] is due. Never, while the guest has no clock interrupt enabled.
    pub fn timer_fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// The chip's once-a-second update: raises the interrupts that are due and sets the timer anew.
    pub fn tick(&self) {
        // Empty (a spurious call) or not, the timer is set anew below.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let mut chip = self.chip();
        let now = host_time();
        let interrupts = chip.registers.update(now);
        self.tell(&mut chip, interrupts);
        self.arm(&chip, now);
    }

    /// The chip's state.
    pub fn state(&self) -> RtcState {
        let chip = self.chip();
        chip.registers.state(chip.index)
    }

    /// Makes a fresh chip what `state` says: its time is as far from this host's as it was from that of the host that
    /// saved it. Interrupts if an update or alarm that the guest waits for came due since.
    pub fn restore(&self, state: &RtcState) -> Result<(), ChipStateError> {
        let registers = Registers::from_state(state, host_time())?;
        *self.chip() = Chip { index: state.index, registers };
        self.tick();
        Ok(())
    }

    fn write_data(&self, chip: &mut Chip, value: u8) {
        let now = host_time();
        let interrupts = chip.registers.write(chip.index, value, now);
        self.tell(chip, interrupts);
        self.arm(chip, now);
    }

    /// Brings out what the chip has to tell.
    fn tell(&self, chip: &mut Chip, interrupts: bool) {
        if interrupts {
            self.irq.raise();
        }
        if chip.registers.take_alarm() {
            (self.on_alarm)();
        }
    }

    /// Sets the timer to the next update that may interrupt, or stops it.
    fn arm(&self, chip: &Chip, now: Nanos) {
        let due = chip.registers.next_update(now).unwrap_or(0);
        let it_value = Timespec { tv_sec: (due / NANOS) as i64, tv_nsec: (due % NANOS) as i64 };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        // It fails only for times that no clock has.
        let _ = rustix::time::timerfd_settime(
            &self.timer,
            TimerfdTimerFlags::ABSTIME,
            &Itimerspec { it_interval, it_value },
        );
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // A wider access is split into bytes, as in front of any 8-bit chip. The index register is
        // write-only and reads as all ones.
        let mut chip = self.chip();
        let index = chip.index;
        for (_, byte) in (offset..=DATA).zip(data).filter(|&(port, _)| port == DATA) {
            *byte = chip.registers.read(index, host_time());
            self.tell(&mut chip, false);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut chip = self.chip();
        for (port, &byte) in (offset..=DATA).zip(data) {
            match port {
                INDEX => chip.index = byte & 0x7f,
                _ => self.write_data(&mut chip, byte),
            }
        }
    }

    fn registers(&self) -> RegisterNames {
        |offset, _| ["index", "data"].get(usize::try_from(offset).ok()?).copied()
    }
}

/// The host's UTC, in nanoseconds since 1970.
fn host_time() -> Nanos {
    let now = rustix::time::clock_gettime(ClockId::Realtime);
    Nanos::from(now.tv_sec) * NANOS + Nanos::from(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn rtc() -> (Rtc, Irq) {
        let irq = Irq::new().unwrap();
        (Rtc::new(irq.try_clone().unwrap(), || ()).unwrap(), irq)
    }

    fn cmos(rtc: &Rtc, index: u8) -> u8 {
        rtc.write(INDEX, &[index]);
        let mut data = [0xff];
        rtc.read(DATA, &mut data);
        data[0]
    }

    fn set(rtc: &Rtc, index: u8, value: u8) {
        rtc.write(INDEX, &[index]);
        rtc.write(DATA, &[value]);
    }

    fn fires(rtc: &Rtc, seconds: i64) -> bool {
        let limit = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::from_borrowed_fd(rtc.timer_fd(), PollFlags::IN)], Some(&limit)).unwrap() > 0
    }

    #[test]
    fn the_date_is_the_hosts() {
        let (rtc, _irq) = rtc();
        let read = || [0x32, 0x09, 0x08, 0x07, 0x04, 0x02].map(|index| cmos(&rtc, index));
        let time = |at| calendar::Date::from_seconds((at / NANOS) as i64);
        // Both sides of the reading, in case a second (or a year) ends just now.
        let (before, shown, after) = (time(host_time()), read(), time(host_time()));
        let bcd = |date: calendar::Date| {
            [date.year / 100, date.year % 100, date.month, date.day, date.hour, date.minute]
                .map(|n| u8::from_str_radix(&n.to_string(), 16).unwrap())
        };
        assert!(shown == bcd(before) || shown == bcd(after), "{shown:x?}");
    }

    #[test]
    fn the_nmi_mask_is_no_part_of_the_index() {
        let (rtc, _irq) = rtc();
        set(&rtc, 0x40, 0x5a);
        assert_eq!(cmos(&rtc, 0xc0), 0x5a);
    }

    #[test]
    fn a_clock_that_was_restored_interrupts_as_the_old_one_would_have() {
        let (old, old_irq) = rtc();
        set(&old, 0x40, 0x5a);
        set(&old, 0x0b, 0x12);
        let (new, irq) = rtc();
        new.restore(&serde_json::from_str(&serde_json::to_string(&old.state()).unwrap()).unwrap()).unwrap();
        assert_eq!(new.state().index, 0x0b);
        drop((old, old_irq));
        assert!(fires(&new, 2), "its timer is set");
        new.tick();
        assert!(irq.event_fd().take());
        assert_eq!((cmos(&new, 0x40), cmos(&new, 0x0c) & 0x90), (0x5a, 0x90));

        let damaged = RtcState { index: 0xff, ..new.state() };
        assert!(new.restore(&damaged).is_err());
        assert_eq!(cmos(&new, 0x40), 0x5a, "nothing of it was taken");
    }

    #[test]
    fn an_alarm_is_told_beside_the_interrupt_and_again_after_a_restore() {
        let clock = || {
            let (alarms, irq) = (Arc::new(AtomicU32::new(0)), Irq::new().unwrap());
            let count = Arc::clone(&alarms);
            let on_alarm = move || count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            (Rtc::new(irq.try_clone().unwrap(), on_alarm).unwrap(), irq, alarms)
        };
        let (old, irq, alarms) = clock();
        for (index, value) in [(0x05, 0xff), (0x03, 0xff), (0x01, 0xff), (0x0b, 0x22)] {
            set(&old, index, value);
        }
        let state = old.state();
        assert!(fires(&old, 2));
        old.tick();
        assert!(irq.event_fd().take() && alarms.load(Ordering::Relaxed) == 1);
        // The one that came due between save and restore.
        let (new, irq, alarms) = clock();
        new.restore(&state).unwrap();
        assert!(irq.event_fd().take() && alarms.load(Ordering::Relaxed) == 1);
    }

    #[test]
    fn both_ports_can_be_reached_in_one_access() {
        let (rtc, _irq) = rtc();
        rtc.write(INDEX, &[0x7f, 0x11]);
        let mut data = [0xff; 4];
        rtc.read(INDEX, &mut data);
        assert_eq!(data, [0xff, 0x11, 0xff, 0xff]);
        rtc.read(u64::MAX, &mut data);
        rtc.write(u64::MAX, &data);
    }

    #[test]
    fn the_update_interrupt_comes_within_a_second_and_stops_when_disabled() {
        let (rtc, irq) = rtc();
        assert!(!fires(&rtc, 0), "nothing enabled");
        set(&rtc, 0x0b, 0x12);
        cmos(&rtc, 0x0c);
        assert!(fires(&rtc, 2));
        rtc.tick();
        assert!(irq.event_fd().take());
        assert_eq!(cmos(&rtc, 0x0c) & 0x90, 0x90);
        set(&rtc, 0x0b, 0x02);
        assert!(!fires(&rtc, 2));
    }
}
