//! A conversation with a guest: what was typed, what was heard.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::PATIENCE;

/// Two ends that may be one. Nothing is read but by [`Talk::hear`] and [`Talk::rest`].
pub struct Talk {
    input: Option<OwnedFd>,
    output: OwnedFd,
    /// Heard, and not yet asked for.
    heard: Vec<u8>,
}

impl Talk {
    pub fn new(input: Option<OwnedFd>, output: impl Into<OwnedFd>) -> Talk {
        Talk { input, output: output.into(), heard: Vec::new() }
    }

    /// One end for both, such as a socket.
    pub fn on(end: impl Into<OwnedFd>) -> Talk {
        let end = end.into();
        Talk::new(Some(end.try_clone().unwrap()), end)
    }

    /// Types all of it, while nothing is read.
    #[track_caller]
    pub fn say(&self, bytes: impl AsRef<[u8]>) {
        let (mut rest, end) = (bytes.as_ref(), self.input.as_ref().unwrap());
        while !rest.is_empty() {
            assert!(wait(end, PollFlags::OUT), "nothing takes what is typed; {} bytes are left", rest.len());
            // A piece that a ready pipe takes at once.
            match rustix::io::write(end, &rest[..rest.len().min(512)]) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::AGAIN) => {}
                Err(error) => panic!("Cannot type: {error}"),
            }
        }
    }

    /// Whether there is something to hear now.
    pub fn has_output(&self) -> bool {
        !self.heard.is_empty()
            || poll(&mut [PollFd::new(&self.output, PollFlags::IN)], Some(&Timespec::default())) == Ok(1)
    }

    /// Reads until `words` came; all up to and with them.
    #[track_caller]
    pub fn hear(&mut self, words: &str) -> String {
        let mut from = 0;
        loop {
            let found = self.heard[from..].windows(words.len()).position(|window| window == words.as_bytes());
            if let Some(at) = found {
                let rest = self.heard.split_off(from + at + words.len());
                return String::from_utf8_lossy(&std::mem::replace(&mut self.heard, rest)).into_owned();
            }
            from = (self.heard.len() + 1).saturating_sub(words.len());
            assert!(self.read(1 << 16), "waited in vain for {words:?}, heard {:?}", self.tail());
        }
    }

    /// Runs a command of the interpreter; its answer.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.say(format!("{command}\n"));
        self.answer()
    }

    /// The answer to a command that said all of `words` first.
    #[track_caller]
    pub fn answer_after_all(&mut self, words: &str) -> String {
        let said = self.hear(" done\n> ");
        assert!(said.contains(words), "{} bytes came, {} were said", said.len(), words.len());
        said.rsplit("= ").next().unwrap().trim_end_matches(" done\n> ").to_owned()
    }

    /// Closes the listening end; what is left is for typing.
    pub fn stop_listening(mut self) -> Talk {
        let (unread, end) = std::io::pipe().unwrap();
        drop((end, std::mem::replace(&mut self.output, unread.into())));
        self
    }

    /// The answer to a command.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        self.answer_after_all("")
    }

    /// Everything until the other end closes.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        while self.read(1 << 16) {}
        std::mem::take(&mut self.heard)
    }

    /// Reads once, `limit` bytes at most; false at the end, or when nothing comes for too long.
    pub fn read(&mut self, limit: usize) -> bool {
        let start = Instant::now();
        let mut buffer = vec![0; limit];
        while start.elapsed() < PATIENCE && wait(&self.output, PollFlags::IN) {
            match rustix::io::read(&self.output, &mut buffer) {
                Ok(count) => {
                    self.heard.extend(&buffer[..count]);
                    return count > 0;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                // A terminal whose other end is closed.
                Err(_) => return false,
            }
        }
        false
    }

    fn tail(&self) -> String {
        String::from_utf8_lossy(&self.heard[self.heard.len().saturating_sub(300)..]).into_owned()
    }
}

/// Waits until `fd` is ready; false if it never is.
fn wait(fd: impl AsFd, flags: PollFlags) -> bool {
    let limit = Timespec::try_from(PATIENCE).unwrap();
    loop {
        match poll(&mut [PollFd::new(&fd, flags)], Some(&limit)) {
            Err(Errno::INTR) => {}
            count => return count.is_ok_and(|count| count > 0),
        }
    }
}

/// What the guest's `flood` prints.
pub fn flood(lines: usize) -> String {
    let alphabet: String = ('a'..='z').cycle().take(1015).collect();
    (0..lines).map(|n| format!("{n:08}{alphabet}\n")).collect()
}

/// What the guest's `raw` answers to `bytes`.
pub fn checksum(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0_u32, |sum, &byte| sum.rotate_left(5) ^ u32::from(byte));
    format!("{} {sum} raw", bytes.len())
}

/// Bytes that tell where they belong; all values.
pub fn pattern(count: usize) -> Vec<u8> {
    (0..count).map(|n| (n * 7 + n / 251) as u8).collect()
}
