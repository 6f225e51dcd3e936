//! The book as HTML: mdbook makes it, and this program leads its links.
//!
//! ```text
//!   docs/*.md, docs/SUMMARY.md, book.toml --mdbook--> [context, book] as JSON --links--> book --mdbook--> target/book
//!                                                                                  every link of the HTML is followed
//! ```
//!
//! Spec: mdBook, "Preprocessors". Left out: links of the web.

pub mod followed;
pub mod links;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{project, tool};

/// What makes HTML of Markdown, and how to get it.
const MDBOOK: &str = "mdbook";

/// Whether mdbook is here.
pub fn is_possible() -> bool {
    tool::find(MDBOOK).is_some()
}

/// Builds the book and follows its links. Where its first page is.
pub fn build() -> Result<PathBuf> {
    if !is_possible() {
        bail!("Cannot build the book: mdbook is not there. Get it: cargo install mdbook --locked --version 0.4.52");
    }
    tool::output(tool::tool(MDBOOK).arg("build").arg(project::root()))?;
    // As book.toml says: from there, links to the code lead to this clone.
    let out = project::root().join("target/book");
    let lost = followed::lost(&out)?;
    if !lost.is_empty() {
        bail!("The book has links that lead nowhere:\n{}", lost.join("\n"));
    }
    Ok(out.join("index.html"))
}
