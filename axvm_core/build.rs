//! What `axvm --version` says: the version, and commit and date of the source if git knows them. And the agent of guests,
//! which the program carries ([`agent`]).
//!
//! ```text
//!   git: HEAD, its date --> AXVM_VERSION = "0.1.0 (5a094a4a1b2c 2026-11-27)"
//!   no git, or a source that is not its --> "0.1.0"
//! ```
//!
//! The same commit gives the same words, by any user, at any time and place: twelve digits always, and the date is the
//! commit's. It runs again when HEAD moves, and never else. Left out: whether files differ from the commit, for that
//! would have to be asked at each build.

#[path = "build_agent.rs"]
mod agent;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let said = manifest
        .and_then(|manifest| commit(&manifest))
        .map_or_else(|| version.clone(), |commit| format!("{version} ({commit})"));
    println!("cargo::rustc-env=AXVM_VERSION={said}");
    agent::build();
}

/// Commit and date of the source that the crate at `manifest` belongs to. None where there is no git, or where it tells of another project, in whose directory this one lies.
pub fn commit(manifest: &Path) -> Option<String> {
    let root = manifest.parent()?.canonicalize().ok()?;
    let git = |words: &[&str]| {
        let output = Command::new("git").arg("-C").arg(&root).args(words).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(text.trim().to_owned())
    };
    if Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()? != root {
        return None;
    }
    // A file that is not there would make this run each time.
    for name in ["HEAD", "logs/HEAD"] {
        let path = root.join(git(&["rev-parse", "--git-path", name])?);
        if path.exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    let hash = git(&["rev-parse", "HEAD"])?;
    let date = git(&["log", "-1", "--format=%cs"])?;
    Some(format!("{} {date}", hash.get(..12)?))
}
