//! One file per command.

pub mod boot;
pub mod fuzz;
pub mod lab;
pub mod test;
pub mod tidy;
