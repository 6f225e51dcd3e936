//! Pages of the book and of the root: found, and not wider than an editor beside another.
//!
//! Tables, blocks of code and lines that have no place to break (an address) may be wider.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Source, read};

/// Characters in a line.
const WIDTH: usize = 120;

/// All pages: those of the root, of `docs` and of `packaging`.
pub fn all(root: &Path) -> Result<Vec<Source>> {
    let mut pages = Vec::new();
    for dir in [".", "docs", "docs/commands", "docs/decisions", "docs/learn", "packaging"] {
        let dir = root.join(dir);
        for entry in dir.read_dir().with_context(|| format!("Cannot list {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let relative = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                pages.push(Source { path: relative.trim_start_matches("./").to_owned(), text: read(&path)? });
            }
        }
    }
    pages.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(pages)
}

/// Lines that should have been broken.
pub fn too_wide(page: &Source) -> Vec<String> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (number, line) in page.text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        let text = line.trim_start().trim_start_matches(['*', '-', '>', ' ']);
        let width = line.chars().count();
        if !in_code && !text.starts_with('|') && width > WIDTH && text.contains(' ') {
            found.push(format!("{}:{}: {width} characters, the limit is {WIDTH}", page.path, number + 1));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_broken_must_be() {
        let (long, word) = ("word ".repeat(30), "w".repeat(130));
        let text = format!("# Head\n\n{long}\n* {long}\n\n| {long} |\n```sh\n{long}\n```\n{word}\n* {word}\n");
        let page = Source { path: "docs/a.md".into(), text };
        let limit = "150 characters, the limit is 120";
        assert_eq!(
            too_wide(&page),
            [format!("docs/a.md:3: {limit}"), "docs/a.md:4: 152 characters, the limit is 120".into()]
        );
    }
}
