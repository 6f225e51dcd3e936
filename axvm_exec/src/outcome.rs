//! How a command ends, and the exit code for it: the one that a shell gives.
//!
//! | command | code |
//! |---|---|
//! | ended by itself | its own |
//! | ended by signal n | 128+n |
//! | was not found | 127 |
//! | was found and cannot be run | 126 |
//! | could not be started for another reason | 125 |
//!
//! Source: POSIX.1-2024, XCU 2.8.2 "Exit Status for Commands"; 125 is what env, timeout and nohup say about themselves.

/// How a command that ran has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Outcome {
    /// What a shell would say of it.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Code(code) => code,
            Outcome::Signal(signal) => signal.saturating_add(128),
        }
    }
}

/// Why a command did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such program.
    NotFound,
    /// There is such a file, and it cannot be run.
    CannotRun,
    /// Something else is in the way.
    Other,
}

impl Refusal {
    /// What a shell would say of it.
    pub fn exit_code(self) -> u8 {
        match self {
            Refusal::NotFound => 127,
            Refusal::CannotRun => 126,
            Refusal::Other => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_a_shells() {
        assert_eq!(
            [Outcome::Code(3), Outcome::Signal(15), Outcome::Signal(255)].map(Outcome::exit_code),
            [3, 143, 255]
        );
        assert_eq!([Refusal::NotFound, Refusal::CannotRun, Refusal::Other].map(Refusal::exit_code), [127, 126, 125]);
    }
}
