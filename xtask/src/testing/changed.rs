//! Which crates a change touches: those with changed files, and all that depend on them.
//!
//! ```text
//!   git: files that differ from the base --> their crates --> crates whose manifests name these, and so on
//!
//!   base   where this branch left the main one; on the main branch itself the last commit,
//!          or, if nothing has changed since, the one before
//! ```
//!
//! A change of what all crates share (the workspace's manifest and lock, cargo's settings) touches all of them.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};

use crate::project;
use crate::tool::{output, tool};

/// Where the main branch may be.
const MAIN: [&str; 4] = ["origin/HEAD", "origin/main", "main", "master"];
/// What every crate is built with.
const SHARED: [&str; 3] = ["Cargo.toml", "Cargo.lock", ".cargo/config.toml"];

/// What a change touches.
#[derive(Debug, PartialEq, Eq)]
pub struct Changed {
    /// What the tree is compared with, as a user reads it.
    pub base: String,
    /// Crates with changed files.
    pub changed: BTreeSet<String>,
    /// These, and all crates that depend on them.
    pub touched: BTreeSet<String>,
}

impl Changed {
    /// Asks git, and the manifests.
    pub fn find() -> Result<Changed> {
        let crates = crates()?;
        let (base, base_name) = base()?;
        let differing = git(&["diff", "--name-only", &base])?;
        let new = git(&["ls-files", "--others", "--exclude-standard"])?;
        let files: Vec<&str> = differing.lines().chain(new.lines()).collect();
        let changed = owners(&files, &crates);
        Ok(Changed { base: base_name, touched: with_dependents(&changed, &crates), changed })
    }

    /// One line for the user: what was changed, and what else it touches.
    pub fn line(&self) -> String {
        let list = |names: &[&String]| names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        let also: Vec<&String> = self.touched.difference(&self.changed).collect();
        let changed: Vec<&String> = self.changed.iter().collect();
        match (changed.is_empty(), also.is_empty()) {
            (true, _) => format!("No crate has changed since {}", self.base),
            (false, true) => format!("Changed since {}: {}", self.base, list(&changed)),
            (false, false) => {
                format!("Changed since {}: {}; these depend on it: {}", self.base, list(&changed), list(&also))
            }
        }
    }
}

/// A crate of the workspace: its name, which is its directory's, and its manifest.
struct Crate {
    name: String,
    manifest: String,
}

fn crates() -> Result<Vec<Crate>> {
    let root = project::root();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("Cannot read Cargo.toml")?;
    let members = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    let (members, _) = members.context("Cannot find the members of the workspace in Cargo.toml")?;
    let names = members.split(',').map(|name| name.trim().trim_matches('"')).filter(|name| !name.is_empty());
    let read = |name: &str| {
        let path = root.join(name).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        Ok(Crate { name: name.to_owned(), manifest })
    };
    names.map(read).collect()
}

/// The commit to compare with, and what to call it.
fn base() -> Result<(String, String)> {
    let head = git(&["rev-parse", "HEAD"])?;
    let clean = git(&["status", "--porcelain"])?.is_empty();
    let left = MAIN.iter().find_map(|main| Some((git(&["merge-base", "HEAD", main]).ok()?, *main)));
    let short = |commit: &str| commit.chars().take(7).collect::<String>();
    match left {
        Some((commit, main)) if commit != head => {
            let name = format!("{} (where this branch left {main})", short(&commit));
            Ok((commit, name))
        }
        _ if clean => {
            let before = git(&["rev-parse", "HEAD~1"])?;
            Ok((before.clone(), format!("{} (the commit before the last)", short(&before))))
        }
        _ => Ok((head.clone(), format!("{} (the last commit)", short(&head)))),
    }
}

fn git(arguments: &[&str]) -> Result<String> {
    output(tool("git").args(arguments).current_dir(project::root())).map(|said| said.trim_end().to_owned())
}

/// The crates that these files belong to.
fn owners(files: &[&str], crates: &[Crate]) -> BTreeSet<String> {
    let all = files.iter().any(|file| SHARED.contains(file));
    let has_changed = |krate: &&Crate| {
        all || files.iter().any(|file| file.strip_prefix(&krate.name).is_some_and(|rest| rest.starts_with('/')))
    };
    crates.iter().filter(has_changed).map(|krate| krate.name.clone()).collect()
}

/// All that is built anew when these are.
fn with_dependents(changed: &BTreeSet<String>, crates: &[Crate]) -> BTreeSet<String> {
    let mut touched = changed.clone();
    loop {
        let uses = |krate: &&Crate| krate.manifest.lines().filter_map(dependency).any(|name| touched.contains(name));
        let more: Vec<String> = crates.iter().filter(uses).map(|krate| krate.name.clone()).collect();
        let before = touched.len();
        touched.extend(more);
        if touched.len() == before {
            return touched;
        }
    }
}

/// The name in a line such as `axvm_arch.workspace = true`. Lines of other sections name no crate of ours.
fn dependency(line: &str) -> Option<&str> {
    line.split(['.', '=', ' ']).next().filter(|name| name.starts_with("axvm_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn house() -> Vec<Crate> {
        [
            ("axvm_arch", ""),
            ("axvm_boot", "[package]\nname = \"axvm_boot\"\n[dependencies]\naxvm_arch.workspace = true\n"),
            ("axvm_core", "[dev-dependencies]\naxvm_boot = { path = \"../axvm_boot\" }\n"),
            ("axvm_socket", ""),
        ]
        .map(|(name, manifest)| Crate { name: name.to_owned(), manifest: manifest.to_owned() })
        .into()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_change_touches_what_stands_on_it() {
        let changed = owners(&["axvm_arch/src/lib.rs", "docs/README.md", "axvm_socketeer/x"], &house());
        assert_eq!(changed, set(&["axvm_arch"]));
        assert_eq!(with_dependents(&changed, &house()), set(&["axvm_arch", "axvm_boot", "axvm_core"]));
        assert_eq!(with_dependents(&set(&["axvm_core"]), &house()), set(&["axvm_core"]));
    }

    #[test]
    fn what_all_share_touches_all() {
        assert_eq!(owners(&["Cargo.lock"], &house()).len(), 4);
        assert!(owners(&["README.md"], &house()).is_empty());
    }

    #[test]
    fn the_line_names_what_was_changed_and_what_depends_on_it() {
        let changed = |changed: &[&str], touched: &[&str]| {
            Changed { base: "abc".into(), changed: set(changed), touched: set(touched) }.line()
        };
        assert_eq!(changed(&[], &[]), "No crate has changed since abc");
        assert_eq!(changed(&["a"], &["a"]), "Changed since abc: a");
        assert_eq!(changed(&["a"], &["a", "b", "c"]), "Changed since abc: a; these depend on it: b, c");
    }

    #[test]
    fn this_workspace_is_read() {
        let crates = crates().unwrap();
        let touched = with_dependents(&set(&["axvm_arch"]), &crates);
        assert!(touched.contains("axvm_core") && !touched.contains("axvm_socket"), "{touched:?}");
        assert!(crates.iter().any(|krate| krate.name == "xtask"));
    }
}
