//! The event stream as lines on stderr: what `-v` shows, and the warnings that every user sees.
//!
//! ```text
//!   event --> budget --granted--> try_tell --told--> stderr
//!                \--denied--.        \--not told--.
//!                            '-----> counted <-----'      the next line says how many
//! ```
//!
//! A guest can trigger warnings, so they are rate-limited: a burst, then one a second. No thread waits for a reader of
//! stderr.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use axvm_events::{Event, Sink};
use axvm_sync::lock;

use crate::speech::{TellOutcome, take_lost, try_tell};

/// Lines a quiet second may carry at once.
const BURST: u32 = 16;

/// Prints events on stderr.
pub struct Narrator(Mutex<Budget>);

/// How many lines may still be printed.
struct Budget {
    rate: Rate,
    /// Events that were not shown since the last line.
    hidden: u64,
}

/// How fast lines may come.
enum Rate {
    /// `-v`: the user asked for everything.
    Unlimited,
    /// A token bucket: [`BURST`] lines at most, refilled one a second.
    Limited { lines: u32, refilled: Instant },
}

/// The budget's answer to one event.
#[derive(Debug, PartialEq, Eq)]
enum Permit {
    /// It may be shown, and has to say that so many before it were not.
    Granted { hidden: u64 },
    /// It is counted.
    Denied,
}

impl Narrator {
    pub fn new(verbose: bool) -> Narrator {
        let limited = Rate::Limited { lines: BURST, refilled: Instant::now() };
        Narrator(Mutex::new(Budget { rate: if verbose { Rate::Unlimited } else { limited }, hidden: 0 }))
    }
}

impl Sink for Narrator {
    fn event(&self, event: &Event) {
        let mut budget = lock(&self.0);
        budget.hidden += take_lost();
        let Permit::Granted { hidden } = budget.take(Instant::now()) else { return };
        let outcome = match hidden {
            0 => try_tell(event),
            hidden => try_tell(format_args!("{event} ({hidden} more before it, not shown)")),
        };
        match outcome {
            TellOutcome::Told => {}
            TellOutcome::WouldWait | TellOutcome::Failed => budget.hidden = hidden + 1,
        }
    }
}

impl Budget {
    /// Asks for one line.
    fn take(&mut self, now: Instant) -> Permit {
        match &mut self.rate {
            Rate::Unlimited => {}
            Rate::Limited { lines, refilled } => {
                let seconds = now.duration_since(*refilled).as_secs();
                *lines = BURST.min(*lines + seconds.min(BURST.into()) as u32);
                *refilled += Duration::from_secs(seconds);
                if *lines == 0 {
                    self.hidden += 1;
                    return Permit::Denied;
                }
                *lines -= 1;
            }
        }
        Permit::Granted { hidden: std::mem::take(&mut self.hidden) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle_that_counts_what_it_hides() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut budget = Budget { rate: Rate::Limited { lines: BURST, refilled: start }, hidden: 0 };
        assert!((0..BURST).all(|_| budget.take(start) == Permit::Granted { hidden: 0 }));
        assert!((0..1000).all(|_| budget.take(start) == Permit::Denied));
        assert_eq!(budget.take(after(1)), Permit::Granted { hidden: 1000 });
        assert_eq!(budget.take(after(1)), Permit::Denied);
        assert_eq!(budget.take(after(100)), Permit::Granted { hidden: 1 });
    }

    #[test]
    fn a_user_who_asked_for_everything_gets_it() {
        let start = Instant::now();
        let mut budget = Budget { rate: Rate::Unlimited, hidden: 3 };
        assert_eq!(budget.take(start), Permit::Granted { hidden: 3 });
        assert!((0..1000).all(|_| budget.take(start) == Permit::Granted { hidden: 0 }));
    }
}
