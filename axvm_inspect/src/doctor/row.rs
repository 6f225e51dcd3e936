//! One row of the doctor's table: a thing, what was found, and what follows from it.
//!
//! ```text
//!   part     verdict  what               found
//!   Memory   problem  huge pages (THP)   never
//!                        costs: ...      advice: what the finding costs,
//!                        do:    ...              and what changes it
//! ```

use serde::Serialize;

/// What a finding means for AxVM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works; something is lost, or worth knowing.
    Note,
    /// To be changed.
    Problem,
}

/// What to do about a row that is not ok.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What the finding costs.
    pub cost: String,
    /// What changes it: words, or commands, one on each line.
    pub change: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The part of the host: rows of one part stand together.
    pub part: &'static str,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What it means.
    pub verdict: Verdict,
    /// AxVM cannot run Linux while this is a problem.
    pub required: bool,
    /// Present exactly when the verdict is not ok.
    pub advice: Option<Advice>,
}

impl Row {
    /// A row in which all is well.
    pub fn ok(part: &'static str, what: impl Into<String>, found: impl Into<String>) -> Row {
        Row { part, what: what.into(), found: found.into(), verdict: Verdict::Ok, required: false, advice: None }
    }

    /// The same finding, with something lost.
    pub fn note(self, cost: impl Into<String>, change: impl Into<String>) -> Row {
        self.advise(Verdict::Note, cost, change)
    }

    /// The same finding, to be changed.
    pub fn problem(self, cost: impl Into<String>, change: impl Into<String>) -> Row {
        self.advise(Verdict::Problem, cost, change)
    }

    /// The same finding; if it is a problem, AxVM cannot run Linux.
    pub fn required(self) -> Row {
        Row { required: true, ..self }
    }

    fn advise(self, verdict: Verdict, cost: impl Into<String>, change: impl Into<String>) -> Row {
        Row { verdict, advice: Some(Advice { cost: cost.into(), change: change.into() }), ..self }
    }
}
