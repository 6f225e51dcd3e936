//! `cargo xtask fuzz`: the fuzz targets, for as long as you like.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Args;

use crate::testing::fuzz::{self, Run};

/// Look for inputs that crash AxVM, for longer than `cargo xtask test` does
///
/// What the targets learn stays under target/fuzz/corpus, so that the next run goes on from it. An input that crashes
/// one is kept under target/fuzz/artifacts and shown with the command that runs it again.
#[derive(Args)]
pub struct Fuzz {
    /// Seconds for each target
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    seconds: u32,
    /// Targets that run at the same time
    #[arg(long, value_name = "COUNT", default_value = "2")]
    jobs: usize,
    /// Only these targets (files of fuzz/fuzz_targets)
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

impl Fuzz {
    /// Runs them.
    pub fn run(self) -> Result<ExitCode> {
        let known = fuzz::targets()?;
        for name in &self.targets {
            ensure!(known.contains(name), "There is no fuzz target {name}. There are: {}", known.join(", "));
        }
        fuzz::set_up()?;
        fuzz::build(&self.targets)?;
        let targets = if self.targets.is_empty() { known } else { self.targets };
        let runs = fuzz::run_all(&targets, self.seconds, self.jobs)?;
        crate::progress::print(table(&runs));
        let good = runs.iter().all(|run| run.failure.is_none());
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What came of the runs, and how to see failures again.
fn table(runs: &[Run]) -> String {
    let mut text = String::from("\ntarget                 executions  coverage    new  end\n");
    for Run { name, executions, coverage, new_coverage, failure } in runs {
        let end = if failure.is_some() { "CRASH" } else { "good" };
        text.push_str(&format!("{name:22} {executions:10}  {coverage:8}  {new_coverage:5}  {end}\n"));
    }
    let failed = runs.iter().filter_map(|run| Some((&run.name, run.failure.as_ref()?)));
    text.extend(failed.map(|(name, what)| format!("\nFAILED  {name}:\n{what}\n")));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_counts_and_then_the_failures() {
        let run = |name: &str, failure: Option<&str>| Run {
            name: name.into(),
            executions: 123,
            coverage: 45,
            new_coverage: 6,
            failure: failure.map(str::to_owned),
        };
        let text = table(&[run("ring", None), run("uart", Some("oh"))]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[2], "ring                          123        45      6  good");
        assert!(lines[3].ends_with("CRASH") && text.ends_with("FAILED  uart:\noh\n"));
    }
}
