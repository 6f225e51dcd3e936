//! AxVM measured beside the floor and its peers: `cargo xtask bench`.
//!
//! ```text
//!   subject     who: AxVM, floor, peers          experiment   one run of one subject --> numbers
//!   quantity    what a number means              watched      a VMM under observation; process: what /proc knows;
//!                                                             trace: what its vCPU does between two exits
//!   lab         stock kernels, in the lab
//!   net         a tap and the host's end of it
//!   mod         rounds --> samples               statistics   samples --> medians, ratios and their intervals
//!   report      table, page, JSON                plot         SVG
//! ```
//!
//! In each round every subject has its turn, in an order that rotates: what the host does meanwhile hits all alike, and
//! the ratio of two is of numbers taken side by side.

pub mod experiment;
pub mod kernel;
pub mod lab;
pub mod net;
pub mod page;
pub mod plot;
pub mod process;
pub mod quantity;
pub mod report;
pub mod setup;
pub mod statistics;
pub mod subject;
pub mod trace;
pub mod watched;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use experiment::Experiment;
use setup::Bench;
use subject::Subject;

use crate::progress::Progress;

/// Experiments, each with its rounds.
pub type Plan = Vec<(Experiment, usize)>;

/// Samples, one for each round, by quantity and subject (its place in the list).
pub type Samples = BTreeMap<(String, usize), Vec<f64>>;

const SMALL: Experiment = Experiment::Start("start-128m", 128, 1);

/// Everything, in a quarter of an hour.
pub fn full() -> Plan {
    vec![
        (SMALL, 60),
        (Experiment::Start("start-2g", 2048, 1), 30),
        (Experiment::Start("start-20", 128, 20), 30),
        (Experiment::Calls, 5),
        (Experiment::Off, 40),
        (Experiment::Exits(5_000), 21),
        (Experiment::Outside(1_000), 15),
        (Experiment::Block(10_000), 15),
        (Experiment::Woken(3_000), 15),
        (Experiment::Spread(10_000), 15),
        (Experiment::Cold(20_000), 11),
        (Experiment::Trace(3_000), 11),
        (Experiment::Net(50_000), 15),
        (Experiment::Vmlinux, 21),
        (Experiment::BzImage, 21),
    ]
}

/// Everything, in two minutes.
pub fn quick() -> Plan {
    vec![
        (SMALL, 15),
        (Experiment::Start("start-2g", 2048, 1), 9),
        (Experiment::Start("start-20", 128, 20), 9),
        (Experiment::Calls, 5),
        (Experiment::Off, 9),
        (Experiment::Exits(1_500), 7),
        (Experiment::Outside(500), 5),
        (Experiment::Block(3_000), 5),
        (Experiment::Woken(1_000), 5),
        (Experiment::Spread(4_000), 5),
        (Experiment::Cold(5_000), 5),
        (Experiment::Trace(1_000), 5),
        (Experiment::Net(15_000), 5),
        (Experiment::Vmlinux, 7),
        (Experiment::BzImage, 7),
    ]
}

/// What [`report::Report::gross`] judges, in well under a minute.
pub fn check() -> Plan {
    vec![
        (SMALL, 21),
        (Experiment::Start("start-20", 128, 20), 11),
        (Experiment::Off, 11),
        (Experiment::Exits(2_000), 11),
    ]
}

/// Runs a plan. A subject that fails an experiment ends it all: a table with holes would hide that.
pub fn measure(plan: &Plan, subjects: &[Subject], bench: &Bench) -> Result<Samples> {
    let mut samples = Samples::new();
    for &(experiment, rounds) in plan {
        let able: Vec<usize> = (0..subjects.len()).filter(|&at| experiment.suits(&subjects[at], bench)).collect();
        if !able.contains(&0) {
            eprintln!("Left out: {}: {} needs {}", experiment.name(), subjects[0].name(), experiment.needs());
        }
        let progress = Progress::steps(&format!("Measuring: {}", experiment.name()), rounds as u64);
        for round in 0..rounds {
            progress.at(round as u64);
            for turn in 0..able.len() {
                let at = able[(round + turn) % able.len()];
                let subject = &subjects[at];
                let numbers = experiment.run(subject, bench);
                let numbers = numbers.with_context(|| format!("{}, {}", experiment.name(), subject.name()))?;
                for (id, value) in numbers {
                    samples.entry((id, at)).or_default().push(value);
                }
            }
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_have_rounds_for_an_interval() {
        for plan in [full(), quick(), check()] {
            assert!(plan.iter().all(|&(_, rounds)| rounds >= statistics::LEAST_ROUNDS));
        }
    }
}
