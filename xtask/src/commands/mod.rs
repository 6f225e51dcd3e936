//! One file per command.

pub mod boot;
pub mod lab;
pub mod tidy;
