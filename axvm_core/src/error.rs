//! What is wrong with the words of the user: options, settings file.
//!
//! ```text
//!   --cpus 20,sockets=3   vm.toml:7:8    which option, or which place of the file
//!   : ... make 18, not 20                why
//!   ; try ...                            what would be right
//! ```

use std::io;
use std::path::PathBuf;

use axvm_boot::plan::PlanError;
use thiserror::Error;

/// The user asks for something that cannot be.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// No kernel was named and none lies where one is looked for.
    #[error(
        "No kernel: neither ./bzImage nor ../bzImage exists. Name one with --kernel FILE, \
         or let `cargo xtask boot` fetch a stock kernel"
    )]
    NoKernel,
    /// The value of one option.
    #[error("{option} {text}: {why}")]
    Option {
        /// The option, as it is typed.
        option: String,
        /// Its value, as it was typed.
        text: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },
    /// The words of the command line do not go together, or not all are there.
    #[error("{what}: {why}")]
    Words {
        /// The option or command.
        what: String,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// A word of another program, or of none.
    #[error("There is no {kind} {word}: {meant}")]
    Word {
        /// What it would be: a command, an option.
        kind: &'static str,
        /// The word, as it was typed.
        word: String,
        /// What was meant.
        meant: String,
    },
    /// There is no place for all parts of the machine.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The settings file cannot be read.
    #[error("Cannot read settings {}: {why}", path.display())]
    File {
        /// The path given to --config.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The settings file says what cannot be.
    #[error("Cannot use settings {}:{line}:{column}: {why}", path.display())]
    Text {
        /// The path given to --config.
        path: PathBuf,
        /// Line of the mistake, from 1.
        line: usize,
        /// Character of the line, from 1.
        column: usize,
        /// What is wrong there, and what would be right.
        why: String,
    },
    /// What was asked for cannot be printed.
    #[error("Cannot print {what}; send standard output to a place that can be written")]
    Output {
        /// The page.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The settings file has no words for it.
    #[error("Cannot write these arguments as a settings file: {0}; use names in UTF-8")]
    Unwritable(String),
}

impl ConfigError {
    /// 1 where the host is in the way, 2 where the words are wrong.
    pub fn exit_code(&self) -> u8 {
        match self {
            ConfigError::File { .. } | ConfigError::Output { .. } => 1,
            _ => 2,
        }
    }

    /// There is no such word; this was meant.
    pub fn word(kind: &'static str, word: &str, meant: impl ToString) -> ConfigError {
        ConfigError::Word { kind, word: word.to_owned(), meant: meant.to_string() }
    }

    /// There is more or less than `what` takes.
    pub fn words(what: impl ToString, why: impl ToString) -> ConfigError {
        ConfigError::Words { what: what.to_string(), why: why.to_string() }
    }

    /// The value `text` of `option` is wrong.
    pub fn option(option: &str, text: impl ToString, why: impl ToString) -> ConfigError {
        ConfigError::Option { option: option.to_owned(), text: text.to_string(), why: why.to_string() }
    }
}
