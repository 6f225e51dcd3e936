//! The repository's own files: locks that fit the manifests, and a tree that the tests leave as it was.

use anyhow::{Context, Result, ensure};

use super::{Outcome, cargo};
use crate::project;
use crate::tool::{output, tool};

/// The manifests with a lock of their own, and what brings it up to date.
const WORKSPACES: [&str; 2] = ["Cargo.toml", "fuzz/Cargo.toml"];

/// Whether each `Cargo.lock` in git is what its manifests ask for: one question for each.
pub fn locks() -> Outcome {
    let mut outcome = Outcome::default();
    for manifest in WORKSPACES {
        match locked(manifest) {
            Ok(()) => outcome.passed += 1,
            Err(error) => outcome.failed.push(format!("{error:#}")),
        }
    }
    outcome
}

/// Fails if cargo would change the lock beside this manifest.
pub fn locked(manifest: &str) -> Result<()> {
    cargo::ask(&["metadata", "--quiet", "--locked", "--format-version", "1", "--manifest-path", manifest], "")
        .with_context(|| {
            let lock = manifest.replace(".toml", ".lock");
            format!("{lock} does not fit. Bring it up to date: cargo update --workspace --manifest-path {manifest}")
        })
}

/// What git says of the tree; none outside of a git checkout.
pub fn status() -> Option<String> {
    output(tool("git").args(["status", "--porcelain"]).current_dir(project::root())).ok()
}

/// Whether the tree is as it was `before`.
pub fn unchanged(before: Option<&str>) -> Outcome {
    match (before, status()) {
        (Some(before), Some(after)) => Outcome::of(same(before, &after)),
        _ => Outcome::skip("this is no git checkout".to_owned()),
    }
}

fn same(before: &str, after: &str) -> Result<()> {
    let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
    ensure!(new.is_empty(), "The tests left these in the tree: {}", new.join(", "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_test_leaves_is_named_and_what_was_there_is_not() {
        assert!(same(" M a\n", " M a\n").is_ok());
        let error = same(" M a\n", " M a\n?? b/c\n M fuzz/Cargo.lock\n").unwrap_err().to_string();
        assert_eq!(error, "The tests left these in the tree: ?? b/c,  M fuzz/Cargo.lock");
    }
}
