//! `vsock-trial`: a program of ours for both sides of the lab, made by the compiler alone.
//!
//! ```text
//!   files/trial/vsock.rs --rustc, static--> cache/vsock-trial-KEY
//! ```

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::sweep;
use crate::progress::Progress;
use crate::project::{cache, fingerprint, root};
use crate::tool::{output, tool};

const SOURCE: &str = include_str!("../../files/trial/vsock.rs");

/// The program, static: neither side has a C library.
pub fn vsock_trial() -> Result<PathBuf> {
    let name = format!("vsock-trial-{}", fingerprint(&[SOURCE.as_bytes()]));
    let path = cache().join(&name);
    if !path.exists() {
        let _progress = Progress::spinner("Compiling vsock-trial");
        sweep("vsock-trial-");
        let unfinished = cache().join("vsock-trial.unfinished");
        let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
        let mut command = tool(&rustc);
        command.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"]);
        output(command.arg(&unfinished).arg(root().join("xtask/files/trial/vsock.rs")))?;
        std::fs::rename(&unfinished, &path).with_context(|| format!("Cannot put {name} in place"))?;
    }
    Ok(path)
}
