//! The register file: what each read and write does, and which interrupt is pending.
//!
//! ```text
//!   offset   read            write         with LCR.DLAB
//!   0        RBR             THR           DLL
//!   1        IER             IER           DLM
//!   2        IIR             FCR
//!   3 4      LCR MCR         LCR MCR
//!   5 6      LSR MSR         (ignored)
//!   7        SCR             SCR
//! ```
//!
//! The line is as fast as its ends. So a byte written is gone, and the holding register empty again, before the
//! write returns, unless the host is behind; and a FIFO below its trigger level will not fill further by itself, so
//! its character timeout is over at once.
//!
//! A driver that opens the port clears the FIFO, several times. So that this costs what was in the FIFO and no more,
//! the FIFO is filled only when the driver looks (LSR, RBR) or waits (IER, received data).
//!
//! Spec: PC16550D datasheet, 8 "Registers". Left out: what `mod.rs` says.

use std::collections::VecDeque;

use axvm_console::Port;

const RBR_THR: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

/// Interrupt enable register.
pub(super) mod ier {
    pub(super) const RECEIVED_DATA: u8 = 1 << 0;
    pub(super) const THR_EMPTY: u8 = 1 << 1;
    pub(super) const LINE_STATUS: u8 = 1 << 2;
    pub(super) const MODEM_STATUS: u8 = 1 << 3;
    pub(in super::super) const ALL: u8 = 0x0f;
}

/// FIFO control register.
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const CLEAR_RECEIVER: u8 = 1 << 1;
}

/// LCR: offsets 0 and 1 are the divisor latch.
const DLAB: u8 = 1 << 7;

/// Modem control register.
pub(super) mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOP: u8 = 1 << 4;
    pub(in super::super) const ALL: u8 = 0x1f;
}

/// Line status register.
mod lsr {
    pub(super) const DATA_READY: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    pub(super) const BREAK: u8 = 1 << 4;
    pub(super) const THR_EMPTY: u8 = 1 << 5;
    /// With FIFOs: a byte in the receiver's came with a break.
    pub(super) const FIFO_ERROR: u8 = 1 << 7;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 6;
}

/// Modem status register: the lines, and in the low half which of them moved.
mod msr {
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RI: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
    /// The ring indicator counts only when it goes off.
    pub(super) const RING_ENDED: u8 = 1 << 2;
}

pub(super) const FIFO_LEN: usize = 16;
/// IIR: both FIFOs are on.
const FIFOS_ON: u8 = 0xc0;
/// 9600 baud at 1.8432 MHz; it moves nothing.
const DIVISOR: u16 = 12;

/// Why there is an interrupt: IIR, bits 0 to 3. Declared by priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Cause {
    /// An overrun, or a break.
    LineStatus = 0b0110,
    /// As many bytes as the trigger level asks for.
    ReceivedData = 0b0100,
    /// Fewer bytes, and no more to come.
    CharacterTimeout = 0b1100,
    /// The transmitter can take a byte.
    ThrEmpty = 0b0010,
    /// A modem line moved.
    ModemStatus = 0b0000,
    /// No interrupt.
    None = 0b0001,
}

/// All state of the chip.
pub(super) struct Registers {
    pub(super) port: Port,
    /// The receiver's FIFO; one byte of it counts while FIFOs are off.
    pub(super) received: VecDeque<u8>,
    /// Which of them, by bit, are the NUL of a break that LSR did not tell yet.
    pub(super) breaks: u16,
    /// The port may hold more input.
    pub(super) more: bool,
    /// Bytes that the port has room for, as far as we know: only this chip uses that room up. 0: the host is behind.
    pub(super) credit: usize,
    pub(super) ier: u8,
    pub(super) fcr: u8,
    pub(super) lcr: u8,
    pub(super) mcr: u8,
    pub(super) scr: u8,
    pub(super) divisor: u16,
    pub(super) overrun: bool,
    /// MSR, low half.
    pub(super) moved: u8,
    /// The holding register became empty and the driver was not told.
    pub(super) thr_emptied: bool,
    /// A cause that was there before has a new reason, or a driver that waits anew.
    pub(super) renewed: bool,
}

impl Registers {
    pub(super) fn new(port: Port) -> Registers {
        let credit = port.room();
        let (ier, fcr, lcr, mcr, scr, moved) = Default::default();
        let (overrun, thr_emptied, renewed) = Default::default();
        Registers {
            port,
            received: VecDeque::with_capacity(FIFO_LEN),
            breaks: 0,
            more: true,
            credit,
            ier,
            fcr,
            lcr,
            mcr,
            scr,
            divisor: DIVISOR,
            overrun,
            moved,
            thr_emptied,
            renewed,
        }
    }

    /// The host put input, or made room, or neither.
    pub(super) fn line_moved(&mut self) {
        self.more = true;
        self.pull_if_awaited();
        self.look_for_room();
    }

    /// After a restore the port may hold what the saved chip has not seen. A driver that has bytes to read was told, and
    /// meets the rest when it has read them.
    pub(super) fn catch_up(&mut self) {
        self.more = true;
        if self.received.is_empty() {
            self.pull_if_awaited();
        }
        self.look_for_room();
    }

    fn look_for_room(&mut self) {
        if self.credit == 0 {
            self.credit = self.port.room();
            self.thr_emptied |= self.credit > 0;
        }
    }

    /// The interrupt as it leaves the board: a PC connects it only while OUT2 is on, and loopback forces that pin off.
    pub(super) fn line(&self) -> Cause {
        if self.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2 { self.cause() } else { Cause::None }
    }

    /// Whether the cause is to be told again, though it may be the same.
    pub(super) fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    pub(super) fn read(&mut self, register: u64) -> u8 {
        let [divisor_low, divisor_high] = self.divisor.to_le_bytes();
        match register {
            RBR_THR if self.has_divisor() => divisor_low,
            IER if self.has_divisor() => divisor_high,
            RBR_THR => self.read_data(),
            IER => self.ier,
            IIR_FCR => self.read_cause(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.read_line_status(),
            MSR => self.modem_lines() | std::mem::take(&mut self.moved),
            SCR => self.scr,
            _ => 0xff,
        }
    }

    pub(super) fn write(&mut self, register: u64, value: u8) {
        match register {
            RBR_THR if self.has_divisor() => self.divisor = self.divisor & 0xff00 | u16::from(value),
            IER if self.has_divisor() => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            RBR_THR => self.transmit(value),
            IER => self.enable_interrupts(value),
            IIR_FCR => self.control_fifo(value),
            LCR => self.lcr = value,
            MCR => self.control_modem(value),
            SCR => self.scr = value,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.loops() {
            self.loop_back(byte);
        } else {
            if self.port.send(&[byte]) == 0 {
                self.port.count_lost(1);
            }
            self.credit = self.credit.saturating_sub(1);
            if self.credit == 0 {
                self.credit = self.port.room();
            }
        }
        self.thr_emptied = self.is_thr_empty();
    }

    fn loop_back(&mut self, byte: u8) {
        if self.received.len() < self.capacity() {
            self.received.push_back(byte);
            return;
        }
        self.overrun = true;
        // The FIFO keeps what it has, the single register the last byte.
        if !self.has_fifos() {
            self.received[0] = byte;
            self.breaks = 0;
        }
    }

    fn read_data(&mut self) -> u8 {
        self.pull_if_empty();
        let byte = self.received.pop_front();
        self.breaks >>= 1;
        if self.received.is_empty() {
            self.pull_if_awaited();
        }
        byte.unwrap_or(0)
    }

    fn read_line_status(&mut self) -> u8 {
        self.pull_if_empty();
        let flag = |is: bool, bits: u8| if is { bits } else { 0 };
        let breaks = self.breaks;
        // A break is told with its byte at the top, once.
        self.breaks &= !1;
        flag(breaks & 1 != 0, lsr::BREAK)
            | flag(breaks != 0 && self.has_fifos(), lsr::FIFO_ERROR)
            | flag(!self.received.is_empty(), lsr::DATA_READY)
            | flag(std::mem::take(&mut self.overrun), lsr::OVERRUN)
            | flag(self.is_thr_empty(), lsr::THR_EMPTY | lsr::TRANSMITTER_EMPTY)
    }

    fn read_cause(&mut self) -> u8 {
        let cause = self.cause();
        if cause == Cause::ThrEmpty {
            self.thr_emptied = false;
        }
        cause as u8 | if self.has_fifos() { FIFOS_ON } else { 0 }
    }

    fn enable_interrupts(&mut self, value: u8) {
        // Switching it on tells of an empty register even if the driver was told of it. The datasheet is silent
        // here, but chips do so, and drivers test for it.
        if value & !self.ier & ier::THR_EMPTY != 0 {
            self.thr_emptied = self.is_thr_empty();
        }
        self.ier = value & ier::ALL;
        self.pull_if_awaited();
        self.renewed = true;
    }

    fn control_fifo(&mut self, value: u8) {
        let switched = (self.fcr ^ value) & fcr::ENABLE != 0;
        // Without the enable bit the others are not programmed.
        self.fcr = if value & fcr::ENABLE != 0 { value } else { 0 };
        if switched || self.fcr & fcr::CLEAR_RECEIVER != 0 {
            self.received.clear();
            self.breaks = 0;
            self.more = true;
            self.pull_if_awaited();
        }
    }

    fn control_modem(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & mcr::ALL;
        let after = self.modem_lines();
        let changed = before ^ after;
        self.moved |= (changed & (msr::CTS | msr::DSR | msr::DCD)) >> 4;
        if changed & before & msr::RI != 0 {
            self.moved |= msr::RING_ENDED;
        }
        self.pull_if_awaited();
        self.renewed = true;
    }

    /// The far end is always there; in loopback the far end is this one.
    fn modem_lines(&self) -> u8 {
        if !self.loops() {
            return msr::CTS | msr::DSR | msr::DCD;
        }
        let wires = [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)];
        wires.iter().filter(|(from, _)| self.mcr & from != 0).map(|(_, to)| to).sum()
    }

    /// The pending interrupt of the highest priority.
    fn cause(&self) -> Cause {
        let enabled = |bit: u8| self.ier & bit != 0;
        if (self.overrun || self.breaks & 1 != 0) && enabled(ier::LINE_STATUS) {
            Cause::LineStatus
        } else if !self.received.is_empty() && enabled(ier::RECEIVED_DATA) {
            if self.received.len() >= self.trigger() { Cause::ReceivedData } else { Cause::CharacterTimeout }
        } else if self.thr_emptied && self.is_thr_empty() && enabled(ier::THR_EMPTY) {
            Cause::ThrEmpty
        } else if self.moved != 0 && enabled(ier::MODEM_STATUS) {
            Cause::ModemStatus
        } else {
            Cause::None
        }
    }

    /// A driver that waits for an interrupt does not look before it comes.
    fn pull_if_awaited(&mut self) {
        if self.ier & ier::RECEIVED_DATA != 0 {
            self.pull();
        }
    }

    fn pull_if_empty(&mut self) {
        if self.received.is_empty() {
            self.pull();
        }
    }

    /// Fills the FIFO from the port. In loopback the line is cut, and its input waits.
    fn pull(&mut self) {
        let mut bytes = [0; FIFO_LEN];
        let room = self.capacity().saturating_sub(self.received.len());
        if !self.more || self.loops() || room == 0 {
            return;
        }
        let (count, breaks) = self.port.receive_with_breaks(&mut bytes[..room]);
        self.breaks |= (breaks as u16) << self.received.len();
        self.received.extend(&bytes[..count]);
        self.more = count == room;
        self.renewed |= count > 0;
    }

    fn trigger(&self) -> usize {
        if self.has_fifos() { [1, 4, 8, 14][usize::from(self.fcr >> 6)] } else { 1 }
    }

    fn capacity(&self) -> usize {
        if self.has_fifos() { FIFO_LEN } else { 1 }
    }

    fn is_thr_empty(&self) -> bool {
        self.credit > 0 || self.loops()
    }

    fn has_fifos(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn loops(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn has_divisor(&self) -> bool {
        self.lcr & DLAB != 0
    }
}
