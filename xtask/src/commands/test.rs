//! `cargo xtask test`: every test of every layer, with its set-up.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;

use crate::assets::{self, Kernel, Wanted};
use crate::progress::Progress;
use crate::testing::{self, Outcome, cargo, fuzz, linux, pages};
use crate::{project, tidy, tool};

/// Run every test of every layer, with its set-up
///
/// Layers: format, lints, docs, tidy, unit, bare-metal, pages, fuzz, boot (`cargo xtask boot --check`), lab (Linux 6.1 and 6.12). A FILTER is the name
/// of a layer, or part of the name of a lab scenario. What cannot run on this machine is listed as skipped, with the reason.
#[derive(Args)]
pub struct Test {
    /// Seconds for each fuzz target
    #[arg(long, value_name = "SECONDS", default_value = "20")]
    fuzz_seconds: u32,
    /// Only these layers or lab scenarios
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
}

const LAYERS: [&str; 10] = ["format", "lints", "docs", "tidy", "unit", "bare-metal", "pages", "fuzz", "boot", "lab"];

impl Test {
    /// Runs them.
    pub fn run(self) -> Result<ExitCode> {
        let mut results: Vec<(String, Outcome, Duration)> = Vec::new();
        for layer in LAYERS.iter().filter(|layer| **layer != "lab" && self.wants(layer)) {
            let started = Instant::now();
            let outcome = {
                let _progress = Progress::spinner(&format!("Testing: {layer}"));
                self.layer(layer).unwrap_or_else(|error| Outcome::of(Err(error)))
            };
            results.push(((*layer).to_owned(), outcome, started.elapsed()));
        }
        let scenarios: Vec<String> =
            self.filters.iter().filter(|filter| !LAYERS.contains(&filter.as_str())).cloned().collect();
        if self.wants("lab") || !scenarios.is_empty() {
            results.extend(linux::campaigns(&scenarios));
        }
        print!("{}", testing::summary(&results));
        let good = results.iter().all(|(_, outcome, _)| outcome.failed.is_empty());
        let any = results.iter().any(|(_, outcome, _)| outcome.passed > 0);
        Ok(if good && any { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
            "unit" => {
                for problem in prepare_unit() {
                    eprintln!("Some tests will be skipped: {problem:#}");
                }
                cargo::test(&["--workspace", "--exclude", "axvm_kvm"])
            }
            "bare-metal" => cargo::test(&["-p", "axvm_kvm"]),
            "pages" => pages::check(),
            "boot" => {
                let ourselves = std::env::current_exe().context("Cannot find this program")?;
                let (said, ended_well) =
                    cargo::all_output(tool::tool(&ourselves.to_string_lossy()).args(["boot", "--check"]))?;
                print!("{said}");
                Ok(Outcome::of(if ended_well {
                    Ok(())
                } else {
                    Err(anyhow::anyhow!("cargo xtask boot --check:\n{said}"))
                }))
            }
            _ => fuzz::smoke(self.fuzz_seconds),
        }
    }
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
