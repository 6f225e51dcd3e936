//! The threat model names what there is: crates with `unsafe`, fuzz targets, kinds of threads. All three come from the code.
//! And each row of a table that says so is shown by tests that exist.
//!
//! ```text
//!   crates   the word `unsafe` in code             <--> the item that begins with "`unsafe`"
//!   targets  fuzz/fuzz_targets/NAME.rs             <--> the item that begins with "Fuzz targets"
//!   threads  Role, spawn(Role::Api, "api", ...)    <--> rows | `api` | `Api` | ...
//!   tests    fn a_head_must_be_inside_the_table()  <--> the last cell of rows below | ... | shown by |
//! ```

use std::collections::BTreeSet;

use super::{Source, before_tests, lexer};

type Names = BTreeSet<String>;

/// What the page misses, and what it has too much.
pub fn complaints(page: &str, sources: &[Source]) -> Vec<String> {
    let crates = quoted(&item(page, "* `unsafe`"), |name| name.starts_with("axvm_"));
    let targets = quoted(&item(page, "* Fuzz targets"), |_| true);
    let rows: Vec<Vec<String>> = page.lines().filter(|line| line.starts_with("| `")).map(cells).collect();
    let mut found = differences("crate with unsafe", &crates, &unsafe_crates(sources));
    found.extend(differences("fuzz target", &targets, &fuzz_targets(sources)));
    for (role, thread) in threads(sources) {
        let is_row =
            |row: &Vec<String>| row.get(1) == Some(&role) && thread.as_ref().is_none_or(|name| row[0].contains(name));
        if !rows.iter().any(is_row) {
            found.push(format!("{PAGE}: no row with thread {:?} and role {role}", thread.unwrap_or_default()));
        }
    }
    found.extend(unshown(page, &functions(sources)));
    found
}

const PAGE: &str = "docs/threat-model.md";

fn differences(what: &str, page: &Names, code: &Names) -> Vec<String> {
    let missing = code.difference(page).map(|name| format!("{PAGE}: {what} {name} is not named"));
    missing.chain(page.difference(code).map(|name| format!("{PAGE}: there is no {what} {name}"))).collect()
}

/// Rows whose last cell should name tests, and names none or one that is not there.
fn unshown(page: &str, tests: &Names) -> Vec<String> {
    let (mut found, mut counts) = (Vec::new(), false);
    for line in page.lines() {
        counts = line.ends_with("| shown by |") || (counts && line.starts_with('|'));
        if !counts || line.ends_with("| shown by |") || line.starts_with("|---") {
            continue;
        }
        let row: String = line.chars().take(40).collect();
        let last = line.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named = quoted(last, |_| true);
        if named.is_empty() {
            found.push(format!("{PAGE}: no test shows the row {row}"));
        }
        found.extend(named.difference(tests).map(|name| format!("{PAGE}: there is no test {name}, for the row {row}")));
    }
    found
}

/// What is right below a `#[test]`.
fn functions(sources: &[Source]) -> Names {
    let after = sources.iter().flat_map(|source| source.text.split("#[test]\n").skip(1));
    let names =
        after.filter_map(|text| text.lines().find_map(|line| line.trim().strip_prefix("fn ")?.split('(').next()));
    names.map(str::to_owned).collect()
}

/// The list item that begins with `start`, as one line.
fn item(page: &str, start: &str) -> String {
    let lines = page.lines().skip_while(|line| !line.starts_with(start));
    let first = lines.clone().take(1);
    let more = lines.skip(1).take_while(|line| line.starts_with("  "));
    first.chain(more).collect::<Vec<_>>().join(" ")
}

fn quoted(text: &str, wanted: impl Fn(&str) -> bool) -> Names {
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|name| *name != "unsafe" && !name.contains(' ') && wanted(name)).map(str::to_owned).collect()
}

fn cells(row: &str) -> Vec<String> {
    row.split('|').skip(1).map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
}

fn unsafe_crates(sources: &[Source]) -> Names {
    let has_unsafe = |source: &&Source| {
        let code = lexer::parts(before_tests(&source.text)).code;
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.any(|word| word == "unsafe")
    };
    let product = sources.iter().filter(|source| source.path.contains("/src/") || source.path.contains("/guest/"));
    product.filter(has_unsafe).filter_map(|source| source.path.split('/').next()).map(str::to_owned).collect()
}

fn fuzz_targets(sources: &[Source]) -> Names {
    let files = sources.iter().filter_map(|source| source.path.strip_prefix("fuzz/fuzz_targets/"));
    files.filter(|file| !file.contains('/')).filter_map(|file| file.strip_suffix(".rs")).map(str::to_owned).collect()
}

/// Every role, and every role with the name of a thread where that is a literal: `vcpu{index}` as `vcpuN`.
fn threads(sources: &[Source]) -> BTreeSet<(String, Option<String>)> {
    let mut threads = BTreeSet::new();
    let product = |source: &&Source| source.path.contains("/src/") && !source.path.ends_with("/testing.rs");
    for source in sources.iter().filter(product) {
        let text = before_tests(&source.text);
        if let Some((_, roles)) = text.split_once("pub enum Role {") {
            let lines = roles.lines().map(str::trim).take_while(|line| *line != "}");
            let roles = lines.filter_map(|line| line.strip_suffix(',').filter(|_| !line.starts_with("//")));
            threads.extend(roles.map(|role| (role.to_owned(), None)));
        }
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        threads.extend(line.split("Role::").skip(1).filter_map(|call| {
            let (role, name) = call.split_once(", ")?;
            let name = name.trim_start_matches("format!(").strip_prefix('"')?.split('"').next()?;
            let place = name.find('{').map_or(name.to_owned(), |at| format!("{}N", &name[..at]));
            role.chars().all(char::is_alphabetic).then(|| (role.to_owned(), Some(place)))
        }));
    }
    threads
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Vec<Source> {
        let files = [
            ("axvm_kvm/src/lib.rs", "fn f() { unsafe { g() } }"),
            ("axvm_arch/src/lib.rs", "#![forbid(unsafe_code)]\n// no unsafe\nconst A: &str = \"unsafe\";"),
            ("axvm_arch/tests/a.rs", "unsafe fn f() {}"),
            ("axvm_sandbox/src/lib.rs", "pub enum Role {\n    /// Unsafe.\n    Vcpu,\n    Api,\n}\n"),
            (
                "axvm_core/src/a.rs",
                "spawn(Role::Vcpu, format!(\"vcpu{index}\"), f);\nspawn(\n    Role::Api,\n    \"api\",\n    f)",
            ),
            ("fuzz/fuzz_targets/ring.rs", ""),
            ("axvm_virtio/tests/it/ring.rs", "#[test]\nfn loops_end() {}\n"),
        ];
        files.map(|(path, text)| Source { path: path.into(), text: text.into() }).into()
    }

    const PAGE: &str = "| `vcpuN` | `Vcpu` | x |\n| `api` | `Api` | x |\n* `unsafe` is allowed in `axvm_kvm`\n  only\n* Fuzz targets: `ring`.\n\
                        | lie | shown by |\n|---|---|\n| loop | `loops_end` |\n";

    #[test]
    fn a_page_that_names_all_is_fine() {
        assert_eq!(complaints(PAGE, &sources()), [""; 0]);
    }

    #[test]
    fn what_is_missing_or_gone_is_found() {
        for (wrong, complaint) in [
            (PAGE.replace("axvm_kvm", "axvm_memory"), "crate with unsafe axvm_kvm is not named"),
            (PAGE.replace("axvm_kvm", "axvm_kvm`, `axvm_memory"), "there is no crate with unsafe axvm_memory"),
            (PAGE.replace("ring", "rings"), "fuzz target ring is not named"),
            (PAGE.replace("`api`", "`http`"), "no row with thread \"api\" and role Api"),
            (PAGE.replace("`loops_end`", "a test"), "no test shows the row | loop"),
            (PAGE.replace("loops_end", "loops_start"), "there is no test loops_start, for the row | loop"),
            (PAGE.replace("`Vcpu`", "`Cpu`"), "no row with thread \"\" and role Vcpu"),
        ] {
            let found = complaints(&wrong, &sources());
            assert!(found.iter().any(|found| found.contains(complaint)), "{complaint}: {found:?}");
        }
    }
}
