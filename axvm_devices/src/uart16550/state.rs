//! The chip's registers and what no register shows, as a value.
//!
//! ```text
//!   {"received": "6c73", "ier": 5, "fcr": 129, ..., "transmitter_busy": false}
//! ```
//!
//! What the port holds is the port's state, and comes first. How much room the port has is not in it: the restored chip
//! looks.
//!
//! Spec: PC16550D datasheet, "Registers". Left out: IIR, LSR and MSR, which follow from the rest.

use axvm_arch::HexBytes;
use serde::{Deserialize, Serialize};

use super::registers::{FIFO_LEN, Registers, ier, mcr};
use crate::ChipStateError;
use crate::state::Check;

/// All state of a [`Uart16550`](super::Uart16550), beside what its port holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UartState {
    /// Bytes in the receiver's FIFO: 16 at most, and 1 while FIFOs are off.
    pub received: HexBytes,
    /// Which of them, by bit, are the NUL of a break that was not told yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub breaks: u16,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register; 0 while FIFOs are off.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// A byte found the receiver full, and LSR was not read since.
    pub overrun: bool,
    /// Modem lines that moved since MSR was read: its low half.
    pub modem_changes: u8,
    /// The transmitter became empty, and IIR was not read since.
    pub transmitter_emptied: bool,
    /// The host is behind: the transmitter is not empty.
    pub transmitter_busy: bool,
}

fn is_zero(bits: &u16) -> bool {
    *bits == 0
}

impl Registers {
    /// The registers as a value.
    pub(super) fn state(&self) -> UartState {
        UartState {
            received: HexBytes(self.received.iter().copied().collect()),
            breaks: self.breaks,
            ier: self.ier,
            fcr: self.fcr,
            lcr: self.lcr,
            mcr: self.mcr,
            scr: self.scr,
            divisor: self.divisor,
            overrun: self.overrun,
            modem_changes: self.moved,
            transmitter_emptied: self.thr_emptied,
            transmitter_busy: self.credit == 0,
        }
    }

    /// Makes the registers what `state` says.
    pub(super) fn restore(&mut self, state: &UartState) -> Result<(), ChipStateError> {
        let check = Check("the UART");
        check.bits("ier", state.ier, ier::ALL.into())?;
        check.bits("mcr", state.mcr, mcr::ALL.into())?;
        check.bits("modem_changes", state.modem_changes, 0x0f)?;
        let fifos_on = state.fcr & 1 != 0;
        check.that(state.fcr == 0 || fifos_on, "fcr", state.fcr, "odd (FIFOs on) or 0")?;
        let (len, limit) = (state.received.0.len(), if fifos_on { FIFO_LEN } else { 1 });
        check.that(len <= limit, "the length of received", len, format_args!("{limit} at most"))?;
        check.bits("breaks", state.breaks, (1 << len) - 1)?;

        (self.ier, self.fcr, self.lcr, self.mcr) = (state.ier, state.fcr, state.lcr, state.mcr);
        (self.scr, self.divisor) = (state.scr, state.divisor);
        (self.overrun, self.moved) = (state.overrun, state.modem_changes);
        self.thr_emptied = state.transmitter_emptied;
        self.received.clear();
        self.received.extend(&state.received.0);
        self.breaks = state.breaks;
        // One byte will do: the port is asked when it is used up.
        self.credit = usize::from(!state.transmitter_busy).min(self.port.room());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uart16550::tests::*;

    #[test]
    fn a_damaged_state_is_refused_by_its_field() {
        let with = |damage: fn(&mut UartState)| {
            let bench = Bench::new();
            let mut state = UartState { fcr: 0x81, ..UartState::default() };
            damage(&mut state);
            let error = bench.restore(&state).unwrap_err();
            assert_eq!(bench.state(), Bench::new().state(), "nothing of it was taken");
            error.to_string()
        };
        assert!(with(|state| state.ier = 0x10).contains("ier is 0x10, and must be within 0xf"));
        assert!(with(|state| state.mcr = 0x20).contains("mcr is 0x20"));
        assert!(with(|state| state.modem_changes = 0xf0).contains("modem_changes is 0xf0"));
        assert!(with(|state| state.fcr = 0x80).contains("fcr is 128"));
        assert!(with(|state| state.received.0 = vec![0; 17]).contains("received is 17, and must be 16 at most"));
        assert!(with(|state| (state.fcr, state.received.0) = (0, vec![0; 2])).contains("1 at most"));
    }

    #[test]
    fn what_had_been_told_is_not_told_again() {
        let bench = Bench::opened(RECEIVED | EMPTY);
        bench.typed(b"abc");
        assert!(bench.interrupted());
        let other = bench.carried();
        assert!(!other.interrupted());
        assert_eq!((other.cause(), other.handle()), (IS_TIMEOUT, b"abc".to_vec()));
    }

    #[test]
    fn what_came_during_the_save_is_told() {
        let bench = Bench::opened(RECEIVED | EMPTY);
        bench.handle();
        bench.interrupted();
        let other = Bench::new();
        other.typed(b"early");
        other.restore(&bench.state()).unwrap();
        assert!(other.interrupted());
        assert_eq!(other.handle(), b"early");
    }

    #[test]
    fn a_host_that_caught_up_during_the_save_frees_the_transmitter() {
        let bench = Bench::opened(EMPTY);
        (0..WELCOME).for_each(|_| bench.set(DATA, b'x'));
        bench.handle();
        bench.interrupted();
        assert_eq!((bench.get(LSR) & IDLE, bench.state().transmitter_busy), (0, true));
        assert_eq!(bench.carried().get(LSR) & IDLE, 0, "its port is full too");
        let other = Bench::new();
        other.restore(&bench.state()).unwrap();
        assert!(other.interrupted());
        assert_eq!((other.get(LSR) & IDLE, other.cause()), (IDLE, IS_EMPTY));
    }
}
