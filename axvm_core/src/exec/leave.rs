//! The key that leaves a command whose guest hangs: Ctrl-] three times within a second, as in the lab of this project.
//!
//! Every one goes to the guest, too: a program there that wants them gets them.

use std::time::{Duration, Instant};

const KEY: u8 = 0x1d;
const TIMES: usize = 3;
const WITHIN: Duration = Duration::from_secs(1);

/// Counts them.
#[derive(Default)]
pub struct Leave(Vec<Instant>);

impl Leave {
    /// Whether the user wants to leave, after these keys at `now`.
    pub fn wants(&mut self, keys: &[u8], now: Instant) -> bool {
        for &key in keys {
            match key {
                KEY => self.0.push(now),
                _ => self.0.clear(),
            }
        }
        self.0.retain(|&before| now.duration_since(before) < WITHIN);
        self.0.len() >= TIMES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_in_a_second_and_nothing_between() {
        let begin = Instant::now();
        let after = |millis| begin + Duration::from_millis(millis);
        let mut leave = Leave::default();
        assert!(leave.wants(b"\x1d\x1d\x1d", begin));
        let mut leave = Leave::default();
        assert!(!leave.wants(b"\x1d", begin) && !leave.wants(b"\x1d", after(400)) && leave.wants(b"\x1d", after(900)));
        let mut leave = Leave::default();
        assert!(!leave.wants(b"\x1d\x1d", begin) && !leave.wants(b"\x1d", after(1001)));
        let mut leave = Leave::default();
        assert!(!leave.wants(b"\x1d\x1dx\x1d", begin));
    }
}
