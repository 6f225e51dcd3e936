//! The user's side of the serial console: the terminal, the keys AxVM keeps for itself.
//!
//! ```text
//!   stdin --> escape keys (Ctrl-A x) --> pending --> UART receive FIFO (16 bytes at a time)
//!   stdout <-- UART transmit, on the vCPU thread
//! ```

use std::collections::VecDeque;
use std::io::{self, IsTerminal};

use axvm_devices::Uart;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Puts the terminal into raw mode; puts it back when dropped (also while unwinding).
pub struct RawTerminal(Option<Termios>);

impl RawTerminal {
    /// Raw mode if stdin is a terminal, else nothing. The guest's own terminal makes its line ends, so output is
    /// passed as it is; AxVM's messages end in `\r\n` meanwhile.
    pub fn enter() -> io::Result<RawTerminal> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(RawTerminal(None));
        }
        let before = tcgetattr(&stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(RawTerminal(Some(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// What a typed key means to AxVM itself.
#[derive(Debug, PartialEq, Eq)]
pub enum Key {
    /// Ctrl-A x: end the machine at once.
    Quit,
    /// Ctrl-A p: press the ACPI power button.
    PowerButton,
    /// Ctrl-A h: tell the keys.
    Help,
}

/// What Ctrl-A h prints.
pub const HELP: &str = "\r\naxvm: Ctrl-A x ends the machine, Ctrl-A p presses the power button, \
                        Ctrl-A Ctrl-A sends Ctrl-A\r\n";

/// Typed bytes on their way to the UART.
#[derive(Default)]
pub struct Input {
    pending: VecDeque<u8>,
    escaped: bool,
    closed: bool,
    /// Escape keys work only at a terminal; a pipe is passed through as it is.
    terminal: bool,
}

const CTRL_A: u8 = 0x01;

impl Input {
    /// Input from stdin as it is now.
    pub fn from_stdin() -> Input {
        Input { terminal: io::stdin().is_terminal(), ..Input::default() }
    }

    /// Whether to wait for stdin: not at its end, nor while the guest has not taken what is pending.
    pub fn wants_more(&self) -> bool {
        !self.closed && self.pending.is_empty()
    }

    /// Whether bytes wait for room in the UART.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes what stdin has; returns a key meant for AxVM (the last, if several came at once).
    pub fn read(&mut self) -> Option<Key> {
        let mut buffer = [0; 4096];
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(0) => self.closed = true,
            Ok(count) => return self.take(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.closed = true,
        }
        None
    }

    fn take(&mut self, bytes: &[u8]) -> Option<Key> {
        if !self.terminal {
            self.pending.extend(bytes);
            return None;
        }
        let mut key = None;
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x' | b'X') => key = Some(Key::Quit),
                (true, b'p' | b'P') => key = Some(Key::PowerButton),
                (true, b'h' | b'H' | b'?') => key = Some(Key::Help),
                // Ctrl-A Ctrl-A sends one Ctrl-A; an unknown key is sent without it.
                (_, byte) => self.pending.push_back(byte),
            }
        }
        key
    }

    /// Gives the UART as much as it has room for.
    pub fn feed(&mut self, uart: &Uart) {
        let taken = uart.input(self.pending.make_contiguous());
        self.pending.drain(..taken);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(terminal: bool, bytes: &[u8]) -> (Option<Key>, Vec<u8>) {
        let mut input = Input { terminal, ..Input::default() };
        let key = input.take(bytes);
        (key, input.pending.into())
    }

    #[test]
    fn ctrl_a_x_quits_and_ctrl_a_ctrl_a_sends() {
        assert_eq!(typed(true, b"a\x01pb"), (Some(Key::PowerButton), b"ab".to_vec()));
        assert_eq!(typed(true, b"ls\x01x"), (Some(Key::Quit), b"ls".to_vec()));
        assert_eq!(typed(true, b"\x01\x01x"), (None, b"\x01x".to_vec()));
        assert_eq!(typed(true, b"\x03\x1a"), (None, b"\x03\x1a".to_vec()));
    }

    #[test]
    fn a_pipe_has_no_escape_keys() {
        assert_eq!(typed(false, b"\x01x"), (None, b"\x01x".to_vec()));
    }

    #[test]
    fn the_escape_may_arrive_in_two_reads() {
        let mut input = Input { terminal: true, ..Input::default() };
        assert_eq!(input.take(b"\x01"), None);
        assert_eq!(input.take(b"x"), Some(Key::Quit));
    }

    #[test]
    fn stdin_is_not_read_ahead_of_the_guest() {
        let mut input = Input::default();
        assert!(input.wants_more());
        input.take(b"a");
        assert!(!input.wants_more());
    }
}
