//! The lab: a machine with hardware-like KVM on any host, for running AxVM with real kernels.
//!
//! ```text
//!   host: QEMU, TCG emulating AMD SVM
//!     outer machine: Debian kernel, kvm-amd, our init          control = ttyS0, job = ttyS1
//!       /axvm: axvm, kernels, disks (the payload disk)
//!         AxVM: the guest
//! ```
//!
//! One run: make the payload, restore the outer machine's saved state, set its clock, run the job script, take results
//! out of the payload. A failure of the outer machine is told apart from one of the command: it is the lab's, not AxVM's.

mod contents;
mod outer;
mod payload;
mod qemu;
mod session;
mod terminal;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

pub use contents::{gdb, lspci, passt, python, qemu, ssh, standard_files};
pub use payload::Payload;
pub use terminal::{attended, size};

use outer::Outer;

/// The lab, ready to run jobs; each run is a machine of its own, so two may run side by side.
pub struct Lab {
    outer: Outer,
}

/// Files of the host, and their names in the outer machine.
pub type Files = Vec<(PathBuf, String)>;

/// What to run.
pub struct LabJob<'a> {
    /// A shell script, run in `/axvm`.
    pub script: String,
    /// Host files and their names below `/axvm`.
    pub files: Files,
    /// After so long the job is ended.
    pub limit: Option<Duration>,
    /// Where the job's input and output go.
    pub console: Console,
    /// Told each line that the job sends to the host by `echo axvm-lab: note ... >/dev/ttyS0`.
    pub note: &'a dyn Fn(&str),
}

/// Where the job's input and output go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console {
    /// Stdin and stdout; a terminal becomes the job's terminal.
    Attached,
    /// Into the report only.
    Kept,
}

/// What came of it.
pub struct LabReport {
    /// How the run ended.
    pub end: End,
    /// What the job printed.
    pub console: Vec<u8>,
    /// What the outer machine printed.
    pub outer_console: String,
    /// The disk with the job's files.
    pub payload: Payload,
    /// Whether the job began at all.
    pub started: bool,
    /// A first try that the outer machine did not survive, if there was one.
    pub first_try: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The job ended with this code.
    Exit(u8),
    /// The job was ended by its time limit; the outer machine was well.
    TimeLimit(Duration),
    /// The outer machine failed, not the job: why, and its last words.
    OuterDied(String),
}

impl Lab {
    /// Prepares QEMU, the outer machine and its saved state. Slow the first time, quick ever after.
    pub fn open() -> Result<Self> {
        let _lock = crate::assets::lock()?;
        Ok(Self { outer: Outer::prepare()? })
    }

    /// Runs a job; once more if the outer machine died under it.
    pub fn run(&self, job: &LabJob) -> Result<LabReport> {
        let mut report = session::run(&self.outer, job)?;
        if let End::OuterDied(why) = &report.end
            && (job.console == Console::Kept || !report.started)
        {
            eprintln!("The lab's outer machine failed, trying once more: {}", why.lines().next().unwrap_or_default());
            let first_try = Some(why.clone());
            report = LabReport { first_try, ..self.run_once(job)? };
        }
        Ok(report)
    }

    /// Runs a job, whatever becomes of the outer machine.
    pub fn run_once(&self, job: &LabJob) -> Result<LabReport> {
        {
            let _lock = crate::assets::lock()?;
            self.outer.ensure_state()?;
        }
        session::run(&self.outer, job)
    }
}

/// A word that the shell takes as it is.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_survive_the_shell() {
        let word = "it's $HOME; a\\b \"c\"";
        let said = crate::tool::output(crate::tool::tool("sh").args(["-c", &format!("printf %s {}", quoted(word))]));
        assert_eq!(said.unwrap(), word);
    }
}
