//! Modules of one crate that use each other in a circle: neither can be understood before the other.
//!
//! A module here is a top-level one with all that lies below it; an edge is a `crate::other` in its code (or a
//! `super::other` in its own file). Unit tests, and modules only for them, may look anywhere.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, before_tests, is_code};

type Edges = BTreeMap<String, BTreeSet<String>>;

/// One complaint for each circle, naming its members.
pub fn complaints(krate: &str, sources: &[Source]) -> Vec<String> {
    let edges = edges(krate, sources);
    let circles: BTreeSet<BTreeSet<&str>> = edges.keys().filter_map(|module| circle(module, &edges)).collect();
    let show = |circle: &BTreeSet<&str>| circle.iter().copied().collect::<Vec<_>>().join(", ");
    circles.iter().map(|circle| format!("{krate}: modules in a circle: {}", show(circle))).collect()
}

fn edges(krate: &str, sources: &[Source]) -> Edges {
    let prefix = format!("{krate}/src/");
    let inside = sources.iter().filter_map(|source| Some((source.path.strip_prefix(&prefix)?, &source.text)));
    let named: Vec<(String, bool, &String)> = inside
        .filter(|(path, _)| !matches!(*path, "lib.rs" | "main.rs"))
        .map(|(path, text)| {
            let own_file = !path.contains('/') || path.ends_with("/mod.rs") && path.matches('/').count() == 1;
            (path.split(['/', '.']).next().unwrap_or_default().to_owned(), own_file, text)
        })
        .collect();
    let root = sources
        .iter()
        .filter(|source| source.path == format!("{prefix}lib.rs") || source.path == format!("{prefix}main.rs"));
    let for_tests: Vec<String> =
        root.flat_map(|source| used(&source.text.replace('\n', " "), "#[cfg(test)] mod ")).collect();
    let modules: BTreeSet<String> =
        named.iter().map(|(module, ..)| module.clone()).filter(|module| !for_tests.contains(module)).collect();
    let mut edges = Edges::new();
    for (module, own_file, text) in &named {
        let targets = edges.entry(module.clone()).or_default();
        for line in before_tests(text).lines().filter(|line| is_code(line)) {
            let mut found = used(line, "crate::");
            if *own_file {
                found.extend(used(line, "super::"));
            }
            targets.extend(found.into_iter().filter(|target| target != module && modules.contains(target)));
        }
    }
    edges
}

/// The names after `prefix` in a line, also those of a `{group}`.
fn used(line: &str, prefix: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (at, _) in line.match_indices(prefix) {
        let rest = &line[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names
                .extend(group.split(['}', ';']).next().unwrap_or_default().split(',').map(|part| name(part.trim()))),
            None => names.push(name(rest)),
        }
    }
    names
}

/// All modules that both are reached from this one and reach it.
fn circle<'a>(module: &'a str, edges: &'a Edges) -> Option<BTreeSet<&'a str>> {
    let members: BTreeSet<&str> =
        reached(module, edges).into_iter().filter(|other| reached(other, edges).contains(module)).collect();
    (!members.is_empty()).then_some(members)
}

fn reached<'a>(module: &str, edges: &'a Edges) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    let mut next: Vec<&str> = edges.get(module).into_iter().flatten().map(String::as_str).collect();
    while let Some(other) = next.pop() {
        if seen.insert(other) {
            next.extend(edges.get(other).into_iter().flatten().map(String::as_str));
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> Vec<Source> {
        files.iter().map(|(path, text)| Source { path: format!("c/src/{path}"), text: (*text).to_owned() }).collect()
    }

    #[test]
    fn circle_is_found_through_files_below_and_groups() {
        let files = [
            ("lib.rs", "use crate::a::A;\n#[cfg(test)]\nmod e;\n"),
            ("e.rs", "use crate::c::C;"),
            ("a/mod.rs", "use crate::{c::C, b::B};"),
            ("b.rs", "use super::d;"),
            ("d/inner.rs", "fn f() { crate::a::g() }"),
            ("c.rs", "use crate::e::E;"),
        ];
        assert_eq!(complaints("c", &crate_of(&files)), ["c: modules in a circle: a, b, d"]);
    }

    #[test]
    fn tests_comments_and_straight_lines_are_fine() {
        let files = [
            ("a.rs", "use crate::b::B;\n\n#[cfg(test)]\nmod tests {\n    use crate::c::C;\n}\n"),
            ("b.rs", "// see crate::a\nuse crate::c::C;"),
            ("c.rs", "/// Like [`crate::b`]\nconst C: u8 = 1;"),
            ("d/x.rs", "use super::d;"),
        ];
        assert!(complaints("c", &crate_of(&files)).is_empty());
    }
}
