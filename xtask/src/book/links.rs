//! Links of the pages, for HTML: those that leave docs/ lead to the repository.
//!
//! ```text
//!   docs/learn/01-hlt.md:  ../../axvm_kvm/src/vm.rs   --> ../ + outside + axvm_kvm/src/vm.rs     outside: "../../"
//!                          ../../ARCHITECTURE.md      --> ../ + outside + ARCHITECTURE%2emd      or "https://..."
//!                          ../README.md               --> ../index.md     as mdbook calls such a page
//!                          02-exits.md                --> as it is        mdbook makes .html of it
//! ```
//!
//! A dot is written as `%2e` where mdbook would take a file of the repository for a page of the book.
//!
//! Spec: mdBook, "Preprocessors". The pictures of code, in which a link is none, are left alone.

use std::io::{Read, Write};

use anyhow::{Context, Result};
use serde_json::Value;

/// Answers mdbook: reads what it has, writes what it shall go on with.
pub fn answer(mut from: impl Read, mut to: impl Write) -> Result<()> {
    let mut text = String::new();
    from.read_to_string(&mut text).context("Cannot read what mdbook says")?;
    let said: Value = serde_json::from_str(&text).context("Cannot understand what mdbook says")?;
    let outside = said.pointer("/0/config/preprocessor/links-to-code/outside").and_then(Value::as_str);
    let outside = outside.unwrap_or_default().to_owned();
    let mut book = said.get(1).cloned().context("mdbook sends no book")?;
    lead(&mut book, &outside);
    to.write_all(book.to_string().as_bytes()).context("Cannot answer mdbook")
}

/// Every chapter, wherever it is in the book.
fn lead(value: &mut Value, outside: &str) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| lead(item, outside)),
        Value::Object(fields) => {
            if let Some(path) = fields.get("source_path").and_then(Value::as_str).map(str::to_owned)
                && let Some(Value::String(content)) = fields.get_mut("content")
            {
                *content = page(content, &path, outside);
            }
            fields.values_mut().for_each(|field| lead(field, outside));
        }
        _ => {}
    }
}

/// The text of the page at `path` in docs/, with other links.
fn page(text: &str, path: &str, outside: &str) -> String {
    let mut in_code = false;
    let lines = text.lines().map(|line| {
        let is_fence = line.starts_with("```");
        in_code ^= is_fence;
        if in_code || is_fence { line.to_owned() } else { of_line(line, path, outside) }
    });
    lines.map(|line| line + "\n").collect()
}

fn of_line(line: &str, path: &str, outside: &str) -> String {
    let mut pieces = line.split("](");
    let mut led = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(')').unwrap_or(piece.len());
        led.push_str("](");
        led.push_str(&target(&piece[..end], path, outside));
        led.push_str(&piece[end..]);
    }
    led
}

/// Where a link of the page at `path` shall lead.
fn target(link: &str, path: &str, outside: &str) -> String {
    if link.contains("://") || link.starts_with('#') {
        return link.to_owned();
    }
    let (file, heading) = link.split_once('#').map_or((link, String::new()), |(file, name)| (file, format!("#{name}")));
    let depth = path.matches('/').count();
    // What is left when the link has climbed to docs/, and once more.
    match file.strip_prefix(&"../".repeat(depth + 1)) {
        Some(rest) => {
            let up = if outside.contains("://") { String::new() } else { "../".repeat(depth) };
            format!("{up}{outside}{}{heading}", rest.replace(".md", "%2emd"))
        }
        None => match file.strip_suffix("README.md") {
            Some(dir) => format!("{dir}index.md{heading}"),
            None => link.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_book_or_to_the_repository() {
        let from = |path: &str, link: &str| target(link, path, "../../");
        assert_eq!(from("learn/a.md", "../../axvm_kvm/src/vm.rs"), "../../../axvm_kvm/src/vm.rs");
        assert_eq!(from("learn/a.md", "../../ARCHITECTURE.md#ideas"), "../../../ARCHITECTURE%2emd#ideas");
        assert_eq!(from("a.md", "../CHANGELOG.md"), "../../CHANGELOG%2emd");
        assert_eq!(from("learn/a.md", "../README.md"), "../index.md");
        for stays in ["b.md#c", "../memory.md", "#here", "https://x.y/z.md"] {
            assert_eq!(from("learn/a.md", stays), stays);
        }
        assert_eq!(target("../vm.rs", "a.md", "https://x.y/main/"), "https://x.y/main/vm.rs");
    }

    #[test]
    fn only_text_is_changed_and_only_the_book_comes_back() {
        let content = "[a](../b.rs), [c](d.md)\n```\n[a](../b.rs)\n```\n";
        let context = serde_json::json!({"config": {"preprocessor": {"links-to-code": {"outside": "X/"}}}});
        let chapter = serde_json::json!({"Chapter": {"source_path": "a.md", "content": content, "sub_items": []}});
        let said = serde_json::json!([context, {"sections": [chapter]}]).to_string();
        let mut came = Vec::new();
        answer(said.as_bytes(), &mut came).unwrap();
        let came: Value = serde_json::from_slice(&came).unwrap();
        let content = came.pointer("/sections/0/Chapter/content").and_then(Value::as_str);
        assert_eq!(content, Some("[a](X/b.rs), [c](d.md)\n```\n[a](../b.rs)\n```\n"));
        assert!(answer(&b"no"[..], Vec::new()).is_err());
    }
}
