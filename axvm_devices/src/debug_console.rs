//! Debug console: a port that takes letters, one each write, and needs no driver.
//!
//! ```text
//!   OUT 0xe9, letter --> port.send           what the host is too slow for is lost, and counted
//!   IN  0xe9         --> 0xe9                there is such a port
//! ```
//!
//! The port has no way to say "busy", so no guest is held back. What is typed at the host's end goes nowhere.
//!
//! No specification: the behaviour is that of Bochs' "port E9 hack" and of QEMU's `isa-debugcon`. It has no state of its
//! own: what its port holds is the port's.

use axvm_console::Port;

use crate::{BusDevice, RegisterNames};

/// What a read gives.
const ANSWER: u8 = 0xe9;

/// The debug console at the guest's end of a [`Port`].
pub struct DebugConsole {
    port: Port,
}

impl DebugConsole {
    /// A console with `port` as its line.
    pub fn new(port: Port) -> DebugConsole {
        let typed = port.clone();
        // Taken at once, so that keys for AxVM itself never wait behind it.
        port.connect(move || while typed.receive(&mut [0; 64]) > 0 {});
        DebugConsole { port }
    }
}

impl BusDevice for DebugConsole {
    fn read(&self, _: u64, data: &mut [u8]) {
        if let [answer, ..] = data {
            *answer = ANSWER;
        }
    }

    fn write(&self, _: u64, data: &[u8]) {
        let letters = &data[..data.len().min(1)];
        self.port.count_lost(letters.len() - self.port.send(letters));
    }

    fn registers(&self) -> RegisterNames {
        |_, _| Some("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_out_and_what_is_typed_goes_nowhere() {
        let port = Port::new().unwrap();
        let console = DebugConsole::new(port.clone());
        console.write(0, b"o");
        console.write(0, b"k\0");
        console.write(0, b"");
        let mut said = Vec::new();
        port.take(&mut said);
        assert_eq!(said, b"ok");
        let mut answer = [0xff; 2];
        console.read(0, &mut answer);
        assert_eq!(answer, [0xe9, 0xff]);
        assert_eq!((port.put(b"typed"), port.pending()), (5, 0));
    }

    #[test]
    fn a_flood_is_lost_and_counted() {
        let port = Port::new().unwrap();
        let console = DebugConsole::new(port.clone());
        let room = (64 << 10) + (1 << 20);
        (0..room + 3).for_each(|_| console.write(0, b"x"));
        assert_eq!(port.lost(), 3);
    }
}
