//! What the user says to AxVM, and how it is understood. The rest of the program is in `main.rs`.
//!
//! ```text
//!   cli       what was typed              --+
//!   settings  what was typed, or filed    <-+--+
//!   config    what will be done           <----+     pages   what AxVM prints about itself
//!
//!   notify    what AxVM tells the service manager
//!   speech    how answers and errors are said
//! ```
//!
//! It is a library so that tests and fuzzing reach it.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod error;
pub mod notify;
pub mod pages;
pub mod settings;
pub mod speech;
