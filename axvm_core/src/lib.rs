//! What the user says to AxVM, and how it is understood. The rest of the program is in `main.rs`.
//!
//! ```text
//!   cli       what was typed              --+
//!   settings  what was typed, or filed    <-+--+
//!   config    what will be done           <----+     pages   what AxVM prints about itself
//! ```
//!
//! It is a library so that tests and fuzzing reach it.
#![forbid(unsafe_code)]

pub mod cli;
pub mod config;
pub mod error;
pub mod pages;
pub mod settings;
