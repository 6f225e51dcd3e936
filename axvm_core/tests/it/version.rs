//! What `axvm --version` says: commit and date of a clone, and neither for a source that is unpacked somewhere.
//!
//! ```text
//!   clone                               --> 0.1.0 (5a094a4a1b2c 2026-11-27)
//!   tarball, in another project's clone --> 0.1.0
//! ```

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{AXVM, skip};

#[allow(dead_code, reason = "its main is cargo's")]
#[path = "../../build.rs"]
mod build;

#[test]
fn the_version_names_commit_and_date() {
    let output = Command::new(AXVM).arg("--version").output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let version = concat!("axvm ", env!("CARGO_PKG_VERSION"));
    let commit = build::commit(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert_eq!(said.trim_end(), commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})")));
}

#[test]
fn a_source_inside_of_another_project_has_no_commit_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let clone = directory.path().join("clone");
    fs::create_dir_all(clone.join("unpacked/axvm_core")).unwrap();
    fs::create_dir_all(clone.join("axvm_core")).unwrap();
    let date = "2026-01-02T03:04:05+00:00";
    let git = |words: &str| {
        let words = ["-C", clone.to_str().unwrap(), "-c", "user.name=a", "-c", "user.email=a@b"]
            .into_iter()
            .chain(words.split(' '));
        Command::new("git")
            .args(words)
            .env("GIT_COMMITTER_DATE", date)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    if !git("init -q") {
        return skip("no git: the commit in axvm --version");
    }
    assert_eq!(build::commit(&clone.join("axvm_core")), None, "nothing is committed yet");
    assert!(git("commit -q --allow-empty -m x"));
    let said = build::commit(&clone.join("axvm_core")).unwrap();
    let (hash, date) = said.split_once(' ').unwrap();
    assert!(hash.len() == 12 && hash.chars().all(|digit| digit.is_ascii_hexdigit()), "{said}");
    assert_eq!(date, "2026-01-02");
    assert_eq!(build::commit(&clone.join("unpacked/axvm_core")), None);
}
