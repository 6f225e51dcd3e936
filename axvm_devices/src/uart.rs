//! COM1: a 16550A serial port.
//!
//! ```text
//!  guest --OUT THR--> output (written and flushed byte by byte)
//!  guest <--IN RBR--- FIFO, 64 bytes <--input()-- console
//!                       \ emptied --> input_ready (eventfd) --> console sends the rest
//!  IRQ 4: data is there, or THR is empty (it always is)
//! ```
//!
//! Spec: National Semiconductor PC16550D "Universal Asynchronous Receiver/Transmitter with FIFOs"
//! (1995), section 8 "Registers". The register file is vm-superio's; this file connects it.
//!
//! The registers are one byte wide. A wider access is split into bytes at ascending ports, which
//! is what a PC does in front of an 8-bit chip.
//!
//! Left out: baud rates (bytes arrive at once), line errors, modem lines that move, DMA.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::serial::{Serial, SerialEvents};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{BusDevice, Irq};

/// Number of byte-wide registers.
const REGISTERS: u64 = 8;
/// MCR, the modem control register; its bit 4 is loopback.
const MCR: u64 = 4;

type Output = Box<dyn Write + Send>;

/// A 16550A whose receiver is fed by [`Uart::input`] and whose transmitter is any [`Write`].
pub struct Uart {
    serial: Mutex<Serial<Line, Arc<Notes>, Output>>,
    notes: Arc<Notes>,
}

/// The interrupt line in vm-superio's words.
struct Line(Irq);

impl vm_superio::Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

/// What the register file reports while the guest works it.
struct Notes {
    input_ready: EventFd,
    lost: AtomicU64,
}

impl Notes {
    fn room(&self) {
        // The only error of a non-blocking eventfd is "counter full": it is readable already.
        let _ = self.input_ready.write(1);
    }
}

impl SerialEvents for Notes {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }
    fn in_buffer_empty(&self) {
        self.room();
    }
}

impl Uart {
    /// A port that writes what the guest sends to `output`.
    ///
    /// An `output` that blocks holds up the vCPU that writes, as a slow line would. What `output`
    /// refuses is dropped and counted: the guest never learns of it.
    pub fn new(irq: Irq, output: Box<dyn Write + Send>) -> io::Result<Uart> {
        let input_ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let notes = Arc::new(Notes { input_ready, lost: AtomicU64::new(0) });
        let serial = Serial::with_events(Line(irq), notes.clone(), output);
        Ok(Uart { serial: Mutex::new(serial), notes })
    }

    /// Hands bytes to the receiver: as many as the FIFO has room for. Returns how many.
    ///
    /// The caller keeps the rest until [`Uart::input_ready`] is readable.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut serial = self.serial();
        // Under the lock, so that "emptied" can not slip in between this and the answer.
        let _ = self.notes.input_ready.read();
        // A full FIFO is an error there; in loopback it takes nothing.
        serial.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Readable once the guest has emptied the FIFO after the last [`Uart::input`].
    ///
    /// `input` takes the count, so there is no need to read it; poll it only while bytes are left.
    pub fn input_ready(&self) -> &EventFd {
        &self.notes.input_ready
    }

    /// How many bytes `output` refused so far.
    pub fn lost(&self) -> u64 {
        self.notes.lost.load(Ordering::Relaxed)
    }

    fn serial(&self) -> MutexGuard<'_, Serial<Line, Arc<Notes>, Output>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Uart {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut serial = self.serial();
        for (register, byte) in (offset..REGISTERS).zip(data) {
            *byte = serial.read(register as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut serial = self.serial();
        for (register, &byte) in (offset..REGISTERS).zip(data) {
            // The one error is that `output` refused the byte, and `Notes` has counted it.
            let _ = serial.write(register as u8, byte);
            if register == MCR {
                // Loopback may have ended, and with it the reason why `input` took nothing.
                self.notes.room();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: u64 = 0;
    const IER: u64 = 1;
    const IIR: u64 = 2;
    const LSR: u64 = 5;
    const SCR: u64 = 7;
    const FIFO_LEN: usize = 64;

    /// A writer whose bytes the test can see.
    #[derive(Clone, Default)]
    struct Tape(Arc<Mutex<Vec<u8>>>);

    impl Write for Tape {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn uart() -> (Uart, Irq, Tape) {
        let (irq, tape) = (Irq::new().unwrap(), Tape::default());
        let uart = Uart::new(irq.try_clone().unwrap(), Box::new(tape.clone())).unwrap();
        (uart, irq, tape)
    }

    fn read(uart: &Uart, register: u64) -> u8 {
        let mut data = [0xff];
        uart.read(register, &mut data);
        data[0]
    }

    #[test]
    fn output_reaches_the_writer_and_interrupts() {
        let (uart, irq, tape) = uart();
        uart.write(IER, &[0b10]); // transmitter empty
        assert!(irq.event_fd().read().is_ok());
        assert_eq!(read(&uart, IIR) & 0xf, 0b10);
        for byte in b"ok" {
            uart.write(DATA, &[*byte]);
        }
        assert_eq!(*tape.0.lock().unwrap(), b"ok");
        assert!(irq.event_fd().read().is_ok());
    }

    #[test]
    fn input_interrupts_and_is_read_in_order() {
        let (uart, irq, _) = uart();
        uart.write(IER, &[0b01]); // received data
        assert_eq!(uart.input(b"hi"), 2);
        assert!(irq.event_fd().read().is_ok());
        assert_eq!(read(&uart, LSR) & 1, 1);
        assert_eq!([read(&uart, DATA), read(&uart, DATA)], *b"hi");
        assert_eq!(read(&uart, LSR) & 1, 0);
    }

    #[test]
    fn a_full_fifo_loses_nothing() {
        let (uart, _irq, _) = uart();
        let text: Vec<u8> = (0..200).collect();
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < text.len() {
            sent += uart.input(&text[sent..]);
            assert_eq!(sent, text.len().min(got.len() + FIFO_LEN));
            assert!(uart.input_ready().read().is_err(), "the guest has not read yet");
            while read(&uart, LSR) & 1 == 1 {
                got.push(read(&uart, DATA));
            }
            assert!(uart.input_ready().read().is_ok(), "there is room again");
        }
        assert_eq!(got, text);
    }

    #[test]
    fn input_takes_a_stale_wakeup() {
        let (uart, _irq, _) = uart();
        uart.input(b"a");
        read(&uart, DATA);
        uart.input(&[0; FIFO_LEN]);
        assert_eq!(uart.input(b"b"), 0);
        assert!(uart.input_ready().read().is_err());
    }

    #[test]
    fn leaving_loopback_asks_for_the_input_that_had_to_wait() {
        let (uart, _irq, tape) = uart();
        uart.write(MCR, &[0x10]);
        assert_eq!(uart.input(b"a"), 0);
        uart.write(DATA, b"b");
        assert_eq!((read(&uart, DATA), tape.0.lock().unwrap().len()), (b'b', 0));
        assert_eq!(uart.input(b"a"), 0);
        uart.write(MCR, &[0x00]);
        assert!(uart.input_ready().read().is_ok());
        assert_eq!(uart.input(b"a"), 1);
    }

    #[test]
    fn a_broken_output_is_the_hosts_affair() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let irq = Irq::new().unwrap();
        let uart = Uart::new(irq.try_clone().unwrap(), Box::new(Broken)).unwrap();
        uart.write(IER, &[0b10]);
        read(&uart, IIR);
        let _ = irq.event_fd().read();
        uart.write(DATA, b"x");
        assert_eq!(uart.lost(), 1);
        assert!(irq.event_fd().read().is_ok(), "the guest sees its byte go");
        assert_eq!(read(&uart, LSR) & 0x60, 0x60);
    }

    #[test]
    fn wide_accesses_are_split_and_stop_at_the_last_register() {
        let (uart, _irq, _) = uart();
        uart.write(SCR, &[0x5a, 1, 2, 3]);
        let mut data = [0xff; 4];
        uart.read(SCR, &mut data);
        assert_eq!(data, [0x5a, 0xff, 0xff, 0xff]);
        uart.write(3, &[0x80, 0]); // DLAB on, MCR zero
        uart.write(0, &[0x01, 0x02]);
        let mut divisor = [0; 2];
        uart.read(0, &mut divisor);
        assert_eq!(divisor, [1, 2]);
        uart.read(u64::MAX, &mut data);
        uart.write(u64::MAX, &data);
    }
}
