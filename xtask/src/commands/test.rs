//! `cargo xtask test`: every test of every layer, with its set-up; or the quick round.

use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::assets::{self, Kernel, Wanted};
use crate::progress::{Progress, print};
use crate::testing::changed::Changed;
use crate::testing::{self, Outcome, cargo, fuzz, linux, pages, tree};
use crate::{packages, program, project, tidy, tool};

/// Run every test of every layer, with its set-up
///
/// Layers: format, lints, docs, tidy, locks, unit, bare-metal, pages, fuzz, boot (`cargo xtask boot --check`), package (`cargo xtask package --check`), bench (`cargo xtask bench --check`), lab (Linux 6.1, 6.12 and 6.18), tree. A FILTER is
/// the name of a layer, or part of the name of a lab scenario; or `quick` alone, for the round between two edits: what
/// needs no machine, and of the crates that changed and those that depend on them only. What cannot run on this machine is
/// listed as skipped, with the reason.
#[derive(Args)]
pub struct Test {
    /// Seconds for each fuzz target
    #[arg(long, value_name = "SECONDS", default_value = "8")]
    fuzz_seconds: u32,
    /// Only these layers or lab scenarios
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

type Row = (String, Outcome, Duration);

const LAYERS: [&str; 14] = [
    "format",
    "lints",
    "docs",
    "tidy",
    "locks",
    "unit",
    "bare-metal",
    "pages",
    "fuzz",
    "boot",
    "package",
    "bench",
    "lab",
    "tree",
];
/// Each of the two leaves a processor idle for minutes: one links, the other waits for Linux.
const SIDE_BY_SIDE: [&str; 2] = ["fuzz", "boot"];
const QUICK: &str = "quick";
/// Crates whose `tests` start machines.
const STARTING_MACHINES: [&str; 3] = ["axvm_core", "axvm_kvm", "axvm_machine"];

/// Whether a filter leaves something to run.
fn is_known(filter: &str) -> bool {
    filter == QUICK || LAYERS.contains(&filter) || linux::knows(filter)
}

impl Test {
    /// Runs them.
    pub fn run(self) -> Result<ExitCode> {
        if let Some(filter) = self.filters.iter().find(|filter| !is_known(filter)) {
            bail!(
                "{filter} is no layer, and in no name of a lab scenario. Layers are {}, and {QUICK}; a scenario is named \
                 alone, such as pci",
                LAYERS.join(", ")
            );
        }
        let results = if self.filters.iter().any(|filter| filter == QUICK) { self.quick()? } else { self.full() };
        print(testing::summary(&results));
        let good = results.iter().all(|(_, outcome, _)| outcome.failed.is_empty());
        let any = results.iter().any(|(_, outcome, _)| outcome.passed > 0);
        Ok(if good && any { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn full(&self) -> Vec<Row> {
        let before = tree::status();
        let here = LAYERS.into_iter().filter(|layer| !matches!(*layer, "lab" | "tree") && self.wants(layer));
        let here: Vec<&str> = here.collect();
        let run = |layer: &&str| timed(layer, || self.layer(layer));
        let mut results: Vec<Row> = Vec::new();
        for together in here.chunk_by(|one, next| [*one, *next] == SIDE_BY_SIDE) {
            thread::scope(|scope| {
                let running: Vec<_> = together.iter().map(|layer| scope.spawn(|| run(layer))).collect();
                let lost = |layer: &&str| {
                    ((*layer).to_owned(), Outcome::of(Err(anyhow!("its thread panicked"))), Duration::ZERO)
                };
                results.extend(
                    running.into_iter().zip(together).map(|(row, layer)| row.join().unwrap_or_else(|_| lost(layer))),
                );
            });
        }
        let scenarios: Vec<String> =
            self.filters.iter().filter(|filter| !LAYERS.contains(&filter.as_str())).cloned().collect();
        if self.wants("lab") || !scenarios.is_empty() {
            results.extend(linux::campaigns(&scenarios));
        }
        if self.wants("tree") {
            results.push(timed("tree", || Ok(tree::unchanged(before.as_deref()))));
        }
        results
    }

    fn quick(&self) -> Result<Vec<Row>> {
        ensure!(self.filters.len() == 1, "quick is a choice of layers: give it alone");
        let changed = Changed::find().context("Cannot find out what has changed")?;
        print(format_args!("{}\n", changed.line()));
        let mut results: Vec<Row> =
            ["format", "tidy", "locks"].iter().map(|layer| timed(layer, || self.layer(layer))).collect();
        let touched: Vec<&str> = changed.touched.iter().map(String::as_str).collect();
        if touched.is_empty() {
            let why = || Outcome::skip(changed.line());
            results.extend(["lints", "unit"].map(|layer| (layer.to_owned(), why(), Duration::ZERO)));
            return Ok(results);
        }
        results.push(timed("lints", || {
            let words = [&["clippy", "--quiet"], &packages(&touched)[..], &["--all-targets", "--", "-D", "warnings"]];
            Ok(Outcome::of(cargo::ask(&words.concat(), "")))
        }));
        results.push(timed("unit", || without_machines(&touched)));
        Ok(results)
    }

    fn wants(&self, layer: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter == layer)
    }

    fn layer(&self, name: &str) -> Result<Outcome> {
        match name {
            "format" => Ok(Outcome::of(cargo::ask(&["fmt", "--all", "--check", "--", "--color", "never"], ""))),
            "lints" => Ok(Outcome::of(cargo::ask(
                &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"],
                "",
            ))),
            "docs" => Ok(Outcome::of(cargo::ask(&["doc", "--quiet", "--no-deps", "--workspace"], "-D warnings"))),
            "tidy" => {
                let complaints = tidy::check(project::root())?;
                let passed = usize::from(complaints.is_empty());
                Ok(Outcome { passed, failed: complaints, ..Outcome::default() })
            }
            "locks" => Ok(tree::locks()),
            "unit" => {
                for problem in prepare_unit() {
                    eprintln!("Some tests will be skipped: {problem:#}");
                }
                cargo::test(&["--workspace", "--exclude", "axvm_kvm"])
            }
            "bare-metal" => cargo::test(&["-p", "axvm_kvm"]),
            "pages" => pages::check(),
            "boot" => ourselves(&["boot", "--check"]),
            "bench" if !Path::new("/dev/kvm").exists() => Ok(Outcome::skip("no /dev/kvm".to_owned())),
            "bench" => ourselves(&["bench", "--check"]),
            "package" => package(),
            _ => fuzz::smoke(self.fuzz_seconds),
        }
    }
}

/// A layer that is a command of this program.
fn ourselves(words: &[&str]) -> Result<Outcome> {
    let (said, ended_well) = cargo::all_output(tool::ourselves().args(words))?;
    print(&said);
    let failure = || anyhow::anyhow!("cargo xtask {}:\n{said}", words.join(" "));
    Ok(Outcome::of(if ended_well { Ok(()) } else { Err(failure()) }))
}

/// A layer's row of the table; it says first that it begins.
fn timed(name: &str, layer: impl FnOnce() -> Result<Outcome>) -> Row {
    let started = Instant::now();
    let _progress = Progress::spinner(&format!("Testing: {name}"));
    let outcome = layer().unwrap_or_else(|error| Outcome::of(Err(error)));
    (name.to_owned(), outcome, started.elapsed())
}

/// Packages are made, and tried in an empty root.
fn package() -> Result<Outcome> {
    if let Some(missing) = ["dpkg-deb", "unshare"].iter().find(|name| tool::find(name).is_none()) {
        return Ok(Outcome::skip(format!("no {missing} to make or try packages with")));
    }
    let held = packages::try_out(&packages::make(&program::build()?)?)?;
    Ok(Outcome { passed: held.len(), ..Outcome::default() })
}

/// The tests of these crates that start no machine: what lies beside the code, and `tests` of the others.
fn without_machines(touched: &[&str]) -> Result<Outcome> {
    let (upper, lower): (Vec<&str>, Vec<&str>) = touched.iter().partition(|name| STARTING_MACHINES.contains(name));
    let mut outcome = Outcome::default();
    for (crates, targets) in [(lower, &["--lib", "--bins", "--tests"][..]), (upper, &["--lib", "--bins"])] {
        if !crates.is_empty() {
            let Outcome { passed, failed, skipped } = cargo::test(&[&packages(&crates)[..], targets].concat())?;
            outcome.passed += passed;
            outcome.failed.extend(failed);
            outcome.skipped.extend(skipped);
        }
    }
    Ok(outcome)
}

fn packages<'a>(crates: &[&'a str]) -> Vec<&'a str> {
    crates.iter().flat_map(|name| ["-p", name]).collect()
}

/// What unit tests judge with: Intel's table tools, and real kernels.
fn prepare_unit() -> Vec<anyhow::Error> {
    let tools = if tool::find("iasl").is_some() { Ok(()) } else { tool::apt_install(&["acpica-tools"]) };
    let kernels = assets::lock().and_then(|_lock| {
        for wanted in [Wanted::V6_1, Wanted::V6_12] {
            Kernel::get(&wanted)?.vmlinux()?;
        }
        Ok(())
    });
    [tools, kernels].into_iter().filter_map(Result::err).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_leaves_nothing_is_told_before_anything_is_built() {
        assert!(["quick", "lab", "unit", "pci", "vsock-python"].into_iter().all(is_known));
        assert!(!["lab:pci", "units", "PCI"].into_iter().any(is_known));
        let test = Test { fuzz_seconds: 1, filters: vec!["unit".into(), "lab:pci".into()] };
        let told = test.run().unwrap_err().to_string();
        assert!(told.starts_with("lab:pci is no layer") && told.contains("bare-metal"), "{told}");
    }
}
