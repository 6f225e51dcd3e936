//! `cargo xtask book`: the book as HTML.

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::book;
use crate::progress::print;

/// Build the book in docs/ as HTML, with mdbook, and follow its links
#[derive(Args)]
pub struct Book {
    #[command(subcommand)]
    step: Option<Step>,
}

#[derive(Subcommand)]
enum Step {
    /// For mdbook: lead the links that leave the book
    #[command(hide = true)]
    Links {
        /// `supports RENDERER`: may it be asked for this?
        words: Vec<String>,
    },
}

impl Book {
    /// Builds it, or a part of it.
    pub fn run(self) -> Result<ExitCode> {
        match self.step {
            None => print(format_args!("{}\n", book::build()?.display())),
            Some(Step::Links { words }) if words.is_empty() => book::links::answer(io::stdin().lock(), io::stdout())?,
            Some(Step::Links { .. }) => {}
        }
        Ok(ExitCode::SUCCESS)
    }
}
