//! The developer commands of AxVM: `cargo xtask boot`, `test`, `package` and others.
//!
//! ```text
//!   commands   boot, test, fuzz, .. as typed     assets    kernels, initrd, root disk
//!   lab        AxVM on a hardware-like KVM       archive   cpio, bzImage, compression
//!   program    AxVM itself, built               packages  .deb, tarball
//!   book       docs/ as HTML                   testing, tidy   what must hold
//! ```

#![forbid(unsafe_code)]

pub mod archive;
pub mod assets;
pub mod bench;
pub mod book;
pub mod checks;
pub mod commands;
pub mod lab;
pub mod packages;
pub mod program;
pub mod progress;
pub mod project;
pub mod scenarios;
pub mod testing;
pub mod tidy;
pub mod tool;
