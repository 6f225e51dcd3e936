//! A serial port: a 16550A between a guest's driver and a console's [`Port`].
//!
//! ```text
//!   OUT THR --> port.send                        the host is behind: "transmitter not empty" (LSR)
//!   IN RBR  <-- FIFO, 16 bytes <-- port.receive  only as much as there is room in the FIFO
//!   IRQ     <-- cause (IIR), gated by OUT2       one edge for each new cause
//!   port's listener --> line_moved               there is input, or room for output again
//! ```
//!
//! No access ever waits. A transmitter that stays busy is what holds a guest back; one that writes all the same is
//! served from the port's overdraft, and what finds no place even there is counted.
//!
//! The registers are one byte wide. A wider access is split into bytes at ascending ports, which is what a PC does
//! in front of an 8-bit chip.
//!
//! Spec: National Semiconductor PC16550D "Universal Asynchronous Receiver/Transmitter with FIFOs" (1995).
//! Left out: baud rates (bytes arrive at once), breaks that the guest sends, other line errors, modem lines that move, DMA.

#[cfg(test)]
mod properties;
mod registers;
mod state;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axvm_console::Port;

use crate::{BusDevice, ChipStateError, Irq, RegisterNames};
use registers::{Cause, Registers};
pub use state::UartState;

/// Number of byte-wide registers.
const REGISTERS: u64 = 8;

/// A 16550A at the guest's end of a [`Port`].
pub struct Uart16550 {
    registers: Mutex<Registers>,
    irq: Irq,
}

impl Uart16550 {
    /// A chip at power-on, with `port` as its line; from now on the port calls this chip and no other.
    pub fn new(irq: Irq, port: Port) -> Arc<Uart16550> {
        let uart = Arc::new(Uart16550 { registers: Mutex::new(Registers::new(port.clone())), irq });
        let listener = Arc::downgrade(&uart);
        port.connect(move || {
            if let Some(uart) = listener.upgrade() {
                uart.access(Registers::line_moved);
            }
        });
        uart
    }

    /// The chip's state. What its port holds is the port's ([`Port::state`]).
    pub fn state(&self) -> UartState {
        self.registers().state()
    }

    /// Makes a fresh chip what `state` says; its port comes before it. Interrupts if there is a reason that is not older
    /// than the state: input, or room for output, that came meanwhile.
    pub fn restore(&self, state: &UartState) -> Result<(), ChipStateError> {
        self.registers().restore(state)?;
        self.access(Registers::catch_up);
        Ok(())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `act` work the registers, then raises the interrupt if there is a new reason for one.
    fn access(&self, act: impl FnOnce(&mut Registers)) {
        let mut registers = self.registers();
        let before = registers.line();
        act(&mut registers);
        let after = registers.line();
        let again = registers.take_renewed();
        drop(registers);
        if after != Cause::None && (after != before || again) {
            self.irq.raise();
        }
    }
}

impl BusDevice for Uart16550 {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.access(|registers| {
            for (register, byte) in (offset..REGISTERS).zip(data) {
                *byte = registers.read(register);
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.access(|registers| {
            for (register, &byte) in (offset..REGISTERS).zip(data) {
                registers.write(register, byte);
            }
        });
    }

    /// Those of DLAB = 0: only the chip knows whether the first two are the divisor now.
    fn registers(&self) -> RegisterNames {
        |offset, write| {
            let [read, written] = match offset {
                0 => ["RBR", "THR"],
                1 => ["IER"; 2],
                2 => ["IIR", "FCR"],
                3 => ["LCR"; 2],
                4 => ["MCR"; 2],
                5 => ["LSR"; 2],
                6 => ["MSR"; 2],
                7 => ["SCR"; 2],
                _ => return None,
            };
            Some(if write { written } else { read })
        }
    }
}
