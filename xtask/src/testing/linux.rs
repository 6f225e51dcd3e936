//! The lab tests on both kernels, side by side: each lab takes one core.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Outcome;
use crate::assets::Wanted;
use crate::lab::Lab;
use crate::program;
use crate::scenarios::{Campaign, Verdict};

/// Both series with the scenarios that the filters leave; a layer's name, outcome and time for each.
pub fn campaigns(filters: &[String]) -> Vec<(String, Outcome, Duration)> {
    let series = [Wanted::V6_1, Wanted::V6_12];
    let lab = match program::build().and_then(|axvm| Ok((Lab::open()?, axvm))) {
        Ok(ready) => ready,
        Err(error) => {
            let outcome = Outcome::of(Err(error.context("Cannot prepare the lab")));
            return vec![("lab".to_owned(), outcome, Duration::ZERO)];
        }
    };
    let (lab, axvm) = &lab;
    thread::scope(|scope| {
        let runs = series.map(|wanted| {
            scope.spawn(move || {
                let started = Instant::now();
                let outcome = campaign(&wanted, filters, lab, axvm);
                (format!("lab-{}", wanted.name), outcome, started.elapsed())
            })
        });
        let lost =
            |_| ("lab".to_owned(), Outcome::of(Err(anyhow::anyhow!("the lab's thread panicked"))), Duration::ZERO);
        runs.into_iter().map(|run| run.join().unwrap_or_else(lost)).collect()
    })
}

fn campaign(wanted: &Wanted, filters: &[String], lab: &Lab, axvm: &Path) -> Outcome {
    match Campaign::new(wanted, filters) {
        Ok(campaign) if campaign.is_empty() => Outcome::default(),
        Ok(campaign) => outcome(wanted.name, campaign.run(lab, axvm.to_owned())),
        Err(error) => Outcome::skip(format!("{error:#}")),
    }
}

fn outcome(series: &str, verdicts: Result<Vec<Verdict>>) -> Outcome {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(error) => return Outcome::of(Err(error)),
    };
    let mut outcome = Outcome::default();
    let mut table = format!("\nLinux {series} in the lab       to init   in all   (seconds)\n");
    for verdict in &verdicts {
        let boot = verdict.boot_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
        let word = if verdict.failures.is_empty() { "ok" } else { "FAILED" };
        table.push_str(&format!("  {word:6} {:22} {boot:>7} {:8.1}\n", verdict.name, verdict.seconds));
        if verdict.failures.is_empty() {
            outcome.passed += 1;
        } else {
            outcome.failed.push(format!("{}: {}", verdict.name, verdict.failures.join("\n    ")));
        }
    }
    crate::progress::print(format_args!("{table}\n"));
    outcome
}
