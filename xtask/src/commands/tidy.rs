//! `cargo xtask tidy`: the house rules, checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::{project, tidy};

/// Check the house rules: floors, heads, sizes, unsafe, unfinished business
#[derive(Args)]
pub struct Tidy {}

impl Tidy {
    /// Checks all of them.
    pub fn run(self) -> Result<ExitCode> {
        let complaints = tidy::check(project::root())?;
        for complaint in &complaints {
            println!("{complaint}");
        }
        Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
