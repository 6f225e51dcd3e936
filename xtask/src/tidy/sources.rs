//! Rules on single source files: head, length, unfinished business, `forbid(unsafe_code)`.

use super::{Source, before_tests, is_code};

const FILE_LIMIT: usize = 500;
const FUNCTION_LIMIT: usize = 80;
/// Pure tables may be longer.
const TABLES: [&str; 0] = [];
/// Where the plan allows `unsafe`.
const UNSAFE: [&str; 4] = ["axvm_kvm", "axvm_memory", "axvm_guest", "axvm_sandbox"];
/// Spelled in two halves, so that this file does not complain about itself.
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
    found
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
