//! The two ends of a conversation: each takes bytes, and gives messages that may come now.
//!
//! ```text
//!   HostEnd    hello, [Grant|Refused], (Stdout|Stderr|Grant)*, Exit     then no more
//!   GuestEnd   hello, Request, (Stdin <= granted | StdinEnd once | Resize | Signal)*
//! ```
//!
//! After an error an end gives nothing else: where a frame lies is no longer known.

use crate::frame::{Decoder, ProtocolError, hello};
use crate::message::{FromGuest, FromHost};

/// What the host has got from a guest.
#[derive(Debug, Default)]
pub struct HostEnd {
    decoder: Decoder,
    stage: Stage,
    /// Bytes of input that may still be sent.
    granted: u64,
}

/// What the guest has got from a host.
#[derive(Debug, Default)]
pub struct GuestEnd {
    decoder: Decoder,
    stage: Stage,
    /// Bytes of input that may still come.
    granted: u64,
    input_ended: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Stage {
    /// The first message is to come.
    #[default]
    Before,
    Running,
    Over,
    Broken(ProtocolError),
}

impl HostEnd {
    /// What the host says first.
    pub fn hello(to: &mut Vec<u8>) {
        hello(to);
    }

    /// Takes what arrived.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.decoder.receive(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn kept(&self) -> usize {
        self.decoder.kept()
    }

    /// Bytes of input that the guest takes now.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// Input was sent.
    pub fn sent(&mut self, len: usize) {
        self.granted = self.granted.saturating_sub(len as u64);
    }

    /// The next message, once all of it is there.
    pub fn message(&mut self) -> Result<Option<FromGuest<'_>>, ProtocolError> {
        if let Stage::Broken(error) = &self.stage {
            return Err(error.clone());
        }
        let (stage, granted) = (&mut self.stage, &mut self.granted);
        let read = self.decoder.next(FromGuest::limit).and_then(|frame| frame.map(FromGuest::decode).transpose());
        let next = read.and_then(|message| match message {
            Some(message) => allow_guest(stage, granted, &message).map(|()| Some(message)),
            None => Ok(None),
        });
        next.inspect_err(|error| *stage = Stage::Broken(error.clone()))
    }
}

/// Whether the guest may say this now, and what follows.
fn allow_guest(stage: &mut Stage, granted: &mut u64, message: &FromGuest<'_>) -> Result<(), ProtocolError> {
    *stage = match (&*stage, message) {
        (Stage::Before | Stage::Running, FromGuest::Grant(count)) => {
            *granted = granted.saturating_add(u64::from(*count));
            Stage::Running
        }
        (Stage::Before, FromGuest::Refused(..)) | (Stage::Running, FromGuest::Exit(_)) => Stage::Over,
        (Stage::Running, FromGuest::Stdout(_) | FromGuest::Stderr(_)) => Stage::Running,
        _ => return Err(ProtocolError::Order(message.kind())),
    };
    Ok(())
}

impl GuestEnd {
    /// What the guest says first.
    pub fn hello(to: &mut Vec<u8>) {
        hello(to);
    }

    /// Takes what arrived.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.decoder.receive(bytes);
    }

    /// Bytes that wait for the rest of their frame.
    pub fn kept(&self) -> usize {
        self.decoder.kept()
    }

    /// Lets the host send so many bytes more.
    pub fn grant(&mut self, count: u32, to: &mut Vec<u8>) {
        self.granted = self.granted.saturating_add(u64::from(count));
        FromGuest::Grant(count).encode(to);
    }

    /// The next message, once all of it is there.
    pub fn message(&mut self) -> Result<Option<FromHost<'_>>, ProtocolError> {
        if let Stage::Broken(error) = &self.stage {
            return Err(error.clone());
        }
        let Self { decoder, stage, granted, input_ended } = self;
        let read = decoder.next(FromHost::limit).and_then(|frame| frame.map(FromHost::decode).transpose());
        let next = read.and_then(|message| match message {
            Some(message) => allow_host(stage, granted, input_ended, &message).map(|()| Some(message)),
            None => Ok(None),
        });
        next.inspect_err(|error| *stage = Stage::Broken(error.clone()))
    }
}

/// Whether the host may say this now, and what follows.
fn allow_host(
    stage: &mut Stage,
    granted: &mut u64,
    input_ended: &mut bool,
    message: &FromHost<'_>,
) -> Result<(), ProtocolError> {
    match (&*stage, message) {
        (Stage::Before, FromHost::Request(_)) => *stage = Stage::Running,
        (Stage::Running, FromHost::Stdin(bytes)) if !*input_ended => {
            *granted = granted.checked_sub(bytes.len() as u64).ok_or(ProtocolError::Grant)?;
        }
        (Stage::Running, FromHost::StdinEnd) if !*input_ended => *input_ended = true,
        (Stage::Running, FromHost::Resize(_) | FromHost::Signal(_)) => {}
        _ => return Err(ProtocolError::Order(message.kind())),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Outcome, Request};

    fn guest_says(messages: &[FromGuest<'_>]) -> HostEnd {
        let (mut end, mut bytes) = (HostEnd::default(), Vec::new());
        GuestEnd::hello(&mut bytes);
        messages.iter().for_each(|message| message.encode(&mut bytes));
        end.receive(&bytes);
        end
    }

    fn host_says(messages: &[FromHost<'_>]) -> GuestEnd {
        let (mut end, mut bytes) = (GuestEnd::default(), Vec::new());
        HostEnd::hello(&mut bytes);
        messages.iter().for_each(|message| message.encode(&mut bytes));
        end.receive(&bytes);
        end
    }

    fn request() -> FromHost<'static> {
        FromHost::Request(Request { arguments: vec!["true".into()], ..Request::default() })
    }

    #[test]
    fn a_command_begins_with_a_grant_and_ends_with_its_exit() {
        let exit = FromGuest::Exit(Outcome::Code(7));
        let mut end = guest_says(&[FromGuest::Grant(5), FromGuest::Stdout(b"out"), exit.clone(), exit.clone()]);
        assert_eq!(end.message(), Ok(Some(FromGuest::Grant(5))));
        assert_eq!(end.granted(), 5);
        end.sent(3);
        assert_eq!(end.granted(), 2);
        assert_eq!(end.message(), Ok(Some(FromGuest::Stdout(b"out"))));
        assert_eq!(end.message(), Ok(Some(exit)));
        assert_eq!(end.message(), Err(ProtocolError::Order(19)));
        assert_eq!(end.message(), Err(ProtocolError::Order(19)), "and that stays so");
    }

    #[test]
    fn output_before_the_command_runs_is_a_lie() {
        assert_eq!(guest_says(&[FromGuest::Stdout(b"x")]).message(), Err(ProtocolError::Order(17)));
        assert_eq!(guest_says(&[FromGuest::Exit(Outcome::Code(0))]).message(), Err(ProtocolError::Order(19)));
    }

    #[test]
    fn input_needs_a_grant_and_ends_once() {
        let mut end = host_says(&[request(), FromHost::Stdin(b"abc"), FromHost::Stdin(b"d")]);
        assert!(matches!(end.message(), Ok(Some(FromHost::Request(_)))));
        end.grant(3, &mut Vec::new());
        assert_eq!(end.message(), Ok(Some(FromHost::Stdin(b"abc"))));
        assert_eq!(end.message(), Err(ProtocolError::Grant));
        for late in [FromHost::StdinEnd, FromHost::Stdin(b"")] {
            let mut end = host_says(&[request(), FromHost::StdinEnd, FromHost::Signal(2), late.clone()]);
            assert!((0..3).all(|_| matches!(end.message(), Ok(Some(_)))));
            assert_eq!(end.message(), Err(ProtocolError::Order(late.kind())));
        }
    }

    #[test]
    fn a_request_comes_first_and_once() {
        assert_eq!(host_says(&[FromHost::Signal(9)]).message(), Err(ProtocolError::Order(5)));
        let mut end = host_says(&[request(), request()]);
        assert!(end.message().is_ok());
        assert_eq!(end.message(), Err(ProtocolError::Order(1)));
    }
}
