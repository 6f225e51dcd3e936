//! One file per command.

pub mod boot;
pub mod lab;
