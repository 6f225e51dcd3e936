//! The book's table of contents has every page of `docs/`, once, and no other.
//!
//! ```text
//!   docs/SUMMARY.md    - [Title](path.md)        mdbook shows what stands here, in this order, and nothing else
//! ```
//!
//! Spec: mdBook, "SUMMARY.md".

use std::collections::BTreeMap;

/// The page itself.
pub const SUMMARY: &str = "docs/SUMMARY.md";

/// What it has twice, lacks, or has without a page; `pages` are all paths of pages.
pub fn complaints<'a>(summary: &str, pages: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut listed = BTreeMap::new();
    let links = summary.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for link in links.filter(|link| !link.is_empty()) {
        *listed.entry(format!("docs/{link}")).or_insert(0) += 1;
    }
    let of_book = pages.filter(|path| path.starts_with("docs/") && *path != SUMMARY);
    let lacks = of_book.filter(|path| listed.remove(*path) != Some(1));
    let mut complaints: Vec<String> = lacks.map(|path| format!("{SUMMARY}: {path} must stand there, once")).collect();
    complaints.extend(listed.into_keys().map(|path| format!("{SUMMARY}: there is no page {path}")));
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_stands_there_once() {
        let pages = || ["docs/a.md", "docs/b/c.md", "README.md", SUMMARY].into_iter();
        let good = "# Summary\n\n[A](a.md)\n\n# Part\n\n- [Later]()\n  - [C](b/c.md)\n";
        assert_eq!(complaints(good, pages()), [""; 0]);
        let complaint = |bad: &str| complaints(bad, pages()).join(" ");
        assert!(complaint("[A](a.md)").contains("docs/b/c.md must stand there"));
        assert!(complaint("[A](a.md) [C](b/c.md) [again](a.md)").contains("docs/a.md must stand there, once"));
        assert!(complaint("[A](a.md) [C](b/c.md) [D](d.md)").contains("no page docs/d.md"));
    }
}
