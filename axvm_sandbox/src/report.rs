//! What is on and what the host lacks, one line each.

use std::fmt;

/// Whether one protection works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Availability {
    /// It does; how much of it.
    On(String),
    /// It does not; why.
    Missing(String),
}

/// One means of protection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Short name: `files`, `capabilities`.
    pub name: &'static str,
    /// Whether it works.
    pub state: Availability,
}

impl Protection {
    pub(crate) fn on(name: &'static str, how: impl Into<String>) -> Protection {
        Protection { name, state: Availability::On(how.into()) }
    }

    pub(crate) fn missing(name: &'static str, why: impl Into<String>) -> Protection {
        Protection { name, state: Availability::Missing(why.into()) }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            Availability::On(how) => write!(f, "{}: on ({how})", self.name),
            Availability::Missing(why) => write!(f, "{}: not available ({why})", self.name),
        }
    }
}

/// All means of protection, in the order in which they close.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxReport(pub Vec<Protection>);

impl fmt::Display for SandboxReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|protection| writeln!(f, "{protection}"))
    }
}
