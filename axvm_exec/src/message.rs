//! Messages: what each side can say, and the bytes of it.
//!
//! ```text
//!   host    1 Request   terminal u8, columns u16, rows u16, directory, count u32, arguments, count u32, NAME=VALUE ...
//!           2 Stdin     bytes            3 StdinEnd
//!           4 Resize    columns, rows    5 Signal    u8
//!   guest  16 Grant     u32             17 Stdout    bytes              18 Stderr   bytes
//!          19 Exit      0 code | 1 signal                               20 Refused  reason u8, text
//!
//!   a string: length u32, bytes (no NUL)
//! ```

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::frame::{Frame, ProtocolError, frame};
use crate::{CHUNK, Outcome, Refusal};

const REQUEST: u8 = 1;
const STDIN: u8 = 2;
const STDIN_END: u8 = 3;
const RESIZE: u8 = 4;
const SIGNAL: u8 = 5;
const GRANT: u8 = 16;
const STDOUT: u8 = 17;
const STDERR: u8 = 18;
const EXIT: u8 = 19;
const REFUSED: u8 = 20;

/// Most bytes of a request: as much as a program may get from another one, about.
const MAX_REQUEST: u32 = 1 << 20;
/// Most bytes of a reason.
const MAX_TEXT: u32 = 4 << 10;

/// Columns and rows of a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The command that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// With a terminal of this size; without one, with three pipes.
    pub terminal: Option<Size>,
    /// Where it runs; empty: where the agent does.
    pub directory: OsString,
    /// The program, found as a shell finds it, and its arguments.
    pub arguments: Vec<OsString>,
    /// `NAME=VALUE`, added to the agent's own.
    pub environment: Vec<OsString>,
}

impl Request {
    /// Whether it fits into a frame.
    pub fn fits(&self) -> bool {
        let strings = self.arguments.iter().chain(&self.environment).chain([&self.directory]);
        let len = strings.map(|text| text.len() as u64 + 4).sum::<u64>() + 32;
        len <= u64::from(MAX_REQUEST)
    }

    fn encode(&self, to: &mut Vec<u8>) {
        let size = self.terminal.unwrap_or(Size { columns: 0, rows: 0 });
        to.push(self.terminal.is_some().into());
        put_size(to, size);
        put_string(to, &self.directory);
        for list in [&self.arguments, &self.environment] {
            to.extend_from_slice(&(list.len() as u32).to_le_bytes());
            list.iter().for_each(|text| put_string(to, text));
        }
    }

    fn decode(payload: &mut Payload<'_>) -> Option<Request> {
        let has_terminal = payload.byte()?;
        let size = payload.size()?;
        let terminal = match has_terminal {
            0 => None,
            1 => Some(size),
            _ => return None,
        };
        let directory = payload.string()?;
        let arguments = payload.strings()?;
        let environment = payload.strings()?;
        // Its name is not empty, and there is one before each `=`.
        let is_pair = |text: &OsString| text.as_bytes().iter().position(|&byte| byte == b'=').is_some_and(|at| at > 0);
        let is_possible = arguments.first().is_some_and(|program| !program.is_empty());
        (is_possible && environment.iter().all(is_pair)).then_some(Request {
            terminal,
            directory,
            arguments,
            environment,
        })
    }
}

/// What the host says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromHost<'a> {
    /// First of all: the command.
    Request(Request),
    /// Input, as much as was granted at most.
    Stdin(&'a [u8]),
    /// There is no more input.
    StdinEnd,
    /// The terminal has another size.
    Resize(Size),
    /// A signal for the command, by Linux's number.
    Signal(u8),
}

impl<'a> FromHost<'a> {
    /// Adds its frame. Input may be [`CHUNK`] long.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            FromHost::Request(request) => frame(to, REQUEST, |to| request.encode(to)),
            FromHost::Stdin(bytes) => frame(to, STDIN, |to| to.extend_from_slice(bytes)),
            FromHost::StdinEnd => frame(to, STDIN_END, |_| {}),
            FromHost::Resize(size) => frame(to, RESIZE, |to| put_size(to, *size)),
            FromHost::Signal(number) => frame(to, SIGNAL, |to| to.push(*number)),
        }
    }

    pub(crate) fn limit(kind: u8) -> Option<u32> {
        Some(match kind {
            REQUEST => MAX_REQUEST,
            STDIN => CHUNK as u32,
            STDIN_END => 0,
            RESIZE => 4,
            SIGNAL => 1,
            _ => return None,
        })
    }

    pub(crate) fn decode(frame: Frame<'a>) -> Result<FromHost<'a>, ProtocolError> {
        decode(frame, |kind, payload| {
            Some(match kind {
                REQUEST => FromHost::Request(Request::decode(payload)?),
                STDIN => FromHost::Stdin(payload.all()),
                STDIN_END => FromHost::StdinEnd,
                RESIZE => FromHost::Resize(payload.size()?),
                // What ends a process and what it may see; 0 and what is beyond are no signals.
                SIGNAL => FromHost::Signal(payload.byte().filter(|number| (1..=64).contains(number))?),
                _ => return None,
            })
        })
    }

    pub(crate) fn kind(&self) -> u8 {
        match self {
            FromHost::Request(_) => REQUEST,
            FromHost::Stdin(_) => STDIN,
            FromHost::StdinEnd => STDIN_END,
            FromHost::Resize(_) => RESIZE,
            FromHost::Signal(_) => SIGNAL,
        }
    }
}

/// What the guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest<'a> {
    /// So many more bytes of input may come. The first one says that the command runs.
    Grant(u32),
    /// Output; that of a terminal, too.
    Stdout(&'a [u8]),
    /// Errors.
    Stderr(&'a [u8]),
    /// The command has ended, and all its output was sent.
    Exit(Outcome),
    /// The command does not run, and why.
    Refused(Refusal, &'a str),
}

impl<'a> FromGuest<'a> {
    /// Adds its frame. Output may be [`CHUNK`] long, a reason is cut.
    pub fn encode(&self, to: &mut Vec<u8>) {
        match self {
            FromGuest::Grant(count) => frame(to, GRANT, |to| to.extend_from_slice(&count.to_le_bytes())),
            FromGuest::Stdout(bytes) => frame(to, STDOUT, |to| to.extend_from_slice(bytes)),
            FromGuest::Stderr(bytes) => frame(to, STDERR, |to| to.extend_from_slice(bytes)),
            FromGuest::Exit(Outcome::Code(code)) => frame(to, EXIT, |to| to.extend_from_slice(&[0, *code])),
            FromGuest::Exit(Outcome::Signal(signal)) => frame(to, EXIT, |to| to.extend_from_slice(&[1, *signal])),
            FromGuest::Refused(why, text) => frame(to, REFUSED, |to| {
                to.push(match why {
                    Refusal::NotFound => 0,
                    Refusal::CannotRun => 1,
                    Refusal::Other => 2,
                });
                let end = (0..MAX_TEXT as usize)
                    .rev()
                    .find(|&end| text.is_char_boundary(end.min(text.len())))
                    .unwrap_or(0)
                    .min(text.len());
                to.extend_from_slice(&text.as_bytes()[..end]);
            }),
        }
    }

    pub(crate) fn limit(kind: u8) -> Option<u32> {
        Some(match kind {
            GRANT => 4,
            STDOUT | STDERR => CHUNK as u32,
            EXIT => 2,
            REFUSED => MAX_TEXT,
            _ => return None,
        })
    }

    pub(crate) fn decode(frame: Frame<'a>) -> Result<FromGuest<'a>, ProtocolError> {
        decode(frame, |kind, payload| {
            Some(match kind {
                GRANT => FromGuest::Grant(payload.number()?),
                STDOUT => FromGuest::Stdout(payload.all()),
                STDERR => FromGuest::Stderr(payload.all()),
                EXIT => FromGuest::Exit(match (payload.byte()?, payload.byte()?) {
                    (0, code) => Outcome::Code(code),
                    (1, signal) => Outcome::Signal(signal),
                    _ => return None,
                }),
                REFUSED => {
                    let why = match payload.byte()? {
                        0 => Refusal::NotFound,
                        1 => Refusal::CannotRun,
                        2 => Refusal::Other,
                        _ => return None,
                    };
                    FromGuest::Refused(why, std::str::from_utf8(payload.all()).ok()?)
                }
                _ => return None,
            })
        })
    }

    pub(crate) fn kind(&self) -> u8 {
        match self {
            FromGuest::Grant(_) => GRANT,
            FromGuest::Stdout(_) => STDOUT,
            FromGuest::Stderr(_) => STDERR,
            FromGuest::Exit(_) => EXIT,
            FromGuest::Refused(..) => REFUSED,
        }
    }
}

/// Decodes all of a payload: neither too little nor too much.
fn decode<'a, T>(frame: Frame<'a>, read: impl FnOnce(u8, &mut Payload<'a>) -> Option<T>) -> Result<T, ProtocolError> {
    let mut payload = Payload(frame.payload);
    let message = read(frame.kind, &mut payload);
    message.filter(|_| payload.0.is_empty()).ok_or(ProtocolError::Payload(frame.kind))
}

fn put_size(to: &mut Vec<u8>, size: Size) {
    to.extend_from_slice(&size.columns.to_le_bytes());
    to.extend_from_slice(&size.rows.to_le_bytes());
}

fn put_string(to: &mut Vec<u8>, text: &OsStr) {
    to.extend_from_slice(&(text.len() as u32).to_le_bytes());
    to.extend_from_slice(text.as_bytes());
}

/// What is left of a payload.
struct Payload<'a>(&'a [u8]);

impl<'a> Payload<'a> {
    fn all(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn size(&mut self) -> Option<Size> {
        let mut half = || Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?));
        Some(Size { columns: half()?, rows: half()? })
    }

    fn string(&mut self) -> Option<OsString> {
        let len = self.number()? as usize;
        let bytes = self.take(len)?;
        (!bytes.contains(&0)).then(|| OsString::from_vec(bytes.to_vec()))
    }

    fn strings(&mut self) -> Option<Vec<OsString>> {
        let count = self.number()?;
        // Each takes four bytes at least: a count that lies ends here, and takes no memory before.
        (0..count).map(|_| self.string()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn strings() -> impl Strategy<Value = Vec<OsString>> {
        let string = prop::collection::vec(1..=255_u8, 1..20).prop_map(OsString::from_vec);
        prop::collection::vec(string, 1..5)
    }

    fn payload(message: &FromHost<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes.split_off(5)
    }

    proptest! {
        #[test]
        fn a_request_comes_back_as_it_was(
            terminal in prop::option::of((any::<u16>(), any::<u16>())),
            arguments in strings(),
            values in strings(),
            directory in "(/[a-z]{0,5}){0,3}",
        ) {
            let environment = values.into_iter().map(|value| [OsStr::new("A="), &value].into_iter().collect()).collect();
            let terminal = terminal.map(|(columns, rows)| Size { columns, rows });
            let request = Request { terminal, directory: directory.into(), arguments, environment };
            let bytes = payload(&FromHost::Request(request.clone()));
            prop_assert!(request.fits());
            let read = FromHost::decode(Frame { kind: REQUEST, payload: &bytes });
            prop_assert_eq!(read, Ok(FromHost::Request(request)));
            for len in 0..bytes.len() {
                let cut = FromHost::decode(Frame { kind: REQUEST, payload: &bytes[..len] });
                prop_assert_eq!(cut, Err(ProtocolError::Payload(REQUEST)));
            }
        }
    }

    #[test]
    fn a_request_without_a_program_or_with_a_nul_is_none() {
        let decoded = |request: &Request| {
            let bytes = payload(&FromHost::Request(request.clone()));
            FromHost::decode(Frame { kind: REQUEST, payload: &bytes }).is_ok()
        };
        let good = Request { arguments: vec!["ls".into()], environment: vec!["A=".into()], ..Request::default() };
        assert!(decoded(&good));
        assert!(!decoded(&Request { arguments: Vec::new(), ..good.clone() }));
        assert!(!decoded(&Request { arguments: vec!["".into()], ..good.clone() }));
        assert!(!decoded(&Request { arguments: vec!["a\0b".into()], ..good.clone() }));
        assert!(!decoded(&Request { environment: vec!["=A".into()], ..good.clone() }));
        assert!(!decoded(&Request { environment: vec!["A".into()], ..good }));
    }

    #[test]
    fn a_count_that_lies_takes_no_memory() {
        let mut bytes = vec![0; 9];
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(FromHost::decode(Frame { kind: REQUEST, payload: &bytes }), Err(ProtocolError::Payload(REQUEST)));
    }

    #[test]
    fn a_request_that_is_too_long_is_known_before() {
        let long = |len: usize| Request { arguments: vec!["x".repeat(len).into()], ..Request::default() };
        assert!(long(1 << 19).fits() && !long(1 << 20).fits());
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut bytes = Vec::new();
        FromGuest::Refused(Refusal::Other, &"ä".repeat(4096)).encode(&mut bytes);
        let frame = Frame { kind: REFUSED, payload: &bytes[5..] };
        assert!(frame.payload.len() <= MAX_TEXT as usize);
        assert!(matches!(FromGuest::decode(frame), Ok(FromGuest::Refused(Refusal::Other, text)) if text.len() > 4000));
    }
}
