//! What is typed on a line: bytes, and breaks between them.
//!
//! ```text
//!   l s \r BREAK h      bytes: l s \r h     breaks: 3
//! ```
//!
//! A BREAK is no byte: it holds the line low for longer than a byte takes. Linux takes the key after it as a SysRq.

use std::collections::VecDeque;

/// Bytes and breaks in the order in which they were typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Input {
    bytes: VecDeque<u8>,
    /// Each comes before the byte with this number; ascending.
    breaks: VecDeque<usize>,
}

impl Input {
    /// Of a saved state, whose breaks are in order and not beyond the bytes.
    pub fn new(bytes: Vec<u8>, breaks: Vec<usize>) -> Input {
        Input { bytes: bytes.into(), breaks: breaks.into() }
    }

    /// Adds bytes.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// Adds a break.
    pub fn push_break(&mut self) {
        self.breaks.push_back(self.bytes.len());
    }

    /// Bytes and breaks.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.breaks.len()
    }

    /// Whether there is neither.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a byte, or none for a break.
    pub fn pop(&mut self) -> Option<Option<u8>> {
        if self.breaks.front() == Some(&0) {
            self.breaks.pop_front();
            return Some(None);
        }
        let byte = self.bytes.pop_front()?;
        self.breaks.iter_mut().for_each(|at| *at -= 1);
        Some(Some(byte))
    }

    /// Moves what `to` has `room` for to its end; whether that was anything.
    pub fn move_to(&mut self, to: &mut Input, room: usize) -> bool {
        if self.breaks.is_empty() {
            let count = room.min(self.bytes.len());
            to.bytes.extend(self.bytes.drain(..count));
            return count > 0;
        }
        let before = self.len();
        for _ in 0..room {
            match self.pop() {
                Some(Some(byte)) => to.bytes.push_back(byte),
                Some(None) => to.push_break(),
                None => break,
            }
        }
        self.len() < before
    }

    /// The bytes, and where breaks are between them.
    pub fn parts(&self) -> (Vec<u8>, Vec<usize>) {
        (self.bytes.iter().copied().collect(), self.breaks.iter().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_keep_their_places_whatever_the_pieces() {
        for room in 1..8 {
            let (mut input, mut moved) = (Input::default(), Input::default());
            input.push_break();
            input.extend(b"ab");
            input.push_break();
            input.push_break();
            input.extend(b"c");
            input.push_break();
            let all = input.clone();
            while input.move_to(&mut moved, room) {}
            assert_eq!((input.len(), &moved), (0, &all), "pieces of {room}");
            let popped: Vec<_> = std::iter::from_fn(|| moved.pop()).collect();
            assert_eq!(popped, [None, Some(b'a'), Some(b'b'), None, None, Some(b'c'), None]);
        }
    }
}
