//! The event stream as lines on stderr: what `-v` shows, and the warnings everybody sees.
//!
//! A guest can trigger warnings, so they are rate-limited: a burst, then one a second. Nobody waits for a reader of
//! stderr: lines that it does not take at once are counted, and the next line tells.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axvm_core::speech::try_tell;
use axvm_events::{Event, Sink};

/// Lines a quiet second may carry at once.
const BURST: u32 = 16;

/// Prints events on stderr.
pub struct Narrator {
    /// `-v`: the user asked for everything, so the budget holds nothing back.
    verbose: bool,
    budget: Mutex<Budget>,
}

/// A token bucket: `BURST` lines at most, refilled one a second.
struct Budget {
    lines: u32,
    refilled: Instant,
    dropped: u64,
}

impl Narrator {
    pub fn new(verbose: bool) -> Narrator {
        Narrator { verbose, budget: Mutex::new(Budget { lines: BURST, refilled: Instant::now(), dropped: 0 }) }
    }
}

impl Sink for Narrator {
    fn event(&self, event: &Event) {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = match self.verbose {
            true => Some(std::mem::take(&mut budget.dropped)),
            false => budget.take(Instant::now()),
        };
        let told = match dropped {
            None => return,
            Some(0) => try_tell(event),
            Some(dropped) => try_tell(format_args!("{event} ({dropped} more before it, not shown)")),
        };
        if !told {
            budget.dropped += dropped.unwrap_or(0) + 1;
        }
    }
}

impl Budget {
    /// Permission for one line, with the number of lines that got none since the last; or none.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let seconds = now.duration_since(self.refilled).as_secs().min(BURST.into()) as u32;
        if seconds > 0 {
            self.lines = BURST.min(self.lines + seconds);
            self.refilled += Duration::from_secs(now.duration_since(self.refilled).as_secs());
        }
        if self.lines == 0 {
            self.dropped += 1;
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle_that_counts_what_it_hides() {
        let start = Instant::now();
        let mut budget = Budget { lines: BURST, refilled: start, dropped: 0 };
        assert!((0..BURST).all(|_| budget.take(start) == Some(0)));
        assert!((0..1000).all(|_| budget.take(start).is_none()));
        assert_eq!(budget.take(start + Duration::from_secs(1)), Some(1000));
        assert_eq!(budget.take(start + Duration::from_secs(1)), None);
        assert_eq!(budget.take(start + Duration::from_secs(100)), Some(1));
    }
}
