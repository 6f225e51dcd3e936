//! The house rules that a program can check.
//!
//! | rule | where |
//! |---|---|
//! | a crate stands only on lower floors | [`floors`] |
//! | every dependency says why it is there | [`floors`] |
//! | each file opens with a head, is not too long, has no unfinished business | [`sources`] |
//! | `unsafe` is forbidden where the plan says | [`sources`] |
//! | modules of a crate do not stand in a circle | [`circles`] |
//! | a memory ordering stronger than usual says why | [`sources`] |
//! | the field's words instead of pictures | [`words`] |
//! | pages are wrapped | [`pages`] |
//! | the book's table of contents has every page | [`summary`] |
//! | what a page quotes, a source says | [`messages`] |
//! | the threat model names what the code has | [`threats`] |
//!
//! Each rule is a function from texts to complaints, so that its tests can show it failing.

pub mod circles;
pub mod floors;
pub mod lexer;
pub mod messages;
pub mod pages;
pub mod said;
pub mod sources;
pub mod summary;
pub mod threats;
pub mod words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A file, source or page: path relative to the root, and text.
pub struct Source {
    /// As complaints name it.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// Applies every rule to the repository; what comes back is wrong.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let mut complaints = floors::undocumented(&read(&root.join("Cargo.toml"))?);
    let mut all = Vec::new();
    for krate in crates(root)? {
        let name = krate.file_name().unwrap_or_default().to_string_lossy().into_owned();
        complaints.extend(floors::upward(&name, &read(&krate.join("Cargo.toml"))?));
        let sources = sources_of(&krate, root)?;
        complaints.extend(sources.iter().flat_map(sources::complaints));
        complaints.extend(sources::unsafe_not_forbidden(&name, &sources));
        complaints.extend(circles::complaints(&name, &sources));
        complaints.extend(words::complaints(&sources));
        all.extend(sources);
    }
    complaints.extend(check_pages(root, &all)?);
    Ok(complaints)
}

/// The rules about the book, which knows all of the code.
fn check_pages(root: &Path, sources: &[Source]) -> Result<Vec<String>> {
    let messages = messages::Sources::of(sources.iter());
    let mut complaints = words::not_shown(&read(&root.join("CONTRIBUTING.md"))?);
    let pages = pages::all(root)?;
    complaints
        .extend(summary::complaints(&read(&root.join(summary::SUMMARY))?, pages.iter().map(|page| page.path.as_str())));
    for page in &pages {
        complaints.extend(pages::too_wide(page));
        if page.path.starts_with("docs/") {
            complaints.extend(messages.complaints(&page.path, &page.text));
        }
    }
    complaints.extend(threats::complaints(&read(&root.join("docs/threat-model.md"))?, sources));
    Ok(complaints)
}

/// How many files open with what, over all crates.
pub fn heads(root: &Path) -> Result<sources::Heads> {
    let mut all = Vec::new();
    for krate in crates(root)? {
        all.extend(sources_of(&krate, root)?);
    }
    Ok(sources::heads(&all))
}

fn sources_of(krate: &Path, root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    collect(krate, root, &mut sources)?;
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(sources)
}

/// Directories of the root with a Cargo.toml.
fn crates(root: &Path) -> Result<Vec<PathBuf>> {
    let entries = root.read_dir().with_context(|| format!("Cannot list {}", root.display()))?;
    let mut dirs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    dirs.retain(|dir| dir.join("Cargo.toml").is_file());
    dirs.sort();
    Ok(dirs)
}

fn collect(dir: &Path, root: &Path, sources: &mut Vec<Source>) -> Result<()> {
    for entry in dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if !matches!(name.as_str(), "target" | "corpus" | "artifacts") && !name.starts_with('.') {
                collect(&path, root, sources)?;
            }
        } else if name.ends_with(".rs") {
            let relative = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            sources.push(Source { path: relative, text: read(&path)? });
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))
}

/// The part of a source before its unit tests.
fn before_tests(text: &str) -> &str {
    let tests = text.find("\n#[cfg(test)]\nmod ").map(|at| at + 1);
    &text[..tests.unwrap_or(text.len())]
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}
