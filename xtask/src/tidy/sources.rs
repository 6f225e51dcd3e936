//! Rules on single source files: head, length, unfinished business, orderings, `forbid(unsafe_code)`.

use super::{Source, before_tests, is_code};

const STRONGEST: &str = "SeqCst";
const FILE_LIMIT: usize = 500;
const FUNCTION_LIMIT: usize = 80;
/// Pure tables may be longer.
const TABLES: [&str; 0] = [];
/// Where the plan allows `unsafe`.
const UNSAFE: [&str; 6] = ["axvm_agent", "axvm_kvm", "axvm_memory", "axvm_guest", "axvm_sandbox", "axvm_tap"];
/// Spelled in two halves, so that this file does not complain about itself.
/// Lines above an ordering in which a comment about it may stand.
const NEAR: usize = 3;
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimpl", "emented!(")];

/// Everything wrong with one file.
pub fn complaints(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let path = &source.path;
    if !source.text.starts_with("//! ") {
        found.push(format!("{path}: does not open with a head (//! what it is)"));
    }
    let code = before_tests(&source.text).lines().filter(|line| is_code(line)).count();
    if code > FILE_LIMIT && !TABLES.contains(&path.as_str()) {
        found.push(format!("{path}: {code} lines of code, the limit is {FILE_LIMIT}"));
    }
    for (number, line) in source.text.lines().enumerate() {
        if let Some(word) = UNFINISHED.iter().find(|word| line.contains(*word)) {
            found.push(format!("{path}:{}: {word} is unfinished business", number + 1));
        }
    }
    found.extend(long_functions(source));
    found.extend(unexplained_orderings(source));
    found
}

/// How many files open with what.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heads {
    /// All source files; each says what it is.
    pub files: usize,
    /// Those with a picture: their data has a shape, or moves.
    pub with_picture: usize,
    /// Those that name a specification or source.
    pub with_specification: usize,
}

/// Counts heads.
pub fn heads(sources: &[Source]) -> Heads {
    let mut heads = Heads::default();
    for source in sources {
        let head = head(source);
        heads.files += 1;
        heads.with_picture += usize::from(head.contains("//! ```text\n") || head.contains("\n//! | "));
        let names = ["Spec:", "Specs:", "Source:", "Sources:"];
        heads.with_specification += usize::from(names.iter().any(|name| head.contains(name)));
    }
    heads
}

/// The lines that begin with `//!`.
fn head(source: &Source) -> &str {
    let len = source.text.split_inclusive('\n').take_while(|line| line.starts_with("//!")).map(str::len).sum();
    &source.text[..len]
}

/// The strongest ordering outside of the ring needs a reason that names it: in the file's head, or near.
fn unexplained_orderings(source: &Source) -> Vec<String> {
    let is_ring = source.path.starts_with("axvm_virtio/src/queue");
    let is_product = source.path.contains("/src/") || source.path.contains("/guest/");
    if is_ring || !is_product || source.path.starts_with("xtask/") || head(source).contains(STRONGEST) {
        return Vec::new();
    }
    let lines: Vec<&str> = before_tests(&source.text).lines().collect();
    let explains = |line: &&str| line.split_once("//").is_some_and(|(_, comment)| comment.contains(STRONGEST));
    let uses = |line: &str| line.split("//").next().is_some_and(|code| code.contains(STRONGEST));
    let wrong =
        (0..lines.len()).filter(|&at| uses(lines[at]) && !lines[at.saturating_sub(NEAR)..=at].iter().any(explains));
    wrong.map(|at| format!("{}:{}: {STRONGEST} without a comment that says why", source.path, at + 1)).collect()
}

/// Crates whose root does not forbid `unsafe` though the plan says so.
pub fn unsafe_not_forbidden(krate: &str, sources: &[Source]) -> Vec<String> {
    if UNSAFE.contains(&krate) {
        return Vec::new();
    }
    let roots = ["lib.rs", "main.rs"].map(|name| format!("{krate}/src/{name}"));
    let missing = sources
        .iter()
        .filter(|source| roots.contains(&source.path) && !source.text.contains("\n#![forbid(unsafe_code)]\n"));
    missing.map(|source| format!("{}: no #![forbid(unsafe_code)]", source.path)).collect()
}

/// A function ends, as rustfmt writes it, at the first `}` as far in as its `fn`.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        if !opens_function(line.trim_start()) {
            continue;
        }
        let end = format!("{}}}", &line[..indent]);
        let Some(len) = lines[start..].iter().position(|line| **line == end) else { continue };
        let code = lines[start..=start + len].iter().filter(|line| is_code(line)).count();
        if code > FUNCTION_LIMIT {
            found.push(format!(
                "{}:{}: a function of {code} lines, the limit is {FUNCTION_LIMIT}",
                source.path,
                start + 1
            ));
        }
    }
    found
}

fn opens_function(line: &str) -> bool {
    let line = line.strip_prefix("pub").unwrap_or(line);
    let line = if line.starts_with('(') { line.split_once(')').map_or("", |(_, rest)| rest) } else { line };
    let mut words = line.split_whitespace();
    let first = words.find(|word| !matches!(*word, "const" | "unsafe" | "async" | "extern" | "\"C\""));
    first == Some("fn")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: String) -> Source {
        Source { path: "axvm_arch/src/lib.rs".to_owned(), text }
    }

    #[test]
    fn file_without_head_is_found() {
        assert_eq!(complaints(&source("use std::fs;\n".into())).len(), 1);
        assert!(complaints(&source("//! A head.\n\nuse std::fs;\n".into())).is_empty());
    }

    #[test]
    fn long_file_is_found_but_tests_and_comments_do_not_count() {
        let long = "//! Head.\n".to_owned() + &"const A: u8 = 1;\n".repeat(501);
        assert_eq!(complaints(&source(long)).len(), 1);
        let tested =
            "//! Head.\n".to_owned() + "\n#[cfg(test)]\nmod tests {\n" + &"const A: u8 = 1;\n".repeat(501) + "}\n";
        assert!(complaints(&source(tested)).is_empty());
        assert!(complaints(&source("//! Head.\n".to_owned() + &"// word\n\n".repeat(501))).is_empty());
    }

    #[test]
    fn long_function_is_found() {
        for head in
            ["fn f() {", "pub(super) fn f() {", "pub const unsafe fn f(a: u8) -> u8 {", "pub(crate) async fn f() {"]
        {
            let text = format!("//! Head.\n\nimpl A {{\n    {head}\n{}    }}\n}}\n", "        a();\n".repeat(80));
            assert_eq!(complaints(&source(text)).len(), 1, "{head}");
            let text = format!("//! Head.\n\nimpl A {{\n    {head}\n{}    }}\n}}\n", "        a();\n".repeat(78));
            assert!(complaints(&source(text)).is_empty(), "{head}");
        }
    }

    #[test]
    fn an_ordering_without_a_reason_is_found() {
        let found = |text: &str| complaints(&source(format!("//! Head.\n{text}"))).len();
        assert_eq!(found("\nfn f() {\n    a.load(Ordering::SeqCst);\n}\n"), 1);
        assert_eq!(
            found("\nfn f() {\n    // SeqCst: orders it with the other flag.\n    a.load(Ordering::SeqCst);\n}\n"),
            0
        );
        assert_eq!(found("\n// Many of them.\na.load(Ordering::SeqCst);\n"), 1);
        assert_eq!(found("//! All is SeqCst: one order for all flags.\na.load(Ordering::SeqCst);\n"), 0);
        assert_eq!(found("\na.load(Ordering::Acquire);\n"), 0);
    }

    #[test]
    fn heads_are_counted() {
        let texts = [
            "//! Head.\n",
            "//! Head.\n//!\n//! ```text\n//!   a\n//! ```\n//!\n//! Spec: virtio 1.2.\n\n// Spec: no\n",
        ];
        let heads = heads(&texts.map(|text| source(text.into())));
        assert_eq!(heads, Heads { files: 2, with_picture: 1, with_specification: 1 });
    }

    #[test]
    fn unfinished_business_is_found() {
        for word in UNFINISHED {
            assert_eq!(complaints(&source(format!("//! Head.\n// {word}\n"))).len(), 1, "{word}");
        }
    }

    #[test]
    fn crate_that_does_not_forbid_unsafe_is_found() {
        let allowed = [source("//! Head.\n\n#![forbid(unsafe_code)]\n".into())];
        assert!(unsafe_not_forbidden("axvm_arch", &allowed).is_empty());
        assert_eq!(unsafe_not_forbidden("axvm_arch", &[source("//! Head.\n".into())]).len(), 1);
    }
}
