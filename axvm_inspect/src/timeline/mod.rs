//! The timeline of a machine: what its threads recorded, as a file for people and programs, and what such a file tells.
//!
//! ```text
//!   Record --chrome--> FILE, one event a line        ui.perfetto.dev, chrome://tracing
//!                        |
//!                        '--read--> Timeline --summary--> text
//!                                            --page-----> a page for a browser
//! ```
//!
//! Format: the Trace Event Format of Chrome ("JSON Array Format"), which Perfetto reads, too.
//! Left out: files of other programs.

pub mod advice;
pub mod chrome;
mod console;
pub mod functions;
mod line;
pub mod page;
pub mod phases;
pub mod read;
pub mod summary;
