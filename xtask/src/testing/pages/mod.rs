//! The book, tried: every session shown in it is typed, every option and link in it is looked up.
//!
//! ```text
//!   page --blocks--> ```console   $ command, what it prints    --session--> a shell in a scratch directory
//!        --links---> [text](file#heading)                      --> there is such a file, and such a heading
//!        --options-> --name                                    --> a program has it, and each option has a page
//! ```
//!
//! Words after `console`: `numbers` lets numbers and spaces differ, `lab` and `cargo` say that the session needs more than
//! this (Linux in the lab, the whole build) and is not typed here. In the expected output `...` is any text, and alone
//! on a line any lines.

mod blocks;
mod guest;
mod links;
mod options;
mod session;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use anyhow::{Context, Result};

use self::session::Session;
use super::{Outcome, cargo};
use crate::{book, project};

/// A page of the book.
pub struct Page {
    /// Its path from the root of the repository.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Tries the whole book.
pub fn check() -> Result<Outcome> {
    cargo::ask(&["build", "--quiet", "-p", "axvm_core", "-p", "axvm_guest", "--bins", "--examples"], "")?;
    let programs = project::target().join("debug");
    let pages = read(project::root())?;
    let mut outcome = Outcome::default();
    for page in &pages {
        let complaints = links::complaints(page, project::root());
        count(&mut outcome, complaints);
    }
    count(&mut outcome, links::orphans(&pages, project::root()));
    count(&mut outcome, options::complaints(&pages, &options::programs(&programs)?));
    match book::is_possible() {
        true => count(&mut outcome, book::build().err().map(|error| format!("{error:#}")).into_iter().collect()),
        false => outcome.skipped.push("no mdbook: the book was not built as HTML".to_owned()),
    }
    for tried in side_by_side(&pages, &programs) {
        let Outcome { passed, failed, skipped } = tried?;
        outcome.passed += passed;
        outcome.failed.extend(failed);
        outcome.skipped.extend(skipped);
    }
    Ok(outcome)
}

/// The sessions of all pages, two pages at a time: most of the time they sleep.
fn side_by_side(pages: &[Page], programs: &Path) -> Vec<Result<Outcome>> {
    let queue = Mutex::new(pages.iter());
    let next = || queue.lock().expect("no thread panics with it").next();
    let work = || {
        let mut done = Vec::new();
        while let Some(page) = next() {
            done.push(sessions(page, programs).with_context(|| format!("Cannot try {}", page.name)));
        }
        done
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut done = work();
        done.extend(other.join().expect("its panic is ours"));
        done
    })
}

fn count(outcome: &mut Outcome, complaints: Vec<String>) {
    outcome.passed += usize::from(complaints.is_empty());
    outcome.failed.extend(complaints);
}

/// All pages: those of docs/, and those in the root and beside what they are about.
fn read(root: &Path) -> Result<Vec<Page>> {
    let mut files = Vec::new();
    for dir in ["", "docs", "docs/commands", "docs/decisions", "docs/learn", "packaging"] {
        let dir = root.join(dir);
        let entries = dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))?;
        let paths = entries.flatten().map(|entry| entry.path());
        files.extend(paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    files.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
        Ok(Page { name, text })
    };
    files.into_iter().map(read).collect()
}

/// Types the sessions of a page, in order, in one shell: what one leaves behind, the next finds.
fn sessions(page: &Page, programs: &Path) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let blocks = blocks::find(&page.text);
    if blocks.is_empty() {
        return Ok(outcome);
    }
    let mut session = Session::start(&page.name.replace('/', "-"), programs)?;
    blocks::files(&page.text).iter().try_for_each(|(name, text)| session.give(name, text))?;
    for block in &blocks {
        let reason = block.elsewhere().or_else(|| session::missing(block));
        match reason {
            Some(why) => outcome.skipped.push(format!("{}:{}: {why}", page.name, block.line)),
            None => match session.hold(block) {
                Ok(()) => outcome.passed += 1,
                Err(error) => outcome.failed.push(format!("{}: {error:#}", page.name)),
            },
        }
    }
    Ok(outcome)
}
