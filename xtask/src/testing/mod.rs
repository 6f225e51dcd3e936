//! `cargo xtask test`: the layers, their set-up and their counts.
//!
//! | layer | needs | counts |
//! |---|---|---|
//! | format, lints, docs, tidy | nothing | one each |
//! | locks | nothing | one for each `Cargo.lock` |
//! | unit | nothing (iasl and the kernels are fetched) | tests |
//! | bare-metal | /dev/kvm | tests |
//! | pages | /dev/kvm for most | sessions in the book, and checks of its links and options |
//! | fuzz | nightly, cargo-fuzz | targets, each for a fixed time |
//! | boot | QEMU, where the processor has no virtualization | one: `cargo xtask boot --check` |
//! | package | dpkg-deb, unshare | one for each package, one for the unit |
//! | bench | /dev/kvm | one: `cargo xtask bench --check`, AxVM beside the floor |
//! | lab-KERNEL | QEMU | scenarios; two kernels at a time |
//! | tree | git | one: the tests leave the tree as it was |
//!
//! `quick` is format, tidy, locks, and of the crates that a [change](changed) touches lints and tests that start no machine.

pub mod cargo;
pub mod changed;
pub mod fuzz;
pub mod linux;
pub mod pages;
pub mod tree;

use std::time::Duration;

/// What came of one layer.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How many held.
    pub passed: usize,
    /// What did not, and how it showed.
    pub failed: Vec<String>,
    /// What could not run, and why.
    pub skipped: Vec<String>,
}

impl Outcome {
    /// A layer that is one question.
    pub fn of(result: anyhow::Result<()>) -> Self {
        match result {
            Ok(()) => Self { passed: 1, ..Self::default() },
            Err(error) => Self { failed: vec![format!("{error:#}")], ..Self::default() },
        }
    }

    /// A layer that could not run at all.
    pub fn skip(why: String) -> Self {
        Self { skipped: vec![why], ..Self::default() }
    }
}

/// The table at the end, and the line that machines read.
pub fn summary(layers: &[(String, Outcome, Duration)]) -> String {
    let mut text = String::from("\nlayer             passed  failed  skipped   seconds\n");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, outcome, time) in layers {
        let counts = (outcome.passed, outcome.failed.len(), outcome.skipped.len());
        text.push_str(&format!("{name:16} {:7} {:7} {:8} {:9.1}\n", counts.0, counts.1, counts.2, time.as_secs_f64()));
        passed += counts.0;
        failed += counts.1;
        skipped += counts.2;
    }
    for (name, outcome, _) in layers {
        text.extend(outcome.failed.iter().map(|what| format!("FAILED  {name}: {what}\n")));
        text.extend(outcome.skipped.iter().map(|what| format!("skipped {name}: {what}\n")));
    }
    let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
    text + &format!("\n{passed} passed, {failed} failed{skipped}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_counts_everything() {
        let unit = Outcome { passed: 5, failed: vec!["a".into()], skipped: vec!["b: no KVM".into()] };
        let layers =
            [("unit".to_owned(), unit, Duration::ZERO), ("tidy".to_owned(), Outcome::of(Ok(())), Duration::ZERO)];
        let text = summary(&layers);
        assert_eq!(text.lines().last(), Some("6 passed, 1 failed, 1 skipped"));
        assert!(text.contains("FAILED  unit: a\n") && text.contains("skipped unit: b: no KVM\n"));
        assert_eq!(summary(&layers[1..]).lines().last(), Some("1 passed, 0 failed"));
    }
}
