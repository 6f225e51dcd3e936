//! The line with which a client of the host says whom it wants: `CONNECT <port>`.
//!
//! ```text
//!   "CONNECT 52\n" --byte by byte--> More, More, .. Port(52)        whatever follows the line is the guest's
//!   "HELLO\n", 32 bytes without an end of line -----> Refused
//! ```
//!
//! A line may arrive in pieces: what came is kept.
//!
//! Source: Firecracker's documentation, "Using the Firecracker Virtio-vsock Device"; other monitors took it over.

/// Most bytes of a line, its end included.
const MAX_LINE: usize = 32;

/// What is known of a line after a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// It goes on.
    More,
    /// The client wants this port of the guest.
    Port(u32),
    /// It is no command.
    Refused,
}

/// A line that is being read.
#[derive(Debug, Default)]
pub(super) struct Command(Vec<u8>);

impl Command {
    /// The next byte.
    pub(super) fn push(&mut self, byte: u8) -> Line {
        if byte == b'\n' {
            return self.parse().map_or(Line::Refused, Line::Port);
        }
        self.0.push(byte);
        if self.0.len() < MAX_LINE { Line::More } else { Line::Refused }
    }

    fn parse(&self) -> Option<u32> {
        let text = std::str::from_utf8(&self.0).ok()?;
        let mut words = text.split_ascii_whitespace();
        let (verb, port) = (words.next()?, words.next()?);
        let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
        if !verb.eq_ignore_ascii_case("connect") || !is_number || words.next().is_some() {
            return None;
        }
        port.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Line {
        let mut command = Command::default();
        let lines = text.bytes().map(|byte| command.push(byte)).collect::<Vec<_>>();
        lines.into_iter().find(|line| *line != Line::More).unwrap_or(Line::More)
    }

    #[test]
    fn lines_in_any_case_and_spacing() {
        for (text, line) in [
            ("CONNECT 52\n", Line::Port(52)),
            ("connect 52\r\n", Line::Port(52)),
            ("  Connect \t 0052 \n", Line::Port(52)),
            ("CONNECT 4294967295\n", Line::Port(u32::MAX)),
            ("CONNECT 4294967296\n", Line::Refused),
            ("CONNECT -1\n", Line::Refused),
            ("CONNECT +1\n", Line::Refused),
            ("CONNECT 52 foo\n", Line::Refused),
            ("CONNECT\n", Line::Refused),
            ("CONNECT52\n", Line::Refused),
            ("HELLO 52\n", Line::Refused),
            ("\n", Line::Refused),
            ("CON", Line::More),
        ] {
            assert_eq!(read(text), line, "{text:?}");
        }
    }

    #[test]
    fn a_line_has_an_end_within_32_bytes() {
        let line = |spaces| format!("CONNECT {}7\n", " ".repeat(spaces));
        assert_eq!((line(22).len(), read(&line(22))), (32, Line::Port(7)));
        assert_eq!(read(&line(23)), Line::Refused);
        assert_eq!(read(&"x".repeat(31)), Line::More);
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let mut command = Command::default();
        assert_eq!(command.push(0xff), Line::More);
        assert_eq!(command.push(b'\n'), Line::Refused);
    }
}
