//! The chip as a driver and a host see it, with constants written down a second time, from the datasheet.
#![allow(clippy::disallowed_methods, reason = "a test starts threads of its own")]

use axvm_console::PortState;

use super::*;

pub(super) const DATA: u64 = 0;
pub(super) const IER: u64 = 1;
pub(super) const IIR: u64 = 2;
pub(super) const FCR: u64 = 2;
pub(super) const LCR: u64 = 3;
pub(super) const MCR: u64 = 4;
pub(super) const LSR: u64 = 5;
pub(super) const MSR: u64 = 6;
pub(super) const SCR: u64 = 7;

// IER: which interrupts.
pub(super) const RECEIVED: u8 = 1;
pub(super) const EMPTY: u8 = 2;
pub(super) const LINE: u8 = 4;
pub(super) const MODEM: u8 = 8;
// IIR: which interrupt.
pub(super) const NONE: u8 = 0x1;
pub(super) const IS_LINE: u8 = 0x6;
pub(super) const IS_RECEIVED: u8 = 0x4;
pub(super) const IS_TIMEOUT: u8 = 0xc;
pub(super) const IS_EMPTY: u8 = 0x2;
pub(super) const IS_MODEM: u8 = 0x0;
// MCR.
pub(super) const OUT2: u8 = 8;
pub(super) const LOOP: u8 = 16;
// LSR.
pub(super) const READY: u8 = 1;
pub(super) const OVERRUN: u8 = 2;
pub(super) const IDLE: u8 = 0x60;

/// Bytes that the port takes while it is welcome to, and all in all.
pub(super) const WELCOME: usize = 64 << 10;
pub(super) const TOTAL: usize = WELCOME + (1 << 20);

/// A chip between a driver's hands and a host's.
pub(super) struct Bench {
    uart: Arc<Uart16550>,
    irq: Irq,
    pub(super) port: Port,
}

impl Bench {
    pub(super) fn new() -> Bench {
        let (irq, port) = (Irq::new().unwrap(), Port::new().unwrap());
        Bench { uart: Uart16550::new(irq.try_clone().unwrap(), port.clone()), irq, port }
    }

    /// A chip whose driver has opened it: FIFOs with trigger level 8, these interrupts.
    pub(super) fn opened(interrupts: u8) -> Bench {
        let bench = Bench::new();
        bench.set(FCR, 0x81);
        bench.set(MCR, OUT2 | 3);
        bench.get(MSR);
        bench.set(IER, interrupts);
        bench
    }

    pub(super) fn get(&self, register: u64) -> u8 {
        let mut data = [0xff];
        self.uart.read(register, &mut data);
        data[0]
    }

    pub(super) fn set(&self, register: u64, value: u8) {
        self.uart.write(register, &[value]);
    }

    pub(super) fn state(&self) -> UartState {
        self.uart.state()
    }

    pub(super) fn restore(&self, state: &UartState) -> Result<(), ChipStateError> {
        self.uart.restore(state)
    }

    /// Another chip and port that were given the state of these, by way of text.
    pub(super) fn carried(&self) -> Bench {
        let text = serde_json::to_string(&(self.port.state(), self.state())).unwrap();
        let (port, uart) = serde_json::from_str::<(PortState, UartState)>(&text).unwrap();
        let other = Bench::new();
        other.port.restore(port).unwrap();
        other.restore(&uart).unwrap();
        other
    }

    pub(super) fn cause(&self) -> u8 {
        self.get(IIR) & 0xf
    }

    pub(super) fn interrupted(&self) -> bool {
        self.irq.event_fd().take()
    }

    pub(super) fn output(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.port.take(&mut bytes);
        bytes
    }

    pub(super) fn typed_with_break(&self, before: &[u8], after: &[u8]) {
        self.typed(before);
        self.port.put_break();
        self.typed(after);
    }

    pub(super) fn typed(&self, bytes: &[u8]) {
        assert_eq!(self.port.put(bytes), bytes.len());
    }

    /// All that a driver can read now, by polling.
    pub(super) fn read_all(&self) -> Vec<u8> {
        std::iter::from_fn(|| (self.get(LSR) & READY != 0).then(|| self.get(DATA))).collect()
    }

    /// The interrupt handler of a driver: until there is no cause; what it read.
    pub(super) fn handle(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.cause() != NONE {
            bytes.extend(self.read_all());
            self.get(MSR);
        }
        bytes
    }
}

#[test]
fn power_on_is_as_the_datasheet_says() {
    let bench = Bench::new();
    let registers = [IER, IIR, LCR, MCR, LSR, MSR].map(|register| bench.get(register));
    assert_eq!(registers, [0, NONE, 0, 0, IDLE, 0xb0]);
    assert!(!bench.interrupted());
}

#[test]
fn a_driver_detects_a_plain_16550a() {
    let bench = Bench::new();
    bench.set(IER, 0xff);
    assert_eq!(bench.get(IER), 0x0f);
    bench.set(IER, 0);
    bench.set(SCR, 0xa5);
    assert_eq!(bench.get(SCR), 0xa5);
    // A 16550 without the A says 0x80, a 16750 keeps bit 5, later chips have other registers here with DLAB.
    for (fcr, latch, iir) in [(0, 0, 0x01), (0x01, 0, 0xc1), (0x21, 0, 0xc1), (0x21, 0x80, 0xc1), (0x01, 0xbf, 0xc1)] {
        bench.set(LCR, latch);
        bench.set(FCR, fcr);
        assert_eq!(bench.get(IIR), iir, "FCR {fcr:#x}, LCR {latch:#x}");
    }
    bench.set(LCR, 0);
    bench.set(MCR, 0xff);
    assert_eq!(bench.get(MCR), 0x1f);
    bench.set(MCR, LOOP | OUT2 | 2);
    assert_eq!(bench.get(MSR) & 0xf0, 0x90, "the loopback test of every driver");
}

#[test]
fn the_empty_transmitter_interrupts_each_time_its_interrupt_is_enabled() {
    let bench = Bench::opened(0);
    for _ in 0..3 {
        bench.set(IER, EMPTY);
        assert!(bench.interrupted());
        assert_eq!((bench.cause(), bench.cause()), (IS_EMPTY, NONE), "reading it is the answer");
        bench.set(IER, 0);
        assert!(!bench.interrupted());
    }
}

#[test]
fn output_goes_out_in_order_with_one_interrupt_for_a_burst() {
    let bench = Bench::opened(EMPTY);
    assert_eq!((bench.interrupted(), bench.cause()), (true, IS_EMPTY));
    bench.uart.write(DATA, b"h");
    assert!(bench.interrupted());
    for byte in b"ello" {
        bench.set(DATA, *byte);
        assert_eq!(bench.get(LSR), IDLE);
    }
    assert!(!bench.interrupted(), "the cause is the same and the driver did not look");
    assert_eq!((bench.cause(), bench.cause()), (IS_EMPTY, NONE));
    assert_eq!(bench.output(), b"hello");
    bench.set(DATA, b'!');
    assert!(bench.interrupted());
}

#[test]
fn a_host_that_is_behind_holds_the_transmitter_busy() {
    let bench = Bench::opened(EMPTY);
    let mut count = 0;
    while bench.get(LSR) & IDLE == IDLE {
        bench.set(DATA, count as u8);
        count += 1;
    }
    assert_eq!((count, bench.get(LSR) & IDLE), (WELCOME, 0));
    assert_eq!(bench.cause(), NONE);
    bench.set(IER, 0);
    bench.set(IER, EMPTY);
    assert_eq!(bench.cause(), NONE, "it is not empty");
    while bench.interrupted() {}
    let sent = bench.output();
    assert!(sent.iter().enumerate().all(|(index, &byte)| byte == index as u8));
    assert!(bench.interrupted(), "the host drained");
    assert_eq!((bench.cause(), bench.get(LSR)), (IS_EMPTY, IDLE));
    bench.set(DATA, b'x');
    assert_eq!((bench.output(), bench.port.lost()), (b"x".to_vec(), 0));
}

#[test]
fn a_guest_that_does_not_wait_draws_on_the_overdraft_and_then_loses() {
    let bench = Bench::opened(0);
    (0..TOTAL + 3).for_each(|_| bench.set(DATA, b'x'));
    assert_eq!((bench.port.lost(), bench.output().len()), (3, TOTAL));
    assert_eq!(bench.get(LSR), IDLE);
}

#[test]
fn input_interrupts_and_is_read_in_order() {
    let bench = Bench::opened(RECEIVED);
    bench.typed(b"hi");
    assert!(bench.interrupted());
    assert_eq!((bench.cause(), bench.get(LSR)), (IS_TIMEOUT, IDLE | READY));
    assert_eq!([bench.get(DATA), bench.get(DATA)], *b"hi");
    assert_eq!((bench.cause(), bench.get(LSR), bench.get(DATA)), (NONE, IDLE, 0));
}

#[test]
fn the_trigger_level_tells_data_from_timeout() {
    for (level, bytes) in [1, 4, 8, 14].into_iter().enumerate() {
        let bench = Bench::opened(RECEIVED);
        bench.set(FCR, 1 | (level as u8) << 6);
        bench.typed(&vec![b'x'; bytes]);
        assert_eq!(bench.cause(), IS_RECEIVED);
        bench.get(DATA);
        assert_eq!(bench.cause(), if bytes == 1 { NONE } else { IS_TIMEOUT });
    }
}

#[test]
fn a_driver_that_takes_what_the_trigger_promises_is_told_of_the_rest() {
    let bench = Bench::opened(RECEIVED);
    bench.typed(b"0123456789");
    assert!(bench.interrupted());
    (0..8).for_each(|_| _ = bench.get(DATA));
    assert!(bench.interrupted());
    assert_eq!(bench.cause(), IS_TIMEOUT);
}

#[test]
fn a_paste_arrives_whole_by_interrupts_alone() {
    let bench = Bench::opened(RECEIVED);
    let text: Vec<u8> = (0..64 << 10).map(|index| (index % 251) as u8).collect();
    bench.typed(&text);
    let mut got = Vec::new();
    while bench.interrupted() {
        // A driver that stops after few bytes: the refill of the FIFO must interrupt it again.
        if bench.cause() != NONE {
            got.extend((0..16).map(|_| bench.get(DATA)));
        }
    }
    assert!(got == text, "{} bytes", got.len());
}

#[test]
fn a_paste_arrives_whole_by_polling() {
    for fcr in [0, 1] {
        let bench = Bench::new();
        bench.set(FCR, fcr);
        let text: Vec<u8> = (0..1000).map(|index| (index % 251) as u8).collect();
        bench.typed(&text);
        assert_eq!(bench.read_all(), text);
    }
}

#[test]
fn opening_the_port_costs_only_what_is_in_the_fifo() {
    let bench = Bench::new();
    let text = b"typed before the driver looked";
    bench.typed(text);
    for fcr in [1, 7, 0, 1, 7, 0x81] {
        bench.set(FCR, fcr);
    }
    assert_eq!(bench.get(LSR) & READY, READY, "now 16 bytes are in the FIFO");
    bench.set(FCR, 0x83);
    assert_eq!(bench.read_all(), text[16..]);
}

#[test]
fn clearing_the_fifo_of_a_driver_that_waits_brings_the_rest() {
    let bench = Bench::opened(RECEIVED);
    bench.typed(b"0123456789abcdefrest");
    assert!(bench.interrupted());
    bench.set(FCR, 0x83);
    assert!(bench.interrupted());
    assert_eq!(bench.handle(), b"rest");
}

#[test]
fn enabling_the_receiver_interrupt_tells_of_bytes_that_wait() {
    let bench = Bench::opened(0);
    bench.typed(b"x");
    assert!(!bench.interrupted());
    bench.set(IER, RECEIVED);
    assert!(bench.interrupted());
    bench.set(IER, RECEIVED);
    assert!(bench.interrupted(), "an edge may have been lost while the pin was masked");
    assert_eq!(bench.handle(), b"x");
}

#[test]
fn causes_come_by_priority_and_each_hides_none() {
    let bench = Bench::opened(0);
    bench.set(MCR, LOOP);
    (0..17).for_each(|_| bench.set(DATA, b'x'));
    bench.set(IER, RECEIVED | EMPTY | LINE | MODEM);
    assert_eq!(bench.cause(), IS_LINE);
    assert_eq!(bench.get(LSR), IDLE | OVERRUN | READY);
    assert_eq!(bench.cause(), IS_RECEIVED);
    (0..10).for_each(|_| _ = bench.get(DATA));
    assert_eq!(bench.cause(), IS_TIMEOUT);
    (0..6).for_each(|_| _ = bench.get(DATA));
    assert_eq!(bench.cause(), IS_EMPTY);
    assert_eq!(bench.cause(), IS_MODEM);
    bench.get(MSR);
    assert_eq!(bench.cause(), NONE);
}

#[test]
fn a_cause_behind_another_gets_an_edge_of_its_own() {
    let bench = Bench::opened(RECEIVED | EMPTY);
    assert!(bench.interrupted());
    bench.typed(b"x");
    assert!(bench.interrupted());
    assert_eq!(bench.cause(), IS_TIMEOUT);
    bench.get(DATA);
    assert!(bench.interrupted(), "the transmitter was never answered");
    assert_eq!(bench.cause(), IS_EMPTY);
}

#[test]
fn interrupts_reach_the_board_only_through_out2() {
    let bench = Bench::new();
    bench.set(IER, RECEIVED | EMPTY);
    bench.typed(b"x");
    assert!(!bench.interrupted());
    assert_eq!(bench.cause(), IS_RECEIVED);
    bench.set(MCR, OUT2 | LOOP);
    assert!(!bench.interrupted());
    bench.set(MCR, OUT2);
    assert!(bench.interrupted());
}

#[test]
fn loopback_keeps_both_ends_apart() {
    let bench = Bench::opened(RECEIVED);
    bench.set(MCR, LOOP);
    bench.typed(b"in");
    bench.set(DATA, b'L');
    assert_eq!((bench.read_all(), bench.output().len()), (b"L".to_vec(), 0));
    bench.set(MCR, OUT2);
    assert!(bench.interrupted());
    assert_eq!(bench.handle(), b"in");
}

#[test]
fn an_overrun_in_loopback_is_told_once() {
    for (fcr, expected) in [(0, vec![b'b']), (1, (0..16).collect())] {
        let bench = Bench::new();
        bench.set(FCR, fcr);
        bench.set(MCR, LOOP);
        let burst: Vec<u8> = if fcr == 0 { b"ab".to_vec() } else { (0..17).collect() };
        burst.iter().for_each(|&byte| bench.set(DATA, byte));
        assert_eq!((bench.get(LSR), bench.get(LSR)), (IDLE | READY | OVERRUN, IDLE | READY));
        assert_eq!(bench.read_all(), expected);
    }
}

#[test]
fn modem_lines_follow_in_loopback_and_their_moves_are_told_once() {
    let bench = Bench::new();
    bench.set(MCR, LOOP);
    assert_eq!((bench.get(MSR), bench.get(MSR)), (0x0b, 0), "CTS, DSR and DCD went off");
    // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD. RI is told when it goes off.
    for (mcr, on, off) in [(1, 0x22, 0x02), (2, 0x11, 0x01), (4, 0x40, 0x04), (8, 0x88, 0x08)] {
        bench.set(MCR, LOOP | mcr);
        assert_eq!(bench.get(MSR), on);
        bench.set(MCR, LOOP);
        assert_eq!(bench.get(MSR), off);
    }
}

#[test]
fn the_divisor_latch_hides_data_and_ier() {
    let bench = Bench::opened(RECEIVED);
    bench.set(LCR, 0x83);
    bench.uart.write(0, &[0x01, 0x02]);
    let mut divisor = [0; 2];
    bench.uart.read(0, &mut divisor);
    assert_eq!((divisor, bench.output().len()), ([1, 2], 0));
    bench.set(LCR, 0x03);
    assert_eq!((bench.get(LCR), bench.get(IER)), (0x03, RECEIVED));
}

#[test]
fn wide_accesses_are_split_and_stop_at_the_last_register() {
    let bench = Bench::new();
    bench.uart.write(SCR, &[0x5a, 1, 2, 3]);
    let mut data = [0xff; 4];
    bench.uart.read(SCR, &mut data);
    assert_eq!(data, [0x5a, 0xff, 0xff, 0xff]);
    bench.uart.read(u64::MAX, &mut data);
    bench.uart.write(u64::MAX, &data);
    bench.uart.write(DATA, &[b'x', RECEIVED]);
    assert_eq!((bench.output(), bench.get(IER)), (b"x".to_vec(), RECEIVED));
}

#[test]
fn a_chip_that_is_gone_is_not_called() {
    let bench = Bench::new();
    let port = bench.port.clone();
    drop(bench);
    assert_eq!(port.put(b"x"), 1);
}

#[test]
fn two_vcpus_and_a_host_lose_nothing() {
    let bench = Bench::opened(RECEIVED);
    const COUNT: usize = 100_000;
    let byte = |index: usize| (index % 251) as u8;
    let text: Vec<u8> = (0..COUNT).map(byte).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut rest = &text[..];
            while !rest.is_empty() {
                rest = &rest[bench.port.put(&rest[..rest.len().min(100)])..];
            }
        });
        scope.spawn(|| {
            for &byte in &text {
                while bench.get(LSR) & IDLE == 0 {
                    std::hint::spin_loop();
                }
                bench.set(DATA, byte);
            }
        });
        let (mut got, mut sent) = (Vec::new(), Vec::new());
        while got.len() < COUNT || sent.len() < COUNT {
            if bench.interrupted() {
                got.extend(bench.handle());
            }
            bench.port.take(&mut sent);
        }
        assert!(got == text && sent == text);
    });
    assert_eq!(bench.port.lost(), 0);
}

#[test]
fn a_break_is_a_nul_that_line_status_tells_of_once_and_in_its_place() {
    const BREAK: u8 = 0x10;
    const FIFO_ERROR: u8 = 0x80;
    let bench = Bench::opened(RECEIVED | LINE);
    bench.interrupted();
    bench.typed_with_break(b"a", b"h");
    assert!(bench.interrupted());
    assert_eq!(bench.get(LSR) & (BREAK | FIFO_ERROR | READY), FIFO_ERROR | READY, "it is behind the a");
    let bench = bench.carried();
    assert_eq!(bench.get(DATA), b'a');
    assert!(bench.interrupted(), "the break is at the top");
    assert_eq!(bench.cause(), IS_LINE);
    assert_eq!(bench.get(LSR) & (BREAK | FIFO_ERROR | READY), BREAK | FIFO_ERROR | READY);
    assert_eq!(bench.get(LSR) & (BREAK | FIFO_ERROR | READY), READY, "told once");
    assert_eq!((bench.get(DATA), bench.get(DATA)), (0, b'h'));
    assert_eq!(bench.get(LSR) & (BREAK | FIFO_ERROR | READY), 0);
}
