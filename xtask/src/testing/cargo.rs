//! What cargo does itself: formatting, lints, documentation, tests.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Outcome;
use crate::project;
use crate::tool::{last_lines, show, tool};

/// `cargo fmt`, `cargo clippy` and the like: holds if cargo ends well. `denied` are flags for rustdoc.
pub fn ask(arguments: &[&str], rustdoc_flags: &str) -> Result<()> {
    let mut command = cargo(arguments);
    if !rustdoc_flags.is_empty() {
        command.env("RUSTDOCFLAGS", rustdoc_flags);
    }
    let (said, ended_well) = all_output(&mut command)?;
    if !ended_well {
        bail!("cargo {} fails:\n{}", arguments.join(" "), last_lines(&said, 40));
    }
    Ok(())
}

/// `cargo test` with these arguments, counted.
pub fn test(arguments: &[&str]) -> Result<Outcome> {
    let mut words = vec!["test", "--no-fail-fast"];
    words.extend(arguments);
    words.extend(["--", "--show-output"]);
    // What fails is shown; a file beside the source would be one more thing in the tree.
    let (said, ended_well) = all_output(cargo(&words).env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1"))?;
    let mut outcome = count(&said);
    if !ended_well && outcome.failed.is_empty() {
        outcome.failed.push(format!("cargo test fails:\n{}", last_lines(&said, 40)));
    }
    Ok(outcome)
}

/// Reads libtest's output. A test that says `skipped: why` did not run, whatever libtest thinks.
fn count(said: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in said.lines() {
        let line = line.trim();
        if let Some(why) = line.strip_prefix("skipped: ") {
            outcome.skipped.push(why.to_owned());
        } else if let Some((name, "FAILED")) = line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ")) {
            outcome.failed.push(format!("{name}\n{}", words_of(said, name)));
        } else if let Some(counts) = line.strip_prefix("test result: ") {
            outcome.passed += number_before(counts, " passed");
            let ignored = number_before(counts, " ignored");
            outcome.skipped.extend((0..ignored).map(|_| "ignored by its author".to_owned()));
        }
    }
    // Each of them passed as libtest counts.
    let by_themselves = outcome.skipped.iter().filter(|why| *why != "ignored by its author").count();
    outcome.passed = outcome.passed.saturating_sub(by_themselves);
    outcome
}

/// What a failed test printed.
fn words_of(said: &str, name: &str) -> String {
    let start = said.find(&format!("---- {name} stdout ----\n")).unwrap_or(said.len());
    let block = said[start..].lines().skip(1).take_while(|line| !line.starts_with("---- ") && *line != "failures:");
    block.take(20).map(|line| format!("    {line}\n")).collect()
}

fn number_before(counts: &str, what: &str) -> usize {
    let end = counts.find(what).unwrap_or(0);
    counts[..end].rsplit([' ', ';']).next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = tool(&std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(arguments).current_dir(project::root());
    command
}

/// Both streams of a program, and whether it ended well.
pub fn all_output(command: &mut Command) -> Result<(String, bool)> {
    let end = command.output().with_context(|| format!("Cannot start {}", show(command)))?;
    let said = [String::from_utf8_lossy(&end.stdout), String::from_utf8_lossy(&end.stderr)].concat();
    Ok((said, end.status.success()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_failed_ignored_and_skipped_are_told_apart() {
        let said = "test a ... ok\ntest b::c ... FAILED\ntest d ... ignored\ntest e ... ok\n\n---- e stdout ----\nskipped: no KVM\n\n\
                    failures:\n\n---- b::c stdout ----\nthread panicked: oh\n\nfailures:\n    b::c\n\n\
                    test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let outcome = count(said);
        assert_eq!((outcome.passed, outcome.failed.len(), outcome.skipped.len()), (1, 1, 2));
        assert!(outcome.failed[0].starts_with("b::c\n    thread panicked: oh"));
        assert!(outcome.skipped.contains(&"no KVM".to_owned()));
    }

    #[test]
    fn cargo_that_fails_is_a_failure() {
        assert!(ask(&["no-such-command"], "").is_err());
    }
}
