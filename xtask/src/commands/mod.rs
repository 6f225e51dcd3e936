//! One file per command.

pub mod boot;
pub mod lab;
pub mod test;
pub mod tidy;
