//! `cargo xtask tidy`: the house rules, checked.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::progress::print;
use crate::{project, tidy};

/// Check the house rules: floors, heads, sizes, words, unsafe, and that the book says what the code does
#[derive(Args)]
pub struct Tidy {}

impl Tidy {
    /// Checks all of them.
    pub fn run(self) -> Result<ExitCode> {
        let complaints = tidy::check(project::root())?;
        for complaint in &complaints {
            print(format_args!("{complaint}\n"));
        }
        let heads = tidy::heads(project::root())?;
        print(format_args!(
            "{} files open with what they are; {} of them have a picture, {} name a specification\n",
            heads.files, heads.with_picture, heads.with_specification
        ));
        Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
