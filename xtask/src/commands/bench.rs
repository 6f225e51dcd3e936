//! `cargo xtask bench`: AxVM beside the floor and its peers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::bench::experiment::Experiment;
use crate::bench::report::Report;
use crate::bench::subject::Peer;
use crate::bench::{self, page, plot, setup};
use crate::progress::print;
use crate::project;

/// Measure AxVM beside the floor and its peers: start, memory, exits, disk, end
///
/// The floor is a program that makes the needed calls only. Peers are Firecracker, Cloud Hypervisor and QEMU's
/// microvm, if this machine has them or --vs says where they are. All run the same guest on the same disk, in turns.
#[derive(Args)]
pub struct Bench {
    /// Fewer rounds: two minutes instead of twelve
    #[arg(long)]
    quick: bool,
    /// Peers, instead of those in the PATH: firecracker=PATH, cloud-hypervisor=PATH, qemu; none by ""
    #[arg(long, value_name = "NAME[=PATH],...")]
    vs: Option<String>,
    /// Only these experiments: start-128m, start-2g, start-20, calls, off, exits, outside, block, woken, spread, cold, trace, net, vmlinux, bzimage
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    only: Vec<String>,
    /// In the lab instead: stock kernels to user space, with 1, 4 and 20 vCPUs; half an hour, with --quick five minutes
    #[arg(long, conflicts_with_all = ["only", "check", "page", "from"])]
    lab: bool,
    /// Write all samples to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a plot to a file, as SVG
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Measure nothing: take the samples of files that --json has written
    #[arg(long, value_name = "FILE,...", value_delimiter = ',', conflicts_with_all = ["quick", "vs", "only", "json"])]
    from: Vec<PathBuf>,
    /// Put table and plot into BENCHMARKS.md and docs/bench.svg
    #[arg(long, conflicts_with = "only")]
    page: bool,
    /// Measure little, beside the floor only, and fail if AxVM is grossly slower than it was
    #[arg(long, conflicts_with_all = ["quick", "vs", "only", "page", "from"])]
    check: bool,
}

impl Bench {
    /// Measures.
    pub fn run(self) -> Result<ExitCode> {
        let report = match self.from.as_slice() {
            [] => self.measure()?,
            paths => read(paths)?,
        };
        print(report.table());
        self.keep(&report)?;
        let gross = if self.check { report.gross() } else { Vec::new() };
        gross.iter().for_each(|line| print(format_args!("GROSS  {line}\n")));
        Ok(if gross.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn measure(&self) -> Result<Report> {
        if self.lab {
            let named = self.vs.as_deref().map(peers).transpose()?;
            let subjects = setup::subjects(named.as_deref())?;
            let boots = if self.quick { &bench::lab::QUICK[..] } else { &bench::lab::FULL };
            let samples = bench::lab::measure(boots, bench::statistics::LEAST_ROUNDS, &subjects)?;
            return Ok(Report::of(&samples, &subjects, host()));
        }
        let plan = self.plan()?;
        let named = if self.check { Some(Vec::new()) } else { self.vs.as_deref().map(peers).transpose()? };
        let subjects = setup::subjects(named.as_deref())?;
        let kernels =
            plan.iter().any(|(experiment, _)| matches!(experiment, Experiment::Vmlinux | Experiment::BzImage));
        let samples = bench::measure(&plan, &subjects, &setup::bench(kernels)?)?;
        Ok(Report::of(&samples, &subjects, host()))
    }

    fn plan(&self) -> Result<bench::Plan> {
        let mut plan = match (self.check, self.quick) {
            (true, _) => bench::check(),
            (_, true) => bench::quick(),
            _ => bench::full(),
        };
        let known: Vec<&str> = plan.iter().map(|(experiment, _)| experiment.name()).collect();
        for name in &self.only {
            ensure!(known.contains(&name.as_str()), "There is no experiment {name}. There are: {}", known.join(", "));
        }
        plan.retain(|(experiment, _)| self.only.is_empty() || self.only.iter().any(|name| name == experiment.name()));
        Ok(plan)
    }

    fn keep(&self, report: &Report) -> Result<()> {
        if let Some(path) = &self.json {
            write(path, &(serde_json::to_string_pretty(report)? + "\n"))?;
        }
        if let Some(path) = &self.plot {
            write(path, &plot::svg(report))?;
        }
        if self.page {
            let path = project::root().join("BENCHMARKS.md");
            let text = fs::read_to_string(&path).with_context(|| format!("Cannot read {}", path.display()))?;
            write(&path, &page::replaced(&text, &report.markdown())?)?;
            write(&project::root().join("docs/bench.svg"), &plot::svg(report))?;
        }
        Ok(())
    }
}

fn read(paths: &[PathBuf]) -> Result<Report> {
    let text = |path: &PathBuf| fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()));
    let texts: Vec<String> = paths.iter().map(text).collect::<Result<_>>()?;
    let names = || paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    Report::from_json(texts.iter().map(String::as_str))
        .with_context(|| format!("Cannot use {}: not all written by --json", names()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
}

fn peers(list: &str) -> Result<Vec<Peer>> {
    let words = list.split(',').map(str::trim).filter(|word| !word.is_empty());
    words.map(|word| word.parse().map_err(|why| anyhow::anyhow!("Cannot measure beside {word}: {why}"))).collect()
}

/// Processor, kernel and load: numbers mean little without.
fn host() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| cpuinfo.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "));
    let model = field("model name").map_or("an unknown processor", |(_, model)| model);
    let count = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let virtualization = match cpuinfo.contains(" vmx") || cpuinfo.contains(" svm") {
        true => "",
        false => ", a KVM without VMX or SVM",
    };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    format!("{model}, {count} CPUs{virtualization}, Linux {release}; load at the end {load}.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::subject::Kind;

    #[test]
    fn peers_are_a_list_and_none_is_one_too() {
        let two = peers("qemu, firecracker=/x").unwrap();
        assert_eq!(two.iter().map(|peer| peer.kind).collect::<Vec<_>>(), [Kind::Qemu, Kind::Firecracker]);
        assert_eq!(peers("").unwrap(), []);
        assert!(peers("xen").unwrap_err().to_string().starts_with("Cannot measure beside xen: there is no peer"));
    }

    #[test]
    fn experiments_that_do_not_exist_are_refused_with_those_that_do() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            bench: Bench,
        }
        let parse = |words: &[&str]| <Line as clap::Parser>::try_parse_from([&["x"], words].concat());
        let only = parse(&["--only", "off,exits", "--quick"]).unwrap().bench;
        assert_eq!(only.plan().unwrap().len(), 2);
        let error = parse(&["--only", "noise"]).unwrap().bench.plan().unwrap_err().to_string();
        assert!(error.starts_with("There is no experiment noise. There are: start-128m"), "{error}");
        assert!(parse(&["--check", "--quick"]).is_err());
        assert_eq!(parse(&[]).unwrap().bench.plan().unwrap().len(), bench::full().len());
    }

    #[test]
    fn the_host_is_named() {
        assert!(host().contains("CPUs") && host().contains("Linux"), "{}", host());
    }
}
