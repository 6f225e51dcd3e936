//! The lab tests on all kernels, two at a time: each lab takes one core.
//!
//! ```text
//!   6.1 (cloud)   their share, and others    6.1-generic, 6.1-rt      a few
//!   6.12 (cloud)  their share                6.12-generic, 6.12-rt    a few      debian: its own kernel, initrd, systemd
//!                                                                                alpine: its own kernel and initrd
//! ```
//!
//! What is of the kernel runs on both cloud kernels, what is of the host on one of them; all that is named runs on both.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Outcome;
use crate::assets::Wanted;
use crate::lab::Lab;
use crate::program;
use crate::scenarios::{self, Campaign, Scenario, Verdict};

/// How many labs run at a time.
const LABS: usize = 2;

/// What a lab starts.
enum System {
    Stock(Wanted),
    Debian,
    Alpine,
}

/// Whether a scenario's name has `part` in it.
pub fn knows(part: &str) -> bool {
    all([scenarios::all(), scenarios::all()])
        .iter()
        .flat_map(|(_, scenarios)| scenarios)
        .any(|scenario| scenario.name.contains(part))
}

/// All kernels with their scenarios; those of the two cloud kernels are given.
fn all([older, newer]: [Vec<Scenario>; 2]) -> Vec<(System, Vec<Scenario>)> {
    let older = older.into_iter().chain(scenarios::others()).collect();
    let mut queue = vec![(System::Stock(Wanted::V6_1), older), (System::Stock(Wanted::V6_12), newer)];
    queue.push((System::Debian, scenarios::distribution()));
    queue.extend(Wanted::OTHERS.map(|wanted| {
        let few = if wanted.name.ends_with("-rt") { scenarios::fewest() } else { scenarios::few() };
        (System::Stock(wanted), few)
    }));
    queue.push((System::Alpine, scenarios::alpine()));
    queue
}

/// All kernels with the scenarios that the filters leave; a layer's name, outcome and time for each.
pub fn campaigns(filters: &[String]) -> Vec<(String, Outcome, Duration)> {
    let whole = || [scenarios::all(), scenarios::all()];
    let mut queue = all(if filters.is_empty() { scenarios::shared_out() } else { whole() });
    for (_, scenarios) in &mut queue {
        let named = |scenario: &Scenario| filters.iter().any(|filter| scenario.name.contains(filter.as_str()));
        scenarios.retain(|scenario| filters.is_empty() || named(scenario));
    }
    queue.retain(|(_, scenarios)| !scenarios.is_empty());
    let lab = match program::build().and_then(|axvm| Ok((Lab::open()?, axvm))) {
        Ok(ready) => ready,
        Err(error) => {
            let outcome = Outcome::of(Err(error.context("Cannot prepare the lab")));
            return vec![("lab".to_owned(), outcome, Duration::ZERO)];
        }
    };
    let (lab, axvm) = &lab;
    let queue = Mutex::new(queue.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        let mut done = Vec::new();
        while let Some((system, scenarios)) = next() {
            let started = Instant::now();
            let (name, campaign) = match &system {
                System::Stock(wanted) => (wanted.name, Campaign::new(wanted, scenarios, axvm)),
                System::Debian => ("debian", Campaign::debian(scenarios)),
                System::Alpine => ("alpine", Campaign::alpine(scenarios)),
            };
            let outcome = match campaign {
                Ok(campaign) => outcome(name, campaign.run(lab, axvm)),
                Err(error) => Outcome::skip(format!("{error:#}")),
            };
            done.push((format!("lab-{name}"), outcome, started.elapsed()));
        }
        done
    };
    thread::scope(|scope| {
        let workers = [(); LABS].map(|()| scope.spawn(work));
        let lost = |_| {
            let outcome = Outcome::of(Err(anyhow::anyhow!("the lab's thread panicked")));
            vec![("lab".to_owned(), outcome, Duration::ZERO)]
        };
        let mut layers: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(lost)).collect();
        layers.sort_by(|a, b| a.0.cmp(&b.0));
        layers
    })
}

fn outcome(name: &str, verdicts: Result<Vec<Verdict>>) -> Outcome {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        Err(error) => return Outcome::of(Err(error)),
    };
    let mut outcome = Outcome::default();
    let mut table = format!("\n{:31} to init   in all   (seconds)\n", format!("{name} in the lab"));
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
