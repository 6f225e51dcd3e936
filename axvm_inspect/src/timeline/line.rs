//! One line of a trace file, written piece by piece.
//!
//! ```text
//!   {"name":"  COM1 THR  ","cat":"  ...  "ts":  12.345  ,"pid":1,"tid":2  }  ,
//!      text     quoted      text              time           lane       text   the end
//! ```
//!
//! Format: RFC 8259, 7 "Strings": what a guest chose is escaped.

use std::fmt::{self, Write as _};
use std::io::Write as _;

/// Characters of a text.
const TEXT: usize = 400;

/// Nanoseconds, shown as microseconds.
#[derive(Clone, Copy)]
pub(super) struct Micros(pub u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// Text inside of JSON's quotes: bounded, escaped, without control characters.
pub(super) struct Quoted<'a>(pub &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars().take(TEXT) {
            match letter {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("; ")?,
                letter if letter.is_control() => {}
                letter => f.write_char(letter)?,
            }
        }
        Ok(())
    }
}

/// A line that is being written, piece by piece: a busy disk has a million a second, for which `write!` takes twice as
/// long. Dropped, it ends.
pub(super) struct Line<'a> {
    text: &'a mut Vec<u8>,
    /// Where it begins.
    start: usize,
    /// Bytes of all lines so far.
    total: &'a mut u64,
}

impl<'a> Line<'a> {
    /// A line at the end of `text`, whose length will be added to `total`.
    pub(super) fn new(text: &'a mut Vec<u8>, total: &'a mut u64) -> Line<'a> {
        let start = text.len();
        Line { text, start, total }
    }

    /// How long it is.
    pub(super) fn len(&self) -> usize {
        self.text.len() - self.start
    }

    /// What takes its time.
    pub(super) fn format(&mut self, pieces: fmt::Arguments<'_>) {
        // A vector takes all of it.
        let _ = self.text.write_fmt(pieces);
    }

    /// As it is.
    #[inline(always)]
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.text.extend_from_slice(text.as_bytes());
        self
    }

    /// As [`Quoted`].
    pub(super) fn quoted(&mut self, text: &str) -> &mut Self {
        let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
        if text.len() <= TEXT && text.as_bytes().iter().all(is_plain) {
            return self.text(text);
        }
        self.format(format_args!("{}", Quoted(text)));
        self
    }

    /// In decimal.
    #[inline(always)]
    pub(super) fn number(&mut self, number: u64) -> &mut Self {
        self.digits::<10>(number, 1)
    }

    /// In hexadecimal, with its prefix.
    #[inline(always)]
    pub(super) fn hex(&mut self, number: u64) -> &mut Self {
        self.text("0x").digits::<16>(number, 1)
    }

    /// As [`Micros`].
    #[inline(always)]
    pub(super) fn time(&mut self, Micros(nanos): Micros) -> &mut Self {
        self.number(nanos / 1000).text(".").digits::<10>(nanos % 1000, 3)
    }

    /// Whose it is.
    #[inline(always)]
    pub(super) fn lane(&mut self, tid: usize) -> &mut Self {
        self.text(",\"pid\":1,\"tid\":").number(tid as u64)
    }

    /// A number of at least so many digits.
    #[inline(always)]
    fn digits<const BASE: u64>(&mut self, mut number: u64, least: usize) -> &mut Self {
        let mut digits = [b'0'; 20];
        let mut first = digits.len();
        while number > 0 || digits.len() - first < least {
            first -= 1;
            digits[first] = b"0123456789abcdef"[(number % BASE) as usize];
            number /= BASE;
        }
        self.text.extend_from_slice(&digits[first..]);
        self
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        self.text.extend_from_slice(b",\n");
        *self.total += self.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_shown_as_format_shows_them() {
        for number in [0, 7, 10, 999, 1000, 12_345_678, u64::from(u32::MAX), u64::MAX] {
            let (mut text, mut total) = (Vec::new(), 0);
            Line::new(&mut text, &mut total)
                .number(number)
                .text(" ")
                .hex(number)
                .text(" ")
                .time(Micros(number))
                .lane(3);
            let wanted = format!("{number} {number:#x} {},\"pid\":1,\"tid\":3,\n", Micros(number));
            assert_eq!((String::from_utf8(text).unwrap(), total), (wanted.clone(), wanted.len() as u64));
        }
        for name in ["vda-q0", "a \"b\" \\c", "tab\there", "\u{fc}", &"x".repeat(TEXT + 1)] {
            let (mut text, mut total) = (Vec::new(), 0);
            Line::new(&mut text, &mut total).quoted(name);
            assert_eq!(String::from_utf8(text).unwrap(), format!("{},\n", Quoted(name)));
        }
    }
}
