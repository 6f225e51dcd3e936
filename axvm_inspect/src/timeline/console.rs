//! What a guest prints, as lines: on its serial port, from the exits that carry its bytes; on a virtio console, from what
//! the queue's thread recorded.
//!
//! ```text
//!   OUT 0x3f8 'H', OUT 0x3f8 'i', OUT 0x3f8 '\n' --> "Hi", at the time of its first byte
//! ```
//!
//! The guest chose the bytes: a line is bounded, and only what can be read goes into it.
//!
//! Source: the 16550's datasheet, "Line Control Register": with bit 7 the first two registers are the divisor.
//! Left out: string instructions of more than eight bytes.

use axvm_events::tape::{Kind, Record};

/// Characters of a line.
const LIMIT: usize = 160;
/// DLAB.
const DIVISOR: u64 = 1 << 7;

/// A console, as far as records tell.
#[derive(Default)]
pub(super) struct Serial {
    shows_divisor: bool,
    line: Vec<u8>,
    since: u64,
}

impl Serial {
    /// What the register `name` is now.
    pub(super) fn register<'a>(&self, name: &'a str) -> &'a str {
        match name {
            "COM1 THR" | "COM1 RBR" if self.shows_divisor => "COM1 DLL",
            "COM1 IER" if self.shows_divisor => "COM1 DLM",
            name => name,
        }
    }

    /// The guest accessed the register `name`; the lines that are complete now, and when they began.
    pub(super) fn accessed(&mut self, name: &str, record: &Record) -> Vec<(u64, String)> {
        match (name, record.kind) {
            ("COM1 LCR", Kind::PortWrite) => {
                self.shows_divisor = record.value & DIVISOR != 0;
                Vec::new()
            }
            ("COM1 THR", Kind::PortWrite) => {
                let bytes = record.value.to_le_bytes();
                let count = (usize::from(record.count) * usize::from(record.size)).min(bytes.len());
                self.sent(record.at, &bytes[..count])
            }
            _ => Vec::new(),
        }
    }

    /// The guest sent letters to a virtio console; the lines that are complete now.
    pub(super) fn printed(&mut self, record: &Record) -> Vec<(u64, String)> {
        let bytes = [record.value.to_le_bytes(), record.address.to_le_bytes()].concat();
        self.sent(record.at, &bytes[..bytes.len().min(record.count.into())])
    }

    fn sent(&mut self, at: u64, bytes: &[u8]) -> Vec<(u64, String)> {
        let mut whole = Vec::new();
        for &byte in bytes {
            if self.line.is_empty() {
                self.since = at;
            }
            match byte {
                b'\n' => whole.extend(self.take()),
                byte if self.line.len() < LIMIT => self.line.push(byte),
                _ => {}
            }
        }
        whole
    }

    /// The line so far, if there is something to read in it.
    pub(super) fn take(&mut self) -> Option<(u64, String)> {
        let bytes = std::mem::take(&mut self.line);
        let text = plain(&String::from_utf8_lossy(&bytes));
        (!text.is_empty()).then_some((self.since, text))
    }
}

/// Text without the sequences that move a terminal's cursor or colour it, and without other control characters.
fn plain(text: &str) -> String {
    let mut letters = text.chars();
    let mut kept = String::new();
    while let Some(letter) = letters.next() {
        match letter {
            '\x1b' => {
                // CSI: up to its final letter. Else: one letter.
                if letters.next() == Some('[') {
                    letters.by_ref().find(|letter| ('@'..='~').contains(letter));
                }
            }
            letter if letter.is_control() => {}
            letter => kept.push(letter),
        }
    }
    kept.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(serial: &mut Serial, name: &str, at: u64, value: u8) -> Vec<(u64, String)> {
        let (kind, took, size, count, address) = (Kind::PortWrite, 0, 1, 1, 0x3f8);
        serial.accessed(name, &Record { at, took, kind, size, count, address, value: value.into(), rip: 0 })
    }

    fn print(serial: &mut Serial, text: &[u8]) -> Vec<(u64, String)> {
        (0..).zip(text).flat_map(|(at, &byte)| write(serial, "COM1 THR", at, byte)).collect()
    }

    #[test]
    fn bytes_become_lines_that_can_be_read() {
        let mut serial = Serial::default();
        let lines = print(&mut serial, b"\x1b[1;31mHi\x1b[0m \"you\"\x07\r\n\r\n\xff\x00two\n");
        assert_eq!(lines, [(0, "Hi \"you\"".into()), (24, "\u{fffd}two".into())]);
    }

    #[test]
    fn a_line_without_end_is_bounded() {
        let mut serial = Serial::default();
        assert_eq!(print(&mut serial, &[b'x'; 100_000]), []);
        assert_eq!(print(&mut serial, b"\n")[0].1.len(), LIMIT);
    }

    #[test]
    fn a_record_of_a_virtio_console_may_hold_several_lines() {
        let mut serial = Serial::default();
        let [value, address] = [*b"a\nb\n\ncde", *b"fg\nxxxxx"].map(u64::from_le_bytes);
        let record = Record { at: 9, took: 0, kind: Kind::Print, size: 1, count: 11, address, value, rip: 0 };
        assert_eq!(serial.printed(&record), [(9, "a".into()), (9, "b".into()), (9, "cdefg".into())]);
        assert!(serial.printed(&Record { count: u16::MAX, ..record }).len() >= 3, "no more than there is room for");
    }

    #[test]
    fn the_divisor_is_no_letter() {
        let mut serial = Serial::default();
        write(&mut serial, "COM1 LCR", 0, 0x83);
        assert_eq!((serial.register("COM1 THR"), serial.register("COM1 IER")), ("COM1 DLL", "COM1 DLM"));
        write(&mut serial, "COM1 DLL", 1, b'A');
        write(&mut serial, "COM1 LCR", 2, 3);
        assert_eq!(serial.register("COM1 THR"), "COM1 THR");
        assert_eq!(print(&mut serial, b"b\n"), [(0, "b".into())]);
    }
}
