//! Links of a page: is there a file, and in it a heading, where each points?
//!
//! Left out: addresses of the web.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::Page;
use crate::tidy::summary;

/// Links that lead nowhere.
pub fn complaints(page: &Page, root: &Path) -> Vec<String> {
    let here = root.join(&page.name);
    let nowhere = targets(&page.text).filter(|target| !resolves(target, &here, &page.text));
    nowhere.map(|target| format!("{}: no {target}", page.name)).collect()
}

fn resolves(target: &str, here: &Path, text: &str) -> bool {
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = here.parent().unwrap_or(here).join(file);
    match (file.is_empty(), heading.is_empty()) {
        (false, true) => path.exists(),
        (true, _) => headings(text).any(|name| name == heading),
        (false, false) => fs::read_to_string(path).is_ok_and(|text| headings(&text).any(|name| name == heading)),
    }
}

/// Pages of the book that no other page leads to.
pub fn orphans(pages: &[Page], root: &Path) -> Vec<String> {
    // The table of contents has them all; but on a forge, pages are read without it.
    let pages = || pages.iter().filter(|page| page.name != summary::SUMMARY);
    let led_to: BTreeSet<PathBuf> = pages()
        .flat_map(|page| {
            let here = root.join(&page.name).parent().unwrap_or(root).to_owned();
            targets(&page.text)
                .filter_map(|target| here.join(target.split('#').next()?).canonicalize().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let of_book = pages().filter(|page| page.name.starts_with("docs/"));
    let lost = of_book.filter(|page| root.join(&page.name).canonicalize().is_ok_and(|path| !led_to.contains(&path)));
    lost.map(|page| format!("{}: no page leads here; docs/README.md should", page.name)).collect()
}

/// Where the links of a page point, the web left out.
fn targets(text: &str) -> impl Iterator<Item = String> {
    let text = prose(text);
    let all = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let local = all.filter(|target| !target.contains("://") && !target.is_empty());
    local.map(str::to_owned).collect::<Vec<_>>().into_iter()
}

/// A page without its fenced blocks.
pub fn prose(text: &str) -> String {
    let mut inside = false;
    let outside = text.lines().filter(|line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    });
    outside.map(|line| format!("{line}\n")).collect()
}

/// Names of a page's headings, as links write them.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).lines().filter_map(|line| line.strip_prefix('#').map(name)).collect::<Vec<_>>().into_iter()
}

fn name(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'));
    kept.map(|char| if char == ' ' { '-' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_nothing_is_found() {
        let text =
            "# A page: two\n[a](b.md) [c](#a-page-two) [d](#three) [e](https://x.y) [f](mod.rs)\n```\n[g](h.md)\n```\n";
        let page = Page { name: "xtask/src/testing/pages/mod.md".into(), text: text.into() };
        assert_eq!(complaints(&page, crate::project::root()).len(), 2);
    }

    #[test]
    fn a_page_that_nothing_leads_to_is_found() {
        let page = |name: &str, text: &str| Page { name: name.into(), text: text.into() };
        let pages = [
            page("docs/README.md", "[a](memory.md#x)"),
            page("docs/memory.md", "[b](README.md)"),
            page("docs/console.md", ""),
        ];
        let lost = orphans(&pages, crate::project::root());
        assert!(lost.len() == 1 && lost[0].starts_with("docs/console.md"), "{lost:?}");
    }
}
