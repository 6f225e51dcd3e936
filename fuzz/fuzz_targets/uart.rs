//! The serial port: any register traffic of a guest, any pace of a host.
//!
//! ```text
//!   input --> accesses of any width, typing, draining, resizing; carried to another chip, or a state that is damaged
//!   held:     no panic; what the guest reads is what was typed, what it sends arrives, both whole and in order;
//!             a driver that starts to wait for input is told of what is there
//! ```
//!
//! Loopback, a cleared FIFO and a blind read discard bytes. Half of the runs keep clear of them, to count; the other
//! half may do anything.
//!
//! Run: `cargo +nightly fuzz run uart`.
#![no_main]

use std::collections::VecDeque;
use std::sync::Arc;

use axvm_arch::HexBytes;
use axvm_console::{Port, Size};
use axvm_devices::{BusDevice, Irq, Uart16550, UartState};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

const DATA: u64 = 0;
const IER: u64 = 1;
const FCR: u64 = 2;
const IIR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;

const DATA_READY: u8 = 1;
const DLAB: u8 = 0x80;
const LOOP: u8 = 0x10;
const OUT2: u8 = 0x08;
const NO_INTERRUPT: u8 = 1;

#[derive(Arbitrary, Debug)]
enum Step {
    Read { offset: u8, len: u8 },
    Write { offset: u8, data: Vec<u8> },
    Register { register: u8, value: u8 },
    Send(u8),
    Receive,
    Type(u8),
    Drain,
    Resize { columns: u16, rows: u16 },
    Carry,
    Restore { received: Vec<u8>, registers: [u8; 6], divisor: u16, flags: u8 },
}

/// The chip, and what a bystander knows of it.
struct Run {
    uart: Arc<Uart16550>,
    irq: Irq,
    port: Port,
    /// What was typed and is neither read nor known to be gone.
    waiting: VecDeque<u8>,
    next: u8,
    /// What the guest sent, and what of it arrived.
    sent: Vec<u8>,
    arrived: Vec<u8>,
}

impl Run {
    fn new() -> Run {
        let (irq, port) = (Irq::new().expect("an eventfd"), Port::new().expect("eventfds"));
        let uart = Uart16550::new(irq.try_clone().expect("an eventfd"), port.clone());
        Run { uart, irq, port, waiting: VecDeque::new(), next: 0, sent: Vec::new(), arrived: Vec::new() }
    }

    fn get(&self, register: u64) -> u8 {
        let mut data = [0xff];
        self.uart.read(register, &mut data);
        data[0]
    }

    fn set(&self, register: u64, value: u8) {
        self.uart.write(register, &[value]);
    }

    fn has_divisor(&self) -> bool {
        self.get(LCR) & DLAB != 0
    }

    /// Reads one byte as a driver does, and compares.
    fn receive(&mut self) -> bool {
        if self.has_divisor() || self.get(LSR) & DATA_READY == 0 {
            return false;
        }
        assert_eq!(Some(self.get(DATA)), self.waiting.pop_front(), "input out of order");
        true
    }

    fn send(&mut self, byte: u8) {
        self.set(DATA, byte);
        if !self.has_divisor() {
            self.sent.push(byte);
        }
    }

    /// A write that keeps the account: not into loopback, and the FIFO emptied before it may be cleared.
    fn register(&mut self, register: u64, value: u8) {
        match register {
            DATA => self.send(value),
            FCR => {
                self.set(LCR, 3);
                while self.receive() {}
                self.set(FCR, value);
            }
            MCR => self.set(MCR, value & !LOOP),
            _ => self.set(register, value),
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Register { register, value } => self.register(u64::from(register % 8), value),
            Step::Send(byte) => self.send(byte),
            Step::Receive => _ = self.receive(),
            Step::Type(count) => {
                let bytes: Vec<u8> = (0..count).map(|index| self.next.wrapping_add(index)).collect();
                let taken = self.port.put(&bytes);
                self.waiting.extend(&bytes[..taken]);
                self.next = self.next.wrapping_add(taken as u8);
            }
            Step::Drain => _ = self.port.take(&mut self.arrived),
            Step::Resize { columns, rows } => self.port.resize(Size { columns, rows }),
            Step::Carry => self.carry(),
            // These break the account: see `anything`.
            Step::Read { .. } | Step::Write { .. } | Step::Restore { .. } => {}
        }
    }

    /// Goes on with another chip and another port.
    fn carry(&mut self) {
        let (port, uart) = (self.port.state(), self.uart.state());
        self.irq = Irq::new().expect("an eventfd");
        self.port = Port::new().expect("eventfds");
        self.uart = Uart16550::new(self.irq.try_clone().expect("an eventfd"), self.port.clone());
        self.port.restore(port).expect("a port's own state");
        self.uart.restore(&uart).expect("a chip's own state");
        assert_eq!(self.uart.state(), uart);
        assert!(!self.irq.event_fd().take(), "told again");
    }

    /// The same with no rule at all.
    fn anything(&mut self, step: &Step) {
        match *step {
            Step::Read { offset, len } => self.uart.read(offset.into(), &mut vec![0; usize::from(len % 9)]),
            Step::Write { offset, ref data } => self.uart.write(offset.into(), &data[..data.len().min(8)]),
            Step::Register { register, value } => self.set(register.into(), value),
            Step::Send(byte) => self.set(DATA, byte),
            Step::Receive => _ = self.get(DATA),
            Step::Restore { ref received, registers, divisor, flags } => {
                let [ier, fcr, lcr, mcr, scr, modem_changes] = registers;
                let flag = |bit: u8| flags >> bit & 1 != 0;
                let (overrun, transmitter_emptied, transmitter_busy) = (flag(0), flag(1), flag(2));
                let received = HexBytes(received.clone());
                let _ = self.uart.restore(&UartState {
                    received,
                    breaks: u16::from(flags >> 3),
                    ier,
                    fcr,
                    lcr,
                    mcr,
                    scr,
                    divisor,
                    overrun,
                    modem_changes,
                    transmitter_emptied,
                    transmitter_busy,
                });
            }
            _ => self.step(step),
        }
    }

    /// A driver that starts to wait for input is told of what is there.
    fn settle(&mut self) {
        self.set(LCR, 3);
        self.set(MCR, OUT2);
        self.set(IER, 1);
        let announced = self.irq.event_fd().take();
        let pending = self.get(IIR) & NO_INTERRUPT == 0;
        assert!(announced || !pending, "input waits and the driver is not told");
        assert!(pending == (self.get(LSR) & DATA_READY != 0));
    }
}

fuzz_target!(|input: (bool, Vec<Step>)| {
    let (keeps_account, steps) = input;
    let mut run = Run::new();
    if !keeps_account {
        steps.iter().for_each(|step| run.anything(step));
        run.settle();
        return;
    }
    steps.iter().for_each(|step| run.step(step));
    run.settle();
    while run.receive() {}
    assert!(run.waiting.is_empty(), "{} bytes of input lost", run.waiting.len());
    run.port.take(&mut run.arrived);
    assert!(run.sent == run.arrived, "output lost or out of order");
});
