//! One file per command.

pub mod bench;
pub mod book;
pub mod boot;
pub mod build;
pub mod clean;
pub mod fuzz;
pub mod lab;
pub mod package;
pub mod test;
pub mod tidy;
