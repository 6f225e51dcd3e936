//! ACPI's fixed power-management registers: power button, the clock's alarm, and soft off.
//!
//! ```text
//!  offset  0          2          4              6
//!          | PM1_STS  | PM1_EN   | PM1_CNT      |
//!           10 alarm   10 alarm    13 SLP_EN  12:10 SLP_TYP  0 SCI_EN
//!            8 button   8 button
//!            write 1
//!            to clear
//!
//!  power button --> STS and EN --> SCI --> guest shuts down --> SLP_EN with S5 --> StopSwitch::request(Off)
//!  RTC's alarm  --> STS and EN --> SCI --> guest that suspended to idle wakes
//! ```
//!
//! The SCI is a level, as on a PC: up while an enabled status is pending, however long the guest takes to look.
//!
//! Spec: ACPI 6.5, 4.8.3.1 "PM1 Event Grouping" and 4.8.3.2 "PM1 Control Grouping".
//! Left out: the carry of the PM timer (TMR_STS), GPE blocks, global lock release; S1 to S4, and so WAK_STS, which tells of a
//! sleep that ended. SCI_EN is always set, for there is no legacy mode to come from (the FADT has no SMI command port).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axvm_arch::layout::acpi::SLEEP_TYPE_S5;
use serde::{Deserialize, Serialize};

use crate::state::Check;
use crate::{BusDevice, ChipStateError, LevelIrq, RegisterNames, StopReason, StopSwitch};

/// PM1_STS and PM1_EN: the power button.
const PWRBTN: u16 = 1 << 8;
/// PM1_STS and PM1_EN: the clock's alarm.
const RTC: u16 = 1 << 10;
/// PM1_CNT: the chip is in ACPI mode.
const SCI_EN: u16 = 1 << 0;
/// PM1_CNT: a bus master's request wakes the CPU from C3; kept, and without effect.
const BM_RLD: u16 = 1 << 1;
/// PM1_CNT: where SLP_TYP starts.
const SLP_TYP_SHIFT: u32 = 10;
/// PM1_CNT: the 3 bits of SLP_TYP, the sleep state to enter.
const SLP_TYP: u16 = 0b111 << SLP_TYP_SHIFT;
/// PM1_CNT: enter the sleep state of SLP_TYP; reads as zero.
const SLP_EN: u16 = 1 << 13;
/// PM1_CNT: what the register keeps of what is written.
const CNT_KEPT: u16 = BM_RLD | SLP_TYP;
/// Length of all three registers, in bytes.
const LEN: usize = 6;

/// The PM1a event block (offset 0) and control block (offset 4).
pub struct AcpiPm {
    pm1: Mutex<Pm1State>,
    sci: LevelIrq,
    stop: Arc<StopSwitch>,
}

/// All state of an [`AcpiPm`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pm1State {
    /// PM1_STS: what happened and was not cleared: the power button, the clock's alarm.
    pub status: u16,
    /// PM1_EN: what interrupts.
    pub enable: u16,
    /// PM1_CNT as far as it is kept: BM_RLD and SLP_TYP.
    pub control: u16,
}

impl Pm1State {
    /// All registers as the guest sees them.
    fn bytes(&self) -> [u8; LEN] {
        let ([a, b], [c, d]) = (self.status.to_le_bytes(), self.enable.to_le_bytes());
        let [e, f] = (self.control | SCI_EN).to_le_bytes();
        [a, b, c, d, e, f]
    }

    fn is_pending(&self) -> bool {
        self.status & self.enable != 0
    }
}

impl AcpiPm {
    /// Length of the registers on the bus, in bytes.
    pub const LEN: u64 = LEN as u64;

    /// A block that interrupts through `sci` and turns the machine off through `stop`.
    pub fn new(sci: LevelIrq, stop: Arc<StopSwitch>) -> AcpiPm {
        AcpiPm { pm1: Mutex::default(), sci, stop }
    }

    /// What happens when a person presses the power button: the guest is asked to shut down.
    ///
    /// Whether and when it does is up to the guest.
    pub fn press_power_button(&self) {
        self.happens(PWRBTN);
    }

    /// The clock's alarm came due, and its interrupt is enabled there. It wakes a guest that sleeps with its devices'
    /// interrupts off, and has RTC_EN set.
    pub fn alarm(&self) {
        self.happens(RTC);
    }

    fn happens(&self, event: u16) {
        let mut pm1 = self.pm1();
        pm1.status |= event;
        self.sci.set(pm1.is_pending());
    }

    /// The chip's state.
    pub fn state(&self) -> Pm1State {
        *self.pm1()
    }

    /// Makes a fresh chip what `state` says: its line is up again while a status is pending.
    pub fn restore(&self, state: &Pm1State) -> Result<(), ChipStateError> {
        let check = Check("the ACPI power management block");
        check.bits("status", state.status, (PWRBTN | RTC).into())?;
        check.bits("control", state.control, CNT_KEPT.into())?;
        let mut pm1 = self.pm1();
        *pm1 = *state;
        self.sci.set(pm1.is_pending());
        Ok(())
    }

    fn pm1(&self) -> MutexGuard<'_, Pm1State> {
        self.pm1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether SLP_TYP is that of S5: what the ACPI tables say, or 0, which it is on the PC that QEMU makes. Kernels without
/// ACPI are written for that one: `outw(0x604, 0x2000)`.
fn is_soft_off(value: u16) -> bool {
    [0, SLEEP_TYPE_S5.into()].contains(&((value & SLP_TYP) >> SLP_TYP_SHIFT))
}

impl BusDevice for AcpiPm {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.pm1().bytes();
        let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
        for (byte, &value) in data.iter_mut().zip(&bytes[from..]) {
            *byte = value;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut pm1 = self.pm1();
        for (address, &byte) in (offset..Self::LEN).zip(data) {
            // The byte in its place in the 16-bit register, and the place itself.
            let shift = address % 2 * 8;
            let (value, mask) = (u16::from(byte) << shift, 0xff << shift);
            match address / 2 {
                0 => pm1.status &= !value,
                1 => pm1.enable = pm1.enable & !mask | value,
                _ => {
                    pm1.control = pm1.control & !mask | value & CNT_KEPT;
                    if value & SLP_EN != 0 && is_soft_off(value) {
                        self.stop.request(StopReason::Off);
                    }
                }
            }
        }
        self.sci.set(pm1.is_pending());
    }

    fn registers(&self) -> RegisterNames {
        |offset, _| ["STS", "STS", "EN", "EN", "CNT", "CNT"].get(usize::try_from(offset).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    const STS: u64 = 0;
    const EN: u64 = 2;
    const CNT: u64 = 4;

    struct Board {
        pm: AcpiPm,
        sci: Arc<AtomicBool>,
        stop: Arc<StopSwitch>,
    }

    impl Board {
        fn new() -> Board {
            let (sci, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(StopSwitch::new().unwrap()));
            let line = Arc::clone(&sci);
            let line = LevelIrq::new(move |level| line.store(level, Ordering::Relaxed));
            Board { pm: AcpiPm::new(line, stop.clone()), sci, stop }
        }
        fn read(&self, offset: u64) -> u16 {
            let mut data = [0; 2];
            self.pm.read(offset, &mut data);
            u16::from_le_bytes(data)
        }
        fn write(&self, offset: u64, value: u16) {
            self.pm.write(offset, &value.to_le_bytes());
        }
        /// Whether the line is up.
        fn level(&self) -> bool {
            self.sci.load(Ordering::Relaxed)
        }
    }

    const S5: u16 = SLP_EN | (SLEEP_TYPE_S5 as u16) << SLP_TYP_SHIFT;

    #[test]
    fn soft_off_turns_the_machine_off_at_every_width() {
        for data in [&S5.to_le_bytes()[..], &u32::from(S5).to_le_bytes(), &0x2000_u16.to_le_bytes()] {
            let board = Board::new();
            board.pm.write(CNT, data);
            assert_eq!(board.stop.reason(), Some(StopReason::Off));
        }
        let board = Board::new();
        board.pm.write(CNT + 1, &S5.to_le_bytes()[1..]);
        assert_eq!(board.stop.reason(), Some(StopReason::Off));
    }

    #[test]
    fn other_sleep_states_and_a_mere_type_do_nothing() {
        let board = Board::new();
        for kind in [1, 2, 3, 4, 6, 7] {
            board.write(CNT, SLP_EN | kind << SLP_TYP_SHIFT);
        }
        board.write(CNT, S5 & !SLP_EN);
        assert_eq!(board.stop.reason(), None);
        assert_eq!(board.read(CNT), S5 & !SLP_EN | SCI_EN, "SLP_EN reads as zero");
    }

    #[test]
    fn acpi_mode_cannot_be_left() {
        let board = Board::new();
        board.write(CNT, 0);
        assert_eq!(board.read(CNT), SCI_EN);
    }

    #[test]
    fn the_button_interrupts_when_enabled_and_is_cleared_by_writing_one() {
        let board = Board::new();
        board.pm.press_power_button();
        assert!(!board.level(), "not enabled");
        board.write(EN, PWRBTN);
        assert!(board.level());
        board.write(EN, 0);
        assert!(!board.level(), "no longer enabled");
        board.write(EN, PWRBTN);
        assert!(board.level(), "pending when enabled");
        board.write(STS, 0);
        assert_eq!(board.read(STS), PWRBTN, "writing zero clears nothing");
        assert!(board.level(), "still pending");
        board.write(STS, PWRBTN);
        assert_eq!(board.read(STS), 0);
        assert!(!board.level());
        board.pm.press_power_button();
        assert!(board.level());
    }

    #[test]
    fn an_alarm_interrupts_when_enabled_and_is_cleared_apart_from_the_button() {
        let board = Board::new();
        board.write(EN, PWRBTN);
        board.pm.alarm();
        assert_eq!((board.read(STS), board.level()), (RTC, false), "noted, and not enabled");
        board.write(EN, PWRBTN | RTC);
        assert!(board.level());
        board.pm.press_power_button();
        board.write(STS, RTC);
        assert_eq!((board.read(STS), board.level()), (PWRBTN, true), "the button is still pending");
        board.write(STS, PWRBTN);
        assert!(!board.level());
    }

    #[test]
    fn enable_bits_read_back_as_written_by_byte_and_by_dword() {
        let board = Board::new();
        board.pm.write(EN + 1, &[0x07]);
        board.pm.write(EN, &[0x20]);
        assert_eq!(board.read(EN), 0x0720);
        board.pm.press_power_button();
        board.pm.write(STS, &0x0100_0100_u32.to_le_bytes());
        let mut both = [0; 4];
        board.pm.read(STS, &mut both);
        assert_eq!(u32::from_le_bytes(both), 0x0100_0000);
    }

    #[test]
    fn a_pressed_button_is_carried_with_its_line() {
        let old = Board::new();
        old.write(EN, PWRBTN | 1);
        old.write(CNT, BM_RLD | 3 << SLP_TYP_SHIFT);
        old.pm.press_power_button();
        let text = serde_json::to_string(&old.pm.state()).unwrap();
        let new = Board::new();
        new.pm.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert!(new.level(), "until it is cleared");
        assert_eq!([STS, EN, CNT].map(|at| new.read(at)), [STS, EN, CNT].map(|at| old.read(at)));
        new.write(EN, PWRBTN);
        assert!(new.level(), "still pending");
        new.write(STS, PWRBTN);
        assert_eq!((new.read(STS), new.level()), (0, false));
    }

    #[test]
    fn a_damaged_state_is_refused_by_its_field() {
        let board = Board::new();
        let text = |state| board.pm.restore(&state).unwrap_err().to_string();
        assert!(
            text(Pm1State { status: 1, ..Pm1State::default() }).contains("status is 0x1, and must be within 0x500")
        );
        assert!(text(Pm1State { control: SLP_EN, ..Pm1State::default() }).contains("control is 0x2000"));
        assert_eq!(board.pm.state(), Pm1State::default());
    }

    #[test]
    fn accesses_beyond_the_registers_are_ignored() {
        let board = Board::new();
        for offset in [5, 6, u64::MAX] {
            let mut data = [0xff; 8];
            board.pm.read(offset, &mut data);
            assert_eq!(data[1..], [0xff; 7]);
            board.pm.write(offset, &[0; 8]);
        }
        assert_eq!(board.stop.reason(), None);
    }
}
