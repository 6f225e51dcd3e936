//! The last 64 KiB that the guest wrote, for clients that attach late.

use std::collections::VecDeque;

/// Bytes kept.
pub const REPLAY: usize = 64 << 10;

/// The guest's latest output.
#[derive(Default)]
pub struct Replay(VecDeque<u8>);

impl Replay {
    /// Adds output, and forgets what is older than [`REPLAY`] bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(REPLAY)..];
        let excess = (self.0.len() + bytes.len()).saturating_sub(REPLAY);
        self.0.drain(..excess);
        self.0.extend(bytes);
    }

    /// All that is kept, oldest first.
    pub fn bytes(&self) -> VecDeque<u8> {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_64_kib_are_kept_whatever_the_pieces() {
        let all: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        for piece in [1000, REPLAY - 1, REPLAY, REPLAY + 1, all.len()] {
            let mut replay = Replay::default();
            all.chunks(piece).for_each(|bytes| replay.push(bytes));
            assert!(replay.bytes().iter().eq(&all[all.len() - REPLAY..]), "pieces of {piece}");
        }
    }

    #[test]
    fn little_output_is_kept_whole() {
        let mut replay = Replay::default();
        replay.push(b"log");
        replay.push(b"in: ");
        assert!(replay.bytes().iter().eq(b"login: "));
    }
}
